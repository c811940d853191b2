"""What a run has cost: device time of its search, of training its networks, and of its controls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cluster.controls import CONTROLS, GRID, arm_uri
from cluster.gathering import GRID_NAME, read_grid
from cluster.runs import read_config
from data_prep import storage

_DAY_S = 86_400.0


def run_cost(run: str, networks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of device time, all workers: search_seconds of the grid (None where nothing was searched), device_days of
    these (GPU days where `device` is cuda), training_seconds of the grid's networks, control_seconds of the searches
    and networks of all controls. device: `cpu` or `cuda`.

    networks: those of metrics.json.
    """
    search = _search_seconds(run)
    controls = math.fsum(_search_seconds(arm_uri(run, arm)) or 0.0 for arm in CONTROLS)
    training = {
        is_grid: math.fsum(row["seconds"] for row in networks.values() if (row["arm"] == GRID) == is_grid)
        for is_grid in (True, False)
    }
    return {
        "device": str(read_config(run)["settings"]["device"]),
        "search_seconds": search,
        "device_days": None if search is None else search / _DAY_S,
        "training_seconds": training[True],
        "control_seconds": controls + training[False],
    }


def _search_seconds(run: str) -> float | None:
    if not storage.exists(storage.join(run, GRID_NAME)):
        return None
    return math.fsum(row["device_seconds"] for row in read_grid(run))
