"""An attempt at a pack while it runs: when it saves, what it says of itself, and how the workers agree to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.agreement import agreed_stop
from cluster.attempt_record import (
    STORAGE_ERRORS,
    dispensable,
    epoch_line,
    in_passing,
    last_words,
    point_facts,
    write_event_files,
)
from cluster.attempts import Attempt, Point
from cluster.stopping import Stop, StopCheck
from data_prep.storage import UnreachableError
from stgs.population import PopulationSearch, Row

if TYPE_CHECKING:
    from cluster.search_loop import PackJob

Ended = Literal["complete", "stopped", "drained", "failed"]
# Watchers take an attempt without a sign for a minute for dead.
HEARTBEAT_SECONDS = 15.0
# A file for each point: every epoch of a fast search would wait for them. They take a twentieth of the time at most.
EVENT_FILE_SECONDS = 30.0
_EVENT_FILES_SHARE = 1 / 20


@dataclass(frozen=True, slots=True)
class Seconds:
    """What each point took, in all attempts. wall: its share of the seconds of its population; device: of the seconds
    of all workers.
    """

    wall: list[float]
    device: list[float]


class Running:
    """One attempt, in one of the workers that share it. The first one writes; the others only agree.

    Args:
        attempt: where it writes.
        search: what is run, with the members that `points` are.
        seconds: of the points so far; kept up to date.
        stop: asked at every update.
    """

    def __init__(
        self,
        job: PackJob,
        attempt: Attempt,
        points: Sequence[Point],
        search: PopulationSearch,
        seconds: Seconds,
        stop: StopCheck,
    ) -> None:
        self.attempt, self.points, self.search, self.seconds = attempt, points, search, seconds
        self.stop: Stop | None = None
        """What all workers have agreed on."""
        self._job, self._workers, self._check = job, search.workers, stop
        self._start, self._first_epoch = time.time(), search.epoch
        self._active = list(search.active)
        self._device_seconds = 0.0
        self._epoch_seconds: float | None = None
        # Of the epoch under way; None where an earlier attempt has begun it.
        self._seconds_inside: float | None = None if search.inside_epoch else 0.0
        # Why this worker alone cannot go on.
        self._trouble: Stop | None = None
        # Epoch and update of the last state, and when it was written.
        self._saved, self._saved_at = (search.epoch, search.update), time.monotonic()
        self._has_saved = False
        self._rows_shown, self._show_at = 0, time.monotonic()
        self._since = time.perf_counter()
        self._beat()

    @property
    def _writes(self) -> bool:
        return self._workers.rank == 0

    def asked_to_stop(self) -> bool:
        """Whether the workers stop here, between two updates. Heartbeats and states that are due are written."""
        own = self._trouble or self._check()
        self.stop = agreed_stop(own, self._workers)
        if self.stop is not None:
            return True
        if self._writes:
            save = self._minutes_are_over()
            if save or time.monotonic() - self._beaten_at >= HEARTBEAT_SECONDS:
                self._count()
                if save:
                    self._save()
                self._beat()
                self._since = time.perf_counter()
        return False

    def end_epoch(self, rows: Sequence[Row]) -> None:
        """Take in an epoch that is over: save a state where one is due, and tell."""
        self._count()
        self._epoch_seconds, self._seconds_inside = self._seconds_inside, 0.0
        self._active = list(self.search.active)
        if self._writes:
            epoch = self.search.epoch
            self.attempt.log(epoch_line(epoch, self._job.config.epochs, self.points, rows))
            # Before the state: after a death, no epoch that need not be run again is missing from the logs.
            with in_passing():
                self.attempt.write_log()
            if self.search.finished or epoch % self._job.checkpoint_epochs == 0 or self._minutes_are_over():
                self._save()
            self._beat()
        self._since = time.perf_counter()

    def end_stopped(self) -> None:
        """End because of `stop`: with a state, unless nothing has been done since the last one."""
        assert self.stop is not None
        if self._is_new():
            self._count()
            if self._writes and self._trouble is None:
                self._save()
                if self._trouble is not None:
                    # A run that is to end goes on nowhere.
                    self.stop = Stop(min(self.stop.scope, self._trouble.scope, key="run".__ne__), self._trouble.reason)
        self.stop = self._workers.from_first(self.stop)
        self.end("stopped" if self.stop.scope == "run" else "drained", self.stop.reason)

    def end_in_trouble(self, stop: Stop) -> None:
        """End because storage takes nothing more."""
        self.end("stopped" if stop.scope == "run" else "drained", stop.reason)

    def stop_after(self, error: Exception) -> Stop:
        """What to do where storage does not take this attempt's work.

        Where it fell silent after it had taken a state of this attempt, this machine may be what is cut off: the search
        goes on elsewhere. That cannot go round for ever, for each time a state was saved; an attempt that cannot even
        begin ends the run, as one does that meets a storage that is full or closed.
        """
        elsewhere = self._has_saved and isinstance(error, UnreachableError)
        return Stop("node" if elsewhere else "run", str(error))

    def end(self, ended: Ended, reason: str | None = None) -> None:
        """The attempt is over."""
        if not self._writes:
            return
        where = f"at update {self.search.update} after {self.search.epoch} epochs"
        self.attempt.log(f"{ended} {where}" + (f": {reason}" if reason else ""))
        with last_words(self._job.patience_s):
            self._write_signs(ended, reason)
            self._write_event_files()

    def progress(self) -> dict[str, Any]:
        """How far the attempt is, in a few numbers; dev_auc is None where no point has a finite one."""
        shown = point_facts(self.points, self.search.rows).values()
        scores = [facts["dev_auc"] for facts in shown if facts["dev_auc"] is not None]
        return {
            "epoch": self.search.epoch,
            "epochs": self._job.config.epochs,
            "dev_auc": max(scores, default=None),
            "device_seconds": self._device_seconds,
        }

    def _minutes_are_over(self) -> bool:
        minutes = self._job.checkpoint_minutes
        return minutes is not None and self._is_new() and time.monotonic() - self._saved_at >= 60.0 * minutes

    def _is_new(self) -> bool:
        """Whether anything was done since the last state; an epoch's evaluation makes no update."""
        return (self.search.epoch, self.search.update) != self._saved

    def _count(self) -> None:
        """Count the seconds since the last call, in which updates were made."""
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        for number in self._active:
            self.seconds.wall[number] += passed / len(self._active)
            self.seconds.device[number] += passed * self._workers.world / len(self._active)
        self._device_seconds += passed * self._workers.world
        if self._seconds_inside is not None:
            self._seconds_inside += passed

    def _save(self) -> None:
        state = {
            "search": self.search.state_dict(),
            "points": [point.id for point in self.points],
            "seconds": self.seconds.wall,
            "device_seconds": self.seconds.device,
        }
        try:
            self.attempt.write_state(self.search.update, state)
        except STORAGE_ERRORS as error:
            self._trouble = self.stop_after(error)
            return
        self._has_saved = True
        self._saved, self._saved_at = (self.search.epoch, self.search.update), time.monotonic()
        if self._saved_at >= self._show_at:
            with in_passing():
                self._write_event_files()

    def _write_event_files(self) -> None:
        begin, rows = time.monotonic(), len(self.search.rows)
        if rows > self._rows_shown:
            try:
                write_event_files(self.attempt, self.points, self.search.rows, self._start)
                self._rows_shown = rows
            finally:
                now = time.monotonic()
                self._show_at = now + max(EVENT_FILE_SECONDS, (now - begin) / _EVENT_FILES_SHARE)

    def _beat(self) -> None:
        """Say that the attempt is alive."""
        if self._writes:
            with in_passing():
                self._write_signs()
            self._beaten_at = time.monotonic()

    def _write_signs(self, ended: Ended | None = None, reason: str | None = None) -> None:
        """Write the heartbeat, and the log, which may have lines that are not in storage."""
        facts = {
            **self.progress(),
            "session": self._job.session,
            "update": self.search.update,
            "points": point_facts(self.points, self.search.rows),
            "epoch_seconds": self._epoch_seconds,
            "first_epoch": self._first_epoch,
            "world": self._workers.world,
            "device": self._job.device,
            "ended": ended,
            "reason": reason,
        }
        for write in (lambda: self.attempt.heartbeat(**facts), self.attempt.write_log):
            with dispensable():
                write()
