"""Metrics against plain implementations over all pairs, hand-made cases, and the coverage of the bootstrap."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from stgs import metrics
from stgs.config import InputError


def plain_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The weighted share of (fake, real) pairs in which the fake scores higher, ties half."""
    won = total = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            pair = weights[i] * weights[j]
            total += pair
            won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / total


def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    out = []
    for levels in (2, 5, 1000):
        labels = random.permutation(np.arange(60) % 3 > 0).astype(int)
        out.append((random.integers(0, levels, 60) / levels + 0.2 * labels, labels))
    return out


@pytest.mark.parametrize(("scores", "labels"), cases())
def test_auc_equals_the_share_of_pairs(scores: np.ndarray, labels: np.ndarray) -> None:
    weights = np.random.default_rng(1).integers(0, 4, len(scores)).astype(float)
    assert metrics.auc(scores, labels) == pytest.approx(plain_auc(scores, labels, np.ones(len(scores))), abs=1e-12)
    expected = plain_auc(scores, labels, weights)
    assert metrics.weighted_auc(scores, labels, weights) == pytest.approx(expected, abs=1e-12)
    # A weight of k is k copies of the clip.
    copies = np.repeat(np.arange(len(scores)), weights.astype(int))
    assert metrics.auc(scores[copies], labels[copies]) == pytest.approx(expected, abs=1e-12)


def test_auc_of_extremes() -> None:
    labels = [0, 0, 1, 1]
    assert metrics.auc([1, 2, 3, 4], labels) == 1.0
    assert metrics.auc([4, 3, 2, 1], labels) == 0.0
    assert metrics.auc([5, 5, 5, 5], labels) == 0.5
    assert math.isnan(metrics.weighted_auc([1, 2, 3, 4], labels, [1, 1, 0, 0]))


@pytest.mark.parametrize(("scores", "labels"), cases())
def test_roc_curve_counts_what_its_thresholds_say(scores: np.ndarray, labels: np.ndarray) -> None:
    false_positive, true_positive, thresholds = metrics.roc_curve(scores, labels)
    assert len(thresholds) == len(np.unique(scores)) + 1
    for f, t, threshold in zip(false_positive, true_positive, thresholds, strict=True):
        called = scores >= threshold
        assert f == pytest.approx((called & (labels == 0)).sum() / (labels == 0).sum())
        assert t == pytest.approx((called & (labels == 1)).sum() / (labels == 1).sum())
    assert np.all(np.diff(thresholds) < 0)
    area = np.trapezoid(true_positive, false_positive)
    assert area == pytest.approx(metrics.auc(scores, labels), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 0.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 1.0),
        ([5, 5, 5, 5], [0, 0, 1, 1], 0.5),
        # One real above one fake of two each: at the threshold between them 1/2 of both are wrong.
        ([1, 3, 2, 4], [0, 0, 1, 1], 0.5),
        # Three of each, one pair swapped: one real of three called fake, one fake of three missed.
        ([1, 2, 4, 3, 5, 6], [0, 0, 0, 1, 1, 1], 1 / 3),
        # (0, 1/2) to (1/3, 1/2) to (1/3, 1): the curve crosses false negatives = false positives at 1/3 on the rise.
        ([1, 2, 4, 3, 5], [0, 0, 0, 1, 1], 1 / 3),
        # All fakes and half of the reals tie: from (0, 0) straight to (1/2, 1), which meets f = 1 - t at 1/3.
        ([1, 2, 2, 2], [0, 0, 1, 1], 1 / 3),
    ],
)
def test_equal_error_rate_of_hand_made_cases(scores: list[float], labels: list[int], expected: float) -> None:
    assert metrics.equal_error_rate(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_equal_error_rate_of_two_normals() -> None:
    # Classes N(0, 1) and N(d, 1): EER = Phi(-d / 2), here on quantiles in place of random numbers.
    quantiles = [NormalDist().inv_cdf((i + 0.5) / 2000) for i in range(2000)]
    scores = np.concatenate([quantiles, np.array(quantiles) + 2.0])
    labels = np.repeat([0, 1], 2000)
    # The curve has steps of 1 / 2000.
    assert metrics.equal_error_rate(scores, labels) == pytest.approx(NormalDist().cdf(-1.0), abs=1 / 2000)


@pytest.mark.parametrize(("scores", "labels"), cases())
def test_metrics_agree_with_scikit_learn(scores: np.ndarray, labels: np.ndarray) -> None:
    called = scores >= 0.5
    expected = {
        metrics.auc(scores, labels): sklearn.metrics.roc_auc_score(labels, scores),
        metrics.average_precision(scores, labels): sklearn.metrics.average_precision_score(labels, scores),
        metrics.accuracy(scores, labels, 0.5): sklearn.metrics.accuracy_score(labels, called),
        metrics.balanced_accuracy(scores, labels, 0.5): sklearn.metrics.balanced_accuracy_score(labels, called),
    }
    for found, value in expected.items():
        assert found == pytest.approx(value, abs=1e-12)
    false_positive, true_positive, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip(metrics.roc_curve(scores, labels), (false_positive, true_positive), strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


# With scores on the bins' borders, too.
@pytest.mark.parametrize("levels", [10, 1000])
def test_calibration_agrees_with_scikit_learn(levels: int) -> None:
    random = np.random.default_rng(levels)
    scores = random.integers(0, levels + 1, 500) / levels
    labels = (random.random(500) < scores**2).astype(int)
    curve = metrics.reliability(scores, labels)
    shares, means = sklearn.calibration.calibration_curve(labels, scores, n_bins=10)
    kept = [point for point in curve if point.count]
    np.testing.assert_allclose([point.fake_share for point in kept], shares, atol=1e-12)
    np.testing.assert_allclose([point.mean_score for point in kept], means, atol=1e-12)
    assert sum(point.count for point in curve) == 500
    expected = sum(
        point.count / 500 * abs(share - mean) for point, share, mean in zip(kept, shares, means, strict=True)
    )
    assert metrics.calibration_error(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_calibration_of_extremes() -> None:
    assert metrics.calibration_error([0.0, 1.0], [0, 1]) == 0.0
    assert metrics.calibration_error([1.0, 0.0], [0, 1]) == 1.0
    empty = metrics.reliability([0.05], [1])[3]
    assert (empty.low, empty.high, empty.count, empty.mean_score, empty.fake_share) == (0.3, 0.4, 0, None, None)
    with pytest.raises(InputError, match=r"1 of 2 scores lie outside \[0, 1\]"):
        metrics.calibration_error([0.5, 1.5], [0, 1])


def test_accuracies() -> None:
    scores, labels = [0.1, 0.6, 0.5, 0.9, 0.4], [0, 0, 1, 1, 1]
    assert metrics.accuracy(scores, labels, 0.5) == pytest.approx(3 / 5)
    assert metrics.balanced_accuracy(scores, labels, 0.5) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(("scores", "labels"), cases())
def test_best_threshold_has_the_best_balanced_accuracy(scores: np.ndarray, labels: np.ndarray) -> None:
    found = metrics.best_threshold(scores, labels)
    tried = {t: metrics.balanced_accuracy(scores, labels, t) for t in np.unique(scores)}
    best = max(tried.values())
    assert metrics.balanced_accuracy(scores, labels, found) == pytest.approx(best, abs=1e-12)
    highest = max(t for t, value in tried.items() if value > best - 1e-12)
    below = scores[scores < highest]
    assert found == pytest.approx((highest + below.max()) / 2 if len(below) else highest)


def test_best_threshold_of_hand_made_cases() -> None:
    assert metrics.best_threshold([0.2, 0.4, 0.8], [0, 0, 1]) == pytest.approx(0.6)
    # Two thresholds of the same balanced accuracy, 3/4: the higher one.
    assert metrics.best_threshold([1, 2, 3, 4], [0, 1, 0, 1]) == pytest.approx(3.5)
    # Inverted scores: nothing finite beats calling everything fake.
    inverted = metrics.best_threshold([3, 4, 1, 2], [0, 0, 1, 1])
    assert metrics.balanced_accuracy([3, 4, 1, 2], [0, 0, 1, 1], inverted) == 0.5
    # Neighbouring floats, whose middle rounds to one of them.
    high = 1.0 - 2.0**-53
    threshold = metrics.best_threshold([np.nextafter(high, 0), high], [0, 1])
    assert metrics.balanced_accuracy([np.nextafter(high, 0), high], [0, 1], threshold) == 1.0


@pytest.mark.parametrize(
    "metric",
    [
        metrics.auc,
        metrics.average_precision,
        metrics.roc_curve,
        metrics.equal_error_rate,
        metrics.best_threshold,
        "balanced_accuracy",
    ],
)
@pytest.mark.parametrize(
    ("scores", "labels", "named"),
    [
        ([0.1, 0.2], [1, 1], "2 clips hold 2 fake"),
        ([0.1, 0.2], [0, 0], "2 clips hold 0 fake"),
        ([0.1, float("nan")], [0, 1], "1 of 2 scores"),
        ([0.1, float("inf")], [0, 1], "1 of 2 scores"),
        ([0.1, 0.2, 0.3], [0, 1], "shape"),
        ([[0.1, 0.2]], [[0, 1]], "shape"),
        ([], [], "no clips"),
    ],
)
def test_wrong_scores_are_refused(metric: object, scores: list, labels: list, named: str) -> None:
    if metric == "balanced_accuracy":
        with pytest.raises(InputError, match=named):
            metrics.balanced_accuracy(scores, labels, 0.5)
    else:
        with pytest.raises(InputError, match=named):
            metric(scores, labels)


def subject_clips(random: np.random.Generator, subjects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and subjects of one real and three fake clips a subject; one subject's scores share an offset.

    Score = label + N(0, 0.5) of the subject + N(0, 0.5) of the clip.
    """
    labels = np.tile([0, 1, 1, 1], subjects)
    subject = np.repeat(np.arange(subjects), 4)
    scores = labels + random.normal(0, 0.5, subjects)[subject] + random.normal(0, 0.5, len(labels))
    return scores, labels, subject


def test_bootstrap_interval_covers_the_truth() -> None:
    # Clips of different subjects: a difference of 1 with variance 2 * (0.5^2 + 0.5^2). Pairs within a subject, 1 in 40,
    # differ by 1 with variance 2 * 0.5^2.
    between, within = NormalDist().cdf(1.0), NormalDist().cdf(1 / math.sqrt(0.5))
    truth = between * 39 / 40 + within / 40
    random = np.random.default_rng(0)
    trials, covered = 100, 0
    for trial in range(trials):
        scores, labels, subject = subject_clips(random, 40)
        interval = metrics.bootstrap_interval(
            lambda w, s=scores, y=labels: metrics.weighted_auc(s, y, w), subject, seed=trial, resamples=200
        )
        assert interval.value == metrics.auc(scores, labels)
        assert interval.low <= interval.high
        covered += interval.low <= truth <= interval.high
    # Binomial with chance 0.95, less 0.03 for the percentile method at 40 subjects, within 3 standard deviations.
    assert covered / trials > 0.92 - 3 * math.sqrt(0.95 * 0.05 / trials)
    # An interval that always covers is no 95 % interval.
    assert covered < trials


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    resamples = 8000
    interval = metrics.bootstrap_interval(
        lambda w: float((w * values).sum() / w.sum()), np.arange(400), resamples=resamples
    )
    error = values.std() / math.sqrt(400)
    # Standard error of a 2.5 % quantile of 8000 normal numbers, in units of `error`; the density there is 0.0584.
    quantile_error = math.sqrt(0.025 * 0.975 / resamples) / 0.0584
    for bound, z in ((interval.low, -1.96), (interval.high, 1.96)):
        assert abs((bound - values.mean()) / error - z) < 4.5 * quantile_error


def test_bootstrap_resamples_subjects_not_clips() -> None:
    scores, labels, subject = subject_clips(np.random.default_rng(3), 30)
    copies = np.tile(np.arange(len(scores)), 20)

    def width(subjects: np.ndarray) -> float:
        interval = metrics.bootstrap_interval(
            lambda w: metrics.weighted_auc(scores[copies], labels[copies], w), subjects, resamples=300
        )
        return interval.high - interval.low

    # 20 copies of every clip hold no more evidence: by subjects the interval stays, by clips it shrinks by sqrt(20).
    assert width(np.arange(len(copies))) < width(subject[copies]) / 2


def test_paired_difference() -> None:
    scores, labels, subject = subject_clips(np.random.default_rng(4), 40)
    other = scores + np.random.default_rng(5).normal(0, 0.5, len(scores))

    def difference(w: np.ndarray) -> float:
        return metrics.weighted_auc(scores, labels, w) - metrics.weighted_auc(other, labels, w)

    paired = metrics.bootstrap_interval(difference, subject, resamples=400)
    assert paired.value == pytest.approx(metrics.auc(scores, labels) - metrics.auc(other, labels))
    alone = [
        metrics.bootstrap_interval(lambda w, s=s: metrics.weighted_auc(s, labels, w), subject, resamples=400)
        for s in (scores, other)
    ]
    # Both systems see the same subjects, so their errors cancel in part.
    assert paired.high - paired.low < math.hypot(*(interval.high - interval.low for interval in alone))
    same = metrics.bootstrap_interval(lambda w: difference(w) * 0.0, subject, resamples=50)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_bootstrap_is_seeded() -> None:
    scores, labels, subject = subject_clips(np.random.default_rng(6), 20)

    def interval(seed: int) -> metrics.Interval:
        return metrics.bootstrap_interval(
            lambda w: metrics.weighted_auc(scores, labels, w), subject, seed=seed, resamples=100
        )

    assert interval(0) == interval(0)
    assert interval(0) != interval(1)


def test_too_few_subjects_are_refused() -> None:
    scores, labels = [0.1, 0.9, 0.3, 0.4], [0, 1, 0, 1]
    with pytest.raises(InputError, match="1 subject"):
        metrics.bootstrap_interval(lambda w: metrics.weighted_auc(scores, labels, w), ["a"] * 4)


def test_resamples_of_one_class_are_left_out() -> None:
    scores, labels = [0.1, 0.9, 0.4, 0.6], [0, 1, 0, 0]
    interval = metrics.bootstrap_interval(lambda w: metrics.weighted_auc(scores, labels, w), ["a", "b", "c", "d"])
    # 0.9 is above every real score, whichever subjects are drawn, so long as there are both.
    assert (interval.low, interval.value, interval.high) == (1.0, 1.0, 1.0)
    # All of three subjects are drawn with chance 3! / 3^3 = 0.22, below the half that is asked for.
    with pytest.raises(InputError, match="of 1000 resamples"):
        metrics.bootstrap_interval(lambda w: 1.0 if (w > 0).all() else math.nan, ["a", "b", "c"], resamples=1000)
