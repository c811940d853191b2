"""What the parts of a baseline run say, alone and together, and how a baseline compares with a found network.

Reads the files of the runs alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.baseline_part import FAILED_NAME, KIND, VERSION
from cluster.evaluation import METRICS_NAME, MIXED, SCORES_NAME, read_scores
from cluster.evaluation_metrics import TestClips, auc_of, chance_check, difference
from cluster.protocol_splits import PROTOCOL_KEY
from cluster.protocol_summary import (
    categories_told,
    estimate_told,
    mean_told,
    measures_of,
    methods_over_parts,
    over_parts,
)
from cluster.runs import CONFIG_NAME, find_config, part_uri, read_config
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.baselines import BASELINES
from stgs.resampling import Estimate

BASELINES_FOLDER = "baselines"
"""Folder of a run in which the baselines on its splits lie."""
WHOLE = "all"
"""The part of a baseline run whose clips are split as their manifest says."""
_SHUFFLE = "shuffle-"
_PART_FILE = re.compile(r"([^/]+)/.+")
_UNFINISHED = "it is not finished; go on with --resume"
_FACTS = (
    "shuffle_seed",
    "parameters",
    "macs",
    "frames_of_macs",
    "device",
    "device_seconds",
    "workers",
    "dev_auc",
    "best_epoch",
    "epochs",
    "threshold",
)
_COUNTS = ("clips", "fake", "subjects")


def is_baseline(uri: str) -> bool:
    """Whether a run is one of `stgs baseline`."""
    return (find_config(uri) or {}).get("kind") == KIND


def baselines_of(run: str) -> list[str]:
    """URIs of the baseline runs in a run's folder for them, by name."""
    root = storage.join(run, BASELINES_FOLDER)
    found = sorted(path.rpartition("/")[0] for path in storage.list(root) if path.endswith(f"/{CONFIG_NAME}"))
    # A name is one folder: what lies deeper belongs to a baseline.
    return [storage.join(root, name) for name in found if "/" not in name]


def read_parts(out: str) -> dict[str, dict[str, Any]]:
    """Part -> metrics.json of the finished parts of a baseline run, those with shuffled labels last.

    Raises InputError where there is no such run, or a file is damaged or of another version.
    """
    return {name: metrics for name, metrics in _read(out).items() if metrics is not None}


def _read(out: str) -> dict[str, dict[str, Any] | None]:
    """Every part that is planned or begun; None of those that have not finished."""
    config = read_config(out)
    if config.get("kind") != KIND:
        raise InputError(f"{out} is no run of a baseline, but of a search; give the --out of 'stgs baseline'.")
    root = storage.join(out, "parts")
    begun = [match[1] for path in storage.list(root) if (match := _PART_FILE.fullmatch(path))]
    names = dict.fromkeys([*planned_parts(config), *begun])
    return {name: _metrics(part_uri(out, name)) for name in sorted(names, key=_place)}


def planned_parts(config: Mapping[str, Any]) -> list[str]:
    """The parts that a baseline run is to have, those with shuffled labels last. config: of its config.yaml."""
    parts = (config.get(PROTOCOL_KEY) or {}).get("parts") or (WHOLE,)
    return [*parts, *(f"{_SHUFFLE}{seed}" for seed in range(config.get("shuffles") or 0))]


def _place(part: str) -> tuple[Any, ...]:
    """Where a part stands: by the numbers in its name, so that fold-10 follows fold-9."""
    pieces = re.split(r"(\d+)", part)
    return part.startswith(_SHUFFLE), [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def _metrics(part: str) -> dict[str, Any] | None:
    """metrics.json of a part, None where it is not finished."""
    uri = storage.join(part, METRICS_NAME)
    try:
        content = json.loads(storage.read(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{uri} is damaged ({error}); put it back from a copy of the run.") from None
    if not isinstance(content, dict) or (content.get("kind"), content.get("version")) != (KIND, VERSION):
        raise InputError(f"{uri} is no metrics of a baseline of version {VERSION}; put it back, or train it again.")
    return content


def summary(out: str) -> dict[str, Any]:
    """The parts of a baseline run, alone and together.

    model: its name. parts: name -> what was trained (parameters, macs, device_seconds, dev_auc, best_epoch, ...),
    datasets (name -> clips, fake, subjects, and METRICS, CATEGORIES and auc_by_method of `cluster.protocol_summary`,
    each an estimate), and sentence (why there are none, or null); those with shuffled labels are not among them.
    over_parts: data set -> measure -> {mean, deviation, count, of, sentence} over the parts, methods_over_parts: data
    set -> forgery method -> the same of its AUC. shuffled: {count, mean, standard_error, at_chance, sentence} of the
    AUC with shuffled labels, null where none was tried; unfinished_shuffles: how many of them have no result.

    Raises InputError as `read_parts` does.
    """
    found = _read(out)
    shuffles = [name for name, metrics in found.items() if _is_shuffled(name, metrics)]
    parts = {name: _part(part_uri(out, name), told) for name, told in found.items() if name not in shuffles}
    tried = [metrics for name in shuffles if (metrics := found[name]) is not None]
    return {
        "model": read_config(out)["model"],
        "parts": parts,
        "over_parts": over_parts(parts),
        "methods_over_parts": methods_over_parts(parts),
        "shuffled": chance_check([auc for metrics in tried if (auc := _whole_auc(metrics)) is not None]),
        "unfinished_shuffles": len(shuffles) - len(tried),
    }


def _is_shuffled(name: str, metrics: Mapping[str, Any] | None) -> bool:
    return name.startswith(_SHUFFLE) if metrics is None else metrics["shuffle_seed"] is not None


def _whole_auc(metrics: Mapping[str, Any]) -> float | None:
    """AUC on all test clips together."""
    datasets = metrics["datasets"]
    whole = datasets.get(MIXED) or next(iter(datasets.values()), None)
    return None if whole is None else whole["network"]["auc"]["value"]


def _part(uri: str, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    if metrics is None:
        return {**dict.fromkeys(_FACTS), "datasets": {}, "sentence": _why_missing(uri)}
    datasets = {
        name: {**{key: told[key] for key in _COUNTS}, **measures_of(told["network"])}
        for name, told in metrics["datasets"].items()
    }
    return {**{key: metrics.get(key) for key in _FACTS}, "datasets": datasets, "sentence": None}


def _why_missing(part: str) -> str:
    try:
        reason = str(json.loads(storage.read(storage.join(part, FAILED_NAME)))["reason"]).strip()
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # it did not fail, or a damaged file says nothing
        return _UNFINISHED
    return f"it failed: {(reason.splitlines() or ['no reason was given'])[-1]}"


def summary_text(out: str) -> list[str]:
    """A `summary` in lines, as `stgs baseline` prints it."""
    content = summary(out)
    parts = content["parts"]
    lines = [f"baseline {content['model']}{_size_told(parts)}; {_parts_told(len(parts))}, on test"]
    for name, part in parts.items():
        lines += _part_lines(name, part)
    several = [name for name, measures in content["over_parts"].items() if measures["auc"]["of"] > 1]
    for dataset in several:
        measures = content["over_parts"][dataset]
        lines.append(
            f"  all parts on {dataset}: AUC {mean_told(measures['auc'])}, accuracy {mean_told(measures['accuracy'])}"
            f"{categories_told(measures, 'mean')}"
        )
    if several:
        lines.append("  (standard deviation over parts, which share training clips: it is no interval)")
    lines += _shuffled_lines(content)
    return [*lines, *_published_lines(content["model"])]


def _parts_told(number: int) -> str:
    return "1 part" if number == 1 else f"{number} parts"


def _size_told(parts: Mapping[str, Mapping[str, Any]]) -> str:
    told = next((part for part in parts.values() if part["parameters"] is not None), None)
    if told is None:
        return ""
    return f": {told['parameters']:,} parameters, {told['macs']:,} MACs for a clip of {told['frames_of_macs']} frames"


def _part_lines(name: str, part: Mapping[str, Any]) -> list[str]:
    if part["sentence"] is not None:
        return [f"  {name}: {part['sentence']}"]
    trained = f"best epoch {part['best_epoch']} of {part['epochs']}" if part["epochs"] else "not trained here"
    dev = "" if part["dev_auc"] is None else f", dev AUC {part['dev_auc']:.3f}"
    return [
        f"  {name} on {dataset}: AUC {estimate_told(measured.get('auc'))}, accuracy "
        f"{estimate_told(measured.get('accuracy'))}{categories_told(measured, 'value')}; {trained}{dev}"
        for dataset, measured in part["datasets"].items()
    ]


def _shuffled_lines(content: Mapping[str, Any]) -> list[str]:
    shuffled, unfinished = content["shuffled"], content["unfinished_shuffles"]
    lines = []
    if shuffled is not None:
        verdict = {True: "at chance", False: "NOT at chance", None: "no verdict"}[shuffled["at_chance"]]
        note = "" if shuffled["sentence"] is None else f" ({shuffled['sentence'].rstrip('.')})"
        lines.append(f"  shuffled labels: mean AUC {shuffled['mean']:.3f} of {shuffled['count']}, {verdict}{note}")
    if unfinished:
        lines.append(f"  shuffled labels: {unfinished} without a result; go on with --resume")
    return lines


def _published_lines(model: str) -> list[str]:
    """What was published of a model; none of one that this program does not know (any more)."""
    published = BASELINES[model].published if model in BASELINES else None
    if published is None:
        return []
    return [
        f"  published, on other data ({published.data}): AUC {published.auc:.3f}, accuracy {published.accuracy:.3f} "
        f"({published.source})"
    ]


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
    facts = _metrics(baseline_part) or {}
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
    expected = ((_metrics(part) or {}).get("digests") or {}).get("scores")
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
    if (facts.get("weights") or {}).get("checkpoint"):
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
    if _other_splits(ours, facts):
        notes.append("it was trained on other splits than this run")
    if len(set(counts.values())) > 1:
        notes.append(
            f"this run scored {counts['clips_found']:,} test clips and the baseline {counts['clips_baseline']:,}, of "
            f"which {counts['clips'] or 'none'} are the same"
        )
    return notes
