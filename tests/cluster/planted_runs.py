"""Run directories made by hand, as drivers and searches leave them, for tests of what watches them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from cluster.points import Pack, Point
from data_prep import storage

NOW = 1_800_000_000.0
EPOCHS = 30


def points(count: int, *, first_seed: int = 0) -> tuple[Point, ...]:
    return tuple(Point(10.0, 15, "stgs", first_seed + number) for number in range(count))


def plant(run: str, packs: Sequence[Pack]) -> str:
    """A run of these packs at which nobody has worked yet."""
    config = {"config": {"settings": {"search": {"epochs": EPOCHS}}}, "hints": {}}
    storage.write(storage.join(run, "config.yaml"), yaml.safe_dump(config).encode())
    plant_packs(run, packs)
    return run


def plant_packs(run: str, packs: Sequence[Pack]) -> None:
    for pack in packs:
        storage.write(storage.join(run, "packs", pack.name, "pack.json"), pack.to_json())
    put(run, "packs/index.json", [pack.name for pack in packs])


def put(run: str, path: str, content: Any) -> None:
    storage.write(storage.join(run, path), json.dumps(content).encode())


def claim(run: str, pack: Pack, number: int = 0, *, age: float = 0.0) -> None:
    put(run, f"packs/{pack.name}/attempts/{number}/claim.json", stamp(age))


def stamp(age: float) -> dict[str, Any]:
    return {"time": NOW - age, "host": "node-7", "pid": 4711, "session": "s"}


def beat(run: str, pack: Pack, number: int = 0, *, age: float = 0.0, epoch: int = 12, **more: Any) -> None:
    """A heartbeat with all that a search says in it; `more` replaces some."""
    told = {
        point.id: {"epoch": epoch, "dev_auc": 0.9, "entropy_alpha": 1.0}
        | {f"normalised_entropy_{name}": value for name, value in (("alpha", 0.7), ("beta", 0.8), ("gamma", 0.9))}
        for point in pack.points
    }
    facts = {"epoch": epoch, "epochs": EPOCHS, "update": 400, "dev_auc": 0.9, "points": told, "device_seconds": 50.0}
    facts |= {"epoch_seconds": 4.0, "first_epoch": 0, "world": 1, "device": "cuda", "ended": None, "reason": None}
    claim(run, pack, number, age=age)
    put(run, f"packs/{pack.name}/attempts/{number}/heartbeat.json", {**stamp(age), **facts, **more})


def finish(run: str, point: Point) -> None:
    entropies = {f"normalised_entropy_{name}": 0.5 for name in ("alpha", "beta", "gamma")}
    metrics = {"dev_auc": 0.95, "best_epoch": 20, "epochs": 25, **entropies}
    put(run, f"points/{point.id}/result.json", {"genotype": {}, "metrics": metrics, "device_seconds": 60.0})


def fail(run: str, point: Point, reason: str = "the losses ceased to be finite") -> None:
    put(run, f"points/{point.id}/failed.json", {"reason": reason, "session": "s"})


def drive(run: str, *, age: float = 0.0, **more: Any) -> None:
    facts = {**stamp(age), "submission": "grid-1", "ended": None, "reason": None, "deadline": None}
    put(run, "driver.json", {**facts, "device_hours": None, "device_seconds": 1800.0, **more})
