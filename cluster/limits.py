"""Limits of a command's work, as a user gives them: a deadline, a budget of device time, a number of workers."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from data_prep.storage import InputError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_WORKERS = re.compile(r"(\d+)(?::(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLimits:
    """When a search ends before it is complete, orderly and to be continued, and who may work on its run.

    deadline: a duration from the start of this command (90m, 8h, 2d), or a time with its zone
    (2026-11-21T18:00+01:00). device_hours: budget of the whole run, above 0, all its attempts counted; a device is a
    GPU or a process on CPUs. takeover: go on with a run (with --resume) that another driver seems to work on; that one
    stops when it notices.
    """

    deadline: str | None = None
    device_hours: float | None = None
    takeover: bool = False

    def __post_init__(self) -> None:
        self.deadline_at(0.0)  # refuses what is no time
        if self.device_hours is not None and not self.device_hours > 0:
            raise InputError(f"device_hours is {self.device_hours:g}, but a budget must be above 0.")

    def deadline_at(self, start: float) -> float | None:
        """The deadline in Unix seconds, None where there is none. start: of the command, in Unix seconds.

        Raises InputError for a text that is no time.
        """
        if self.deadline is None:
            return None
        if duration := _DURATION.fullmatch(self.deadline):
            return start + float(duration[1]) * _SECONDS[duration[2]]
        try:
            moment = datetime.datetime.fromisoformat(self.deadline)
        except ValueError:
            raise InputError(
                f"deadline is {self.deadline!r}, but it must be a duration such as 90m, 8h or 2d, or a time such as "
                "2026-11-21T18:00+01:00."
            ) from None
        if moment.tzinfo is None:
            raise InputError(f"deadline is {self.deadline!r}, which names no zone; write {self.deadline}Z for UTC.")
        return moment.timestamp()


def worker_range(workers: str) -> tuple[int, int]:
    """Fewest and most workers that `workers` asks for: a number, or MIN:MAX. Raises InputError."""
    match = _WORKERS.fullmatch(workers.strip())
    fewest, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= fewest <= most:
        raise InputError(f"workers is {workers!r}, but it must be a number from 1 on, or MIN:MAX such as 1:4.")
    return fewest, most


def utc(moment: float) -> str:
    """A time in Unix seconds for a sentence, such as `2026-11-21 18:00 UTC`."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
