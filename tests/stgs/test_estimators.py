"""Estimators against theory: Gumbel-max frequencies, the mean and the variance of the gradient."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stgs.config import InputError
from stgs.estimators import ESTIMATORS, gumbel_noise, relax

DRAWS = 20_000
# Two-sided chance of a false alarm 7e-6 a comparison; the draws are seeded, so a test that passes stays passing.
SIGMAS = 4.5
LOGITS = (0.5, -1.0, 2.0, 0.0, 0.3)


def draw(logits: tuple[float, ...], update: int, temperature: float, num_samples: int) -> tuple[Tensor, Tensor]:
    """Weights of `DRAWS` independent members [DRAWS, K], and their leaf logits."""
    leaf = torch.tensor(logits).repeat(DRAWS, 1).requires_grad_()
    noise = gumbel_noise(range(DRAWS), update, "test", num_samples, (len(logits),))
    weights = relax(leaf, noise, estimator="stgs", temperature=temperature, num_samples=num_samples)
    return weights, leaf


def linear_gradients(logits: tuple[float, ...], coefficients: list[float], temperature: float, m: int) -> Tensor:
    """Gradients of the linear loss sum_k c_k w_k, one a member, [DRAWS, K]."""
    weights, leaf = draw(logits, 3, temperature, m)
    (weights * torch.tensor(coefficients)).sum().backward()
    return leaf.grad.double()


@pytest.mark.parametrize("num_samples", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0, 20.0, 1e7])
def test_hard_frequencies_equal_softmax_of_logits(temperature: float, num_samples: int) -> None:
    # A stream of its own for each setting: 1e7 is there because it makes ties of all S.
    update = int(1000 * math.log10(temperature)) % 9973 + num_samples
    weights, _ = draw(LOGITS, update, temperature, num_samples)
    expected = torch.softmax(torch.tensor(LOGITS, dtype=torch.float64), dim=0)
    error = (expected * (1 - expected) / (DRAWS * num_samples)).sqrt()
    deviation = (weights.detach().double().mean(dim=0) - expected) / error
    assert float(deviation.abs().max()) < SIGMAS


@pytest.mark.parametrize("num_samples", [1, 3, 15])
def test_forward_values_are_shares_of_samples(num_samples: int) -> None:
    weights, _ = draw(LOGITS, 0, 2.0, num_samples)
    counts = weights.detach() * num_samples
    assert torch.allclose(counts, counts.round(), atol=1e-5)
    assert torch.allclose(weights.sum(dim=1), torch.ones(DRAWS), atol=1e-6)
    # Every number of samples that can be on one candidate is seen, so nothing is stuck at 0 or 1.
    assert set(counts[:, 0].round().int().tolist()) >= set(range(min(num_samples, 4) + 1))


def integrate_two_equal(temperature: float) -> float:
    """E[s (1 - s)] / temperature, s = sigmoid(d / temperature), d = g1 - g2 standard logistic."""
    d = np.linspace(-60.0, 60.0, 400_001)
    density = 0.25 / np.cosh(d / 2.0) ** 2
    s = 1.0 / (1.0 + np.exp(-d / temperature))
    return float(np.sum(s * (1.0 - s) * density) * (d[1] - d[0]) / temperature)


@pytest.mark.parametrize(("temperature", "published"), [(1.0, 0.1667), (10.0, 0.0248), (20.0, 0.0125)])
@pytest.mark.parametrize("num_samples", [1, 15])
def test_mean_gradient_of_two_equal_logits(temperature: float, published: float, num_samples: int) -> None:
    expected = integrate_two_equal(temperature)
    assert expected == pytest.approx(published, abs=6e-5)
    gradients = linear_gradients((0.0, 0.0), [1.0, 0.0], temperature, num_samples)
    error = float(gradients[:, 0].std()) / math.sqrt(DRAWS)
    assert abs(float(gradients[:, 0].mean()) - expected) < SIGMAS * error
    # Softmax does not see a shift of all logits, so the gradient has no part along it.
    assert torch.allclose(gradients.sum(dim=1), torch.zeros(DRAWS, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 10.0])
def test_mean_gradient_is_the_jacobian_of_the_relaxed_sample(temperature: float) -> None:
    logits, coefficients = np.array([0.7, -0.2, 0.1]), np.array([1.0, -2.0, 0.5])
    # E[diag S - S S^T] c / temperature with numpy's own Gumbel numbers.
    perturbed = (logits + np.random.default_rng(5).gumbel(size=(100_000, 3))) / temperature
    s = np.exp(perturbed - perturbed.max(axis=1, keepdims=True))
    s /= s.sum(axis=1, keepdims=True)
    samples = (s * coefficients - s * (s @ coefficients)[:, None]) / temperature
    gradients = linear_gradients(tuple(logits), list(coefficients), temperature, 5).numpy()
    error = np.sqrt(samples.var(axis=0) / len(samples) + gradients.var(axis=0) / DRAWS)
    assert np.all(np.abs(gradients.mean(axis=0) - samples.mean(axis=0)) < SIGMAS * error)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_gradient_variance_falls_with_the_number_of_samples(temperature: float) -> None:
    def variance(num_samples: int) -> tuple[float, float]:
        g = linear_gradients((0.0, 0.5), [1.0, 0.0], temperature, num_samples)[:, 0]
        centred = g - g.mean()
        value = float((centred**2).mean())
        return value, math.sqrt(float((centred**4).mean() - value**2) / DRAWS)

    one, one_error = variance(1)
    for num_samples in (4, 16):
        value, error = variance(num_samples)
        assert abs(value * num_samples - one) < SIGMAS * math.hypot(error * num_samples, one_error)


def test_backward_is_the_gradient_of_the_mean_relaxed_sample() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    noise = gumbel_noise([1, 2], 7, "alpha", 6, (3, 4)).double()
    upstream = torch.randn(2, 3, 4, dtype=torch.float64)
    weights = relax(logits, noise, estimator="stgs", temperature=3.0, num_samples=6)
    (straight_through,) = torch.autograd.grad((weights * upstream).sum(), logits)
    soft = torch.stack([torch.softmax((logits + noise[:, m]) / 3.0, dim=-1) for m in range(6)]).mean(dim=0)
    (expected,) = torch.autograd.grad((soft * upstream).sum(), logits)
    assert torch.allclose(straight_through, expected, rtol=1e-12, atol=1e-15)


def test_members_of_a_pack_draw_and_relax_as_alone() -> None:
    seeds, counts, temperatures = [11, 5, 42], [1, 20, 7], [0.5, 20.0, 3.0]
    logits = torch.randn(3, 6, 4)
    noise = gumbel_noise(seeds, 9, "beta", 20, (6, 4))
    together = relax(logits, noise, estimator="stgs", temperature=temperatures, num_samples=counts)
    for i, (seed, m) in enumerate(zip(seeds, counts, strict=True)):
        own = gumbel_noise([seed], 9, "beta", m, (6, 4))
        assert torch.equal(own[0], noise[i, :m])
        alone = relax(logits[i : i + 1], own, estimator="stgs", temperature=temperatures[i], num_samples=m)
        assert torch.allclose(together[i], alone[0], rtol=0, atol=1e-6)


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

    def weights(x: Tensor) -> Tensor:
        return relax(x, None, estimator="softmax", temperature=1.0, num_samples=1)

    exponentials = logits.detach().exp()
    assert torch.allclose(weights(logits), exponentials / exponentials.sum(dim=-1, keepdim=True))
    assert torch.autograd.gradcheck(weights, (logits,))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("temperature", [0.1, 20.0])
def test_extreme_logits_stay_finite(estimator: str, temperature: float) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    noise = gumbel_noise([0, 1], 0, "alpha", 5, (3,))
    weights = relax(logits, noise, estimator=estimator, temperature=temperature, num_samples=5)
    (weights * torch.tensor([1.0, 2.0, -1.0])).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert weights[0].tolist() == pytest.approx([1.0, 0.0, 0.0])


LEAF = torch.zeros(2, 3, 4)
NOISE = torch.zeros(2, 5, 3, 4)


@pytest.mark.parametrize(
    ("noise", "change", "named"),
    [
        (NOISE, {"estimator": "gumbel"}, "'gumbel'"),
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
def test_wrong_arguments_are_refused(noise: Tensor | None, change: dict, named: str) -> None:
    arguments = {"estimator": "stgs", "temperature": 1.0, "num_samples": 5, **change}
    with pytest.raises(InputError, match=named):
        relax(LEAF, noise, **arguments)


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="num_samples is 0"):
        gumbel_noise([0], 0, "alpha", 0, (2,))
