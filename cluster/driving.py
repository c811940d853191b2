"""The driver's side of a command's searches: its one stop flag, who may raise it, and what a user sees meanwhile.

Signals, a deadline, a budget, another driver and a trial's own trouble all end the work in the same way: the flag is
raised, trials save and return, and the command says what is finished and how to go on (exit code 3).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.board import BOARD_LOST, BoardFacts, Key, Limits, start_board
from cluster.liveness import DriverSign, Facts, read_driver, require_idle
from cluster.shards import progress_bar
from cluster.stopping import Stop
from data_prep import storage

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Trials that have not returned so long after the flag was raised are ended; their last state stands.
GRACE_SECONDS = 60.0
_POLL_SECONDS = 0.5
# A signal that reaches a driver twice, from its group and from its parent, is one.
_SAME_SIGNAL_SECONDS = 1.0
_READERS = 16


@dataclass(slots=True)
class Driver:
    """This process's work on some runs.

    board: the actor (`cluster.board.RunBoard`). limits: of the work. stop: the flag. `facts` and `over` are kept up to
    date while the work is watched: over is true once the flag is up and no trial that has begun is left, or the grace
    has passed.
    """

    board: Any
    limits: Limits = field(default_factory=Limits)
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    stop: Stop | None = None
    facts: BoardFacts | None = None
    over: bool = False
    complete: bool = False
    _stopped_at: float = 0.0
    _signalled_at: float | None = None
    _signs: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _ranks: dict[str, tuple[int, str]] = field(default_factory=dict)

    def work_on(self, run: str, *, takeover: bool, is_whole: bool = False) -> None:
        """Say in driver.json of `run` (a URI) that this process works on it, from here to the end of `driving`.

        What its attempts have spent counts for the budget: a limit that is reached has raised the flag on return.
        takeover: also where another driver works on it. is_whole: its parts are all the work, and what they spend is
        what it has spent. Raises InputError where another driver works on it.
        """
        if not is_whole:
            ray.get(self.board.add_run.remote(run, spent_seconds(run)))
        self.look()
        # Right before the sign: whoever comes later sees it.
        require_idle(run, takeover=takeover)
        sign = DriverSign(
            [run],
            self.session,
            self.take_over,
            progress=(lambda: {run: sum(self.device_seconds().values())}) if is_whole else self.device_seconds,
            deadline=self.limits.deadline,
            device_hours=self.limits.device_hours,
        )
        self._signs.enter_context(sign.shown(self.ending))
        self._ranks[run] = _rank(read_driver(run) or {})
        self.confirm(run)

    def confirm(self, run: str) -> None:
        """Raise the flag where another driver has taken over a run of ours, whose sign is read for that now."""
        standing = read_driver(run) or {}
        rank = _rank(standing)
        if rank[1] != self.session and rank >= self._ranks[run]:
            self.take_over(standing)

    def request(self, stop: Stop) -> None:
        """Raise the flag; the first reason stays. May be called by a signal's handler."""
        if self.stop is None:
            self._stopped_at = time.monotonic()
            self.stop = stop

    def take_over(self, other: Facts) -> None:
        """Another driver works on a run of ours: stop."""
        self.request(Stop("run", f"taken over by process {other.get('pid')} of {other.get('host')}"))

    def device_seconds(self) -> Mapping[str, float]:
        """Of each run, all attempts counted, as far as is known."""
        return {} if self.facts is None else self.facts.device_seconds

    def failures(self) -> dict[Key, str]:
        """Why trials could not search, of those that could not say so in the run directory."""
        return {} if self.facts is None else dict(self.facts.failures)

    def look(self) -> None:
        """Ask the board, and tell it of the flag."""
        try:
            self.facts = ray.get(self.board.facts.remote(self.stop), timeout=_POLL_SECONDS * 20)
            if self.facts.stop is not None:
                self.request(self.facts.stop)
        except ray.exceptions.ActorDiedError:
            self.request(BOARD_LOST)
        except ray.exceptions.RayError:  # slow, or out of reach for a while
            pass
        if self.stop is not None:
            late = time.monotonic() - self._stopped_at >= GRACE_SECONDS
            self.over = late or (self.facts is not None and self.facts.stop is not None and not self.facts.running)

    @contextlib.contextmanager
    def watched(self, title: str, total: int, shown: bool) -> Iterator[None]:
        """Meanwhile the board is looked at, and moves a progress bar of `total` epochs of points."""
        done = threading.Event()
        # Of searches that came before these.
        earlier = 0 if self.facts is None else self.facts.epochs
        with progress_bar(title, total, "epoch", shown) as bar:

            def show() -> None:
                self.look()
                if self.facts is not None and self.facts.dev_auc is not None:
                    bar.set_postfix(dev_auc=f"{self.facts.dev_auc:.3f}", refresh=False)
                if self.facts is not None:
                    bar.update(max(self.facts.epochs - earlier - bar.n, 0))

            def follow() -> None:
                while not done.wait(_POLL_SECONDS):
                    show()

            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()
                show()

    @contextlib.contextmanager
    def signals_taken(self) -> Iterator[None]:
        """The first SIGTERM or SIGINT raises the flag meanwhile, a second one interrupts at once.

        Only the main thread receives signals; elsewhere nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def take(signum: int, frame: Any) -> None:
            now = time.monotonic()
            if self._signalled_at is not None and now - self._signalled_at >= _SAME_SIGNAL_SECONDS:
                raise KeyboardInterrupt
            self._signalled_at = self._signalled_at or now
            self.request(Stop("run", signal.Signals(signum).name))

        before = {signum: signal.signal(signum, take) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def ending(self, error: BaseException | None) -> tuple[str, str | None]:
        """How the work ended, for driver.json."""
        if isinstance(error, KeyboardInterrupt):
            return "stopped", "interrupted"
        if error is not None:
            return "failed", str(error) or type(error).__name__
        if self.complete or self.stop is None:
            return "complete", None
        return "stopped", self.stop.reason


@contextlib.contextmanager
def driving(*, deadline: float | None = None, device_hours: float | None = None) -> Iterator[Driver]:
    """Drive the searches of those runs that `Driver.work_on` is told; needs `cluster.session.connect`.

    deadline: Unix seconds. device_hours: budget of all runs together, what was spent before counted.
    """
    limits = Limits(deadline, device_hours)
    driver = Driver(start_board(limits), limits)
    try:
        with driver.signals_taken(), storage.patient(), driver._signs:
            yield driver
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(driver.board)


def _rank(facts: Facts) -> tuple[int, str]:
    """Of two drivers the one with the higher rank stays."""
    return int(facts.get("generation", 0)), str(facts.get("session", ""))


def spent_seconds(run: str) -> float:
    """Device seconds that a run's attempts have taken so far, as their heartbeats say, or its last driver.

    Neither knows all: a driver that was killed knew the last attempts not to their end, and an attempt counts from when
    its clips were there.
    """
    root = storage.join(run, "packs")
    beats = [storage.join(root, path) for path in storage.list(root) if path.endswith("/heartbeat.json")]
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        seconds = sum(readers.map(_attempt_seconds, beats))
    return max(seconds, float((read_driver(run) or {}).get("device_seconds", 0.0)))


def _attempt_seconds(uri: str) -> float:
    try:
        return float(json.loads(storage.read(uri)).get("device_seconds", 0.0))
    except FileNotFoundError:  # an attempt of which nothing is left
        return 0.0
