"""Baselines on the page of a run that a protocol split: beside the found networks, part by part and over all parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import fsum
from statistics import fmean, stdev
from typing import Any

from jobs.report_baseline_facts import BaselineFacts
from jobs.report_baseline_remarks import list_of, remarks_part, short_count, shortcuts_part
from jobs.report_baselines import (
    FOUND,
    OVER_PARTS_NOTE,
    SHOWN_MEASURES,
    baseline_rows,
    comparison_words,
    found_seconds,
    one_line,
    seen_words,
    without_sentences,
)
from jobs.report_facts import Row, RunFacts
from jobs.report_html import Html, count, duration, fold, fraction, section, tag
from jobs.report_published import published_part, published_table
from jobs.report_rows import MEASURED
from jobs.report_tables import Column, DataTable, value_of


def parts_baselines_table(parts: Mapping[str, RunFacts]) -> DataTable:
    """The found network of each part and the same part of every baseline, once a data set of its test clips."""
    columns = (
        Column(key="part", head="part", text=True),
        Column(key="dataset", head="tested on", text=True),
        Column(key="kind", text=True),
        Column(key="name", head="network", text=True, show=one_line),
        Column(key="model", text=True),
        Column(key="auc", head=MEASURED["auc"]),
        Column(key="difference", head="found less baseline"),
        Column(key="parameters", head="parameters", show=count),
        Column(key="macs", head="MACs a clip", show=short_count),
        Column(key="seconds", head="device time", show=duration),
        *(Column(key=key, head=MEASURED[key]) for key in SHOWN_MEASURES if key != "auc"),
        Column(key="dev_auc", head="dev AUC", show=fraction),
        *(Column(key=key) for key in ("p_value", "clips", "checkpoint")),
    )
    rows: list[Row] = []
    for name, part in parts.items():
        for reading in part.tested:
            place = {"part": name, "dataset": reading.dataset}
            beside = [row for one in part.baselines for row in baseline_rows(one, str(reading.dataset))]
            if not beside:
                continue
            found = reading.networks[reading.found]
            facts = {key: found.get(key) for key in (*SHOWN_MEASURES, "parameters", "macs", "dev_auc")}
            seconds = found_seconds(part)
            rows.append({**place, "kind": FOUND, "name": FOUND, **facts, "seconds": seconds})
            rows += [{**row, **place} for row in beside]
    return DataTable("baselines", columns, rows)


def over_parts_baselines_table(parts: Mapping[str, RunFacts]) -> DataTable:
    """Mean and standard deviation over the parts that a baseline has been tested on, once a data set; none of a
    checkpoint, which may have been trained on test clips of some parts.
    """
    columns = (
        Column(key="dataset", head="tested on", text=True),
        Column(key="name", head="network", text=True, show=one_line),
        *_mean_columns("auc", "AUC"),
        *_mean_columns("difference", "found less baseline", show=_signed),
        Column(key="parameters", head="parameters", show=short_count),
        Column(key="macs", head="MACs", show=short_count),
        Column(key="seconds", head="device time", show=duration),
        Column(key="count", head="parts"),
        Column(key="differences", head="compared"),
        *_mean_columns("accuracy", "accuracy at 0.5"),
        *_mean_columns("accuracy_dev_threshold", "at dev threshold"),
        *_mean_columns("equal_error_rate", "EER"),
    )
    together: dict[tuple[Any, ...], list[Row]] = {}
    for row in parts_baselines_table(parts).rows:
        if not row.get("checkpoint"):
            together.setdefault((row["dataset"], row["name"]), []).append(row)
    rows = []
    for (dataset, name), own in together.items():
        row = {"dataset": dataset, "name": name, "count": len(own)}
        for key in ("parameters", "macs"):  # found networks differ from part to part
            row[key] = fmean(one[key] for one in own)
        if all(one["seconds"] is not None for one in own):
            row["seconds"] = fsum(one["seconds"] for one in own)
        for key in (*SHOWN_MEASURES, "difference"):
            values = [value for one in own if (value := value_of(one.get(key))) is not None]
            row[f"{key}_mean"] = fmean(values) if values else None
            row[f"{key}_deviation"] = stdev(values) if len(values) > 1 else None
            if key == "difference" and name != FOUND:
                row["differences"] = len(values)
        rows.append(row)
    return DataTable("baselines_over_parts", columns, rows)


def _mean_columns(key: str, head: str, show: Callable[[float], str] = fraction) -> tuple[Column, Column]:
    mean = Column(key=f"{key}_mean", head=head, show=show)
    return mean, Column(key=f"{key}_deviation", head="±", show=fraction)


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def parts_published_table(parts: Mapping[str, RunFacts]) -> DataTable:
    """What the authors of the baselines report."""
    return published_table([one.model for part in parts.values() for one in part.baselines])


def parts_baselines_section(parts: Mapping[str, RunFacts], *, averaged: bool) -> Html | None:
    """Baselines beside the found networks; None where there are none. averaged: whether a mean over parts says much."""
    baselines = {one.uri: one for part in parts.values() for one in part.baselines}
    if not baselines:
        return None
    seen = seen_words(next(part for part in parts.values() if part.baselines))
    shown: list[object] = [tag("p", f"{_NOTE} {seen}", class_="soft")]
    over = over_parts_baselines_table(parts)
    if averaged and over.rows:
        shown += [tag("h3", "Mean and standard deviation over the parts"), over.html()]
    table = parts_baselines_table(parts)
    if table.rows:
        shown += [tag("h3", "Part by part"), without_sentences(table).html()]
        shown.append(fold("Each difference in words", list_of(_in_words(parts))))
    else:
        shown.append(tag("p", "There is nothing to compare yet: no part of them has been tested on both sides."))
    whole = _as_whole(baselines.values(), parts)
    shown += [remarks_part(whole), shortcuts_part(whole), published_part(whole)]
    return section("baselines", "Baselines", shown)


_NOTE = (
    "Networks of others, trained on the same parts unless it is said otherwise. The difference is the found network's "
    "AUC less the baseline's on the clips that both scored, with a 95 % bootstrap interval over subjects and the "
    f"p-value of exchanging ranks subject by subject. {OVER_PARTS_NOTE} Parameters and MACs of found networks, which "
    "differ from part to part, are means, of the fusion network alone; device time is that of all parts."
)


def _as_whole(baselines: Iterable[BaselineFacts], parts: Mapping[str, RunFacts]) -> list[BaselineFacts]:
    """Each baseline as it stands beside the whole run: with every part that is shown somewhere."""
    whole = []
    for baseline in baselines:
        shown = [
            name for part in parts.values() for one in part.baselines if one.uri == baseline.uri for name in one.shown
        ]
        whole.append(replace(baseline, run_part=None, shown=list(dict.fromkeys(shown)), comparisons={}))
    return whole


def _in_words(parts: Mapping[str, RunFacts]) -> list[tuple[str, str]]:
    return [
        (f"{name} on {dataset}, {baseline.part_name(shown)}", comparison_words(compared))
        for name, part in parts.items()
        for baseline in part.baselines
        for shown in baseline.shown
        for dataset, compared in baseline.comparisons[shown].items()
    ]
