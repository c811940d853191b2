"""What the scores of test clips say: metrics.json of an evaluation, from the scores and the networks' facts alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.controls import AUDIO, CONTROLS, GRID, RANDOM, SHUFFLED, VISUAL
from data_prep.storage import InputError
from stgs import metrics
from stgs.config import InputError as MetricError
from stgs.paired_test import exchange_test
from stgs.resampling import Estimate, Floats, Resamples, ScoredClips

VERSION = 2
HALF = 0.5
# The shuffled arm is at chance if its mean test AUC lies within this many standard errors of 0.5.
CHANCE_ERRORS = 3.0
# Of fewer shuffled searches nothing is said; below the second number, with a word of caution (design.md section 4).
LEAST_SHUFFLES, ENOUGH_SHUFFLES = 3, 20
# Points of a stored ROC curve, and clips of each kind that are named as the most wrong ones, at most.
ROC_POINTS, WRONG_CLIPS = 500, 6
CLIP_COLUMNS = ("clip_id", "category", "dataset", "subject", "method")

Statistics = Callable[[ScoredClips], Callable[[Floats], Mapping[str, Floats]]]


def choose(facts: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> str | None:
    """The network of these arms with the best AUC on dev; of equal ones the one of the first point.

    Networks that were fitted on dev are chosen by the AUC there of the supernets that found them, where these are
    known. Further trainings of a network show the spread and are no candidates, since not every arm has as many draws.

    facts: name (`arm/id`) -> what the network's file says (`StoredNetwork.facts`). None if the arms have no network.
    """
    names = [name for name in facts if name.split("/")[0] in arms]
    # A further training may stand where the first one failed.
    names = [name for name in names if facts[name].get("repeat", 0) == 0] or names
    measured = {name: facts[name]["metrics"] for name in names}
    by_search = all(chosen_by_search(one) for one in measured.values())
    aucs = {name: one["search_dev_auc" if by_search else "dev_auc"] for name, one in measured.items()}

    def place(name: str) -> tuple[Any, ...]:
        # Points in the grid's order: temperature, num_samples, estimator, seed.
        return (name.split("/")[0], list((facts[name]["point"] or {}).values())[:4], facts[name].get("repeat", 0))

    return max(sorted(names, key=place), key=lambda name: aucs[name]) if names else None


def fitted_on_dev(metrics: Mapping[str, Any]) -> bool:
    """Whether a network's weights saw dev. metrics: of its file, or its row in metrics.json."""
    return "dev" in (metrics.get("fitted_on") or ())


def chosen_by_search(metrics: Mapping[str, Any]) -> bool:
    """Whether the supernet's AUC on dev stands for the network's own, of clips that it was fitted on."""
    return fitted_on_dev(metrics) and metrics.get("search_dev_auc") is not None


@dataclass(frozen=True, slots=True)
class TestClips:
    """Who the clips are, [N] each, with the draws of their subjects that all metrics share."""

    labels: NDArray[np.int8]
    clips: Mapping[str, Sequence[Any]]
    draws: Resamples

    @classmethod
    def of(cls, table: pa.Table, *, seed: int, resamples: int) -> TestClips:
        """The clips of scores.parquet. Subjects of the same name in two data sets are two."""
        clips = {name: table[name].to_pylist() for name in CLIP_COLUMNS}
        subjects = [f"{dataset}/{subject}" for dataset, subject in zip(clips["dataset"], clips["subject"], strict=True)]
        labels = np.asarray(table["label"].to_pylist(), np.int8)
        return cls(labels, clips, Resamples.of(subjects, seed=seed, resamples=resamples))

    @property
    def subjects(self) -> int:
        """S."""
        return int(self.draws.counts.shape[1])

    def where(self, column: str, value: object) -> NDArray[np.bool_]:
        """The clips with a value in a column."""
        return np.array([found == value for found in self.clips[column]])

    def scored(self, scores: Floats, chosen: NDArray[np.bool_]) -> ScoredClips:
        """Some of the clips with their scores. Raises stgs' InputError as `ScoredClips` does."""
        return ScoredClips(scores[chosen], self.labels[chosen], self.draws.owner[chosen], self.subjects)


def measure(
    table: pa.Table, facts: Mapping[str, Mapping[str, Any]], *, seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """All that metrics.json says of one data set, but its name and digests (docs/formats.md).

    table: of scores.parquet, with a column of scores for every network. facts: network -> `StoredNetwork.facts`.
    seed, resamples: of the bootstrap over subjects, and of the randomisation tests.
    """
    test = TestClips.of(table, seed=seed, resamples=resamples)
    scores = {name: table[name].to_numpy().astype(np.float64) for name in facts}
    networks = {name: _network(name, scores[name], test, facts[name]) for name in facts}
    found, single = choose(facts, (GRID,)), choose(facts, (VISUAL, AUDIO))

    def against(other: str | None) -> dict[str, Any] | None:
        if found is None or other is None:
            return None
        return difference(scores[found], scores[other], test, seed=seed)

    best = {arm: choose(facts, (arm,)) for arm in CONTROLS if arm != SHUFFLED}
    aucs = {arm: _values(networks, arm) for arm in (RANDOM, SHUFFLED)}
    return {
        "version": VERSION,
        "clips": len(test.labels),
        "fake": int(test.labels.sum()),
        "subjects": test.subjects,
        "bootstrap": {"seed": seed, "resamples": resamples},
        "found": found,
        "best_single_sense": single,
        "difference": against(single),
        "comparisons": {arm: {"network": name, "difference": against(name)} for arm, name in best.items() if name},
        "random": _spread(aucs[RANDOM]),
        "shuffled": chance_check(aucs[SHUFFLED]),
        "wrong": [] if found is None else wrong_clips(scores[found], test, facts[found]["metrics"]["threshold"]),
        "networks": networks,
    }


def _network(name: str, scores: Floats, test: TestClips, facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: facts[key] for key in ("kind", "repeat", "parameters", "macs", "seconds", "genotype", "point")}
    return {
        "arm": name.split("/")[0],
        **kept,
        **facts["metrics"],
        **score_metrics(scores, test, facts["metrics"]["threshold"]),
    }


def auc_of(scores: Floats, test: TestClips) -> dict[str, Any]:
    """AUC of one network's scores as an estimate, alone."""
    everything = np.ones(len(scores), bool)
    measured = _estimates(
        lambda clips: lambda weights: {"auc": clips.auc(weights)}, scores, test, everything, both=True
    )
    return measured["auc"]


def score_metrics(scores: Floats, test: TestClips, threshold: float) -> dict[str, Any]:
    """Every metric of one network's scores, each as an estimate, and its curves."""
    everything = np.ones(len(scores), bool)
    reals = test.labels == 0

    def measured(statistics: Statistics, chosen: NDArray[np.bool_] = everything, *, both: bool = True) -> Any:
        return _estimates(statistics, scores, test, chosen, both=both)

    def auc(chosen: NDArray[np.bool_]) -> Any:
        return measured(lambda clips: lambda weights: {"auc": clips.auc(weights)}, chosen)["auc"]

    categories = {kind: test.where("category", kind) for kind in "BCD"}
    categories = {kind: own | test.where("category", "A") for kind, own in categories.items() if own.any()}
    fake_methods = sorted({m for m, label in zip(test.clips["method"], test.labels, strict=True) if label and m})
    return {
        "auc": auc(everything),
        **measured(lambda clips: clips.curve_metrics),
        **measured(
            lambda clips: (
                lambda weights: {
                    "accuracy": clips.accuracy(weights, HALF),
                    "accuracy_dev_threshold": clips.accuracy(weights, threshold),
                    "calibration_error": clips.calibration_error(weights),
                }
            ),
            both=False,
        ),
        **measured(lambda clips: lambda weights: {"balanced_accuracy": clips.balanced_accuracy(weights, threshold)}),
        "auc_by_category": {kind: auc(chosen) for kind, chosen in categories.items()},
        "auc_by_method": {method: auc(reals | (test.where("method", method) & ~reals)) for method in fake_methods},
        "reliability": _reliability(scores, test),
        "roc": _roc(scores, test.labels),
        "roc_by_category": {kind: _roc(scores[chosen], test.labels[chosen]) for kind, chosen in categories.items()},
    }


def _estimates(
    statistics: Statistics, scores: Floats, test: TestClips, chosen: NDArray[np.bool_], *, both: bool
) -> dict[str, dict[str, Any]]:
    """Estimates of some clips; both: whether they need real and fake clips. Where nothing can be measured, why."""
    try:
        clips = test.scored(scores, chosen)
        if both:
            metrics.checked_both(clips.scores, clips.fake)
        return {name: one.to_dict() for name, one in test.draws.only(chosen).estimates(statistics(clips)).items()}
    except MetricError as error:
        # What would have been measured, asked of two clips that can be.
        names = statistics(ScoredClips([0.0, 1.0], [0, 1]))(np.ones((1, 2)))
        return {name: Estimate(None, sentence=str(error)).to_dict() for name in names}


def difference(ours: Floats, theirs: Floats, test: TestClips, *, seed: int) -> dict[str, Any]:
    """AUC of one network less that of another on the same draws, and the p-value of the randomisation test."""
    everything = np.ones(len(ours), bool)
    try:
        first, second = (test.scored(values, everything) for values in (ours, theirs))
        metrics.checked_both(first.scores, first.fake)
        found = test.draws.estimate(lambda weights: first.auc(weights) - second.auc(weights))
        p_value = exchange_test(
            ours, theirs, test.labels, test.draws.owner, seed=seed, resamples=len(test.draws.counts)
        )
    except MetricError as error:
        return {**Estimate(None, sentence=str(error)).to_dict(), "p_value": None}
    # One subject's ranks can only be exchanged as a whole, which gives the same difference again.
    return {**found.to_dict(), "p_value": p_value if test.subjects > 1 else None}


def _reliability(scores: Floats, test: TestClips) -> list[dict[str, Any]]:
    """The reliability curve with the interval of each bin's share of fakes; empty where it cannot be given."""
    try:
        curve = metrics.reliability(scores, test.labels)
        clips = test.scored(scores, np.ones(len(scores), bool))
    except MetricError:
        return []
    shares = test.draws.apply(lambda weights: {"fake_share": clips.fake_shares(weights)})["fake_share"]
    rows = []
    for point, drawn in zip(curve, shares.T, strict=True):
        kept = drawn[~np.isnan(drawn)]
        given = len(kept) >= len(drawn) / 2 and test.subjects > 1
        low, high = (float(bound) for bound in np.quantile(kept, [0.025, 0.975])) if given else (None, None)
        rows.append({**asdict(point), "fake_share_low": low, "fake_share_high": high})
    return rows


def _roc(scores: Floats, labels: NDArray[np.int8]) -> list[list[float]]:
    """False and true positive rates at the curve's corners, [[], []] where there is none."""
    try:
        false_positive, true_positive, _ = metrics.roc_curve(scores, labels)
    except MetricError:
        return [[], []]
    # A point on the line between its neighbours adds nothing to the curve.
    steps = np.diff(false_positive), np.diff(true_positive)
    turns = np.abs(steps[0][:-1] * steps[1][1:] - steps[0][1:] * steps[1][:-1]) > 1e-15
    kept = np.flatnonzero(np.concatenate([[True], turns, [True]]))
    if len(kept) > ROC_POINTS:
        kept = kept[np.round(np.linspace(0, len(kept) - 1, ROC_POINTS)).astype(int)]
    return [false_positive[kept].tolist(), true_positive[kept].tolist()]


def wrong_clips(scores: Floats, test: TestClips, threshold: float) -> list[dict[str, Any]]:
    """Clips on the wrong side of the threshold, farthest first, at most 6 fakes and 6 real ones."""
    distance = np.where(test.labels > 0, threshold - scores, scores - threshold)
    wrong = (scores >= threshold) != (test.labels > 0)
    order = [index for index in np.argsort(-distance, kind="stable") if wrong[index] and np.isfinite(scores[index])]
    kept = [
        index for label in (0, 1) for index in [index for index in order if test.labels[index] == label][:WRONG_CLIPS]
    ]
    return [
        {
            **{name: test.clips[name][index] for name in CLIP_COLUMNS},
            "label": int(test.labels[index]),
            "score": float(scores[index]),
        }
        for index in sorted(kept, key=order.index)
    ]


def _values(networks: Mapping[str, Mapping[str, Any]], arm: str) -> list[float]:
    """The AUC of an arm's networks, of those that have one."""
    values = [row["auc"]["value"] for row in networks.values() if row["arm"] == arm]
    return [value for value in values if value is not None]


def _spread(aucs: Sequence[float]) -> dict[str, Any] | None:
    if not aucs:
        return None
    return {"count": len(aucs), "mean": float(np.mean(aucs)), "low": min(aucs), "high": max(aucs)}


def chance_check(aucs: Sequence[float]) -> dict[str, Any] | None:
    """Whether shuffled labels end at chance: the mean AUC within 3 standard errors of 0.5 (design.md section 4).

    at_chance is None where that cannot be said; sentence says why, or that there are too few searches to rely on it.
    """
    count = len(aucs)
    if not aucs:
        return None
    mean, sentence = float(np.mean(aucs)), None
    error = float(np.std(aucs, ddof=1) / math.sqrt(count)) if count > 1 else None
    at_chance = None
    if count >= LEAST_SHUFFLES and error:
        at_chance = abs(mean - HALF) <= CHANCE_ERRORS * error
        if count < ENOUGH_SHUFFLES:
            sentence = f"only {count} shuffles; {ENOUGH_SHUFFLES} are needed for this to be a check."
    elif count >= LEAST_SHUFFLES:
        sentence = f"all {count} shuffles have the same AUC, so that nothing tells how far chance would reach."
    else:
        shuffles = "1 shuffle" if count == 1 else f"{count} shuffles"
        sentence = f"only {shuffles}; {ENOUGH_SHUFFLES} are needed for this to be a check."
    return {"count": count, "mean": mean, "standard_error": error, "at_chance": at_chance, "sentence": sentence}


def require_datasets(names: Sequence[str], pooled: str) -> None:
    """Raise InputError where one of several data sets is called as their pooled reading is."""
    if len(names) > 1 and pooled in names:
        raise InputError(
            f"the test clips have a data set that is called {pooled!r}, as the reading of all data sets together is; "
            "name it otherwise in the manifest."
        )
