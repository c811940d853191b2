"""Section of the report on baselines: networks of others, trained on the same clips, beside the found network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.baseline_remarks import checkpoint_of
from cluster.controls import GRID
from jobs.report_backbone_cost import backbone_cost
from jobs.report_baseline_facts import BaselineFacts
from jobs.report_baseline_remarks import list_of, remarks_part, short_count, shortcuts_part
from jobs.report_facts import Reading, Row, RunFacts
from jobs.report_html import Html, count, duration, fraction, plural, section, tag
from jobs.report_published import published_part, published_table
from jobs.report_rows import MEASURED, against_zero
from jobs.report_scores import dots_figure
from jobs.report_tables import Column, DataTable, value_of
from jobs.report_verdicts import difference_words

FOUND, BACKBONES, BASELINE = "found network", "backbones", "baseline"
SHOWN_MEASURES = ("auc", "accuracy", "accuracy_dev_threshold", "equal_error_rate")
OVER_PARTS_NOTE = "± is the standard deviation over parts, which share training clips: it is no interval."


def baselines_section(facts: RunFacts) -> Html:
    """The found network and every baseline, once a data set; then what is to be said of each baseline in words."""
    if not facts.baselines:
        words = (
            f"No baseline lies in this run. 'stgs baseline SEQUENCES --run {facts.whole}' trains one on the same "
            "splits; --baselines DIR shows one that lies elsewhere."
        )
        return section("baselines", "Baselines", tag("p", words))
    parts: list[object] = [tag("p", _note(facts), class_="soft")]
    data = baselines_table(facts)
    for reading in facts.tested:
        if len(facts.tested) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        shown = without_sentences(data.where(dataset=reading.dataset))
        if any(row["kind"] == BASELINE for row in shown.rows):
            parts += [shown.html(), list_of(_comparisons(facts, reading)), _chart(facts, reading)]
        else:
            parts.append(tag("p", f"No baseline has been tested on clips of {reading.dataset} yet."))
    if not facts.tested:
        parts.append(tag("p", _NOT_TESTED))
    parts += [remarks_part(facts.baselines), shortcuts_part(facts.baselines), published_part(facts.baselines)]
    return section("baselines", "Baselines", parts)


_NOT_TESTED = (
    "The found network has not been evaluated, so that there is nothing to compare: run 'stgs evaluate'. Each baseline "
    "has a page of its own: stgs report BASELINE."
)


def _note(facts: RunFacts) -> str:
    words = (
        "Networks of others, trained on this run's splits unless it is said otherwise. MACs (multiply-accumulates) of "
        f"a baseline are those of the whole network for a clip of {frames_words(facts.baselines)}; those of the found "
        "network are of the fusion network alone, which reads what its backbones make of a clip"
    )
    words += ": these have a row of their own." if backbone_cost(facts.provenance) else ", whose size no file names."
    searched = plural(len(facts.main.rows), "searched point")
    found = f"the search ({searched}) and training" if facts.searched else "training"
    words += f" {seen_words(facts)}"
    return (
        f"{words} Device time: for the found network that of {found}, without its features; for a baseline that of "
        "training it. The difference is the found network's AUC less the baseline's on the clips that both scored, "
        "with a 95 % bootstrap interval over subjects and the p-value of exchanging ranks subject by subject."
    )


def seen_words(facts: RunFacts) -> str:
    """What of a clip the found network and the baselines see."""
    window = facts.provenance.get("corpus", {}).get("window_s")
    seconds = {baseline.content["max_seconds"] for baseline in facts.baselines}
    most = " or ".join(f"{value:g}\u00a0s" for value in sorted(value for value in seconds if value is not None))
    ours = "one window of a clip" + (f" ({window:g}\u00a0s)" if window else "")
    limit = f"up to {most}{', as far as that is known' if None in seconds else ''}" if most else "up to some limit"
    return f"The found network sees {ours}, a baseline the whole clip, {limit}: it also meets the clip's length."


def baselines_table(facts: RunFacts) -> DataTable:
    """The found network, its backbones, and every baseline, once a data set of the run's test clips."""
    columns = (
        Column(key="dataset", text=True),
        Column(key="kind", text=True),
        Column(key="name", head="network", text=True, show=one_line),
        Column(key="model", text=True),
        Column(key="part", text=True),
        Column(key="macs_of", text=True),
        Column(key="device", text=True),
        Column(key="auc", head=MEASURED["auc"]),
        Column(key="difference", head="found less baseline"),
        Column(key="parameters", head="parameters", show=count),
        Column(key="macs", head="MACs a clip", show=short_count),
        Column(key="seconds", head="device time", show=duration),
        Column(key="accuracy", head=MEASURED["accuracy"]),
        Column(key="accuracy_dev_threshold", head=MEASURED["accuracy_dev_threshold"]),
        Column(key="equal_error_rate", head=MEASURED["equal_error_rate"]),
        Column(key="dev_auc", head="dev AUC", show=fraction),
        *(Column(key=key) for key in ("p_value", "clips", "checkpoint")),
    )
    rows = [row for reading in facts.tested for row in _rows(facts, reading)]
    return DataTable("baselines", columns, rows)


def one_line(text: object) -> Html:
    """A text that is not broken."""
    return tag("span", text, style="white-space:nowrap")


def frames_words(baselines: Sequence[BaselineFacts]) -> str:
    """The length of the clips whose MACs were counted, e.g. 75 frames."""
    lengths = {metrics["frames_of_macs"] for baseline in baselines for metrics in baseline.parts.values()}
    return f"{' or '.join(map(str, sorted(lengths))) or 'so many'} frames"


def without_sentences(data: DataTable) -> DataTable:
    """The table without what is said of the differences, where that stands below it in words."""
    rows = [
        {**row, "difference": {**row["difference"], "sentence": None}} if row.get("difference") else row
        for row in data.rows
    ]
    return DataTable(data.name, data.columns, rows)


def _rows(facts: RunFacts, reading: Reading) -> list[Row]:
    found = reading.networks[reading.found]
    common = {"dataset": reading.dataset}
    rows: list[Row] = [
        {
            **common,
            "kind": FOUND,
            "name": FOUND,
            "part": None,
            "macs_of": "fusion network alone",
            **{key: found.get(key) for key in (*SHOWN_MEASURES, "parameters", "macs", "dev_auc")},
            "seconds": found_seconds(facts),
            "device": facts.main.grid.settings.device,
        }
    ]
    cost = backbone_cost(facts.provenance)
    if cost is not None:
        rows.append(
            {
                **common,
                "kind": BACKBONES,
                "name": f"its backbones ({cost.names})",
                "macs_of": "both backbones",
                "parameters": cost.parameters,
                "macs": cost.macs,
            }
        )
    for baseline in facts.baselines:
        rows += [{**common, **row} for row in baseline_rows(baseline, str(reading.dataset))]
    return rows


def found_seconds(facts: RunFacts) -> float:
    """Device time of finding the found network: the search, and the training of the grid's networks."""
    return (facts.main.device_seconds if facts.searched else 0.0) + facts.training_seconds().get(GRID, 0.0)


def baseline_rows(baseline: BaselineFacts, dataset: str) -> list[Row]:
    """A row for each of its parts that are shown and were tested on a data set."""
    rows = []
    for part in baseline.shown:
        metrics, compared = baseline.parts[part], baseline.comparisons[part].get(dataset)
        if compared is None:
            continue
        name, difference = baseline.part_name(part), compared["difference"]
        rows.append(
            {
                "kind": BASELINE,
                "name": name,
                "model": metrics["model"],
                "part": part,
                "macs_of": f"whole network, {metrics['frames_of_macs']} frames",
                **{key: metrics["datasets"][dataset]["network"].get(key) for key in SHOWN_MEASURES},
                "difference": difference,
                "p_value": difference.get("p_value"),
                "clips": compared["clips"],
                **{key: metrics[key] for key in ("parameters", "macs", "dev_auc", "device")},
                "checkpoint": checkpoint_of(metrics) is not None,
                "seconds": metrics["device_seconds"],
            }
        )
    return rows


def _chart(facts: RunFacts, reading: Reading) -> Html | None:
    measured = {FOUND: reading.networks[reading.found]["auc"]}
    for baseline in facts.baselines:
        for part in baseline.shown:
            told = baseline.parts[part]["datasets"].get(reading.dataset)
            # What a checkpoint was trained on is not known, so that its AUC is not shown among the others.
            if told is not None and checkpoint_of(baseline.parts[part]) is None:
                measured[baseline.part_name(part)] = told["network"]["auc"]
    chart = dots_figure(measured, f"AUC on test ({reading.dataset}) of the found network and of baselines")
    return None if chart is None else tag("div", chart, style="max-width:600px")


def _comparisons(facts: RunFacts, reading: Reading) -> list[tuple[str, str]]:
    """Each baseline against the found network: its name, and a sentence."""
    lines = []
    for baseline in facts.baselines:
        for part in baseline.shown:
            compared = baseline.comparisons[part].get(str(reading.dataset))
            words = f"it was not tested on clips of {reading.dataset}."
            lines.append((baseline.part_name(part), words if compared is None else comparison_words(compared)))
    return lines


def comparison_words(compared: Mapping[str, Any]) -> str:
    """What `cluster.baseline_results.compare` says, in words."""
    difference = compared["difference"]
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in compared["sentences"])
    if value_of(difference) is None:
        why = (difference["sentence"] or "nothing was measured").rstrip(".")
        return f"there is no difference to tell, since {why}.{notes}"
    where = against_zero(difference)
    words = (
        f"found less baseline {difference_words(difference)} on {plural(compared['clips'], 'clip')} that both scored"
    )
    return f"{words}{f': the interval {where}' if where else ''}.{notes}"


def run_published_table(facts: RunFacts) -> DataTable:
    """What the authors of the run's baselines report."""
    return published_table([baseline.model for baseline in facts.baselines])
