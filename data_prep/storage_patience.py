"""What surrounds every operation of `data_prep.storage`: trying again, and hooks for tests. Import both from there."""

import contextlib
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

from data_prep.storage_errors import CredentialsError, UnreachableError

Operation = Literal["read", "list", "exists", "write", "create", "delete"]
Moment = Literal["before", "after"]
Hook = Callable[[Operation, str, Moment], None]
Result = TypeVar("Result")

_BRIEF_SECONDS = 2.0
"""How long an operation is tried where nobody asked for patience: a lost connection is no outage."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0
# Of its own: nobody's random numbers change with the state of the network.
_random = random.Random()


class _Patience:
    """How long to try again, after which errors, and whether the outage has been told.

    together: the seconds count from now on, for all operations.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        say: Callable[[str], None],
        *,
        passing: tuple[type[Exception], ...] = (UnreachableError, CredentialsError),
        together: bool = False,
    ) -> None:
        self.seconds, self.clock, self.sleep, self.say, self.passing = seconds, clock, sleep, say, passing
        self._begun = clock() if together else None
        self._lock = threading.Lock()
        self._silent_since: float | None = None
        self._given_up: Exception | None = None

    def begin(self) -> float:
        """When the seconds of an operation that begins now began; raises where there is no patience left for it."""
        if self._given_up is not None:
            raise self._given_up
        return self.clock() if self._begun is None else self._begun

    def wait(self, number: int, since: float, error: Exception) -> bool:
        """Pause after attempt `number` (from 0) of an operation that began at `since`; False if its time is over."""
        left = self.seconds - (self.clock() - since)
        if left <= 0:
            self._given_up = error if self._begun is not None else None
            return False
        with self._lock:
            begins = self._silent_since is None
            if begins:
                self._silent_since = since
        if begins:
            what = "does not answer" if isinstance(error, UnreachableError) else "refuses the credentials"
            self.say(f"storage {what}; trying again for up to {self.seconds:.0f} s")
        # Of different length, so that many workers do not come back at the same moment.
        pause = min(_FIRST_PAUSE_S * 2**number, _LONGEST_PAUSE_S) * _random.uniform(0.5, 1.0)
        self.sleep(min(pause, left))
        return True

    def answered(self) -> None:
        """An operation was answered: the outage, if there was one, is over."""
        if self._silent_since is None:
            return
        with self._lock:
            since, self._silent_since = self._silent_since, None
        if since is not None:
            self.say(f"storage answers again after {self.clock() - since:.0f} s")


def _on_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# Of the process, not of a thread: whoever works in it works for the same job. The innermost one counts. Credentials
# that are wrong from the start are told at once.
_patiences = [_Patience(_BRIEF_SECONDS, time.monotonic, time.sleep, lambda _: None, passing=(UnreachableError,))]


class _Own(threading.local):
    """The patiences that count in one thread, before those of the process."""

    def __init__(self) -> None:
        self.patiences: list[_Patience] = []


_own = _Own()
_hooks: list[Hook] = []


@contextlib.contextmanager
def patient(
    seconds: float = 300.0,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = _on_standard_error,
    here: bool = False,
    together: bool = False,
) -> Iterator[None]:
    """Meanwhile, in all threads of this process, try operations that storage does not answer again and again.

    An operation raises UnreachableError only `seconds` after its first attempt began (an attempt under way then may
    take a minute and a half more); the pauses grow to 15 s. 0: it is tried once; without `patient`: for 2 s. Of several
    the innermost counts. Credentials that are missing or expired are waited for, too (but not without `patient`).
    say: gets one line when storage falls silent and one when it answers again; by default they go to standard error.
    here: in this thread alone, where it counts before those of the process. together: `seconds` for all operations,
    from now on; once one has failed after them, all later ones fail without a try.
    """
    own = _Patience(seconds, clock, sleep, say, together=together)
    kept = _own.patiences if here else _patiences
    kept.append(own)
    try:
        yield
    finally:
        kept.remove(own)


@contextlib.contextmanager
def observed(hook: Hook) -> Iterator[None]:
    """Meanwhile, call `hook` before and after every attempt at an operation, in all threads: for tests and counting.

    hook: called as `hook(operation, uri, moment)`, "after" only where the operation succeeded (a `reader` counts as a
    read). What it raises is raised by the operation: UnreachableError "before" is a request that never arrived, "after"
    a lost answer, both tried again; a BaseException is a death.
    """
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


def patiently(operation: Operation, uri: str, attempt: Callable[[bool], Result]) -> Result:
    """What `attempt` returns, called again while it raises an error that may pass and there is patience.

    attempt: is told whether an earlier call may have done the work already.
    """
    patience = (_own.patiences or _patiences)[-1]
    since = patience.begin()
    for number in itertools.count():
        try:
            _tell(operation, uri, "before")
            result = attempt(number > 0)
            _tell(operation, uri, "after")
            break
        except patience.passing as error:
            if not patience.wait(number, since, error):
                raise
    patience.answered()
    return result


def _tell(operation: Operation, uri: str, moment: Moment) -> None:
    for hook in _hooks:
        hook(operation, uri, moment)
