"""The one way in which work is asked to stop: whoever wants it to end gives a `Stop`, and the loop asks between steps.

Only the standard library here: the watcher of spot notices and the drivers share it with the search.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Stop:
    """Why to stop, and what.

    scope: `run`, all work of the run; `node`, only what runs on this machine, which leaves: another one goes on.
    reason: words for a user, such as `SIGTERM` or `the budget of 2 device hours is spent`.
    """

    scope: Literal["run", "node"]
    reason: str


# A flag is a sentence.
_MOST_FLAG_BYTES = 65536

StopCheck = Callable[[], Stop | None]
"""Says whether to stop now; asked between steps, so it must not wait for anything."""


def never() -> Stop | None:
    """A check that never asks to stop."""
    return None


class StopWatch:
    """Several checks as one that may be asked at every step: it passes the question on at most once every `every_s`.

    The first answer stands: once a check has said stop, no other is asked.

    Args:
        checks: asked in this order; the first that says stop wins.
        every_s: seconds between two questions, at least 0.
        clock: seconds that never go back.
    """

    def __init__(
        self, checks: Sequence[StopCheck], *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks, self._every_s, self._clock = tuple(checks), every_s, clock
        self._asked: float | None = None
        self._stop: Stop | None = None

    def __call__(self) -> Stop | None:
        """The first answer that was not None, or None."""
        if self._stop is not None:
            return self._stop
        now = self._clock()
        if self._asked is None or now - self._asked >= self._every_s:
            self._asked = now
            for check in self._checks:
                self._stop = check()
                if self._stop is not None:
                    break
        return self._stop


def node_flag_path(node_id: str) -> Path:
    """The file, for all processes of this machine, that says that the node leaves its cluster."""
    return Path(tempfile.gettempdir()) / f"stgs-leaving-{node_id}.json"


def raise_node_flag(node_id: str, reason: str, expires: float) -> None:
    """Tell all work on a node to save and go elsewhere.

    expires: unix second after which the flag counts no more, so that a machine that stays after all is used again.
    Readers see the whole file or none.
    """
    path = node_flag_path(node_id)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        # Nobody else may write it; where root watches the machine, the user whose work runs there must read it.
        mode = 0o644 if os.geteuid() == 0 else 0o600
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with open(descriptor, "w") as file:
            file.write(json.dumps({"reason": reason, "expires": expires}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def node_stop(node_id: str, now: Callable[[], float] = time.time) -> Stop | None:
    """The stop that the node's flag asks for; None where there is none, or one that has expired.

    Its folder is anybody's to write in: a flag that neither this user nor root has made, or that is damaged, is none.
    """
    try:
        # Neither a link nor a pipe, which would never end, is followed.
        descriptor = os.open(node_flag_path(node_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            return None
        flag = json.loads(os.read(descriptor, _MOST_FLAG_BYTES))
        reason, expires = str(flag["reason"]), float(flag["expires"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    finally:
        os.close(descriptor)
    return Stop("node", reason) if now() < expires else None
