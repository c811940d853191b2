"""Section of a baseline's page on how its training went, epoch by epoch, a line for each part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.report_charts import Axis, Series, fitted_axis, legend, line_chart
from jobs.report_html import Html, section, tag

_Curves = Mapping[str, Sequence[Mapping[str, Any]]]

_FIRST = {"dev_auc": "AUC on dev", "loss": "Loss in training", "dev_loss": "Loss on dev"}
_LAST = {"learning_rate": "Learning rate"}
_NO_CURVES = ("epoch", "seconds")


def curves_html(curves: _Curves) -> Html:
    """curves: part -> rows of its epochs: epoch, loss, each term of it, dev_loss, dev_auc, learning_rate."""
    if not curves:
        return section("curves", "How the training went", tag("p", "There are no curves to show."))
    columns = dict.fromkeys(key for rows in curves.values() for row in rows for key in row)
    terms = [key for key in columns if key not in (*_FIRST, *_LAST, *_NO_CURVES)]
    names = {**_FIRST, **{key: f"{key.replace('_', ' ')}, in training" for key in terms}, **_LAST}
    charts = [_chart(curves, key, name) for key, name in names.items() if key in columns]
    parts: list[object] = [tag("p", _NOTE, class_="soft")]
    if len(curves) > 1:
        parts.append(legend({part: style for style, part in enumerate(curves)}))
    return section("curves", "How the training went", parts, tag("div", charts, class_="wrap"))


_NOTE = "Of the weights after each epoch on dev; in training: mean over the epoch's updates, the loss and its terms."


def _chart(curves: _Curves, key: str, name: str) -> Html | None:
    lines = []
    for style, (part, rows) in enumerate(curves.items()):
        values = [_number(row.get(key)) for row in rows]
        if any(map(math.isfinite, values)):
            last = next(value for value in reversed(values) if math.isfinite(value))
            hint = f"{part}: {last:.4g} at epoch {rows[-1]['epoch']}"
            lines.append(Series(x=[row["epoch"] for row in rows], y=values, style=style, hint=hint))
    if not lines:
        return None
    log = key == "learning_rate"
    known = [value for line in lines for value in line.y if math.isfinite(value)]
    is_auc = key.endswith("auc")
    y = fitted_axis("", known, least=0.05 if is_auc else 0.02, cap=1.0 if is_auc else math.inf, log=log)
    x = Axis("epoch", 0.0, float(max(max(line.x) for line in lines) or 1), whole=True)
    return line_chart(lines, x, y, title=name)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
