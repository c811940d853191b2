"""What a run has cost: device time of its search, of training its networks, and of its controls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from cluster.controls import CONTROLS, GRID, RANDOM, arm_uri
from cluster.gathering import GRID_NAME, read_grid
from cluster.runs import read_config
from cluster.settings import config_from_dict
from data_prep import storage

_DAY_S = 86_400.0


def run_cost(run: str, networks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of device time, all workers: search_seconds of the grid (None where nothing was searched), device_days of
    these (GPU days where `device` is cuda), training_seconds of the grid's networks, control_seconds of the searches
    and networks of all controls; what several arms share counts for the first. device: `cpu` or `cuda`.

    networks: those of metrics.json.
    """
    search = _search_seconds(run)
    controls = math.fsum(_search_seconds(arm_uri(run, arm)) or 0.0 for arm in CONTROLS)
    config = read_config(run)
    training = training_seconds(networks, config_from_dict(config).seeds[0])
    return {
        "device": str(config["settings"]["device"]),
        "search_seconds": search,
        "device_days": None if search is None else search / _DAY_S,
        "training_seconds": training.pop(GRID, 0.0),
        "control_seconds": controls + math.fsum(training.values()),
    }


def training_seconds(networks: Mapping[str, Mapping[str, Any]], first_seed: int) -> dict[str, float]:
    """Arm -> device seconds of training its networks.

    Networks of one genotype, seed and labels were fitted once (`cluster.found_loop`), and are counted once, for the
    first arm that has them. networks: those of metrics.json. first_seed: the grid's.
    """
    seconds: dict[str, float] = {}
    seen = set()
    for name, network in networks.items():
        # A network without a point is told apart by its name; a genotype drawn by chance has the grid's first seed.
        seed = first_seed if network["arm"] == RANDOM else name
        point = network["point"] or {"seed": seed, "shuffle_seed": None}
        which = (network.get("kind"), point["seed"], point["shuffle_seed"], network.get("repeat", 0))
        key = (json.dumps(network["genotype"], sort_keys=True), *which)
        if key not in seen:
            seconds[network["arm"]] = seconds.get(network["arm"], 0.0) + network["seconds"]
        seen.add(key)
    return seconds


def _search_seconds(run: str) -> float | None:
    if not storage.exists(storage.join(run, GRID_NAME)):
        return None
    return math.fsum(row["device_seconds"] for row in read_grid(run))
