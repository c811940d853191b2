"""Claims, states and results in a run directory (design.md section 3).

Whoever works on a pack claims the next attempt by exclusive creation and writes only below it. Results are committed
by exclusive creation, too, so any number of workers may race, die and come back: each point gets one result.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch

from data_prep import boxes, storage
from data_prep.storage import InputError

_STATE = re.compile(r"(\d+)/state-(\d+)\.pt")
KEPT_STATES = 2


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the grid. shuffle_seed: permutes the labels of train and dev (a control), None: as they are."""

    temperature: float
    num_samples: int
    estimator: str
    seed: int
    shuffle_seed: int | None = None

    @property
    def id(self) -> str:
        """Name of the point in the run directory."""
        name = f"temperature-{self.temperature:g}_samples-{self.num_samples}_{self.estimator}_seed-{self.seed}"
        return name if self.shuffle_seed is None else f"{name}_shuffle-{self.shuffle_seed}"


@dataclass(frozen=True, slots=True)
class Pack:
    """Points that are searched as one population, in one program."""

    name: str
    points: tuple[Point, ...]

    def to_json(self) -> bytes:
        """The content of pack.json."""
        content = {"name": self.name, "points": [asdict(point) for point in self.points]}
        return json.dumps(content, indent=1).encode()


def pack_uri(run: str, name: str) -> str:
    """Directory of a pack."""
    return storage.join(run, "packs", name)


def read_pack(run: str, name: str) -> Pack:
    """The pack that pack.json describes."""
    content = json.loads(storage.read(storage.join(pack_uri(run, name), "pack.json")))
    return Pack(content["name"], tuple(Point(**point) for point in content["points"]))


def read_packs(run: str) -> list[Pack]:
    """All packs of a run, by name."""
    root = storage.join(run, "packs")
    names = sorted(path.split("/")[0] for path in storage.list(root) if path.endswith("/pack.json"))
    return [read_pack(run, name) for name in names]


def point_uri(run: str, point_id: str, *parts: str) -> str:
    """Directory of a point, or a file in it."""
    return storage.join(run, "points", point_id, *parts)


def read_result(run: str, point_id: str) -> dict[str, Any] | None:
    """A point's result.json, or None while it has none."""
    try:
        content: dict[str, Any] = json.loads(storage.read(point_uri(run, point_id, "result.json")))
    except FileNotFoundError:
        return None
    return content


def write_failure(run: str, point_id: str, reason: str) -> None:
    """Record that a point failed; a later attempt may replace it, and a result outranks it."""
    storage.write(point_uri(run, point_id, "failed.json"), json.dumps({"reason": reason}).encode())


def read_heartbeat(run: str, pack: Pack) -> dict[str, Any] | None:
    """What the pack's latest attempt last said of itself (`Attempt.heartbeat`), None before it said anything."""
    root = storage.join(pack_uri(run, pack.name), "attempts")
    beats = [path for path in storage.list(root) if path.endswith("/heartbeat.json")]
    if not beats:
        return None
    latest = max(beats, key=lambda path: int(path.split("/")[0]))
    content: dict[str, Any] = json.loads(storage.read(storage.join(root, latest)))
    return content


class Attempt:
    """One try at a pack. Create it with `Attempt.claim`."""

    def __init__(self, run: str, pack: Pack, number: int) -> None:
        self.run, self.pack, self.number = run, pack, number
        self.relative = f"packs/{pack.name}/attempts/{number}"
        self.uri = storage.join(run, self.relative)

    @classmethod
    def claim(cls, run: str, pack: Pack) -> Attempt:
        """Take the next free number; of several claimants each gets its own."""
        taken = [int(path.split("/")[0]) for path in storage.list(storage.join(pack_uri(run, pack.name), "attempts"))]
        number = max(taken, default=-1) + 1
        while True:
            attempt = cls(run, pack, number)
            try:
                storage.create(storage.join(attempt.uri, "claim.json"), _stamp())
                return attempt
            except FileExistsError:
                number += 1

    def write_state(self, update: int, state: Mapping[str, Any]) -> None:
        """Save a state, then delete all but the `KEPT_STATES` newest of the pack (in this order: one always stands)."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        storage.write(storage.join(self.uri, f"state-{update}.pt"), buffer.getvalue())
        for _, path in _states(self.run, self.pack)[KEPT_STATES:]:
            storage.delete(path)

    def newest_state(self) -> dict[str, Any] | None:
        """The readable state with the highest update of any attempt; None if there is none."""
        for _, path in _states(self.run, self.pack):
            try:
                state: dict[str, Any] = torch.load(io.BytesIO(storage.read(path)), weights_only=True)
                return state
            except (FileNotFoundError, RuntimeError, EOFError, OSError, ValueError) as error:
                # A newer attempt may have deleted it, or the disk may have lost it: the one before is as good, later.
                self.log(f"state {path} cannot be read ({error}); trying the one before")
        return None

    def heartbeat(self, **facts: Any) -> None:
        """Say that this attempt is alive, and how far it is."""
        storage.write(storage.join(self.uri, "heartbeat.json"), _stamp(**facts))

    def log(self, line: str) -> None:
        """Append a line to the attempt's log.txt."""
        uri = storage.join(self.uri, "log.txt")
        before = storage.read(uri) if storage.exists(uri) else b""
        storage.write(uri, before + f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())

    def write_curves(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """Save the rows of all epochs; returns their path below the run and their sha256."""
        table = pa.Table.from_pylist([dict(row) for row in rows])
        digest = storage.write(storage.join(self.uri, "curves.parquet"), boxes.table_bytes(table))
        return f"{self.relative}/curves.parquet", digest

    def commit(self, point: Point, result: Mapping[str, Any]) -> bool:
        """Make `result` the point's result; False if another attempt was first (its result stands)."""
        try:
            content = json.dumps({**result, "attempt": self.relative}, indent=1).encode()
            storage.create(point_uri(self.run, point.id, "result.json"), content)
            return True
        except FileExistsError:
            return False

    def drop_states(self) -> None:
        """Delete all states of the pack: its results stand."""
        for _, path in _states(self.run, self.pack):
            storage.delete(path)


def _states(run: str, pack: Pack) -> list[tuple[int, str]]:
    """(update, URI) of the pack's states, the newest first."""
    root = storage.join(pack_uri(run, pack.name), "attempts")
    found = [(match, path) for path in storage.list(root) if (match := _STATE.fullmatch(path))]
    ranked = sorted(((int(match[2]), int(match[1]), path) for match, path in found), reverse=True)
    return [(update, storage.join(root, path)) for update, _, path in ranked]


def _stamp(**facts: Any) -> bytes:
    return json.dumps({"time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), **facts}).encode()


def write_packs(run: str, packs: Sequence[Pack]) -> list[Pack]:
    """Fix the packs of a run, before any work; where they stand already, those are returned.

    Raises InputError where the standing packs hold other points.
    """
    standing = read_packs(run)
    if not standing:
        for pack in packs:
            storage.write(storage.join(pack_uri(run, pack.name), "pack.json"), pack.to_json())
        return list(packs)
    wanted = {point.id for pack in packs for point in pack.points}
    there = {point.id for pack in standing for point in pack.points}
    if wanted != there:
        odd = sorted(wanted ^ there)[0]
        raise InputError(f"{run} was begun with other points ({odd} differs); give another --out.")
    return standing
