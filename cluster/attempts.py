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
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from cluster.points import Pack as Pack
from cluster.points import Point as Point
from data_prep import boxes, storage

_STATE = re.compile(r"(\d+)/state-(\d+)\.pt")
KEPT_STATES = 2
# How often the states are looked up anew when the newest one is deleted between its listing and its reading.
_LISTINGS = 5
# Names the packs of a run; written after their files, so that a run killed in between has no packs rather than some.
INDEX_NAME = "index.json"


def pack_uri(run: str, name: str) -> str:
    """Directory of a pack."""
    return storage.join(run, "packs", name)


def read_pack(run: str, name: str) -> Pack:
    """The pack that pack.json describes."""
    return Pack.from_json(storage.read(storage.join(pack_uri(run, name), "pack.json")))


def read_packs(run: str) -> list[Pack]:
    """The packs that a run consists of, in order; none before they are fixed."""
    try:
        names = json.loads(storage.read(storage.join(run, "packs", INDEX_NAME)))
    except FileNotFoundError:
        return []
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


def write_failure(run: str, point_id: str, reason: str, session: str = "") -> None:
    """Record that a point failed; a later attempt may replace it, and a result outranks it.

    session: the driver's, within which the point is not tried again.
    """
    content = {"reason": reason, "session": session}
    storage.write(point_uri(run, point_id, "failed.json"), json.dumps(content).encode())


def read_failure(run: str, point_id: str) -> str | None:
    """Why a point failed, or None where nothing says so."""
    content = _read_failure(run, point_id)
    return None if content is None else str(content["reason"])


def open_points(run: str, pack: Pack, session: str) -> list[Point]:
    """The points of a pack that are still to be searched: without a result, and not failed in this session."""
    found = []
    for point in pack.points:
        if read_result(run, point.id) is None:
            failure = _read_failure(run, point.id)
            if failure is None or failure.get("session") != session:
                found.append(point)
    return found


def _read_failure(run: str, point_id: str) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(storage.read(point_uri(run, point_id, "failed.json")))
    except FileNotFoundError:
        return None
    return content


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
    """One try at a pack. Create it with `Attempt.claim`.

    Args:
        number: its number among those at the pack.
        log_name: of its log; workers other than the one that claimed it have logs of their own.
    """

    def __init__(self, run: str, pack: Pack, number: int, log_name: str = "log.txt") -> None:
        self.run, self.pack, self.number = run, pack, number
        self.relative = f"packs/{pack.name}/attempts/{number}"
        self.uri = storage.join(run, self.relative)
        self.log_name = log_name
        self._lines: list[str] = []
        self._written_lines = 0

    @classmethod
    def claim(cls, run: str, pack: Pack, session: str = "") -> Attempt:
        """Take the next free number; of several claimants each gets its own. session: the driver's."""
        taken = [int(path.split("/")[0]) for path in storage.list(storage.join(pack_uri(run, pack.name), "attempts"))]
        number = max(taken, default=-1) + 1
        while True:
            attempt = cls(run, pack, number)
            # The token makes the bytes this claimant's: an answer that was lost on the way can be told from a rival.
            content = _stamp(session=session, token=uuid.uuid4().hex)
            try:
                storage.create(storage.join(attempt.uri, "claim.json"), content)
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
        for _ in range(_LISTINGS):
            found = sorted((state for pack in lineage for state in _states(self.run, pack.name)), reverse=True)
            try:
                return self._first_usable([path for _, _, path in found], wanted)
            except FileNotFoundError:
                continue  # an attempt at work elsewhere has deleted it, for newer ones
        return None

    def _first_usable(self, paths: Sequence[str], wanted: Collection[str]) -> dict[str, Any] | None:
        for path in paths:
            content = storage.read(path)
            try:
                # To the CPU, because all workers receive it: the first one's GPU has no room for theirs.
                state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except Exception as error:
                # The disk may have lost it, for which torch.load raises many kinds: the one before is as good, later.
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
        """Add a line to the attempt's log; `write_log` brings it to storage."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def write_log(self) -> None:
        """Write the log anew with all lines so far, if there are new ones."""
        if len(self._lines) > self._written_lines:
            storage.write(storage.join(self.uri, self.log_name), "".join(self._lines).encode())
            self._written_lines = len(self._lines)

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
