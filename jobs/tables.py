"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd


def grid_table(rows: Sequence[dict[str, Any]], value: str, decimals: int = 3) -> str:
    """The mean of `value` over estimators, seeds and shuffles: temperatures down, num_samples across."""
    frame = pd.DataFrame(rows)
    table = frame.pivot_table(index="temperature", columns="num_samples", values=value, aggfunc="mean")
    table.index = pd.Index([f"{temperature:g}" for temperature in table.index], name=None)
    table.columns = pd.Index([f"M={samples}" for samples in table.columns], name=None)
    return table.to_string(float_format=lambda number: f"{number:,.{decimals}f}")


def indented(text: str) -> str:
    """`text` two spaces in."""
    return "\n".join(f"  {line}" for line in text.splitlines())
