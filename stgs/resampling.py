"""Metrics of many weightings of the same clips, and what they give: 95 % bootstrap intervals over subjects.

Clips of one subject are not independent, so subjects are drawn, with replacement. All metrics and all networks see the
same draws, so that differences are paired. N clips, S subjects, R draws; a clip weighs as often as its subject was
drawn. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stgs import metrics
from stgs.config import InputError

Floats = NDArray[np.float64]
# From weights of subjects, [R, S], to one number each, [R]; NaN where a weighting leaves it undefined.
Statistic = Callable[[Floats], Floats]
# Numbers in the working array of a step: small enough for a cache that two cores share.
_CHUNK = 1 << 20
# With at most so many subjects, the AUC is read from counts of pairs of subjects.
_PAIRED_SUBJECTS = 1024


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured number and the bounds of its 95 % interval; `sentence` says why one of them is missing (None)."""

    value: float | None
    low: float | None = None
    high: float | None = None
    sentence: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Resamples:
    """R draws of S subjects with replacement, and the clips that these have.

    counts: uint16 [R, S], how often each subject was drawn. owner: index of each clip's subject, [N].
    """

    counts: NDArray[np.uint16]
    owner: NDArray[np.intp]

    @classmethod
    def of(cls, subjects: Sequence[object], *, seed: int = 0, resamples: int = 2000) -> Resamples:
        """Draws for clips of these subjects, [N]. Raises InputError without a clip or a resample."""
        names, owner = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
        if len(names) == 0 or resamples < 1:
            raise InputError(f"resamples is {resamples} for {len(names)} subjects, but both must be at least 1.")
        random = np.random.default_rng(seed)
        counts = np.empty((resamples, len(names)), np.uint16)
        for row in counts:
            row[:] = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
        return cls(counts, owner)

    def only(self, clips: NDArray[Any]) -> Resamples:
        """The same draws for some of the clips: indices, or bool [N]."""
        return Resamples(self.counts, self.owner[clips])

    @property
    def everything(self) -> Floats:
        """The weights of the test itself, every subject once: [1, S]."""
        return np.ones((1, self.counts.shape[1]))

    def apply(self, statistic: Callable[[Floats], Mapping[str, Floats]]) -> dict[str, Floats]:
        """Statistics of every draw: name -> [R, ...]."""
        rows = max(1, _CHUNK // self.counts.shape[1])
        parts = [statistic(self.counts[at : at + rows].astype(float)) for at in range(0, len(self.counts), rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def estimate(self, statistic: Statistic) -> Estimate:
        """One statistic with its interval, as `estimates` does it."""
        return self.estimates(lambda weights: {"it": statistic(weights)})["it"]

    def estimates(self, statistics: Callable[[Floats], Mapping[str, Floats]]) -> dict[str, Estimate]:
        """Statistics of all clips with their intervals: the 2.5 % and 97.5 % quantiles over the draws.

        A draw that leaves one undefined (one class only) is left out; where that is over half of them, or the clips are
        one subject's, there is no interval.
        """
        values = {name: float(value[0]) for name, value in statistics(self.everything).items()}
        subjects = len(np.unique(self.owner))
        if subjects < 2:
            sentence = f"there are clips of {subjects} subject only, but an interval over subjects needs 2."
            return {name: Estimate(value, sentence=sentence) for name, value in values.items()}
        return {name: _estimate(values[name], drawn) for name, drawn in self.apply(statistics).items()}


def _estimate(value: float, drawn: Floats) -> Estimate:
    kept = drawn[~np.isnan(drawn)]
    if len(kept) < len(drawn) / 2:
        sentence = f"only {len(kept)} of {len(drawn)} resamples of subjects hold both classes: too few subjects."
        return Estimate(value, sentence=sentence)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


class ScoredClips:
    """Scores and labels of N clips, put in order once; its metrics take weights of subjects, [R, S], of at least 0.

    A metric is NaN where a weighting leaves it undefined.

    Args:
        scores: P(fake), or any other number that grows with it; the calibration needs it in [0, 1].
        labels: 1 is fake.
        owner: index of each clip's subject, in 0 .. S - 1; None: each clip is its own.
        subjects: S; None: the highest of `owner`, and 1.

    Raises:
        InputError: shapes that differ, no clips, or scores that are not finite.
    """

    def __init__(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        owner: NDArray[np.intp] | None = None,
        subjects: int | None = None,
    ) -> None:
        self.scores, self.fake = metrics.checked(scores, labels)
        self.owner = np.arange(len(self.scores)) if owner is None else owner
        self.subjects = int(self.owner.max()) + 1 if subjects is None else subjects

    def auc(self, weights: Floats) -> Floats:
        """Area under the ROC curve, ties half."""
        if self.subjects > _PAIRED_SUBJECTS:
            return self._along_curve(weights, auc=_Walk.auc)["auc"]
        won = np.einsum("rs,rs->r", weights @ self._won_pairs, weights)
        fakes, reals = (weights @ self._by_subject(kind) for kind in (self.fake, ~self.fake))
        return _share(won, fakes * reals)

    def curve_metrics(self, weights: Floats) -> dict[str, Floats]:
        """`average_precision` and `equal_error_rate`, as `stgs.metrics` has them; NaN for clips of one class."""
        return self._along_curve(
            weights, average_precision=_Walk.average_precision, equal_error_rate=_Walk.equal_error_rate
        )

    def _along_curve(self, weights: Floats, **metric: Callable[[_Walk], Floats]) -> dict[str, Floats]:
        step = max(1, _CHUNK // len(self.scores))
        parts: dict[str, list[Floats]] = {name: [] for name in metric}
        for start in range(0, len(weights), step):
            walk = _Walk(self._order, self.owner, weights[start : start + step])
            for name, compute in metric.items():
                parts[name].append(compute(walk))
        return {name: np.concatenate(values) for name, values in parts.items()}

    def accuracy(self, weights: Floats, threshold: float) -> Floats:
        """Share of clips on the right side of a threshold (fake: score >= threshold)."""
        right = (self.scores >= threshold) == self.fake
        return _share(weights @ self._by_subject(right), weights @ self._by_subject(np.ones(len(right))))

    def balanced_accuracy(self, weights: Floats, threshold: float) -> Floats:
        """Mean over the two classes of the share of clips on the right side of a threshold."""
        right = (self.scores >= threshold) == self.fake
        of_fakes, of_reals = (
            _share(weights @ self._by_subject(right & kind), weights @ self._by_subject(kind))
            for kind in (self.fake, ~self.fake)
        )
        return (of_fakes + of_reals) / 2

    def calibration_error(self, weights: Floats) -> Floats:
        """Expected calibration error, as `stgs.metrics.calibration_error` has it."""
        count, score, fake = self._calibration_sums(weights)
        return _share(np.abs(score - fake).sum(axis=1), count.sum(axis=1))

    def fake_shares(self, weights: Floats) -> Floats:
        """Share of fake clips in each bin of the calibration, [R, bins]."""
        count, _, fake = self._calibration_sums(weights)
        return _share(fake, count)

    def _calibration_sums(self, weights: Floats) -> Iterator[Floats]:
        """Weight, weighted sum of scores, and weight of the fake ones in each bin: three of [R, bins]."""
        bins = metrics.CALIBRATION_BINS
        place = self.owner * bins + metrics.calibration_bins(self.scores)
        for values in (np.ones(len(place)), self.scores, self.fake.astype(float)):
            yield weights @ np.bincount(place, values, minlength=self.subjects * bins).reshape(self.subjects, bins)

    def _by_subject(self, values: NDArray[Any]) -> Floats:
        """Sums of a number of each clip over each subject's clips, [S]."""
        return np.bincount(self.owner, values.astype(float), minlength=self.subjects).astype(float)

    @cached_property
    def _won_pairs(self) -> Floats:
        """[S, S]: pairs of a fake clip of the first and a real one of the second subject, the fake above, ties half."""
        order = np.argsort(self.scores[~self.fake], kind="stable")
        reals = self.scores[~self.fake][order]
        # [reals + 1, S]: how many of the lowest real clips each subject has.
        below = np.zeros((len(reals) + 1, self.subjects), np.float32)
        below[np.arange(1, len(reals) + 1), self.owner[~self.fake][order]] = 1.0
        np.cumsum(below, axis=0, out=below)
        pairs = np.zeros((self.subjects, self.subjects))
        for subject in np.unique(self.owner[self.fake]):
            own = self.scores[self.fake & (self.owner == subject)]
            places = np.concatenate([np.searchsorted(reals, own, "left"), np.searchsorted(reals, own, "right")])
            pairs[subject] = below[places].sum(axis=0, dtype=float) / 2
        return pairs

    @cached_property
    def _order(self) -> _Order:
        return _Order(self.scores, self.fake)


class _Order:
    """Clips by falling score, and where ties of equal scores begin and end.

    clips: indices, [N]. fakes: places of the fake ones in that order, [F]. For each of these, numbers of clips and of
    fakes `through` the end of its tie and `before` it. ends, hits: numbers of clips and of fakes at the end of each
    tie, a 0 before them.
    """

    def __init__(self, scores: Floats, fake: NDArray[np.bool_]) -> None:
        self.clips = np.argsort(-scores, kind="stable")
        ordered = scores[self.clips]
        self.fakes = np.flatnonzero(fake[self.clips])
        self.ends = np.flatnonzero(np.concatenate([[True], np.diff(ordered) != 0, [True]]))
        self.hits = np.searchsorted(self.fakes, self.ends)
        tie = np.searchsorted(self.ends, self.fakes, side="right")
        self.clips_through, self.clips_before = self.ends[tie], self.ends[tie - 1]
        self.hits_through, self.hits_before = self.hits[tie], self.hits[tie - 1]


class _Walk:
    """Weights of all clips, and of the fake ones, along an order: what the ROC curve and its like are made of."""

    def __init__(self, order: _Order, owner: NDArray[np.intp], weights: Floats) -> None:
        self.order = order
        ordered = np.take(weights, owner[order.clips], axis=1)
        self.each = ordered[:, order.fakes]
        # Down to each clip; a column of zeros stands for 'before the first'.
        self.clips, self.hits = (np.zeros((len(weights), part.shape[1] + 1)) for part in (ordered, self.each))
        np.cumsum(ordered, axis=1, out=self.clips[:, 1:])
        np.cumsum(self.each, axis=1, out=self.hits[:, 1:])
        self.fakes, self.reals = self.hits[:, -1], self.clips[:, -1] - self.hits[:, -1]

    def auc(self) -> Floats:
        order = self.order
        through = self.clips[:, order.clips_through] - self.hits[:, order.hits_through]
        before = self.clips[:, order.clips_before] - self.hits[:, order.hits_before]
        won = np.einsum("rn,rn->r", self.each, self.reals[:, None] - (through + before) / 2)
        return _share(won, self.fakes * self.reals)

    def average_precision(self) -> Floats:
        found = self.hits[:, self.order.hits_through]
        # A fake clip without weight may stand where nothing has any; it adds nothing.
        called = np.maximum(self.clips[:, self.order.clips_through], np.finfo(float).tiny)
        total = np.einsum("rn,rn->r", self.each, np.divide(found, called, out=called))
        return _share(total, np.where(self.reals > 0, self.fakes, 0.0))

    def equal_error_rate(self) -> Floats:
        """Where the line through the ends of ties has equal errors, found by bisection."""
        ends, hits = self.order.ends, self.order.hits
        rows = np.arange(len(self.clips))

        def rates(tie: NDArray[np.intp]) -> tuple[Floats, Floats]:
            """False positive rate after a tie, and by how much it is above the false negative rate: rising from -1."""
            found = self.hits[rows, hits[tie]]
            alarms = _share(self.clips[rows, ends[tie]] - found, self.reals)
            return alarms, alarms - 1.0 + _share(found, self.fakes)

        low, high = np.zeros(len(rows), np.intp), np.full(len(rows), len(ends) - 1)
        # The gap is below 0 at `low` and not at `high`; a NaN goes either way.
        while (high - low > 1).any():
            middle = (low + high) // 2
            above = rates(middle)[1] >= 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        (first, below), (second, above_zero) = rates(low), rates(high)
        return first + _share(-below, above_zero - below) * (second - first)


def _share(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
