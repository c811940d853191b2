"""Metrics of many weightings against scikit-learn on weighted clips, and intervals against a bootstrap written here."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics

from stgs import metrics, resampling
from stgs.config import InputError
from stgs.resampling import Estimate, Resamples, ScoredClips

SUBJECTS = 12


def clips(levels: int, *, count: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P(fake), labels and subjects of clips; few `levels` of scores make ties."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.7).astype(int)
    raw = 1 / (1 + np.exp(-random.normal(labels - 0.5, 1.0)))
    return np.round(raw * levels) / levels, labels, random.integers(SUBJECTS, size=count)


def expected(name: str, scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """A metric of clips that stand in the list as often as they weigh, by other programs where there are some."""
    copies = np.repeat(np.arange(len(scores)), weight.astype(int))
    called = scores >= 0.6
    plain = {
        "equal_error_rate": lambda: metrics.equal_error_rate(scores[copies], labels[copies]),
        "calibration_error": lambda: metrics.calibration_error(scores[copies], labels[copies]),
        "auc": lambda: sklearn.metrics.roc_auc_score(labels, scores, sample_weight=weight),
        "average_precision": lambda: sklearn.metrics.average_precision_score(labels, scores, sample_weight=weight),
        "accuracy": lambda: sklearn.metrics.accuracy_score(labels, called, sample_weight=weight),
        "balanced_accuracy": lambda: sklearn.metrics.balanced_accuracy_score(labels, called, sample_weight=weight),
    }
    return float(plain[name]())


def statistics(scored: ScoredClips) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda weights: {
        "auc": scored.auc(weights),
        **scored.curve_metrics(weights),
        "accuracy": scored.accuracy(weights, 0.6),
        "balanced_accuracy": scored.balanced_accuracy(weights, 0.6),
        "calibration_error": scored.calibration_error(weights),
    }


@pytest.mark.parametrize("paired_subjects", [0, 1024])
@pytest.mark.parametrize("chunk", [70, 1 << 20])
@pytest.mark.parametrize("levels", [4, 20, 10**9])
def test_every_metric_of_every_draw(
    levels: int, chunk: int, paired_subjects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "_CHUNK", chunk)
    monkeypatch.setattr(resampling, "_PAIRED_SUBJECTS", paired_subjects)
    scores, labels, subject = clips(levels)
    draws = Resamples.of(subject, resamples=7)
    drawn = draws.apply(statistics(ScoredClips(scores, labels, draws.owner)))
    for row in range(7):
        weight = draws.counts[row][draws.owner]
        for name, values in drawn.items():
            assert values[row] == pytest.approx(expected(name, scores, labels, weight), abs=1e-12), name


def test_weights_need_not_be_whole() -> None:
    scores, labels, _ = clips(10)
    weights = np.random.default_rng(2).random((3, len(scores)))
    scored = ScoredClips(scores, labels)
    for name, values in statistics(scored)(weights).items():
        if name in ("auc", "average_precision", "accuracy", "balanced_accuracy"):
            for weight, value in zip(weights, values, strict=True):
                assert value == pytest.approx(_fractional(name, scores, labels, weight), abs=1e-12), name


def _fractional(name: str, scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    called = scores >= 0.6
    functions = {
        "auc": (sklearn.metrics.roc_auc_score, scores),
        "average_precision": (sklearn.metrics.average_precision_score, scores),
        "accuracy": (sklearn.metrics.accuracy_score, called),
        "balanced_accuracy": (sklearn.metrics.balanced_accuracy_score, called),
    }
    function, given = functions[name]
    return float(function(labels, given, sample_weight=weight))


def test_intervals_are_those_of_an_independent_bootstrap() -> None:
    scores, labels, subject = clips(20)
    resamples = 3000
    found = Resamples.of(subject, seed=1, resamples=resamples)
    estimates = found.estimates(statistics(ScoredClips(scores, labels, found.owner)))
    random = np.random.default_rng(99)
    drawn: dict[str, list[float]] = {name: [] for name in ("auc", "average_precision", "balanced_accuracy")}
    for _ in range(resamples // 4):
        chosen = random.choice(SUBJECTS, SUBJECTS, replace=True)
        copies = np.concatenate([np.flatnonzero(subject == one) for one in chosen])
        drawn["auc"].append(metrics.auc(scores[copies], labels[copies]))
        drawn["average_precision"].append(metrics.average_precision(scores[copies], labels[copies]))
        drawn["balanced_accuracy"].append(metrics.balanced_accuracy(scores[copies], labels[copies], 0.6))
    for name, values in drawn.items():
        spread = np.std(values)
        # Standard error of a 2.5 % quantile of n numbers: sqrt(0.025 * 0.975 / n) / 0.0584 deviations (normal ones).
        error = math.sqrt(0.025 * 0.975 * (1 / len(values) + 1 / resamples)) / 0.0584 * spread
        for bound, quantile in ((estimates[name].low, 0.025), (estimates[name].high, 0.975)):
            assert abs(bound - np.quantile(values, quantile)) < 4 * error, name
    # The same draws as `bootstrap_interval` makes one by one.
    single = metrics.bootstrap_interval(
        lambda weights: metrics.weighted_auc(scores, labels, weights), subject, seed=1, resamples=resamples
    )
    assert (single.low, single.high) == pytest.approx((estimates["auc"].low, estimates["auc"].high), abs=1e-12)


def test_draws_are_of_whole_subjects_and_shared() -> None:
    _, _, subject = clips(4)
    draws = Resamples.of(subject, resamples=400)
    assert (draws.counts.sum(axis=1) == SUBJECTS).all()
    # Multinomial: mean 1, variance 1 - 1 / S.
    assert draws.counts.mean(axis=0) == pytest.approx(np.ones(SUBJECTS), abs=4 / math.sqrt(400))
    assert draws.counts.var() == pytest.approx(1 - 1 / SUBJECTS, abs=0.1)
    half = draws.only(subject < 6)
    assert half.counts is draws.counts
    assert len(half.owner) == (subject < 6).sum()


def test_what_cannot_be_estimated_says_why() -> None:
    scores, labels, _ = clips(20, count=30)
    scored = ScoredClips(scores, labels, np.zeros(30, int))
    alone = Resamples.of(["only"] * 30, resamples=10).estimate(scored.auc)
    assert alone.value == metrics.auc(scores, labels)
    assert (alone.low, alone.high) == (None, None)
    assert "1 subject only" in (alone.sentence or "")
    # One real clip of 30 subjects is drawn in 63 % of the draws, of two both in less than half of them.
    few = Resamples.of(list("abc"), resamples=1000)
    thirds = few.estimate(lambda weights: np.where((weights > 0).all(axis=1), 0.5, np.nan))
    assert (thirds.value, thirds.low) == (0.5, None)
    assert "of 1000 resamples" in (thirds.sentence or "")
    for metric in statistics(ScoredClips([0.2, 0.7], [1, 1]))(np.ones((1, 2))).items():
        assert math.isnan(metric[1][0]) == (metric[0] not in ("accuracy", "calibration_error")), metric[0]
    with pytest.raises(InputError, match="1 of 2 scores are not finite"):
        ScoredClips([0.1, math.nan], [0, 1])
    with pytest.raises(InputError, match="resamples is 0"):
        Resamples.of(["a", "b"], resamples=0)
    assert Estimate(0.5).to_dict() == {"value": 0.5, "low": None, "high": None, "sentence": None}
