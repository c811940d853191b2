"""How well a single fact of a clip, such as its duration, tells fakes from real clips.

The classifier sees nothing else. It learns, in each bin of the fact, the share of fakes, so that it finds relations
that rise, that turn, and that hold for one value alone; it is judged on subjects that it has not learnt from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Whole = NDArray[np.int64]

FOLDS = 5
# Bins of a number: one for each 5 training clips of the smaller class, at most this many. Always an even number: the
# median of balanced classes is then a border, and a fact that separates them is found whole.
_MOST_BINS = 20
_CLIPS_PER_BIN = 5
CHANCE = 0.5


def encoded(values: Sequence[Any]) -> tuple[Floats, bool]:
    """A fact of N clips as numbers [N], NaN where it is missing (None or not finite), and whether they name categories.

    Text is a category; so that text and its order mean nothing, its numbers must be read as names, too.
    """
    if any(isinstance(value, str) for value in values):
        names = {name: float(i) for i, name in enumerate(sorted({value for value in values if value is not None}))}
        return np.array([np.nan if value is None else names[value] for value in values], np.float64), True
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan), False


def fact_auc(
    values: Floats,
    fake: Flags,
    subjects: Sequence[str],
    *,
    categories: bool = False,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """AUC of the classifier that sees one fact, with its 95 % bootstrap interval over subjects.

    Subjects are dealt to up to 5 folds; each fold is scored by what the others taught. Only clips of one fold are
    compared: the scores of a fold owe nothing to its own labels, so that a fact that says nothing is expected at
    0.5, which pooled scores of folds are not, since each fold leaves another share of fakes to the others.

    Args:
        values: the fact, [N], NaN where it is missing, which is a value of its own.
        fake: the labels, [N].
        subjects: the subject of each clip, [N].
        categories: whether `values` are names, between which there is no order.
        seed: of the folds and of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        {"auc", "low", "high"}, in [0, 1], "null_error", the standard error that the AUC of these scores has where they
        say nothing (the bootstrap knows only values that both classes have), and "least_subjects", those of the class
        with fewer; or {"sentence"}: why there are none.
    """
    # Importing stgs loads torch, which takes seconds that only an audit should pay.
    from stgs import metrics
    from stgs.config import InputError

    names, clip_subject = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    sentence = _unfit(values, fake, clip_subject)
    if sentence:
        return {"sentence": sentence}
    least = min(len(np.unique(clip_subject[chosen])) for chosen in (fake, ~fake))
    if len(np.unique(values)) == 1:
        return {"auc": CHANCE, "low": CHANCE, "high": CHANCE, "null_error": 0.0, "least_subjects": least}
    fold = _deal(fake, clip_subject, seed)[clip_subject]
    group, group_fold = _groups(_out_of_fold(values, fake, fold, categories), fold)
    cell = clip_subject * len(group_fold) + group
    shape = (len(names), len(group_fold))
    fakes, reals = (np.bincount(cell, chosen, len(names) * len(group_fold)).reshape(shape) for chosen in (fake, ~fake))

    def statistic(weights: Floats) -> float:
        return _auc_within_folds(weights @ fakes, weights @ reals, group_fold)

    try:
        # One entry a subject: what its clips count for is in the tables already.
        found = metrics.bootstrap_interval(statistic, [*names], seed=seed, resamples=resamples)
    except InputError as error:
        return {"sentence": str(error)}
    null_error = _null_error(fakes.sum(axis=0), reals.sum(axis=0), group_fold)
    measured = {"auc": found.value, "low": found.low, "high": found.high, "null_error": null_error}
    return {name: round(value, 6) for name, value in measured.items()} | {"least_subjects": least}


def _unfit(values: Floats, fake: Flags, clip_subject: Whole) -> str | None:
    """Why nothing can be measured, or None."""
    for label, word in ((True, "fake"), (False, "real")):
        count = len(np.unique(clip_subject[fake == label]))
        if count < 2:
            return f"there are {word} clips of {count} subject{'s' * (count != 1)}, but 2 are needed."
    return "no clip has one." if np.isnan(values).all() else None


def _deal(fake: Flags, clip_subject: Whole, seed: int) -> Whole:
    """The fold of each subject [S]. Every fold gets real and fake clips: at least 2 subjects must have each."""
    has_fake, has_real = (np.bincount(clip_subject, chosen) > 0 for chosen in (fake, ~fake))
    folds = min(FOLDS, int(has_fake.sum()), int(has_real.sum()))
    both, real, unreal = has_fake & has_real, has_real & ~has_fake, has_fake & ~has_real
    order = np.random.default_rng(seed).permutation(len(both))
    place = np.empty(len(both), np.int64)
    for chosen, start in ((both, 0), (real, int(both.sum())), (unreal, int(both.sum()))):
        own = order[chosen[order]]
        place[own] = (start + np.arange(len(own))) % folds
    return place


def _out_of_fold(values: Floats, fake: Flags, fold: Whole, categories: bool) -> Floats:
    """The score of each clip, [N] in (0, 1), by what the other folds taught."""
    scores = np.empty(len(values))
    for number in range(int(fold.max()) + 1):
        judged = fold == number
        scores[judged] = _scores(values[~judged], fake[~judged], values[judged], categories)
    return scores


def _scores(known: Floats, fake: Flags, asked: Floats, categories: bool) -> Floats:
    """The share of fakes among known clips with (about) the value that is asked for; classes count alike.

    known, fake: [N], asked: [M]. Returns [M]; 0.5 for a category that is not known.
    """
    smaller = min(int(fake.sum()), int((~fake).sum()))
    weight = np.where(fake, smaller / fake.sum(), smaller / (~fake).sum())
    # Missing values count as one value, the last.
    distinct, place = np.unique(known, return_inverse=True)
    mass: Floats = np.bincount(place, weight).astype(np.float64)
    bins = min(_MOST_BINS, 2 * max(1, smaller // (2 * _CLIPS_PER_BIN)))
    bin_of = np.arange(len(distinct))
    if not categories and len(distinct) > bins:
        bin_of = _quantile_bins(distinct, mass, bins)
    fakes = np.bincount(bin_of, np.bincount(place, weight * fake))
    # As if each bin had one more clip of each class: few clips say little. Rounded, so that equal shares are ties.
    share = np.round((fakes + 1) / (np.bincount(bin_of, mass) + 2), 12)
    index = _nearest(distinct, asked)
    scores: Floats = share[bin_of[index]]
    exact = (distinct[index] == asked) | (np.isnan(distinct[index]) & np.isnan(asked))
    return np.where(exact | (~np.isnan(asked) & (not categories)), scores, CHANCE)


def _quantile_bins(distinct: Floats, mass: Floats, bins: int) -> Whole:
    """The bin of each distinct value, [D]: about equal masses; missing and frequent values have one for themselves."""
    there = np.where(np.isnan(distinct), 0.0, mass)
    middle = (np.cumsum(there) - there / 2) / there.sum()
    bin_of = (middle * bins).astype(np.int64)
    alone = np.isnan(distinct) | (mass >= mass.sum() / bins)
    bin_of[alone] = bins + np.arange(alone.sum())
    return bin_of


def _nearest(distinct: Floats, asked: Floats) -> Whole:
    """Index of the distinct value that is nearest to each one asked for; the last one for a missing value."""
    numbers = distinct[~np.isnan(distinct)]
    if len(numbers) == 0:
        return np.zeros(len(asked), np.int64)
    index = np.searchsorted((numbers[1:] + numbers[:-1]) / 2, asked).astype(np.int64)
    return np.where(np.isnan(asked), len(distinct) - 1, index)


def _groups(scores: Floats, fold: Whole) -> tuple[Whole, Whole]:
    """Clips of one fold and score: the group of each clip [N], and the fold of each group, by fold and score."""
    pairs = np.stack([fold.astype(np.float64), scores])
    distinct, group = np.unique(pairs, axis=1, return_inverse=True)
    return group.reshape(-1), distinct[0].astype(np.int64)


def _auc_within_folds(fakes: Floats, reals: Floats, group_fold: Whole) -> float:
    """The chance that a fake scores above a real clip of its fold, ties half; NaN where no fold has both.

    fakes, reals: weight of the clips of each group, [G], by fold and score. group_fold: [G].
    """
    in_fold = np.bincount(group_fold, reals)
    before = (np.cumsum(in_fold) - in_fold)[group_fold]
    below = np.cumsum(reals) - reals - before
    pairs = float((np.bincount(group_fold, fakes) * in_fold).sum())
    return float((fakes * (below + 0.5 * reals)).sum()) / pairs if pairs > 0 else float("nan")


def _null_error(fakes: Floats, reals: Floats, group_fold: Whole) -> float:
    """Standard error of `_auc_within_folds` where the labels of a fold are dealt to its scores at random.

    That of the rank sum with ties (Lehmann, Nonparametrics, 1975, section 1.4), of each fold by itself.
    """
    num_fakes, num_reals = np.bincount(group_fold, fakes), np.bincount(group_fold, reals)
    clips, ties = num_fakes + num_reals, fakes + reals
    cubes = np.bincount(group_fold, ties**3 - ties)
    # n^3 - n is 0 for a fold of one clip, where there is nothing to compare.
    untied = 1 - cubes / np.maximum(clips**3 - clips, 1)
    pairs = num_fakes * num_reals
    variance = float((pairs * (clips + 1) * untied).sum()) / 12
    return math.sqrt(max(variance, 0.0)) / float(pairs.sum())
