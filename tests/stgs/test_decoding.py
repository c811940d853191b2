"""Decoding on hand-made logits, against a plain search over all choices, and the entropies."""

import itertools
import math

import numpy as np
import pytest

from stgs import decoding
from stgs.config import InputError
from stgs.cost import smallest_parameters
from stgs.decoding import decode, entropies, maximum_entropies, softmax
from stgs.genotype import CellGene, Genotype, StepGene, count_parameters, genotype_from_json
from stgs.search_space import RELEASED_FEATURES, SearchSpace, search_space

FEATURES = {"visual.a": 2, "visual.b": 2, "audio.a": 2, "audio.b": 2}


def identity(probabilities: list[float]) -> np.ndarray:
    """Edge logits [edges, 2] with these P(Identity)."""
    p = np.array(probabilities)
    return np.stack([np.log(p), np.log1p(-p)], axis=1)


def flat(space: SearchSpace) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape) for name, shape in space.shapes().items()}


def inputs(genotype: Genotype) -> list[tuple[str, str]]:
    return [cell.inputs for cell in genotype.cells]


def test_ties_go_by_order() -> None:
    space = search_space("default", FEATURES)
    genotype = decode(flat(space), space)
    # Cell 2: (a, b) was used; the next pair in order has one fresh input.
    assert inputs(genotype) == [("visual.a", "visual.b"), ("visual.a", "audio.a")]
    for cell in genotype.cells:
        assert [step.operation for step in cell.steps] == ["sum", "sum"]
        assert [step.inputs for step in cell.steps] == [("in1", "in2"), ("in1", "in2")]


def test_the_best_pair_is_taken_and_one_input_must_be_fresh() -> None:
    space = search_space("released", FEATURES)
    logits = flat(space)
    # Both cells like visual.b and audio.b best; cell 2 must leave one of them, and keeps the better with the third.
    logits["alpha"] = identity([0.2, 0.9, 0.3, 0.8, 0.1, 0.6, 0.5, 0.9])
    assert inputs(decode(logits, space)) == [("visual.b", "audio.b"), ("audio.a", "audio.b")]


def test_inputs_stand_in_index_order_whatever_their_probability() -> None:
    space = search_space("released", FEATURES)
    logits = flat(space)
    logits["alpha"] = identity([0.1, 0.6, 0.1, 0.9, 0.5, 0.1, 0.1, 0.9])
    assert inputs(decode(logits, space)) == [("visual.b", "audio.b"), ("visual.a", "audio.b")]


def test_earlier_cells_are_inputs_of_the_default_space() -> None:
    space = search_space("default", FEATURES)
    logits = flat(space)
    logits["alpha"] = identity([0.9, 0.8, 0.1, 0.1, 0.9, 0.2, 0.2, 0.2, 0.95])
    # visual.a was used by cell 1, cell1 was not: the pair is fresh. Cells stand after the features.
    assert inputs(decode(logits, space)) == [("visual.a", "visual.b"), ("visual.a", "cell1")]


def test_cells_without_fresh_inputs_may_repeat() -> None:
    space = search_space("released", {"visual.a": 2, "audio.a": 2}, num_cells=3)
    assert inputs(decode(flat(space), space)) == [("visual.a", "audio.a")] * 3


def test_step_inputs_stand_by_falling_probability() -> None:
    space = search_space("default", FEATURES, num_cells=1, num_steps=3)
    logits = flat(space)
    logits["beta"] = identity([0.3, 0.7, 0.6, 0.1, 0.9, 0.5, 0.2, 0.5, 0.5])
    steps = decode(logits, space).cells[0].steps
    assert [step.inputs for step in steps] == [("in2", "in1"), ("step1", "in1"), ("in1", "step1")]


@pytest.mark.parametrize("preset", ["default", "released"])
def test_the_best_operation_but_zero(preset: str) -> None:
    space = search_space(preset, FEATURES)
    logits = flat(space)
    gamma = {"zero": 9.0, "sum": 0.1, "attention": 0.2, "linear_glu": 0.4, "concat_fc": 0.3}
    logits["gamma"][:] = [gamma[name] for name in space.operations]
    operations = {step.operation for cell in decode(logits, space).cells for step in cell.steps}
    assert operations == {"linear_glu"}


def plain_decode(logits: dict[str, np.ndarray], space: SearchSpace) -> list:
    """Decoding with loops over the rows of the logits, by logit margins in place of probabilities."""
    result, used, alpha_row, beta_row = [], set(), 0, 0
    for cell in range(space.num_cells):
        names = list(space.features) + ([f"cell{i + 1}" for i in range(cell)] if space.earlier_cells else [])
        margin = {}
        for name in names:
            margin[name] = logits["alpha"][alpha_row, 0] - logits["alpha"][alpha_row, 1]
            alpha_row += 1
        best, best_value = None, -math.inf
        for i, j in itertools.combinations(range(len(names)), 2):
            pair = (names[i], names[j])
            # log of the product of sigmoid(margin)
            value = sum(-math.log1p(math.exp(-margin[name])) for name in pair)
            if (pair[0] not in used or pair[1] not in used) and value > best_value:
                best, best_value = pair, value
        used |= set(best)
        steps = []
        for step in range(space.num_steps):
            states = ["in1", "in2"] + [f"step{i + 1}" for i in range(step)]
            margins = logits["beta"][beta_row : beta_row + len(states)] @ [1.0, -1.0]
            beta_row += len(states)
            first, second = np.argsort(-margins, kind="stable")[:2]
            row = logits["gamma"][cell * space.num_steps + step].copy()
            if "zero" in space.operations:
                row[space.operations.index("zero")] = -math.inf
            steps.append((space.operations[int(np.argmax(row))], (states[first], states[second])))
        result.append((best, steps))
    return result


@pytest.mark.parametrize("preset", ["default", "released"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 4.0])
def test_random_logits_decode_as_a_plain_search_does(preset: str, scale: float) -> None:
    random = np.random.default_rng(int(scale * 1000))
    for _ in range(60):
        features = {f"visual.f{i}": 3 for i in range(int(random.integers(2, 7)))}
        space = search_space(
            preset, features, num_cells=int(random.integers(1, 3)), num_steps=int(random.integers(1, 5))
        )
        if space.num_cells == 2 and len(features) == 2 and not space.earlier_cells:
            continue  # no fresh pair: tested above
        logits = {name: scale * random.standard_normal(shape) for name, shape in space.shapes().items()}
        genotype = decode(logits, space)
        found = [(cell.inputs, [(step.operation, step.inputs) for step in cell.steps]) for cell in genotype.cells]
        assert found == plain_decode(logits, space)
        assert all(step.operation != "zero" for cell in genotype.cells for step in cell.steps)
        assert genotype_from_json(genotype.to_json()) == genotype
        assert (genotype.features, genotype.channels, genotype.length) == (features, space.channels, space.length)


SIZES = {"visual.a": 9, "visual.b": 3, "audio.a": 14, "audio.b": 5}


def all_inputs(space: SearchSpace, before: tuple = ()) -> list[tuple]:
    """Every sequence of the cells' pairs that the rule of unused inputs allows."""
    if len(before) == space.num_cells:
        return [before]
    used = set(itertools.chain(*before))
    pairs = list(itertools.combinations(space.cell_inputs(len(before)), 2))
    fresh = [pair for pair in pairs if set(pair) - used] or pairs
    return [found for pair in fresh for found in all_inputs(space, (*before, pair))]


def by_enumeration(logits: dict[str, np.ndarray], space: SearchSpace, edges: list) -> list[tuple[float, Genotype]]:
    """(product of the probabilities, genotype) of all that decoding may give, with these edges inside the cells."""
    p = {name: softmax(values) for name, values in logits.items()}
    operations = [(k, name) for k, name in enumerate(space.operations) if name != "zero"]
    found = []
    for pairs in all_inputs(space):
        chosen = [p["alpha"][space.alpha_edges.index((c, name)), 0] for c, pair in enumerate(pairs) for name in pair]
        for names in itertools.product(operations, repeat=len(space.gamma_steps)):
            score = math.prod(chosen) * math.prod(p["gamma"][row, k] for row, (k, _) in enumerate(names))
            steps = iter(StepGene(name, edge) for (_, name), edge in zip(names, edges, strict=True))
            cells = tuple(CellGene(pair, tuple(next(steps) for _ in range(space.num_steps))) for pair in pairs)
            found.append((score, Genotype(dict(space.features), space.channels, space.length, cells)))
    return found


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("default", {"operations": ("zero", "sum", "concat_fc")}),
        ("default", {"num_cells": 3, "num_steps": 1, "operations": ("attention", "linear_glu")}),
        ("released", {"num_steps": 1}),
        ("released", {"num_cells": 3, "num_steps": 1, "operations": ("concat_fc", "sum")}),
    ],
)
def test_under_a_limit_the_most_probable_genotype_that_fits_is_found(preset: str, changes: dict) -> None:
    random = np.random.default_rng(1)
    for scale in (1e-3, 2.0):
        space = search_space(preset, SIZES, channels=3, length=2, **changes)
        logits = {name: scale * random.standard_normal(shape) for name, shape in space.shapes().items()}
        plain = decode(logits, space)
        edges = [step.inputs for cell in plain.cells for step in cell.steps]
        candidates = [(score, count_parameters(one), one) for score, one in by_enumeration(logits, space, edges)]
        counts = sorted({count for _, count, _ in candidates})
        assert decode(logits, space, max_parameters=count_parameters(plain)) == plain
        for limit in [counts[0], *random.choice(counts, 8), count_parameters(plain) - 1]:
            if limit < counts[0] or limit >= count_parameters(plain):
                continue
            found = decode(logits, space, max_parameters=int(limit))
            score, best = max(((score, one) for score, count, one in candidates if count <= limit), key=lambda c: c[0])
            assert found == best, (limit, score)
        with pytest.raises(InputError, match=f"smallest found network of this space has {counts[0]};"):
            decode(logits, space, max_parameters=counts[0] - 1)


def test_of_equally_probable_genotypes_that_fit_the_first_in_order_is_found() -> None:
    space = search_space("released", SIZES, channels=3, length=2)
    # The plain rule takes (visual.a, visual.b), (visual.a, audio.a). With audio.b in the place of audio.a two other
    # pairs fit, too: cell 1 takes the first, cell 2 the first of those with the third feature.
    limit = count_parameters(decode(flat(space), space)) - (SIZES["audio.a"] - SIZES["audio.b"]) * 3
    found = decode(flat(space), space, max_parameters=limit)
    assert inputs(found) == [("visual.a", "visual.b"), ("visual.a", "audio.b")]
    assert {step.operation for cell in found.cells for step in cell.steps} == {"sum"}


def test_a_limit_in_the_paper_s_space_keeps_what_does_not_cost() -> None:
    space = search_space("default", RELEASED_FEATURES)
    logits = flat(space)
    # Everything is decided; the two visual features of cell 1 and the GLUs are what costs most.
    logits["alpha"][:, 0] = -10
    for row in (space.alpha_edges.index(edge) for edge in [(0, "visual.layer4"), (0, "visual.pooled")]):
        logits["alpha"][row, 0] = 3
    logits["alpha"][space.alpha_edges.index((1, "cell1")), 0] = 5
    logits["alpha"][space.alpha_edges.index((1, "visual.pooled")), 0] = 5
    logits["gamma"][:, space.operations.index("linear_glu")] = 3
    plain = decode(logits, space)
    assert inputs(plain) == [("visual.layer4", "visual.pooled"), ("visual.pooled", "cell1")]
    # 100,000 fewer: two GLUs of 66,304 become something else. One input less would do, too, but is less probable.
    found = decode(logits, space, max_parameters=count_parameters(plain) - 100_000)
    assert inputs(found) == inputs(plain)
    operations = [step.operation for cell in found.cells for step in cell.steps]
    assert operations.count("linear_glu") == 2
    assert count_parameters(found) <= count_parameters(plain) - 100_000


def test_a_space_too_large_to_search_whole_still_gets_a_genotype_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    space = search_space("released", {f"visual.f{i}": 5 + i for i in range(9)}, num_cells=4, num_steps=1, channels=3)
    random = np.random.default_rng(0)
    logits = {name: random.standard_normal(shape) for name, shape in space.shapes().items()}
    limit = smallest_parameters(space)
    exact = decode(logits, space, max_parameters=limit + 20)
    monkeypatch.setattr(decoding, "MAX_CANDIDATES", 36 * 4)
    for more in (0, 20):
        assert count_parameters(decode(logits, space, max_parameters=limit + more)) <= limit + more
    assert count_parameters(exact) <= limit + 20


def test_entropies_equal_the_formula_and_have_their_maxima() -> None:
    space = search_space("default", FEATURES)
    random = np.random.default_rng(0)
    logits = {name: 2 * random.standard_normal((3, *shape)) for name, shape in space.shapes().items()}
    found, maximum = entropies(logits), maximum_entropies(space)
    for name, rows in logits.items():
        assert found[name].shape == (3,)
        for member in range(3):
            total = 0.0
            for row in rows[member]:
                z = sum(math.exp(v) for v in row)
                total -= sum(math.exp(v) / z * (v - math.log(z)) for v in row)
            assert found[name][member] == pytest.approx(total, rel=1e-12)
            assert total < maximum[name]
    assert maximum == pytest.approx({"alpha": 9 * math.log(2), "beta": 10 * math.log(2), "gamma": 4 * math.log(5)})
    assert entropies(flat(space)) == pytest.approx(maximum)


def test_decided_logits_have_no_entropy() -> None:
    space = search_space("default", FEATURES)
    logits = flat(space)
    for rows in logits.values():
        rows[:, 0] = 1000.0
    assert entropies(logits) == pytest.approx({"alpha": 0.0, "beta": 0.0, "gamma": 0.0})
