"""How far a run of a baseline is, from its storage alone.

Storage requests of one look: listings of the run's parts, driver.json, failed.json of the failed parts, the curves of
the parts that are begun, and once metrics.json of each finished part that is shown. Loads neither torch nor Ray, as
`cluster.watching` does not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster.baseline_names import planned_parts
from cluster.run_json import Json, number_of, parse_object, read_object, text_of
from cluster.watched_settings import WatchedSettings, watched_settings
from cluster.watching import (
    DONE,
    FAILED,
    LOST,
    RUNNING,
    STATES,
    WAITING,
    PointStatus,
    RunStatus,
    Watcher,
    Work,
    counts_of,
    driver_facts,
    seconds_left,
)
from data_prep import storage
from data_prep.storage import InputError

_PART_FILE = re.compile(r"([^/]+)/([^/]+)")
_METRICS, _FAILED, _CURVES = "metrics.json", "failed.json", "curves.parquet"
# Files that a training leaves once it has begun.
_BEGUN = {_CURVES, "state.pt", "attempts.json", "network.safetensors"}


def open_watcher(run: str) -> Watcher | BaselineWatcher:
    """What looks at a run, of a search or of a baseline. Raises InputError where there is none."""
    uri = storage.absolute(run)
    settings = watched_settings(uri)
    return BaselineWatcher(uri, settings) if settings.is_baseline else Watcher(uri)


class BaselineWatcher:
    """Looks at one run of a baseline again and again; its points are the run's parts."""

    def __init__(self, run: str, settings: WatchedSettings) -> None:
        self.run, self._epochs = run, settings.epochs
        self._planned = planned_parts(settings.parts, settings.shuffles)
        # What metrics.json of the finished parts says: it never changes.
        self._finished: dict[str, Json] = {}

    def look(self, *, most: int | None = None, clock: Callable[[], float] = time.time) -> RunStatus:
        """The run as it is now; arguments as of `Watcher.look`."""
        now = clock()
        driver = driver_facts(self.run, now)
        files = self._files()
        found = [self._part(name, files.get(name, set()), driver) for name in dict.fromkeys([*self._planned, *files])]
        points = sorted((point for point, _ in found), key=lambda point: STATES.index(point.state))
        works = [
            Work(state=point.state, epochs_left=max((point.epochs or 0) - (point.epoch or 0), 0), epoch_seconds=seconds)
            for point, seconds in found
            if point.state not in (DONE, FAILED)
        ]
        return RunStatus(
            run=self.run,
            time=now,
            driver=driver,
            counts=counts_of(points),
            points=points[:most],
            parts={},
            seconds_left=seconds_left(works),
            unit="part",
        )

    def _files(self) -> dict[str, set[str]]:
        """The files of each part that is begun."""
        found: dict[str, set[str]] = {}
        for path in storage.list(storage.join(self.run, "parts")):
            if match := _PART_FILE.fullmatch(path):
                found.setdefault(match[1], set()).add(match[2])
        return found

    def _part(self, name: str, files: set[str], driver: Json | None) -> tuple[PointStatus, float | None]:
        """A part, and the seconds of its last epoch."""
        point = PointStatus(id=name, pack=name, state=WAITING, epochs=self._epochs)
        if _METRICS in files:
            return self._done(point), None
        if _FAILED in files:
            reason = text_of(read_object(self._uri(name, _FAILED)), "reason")
            return replace(point, state=FAILED, reason=(reason or "").strip().rpartition("\n")[2] or None), None
        rows = self._curves(name) if _CURVES in files else []
        last: dict[str, Any] = rows[-1] if rows else {}
        seconds, state = number_of(last, "seconds"), WAITING
        if files & _BEGUN and driver is not None and driver["state"] != "ended":
            state = RUNNING if driver["state"] == "live" else LOST
        aucs = [auc for row in rows if (auc := number_of(row, "dev_auc")) is not None and auc == auc]
        point = replace(point, state=state, epoch=number_of(last, "epoch"), dev_auc=max(aucs, default=None))
        if state == RUNNING and seconds is not None and point.epoch is not None and point.epochs is not None:
            point = replace(point, seconds_left=max(point.epochs - point.epoch, 0) * seconds)
        return point, seconds

    def _done(self, point: PointStatus) -> PointStatus:
        if point.id not in self._finished:
            self._finished[point.id] = parse_object(storage.read(self._uri(point.id, _METRICS)))
        metrics = self._finished[point.id]
        return replace(
            point,
            state=DONE,
            epoch=number_of(metrics, "epochs"),
            dev_auc=number_of(metrics, "dev_auc"),
            device_seconds=number_of(metrics, "device_seconds"),
            reason=None if metrics else "its metrics.json is damaged",
        )

    def _curves(self, name: str) -> Sequence[dict[str, Any]]:
        """The rows of the epochs that have ended; none where the file is gone, or damaged."""
        # Late: it loads pyarrow, for which only looks at trainings under way wait.
        from data_prep.boxes import read_table

        try:
            return read_table(self._uri(name, _CURVES)).to_pylist()
        except (FileNotFoundError, InputError):
            return []

    def _uri(self, part: str, name: str) -> str:
        return storage.join(self.run, "parts", part, name)
