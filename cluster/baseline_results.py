"""What the parts of a baseline run say, alone and together, from the files of the run alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cluster.baseline_names import KIND, is_shuffled_part, planned_parts
from cluster.baseline_part import FAILED_NAME, VERSION
from cluster.baseline_remarks import CHECKPOINT_NOTE, checkpoint_of, seconds_words, sequences_of, size_words
from cluster.evaluation import METRICS_NAME, MIXED
from cluster.evaluation_metrics import chance_check
from cluster.protocol_splits import MANIFEST, PROTOCOL_KEY
from cluster.protocol_summary import (
    AVERAGED,
    categories_told,
    estimate_told,
    mean_told,
    measures_of,
    methods_over_parts,
    of_several_parts,
    over_parts,
)
from cluster.runs import CONFIG_NAME, find_config, part_uri, read_config
from data_prep import storage
from data_prep.storage import InputError
from stgs.baselines import BASELINES

BASELINES_FOLDER = "baselines"
"""Folder of a run in which the baselines on its splits lie."""
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
    names = dict.fromkeys([*_planned(config), *begun])
    return {name: part_metrics(part_uri(out, name)) for name in sorted(names, key=_place)}


def _planned(config: Mapping[str, Any]) -> list[str]:
    return planned_parts((config.get(PROTOCOL_KEY) or {}).get("parts") or (), config.get("shuffles") or 0)


def _place(part: str) -> tuple[Any, ...]:
    """Where a part stands: by the numbers in its name, so that fold-10 follows fold-9."""
    pieces = re.split(r"(\d+)", part)
    return is_shuffled_part(part), [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def part_metrics(part: str) -> dict[str, Any] | None:
    """metrics.json of a part, None where it is not finished. part: its URI. Raises InputError where it is damaged."""
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

    model: its name. size: how it differs from the paper's, in words, null where it does not. max_seconds: what it saw
    of a clip at most, null where that is not known. checkpoint: what identifies the released file whose weights it
    has, null where it was trained. parts: name -> what was trained (parameters, macs, device_seconds, dev_auc,
    best_epoch, ...), datasets (name -> clips, fake, subjects, and METRICS, CATEGORIES and auc_by_method of
    `cluster.protocol_summary`, each an estimate), and sentence (why there are none, or null); those with shuffled
    labels are not among them. over_parts: data set -> measure -> {mean, deviation, count, of, sentence} over the parts,
    methods_over_parts: data set -> forgery method -> the same of its AUC; both null where no mean says anything: under
    other protocols than AVERAGED, and of a checkpoint. shuffled: {count, mean, standard_error, at_chance, sentence} of
    the AUC with shuffled labels, null where none was tried; unfinished_shuffles: how many of them have no result.

    Raises InputError as `read_parts` does.
    """
    config, found = read_config(out), _read(out)
    shuffles = [name for name, metrics in found.items() if _is_shuffled(name, metrics)]
    parts = {name: _part(part_uri(out, name), told) for name, told in found.items() if name not in shuffles}
    finished = [metrics for metrics in found.values() if metrics is not None]
    tried = [metrics for name in shuffles if (metrics := found[name]) is not None]
    checkpoint = next(filter(None, map(checkpoint_of, finished)), None)
    averaged = checkpoint is None and (config.get(PROTOCOL_KEY) or {}).get("protocol", MANIFEST) in AVERAGED
    return {
        "model": config["model"],
        "size": next((size_words(metrics["config"]) for metrics in finished), None),
        "max_seconds": sequences_of(out).max_seconds,
        "checkpoint": checkpoint,
        "parts": parts,
        "over_parts": over_parts(parts) if averaged else None,
        "methods_over_parts": methods_over_parts(parts) if averaged else None,
        "shuffled": chance_check([auc for metrics in tried if (auc := _whole_auc(metrics)) is not None]),
        "unfinished_shuffles": len(shuffles) - len(tried),
    }


def _is_shuffled(name: str, metrics: Mapping[str, Any] | None) -> bool:
    return is_shuffled_part(name) if metrics is None else metrics["shuffle_seed"] is not None


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
    lines += [f"  {words}" for words in _remarks(content)]
    for name, part in parts.items():
        lines += _part_lines(name, part)
    several = of_several_parts(content["over_parts"])
    for dataset, measures in several.items():
        lines.append(
            f"  all parts on {dataset}: AUC {mean_told(measures['auc'])}, accuracy {mean_told(measures['accuracy'])}"
            f"{categories_told(measures, 'mean')}"
        )
    if several:
        lines.append("  (standard deviation over parts, which share training clips: it is no interval)")
    lines += _shuffled_lines(content)
    return [*lines, *_published_lines(content["model"])]


def _remarks(content: Mapping[str, Any]) -> list[str]:
    """What has to be said before the figures are read."""
    told = (content["size"], seconds_words(content["max_seconds"]), CHECKPOINT_NOTE if content["checkpoint"] else None)
    return [words for words in told if words is not None]


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
    note = f"; {published.note}" if published.note else ""
    return [
        f"  published, on other data ({published.data}): AUC {published.auc:.3f}, accuracy {published.accuracy:.3f} "
        f"({published.source}{note})"
    ]
