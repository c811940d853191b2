"""Section of the report on damaged clips: AUC against severity, and one stream missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jobs.report_charts import Axis, Series, fitted_axis, line_chart
from jobs.report_facts import Reading, RunFacts
from jobs.report_html import Html, fold, plural, section, tag
from jobs.report_rows import network_names
from jobs.report_tables import Column, DataTable, bounds_of, estimate_words, value_of

_CHANCE = 0.5


def _words(name: str) -> str:
    """A damage's name as the page says it."""
    return name.replace("_", " ")


def robustness_table(facts: RunFacts) -> DataTable:
    """AUC of the found network on damaged test clips, by damage and severity."""
    columns = (
        Column(key="dataset", text=True),
        Column(key="network", text=True),
        Column(key="damage", head="damage", text=True, show=_words),
        Column(key="sense", head="sense", text=True),
        Column(key="label", head="setting", text=True),
        Column(key="unit", text=True),
        Column(key="severity", head="severity"),
        Column(key="auc", head="AUC"),
        Column(key="scored", head="scored clips"),
        Column(key="refused", head="refused clips"),
        Column(key="reasons"),
    )
    rows = []
    for reading in facts.tested:
        content = reading.robustness or {}
        for damage in content.get("damages", ()):
            for row in damage["rows"]:
                rows.append(
                    {
                        "dataset": reading.dataset,
                        "network": content.get("network"),
                        "damage": damage["name"],
                        "sense": damage["sense"],
                        "unit": damage["unit"],
                        **{key: row.get(key) for key in ("label", "severity", "auc", "scored", "refused", "reasons")},
                    }
                )
    return DataTable("robustness", columns, rows)


def missing_table(facts: RunFacts) -> DataTable:
    """AUC where one stream is missing, and what the network then does."""
    columns = (
        Column(key="dataset", text=True),
        Column(key="sense", head="missing", text=True),
        Column(key="behaviour", head="what is done", text=True),
        Column(key="network", head="network", text=True, show=network_names(facts)),
        Column(key="auc", head="AUC"),
    )
    rows = [
        {"dataset": reading.dataset, **{key: row.get(key) for key in ("sense", "behaviour", "network", "auc")}}
        for reading in facts.tested
        for row in (reading.robustness or {}).get("missing", ())
    ]
    return DataTable("missing_streams", columns, rows)


def robustness_section(facts: RunFacts) -> Html:
    """A small chart for each damage, all numbers, and the missing streams."""
    parts: list[object] = []
    for reading in facts.tested:
        if reading.robustness is None:
            continue
        if len(facts.tested) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        parts += _measured(facts, reading)
    if not parts:
        how = (
            f"Nothing was measured: 'stgs evaluate {facts.whole} --robustness' prepares the test clips again, damaged."
        )
        parts.append(tag("p", how))
    return section("robustness", "Robustness", parts)


def _measured(facts: RunFacts, reading: Reading) -> list[object]:
    content = reading.robustness or {}
    damages = content.get("damages", ())
    values = [_CHANCE]
    for damage in damages:
        for row in damage["rows"]:
            values += [value for value in (value_of(row["auc"]), *(bounds_of(row["auc"]) or ())) if value is not None]
    y = fitted_axis("AUC", values, least=0.2, cap=1.0)
    words = (
        f"The found network on {plural(content['clips'], 'test clip')} of "
        f"{plural(content['subjects'], 'subject')}, prepared again with one damage at a time; 'none' is undamaged; "
        "bars are 95 % bootstrap intervals over subjects; a refused clip could not be prepared and is not scored."
    )
    if content.get("statement"):
        words = f"{words} {content['statement']}"
    numbers = robustness_table(facts).where(dataset=reading.dataset)
    missing = missing_table(facts).where(dataset=reading.dataset)
    parts: list[object] = [tag("p", words), tag("div", [_chart(damage, y) for damage in damages], class_="wrap")]
    if numbers.rows:
        parts.append(fold("All damages in numbers", numbers.html()))
    if missing.rows:
        parts += [tag("h3", "One stream missing"), missing.html()]
    return parts


def _chart(damage: Mapping[str, Any], y: Axis) -> Html:
    """AUC over severity; severities are steps, which stand at equal distances under the names of their strengths."""
    rows = sorted(damage["rows"], key=lambda row: row["severity"])
    refused = sum(row.get("refused") or 0 for row in rows)
    hints = [
        f"{row['label']}: AUC {estimate_words(row['auc'])}, {plural(row['scored'], 'clip')} scored, "
        f"{row.get('refused') or 0} refused"
        for row in rows
    ]
    severities = [float(row["severity"]) for row in rows]
    line = Series(
        x=severities,
        y=[math.nan if (value := value_of(row["auc"])) is None else value for row in rows],
        style={"visual": 1, "audio": 2}.get(damage["sense"], 0),
        hint=damage.get("text") or _words(damage["name"]),
        dots=hints,
        bounds=[bounds_of(row["auc"]) or (math.nan, math.nan) for row in rows],
    )
    room = 0.04 * ((severities[-1] - severities[0]) or 1.0)
    unit = damage["unit"]
    names = tuple((float(row["severity"]), str(row["label"]).removesuffix(unit).strip()) for row in rows)
    x = Axis(unit, severities[0] - room, severities[-1] + room, named=names)
    title = _words(damage["name"]) + (f", {plural(refused, 'clip')} refused" if refused else "")
    return line_chart([line], x, y, title=title)
