"""Metrics of scores, as pure functions. Label 1 is fake; a score is higher the surer a clip is fake.

N clips; memory O(N) everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stgs.config import InputError

Floats = NDArray[np.float64]
CALIBRATION_BINS = 10


def checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores, and which clips are fake, [N] each. Raises InputError: shapes that differ, no clips, NaN or infinity."""
    values = np.asarray(scores, np.float64)
    fake = np.asarray(labels) > 0
    if values.shape != fake.shape or values.ndim != 1:
        raise InputError(f"scores have shape {values.shape} and labels {fake.shape}, but both must be [N].")
    if len(values) == 0:
        raise InputError("there are no clips to measure; check the splits.")
    if not np.isfinite(values).all():
        raise InputError(f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite numbers.")
    return values, fake


def checked_both(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """As `checked`; raises InputError for clips of one class, too."""
    values, fake = checked(scores, labels)
    if fake.all() or not fake.any():
        raise InputError(
            f"{len(fake)} clips hold {int(fake.sum())} fake ones, but this metric needs real and fake clips; check the "
            "splits."
        )
    return values, fake


def weighted_auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
    """Area under the ROC curve of weighted clips: the chance that a fake one scores above a real one, ties half.

    weights: at least 0, [N]. Returns a value in [0, 1], or NaN where one class has no weight.
    """
    values, fake = checked(scores, labels)
    weight = np.asarray(weights, np.float64)
    _, group = np.unique(values, return_inverse=True)
    fakes = np.bincount(group, weight * fake)
    reals = np.bincount(group, weight * ~fake)
    below = np.cumsum(reals) - reals
    total = fakes.sum() * reals.sum()
    return float((fakes * (below + 0.5 * reals)).sum() / total) if total > 0 else float("nan")


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve in [0, 1], ties half.

    Raises:
        InputError: one class only, shapes that differ, or scores that are not finite.
    """
    values, fake = checked_both(scores, labels)
    return weighted_auc(values, fake, np.ones(len(values)))


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """False positive rate, true positive rate and threshold, by falling threshold.

    A clip is called fake where its score >= threshold. The first point is (0, 0) at threshold infinity, the last one
    (1, 1) at the lowest score. Raises as `auc` does, and so do the metrics below that read both classes.
    """
    values, fake = checked_both(scores, labels)
    order = np.argsort(-values, kind="stable")
    last = np.append(np.diff(values[order]) != 0, True)
    hits = np.cumsum(fake[order])[last]
    alarms = np.cumsum(~fake[order])[last]
    rates = (np.concatenate([[0.0], counts / counts[-1]]) for counts in (alarms, hits))
    false_positive, true_positive = rates
    return false_positive, true_positive, np.concatenate([[np.inf], values[order][last]])


def equal_error_rate(scores: ArrayLike, labels: ArrayLike) -> float:
    """The error rate in [0, 1] where the ROC curve, joined by straight lines, has false positives = false negatives."""
    false_positive, true_positive, _ = roc_curve(scores, labels)
    gap = false_positive - (1.0 - true_positive)
    # The gap rises from -1 to 1, so the point after the crossing is never the first.
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(false_positive[after - 1] + share * (false_positive[after] - false_positive[after - 1]))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Precision at each fake clip's score, averaged over the fake clips: a step curve, in (0, 1].

    Of a score that says nothing it is the share of fake clips, so it says less where most clips are fake.
    """
    values, fake = checked_both(scores, labels)
    order = np.argsort(-values, kind="stable")
    last = np.append(np.diff(values[order]) != 0, True)
    hits, called = np.cumsum(fake[order])[last], np.flatnonzero(last) + 1
    return float((np.diff(hits, prepend=0) * hits / called).sum() / hits[-1])


def accuracy(scores: ArrayLike, labels: ArrayLike, threshold: float) -> float:
    """Share of clips on the right side of `threshold` (fake: score >= threshold)."""
    values, fake = checked(scores, labels)
    return float(((values >= threshold) == fake).mean())


def balanced_accuracy(scores: ArrayLike, labels: ArrayLike, threshold: float) -> float:
    """Mean over the two classes of the share of clips on the right side of `threshold`."""
    values, fake = checked_both(scores, labels)
    right = (values >= threshold) == fake
    return float((right[fake].mean() + right[~fake].mean()) / 2)


def calibration_bins(scores: ArrayLike) -> NDArray[np.intp]:
    """The bin of each score in [0, 1], of 10 of equal width: (bin / 10, (bin + 1) / 10], with 0 in the first.

    Raises InputError for a score beyond [0, 1].
    """
    values = np.asarray(scores, np.float64)
    outside = (values < 0) | (values > 1)
    if outside.any():
        raise InputError(f"{int(outside.sum())} of {len(values)} scores lie outside [0, 1], so they are no P(fake).")
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    return np.searchsorted(edges[1:-1], values, side="left")


def calibration_error(scores: ArrayLike, labels: ArrayLike) -> float:
    """Expected calibration error in [0, 1]: |share of fake clips - mean score| of each bin, weighted by its clips.

    10 bins of equal width (`calibration_bins`); of the label 'fake', as in Naeini, Cooper and Hauskrecht, AAAI 2015.
    """
    values, fake = checked(scores, labels)
    return float(np.abs(np.bincount(calibration_bins(values), values - fake)).sum() / len(values))


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Clips with a score in (low, high]: their number, mean score and share of fake ones (None in an empty bin)."""

    low: float
    high: float
    count: int
    mean_score: float | None
    fake_share: float | None


def reliability(scores: ArrayLike, labels: ArrayLike) -> list[ReliabilityBin]:
    """The reliability curve: what `calibration_error` sums over."""
    values, fake = checked(scores, labels)
    place = calibration_bins(values)
    curve = []
    for index in range(CALIBRATION_BINS):
        inside = place == index
        count = int(inside.sum())
        means = (float(values[inside].mean()), float(fake[inside].mean())) if count else (None, None)
        curve.append(ReliabilityBin(index / CALIBRATION_BINS, (index + 1) / CALIBRATION_BINS, count, *means))
    return curve


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold with the highest balanced accuracy, half way to the next lower score; ties to the highest one.

    Never above all scores: where that is best, the lowest score is returned, which is as good.
    """
    false_positive, true_positive, thresholds = roc_curve(scores, labels)
    # Rounded, so that ties stay ties: the rates are quotients.
    best = 1 + int(np.argmax(np.round(true_positive - false_positive, 12)[1:]))
    if best + 1 == len(thresholds):
        return float(thresholds[best])
    middle = (thresholds[best] + thresholds[best + 1]) / 2
    # Between neighbouring floats the middle is rounded to one of them, and the lower one must stay below.
    return float(middle if middle > thresholds[best + 1] else thresholds[best])


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the bounds of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[[Floats], float], subjects: Sequence[object], *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """95 % percentile interval of a statistic, resampling subjects with replacement (clips of one are not independent).

    Args:
        statistic: from clip weights [N] to a number. Two systems are compared by the difference of their statistics
            under the same weights (paired).
        subjects: the subject of each clip, [N].
        seed: seed of the resampling.
        resamples: how many; a resample whose statistic is NaN (one class only) is left out.

    Raises:
        InputError: fewer than 2 subjects, or over half of the resamples left out.
    """
    names, clip_subject = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"there are clips of {len(names)} subject only, but an interval over subjects needs 2.")
    random = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
        values.append(statistic(drawn[clip_subject].astype(np.float64)))
    kept = np.asarray(values)[~np.isnan(values)]
    if len(kept) < resamples / 2:
        raise InputError(f"only {len(kept)} of {resamples} resamples of subjects hold both classes: too few subjects.")
    low, high = np.quantile(kept, [0.025, 0.975])
    return Interval(statistic(np.ones(len(clip_subject))), float(low), float(high))
