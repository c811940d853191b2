"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

# A warning names this many points.
_SHOWN = 4


def grid_tables(rows: Sequence[Mapping[str, Any]], title: str, value: str, decimals: int = 3) -> list[str]:
    """Lines with the mean of `value` over seeds and shuffles: temperatures down, num_samples across.

    rows: of points, with the columns of grid.parquet that name one. A table for each estimator and options, headed by
    `title` and, where there are several tables, by what sets it apart.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["estimator"], row.get("options", "")), []).append(row)
    several = {part for part in range(2) if len({key[part] for key in groups}) > 1}
    lines = []
    for key, own in groups.items():
        apart = ", ".join(key[part] for part in sorted(several))
        lines += [f"{title} ({apart}):" if apart else f"{title}:", indented(_table(own, value, decimals))]
    return lines


def _table(rows: Sequence[Mapping[str, Any]], value: str, decimals: int) -> str:
    frame = pd.DataFrame(rows)
    table = frame.pivot_table(index="temperature", columns="num_samples", values=value, aggfunc="mean")
    table.index = pd.Index([f"{temperature:g}" for temperature in table.index], name=None)
    table.columns = pd.Index([f"M={samples}" for samples in table.columns], name=None)
    return table.to_string(float_format=lambda number: f"{number:,.{decimals}f}")


def indented(text: str) -> str:
    """`text` two spaces in."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on the points whose search must not be trusted as it stands; none where all is well."""
    lost, unmoved = (
        [f"{row['id']} ({row[name]})" for row in rows if row.get(name)] for name in ("gradient_lost", "entropy_unmoved")
    )
    hardly = sum(bool(row["hardly_moved"]) for row in rows)
    lines = []
    if lost:
        lines.append(
            f"warning: the architecture's gradient is lost beside its weight decay at "
            f"{of_points(len(lost), len(rows))}: what was found there follows the decay, not the data: {_first(lost)}"
        )
    if unmoved:
        lines.append(f"warning: entropies never moved at {of_points(len(unmoved), len(rows))}: {_first(unmoved)}")
    if hardly:
        lines.append(
            f"the architecture has hardly moved at {of_points(hardly, len(rows))} (entropies above 0.99 of their "
            "maximum, genotype still changing): close calls, to be held against random genotypes."
        )
    return lines


def of_points(number: int, total: int) -> str:
    """How many of a run's points, for a sentence; of one, the point itself."""
    return f"{number} of {total} points" if total > 1 else "this point"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
