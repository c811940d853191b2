"""Section of the report on what the scores are made of: by category, by forgery method, and how far they are "
"calibrated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jobs.report_charts import Axis, DotRow, Series, dot_chart, fitted_axis, line_chart
from jobs.report_facts import Reading, RunFacts
from jobs.report_html import Html, figure, fold, fraction, plural, section, tag
from jobs.report_rows import FAKES, by_category_table, by_method_table
from jobs.report_tables import DataTable, bounds_of, estimate_words, value_of

_CATEGORIES = {"B": "real video, fake sound", "C": "fake video, real sound", "D": "both fake"}
_CHANCE = 0.5


def scores_section(facts: RunFacts) -> Html:
    """For each data set: AUC by category and by method with intervals, and the reliability of P(fake)."""
    parts: list[object] = [_NOTE] if facts.tested else []
    for reading in facts.tested:
        if len(facts.tested) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        charts = [_categories(reading), _methods(reading), _reliability(reading)]
        parts.append(tag("div", charts, class_="pair"))
        parts += [_chosen(by_category_table(facts), reading), _chosen_methods(facts, reading)]
    if not facts.tested:
        parts.append(tag("p", "There are none: the test clips have not been read yet."))
    return section("scores", "Scores by kind of fake", parts)


_NOTE = tag(
    "p",
    "AUC against the real clips A of the fakes B (real video, fake sound), C (fake video, real sound) and D (both "
    "fake) "
    "alone, and of each forgery method alone. B can only be heard and C only be seen. Bounds are those of 95 % "
    "bootstrap "
    "intervals over subjects.",
)


def _chosen(data: DataTable, reading: Reading) -> Html:
    """The networks that were chosen on dev; the others are folded away."""
    here = data.where(dataset=reading.dataset)
    chosen = DataTable(here.name, here.columns, [row for row in here.rows if row["role"]])
    others = DataTable(here.name, here.columns, [row for row in here.rows if not row["role"]])
    parts = [chosen.html()]
    if others.rows:
        parts.append(fold(f"The other networks ({len(others.rows)})", others.html()))
    return tag("div", parts)


def _chosen_methods(facts: RunFacts, reading: Reading) -> Html | None:
    here = by_method_table(facts).where(dataset=reading.dataset)
    chosen = DataTable(here.name, here.columns, [row for row in here.rows if row["role"]])
    return fold("By forgery method, of every network that was chosen on dev", chosen.html()) if chosen.rows else None


def _categories(reading: Reading) -> Html | None:
    found = reading.networks[reading.found]
    aucs = found.get("auc_by_category", {})
    measured = {"all fakes": found["auc"]}
    measured |= {f"{category}: {_CATEGORIES[category]}": aucs[category] for category in FAKES if category in aucs}
    return dots_figure(measured, "AUC of the found network against the real clips, by category")


def _methods(reading: Reading) -> Html | None:
    measured = reading.networks[reading.found].get("auc_by_method") or {}
    return dots_figure(measured, "AUC of the found network against the real clips, by forgery method")


def dots_figure(measured: Mapping[str, Mapping[str, Any]], title: str) -> Html | None:
    """A line for each estimate of AUC, by name: its value and its interval; None where none has a value."""
    rows, values = [], [_CHANCE]
    for name, estimate in measured.items():
        value = value_of(estimate)
        if value is None:
            continue
        low, high = bounds_of(estimate) or (value, value)
        hint = f"{name}: {estimate_words(estimate)}"
        rows.append(DotRow(name=_short(name), values=[], chosen=(value, low, high), style=0, hint=hint))
        values += [value, low, high]
    if not rows:
        return None
    axis = fitted_axis("AUC", values, least=0.2, cap=1.0)
    chart = dot_chart(rows, axis, width=560, row_height=34, left=210, mark=_CHANCE)
    return figure(tag("div", tag("div", chart, style="min-width:440px"), class_="scroll"), None, title=title)


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"


def _bar(row: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a bin's share of fakes, NaN where it has none."""
    low, high = row.get("fake_share_low"), row.get("fake_share_high")
    return (math.nan, math.nan) if low is None or high is None else (low, high)


def _reliability(reading: Reading) -> Html | None:
    """Share of fakes over the mean score of bins of equal width: on the diagonal, P(fake) is what it says."""
    found = reading.networks[reading.found]
    bins = [row for row in found.get("reliability") or () if row["count"]]
    if not bins:
        return None
    hints = [
        f"P(fake) {row['low']:.1f} to {row['high']:.1f}: {plural(row['count'], 'clip')}, mean {row['mean_score']:.3f}, "
        f"share of fakes {fraction(row['fake_share'])}"
        for row in bins
    ]
    line = Series(
        x=[row["mean_score"] for row in bins],
        y=[row["fake_share"] if row["fake_share"] is not None else math.nan for row in bins],
        style=0,
        hint="reliability of the found network",
        dots=hints,
        bounds=[_bar(row) for row in bins],
    )
    axes = Axis("mean P(fake) of the clips of a bin", 0.0, 1.0), Axis("share of fakes among them", 0.0, 1.0)
    chart = line_chart([line], *axes, width=440, height=340, diagonal=True)
    caption = (
        f"Calibration error {estimate_words(found.get('calibration_error'))}: the mean distance from the diagonal, "
        "weighted by clips. Networks are trained with balanced classes, so P(fake) is that of balanced clips: other "
        "shares of fakes lie off the diagonal."
    )
    return figure(chart, caption, title="Reliability of the found network's scores", class_="roc")
