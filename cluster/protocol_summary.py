"""What the parts of a protocol say together, from the files of their evaluations alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.protocol_splits import CROSS, FOLDS, MANIFEST, METHOD, PROTOCOL_KEY
from cluster.runs import part_uri, read_config
from data_prep import storage
from data_prep.storage import InputError

METRICS = (
    "auc",
    "average_precision",
    "equal_error_rate",
    "accuracy",
    "accuracy_dev_threshold",
    "balanced_accuracy",
    "calibration_error",
)
"""Measures of the found network that are told of every part, as evaluation/<data set>/metrics.json names them."""
CATEGORIES = {f"auc_{category}": category for category in "BCD"}
"""Measures against the real clips A, and the category of the fakes: told where clips of it are tested."""
AVERAGED = (FOLDS, METHOD)
"""Protocols whose parts have a mean: those of others are tests of different kinds."""
_SHOWN = {"auc": "AUC", "accuracy": "accuracy"}
_VERSION = 2
_METRICS_FILE = "/metrics.json"
_NOT_EVALUATED = "it has not been evaluated; run 'stgs evaluate'"
_NO_ESTIMATE = {"value": None, "low": None, "high": None}

Estimate = dict[str, Any]


def summary(run: str) -> dict[str, Any]:
    """The found network of each part of a run, on each data set of its test clips.

    protocol: its name. parts: name -> split (its settings), datasets (name -> network, clips, subjects, METRICS and
    CATEGORIES, each an estimate {value, low, high, sentence}, and auc_by_method: forgery method -> estimate), sentence
    (why there are none, or null). over_parts: of folds and methods, data set -> measure -> {mean, deviation, count, of,
    sentence}: over the parts that have a value, `count` of the `of` parts that are planned; deviation is the standard
    deviation (n - 1) of parts, no interval; null else. methods_over_parts: data set -> forgery method -> the
    same of its AUC, of the parts that test it; null else. matrix: of cross, {datasets, cells}: train data set -> test
    data set -> {auc, accuracy, auc_B, ...}; null else.

    A run without parts has none of them. Raises InputError if there is no run, or for a damaged file.
    """
    protocol: Mapping[str, Any] = read_config(run).get(PROTOCOL_KEY) or {}
    splits: Mapping[str, Any] = protocol.get("parts", {})
    parts = {name: _part(part_uri(run, name), split) for name, split in splits.items()}
    name = protocol.get("protocol", MANIFEST)
    return {
        "protocol": name,
        "parts": parts,
        "over_parts": over_parts(parts) if name in AVERAGED else None,
        "methods_over_parts": methods_over_parts(parts) if name in AVERAGED else None,
        "matrix": _matrix(parts) if name == CROSS else None,
    }


def _part(uri: str, split: Mapping[str, Any]) -> dict[str, Any]:
    root = storage.join(uri, "evaluation")
    datasets, sentence = {}, None
    for path in sorted(storage.list(root)):
        if not path.endswith(_METRICS_FILE):
            continue
        content = _read(storage.join(root, path))
        if content.get("version") != _VERSION:
            sentence = f"{storage.join(root, path)} is of another version of this program, and left out"
        elif content["found"] is None:
            sentence = f"{storage.join(root, path)} has no found network"
        else:
            found = content["networks"][content["found"]]
            datasets[path.removesuffix(_METRICS_FILE)] = {
                "network": content["found"],
                "clips": content["clips"],
                "subjects": content["subjects"],
                **measures_of(found),
            }
    if not datasets and sentence is None:
        sentence = _NOT_EVALUATED
    return {"split": dict(split), "datasets": datasets, "sentence": sentence}


def measures_of(network: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a network of a part: METRICS and CATEGORIES, as far as it has them, and auc_by_method.

    network: what `cluster.evaluation_metrics.score_metrics` says of it.
    """
    aucs = network.get("auc_by_category", {})
    return {
        **{name: network[name] for name in METRICS if name in network},
        **{name: aucs[category] for name, category in CATEGORIES.items() if category in aucs},
        "auc_by_method": network.get("auc_by_method", {}),
    }


def _read(uri: str) -> dict[str, Any]:
    try:
        content = json.loads(storage.read(uri))
    except ValueError as error:
        raise InputError(f"{uri} is damaged ({error}); put it back from a copy of the run.") from None
    if not isinstance(content, dict):
        raise InputError(f"{uri} is damaged (no JSON object); put it back from a copy of the run.")
    return content


def over_parts(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Data set -> measure -> mean and deviation over the parts; parts, result: as in `summary`."""
    return {
        dataset: {
            name: _mean([measured.get(name) for measured in tested], planned=len(parts))
            for name in (*METRICS, *CATEGORIES)
            if name in METRICS or any(name in measured for measured in tested)
        }
        for dataset, tested in _tested(parts).items()
    }


def methods_over_parts(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Data set -> forgery method -> mean and deviation of its AUC over the parts; parts, result: as in `summary`."""
    found = {}
    for dataset, tested in _tested(parts).items():
        aucs = [measured["auc_by_method"] for measured in tested]
        methods = sorted({method for own in aucs for method in own})
        by_method = {method: [own[method] for own in aucs if method in own] for method in methods}
        found[dataset] = {method: _mean(own, planned=len(own)) for method, own in by_method.items()}
    return found


def _tested(parts: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """What was measured on each data set, in the order of the parts."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for part in parts.values():
        for dataset, measured in part["datasets"].items():
            found.setdefault(dataset, []).append(measured)
    return found


def of_several_parts(over: Mapping[str, Any] | None) -> dict[str, Any]:
    """The data sets of `over_parts`, or none of null, on which more than one part has been measured."""
    return {
        dataset: measures
        for dataset, measures in (over or {}).items()
        if max(told["count"] for told in measures.values()) > 1
    }


def _mean(estimates: Sequence[Estimate | None], *, planned: int) -> dict[str, Any]:
    """planned: the parts that are to have a value."""
    values = [estimate["value"] for estimate in estimates if estimate is not None and estimate["value"] is not None]
    sentence = None
    if not values:
        sentence = "no part has a value"
    elif len(values) == 1:
        sentence = "one part alone has no deviation"
    if values and len(values) < planned:
        lacking = f"{planned - len(values)} of {planned} parts have no value"
        sentence = lacking if sentence is None else f"{sentence}, and {lacking}"
    return {
        "mean": statistics.fmean(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "count": len(values),
        "of": planned,
        "sentence": sentence,
    }


def _matrix(parts: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, dict[str, Any]] = {}
    categories = _categories(parts)
    for part in parts.values():
        (train,) = part["split"]["train_datasets"]
        cells[train] = {
            dataset: {name: _estimate(part, dataset, name) for name in (*_SHOWN, *categories)}
            for dataset in part["split"]["test_datasets"]
        }
    return {"datasets": list(cells), "cells": cells}


def _estimate(part: Mapping[str, Any], dataset: str, name: str) -> Estimate:
    sentence = part["sentence"] or f"it was not tested on {dataset}"
    if dataset in part["datasets"] and name in CATEGORIES:
        sentence = f"the test clips of {dataset} have none of category {CATEGORIES[name]}"
    found: Estimate = part["datasets"].get(dataset, {}).get(name, {**_NO_ESTIMATE, "sentence": sentence})
    return found


def _categories(parts: Mapping[str, Any]) -> list[str]:
    """Those of CATEGORIES that some part has tested."""
    told = {name for tested in _tested(parts).values() for measured in tested for name in measured}
    return [name for name in CATEGORIES if name in told]


def summary_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One flat row for each part and data set of a `summary`: part, dataset, network, clips, subjects, and value, low
    and high of every measure; then one for the mean and one for the deviation of each data set.
    """
    names = (*METRICS, *_categories(content["parts"]))
    rows = []
    for part, facts in content["parts"].items():
        for dataset, measured in facts["datasets"].items():
            row = {"part": part, "dataset": dataset}
            row |= {key: measured[key] for key in ("network", "clips", "subjects")}
            for name in names:
                estimate = measured.get(name, _NO_ESTIMATE)
                row |= {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
            rows.append(row)
    for dataset, measures in (content["over_parts"] or {}).items():
        for statistic in ("mean", "deviation"):
            row = {"part": statistic, "dataset": dataset, "network": None, "clips": None, "subjects": None}
            for name in names:
                row |= {name: measures.get(name, {}).get(statistic), f"{name}_low": None, f"{name}_high": None}
            rows.append(row)
    return rows


def summary_text(content: Mapping[str, Any]) -> list[str]:
    """A `summary` in lines; none where the run has no parts."""
    if not content["parts"]:
        return []
    lines = [f"protocol {content['protocol']}: the found network of each of {len(content['parts'])} parts, on test"]
    for part, facts in content["parts"].items():
        for dataset, measured in facts["datasets"].items():
            told = ", ".join(f"{title} {estimate_told(measured.get(name))}" for name, title in _SHOWN.items())
            lines.append(f"  {part} on {dataset}: {told}{categories_told(measured, 'value')}")
        if facts["sentence"] is not None:
            lines.append(f"  {part}: {facts['sentence']}")
    for dataset, measures in (content["over_parts"] or {}).items():
        told = ", ".join(f"{title} {mean_told(measures[name])}" for name, title in _SHOWN.items())
        lines.append(f"  all parts on {dataset}: {told}{categories_told(measures, 'mean')}")
    if content["matrix"] is not None:
        lines += _matrix_lines(content["matrix"])
    return lines


def categories_told(measured: Mapping[str, Any], key: str) -> str:
    """The AUC of each category that was tested, without intervals, which metrics.json and the report have."""
    told = [
        f"{category} {'unknown' if measured[name][key] is None else format(measured[name][key], '.3f')}"
        for name, category in CATEGORIES.items()
        if name in measured
    ]
    return f"; AUC against A: {', '.join(told)}" if told else ""


def estimate_told(estimate: Estimate | None) -> str:
    """An estimate in a line: 0.993 [0.977, 1.000], or why it is unknown."""
    if estimate is None or estimate["value"] is None:
        return "unknown" if estimate is None or estimate["sentence"] is None else f"unknown ({estimate['sentence']})"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def mean_told(measure: Mapping[str, Any]) -> str:
    """What `over_parts` says of a measure, in a line."""
    if measure["mean"] is None:
        return f"unknown ({measure['sentence']})"
    spread = "" if measure["deviation"] is None else f", standard deviation {measure['deviation']:.3f}"
    note = "" if measure["sentence"] is None else f" ({measure['sentence']})"
    return f"{measure['mean']:.3f} on average{spread}{note}"


def _matrix_lines(matrix: Mapping[str, Any]) -> list[str]:
    names = matrix["datasets"]
    table = [["", *names]]
    for train in names:
        pairs = [matrix["cells"][train][dataset] for dataset in names]
        table.append([train, *(" / ".join(_short(pair[name]) for name in _SHOWN) for pair in pairs)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["AUC / accuracy, searched and trained on (down), tested on (across):"]
    for head, *cells in table:
        told = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  " + "  ".join([head.ljust(widths[0]), *told]))
    return lines


def _short(estimate: Estimate) -> str:
    return "-" if estimate["value"] is None else f"{estimate['value']:.3f}"
