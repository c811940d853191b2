"""What an attempt at a pack says of itself while it runs, and what earlier attempts have left behind.

heartbeat.json, log.txt and the TensorBoard files are for those who watch: a search whose states can be written goes on
where these cannot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from cluster.attempts import Attempt, Pack, Point, pack_uri
from cluster.tensorboard import event_file
from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError
from stgs.search_space import ARCHITECTURE_PARAMETERS

FRUITLESS_ATTEMPTS = 3
"""So many attempts of a session in a row that end neither orderly nor with a new epoch fail their points."""
STORAGE_ERRORS = (UnreachableError, NoSpaceError, InputError, OSError)
"""What storage raises where it does not take or give an object: it is silent, full, or closed to these credentials or
this user. A search can go on later, from its newest state."""
_LAST_WORDS_S = 30.0
_ENTROPIES = [f"{kind}_{name}" for kind in ("entropy", "normalised_entropy") for name in ARCHITECTURE_PARAMETERS]
_SHOWN = ("dev_auc", *_ENTROPIES)


def dispensable() -> suppress:
    """Writes that a search can do without, left out where storage does not take them, for whatever reason."""
    return suppress(*STORAGE_ERRORS)


@contextmanager
def in_passing() -> Iterator[None]:
    """Dispensable writes that are tried once, since a search waits for them; other threads keep their patience."""
    with storage.patient(0.0, say=lambda line: None, here=True), dispensable():
        yield


@contextmanager
def last_words(patience_s: float) -> Iterator[None]:
    """Dispensable writes with which an attempt ends: half a minute for all of them, or `patience_s` if that is less."""
    with storage.patient(min(_LAST_WORDS_S, patience_s), here=True, together=True), dispensable():
        yield


def point_facts(points: Sequence[Point], rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Point id -> its last epoch, dev AUC and entropies there; epoch 0 and None where it has none, or no finite one."""
    last: dict[int, Mapping[str, Any]] = {row["member"]: row for row in rows}
    return {
        point.id: {"epoch": last.get(number, {}).get("epoch", 0)}
        | {name: _finite(last.get(number, {}).get(name)) for name in _SHOWN}
        for number, point in enumerate(points)
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def epoch_line(epoch: int, epochs: int, points: Sequence[Point], rows: Sequence[Mapping[str, Any]]) -> str:
    """An epoch's line in the log: every point that was searched in it, by its id."""
    told = "; ".join(f"{points[row['member']].id}: dev AUC {row['dev_auc']:.3f}" for row in rows)
    return f"epoch {epoch} of {epochs}: {told}"


def write_event_files(
    attempt: Attempt, points: Sequence[Point], rows: Sequence[Mapping[str, Any]], start_time: float
) -> None:
    """Write each point's rows as its TensorBoard file. start_time: of the attempt, Unix seconds."""
    for number, point in enumerate(points):
        own = [row for row in rows if row["member"] == number]
        name = f"events.out.tfevents.{int(start_time)}.stgs"
        uri = storage.join(attempt.uri, "tensorboard", point.id, name)
        storage.write(uri, event_file(own, start_time=start_time))


def fruitless_attempts(run: str, pack: Pack, session: str) -> list[int]:
    """The newest attempts of a session at a pack that ended neither orderly nor with anything new: an epoch that none
    before them had finished, or a state. In order; empty where the last one got further.

    An attempt that is still at work elsewhere counts as one that died.
    """
    root = storage.join(pack_uri(run, pack.name), "attempts")
    files: dict[int, set[str]] = {}
    for path in storage.list(root):
        folder, _, name = path.partition("/")
        files.setdefault(int(folder), set()).add(name)
    beats: dict[int, dict[str, Any] | None] = {}
    for number in sorted(files, reverse=True):
        claimed = "claim.json" in files[number] and _read(root, number, "claim.json").get("session") == session
        if not claimed or any(name.startswith("state-") for name in files[number]):
            break
        beats[number] = _read(root, number, "heartbeat.json") if "heartbeat.json" in files[number] else None
    fruitless: list[int] = []
    reached = -1
    for number in sorted(beats):
        beat = beats[number]
        if beat is None:  # dead before it had looked for a state
            fruitless.append(number)
            continue
        reached = max(reached, beat["first_epoch"])
        fruitless = [] if beat["ended"] is not None or beat["epoch"] > reached else [*fruitless, number]
        reached = max(reached, beat["epoch"])
    return fruitless


def _read(root: str, number: int, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(storage.read(storage.join(root, str(number), name)))
    return content
