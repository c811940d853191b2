"""Whether two networks' AUC on the same clips differ by more than chance: a randomisation test over subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stgs import metrics

Floats = NDArray[np.float64]


def exchange_test(
    scores: ArrayLike,
    others: ArrayLike,
    labels: ArrayLike,
    subjects: Sequence[object] | NDArray[Any],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> float:
    """Two-sided p-value of the hypothesis that it does not matter which of two networks ranked a subject's clips.

    Each network's scores become ranks among its own, and the ranks of each subject's clips are exchanged between the
    two with chance 1/2 (Bandos, Rockette and Gur, Statistics in Medicine 24, 2005, there for cases that are
    independent; here subjects are). p = (1 + exchanges with at least the measured difference) / (1 + resamples).

    Let a subject's sign be -1 where its ranks are exchanged. A pair of a fake and a real clip adds to the difference of
    the AUCs in one of four ways, by two signs, and each of these is a sum over the two signs: so the difference is
    linear in the signs, and an exchange costs as much as a sum over the subjects.

    Args:
        scores, others: of the two networks, [N].
        subjects: of each clip, [N].

    Raises:
        InputError: as `stgs.metrics.auc` does.
    """
    _, fake = metrics.checked_both(scores, labels)
    first, second = (_ranks(metrics.checked_both(values, labels)[0]) for values in (scores, others))
    _, owner = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    pooled = np.concatenate([first, second]), np.concatenate([fake, fake])
    # Of each clip, half of what it adds where it keeps its ranks: won pairs against the clips of the other class, with
    # both networks' ranks of those, less the same with its ranks exchanged.
    gains = _won(first, fake, *pooled) - _won(second, fake, *pooled)
    shares = np.bincount(owner, gains) / 2
    random = np.random.default_rng([seed, 1])
    signs = random.integers(2, size=(resamples, len(shares))) * 2.0 - 1.0
    measured = abs(shares.sum())
    # Sums in another order differ in their last bits, and equal differences must count.
    reached = np.abs(signs @ shares) >= measured - 1e-9 * np.abs(shares).sum()
    return float((1 + reached.sum()) / (1 + resamples))


def _ranks(values: Floats) -> Floats:
    """Ranks from 1, the mean one for equal values."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Floats = (last - (counts - 1) / 2)[group]
    return mean


def _won(ranks: Floats, fake: NDArray[np.bool_], all_ranks: Floats, all_fake: NDArray[np.bool_]) -> Floats:
    """Pairs that each clip wins against those of the other class: a fake one is above, a real one below; ties half."""
    won = np.empty(len(ranks))
    reals, fakes = np.sort(all_ranks[~all_fake]), np.sort(all_ranks[all_fake])
    below = [np.searchsorted(reals, ranks[fake], side) for side in ("left", "right")]
    won[fake] = (below[0] + below[1]) / 2
    above = [len(fakes) - np.searchsorted(fakes, ranks[~fake], side) for side in ("left", "right")]
    won[~fake] = (above[0] + above[1]) / 2
    return won
