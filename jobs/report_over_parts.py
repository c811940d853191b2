"""Tables of several parts, of found networks or of a baseline: by category, by method, and mean over the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.protocol_summary import CATEGORIES
from jobs.report_html import count, fraction, plural
from jobs.report_rows import MEASURED
from jobs.report_tables import Column, DataTable

_PLACE = (Column(key="part", head="part", text=True), Column(key="dataset", head="tested on", text=True))
_MEASURES = MEASURED | {name: f"AUC, A / {category}" for name, category in CATEGORIES.items()}


def by_category_of(rows: Sequence[dict[str, Any]]) -> DataTable:
    """AUC against the real clips A, for all fakes and each category that is tested.

    rows: one for each part and data set: part, dataset, and measures as `cluster.protocol_summary` names them.
    """
    categories = {key: name for key, name in CATEGORIES.items() if any(key in row for row in rows)}
    columns = (
        *_PLACE,
        Column(key="auc", head="A / all fakes"),
        *(Column(key=key, head=f"A / {name}") for key, name in categories.items()),
    )
    return DataTable("by_category", columns, list(rows))


def by_method_of(rows: Sequence[dict[str, Any]]) -> DataTable:
    """AUC against the real clips, by forgery method; rows: as of `by_category_of`."""
    columns = (
        *_PLACE,
        Column(key="method", head="forgery method", text=True),
        Column(key="auc", head="AUC against real clips"),
    )
    own = [
        {"part": row["part"], "dataset": row["dataset"], "method": method, "auc": auc}
        for row in rows
        for method, auc in row["auc_by_method"].items()
    ]
    return DataTable("by_method", columns, own)


def over_parts_of(over: Mapping[str, Any], methods: Mapping[str, Any]) -> DataTable:
    """Mean and standard deviation over parts of each measure, and of the AUC by method, once a data set.

    over, methods: over_parts and methods_over_parts of a summary of `cluster.protocol_summary`.
    """
    columns = (
        Column(key="dataset", head="tested on", text=True),
        Column(key="measure", head="measure", text=True, show=lambda key: _MEASURES.get(key, key)),
        Column(key="sentence", text=True),
        Column(key="mean", head="mean", show=fraction),
        Column(key="deviation", head="standard deviation", show=fraction),
        Column(key="count", head="parts with a value", show=count),
        Column(key="of", head="of", show=count),
    )
    rows = [
        {"dataset": dataset, "measure": measure, **told}
        for dataset, measures in over.items()
        for measure, told in measures.items()
    ]
    rows += [
        {"dataset": dataset, "measure": f"AUC, {method}", **told}
        for dataset, own in methods.items()
        for method, told in own.items()
    ]
    return DataTable("over_parts", columns, rows)


def mean_words(told: Mapping[str, Any]) -> str:
    """A mean over parts for a sentence: 0.912 ± 0.021 (5 of 5 parts)."""
    words = fraction(told["mean"])
    if told["deviation"] is not None:
        words += f" ± {fraction(told['deviation'])}"
    return f"{words} ({told['count']} of {plural(told['of'], 'part')})"
