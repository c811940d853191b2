"""Genotypes: JSON, refusals that name the field, and the published counts."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stgs.config import InputError
from stgs.decoding import decode
from stgs.found_network import FoundNetwork
from stgs.genotype import Genotype, count_classifier, count_macs, count_parameters, genotype_from_json
from stgs.layers import ForwardContext
from stgs.search_space import RELEASED_FEATURES, search_space

Steps = list[tuple[str, str, str]]


def published(cells: list[tuple[str, str, Steps]]) -> dict[str, Any]:
    """A genotype of the released sizes as the JSON object of the design; cells are (input, input, steps)."""
    return {
        "version": 1,
        "features": dict(RELEASED_FEATURES),
        "channels": 128,
        "length": 8,
        "cells": [
            {"inputs": [one, two], "steps": [{"operation": o, "inputs": [a, b]} for o, a, b in steps]}
            for one, two, steps in cells
        ],
    }


# The published figures temp5_sampling15 and temp15_sampling5; visual 1 .. 4 are layer2, layer3, layer4, pooled.
GLU_TWICE: Steps = [("linear_glu", "in1", "in2"), ("linear_glu", "step1", "in2")]
FIRST = published(
    [
        ("visual.pooled", "audio.layer2", GLU_TWICE),
        ("visual.layer2", "audio.layer2", [("linear_glu", "in1", "in2"), ("concat_fc", "in1", "step1")]),
    ]
)
SECOND = published(
    [
        ("visual.layer4", "audio.layer2", GLU_TWICE),
        ("visual.layer2", "visual.layer3", [("sum", "in1", "in2"), ("sum", "in1", "in2")]),
    ]
)


def read(value: object) -> Genotype:
    return genotype_from_json(json.dumps(value), "found.json")


def random_genotypes(count: int) -> list[Genotype]:
    random = np.random.default_rng(0)
    genotypes = []
    for _ in range(count):
        features = {f"visual.f{i}": int(random.integers(1, 9)) for i in range(int(random.integers(2, 5)))}
        space = search_space(
            "default",
            features | {"audio.pooled": 5},
            num_cells=int(random.integers(1, 4)),
            num_steps=int(random.integers(1, 4)),
            channels=int(random.integers(1, 7)),
            length=int(random.integers(1, 6)),
        )
        genotypes.append(decode({name: random.standard_normal(shape) for name, shape in space.shapes().items()}, space))
    return genotypes


@pytest.mark.parametrize(("value", "count"), [(FIRST, 651_776), (SECOND, 683_776)])
def test_published_genotypes_have_the_published_parameters(value: dict, count: int) -> None:
    genotype = read(value)
    assert count_parameters(genotype) == count
    network = FoundNetwork(genotype, [0])
    assert sum(p.numel() for p in network.parameters()) == count + 2 * 128 * 8 + 1
    assert count_classifier(genotype) == 2 * 128 * 8 + 1


@pytest.mark.parametrize("genotype", random_genotypes(25), ids=lambda g: f"{len(g.cells)}x{len(g.cells[0].steps)}")
def test_counts_equal_the_built_network(genotype: Genotype) -> None:
    network = FoundNetwork(genotype, [0])
    classifier = sum(p.numel() for p in network.head.classifier.parameters())
    assert count_classifier(genotype) == classifier
    assert count_parameters(genotype) == sum(p.numel() for p in network.parameters()) - classifier


@pytest.mark.parametrize("genotype", [read(FIRST), read(SECOND), *random_genotypes(12)])
def test_macs_agree_with_a_counter_of_matrix_products(genotype: Genotype) -> None:
    clips = 3
    network = FoundNetwork(genotype, [0])
    features = {}
    for name in genotype.used_features:
        positions = () if name.endswith(".pooled") else (genotype.length,)
        features[name] = torch.zeros(clips, *positions, genotype.features[name])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(features, ForwardContext(network.seeds, 0, training=False, track_statistics=False))
    # A multiply-accumulate is two operations. The classifier is written as a product and a sum of single numbers, which
    # the counter does not see; it has a weight, and so a multiply-accumulate, for each of its inputs.
    classifier = network.head.classifier.weight[0].numel()
    assert counter.get_total_flops() / (2 * clips) + classifier == count_macs(genotype)


def test_macs_of_a_hand_counted_genotype() -> None:
    value = {
        "version": 1,
        "features": {"visual.layer2": 10, "audio.pooled": 20},
        "channels": 4,
        "length": 3,
        "cells": [
            {
                "inputs": ["visual.layer2", "audio.pooled"],
                "steps": [
                    {"operation": "attention", "inputs": ["in1", "in2"]},
                    {"operation": "linear_glu", "inputs": ["in1", "step1"]},
                ],
            }
        ],
    }
    reshape = 10 * 4 * 3 + 20 * 4  # 3 positions, and a vector
    attention = 3 * 3 * 4 + 3 * 3 * 4  # scores, and their product with the values
    glu, tail, classifier = 8 * 8 * 3, 8 * 4 * 3, 4 * 3
    assert count_macs(read(value)) == reshape + attention + glu + tail + classifier


@pytest.mark.parametrize("genotype", [read(FIRST), read(SECOND), *random_genotypes(5)], ids=range(7))
def test_json_round_trip(genotype: Genotype) -> None:
    text = genotype.to_json()
    again = genotype_from_json(text)
    assert again == genotype
    assert again.to_json() == text
    assert "\n" not in text
    assert list(again.features) == list(genotype.features)


def test_json_is_the_object_of_the_design() -> None:
    assert read(FIRST).to_dict() == FIRST
    assert read(FIRST).used_features == ("visual.layer2", "visual.pooled", "audio.layer2")


def changed(path: list[Any], value: object) -> dict:
    """`FIRST` with the entry at `path` set to `value`, or removed where it is None."""
    copy = json.loads(json.dumps(FIRST))
    entry = copy
    for key in path[:-1]:
        entry = entry[key]
    if value is None:
        del entry[path[-1]]
    else:
        entry[path[-1]] = value
    return copy


STEP = ["cells", 1, "steps", 0]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (changed(["version"], 2), "version is 2"),
        (changed(["version"], None), "'version' is missing"),
        (changed(["features"], None), "'features' is missing"),
        (changed(["channels"], None), "'channels' is missing"),
        (changed(["cells", 0, "inputs"], None), "'inputs' is missing"),
        (changed([*STEP, "operation"], None), "'operation' is missing"),
        (changed(["channels"], 0), "channels is 0"),
        (changed(["channels"], 12.5), "channels is 12.5"),
        (changed(["channels"], "128"), "channels is '128'"),
        (changed(["length"], -1), "length is -1"),
        (changed(["features", "visual.layer2"], 0), "visual.layer2"),
        (changed(["features", "visual.layer2"], True), "visual.layer2"),
        (changed(["features", "cell1"], 5), "'cell1'"),
        (changed(["cells"], []), "cells is empty"),
        (changed(["cells", 1, "steps"], []), r"cells\[1\].steps is empty"),
        (changed(["cells", 0, "inputs"], ["visual.pooled", "cell1"]), r"cells\[0\].inputs names 'cell1'"),
        (changed(["cells", 1, "inputs"], ["visual.pooled", "cell2"]), r"cells\[1\].inputs names 'cell2'"),
        (changed(["cells", 1, "inputs"], ["visual.pooled"]), r"cells\[1\].inputs"),
        (changed([*STEP, "operation"], "product"), r"cells\[1\].steps\[0\].operation is 'product'"),
        (changed([*STEP, "inputs"], ["in1", "step1"]), r"cells\[1\].steps\[0\].inputs names 'step1'"),
        (changed([*STEP, "inputs"], ["in1", "in2", "in2"]), r"cells\[1\].steps\[0\].inputs"),
        (changed(["cells"], 7), "not a genotype"),
        ([], "not a genotype"),
        ("genotype", "not a genotype"),
        (None, "not a genotype"),
    ],
)
def test_wrong_genotypes_are_refused_by_file_and_field(value: object, named: str) -> None:
    with pytest.raises(InputError, match=f"^found.json: .*{named}"):
        read(value)


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(InputError, match=r"found\.json: not JSON"):
        genotype_from_json("{'version': 1}", "found.json")


def test_an_earlier_cell_may_be_an_input() -> None:
    genotype = read(changed(["cells", 1, "inputs"], ["visual.layer2", "cell1"]))
    # The earlier cell needs no reshape layer.
    assert genotype.used_features == ("visual.layer2", "visual.pooled", "audio.layer2")
    assert count_parameters(genotype) == 651_776
