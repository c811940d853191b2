"""The expected parameters of the found network, against enumeration, against decoded genotypes, and its gradient."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from stgs.cost import ExpectedParameters, largest_parameters, smallest_parameters
from stgs.decoding import decode
from stgs.genotype import CellGene, Genotype, StepGene, count_parameters
from stgs.search_space import RELEASED_FEATURES, SearchSpace, search_space

FEATURES = {"visual.a": 9, "visual.b": 3, "audio.a": 14}
SMALL = {"channels": 3, "length": 2}
SPACES = [
    search_space("default", FEATURES, **SMALL, num_steps=1, operations=("zero", "attention", "linear_glu")),
    search_space("released", FEATURES, **SMALL, num_steps=1, operations=("sum", "concat_fc")),
    search_space("default", FEATURES, **SMALL, num_steps=2, num_cells=1, operations=("sum", "zero", "concat_fc")),
]
CERTAIN = 60.0  # a logit whose probability is 1 in float64


def random_logits(space: SearchSpace, members: int, scale: float = 1.5, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(members, *shape, generator=generator, dtype=torch.float64)
        for name, shape in space.shapes().items()
    }


def count(space: SearchSpace, used: tuple[str, ...], operations: tuple[str, ...]) -> int:
    """Parameters of a network that uses these features and operations, as `stgs describe` counts them.

    A genotype has two inputs a cell; what it lacks or has too much of the features is added or taken by hand.
    """
    names = list(space.features)[:2]
    steps = [StepGene(name, ("in1", "in2")) for name in operations]
    cells = tuple(
        CellGene((names[0], names[1]), tuple(steps[i * space.num_steps : (i + 1) * space.num_steps]))
        for i in range(space.num_cells)
    )
    base = count_parameters(Genotype(dict(space.features), space.channels, space.length, cells))
    # Conv1d(C_in -> C) with bias, BatchNorm1d(C).
    layer = {name: torch.nn.Conv1d(size, space.channels, 1) for name, size in space.features.items()}
    cost = {name: sum(p.numel() for p in conv.parameters()) + 2 * space.channels for name, conv in layer.items()}
    return base + sum(cost[name] for name in used) - sum(cost[name] for name in names)


def by_enumeration(space: SearchSpace, logits: dict[str, Tensor], member: int) -> float:
    """The expectation as a sum over every state of every edge and every operation of every step."""
    alpha = torch.softmax(logits["alpha"][member], dim=-1)
    gamma = torch.softmax(logits["gamma"][member], dim=-1)
    kept = [k for k, name in enumerate(space.operations) if name != "zero"]
    gamma = gamma[:, kept] / gamma[:, kept].sum(dim=1, keepdim=True)
    total = 0.0
    for states in itertools.product((0, 1), repeat=len(space.alpha_edges)):
        p_edges = float(torch.stack([alpha[row, state] for row, state in enumerate(states)]).prod())
        read = {name for (_, name), state in zip(space.alpha_edges, states, strict=True) if state == 0}
        used = tuple(name for name in space.features if name in read)
        for chosen in itertools.product(range(len(kept)), repeat=len(space.gamma_steps)):
            p = p_edges * float(torch.stack([gamma[row, k] for row, k in enumerate(chosen)]).prod())
            total += p * count(space, used, tuple(space.operations[kept[k]] for k in chosen))
    return total


@pytest.mark.parametrize("space", SPACES, ids=("default", "released", "two-steps"))
def test_expectation_is_the_sum_over_all_choices(space: SearchSpace) -> None:
    logits = random_logits(space, 2)
    share = ExpectedParameters(space, dtype=torch.float64)(logits)
    assert share.shape == (2,)
    for member in range(2):
        expected = by_enumeration(space, logits, member)
        assert float(share[member]) * largest_parameters(space) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("preset", ["default", "released"])
def test_decided_logits_cost_what_their_genotype_has(preset: str) -> None:
    space = search_space(preset, RELEASED_FEATURES)
    expected = ExpectedParameters(space, dtype=torch.float64)
    random = np.random.default_rng(0)
    logits = {name: random.standard_normal((1, *shape)) for name, shape in space.shapes().items()}
    genotype = decode({name: values[0] for name, values in logits.items()}, space)
    # Decided means: each cell's edges say Identity for its two inputs alone, and each step has one operation.
    for row, (cell, name) in enumerate(space.alpha_edges):
        logits["alpha"][0, row] = [CERTAIN if name in genotype.cells[cell].inputs else -CERTAIN, 0]
    for row, (cell, step) in enumerate(space.gamma_steps):
        chosen = genotype.cells[cell].steps[step].operation
        logits["gamma"][0, row] = [CERTAIN * (name == chosen) for name in space.operations]
    tensors = {name: torch.from_numpy(values) for name, values in logits.items()}
    share = count_parameters(genotype) / largest_parameters(space)
    assert float(expected(tensors)) == pytest.approx(share, rel=1e-12)
    # An input more that the genotype does not have is what makes a difference: its layer is then expected, too.
    (unused, *_) = [name for name in space.features if name not in genotype.used_features]
    tensors["alpha"][0, space.alpha_edges.index((0, unused)), 0] = CERTAIN
    more = share + (RELEASED_FEATURES[unused] * 128 + 3 * 128) / largest_parameters(space)
    assert float(expected(tensors)) == pytest.approx(more, rel=1e-12)


def test_gradient_is_the_difference_quotient() -> None:
    space = search_space("default", FEATURES, **SMALL, num_steps=1)
    expected = ExpectedParameters(space, dtype=torch.float64)
    logits = {name: values.requires_grad_() for name, values in random_logits(space, 2).items() if name != "beta"}
    assert torch.autograd.gradcheck(
        lambda alpha, gamma: expected({"alpha": alpha, "gamma": gamma}), tuple(logits.values())
    )
    certain = {name: torch.full_like(values, 200.0).requires_grad_() for name, values in logits.items()}
    certain["alpha"].data[..., 1] = -200.0
    gradients = torch.autograd.grad(expected(certain).sum(), certain.values())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_nothing_is_read_back_from_the_device() -> None:
    # A tensor on `meta` has no values, so whatever needs one on the host raises.
    space = search_space("default", RELEASED_FEATURES)
    logits = {name: torch.zeros(3, *shape, device="meta", requires_grad=True) for name, shape in space.shapes().items()}
    share = ExpectedParameters(space, device="meta")(logits)
    gradients = torch.autograd.grad(share.sum(), [logits["alpha"], logits["gamma"]])
    assert [gradient.shape for gradient in gradients] == [logits["alpha"].shape, logits["gamma"].shape]


def test_a_member_costs_the_same_bits_alone() -> None:
    space = search_space("default", RELEASED_FEATURES)
    logits = {name: values.float() for name, values in random_logits(space, 16).items()}
    expected = ExpectedParameters(space)
    together = expected(logits)
    for member in range(16):
        alone = expected({name: values[member : member + 1] for name, values in logits.items()})
        assert float(alone) == float(together[member])


@pytest.mark.parametrize("preset", ["default", "released"])
@pytest.mark.parametrize("num_cells", [1, 2, 4])
def test_smallest_and_largest_bound_what_decoding_gives(preset: str, num_cells: int) -> None:
    space = search_space(preset, {**FEATURES, "audio.b": 5}, **SMALL, num_cells=num_cells, num_steps=1)
    random = np.random.default_rng(0)
    counts = []
    sizes = np.array([space.features.get(name, 0) for _, name in space.alpha_edges])
    for draw in range(400):
        logits = {name: random.standard_normal(shape) for name, shape in space.shapes().items()}
        # The extremes must be drawn: one operation for all steps, and every other draw likes large or small inputs.
        logits["gamma"][:] = logits["gamma"][0]
        logits["alpha"][:, 0] += (0, 1, 0, -1)[draw % 4] * sizes
        counts.append(count_parameters(decode(logits, space)))
    assert (smallest_parameters(space), largest_parameters(space)) == (min(counts), max(counts))
