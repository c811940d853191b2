"""The found network against a plain one of torch.nn, for decoded and for published architectures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stgs.decoding import decode
from stgs.found_network import FoundNetwork
from stgs.genotype import Genotype, genotype_from_dict
from stgs.layers import ForwardContext
from stgs.search_space import search_space

FEATURES = {"visual.a": 5, "visual.pooled": 7, "audio.a": 3, "audio.pooled": 6}
SEEDS = [4, 9]
B = 6


def random_genotype(seed: int) -> Genotype:
    random = np.random.default_rng(seed)
    space = search_space(
        "default",
        FEATURES,
        channels=4,
        length=3,
        num_cells=int(random.integers(1, 4)),
        num_steps=int(random.integers(1, 4)),
    )
    return decode({name: random.standard_normal(shape) for name, shape in space.shapes().items()}, space)


def written(cells: list[dict]) -> Genotype:
    value = {"version": 1, "features": FEATURES, "channels": 4, "length": 3, "cells": cells}
    return genotype_from_dict(value)


def steps(*described: str) -> list[dict]:
    return [{"operation": d.split()[0], "inputs": d.split()[1:]} for d in described]


GENOTYPES = {f"random{seed}": random_genotype(seed) for seed in range(6)} | {
    # An earlier cell as an input, Zero, and one state twice.
    "odd": written(
        [
            {"inputs": ["visual.a", "audio.pooled"], "steps": steps("linear_glu in2 in1", "attention step1 in2")},
            {"inputs": ["audio.pooled", "cell1"], "steps": steps("zero in1 in2", "concat_fc in2 in2")},
        ]
    ),
}


class PlainFound(nn.Module):
    def __init__(self, genotype: Genotype, plain: SimpleNamespace) -> None:
        super().__init__()
        self.genotype = genotype
        c, length = genotype.channels, genotype.length
        used = [name for name in genotype.features if any(name in cell.inputs for cell in genotype.cells)]
        self.reshape = nn.ModuleDict(
            {name.replace(".", "_"): plain.Reshape(genotype.features[name], c, length) for name in used}
        )
        self.used = used
        self.operations = nn.ModuleList(
            nn.ModuleList(plain.operation(step.operation, c, length) for step in cell.steps) for cell in genotype.cells
        )
        self.tails = nn.ModuleList(plain.Tail(c * len(cell.steps), c, length) for cell in genotype.cells)
        self.head = plain.Head(len(genotype.cells), c, length)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        nodes = {}
        for name in self.used:
            x = inputs[name]
            nodes[name] = self.reshape[name.replace(".", "_")](x.transpose(1, 2) if x.dim() == 3 else x)
        outputs = []
        for number, cell in enumerate(self.genotype.cells):
            one, two = (nodes[name] for name in cell.inputs)
            states = {"in1": one, "in2": two}
            for index, step in enumerate(cell.steps, start=1):
                x, y = (states[name] for name in step.inputs)
                states[f"step{index}"] = self.operations[number][index - 1](x, y)
            joined = torch.cat([states[f"step{i + 1}"] for i in range(len(cell.steps))], dim=1)
            outputs.append(self.tails[number](joined, one))
            nodes[f"cell{number + 1}"] = outputs[-1]
        return self.head(outputs)

    def pairs(self, ours: FoundNetwork) -> list:
        found = [p for one, two in zip(self.reshape.values(), ours.reshape, strict=True) for p in one.pairs(two)]
        for one, two in zip(self.operations, ours.operations, strict=True):
            found += [p for a, b in zip(one, two, strict=True) for p in a.pairs(b)]
        found += [p for one, two in zip(self.tails, ours.tails, strict=True) for p in one.pairs(two)]
        return found + self.head.pairs(ours.head)


def features() -> dict[str, Tensor]:
    return {
        name: torch.randn((B, size) if "pooled" in name else (B, 3, size), dtype=torch.float64)
        for name, size in FEATURES.items()
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("genotype", GENOTYPES.values(), ids=GENOTYPES)
def test_found_network_equals_a_plain_one(genotype: Genotype, training: bool, plain: SimpleNamespace) -> None:
    network = FoundNetwork(genotype, SEEDS, dropout=0.0, attention_dropout=0.0).double()
    for parameter in network.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    inputs, upstream = features(), torch.randn(len(SEEDS), B, dtype=torch.float64)
    logits = network(inputs, ForwardContext(network.seeds, 0, training=training, track_statistics=False))
    assert logits.shape == (len(SEEDS), B)
    (logits * upstream).sum().backward()
    for member in range(len(SEEDS)):
        reference = PlainFound(genotype, plain).double().train(training)
        pairs = reference.pairs(network)
        assert {id(p.ours) for p in pairs} == {id(p) for p in network.parameters()}
        assert {id(p.plain) for p in pairs} == {id(p) for p in reference.parameters()}
        for pair in pairs:
            pair.load(member)
        expected = reference(inputs)
        assert torch.allclose(logits[member], expected, rtol=1e-9, atol=1e-11)
        (expected * upstream[member]).sum().backward()
        for pair in pairs:
            assert torch.allclose(pair.gradient(member), pair.plain.grad, rtol=1e-7, atol=1e-10)


def test_networks_side_by_side_equal_networks_alone() -> None:
    genotype = GENOTYPES["random0"]
    inputs = {name: x.float() for name, x in features().items()}

    def logits(seeds: list[int]) -> Tensor:
        network = FoundNetwork(genotype, seeds, dropout=0.3, attention_dropout=0.2)
        return network(inputs, ForwardContext(network.seeds, 5, training=True, track_statistics=True))

    together = logits(SEEDS)
    for index, seed in enumerate(SEEDS):
        assert torch.allclose(together[index], logits([seed])[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_unused_features_have_no_layers() -> None:
    genotype = GENOTYPES["odd"]
    assert genotype.used_features == ("visual.a", "audio.pooled")
    assert len(FoundNetwork(genotype, [0]).reshape) == 2
