"""Which driver works on a run: RUN/driver.json, a sign of life that the driver renews while it works.

A second driver of one run would do no harm (attempts are claimed, results are committed once), but it would do the same
work twice. Of two drivers the one with the higher generation stays; it is counted up by each driver that begins.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
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
# The next sign comes soon; the last one is worth a while, for which the end of a driver may wait.
_SIGN_PATIENCE_S = 5.0
_LAST_SIGN_PATIENCE_S = 20.0
_END_SECONDS = 30.0

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
    if facts.get("ended") is not None or now - _number(facts, "time") >= SILENT_SECONDS:
        return False
    return facts.get("host") != socket.gethostname() or _is_running(int(_number(facts, "pid")))


def _number(facts: Facts, name: str) -> float:
    """A field of facts, which may be another program's; 0 where it is no number."""
    value = facts.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _is_running(pid: int) -> bool:
    if pid <= 0:  # to the kernel, a group of processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
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
            f"{run} is being worked on by process {facts.get('pid')} of {facts.get('host')} (last sign "
            f"{max(now - _number(facts, 'time'), 0):.0f} s ago); wait, stop it, or take over with --takeover."
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
    _end: tuple[str, str | None] | None = field(default=None, init=False)
    _failing: bool = field(default=False, init=False)

    @contextlib.contextmanager
    def shown(self, ending: Callable[[BaseException | None], tuple[str, str | None]]) -> Iterator[None]:
        """Give the sign of life meanwhile, and at the end say how it ended.

        ending: from the exception that ended the work (None: it came to its end) to `ended`, which is `complete`,
        `stopped` or `failed`, and the reason in words.

        Storage that does not take a sign meanwhile ends nothing; the last word waits half a minute at most. Raises what
        `storage.write` raises where storage does not take the first.
        """
        for run in self.runs:
            self._generations[run] = int(_number(read_driver(run) or {}, "generation")) + 1
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
            self._end = ending(error)
            done.set()
            # The storage may be what ended the work; without a last word the sign grows old, which says as much. In the
            # thread, because a request that gets no answer takes longer than anybody should wait here.
            thread.join(_END_SECONDS)

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT_SECONDS):
            for run in self.runs:
                if not done.is_set():
                    with storage.patient(_SIGN_PATIENCE_S, say=_say_nothing, here=True):
                        self._try_to_renew(run)
        with storage.patient(_LAST_SIGN_PATIENCE_S, say=_say_nothing, here=True, together=True):
            for run in self.runs:
                self._try_to_renew(run)

    def _try_to_renew(self, run: str) -> None:
        """Renew the sign, or say, once an outage, that storage does not take it."""
        try:
            self._renew(run)
            self._failing = False
        except (UnreachableError, NoSpaceError, InputError, OSError) as error:
            if not self._failing:
                print(f"the sign of life of this driver cannot be renewed: {error}", file=sys.stderr, flush=True)
            self._failing = True

    def _renew(self, run: str) -> None:
        """Write the sign again, unless a newer driver's stands there."""
        other = read_driver(run) or {}
        rank = (int(_number(other, "generation")), str(other.get("session", "")))
        if run in self._lost or rank > (self._generations[run], self.session):
            if not self._lost:
                self.on_takeover(other)
            self._lost.add(run)
            return
        self._write(run)

    def _write(self, run: str) -> None:
        ended, reason = self._end or (None, None)
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


def _say_nothing(line: str) -> None:
    """Of an outage the driver's other requests tell, or the sign's own line."""
