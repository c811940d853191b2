"""Section of the report on baselines: networks of others, trained on the same clips, beside the found network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.controls import GRID
from jobs.report_backbone_cost import backbone_cost
from jobs.report_baseline_facts import BaselineFacts
from jobs.report_facts import Reading, Row, RunFacts
from jobs.report_html import Html, count, duration, fraction, plural, section, tag
from jobs.report_rows import MEASURED, against_zero, p_value_words
from jobs.report_scores import dots_figure
from jobs.report_summary import chance_words, difference_words
from jobs.report_tables import Column, DataTable, value_of
from stgs.baselines import BASELINES

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
    parts += [remarks_part(facts.baselines), published_part(facts.baselines)]
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
    return (
        f"{words} Device time: for the found network that of {found}, without its features; for a baseline that of "
        "training it. The difference is the found network's AUC less the baseline's on the clips that both scored, "
        "with a 95 % bootstrap interval over subjects and the p-value of exchanging ranks subject by subject."
    )


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
        Column(key="parameters", head="parameters", show=count),
        Column(key="macs", head="MACs a clip", show=short_count),
        Column(key="auc", head=MEASURED["auc"]),
        Column(key="difference", head="found less baseline"),
        Column(key="p_value", head="p-value", show=p_value_words),
        Column(key="clips", head="on clips", show=count),
        Column(key="accuracy", head=MEASURED["accuracy"]),
        Column(key="accuracy_dev_threshold", head=MEASURED["accuracy_dev_threshold"]),
        Column(key="equal_error_rate", head=MEASURED["equal_error_rate"]),
        Column(key="dev_auc", head="dev AUC", show=fraction),
        Column(key="seconds", head="device time", show=duration),
    )
    rows = [row for reading in facts.tested for row in _rows(facts, reading)]
    return DataTable("baselines", columns, rows)


def one_line(text: object) -> Html:
    """A text that is not broken."""
    return tag("span", text, style="white-space:nowrap")


def short_count(value: float) -> str:
    """A large number in three digits, such as 21.4 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return count(value)


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
                "seconds": metrics["device_seconds"],
            }
        )
    return rows


def _chart(facts: RunFacts, reading: Reading) -> Html | None:
    measured = {FOUND: reading.networks[reading.found]["auc"]}
    for baseline in facts.baselines:
        for part in baseline.shown:
            told = baseline.parts[part]["datasets"].get(reading.dataset)
            if told is not None:
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


def list_of(lines: Sequence[tuple[str, str]]) -> Html:
    """Names and what is said of them, a sentence that holds for several once."""
    together: dict[str, list[str]] = {}
    for name, words in lines:
        together.setdefault(words, []).append(name)
    return tag("ul", [tag("li", f"{'; '.join(names)}: {words}") for words, names in together.items()])


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


def remarks_part(baselines: Sequence[BaselineFacts]) -> Html:
    """What a reader has to know of baselines, under its heading."""
    lines = [line for baseline in baselines for line in remarks(baseline)]
    return tag("div", tag("h3", "What is to be said of them"), list_of(lines))


def remarks(baseline: BaselineFacts) -> list[tuple[str, str]]:
    """What a reader has to know of a baseline, each time with its name: what is missing, where its weights come from,
    and its controls.
    """
    wanted, content = baseline.run_part, baseline.content
    lines = []
    if wanted is not None and not baseline.shown and wanted not in content["parts"]:
        lines.append(f"it has no part {wanted} and no other one of the same splits.")
    for part, told in content["parts"].items():
        if told["sentence"] is not None and wanted in (None, part):
            lines.append(f"part {part} has no result: {told['sentence']}.")
    lines += weights_words([baseline.parts[part] for part in baseline.shown])
    lines.append(shuffled_words(content))
    return [(baseline.name, line) for line in lines]


def weights_words(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the weights of some parts come from, where that is not chance; each sentence once."""
    lines = []
    for metrics in parts:
        weights = metrics.get("weights") or {}
        if weights.get("checkpoint"):
            lines.append(f"its weights are those of the checkpoint {_file(weights['checkpoint'])}, not trained here.")
        elif isinstance(weights.get("initial"), Mapping):
            lines.append(f"its training began with the weights of {_file(weights['initial'])}.")
    return list(dict.fromkeys(lines))


def _file(weights: Mapping[str, Any]) -> str:
    counts = [
        f"{len(weights[key])} {words}"
        for key, words in _LOADED.items()
        if isinstance(weights.get(key), list) and weights[key]
    ]
    return f"{weights.get('file')} ({', '.join(counts)})" if counts else str(weights.get("file"))


_LOADED = {"missing": "arrays missing", "left_over": "left over", "adapted": "adapted"}


def shuffled_words(content: Mapping[str, Any]) -> str:
    """What the shuffled labels of a baseline say. content: its summary."""
    shuffled, unfinished = content["shuffled"], content["unfinished_shuffles"]
    if shuffled is None and not unfinished:
        return "shuffled labels were not tried."
    words = []
    if shuffled is not None:
        told = chance_words(shuffled)
        words.append(f"{told[0].lower()}{told[1:]} Their mean test AUC is {fraction(shuffled['mean'])}.")
    if unfinished:
        words.append(f"{plural(unfinished, 'training')} with shuffled labels without a result.")
    return " ".join(words)


def published_table(models: Sequence[str]) -> DataTable:
    """What the authors of some models report, on data of their own."""
    columns = (
        Column(key="model", head="model", text=True),
        Column(key="source", head="published in", text=True),
        Column(key="data", head="on other data", text=True),
        Column(key="auc", head="AUC", show=lambda value: fraction(value, 4)),
        Column(key="accuracy", head="accuracy", show=lambda value: fraction(value, 4)),
    )
    known = {model: BASELINES[model].published for model in dict.fromkeys(models) if model in BASELINES}
    rows = [
        {"model": model, "source": told.source, "data": told.data, "auc": told.auc, "accuracy": told.accuracy}
        for model, told in known.items()
        if told is not None
    ]
    return DataTable("published_baselines", columns, rows)


def run_published_table(facts: RunFacts) -> DataTable:
    """What the authors of the run's baselines report."""
    return published_table([baseline.model for baseline in facts.baselines])


def published_part(baselines: Sequence[BaselineFacts]) -> Html | None:
    """The published figures under their own heading; None where there are none."""
    data = published_table([baseline.model for baseline in baselines])
    return published_html(data) if data.rows else None


def published_html(data: DataTable) -> Html:
    """A `published_table` under its heading."""
    note = (
        "Published, on other data: with its authors' clips, folds and machines. These figures are context, and never "
        "in one ranking with those above."
    )
    return tag("div", tag("h3", "Published figures"), tag("p", note, class_="soft"), data.html(sortable=False))
