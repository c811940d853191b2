"""Every estimator through the same tests: against a loop written out, values, gradients, members, samples, refusals."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stgs.config import InputError
from stgs.estimators import ESTIMATORS, gumbel_noise, relax

# Two-sided chance of a false alarm 7e-6 a comparison; the draws are seeded, so a test that passes stays passing.
SIGMAS = 4.5
CASES: dict[str, dict[str, Any]] = {
    **{name: {"estimator": name} for name in ESTIMATORS},
    "egs_bare": {"estimator": "egs", "normalise": False},
}
every_estimator = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

# 17 members and 21 numbers each, so that in a pack a member's numbers fall differently into vector registers and tails.
SEEDS = list(range(3, 20))
COUNTS = [1 + 7 * index % 20 for index in range(17)]
TEMPERATURES = [(0.5, 1.0, 3.0, 10.0, 20.0)[index % 5] for index in range(17)]
SHAPE = (7, 3)


def pack(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits [17, 7, 3] that differ by a few units, and noise [17, 20, 7, 3]."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(len(SEEDS), *SHAPE, generator=generator)
    return logits.to(dtype), gumbel_noise(SEEDS, 9, "alpha", max(COUNTS), SHAPE).to(dtype)


def relaxed(
    logits: Tensor, noise: Tensor, counts: list[int], temperatures: list[float], case: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Weights, and the gradient of a sum of them with fixed coefficients, both shaped like the logits."""
    leaf = logits.clone().requires_grad_()
    weights = relax(leaf, noise, temperature=torch.tensor(temperatures), num_samples=torch.tensor(counts), **case)
    coefficients = torch.linspace(-1.0, 2.0, math.prod(SHAPE), dtype=logits.dtype).view(SHAPE).sin()
    (gradient,) = torch.autograd.grad((weights * coefficients).sum(), leaf)
    return weights.detach(), gradient


def one_hot(scores: Tensor) -> Tensor:
    return torch.eye(len(scores), dtype=scores.dtype)[int(scores.argmax())]


def softmax_of(x: Tensor) -> Tensor:
    e = (x - x.max().detach()).exp()
    return e / e.sum()


# One row of logits [K] with its noise, a list of M times [K]: forward value and the tensor whose gradient counts.
def plain_softmax(phi: Tensor, noise: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    return softmax_of(phi), softmax_of(phi)


def plain_stgs(phi: Tensor, noise: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    hard = sum(one_hot(phi + g) for g in noise) / len(noise)
    return hard, sum(softmax_of((phi + g) / t) for g in noise) / len(noise)


def plain_egs_bare(phi: Tensor, noise: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    hard, soft = torch.zeros_like(phi), torch.zeros_like(phi)
    for g in noise:
        hard = torch.maximum(hard, one_hot(phi + g))
        soft = torch.maximum(soft, softmax_of((phi + g) / t))
    return hard, soft


def plain_egs(phi: Tensor, noise: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    hard, soft = plain_egs_bare(phi, noise, t)
    on = int(hard.sum())
    return hard / on, soft / on


def plain_gumbel_rao(phi: Tensor, noise: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    winner = int((phi + noise[0]).argmax())
    theta = phi.detach().exp()
    soft = softmax_of((phi + noise[0]) / t)
    for g in noise[1:]:
        e = torch.exp(-g)
        perturbed = -torch.log(e / theta + e[winner] / theta.sum())
        perturbed[winner] = -torch.log(e[winner]) + torch.log(theta.sum())
        soft = soft + softmax_of((phi + (perturbed - phi.detach())) / t)
    return one_hot(phi + noise[0]), soft / len(noise)


def plain_released(phi: Tensor, noise: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    for g in noise:
        phi = (phi + g) / t
    return softmax_of(phi), softmax_of(phi)


PLAIN: dict[str, Callable[[Tensor, list[Tensor], float], tuple[Tensor, Tensor]]] = {
    "softmax": plain_softmax,
    "stgs": plain_stgs,
    "egs": plain_egs,
    "egs_bare": plain_egs_bare,
    "gumbel_rao": plain_gumbel_rao,
    "released": plain_released,
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_a_loop_written_out(name: str) -> None:
    logits, noise = pack(torch.float64)
    weights, gradient = relaxed(logits, noise, COUNTS, TEMPERATURES, CASES[name])
    coefficients = torch.linspace(-1.0, 2.0, math.prod(SHAPE), dtype=torch.float64).view(SHAPE).sin()
    for member, (count, temperature) in enumerate(zip(COUNTS, TEMPERATURES, strict=True)):
        for row in range(SHAPE[0]):
            phi = logits[member, row].clone().requires_grad_()
            forward, backward = PLAIN[name](phi, list(noise[member, :count, row]), temperature)
            (expected,) = torch.autograd.grad((backward * coefficients[row]).sum(), phi)
            assert torch.allclose(weights[member, row], forward.detach(), rtol=1e-9, atol=1e-12)
            # The scale of `released` is temperature^-M, so a fixed tolerance would accept anything.
            assert torch.allclose(gradient[member, row], expected, rtol=1e-7, atol=1e-12 * float(expected.abs().max()))


@every_estimator
@pytest.mark.parametrize("axes", [(), (6,), (2, 3)])
def test_weights_lie_on_the_simplex_and_have_a_gradient(case: dict[str, Any], axes: tuple[int, ...]) -> None:
    logits = torch.randn(4, *axes, 5, dtype=torch.float64, requires_grad=True)
    noise = gumbel_noise(range(4), 0, "beta", 15, (*axes, 5)).double()
    # Temperature 1 and more: below it `released` saturates to one-hot, without a gradient.
    weights = relax(logits, noise, temperature=[1.0, 2.0, 10.0, 20.0], num_samples=[15, 1, 4, 7], **case)
    assert weights.shape == logits.shape
    total = weights.detach().sum(dim=-1)
    if case.get("normalise", True):
        assert float(weights.detach().min()) >= 0
        assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)
    else:
        assert set(weights.detach().unique().tolist()) == {0.0, 1.0}
        assert float(total.min()) >= 1
    (gradient,) = torch.autograd.grad((weights * torch.arange(5)).sum(), logits)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(start_dim=1).abs().amax(dim=1) > 0).all()
    # No estimator sees a shift of all logits, so the gradient has no part along it.
    size = gradient.abs().sum(dim=-1)
    assert (gradient.sum(dim=-1).abs() <= 1e-9 * size + 1e-15).all()


@every_estimator
def test_member_has_the_same_bits_alone_and_in_a_pack(case: dict[str, Any]) -> None:
    logits, noise = pack()
    together = relaxed(logits, noise, COUNTS, TEMPERATURES, case)
    for i, (seed, count) in enumerate(zip(SEEDS, COUNTS, strict=True)):
        own = gumbel_noise([seed], 9, "alpha", count, SHAPE)
        assert torch.equal(own[0], noise[i, :count])
        alone = relaxed(logits[i : i + 1], own, [count], TEMPERATURES[i : i + 1], case)
        assert torch.equal(together[0][i], alone[0][0])
        assert torch.equal(together[1][i], alone[1][0])


@every_estimator
def test_samples_beyond_num_samples_do_not_count(case: dict[str, Any]) -> None:
    logits, noise = pack()
    number = torch.arange(max(COUNTS)).view(1, -1, 1, 1)
    other = torch.where(number < torch.tensor(COUNTS).view(-1, 1, 1, 1), noise, 30.0 - 2.0 * noise)
    before, after = (relaxed(logits, values, COUNTS, TEMPERATURES, case) for values in (noise, other))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    # Those below do: a permutation of the members' first samples is another draw.
    if case["estimator"] != "softmax":
        assert not torch.equal(before[1], relaxed(logits, noise.roll(1, dims=0), COUNTS, TEMPERATURES, case)[1])


@every_estimator
def test_nothing_is_read_back_from_the_device(case: dict[str, Any]) -> None:
    # A tensor on `meta` has no values, so whatever needs one on the host raises.
    logits = torch.zeros(3, 7, 4, device="meta", requires_grad=True)
    noise = gumbel_noise(torch.zeros(3, dtype=torch.int64, device="meta"), 5, "alpha", 6, (7, 4))
    per_member = torch.ones(3, device="meta")
    weights = relax(logits, noise, temperature=per_member, num_samples=per_member, **case)
    (gradient,) = torch.autograd.grad(weights.sum(), logits)
    assert gradient.shape == logits.shape
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        weights.sum().item()


@every_estimator
@pytest.mark.parametrize("temperature", [0.1, 20.0])
def test_extreme_logits_stay_finite(case: dict[str, Any], temperature: float) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    noise = gumbel_noise([0, 1, 2], 0, "alpha", 50, (3,))
    weights = relax(logits, noise, temperature=temperature, num_samples=50, **case)
    (weights * torch.tensor([1.0, 2.0, -1.0])).sum().backward()
    assert torch.isfinite(weights).all()
    assert torch.isfinite(logits.grad).all()
    # The rounds of `released` divide the logits by 20^50 = 1e65.
    if case["estimator"] != "released" or temperature < 1:
        assert weights[0].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_released_keeps_the_winner_where_its_powers_leave_the_float_range() -> None:
    logits, noise = torch.tensor([[0.3, 1.0, 0.2]]), gumbel_noise([0], 0, "alpha", 50, (3,))
    phi = logits[0].double()
    for g in noise[0].double():
        phi = (phi + g) / 0.1
    assert float(phi.abs().max()) > 1e38
    assert torch.equal(relax(logits, noise, estimator="released", temperature=0.1, num_samples=50)[0], one_hot(phi))


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(range(4), 0, "alpha", 10, (500, 5)).double().flatten()
    n = len(noise)
    # Mean Euler's constant, variance pi^2 / 6, fourth central moment 27/5 variance^2.
    variance = math.pi**2 / 6
    assert abs(float(noise.mean()) - 0.5772156649) < SIGMAS * math.sqrt(variance / n)
    assert abs(float(noise.var()) - variance) < SIGMAS * variance * math.sqrt((27 / 5 - 1) / n)
    assert bool(torch.isfinite(noise).all())


def test_noise_depends_on_seed_update_and_name() -> None:
    base = gumbel_noise([1], 2, "alpha", 3, (4, 2))
    assert torch.equal(base, gumbel_noise(torch.tensor([1]), 2, "alpha", 3, (4, 2)))
    for other in (
        gumbel_noise([2], 2, "alpha", 3, (4, 2)),
        gumbel_noise([1], 3, "alpha", 3, (4, 2)),
        gumbel_noise([1], 2, "beta", 3, (4, 2)),
    ):
        assert not torch.isin(other, base).any()


def test_softmax_is_exact() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: relax(x, None, estimator="softmax", temperature=1.0, num_samples=1), (logits,)
    )


LEAF = torch.zeros(2, 3, 4)
NOISE = torch.zeros(2, 5, 3, 4)


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "softmax"])
@pytest.mark.parametrize(
    ("noise", "change", "named"),
    [
        (None, {}, "noise"),
        (NOISE[:1], {}, r"noise has shape \(1, 5, 3, 4\)"),
        (NOISE[..., :3], {}, "noise"),
        (NOISE[:, 0], {}, "noise"),
        (NOISE, {"temperature": 0.0}, "temperature"),
        (NOISE, {"temperature": float("nan")}, "temperature"),
        (NOISE, {"temperature": float("inf")}, "temperature"),
        (NOISE, {"temperature": [1.0, -1.0]}, "temperature"),
        (NOISE, {"temperature": [1.0, 1.0, 1.0]}, "temperature"),
        (NOISE, {"num_samples": 0}, "num_samples"),
        (NOISE, {"num_samples": [5, 6]}, "num_samples"),
        (NOISE, {"num_samples": 1.5}, "num_samples"),
    ],
)
def test_wrong_arguments_are_refused(estimator: str, noise: Tensor | None, change: dict, named: str) -> None:
    arguments = {"estimator": estimator, "temperature": 1.0, "num_samples": 5, **change}
    with pytest.raises(InputError, match=named):
        relax(LEAF, noise, **arguments)


def test_wrong_estimators_are_refused() -> None:
    with pytest.raises(InputError, match="'gumbel'; choose one of softmax, stgs, egs, gumbel_rao, released"):
        relax(LEAF, NOISE, estimator="gumbel", temperature=1.0, num_samples=5)
    with pytest.raises(InputError, match="normalise is False, but estimator is 'stgs'"):
        relax(LEAF, NOISE, estimator="stgs", temperature=1.0, num_samples=5, normalise=False)


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="num_samples is 0"):
        gumbel_noise([0], 0, "alpha", 0, (2,))
