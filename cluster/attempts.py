"""Claims, states and results in a run directory (design.md section 3).

Whoever works on a pack claims the next attempt by exclusive creation and writes only below it. Results are committed
by exclusive creation, too, so any number of workers may race, die and come back: each point gets one result.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch

from data_prep import boxes, storage
from data_prep.storage import InputError

_STATE = re.compile(r"(\d+)/state-(\d+)\.pt")
KEPT_STATES = 2
# File systems end names at 255 bytes, and files add an ending to an id.
_LONGEST_ID = 200
_DIGEST_DIGITS = 16
# Names the packs of a run; written after their files, so that a run killed in between has no packs rather than some.
INDEX_NAME = "index.json"


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the grid.

    shuffle_seed: permutes the labels of train and dev (a control), None: as they are. options: name and value of the
    search's settings in which the points of the grid differ (`cluster.settings.settings_of` applies them).
    """

    temperature: float
    num_samples: int
    estimator: str
    seed: int
    shuffle_seed: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        # A file gives lists for the tuples that were written.
        pairs = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in self.options)
        object.__setattr__(self, "options", pairs)

    @property
    def id(self) -> str:
        """Name of the point in the run directory: its settings, cut short and ended by a digest where they are many."""
        name = f"temperature-{self.temperature:g}_samples-{self.num_samples}_{self.estimator}_seed-{self.seed}"
        if self.shuffle_seed is not None:
            name += f"_shuffle-{self.shuffle_seed}"
        # No file is called after a pattern such as visual.*.
        name += "".join(f"_{key}-{re.sub(r'[^a-zA-Z0-9.+-]', '', _shown(value))}" for key, value in self.options)
        if len(name) <= _LONGEST_ID:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_DIGITS]
        return f"{name[: _LONGEST_ID - _DIGEST_DIGITS - 1]}_{digest}"

    @property
    def label(self) -> str:
        """The options in words, such as `dropout=0.1, tail=concat`; empty where there are none."""
        return ", ".join(f"{key}={_shown(value)}" for key, value in self.options)

    def facts(self) -> dict[str, Any]:
        """What result files say of the point, a column each: its fields, with `label` for the options."""
        return {**asdict(self), "options": self.label}


def _shown(value: Any) -> str:
    """An option's value as text: numbers short, lists joined by '+'."""
    if isinstance(value, tuple):
        return "+".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool | None) else str(value)


@dataclass(frozen=True, slots=True)
class Pack:
    """Points that are searched as one population, in one program.

    parent: name of the pack that this one was split off, whose states it can continue; None: of none.
    """

    name: str
    points: tuple[Point, ...]
    parent: str | None = None

    def to_json(self) -> bytes:
        """The content of pack.json."""
        content = {"name": self.name, "parent": self.parent, "points": [asdict(point) for point in self.points]}
        return json.dumps(content, indent=1).encode()


def pack_uri(run: str, name: str) -> str:
    """Directory of a pack."""
    return storage.join(run, "packs", name)


def read_pack(run: str, name: str) -> Pack:
    """The pack that pack.json describes."""
    content = json.loads(storage.read(storage.join(pack_uri(run, name), "pack.json")))
    return Pack(content["name"], tuple(Point(**point) for point in content["points"]), content["parent"])


def read_packs(run: str) -> list[Pack]:
    """The packs that a run consists of, in order; none before they are fixed."""
    try:
        names = json.loads(storage.read(storage.join(run, "packs", INDEX_NAME)))
    except FileNotFoundError:
        return []
    return [read_pack(run, name) for name in names]


def _write_index(run: str, packs: Sequence[Pack]) -> None:
    """Make `packs`, whose files stand, the packs of the run."""
    storage.write(storage.join(run, "packs", INDEX_NAME), json.dumps([pack.name for pack in packs]).encode())


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


def read_failure(run: str, point_id: str) -> str | None:
    """Why a point failed, or None where nothing says so."""
    try:
        return str(json.loads(storage.read(point_uri(run, point_id, "failed.json")))["reason"])
    except FileNotFoundError:
        return None


def clear_failure(run: str, point_id: str) -> None:
    """Forget that a point failed: it is tried again."""
    if storage.exists(point_uri(run, point_id, "failed.json")):
        storage.delete(point_uri(run, point_id, "failed.json"))


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
        for _, _, path in _states(self.run, self.pack.name)[KEPT_STATES:]:
            storage.delete(path)

    def newest_state(self, wanted: Collection[str] = ()) -> dict[str, Any] | None:
        """The readable state with the highest update of any attempt at the pack, or at one that it was split off; None
        if there is none.

        wanted: ids that the state must hold among its `points`.
        """
        lineage = _lineage(self.run, self.pack)
        for _, _, path in sorted((state for pack in lineage for state in _states(self.run, pack.name)), reverse=True):
            try:
                # To the CPU, because all workers receive it: the first one's GPU has no room for theirs.
                state: dict[str, Any] = torch.load(
                    io.BytesIO(storage.read(path)), map_location="cpu", weights_only=True
                )
            except Exception as error:
                # A newer attempt may have deleted it, or the disk may have lost it, for which torch.load raises many
                # kinds: the one before is as good, later.
                self.log(f"state {path} cannot be read ({type(error).__name__}: {error}); trying the one before")
                continue
            missing = sorted(set(wanted) - set(state.get("points", ())))
            if not missing:
                return state
            self.log(f"state {path} lacks {missing[0]}; trying the one before")
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
        """Delete all states of the pack, whose points are done, and of those it was split off, if theirs are."""
        for pack in _lineage(self.run, self.pack):
            if pack is self.pack or all(read_result(self.run, point.id) is not None for point in pack.points):
                for _, _, path in _states(self.run, pack.name):
                    storage.delete(path)


def _states(run: str, name: str) -> list[tuple[int, int, str]]:
    """(update, attempt, URI) of a pack's states, the newest first."""
    root = storage.join(pack_uri(run, name), "attempts")
    found = [(match, path) for path in storage.list(root) if (match := _STATE.fullmatch(path))]
    return sorted(((int(match[2]), int(match[1]), storage.join(root, path)) for match, path in found), reverse=True)


def _lineage(run: str, pack: Pack) -> list[Pack]:
    """The pack, the one it was split off, and so on."""
    found = [pack]
    while found[-1].parent is not None:
        found.append(read_pack(run, found[-1].parent))
    return found


def _stamp(**facts: Any) -> bytes:
    return json.dumps({"time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), **facts}).encode()


def write_packs(run: str, packs: Sequence[Pack]) -> list[Pack]:
    """Fix the packs of a run, before any work; where they stand already, those are returned.

    Raises InputError where the standing packs hold other points.
    """
    standing = read_packs(run)
    if not standing:
        _write_pack_files(run, packs)
        _write_index(run, packs)
        return list(packs)
    wanted = {point.id for pack in packs for point in pack.points}
    there = {point.id for pack in standing for point in pack.points}
    if wanted != there:
        odd = sorted(wanted ^ there)[0]
        raise InputError(f"{run} was begun with other points ({odd} differs); give another --out.")
    return standing


def _write_pack_files(run: str, packs: Sequence[Pack]) -> None:
    for pack in packs:
        storage.write(storage.join(pack_uri(run, pack.name), "pack.json"), pack.to_json())


def split_packs(run: str, packs: Sequence[Pack], devices: int) -> list[Pack]:
    """Split the unfinished packs of a run so that up to `devices` of them can be searched side by side.

    packs: all packs of the run, in order. A part holds points without a result, and goes on from the newest state of
    the pack that it was split off; packs are never merged. Returns the packs of the run after that.
    """
    waiting = {pack.name: [point for point in pack.points if read_result(run, point.id) is None] for pack in packs}
    pieces = {name: 1 for name, points in waiting.items() if points}
    splittable = sum(len(waiting[name]) for name in pieces)
    for _ in range(len(pieces), min(devices, splittable)):
        largest = max(pieces, key=lambda name: len(waiting[name]) / pieces[name])
        pieces[largest] += 1
    if all(count == 1 for count in pieces.values()):
        return list(packs)
    after: list[Pack] = []
    for pack in packs:
        points, count = waiting[pack.name], pieces.get(pack.name, 1)
        if count == 1:
            after.append(pack)
            continue
        cuts = [len(points) * number // count for number in range(count + 1)]
        parts = [points[start:end] for start, end in itertools.pairwise(cuts)]
        children = [Pack(f"{pack.name}.{number}", tuple(part), pack.name) for number, part in enumerate(parts)]
        _write_pack_files(run, children)
        if len(points) < len(pack.points):
            # The finished points stay with the pack, so that the run's packs hold every point.
            finished = tuple(point for point in pack.points if point not in points)
            children.append(Pack(f"{pack.name}.done", finished, pack.name))
            _write_pack_files(run, children[-1:])
        after += children
    _write_index(run, after)
    return after
