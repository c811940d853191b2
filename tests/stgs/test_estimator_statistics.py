"""Estimators against theory: Gumbel-max frequencies, the mean and the variance of the gradient, conditional draws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stgs.estimators import _conditional_noise, gumbel_noise, relax

DRAWS = 20_000
# Two-sided chance of a false alarm 7e-6 a comparison; the draws are seeded, so a test that passes stays passing.
SIGMAS = 4.5
LOGITS = (0.5, -1.0, 2.0, 0.0, 0.3)
PROBABILITIES = torch.softmax(torch.tensor(LOGITS, dtype=torch.float64), dim=0)
same_mean = pytest.mark.parametrize("estimator", ["stgs", "gumbel_rao"])


def draw(
    estimator: str, logits: tuple[float, ...], update: int, temperature: float, num_samples: int, **options: bool
) -> tuple[Tensor, Tensor]:
    """Weights of `DRAWS` independent members [DRAWS, K], and their leaf logits."""
    leaf = torch.tensor(logits).repeat(DRAWS, 1).requires_grad_()
    noise = gumbel_noise(range(DRAWS), update, "test", num_samples, (len(logits),))
    weights = relax(leaf, noise, estimator=estimator, temperature=temperature, num_samples=num_samples, **options)
    return weights, leaf


def linear_gradients(
    estimator: str, logits: tuple[float, ...], coefficients: list[float], temperature: float, num_samples: int
) -> Tensor:
    """Gradients of the linear loss sum_k c_k w_k, one a member, [DRAWS, K]."""
    weights, leaf = draw(estimator, logits, 3, temperature, num_samples)
    (weights * torch.tensor(coefficients)).sum().backward()
    return leaf.grad.double()


def stream(temperature: float, num_samples: int) -> int:
    """An update of its own for each setting."""
    return int(1000 * math.log10(temperature)) % 9973 + num_samples


# 1e7 is there because it makes ties of all S.
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0, 20.0, 1e7])
@pytest.mark.parametrize(("estimator", "num_samples"), [("stgs", 1), ("stgs", 5), ("stgs", 20), ("gumbel_rao", 5)])
def test_hard_frequencies_equal_softmax_of_logits(estimator: str, temperature: float, num_samples: int) -> None:
    weights, _ = draw(estimator, LOGITS, stream(temperature, num_samples), temperature, num_samples)
    independent = DRAWS * (num_samples if estimator == "stgs" else 1)
    error = (PROBABILITIES * (1 - PROBABILITIES) / independent).sqrt()
    deviation = (weights.detach().double().mean(dim=0) - PROBABILITIES) / error
    assert float(deviation.abs().max()) < SIGMAS


@pytest.mark.parametrize("temperature", [1.0, 20.0, 1e7])
@pytest.mark.parametrize("num_samples", [1, 5, 15])
def test_egs_turns_an_operation_on_unless_every_sample_misses_it(temperature: float, num_samples: int) -> None:
    update = stream(temperature, num_samples)
    on, _ = draw("egs", LOGITS, update, temperature, num_samples, normalise=False)
    expected = 1 - (1 - PROBABILITIES) ** num_samples
    # The floor is for probabilities so near 1 that all or all but a few of the draws are on.
    error = (expected * (1 - expected) / DRAWS).sqrt() + 1 / DRAWS
    deviation = (on.detach().double().mean(dim=0) - expected) / error
    assert float(deviation.abs().max()) < SIGMAS
    shares, _ = draw("egs", LOGITS, update, temperature, num_samples)
    assert torch.equal(shares, on / on.sum(dim=-1, keepdim=True))


def test_egs_has_both_of_two_candidates_on_almost_surely() -> None:
    weights, _ = draw("egs", (0.0, 0.0), 1, 10.0, 15)
    missed = int((weights.detach() != 0.5).any(dim=1).sum())
    # Poisson with mean 20,000 * 2 * 2^-15 = 1.2: more than 9 has a chance of 1e-6.
    assert missed <= 9


@pytest.mark.parametrize("num_samples", [1, 3, 15])
def test_forward_values_of_stgs_are_shares_of_samples(num_samples: int) -> None:
    weights, _ = draw("stgs", LOGITS, 0, 2.0, num_samples)
    counts = weights.detach() * num_samples
    assert torch.allclose(counts, counts.round(), atol=1e-5)
    # Every number of samples that can be on one candidate is seen, so nothing is stuck at 0 or 1.
    assert set(counts[:, 0].round().int().tolist()) >= set(range(min(num_samples, 4) + 1))


def integrate_two_equal(temperature: float) -> float:
    """E[s (1 - s)] / temperature, s = sigmoid(d / temperature), d = g1 - g2 standard logistic."""
    d = np.linspace(-60.0, 60.0, 400_001)
    density = 0.25 / np.cosh(d / 2.0) ** 2
    s = 1.0 / (1.0 + np.exp(-d / temperature))
    return float(np.sum(s * (1.0 - s) * density) * (d[1] - d[0]) / temperature)


@same_mean
@pytest.mark.parametrize(("temperature", "published"), [(1.0, 0.1667), (10.0, 0.0248), (20.0, 0.0125)])
@pytest.mark.parametrize("num_samples", [1, 15])
def test_mean_gradient_of_two_equal_logits(
    estimator: str, temperature: float, published: float, num_samples: int
) -> None:
    expected = integrate_two_equal(temperature)
    assert expected == pytest.approx(published, abs=6e-5)
    gradients = linear_gradients(estimator, (0.0, 0.0), [1.0, 0.0], temperature, num_samples)
    error = float(gradients[:, 0].std()) / math.sqrt(DRAWS)
    assert abs(float(gradients[:, 0].mean()) - expected) < SIGMAS * error


def numpy_gradients(logits: np.ndarray, coefficients: np.ndarray, temperature: float, draws: int) -> tuple:
    """(diag S - S S^T) c / temperature, [draws, K], and the winners [draws], with numpy's own Gumbel numbers."""
    perturbed = logits + np.random.default_rng(5).gumbel(size=(draws, len(logits)))
    s = np.exp((perturbed - perturbed.max(axis=1, keepdims=True)) / temperature)
    s /= s.sum(axis=1, keepdims=True)
    return (s * coefficients - s * (s @ coefficients)[:, None]) / temperature, perturbed.argmax(axis=1)


@same_mean
@pytest.mark.parametrize("temperature", [0.5, 10.0])
@pytest.mark.parametrize("num_samples", [1, 5, 15])
def test_mean_gradient_is_the_jacobian_of_the_relaxed_sample(
    estimator: str, temperature: float, num_samples: int
) -> None:
    logits, coefficients = np.array([0.7, -0.2, 0.1]), np.array([1.0, -2.0, 0.5])
    samples, _ = numpy_gradients(logits, coefficients, temperature, 100_000)
    gradients = linear_gradients(estimator, tuple(logits), list(coefficients), temperature, num_samples).numpy()
    error = np.sqrt(samples.var(axis=0) / len(samples) + gradients.var(axis=0) / DRAWS)
    assert np.all(np.abs(gradients.mean(axis=0) - samples.mean(axis=0)) < SIGMAS * error)


def variance(values: Tensor) -> tuple[float, float]:
    """Variance of [N] values and its standard error."""
    centred = values - values.mean()
    value = float((centred**2).mean())
    return value, math.sqrt(float((centred**4).mean() - value**2) / len(values))


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_gradient_variance_of_stgs_falls_with_the_number_of_samples(temperature: float) -> None:
    def measured(num_samples: int) -> tuple[float, float]:
        return variance(linear_gradients("stgs", (0.0, 0.5), [1.0, 0.0], temperature, num_samples)[:, 0])

    one, one_error = measured(1)
    for num_samples in (4, 16):
        value, error = measured(num_samples)
        assert abs(value * num_samples - one) < SIGMAS * math.hypot(error * num_samples, one_error)


def test_gumbel_rao_with_one_sample_is_stgs_with_one() -> None:
    one, two = (draw(estimator, LOGITS, 4, 3.0, 1) for estimator in ("stgs", "gumbel_rao"))
    assert torch.equal(one[0], two[0])
    for weights, _ in (one, two):
        (weights * torch.arange(5.0)).sum().backward()
    assert torch.equal(one[1].grad, two[1].grad)


def test_gradient_variance_of_gumbel_rao_falls_to_its_floor() -> None:
    """Var = Var(E[g | z]) + E[Var(g | z)] / M: 8.4e-6 against 1.1e-6 of stgs at M 15 and temperature 10."""
    logits, coefficients, temperature = (0.0, 0.5, 1.0, 1.5), [1.0, -1.0, 2.0, -2.0], 10.0
    samples, winners = numpy_gradients(np.array(logits), np.array(coefficients), temperature, 1_000_000)
    floors, totals = [], []
    for part, winner in zip(np.array_split(samples[:, 2], 20), np.array_split(winners, 20), strict=True):
        share = np.bincount(winner, minlength=4) / len(winner)
        conditional = np.bincount(winner, weights=part, minlength=4) / (share * len(winner))
        floors.append(share @ (conditional - part.mean()) ** 2)
        totals.append(part.var())
    floor, total = np.mean(floors), np.mean(totals)
    values = {}
    for num_samples in (1, 2, 5, 15):
        expected = floor + (total - floor) / num_samples
        spread = np.std(np.array(floors) * (1 - 1 / num_samples) + np.array(totals) / num_samples) / math.sqrt(20)
        gradients = linear_gradients("gumbel_rao", logits, coefficients, temperature, num_samples)
        values[num_samples], error = variance(gradients[:, 2])
        assert abs(values[num_samples] - expected) < SIGMAS * math.hypot(error, spread)
    assert values[1] > values[2] > values[5] > values[15] > floor
    stgs, _ = variance(linear_gradients("stgs", logits, coefficients, temperature, 15)[:, 2])
    assert (values[15], stgs) == pytest.approx((8.4e-6, 1.08e-6), rel=0.05)


def conditional_draws(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """log p + G given z_1, [DRAWS, 3 draws, K], and z_1 [DRAWS, 1, K], which is drawn from p."""
    log_p = torch.log_softmax(torch.tensor(LOGITS, dtype=dtype), dim=0).expand(DRAWS, 1, -1)
    noise = gumbel_noise(range(DRAWS), 6, "test", 4, (len(LOGITS),)).to(dtype)
    hard = torch.nn.functional.one_hot((log_p + noise[:, :1]).argmax(dim=-1), len(LOGITS)).to(dtype)
    return log_p + _conditional_noise(log_p, noise[:, 1:], hard), hard


def test_conditional_draws_have_the_sample_as_argmax() -> None:
    perturbed, hard = conditional_draws(torch.float64)
    assert torch.equal(perturbed.argmax(dim=-1), hard.argmax(dim=-1).expand(-1, 3))
    perturbed, hard = conditional_draws(torch.float32)
    # In float32 a loser may round up to the winner, never above it, but for the rounding of log p + (x - log p).
    ahead = perturbed.amax(dim=-1) - (perturbed * hard).sum(dim=-1)
    assert float(ahead.max()) <= 4e-6


def test_conditional_draws_are_gumbel_and_independent_over_all_samples() -> None:
    perturbed, _ = conditional_draws(torch.float64)
    # The distribution function of log p + G at itself is uniform, for every candidate and independently.
    uniform = torch.exp(-PROBABILITIES * torch.exp(-perturbed[:, 0]))
    ranks = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    distance = (uniform.sort(dim=0).values - ranks[:, None]).abs().max() + 0.5 / DRAWS
    # Kolmogorov's distribution: P(sqrt(n) D > 2.5) = 2 exp(-2 * 2.5^2) = 7e-6.
    assert float(distance) * math.sqrt(DRAWS) < 2.5
    correlation = torch.corrcoef(uniform.T) - torch.eye(len(LOGITS), dtype=torch.float64)
    assert float(correlation.abs().max()) * math.sqrt(DRAWS) < SIGMAS


def test_conditional_draws_depend_on_the_sample_through_the_winner_alone() -> None:
    perturbed, hard = conditional_draws(torch.float64)
    # The maximum of log p + G is standard Gumbel whoever wins, and two draws given one z have maxima of their own.
    maxima = perturbed.amax(dim=-1)
    for k in range(len(LOGITS)):
        own = maxima[hard[:, 0, k] > 0]
        error = math.sqrt(math.pi**2 / 6 / len(own))
        assert float((own.mean(dim=0) - 0.5772156649).abs().max()) < SIGMAS * error
    correlation = torch.corrcoef(maxima.T) - torch.eye(3, dtype=torch.float64)
    assert float(correlation.abs().max()) * math.sqrt(DRAWS) < SIGMAS
