"""Candidates: one-hot weights, their scores in a supernet, architectures drawn by chance, and what searches make of it.

The independent implementation here walks one path alone, with the batch statistics of the training clips at each
normalisation, and scikit-learn's AUC.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stgs import candidates
from stgs.candidates import genotype_weights, random_genotypes, uniform_weights
from stgs.config import InputError
from stgs.finetune import FinetuneSearch
from stgs.genotype import CellGene, Genotype, StepGene, genotype_from_json
from stgs.population import PopulationSearch
from stgs.search_space import SearchSpace, search_space
from stgs.supernet import Supernet
from tests.populations import MEMBERS, build_search, run
from tests.stgs import test_finetune

COUNT = 5
TINY = SearchSpace(
    features={"visual.a": 4, "audio.a": 3}, channels=2, length=2, operations=("zero", "sum", "concat_fc")
)


def tiny_genotype(**changes: Any) -> Genotype:
    first = (StepGene("sum", ("in1", "in2")), StepGene("concat_fc", ("step1", "in2")))
    second = (StepGene("concat_fc", ("in1", "in2")), StepGene("sum", ("in1", "step1")))
    cells = (CellGene(("visual.a", "audio.a"), first), CellGene(("audio.a", "cell1"), second))
    return Genotype(**{"features": TINY.features, "channels": 2, "length": 2, "cells": cells, **changes})


def test_one_hot_weights_of_a_genotype() -> None:
    weights = genotype_weights([tiny_genotype()], TINY)
    identity = {
        # visual.a and audio.a of cell 1; visual.a, audio.a and cell1 of cell 2.
        "alpha": [1, 1, 0, 1, 1],
        # in1, in2 of step 1, in1, in2, step1 of step 2; the same of cell 2.
        "beta": [1, 1, 0, 1, 1, 1, 1, 1, 0, 1],
    }
    for name, chosen in identity.items():
        assert weights[name][0, :, 0].tolist() == chosen, name
        assert weights[name][0, :, 1].tolist() == [1 - value for value in chosen], "zero where identity is not"
    assert weights["gamma"][0].tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("changes", [{"channels": 4}, {"features": {"audio.a": 3, "visual.a": 5}}, {"cells": ()}])
def test_a_genotype_of_another_space_is_refused(changes: dict[str, Any]) -> None:
    if "cells" in changes:
        changes = {"cells": tiny_genotype().cells[:1]}
    with pytest.raises(InputError, match="is none of the search's space"):
        genotype_weights([tiny_genotype(**changes)], TINY)


class Path:
    """One member's path of one genotype, on train and dev at once, written plainly."""

    def __init__(self, net: Supernet, member: int) -> None:
        self.state = {name: value[member].double() for name, value in net.state_dict().items()}
        self.tail = net.space.tail

    def norm(self, where: str, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Train with its own statistics, dev with those that training keeps: the unbiased variance."""
        clips = x["train"].flatten(0, -2)
        variance = {"train": clips.var(dim=0, unbiased=False), "dev": clips.var(dim=0)}
        scale, shift = self.state[f"{where}.norm.weight"], self.state[f"{where}.norm.bias"]
        return {
            name: (value - clips.mean(dim=0)) / torch.sqrt(variance[name] + 1e-5) * scale + shift
            for name, value in x.items()
        }

    def block(self, where: str, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = self.state[f"{where}.linear.weight"]
        return self.norm(where, {name: value @ weight for name, value in x.items()})

    def operation(self, key: str, where: str, s: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        twice = {name: torch.cat([x, x], dim=-1) for name, x in s.items()}
        if key == "sum":
            return {name: x + x for name, x in s.items()}
        if key == "concat_fc":
            return {name: x.relu() for name, x in self.block(where, twice).items()}
        if key == "linear_glu":
            return {name: torch.nn.functional.glu(x, dim=-1) for name, x in self.block(where, twice).items()}
        return {
            name: self.layer_norm(where, torch.softmax(x @ x.transpose(1, 2) / math.sqrt(x.shape[-1]), dim=-1) @ x)
            for name, x in s.items()
        }

    def layer_norm(self, where: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.state[f"{where}.layer_norm.weight"][0], self.state[f"{where}.layer_norm.bias"][0]
        return torch.nn.functional.layer_norm(x, x.shape[1:], weight, bias)

    def cell(self, number: int, gene: CellGene, x: dict[str, torch.Tensor], order: tuple[str, ...]) -> dict[str, Any]:
        where = f"cells.{number}"
        states, outputs = {"in1": x, "in2": x}, []
        for step, (key, inputs) in enumerate((one.operation, one.inputs) for one in gene.steps):
            s = {name: states[inputs[0]][name] + states[inputs[1]][name] for name in x}
            weight = self.state[f"{where}.fusion_weight"][step, order.index(key)]
            made = self.operation(key, f"{where}.steps.{step}.{key}", s)
            outputs.append({name: weight * value for name, value in made.items()})
            states[f"step{step + 1}"] = outputs[-1]
        if self.tail == "concat":
            joined = {name: torch.cat([out[name] for out in outputs], dim=-1) for name in x}
        else:
            weights = self.state[f"{where}.step_weight"]
            joined = {name: sum(w * out[name] for w, out in zip(weights, outputs, strict=True)) for name in x}
        y = self.block(f"{where}.tail", joined)
        return {name: self.layer_norm(f"{where}.tail", y[name].relu() + x[name]) for name in x}

    def logits(self, search: PopulationSearch, genotype: Genotype) -> torch.Tensor:
        """Of the dev clips, [N]."""
        nodes: dict[str, dict[str, torch.Tensor]] = {}
        for index, name in enumerate(search.space.features):
            x = {"train": search.train.features[name].double(), "dev": search.dev.features[name].double()}
            nodes[name] = {split: y.relu() for split, y in self.block(f"reshape.{index}", x).items()}
        for number, gene in enumerate(genotype.cells):
            first, second = (nodes[name] for name in gene.inputs)
            x = {split: first[split] + second[split] for split in first}
            nodes[f"cell{number + 1}"] = self.cell(number, gene, x, search.space.operations)
        y = torch.cat([nodes[f"cell{number + 1}"]["dev"] for number in range(len(genotype.cells))], dim=-1)
        y = self.layer_norm("head", y).relu().flatten(1)
        return (y @ self.state["head.classifier.weight"] + self.state["head.classifier.bias"]).squeeze(1)


@pytest.mark.parametrize("preset", ["default", "released"])
def test_scores_are_those_of_each_path_alone(preset: str) -> None:
    # One training batch of all clips, so that its statistics are those of the split.
    search = run(build_search(MEMBERS[:2], preset=preset, epochs=3, batch_size=128, candidates=COUNT))
    genotypes = random_genotypes(search.space, COUNT, search.config.data_seed)
    for member, result in enumerate(search.results()):
        assert [genotype for genotype, _ in result.candidates] == genotypes
        path = Path(search.supernet, member)
        logits = [path.logits(search, genotype_from_json(text)) for text in genotypes]
        expected = [roc_auc_score(search.dev.labels[member].numpy(), one.numpy()) for one in logits]
        assert [value for _, value in result.candidates] == pytest.approx(expected, abs=1e-12)
    assert len({value for _, value in search.results()[0].candidates}) > 1


def state_without_candidates(search: PopulationSearch) -> dict[str, Any]:
    """Everything that a search knows; tensors as lists."""
    state = search.state_dict()
    progress = [{**one, "candidates": []} for one in state["progress"]]

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        return value.tolist() if isinstance(value, torch.Tensor) else value

    return plain({**state, "progress": progress})


def test_candidates_change_no_bit_of_a_search() -> None:
    # The first member stops before the others: it is scored while they go on.
    still = {"architecture_learning_rate": 1e-9, "architecture_weight_decay": 0.0, "initial_logit_scale": 3.0}
    found = {}
    for count in (0, 2):
        search = build_search(MEMBERS[:2], epochs=5, patience=2, candidates=count, **still)
        with torch.no_grad():
            for logits in search.supernet.architecture_parameters().values():
                logits[1] *= 1e-3
        found[count] = run(search)
    assert [result.metrics["epochs"] for result in found[2].results()] == [3, 5]
    assert state_without_candidates(found[0]) == state_without_candidates(found[2])
    alone = run(build_search(MEMBERS[:1], epochs=5, patience=2, candidates=2, **still))
    assert alone.results()[0].candidates == found[2].results()[0].candidates
    for count, search in found.items():
        assert [len(result.candidates) for result in search.results()] == [count, count]


def test_candidates_of_a_search_with_backbones_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[FinetuneSearch] = []
    for count in (0, 2):
        config = type(test_finetune.CONFIG)(epochs=1, batch_size=test_finetune.BATCH, candidates=count)
        monkeypatch.setattr(test_finetune, "CONFIG", config)
        found.append(run(test_finetune.search()))
    test_finetune.assert_equal(test_finetune.summary(found[0]), test_finetune.summary(found[1]))
    assert [len(one.results()[0].candidates) for one in found] == [0, 2]
    assert all(0.0 <= float(value or -1.0) <= 1.0 for _, value in found[1].results()[0].candidates)


def test_uniform_keeps_its_logits_and_takes_the_best_candidate() -> None:
    search = run(build_search(MEMBERS[:3], estimator="uniform", epochs=3, candidates=6))
    assert all(not logits.any() for logits in search.logits().values())
    results = search.results()
    for result in results:
        scores = [value or 0.0 for _, value in result.candidates]
        assert result.genotype is not None
        assert result.genotype.to_json() == result.candidates[int(np.argmax(scores))][0]
        assert result.metrics["dev_auc"] == max(scores)
        assert result.metrics["best_epoch"] == 3
        # It stands still on purpose, which is nothing to warn of.
        assert not any(result.metrics[name] for name in ("hardly_moved", "gradient_lost", "entropy_unmoved"))
    drawn = [[genotype for genotype, _ in result.candidates] for result in results]
    assert drawn[0] == random_genotypes(search.space, 6, (search.config.data_seed, MEMBERS[0].seed, 1))
    assert not set(drawn[0]) & set(drawn[1]), "each seed has candidates of its own"
    shared = {seed: random_genotypes(search.space, 6, seed) for seed in (search.config.data_seed, 0, 1, 2)}
    assert not any(set(own) & set(theirs) for own in drawn for theirs in shared.values()), "nor the random arm's"
    alone = run(build_search(MEMBERS[1:2], estimator="uniform", epochs=3, candidates=6))
    assert alone.results()[0].candidates == results[1].candidates


def test_uniform_without_candidates_is_refused() -> None:
    with pytest.raises(InputError, match="candidates is 0, but the estimator 'uniform' chooses among them"):
        build_search(MEMBERS[:1], estimator="uniform")


def test_scores_that_are_not_finite_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_aucs", lambda logits, labels: np.full(logits.shape[:2], np.nan))
    (result,) = run(build_search(MEMBERS[:1], epochs=1, candidates=2)).results()
    assert [value for _, value in result.candidates] == [None, None]
    assert result.genotype is not None, "the architecture's own choice does not need them"
    (result,) = run(build_search(MEMBERS[:1], estimator="uniform", epochs=1, candidates=2)).results()
    assert result.genotype is None
    assert str(result.failure).startswith("the scores of all candidates are not finite")


def test_uniform_weights_draw_every_architecture_as_often() -> None:
    space = search_space("default", dict.fromkeys("abcd", 8), channels=4, length=2)
    seeds, updates = torch.arange(40), 60
    drawn = [uniform_weights(seeds, update, space) for update in range(updates)]
    total = {name: torch.stack([one[name] for one in drawn]).flatten(0, 1) for name in drawn[0]}
    assert {float(value) for tensor in total.values() for value in tensor.unique()} == {0.0, 1.0}
    for name in ("alpha", "beta"):
        assert (total[name].sum(dim=-1) == 1).all(), "identity or zero"
    sizes = {"alpha": [4, 5], "beta": [2, 3, 2, 3]}
    for name, edges in sizes.items():
        for part in total[name][..., 0].split(edges, dim=1):
            assert (part.sum(dim=1) == 2).all(), "two inputs"
            share = 2 / part.shape[1]
            deviation = math.sqrt(max(share * (1 - share), 1e-12) / len(part))
            assert (part.mean(dim=0) - share).abs().max() <= 4 * deviation
    gamma = total["gamma"].mean(dim=0)
    assert (gamma[:, space.operations.index("zero")] == 0).all()
    assert (gamma[:, 1:] - 1 / 4).abs().max() <= 4 * math.sqrt(3 / 16 / len(total["gamma"]))
    again = uniform_weights(seeds[7:8], 3, space)
    assert all(torch.equal(again[name][0], drawn[3][name][7]) for name in again), "by seed and update alone"


def test_the_first_random_genotypes_do_not_depend_on_their_number() -> None:
    space = search_space("default", dict.fromkeys("abcd", 8), channels=4, length=2)
    assert random_genotypes(space, 9, 4)[:5] == random_genotypes(space, 5, 4)
    small = SearchSpace(features={"a": 1, "b": 1}, num_cells=1, num_steps=1, operations=("sum",))
    assert len(random_genotypes(small, 3, 0)) == 2, "the order of a step's inputs is all that there is to choose"
