"""Tables of the report, each shown on the page and written as csv and parquet from the same rows.

An estimate is what `stgs evaluate` measured: value, low, high (the 95 % interval, null where none can be given) and
sentence (why something is null, or null).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pyarrow as pa

from data_prep import boxes, storage
from jobs.report_html import MISSING, Html, Number, bounds, fraction, join, table, tag

_BOUNDS = ("low", "high", "sentence")
# What a cell begins with that spreadsheets take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def is_estimate(value: object) -> bool:
    """Whether a value of a file is an estimate."""
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def value_of(estimate: Mapping[str, Any] | None) -> float | None:
    """The number of an estimate, None where there is none."""
    value = None if estimate is None else estimate["value"]
    return None if value is None or value != value else float(value)


def bounds_of(estimate: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The interval of an estimate, None where there is none."""
    if estimate is None or estimate.get("low") is None or estimate.get("high") is None:
        return None
    return float(estimate["low"]), float(estimate["high"])


def estimate_words(estimate: Mapping[str, Any] | None) -> str:
    """An estimate for a sentence: 0.993 [0.977, 1.000]; where the interval or the value is missing, why."""
    if estimate is None:
        return MISSING
    if bounds_of(estimate) is not None:
        return f"{fraction(estimate['value'])} {bounds(estimate)}"
    why = (estimate.get("sentence") or "").rstrip(".")
    shown = fraction(estimate["value"]) if value_of(estimate) is not None else "not known"
    return f"{shown} ({why})" if why else shown


def estimate_cell(estimate: Mapping[str, Any] | None) -> Number:
    """An estimate as a cell: the number with its bounds; the sentence is a hint."""
    if estimate is None:
        return Number(MISSING, None)
    shown = fraction(estimate["value"])
    if bounds_of(estimate) is not None:
        shown += f" {bounds(estimate)}"
    hint = estimate.get("sentence")
    return Number(tag("span", shown, title=hint) if hint else shown, value_of(estimate))


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column. key: its name in the files. head: its name on the page, None for one that the page leaves out. show: a
    value as text; estimates are shown as such. text: whether it holds text (such columns come first).
    """

    key: str
    head: str | None = None
    show: Callable[[Any], object] = str
    text: bool = False

    def cell(self, value: Any) -> object:
        """A value on the page."""
        if is_estimate(value):
            return estimate_cell(value)
        if self.text:
            return MISSING if value is None else self.show(value)
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
        return Number(MISSING if value is None else self.show(value), number)


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table. name: of its files. rows: column -> value, a JSON scalar or an estimate; one may be absent."""

    name: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]

    def where(self, **values: object) -> DataTable:
        """The rows that have these values."""
        return replace(
            self, rows=[row for row in self.rows if all(row.get(key) == value for key, value in values.items())]
        )

    def html(self, *, sortable: bool = True, without: Sequence[str] = ()) -> Html:
        """The table on the page, with the sentences of those estimates that have no interval below it.

        without: keys of columns that are left out.
        """
        shown = [column for column in self.columns if column.head is not None and column.key not in without]
        cells = [[column.cell(row.get(column.key)) for column in shown] for row in self.rows]
        texts = sum(column.text for column in shown)
        heads = [column.head for column in shown]
        keys = {column.key for column in shown}
        notes = dict.fromkeys(
            value["sentence"]
            for row in self.rows
            for key, value in row.items()
            if key in keys and is_estimate(value) and value.get("sentence")
        )
        below = [tag("p", note, class_="soft") for note in notes]
        return join([table(heads, cells, text_columns=texts, sortable=sortable), below])

    def flat(self) -> list[dict[str, Any]]:
        """The rows as the files have them: of an estimate x, its value is x, beside it x_low, x_high, x_sentence."""
        measured = {key for row in self.rows for key, value in row.items() if is_estimate(value)}
        lines = []
        for row in self.rows:
            line: dict[str, Any] = {}
            for column in self.columns:
                value = row.get(column.key)
                if column.key in measured:
                    line[column.key] = value_of(value)
                    line |= {f"{column.key}_{part}": (value or {}).get(part) for part in _BOUNDS}
                else:
                    line[column.key] = json.dumps(value) if isinstance(value, dict | list | tuple) else value
            lines.append(line)
        return lines

    def parquet(self) -> bytes:
        """The rows as a Parquet file."""
        return boxes.table_bytes(pa.Table.from_pylist(self.flat()))

    def csv(self) -> bytes:
        """The rows as a csv file. A text that a spreadsheet would run as a formula has an apostrophe before it."""
        lines = self.flat()
        columns = {key: [_no_formula(line[key]) for line in lines] for key in lines[0]}
        frame = pd.DataFrame({key: pd.Series(values, dtype=object) for key, values in columns.items()})
        text = io.StringIO()
        frame.to_csv(text, index=False, lineterminator="\n")
        return text.getvalue().encode("utf-8", "surrogatepass")


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def write_tables(folder: str, tables: Sequence[DataTable]) -> list[str]:
    """Write the tables that have rows to `folder`, and take away those of an earlier report. Returns their URIs."""
    written = {}
    for item in tables:
        if item.rows:
            written[f"{item.name}.csv"] = item.csv()
            written[f"{item.name}.parquet"] = item.parquet()
    for name, data in written.items():
        storage.write(storage.join(folder, name), data)
    for name in storage.list(folder):
        if name not in written and name.endswith((".csv", ".parquet")):
            storage.delete(storage.join(folder, name))
    return [storage.join(folder, name) for name in written]
