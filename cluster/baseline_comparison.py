"""A baseline beside a found network, on the test clips that both scored, from the files of the two runs alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.baseline_names import WHOLE
from cluster.baseline_remarks import checkpoint_of
from cluster.baseline_results import part_metrics
from cluster.evaluation import METRICS_NAME, MIXED, SCORES_NAME, read_scores
from cluster.evaluation_metrics import TestClips, auc_of, difference
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.resampling import Estimate


def matching_part(parts: Mapping[str, Mapping[str, Any]], run_part: str | None, splits: str | None) -> str | None:
    """The part of a baseline run that belongs to a run, or to a part of one: that of the same splits, else that of the
    same name; None where there is none.

    parts: of `read_parts`. run_part: name of the run's part, None if it has none. splits: the run's split_digest.
    """
    real = {name: metrics for name, metrics in parts.items() if metrics["shuffle_seed"] is None}
    same = [name for name, metrics in real.items() if metrics["digests"]["splits"] == splits]
    named = [name for name in real if name == (run_part or WHOLE)]
    return next(iter([*same, *named]), None)


def compare(run_part: str, dataset: str, baseline_part: str) -> dict[str, Any]:
    """The found network beside a baseline on the test clips that both scored.

    run_part: URI of an evaluated run, or of a part of one. dataset: of its test clips, or `mixed`. baseline_part: URI
    of a finished part of a baseline run. Draws of the bootstrap are those of the run's evaluation.

    Returns clips (that both scored), clips_found, clips_baseline, auc_found, auc_baseline (estimates on these clips),
    difference (found less baseline, an estimate with p_value) and sentences (what differs between the two, in words).
    There is no difference, but a sentence in it, where the baseline's training may have seen the run's test clips.

    Raises InputError where scores are missing, or are not those that the metrics were made of.
    """
    ours = json.loads(storage.read(storage.join(run_part, "evaluation", dataset, METRICS_NAME)))
    found = ours["found"]
    mine, theirs = read_scores(run_part, dataset), _baseline_scores(baseline_part, dataset)
    facts = part_metrics(baseline_part) or {}
    places = {clip: index for index, clip in enumerate(theirs["clip_id"].to_pylist())}
    clips = mine["clip_id"].to_pylist()
    kept = [index for index, clip in enumerate(clips) if clip in places]
    where = [places[clips[index]] for index in kept]
    common, other = mine.take(pa.array(kept, pa.int64())), theirs.take(pa.array(where, pa.int64()))
    counts = {"clips": len(kept), "clips_found": len(clips), "clips_baseline": len(places)}
    reason, notes = _refusal(ours, facts, counts), _notes(ours, facts, counts)
    if reason is None and kept and not _same(common["label"], other["label"]):
        reason = "the two runs do not label the clips alike."
    if not kept:
        nothing = Estimate(None, sentence="the two runs have no test clip in common.").to_dict()
        return {
            **counts,
            "auc_found": nothing,
            "auc_baseline": nothing,
            "difference": {**nothing, "p_value": None},
            "sentences": notes,
        }
    test = TestClips.of(common, **ours["bootstrap"])
    first, second = (column.to_numpy().astype(np.float64) for column in (common[found], other["score"]))
    if reason is None:
        told = difference(first, second, test, seed=ours["bootstrap"]["seed"])
    else:
        told = {**Estimate(None, sentence=reason).to_dict(), "p_value": None}
    aucs = {"auc_found": auc_of(first, test), "auc_baseline": auc_of(second, test)}
    return {**counts, **aucs, "difference": told, "sentences": notes}


def _baseline_scores(part: str, dataset: str) -> pa.Table:
    uri = storage.join(part, SCORES_NAME)
    expected = ((part_metrics(part) or {}).get("digests") or {}).get("scores")
    try:
        data = storage.read(uri)
    except FileNotFoundError:
        data = None
    if data is None or hashlib.sha256(data).hexdigest() != expected:
        what = "is missing, although" if data is None else "is another file than"
        raise InputError(
            f"{uri} {what} the metrics that were made of it are there; put it back from a copy of the run."
        )
    table = boxes.read_table(uri)
    return table if dataset == MIXED else table.filter(pc.equal(table["dataset"], dataset))


def _same(ours: Any, theirs: Any) -> bool:
    return bool(ours.to_pylist() == theirs.to_pylist())


def _refusal(ours: Mapping[str, Any], facts: Mapping[str, Any], counts: Mapping[str, int]) -> str | None:
    """Why the two must not be compared, None where they may be."""
    if checkpoint_of(facts):
        return (
            "the baseline's weights are those of a checkpoint, whose training clips no file names: these test clips "
            "may be among them."
        )
    unseen = counts["clips_found"] - counts["clips"]
    if _other_splits(ours, facts) and unseen:
        return (
            f"{unseen:,} of this run's {counts['clips_found']:,} test clips are none of the baseline's: with other "
            "splits it may have been trained on them."
        )
    return None


def _other_splits(ours: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return bool(ours["digests"]["splits"] != facts["digests"]["splits"])


def _notes(ours: Mapping[str, Any], facts: Mapping[str, Any], counts: Mapping[str, int]) -> Sequence[str]:
    notes = []
    if _other_splits(ours, facts) and not checkpoint_of(facts):
        notes.append("it was trained on other splits than this run")
    if len(set(counts.values())) > 1:
        notes.append(
            f"this run scored {counts['clips_found']:,} test clips and the baseline {counts['clips_baseline']:,}, of "
            f"which {counts['clips'] or 'none'} are the same"
        )
    return notes
