"""Which driver works on a run: RUN/driver.json, a sign of life that the driver renews while it works.

A second driver of one run would do no harm (attempts are claimed, results are committed once), but it would do the same
work twice. Of two drivers the one with the higher generation stays; it is counted up by each driver that begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError

DRIVER_NAME = "driver.json"
# Set on a submitted job, so that its driver can say which submission it belongs to.
SUBMISSION_VARIABLE = "STGS_SUBMISSION"
BEAT_SECONDS = 15.0
# A driver that has given no sign for so long is gone, or cannot reach the storage and will find its successor there.
SILENT_SECONDS = 60.0

Facts = Mapping[str, Any]


def read_driver(run: str) -> dict[str, Any] | None:
    """What the run's last driver said of itself (docs/formats.md lists the fields); None where none has said anything.

    Raises UnreachableError where the storage does not answer.
    """
    try:
        content = json.loads(storage.read(storage.join(run, DRIVER_NAME)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):  # not written by a driver; the next one replaces it
        return None
    return content if isinstance(content, dict) else None


def is_live(facts: Facts, *, now: float) -> bool:
    """Whether the driver that left `facts` still works. now: Unix time in seconds.

    It does if it has not ended, its sign is under 60 s old and, where it was this machine's, its process is there.
    """
    if facts.get("ended") is not None or now - float(facts["time"]) >= SILENT_SECONDS:
        return False
    return facts["host"] != socket.gethostname() or _is_running(int(facts["pid"]))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True


def require_idle(run: str, *, takeover: bool, now: float | None = None) -> None:
    """Refuse a run that a live driver works on.

    takeover: work on it nevertheless; the other driver stops when it notices. now: Unix time in seconds, None for the
    clock's. Raises InputError.
    """
    facts = None if takeover else read_driver(run)
    now = time.time() if now is None else now
    if facts is not None and is_live(facts, now=now):
        raise InputError(
            f"{run} is being worked on by process {facts['pid']} of {facts['host']} (last sign "
            f"{max(now - facts['time'], 0):.0f} s ago); wait, stop it, or take over with --takeover."
        )


@dataclass(slots=True)
class DriverSign:
    """Says in driver.json of each run that this process works on it, and notices when another driver takes over.

    runs: URIs. session: of this driver, unlike any other's. on_takeover: called, once, with the other driver's facts.
    progress: device seconds of each run so far, all attempts counted. deadline: Unix seconds. device_hours: budget.
    """

    runs: Sequence[str]
    session: str
    on_takeover: Callable[[Facts], None]
    progress: Callable[[], Mapping[str, float]] = dict
    deadline: float | None = None
    device_hours: float | None = None
    _generations: dict[str, int] = field(default_factory=dict, init=False)
    _lost: set[str] = field(default_factory=set, init=False)

    @contextlib.contextmanager
    def shown(self, ending: Callable[[BaseException | None], tuple[str, str | None]]) -> Iterator[None]:
        """Give the sign of life meanwhile, and at the end say how it ended.

        ending: from the exception that ended the work (None: it came to its end) to `ended`, which is `complete`,
        `stopped` or `failed`, and the reason in words.
        """
        for run in self.runs:
            self._generations[run] = int((read_driver(run) or {}).get("generation", 0)) + 1
            self._write(run)
        done = threading.Event()
        thread = threading.Thread(target=self._beat, args=(done,), daemon=True)
        thread.start()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            done.set()
            thread.join()
            ended, reason = ending(error)
            for run in self.runs:
                # The storage may be what ended the work; without a last word the sign grows old, which says as much.
                with contextlib.suppress(UnreachableError, NoSpaceError, OSError):
                    self._renew(run, ended=ended, reason=reason)

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT_SECONDS):
            for run in self.runs:
                with contextlib.suppress(UnreachableError, NoSpaceError, OSError):
                    self._renew(run)

    def _renew(self, run: str, **end: str | None) -> None:
        """Write the sign again, unless a newer driver's stands there."""
        other = read_driver(run) or {}
        rank = (int(other.get("generation", 0)), str(other.get("session", "")))
        if run in self._lost or rank > (self._generations[run], self.session):
            if not self._lost:
                self.on_takeover(other)
            self._lost.add(run)
            return
        self._write(run, **end)

    def _write(self, run: str, *, ended: str | None = None, reason: str | None = None) -> None:
        facts = {
            "time": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "session": self.session,
            "generation": self._generations[run],
            "submission": os.environ.get(SUBMISSION_VARIABLE),
            "ended": ended,
            "reason": reason,
            "deadline": self.deadline,
            "device_hours": self.device_hours,
            "device_seconds": self.progress().get(run, 0.0),
        }
        storage.write(storage.join(run, DRIVER_NAME), json.dumps(facts).encode())
