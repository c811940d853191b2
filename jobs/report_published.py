"""What the authors of baselines report: beside measured figures, never among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from jobs.report_baseline_facts import BaselineFacts
from jobs.report_baseline_remarks import list_of
from jobs.report_html import Html, fraction, tag
from jobs.report_tables import Column, DataTable
from stgs.baselines import BASELINES


def published_table(models: Sequence[str]) -> DataTable:
    """What the authors of some models report, on data of their own."""
    columns = (
        Column(key="model", head="model", text=True),
        Column(key="source", head="published in", text=True),
        Column(key="data", head="on other data", text=True),
        Column(key="note", head="measured otherwise", text=True),
        Column(key="auc", head="AUC", show=lambda value: fraction(value, 4)),
        Column(key="accuracy", head="accuracy", show=lambda value: fraction(value, 4)),
    )
    known = {model: BASELINES[model].published for model in dict.fromkeys(models) if model in BASELINES}
    rows = [{"model": model, **asdict(told)} for model, told in known.items() if told is not None]
    return DataTable("published_baselines", columns, rows)


def published_part(baselines: Sequence[BaselineFacts]) -> Html | None:
    """The published figures under their own heading, and how the baselines here differ; None where there are none."""
    data = published_table([baseline.model for baseline in baselines])
    if not data.rows:
        return None
    note = (
        "Published, on other data: with its authors' clips, folds and machines. These figures are context, and never "
        "in one ranking with those above."
    )
    sizes = [(f"{baseline.name} here", baseline.content["size"]) for baseline in baselines]
    differing = [(name, f"{size}.") for name, size in sizes if size is not None]
    below = list_of(differing) if differing else None
    return tag("div", tag("h3", "Published figures"), tag("p", note, class_="soft"), data.html(sortable=False), below)
