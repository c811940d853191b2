"""The randomisation test against one that exchanges ranks one draw at a time, and its error of the first kind."""

import numpy as np
import pytest

from stgs import metrics
from stgs.config import InputError
from stgs.paired_test import exchange_test

SUBJECTS = 8


def ranks(scores: np.ndarray) -> np.ndarray:
    return np.array([(scores < one).sum() + ((scores == one).sum() + 1) / 2 for one in scores])


def plain_test(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, subject: np.ndarray) -> float:
    """Every exchange of subjects' ranks, one by one: the share with at least the measured difference."""
    first, second = ranks(ours), ranks(theirs)
    measured = abs(metrics.auc(first, labels) - metrics.auc(second, labels))
    reached = 0
    for pattern in range(2**SUBJECTS):
        swapped = (pattern >> subject) % 2 == 1
        ranked = np.where(swapped, second, first), np.where(swapped, first, second)
        reached += abs(metrics.auc(ranked[0], labels) - metrics.auc(ranked[1], labels)) >= measured - 1e-12
    return reached / 2**SUBJECTS


def clips(seed: int, better: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.tile([0, 1, 1], SUBJECTS)
    subject = np.repeat(np.arange(SUBJECTS), 3)
    shared = random.normal(size=SUBJECTS)[subject]
    ours, theirs = (gain * labels + shared + random.normal(size=len(labels)) for gain in (0.5 + better, 0.5))
    return np.round(ours, 1), np.round(theirs * 100), labels, subject


@pytest.mark.parametrize(("seed", "better"), [(0, 0.0), (1, 0.7), (2, 1.5)])
def test_p_value_is_the_share_of_exchanges(seed: int, better: float) -> None:
    ours, theirs, labels, subject = clips(seed, better)
    exact = plain_test(ours, theirs, labels, subject)
    found = exchange_test(ours, theirs, labels, subject, resamples=20_000)
    # 20,000 draws of a share: within 4 standard errors, and the 1 that is added.
    assert abs(found - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4
    assert exchange_test(theirs, ours, labels, subject, resamples=20_000) == found, "two-sided"


def test_p_values_of_equal_networks_are_spread_evenly() -> None:
    values = [exchange_test(*clips(seed, 0.0), seed=seed, resamples=99) for seed in range(200)]
    # Of 200 tests at 10 % 20 are expected, with a standard deviation of 4.2.
    assert abs(sum(value <= 0.1 for value in values) - 20) < 4 * 4.2
    assert min(values) >= 1 / 100


def test_extremes() -> None:
    ours, _, labels, subject = clips(0, 1.0)
    assert exchange_test(ours, 3 * ours + 5, labels, subject, resamples=50) == 1.0, "the same ranks"
    many = np.arange(len(labels))
    # Whichever the fakes' ranks, the 8 real clips decide: all exchanged, or none, in 2 of 2^8 cases.
    perfect = exchange_test(labels + 0.0, 1.0 - labels, labels, many, resamples=4000)
    assert perfect == pytest.approx(2 / 2**8, abs=4 * np.sqrt(2 / 2**8 / 4000))
    with pytest.raises(InputError, match="needs real and fake"):
        exchange_test(ours, ours, np.ones(len(ours)), subject)
