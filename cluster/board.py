"""The board of a command's searches: an actor beside the driver that knows how far each is, and whether to stop.

What moves the progress bar, what is counted for the budget and the wish to stop go through it, so none of them asks the
storage for anything. It may be lost without harm: heartbeats in the run directory say the same, later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.attempts import Pack
from cluster.limits import utc
from cluster.stopping import Stop

# (run, name of the pack): what a trial searches.
Key = tuple[str, str]
_HOUR = 3600.0
_BUDGET = "the budget of"
# A trial waits so long for the board's word before it begins, and for its answer between two steps.
_BEGIN_S, _ANSWER_S = 30.0, 0.1


@dataclass(slots=True)
class Limits:
    """deadline: Unix seconds. device_hours: budget. spent: device seconds of each run before this command's work."""

    deadline: float | None = None
    device_hours: float | None = None
    spent: Mapping[str, float] = field(default_factory=dict)

    def reached(self, spent: float, now: float) -> Stop | None:
        """The stop that a limit asks for. spent: device seconds of all runs by now. now: Unix seconds."""
        if self.deadline is not None and now >= self.deadline:
            return Stop("run", f"the deadline {utc(self.deadline)} has passed")
        if self.device_hours is not None and spent >= self.device_hours * _HOUR:
            return Stop("run", f"{_BUDGET} {self.device_hours:g} device hours is spent")
        return None


def way_on(stop: Stop) -> str:
    """The options that go on with what `stop` ended."""
    return "--resume and a larger --device-hours" if stop.reason.startswith(_BUDGET) else "--resume"


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """stop: of the whole command, None while it goes on. running: trials that have begun and not ended. epochs: done,
    summed over points. dev_auc: the best. device_seconds: of each run. failures: why trials could not search.
    """

    stop: Stop | None
    running: frozenset[Key]
    epochs: int
    dev_auc: float | None
    device_seconds: Mapping[str, float]
    failures: Mapping[Key, str]


class RunBoard:
    """What the trials of a command's runs tell, and what they are told. An actor; a plain object in tests."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._limits, self._clock = limits, clock
        self._stop: Stop | None = None
        self._recalled: dict[Key, Stop] = {}
        self._running: set[Key] = set()
        self._beats: dict[Key, Mapping[str, Any]] = {}
        # Device seconds of the attempts before the one that runs, and of that one.
        self._past: dict[Key, float] = {}
        self._current: dict[Key, float] = {}
        self._failures: dict[Key, str] = {}

    def begin(self, key: Key) -> Stop | None:
        """A trial begins; it must not where a stop is returned."""
        self._past[key] = self._past.get(key, 0.0) + self._current.pop(key, 0.0)
        self._recalled.pop(key, None)
        self._running.add(key)
        return self._wish(key)

    def beat(self, key: Key, facts: Mapping[str, Any]) -> Stop | None:
        """A trial says how far it is, at most once a second: points, device_seconds of this attempt, and from its first
        epoch on epoch and dev_auc. Returns whether it should stop.
        """
        self._running.add(key)
        self._current[key] = facts["device_seconds"]
        if "epoch" in facts:
            self._beats[key] = facts
        return self._wish(key)

    def end(self, key: Key, failure: str | None = None) -> None:
        """A trial ends. failure: why it could not search, where it could not say so in the run directory."""
        self._running.discard(key)
        if failure is not None:
            self._failures[key] = failure

    def stop(self, stop: Stop) -> None:
        """Ask all trials to stop; the first who asks gives the reason."""
        self._stop = self._stop or stop

    def recall(self, key: Key, stop: Stop) -> bool:
        """Ask one trial to stop, which is started again at once. Returns whether it runs."""
        if key in self._running:
            self._recalled[key] = stop
        return key in self._running

    def facts(self, stop: Stop | None = None) -> BoardFacts:
        """How far all are. stop: asks for it, too, as `stop` does."""
        if stop is not None:
            self.stop(stop)
        spent = self._check_limits()
        scores = [beat["dev_auc"] for beat in self._beats.values() if beat["dev_auc"] is not None]
        return BoardFacts(
            self._stop,
            frozenset(self._running),
            sum(beat["epoch"] * beat["points"] for beat in self._beats.values()),
            max(scores, default=None),
            spent,
            dict(self._failures),
        )

    def _check_limits(self) -> dict[str, float]:
        spent = dict(self._limits.spent)
        for table in (self._past, self._current):
            for (run, _), seconds in table.items():
                spent[run] = spent.get(run, 0.0) + seconds
        self._stop = self._stop or self._limits.reached(sum(spent.values()), self._clock())
        return spent

    def _wish(self, key: Key) -> Stop | None:
        self._check_limits()
        return self._stop or self._recalled.get(key)


def start_board(limits: Limits) -> Any:
    """A board on this node, as an actor; needs `cluster.session.connect`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(RunBoard)
    return remote.options(scheduling_strategy=here).remote(limits)


class BoardLink:
    """A trial's side of the board; a `StopCheck` that also tells how far the trial is.

    world: processes that share the search, each on one device.
    """

    def __init__(self, board: Any, run: str, pack: Pack, world: int = 1) -> None:
        self._board, self._world = board, world
        self._key: Key = (run, pack.name)
        self._facts: dict[str, Any] = {"points": len(pack.points)}
        self._start = time.monotonic()
        self._asked: Any = None

    def begin(self) -> Stop | None:
        """Say that the trial begins; returns a stop where it must not."""
        with contextlib.suppress(ray.exceptions.RayError):
            stop: Stop | None = ray.get(self._board.begin.remote(self._key), timeout=_BEGIN_S)
            return stop
        return None

    def report(self, row: Mapping[str, Any]) -> None:
        """What the search says after every epoch."""
        self._facts |= {"epoch": row["epoch"], "dev_auc": row["dev_auc"]}

    def __call__(self) -> Stop | None:
        """Whether to stop, as far as the board has answered: a slow answer is taken at the next call."""
        with contextlib.suppress(ray.exceptions.RayError):
            if self._asked is None:
                self._asked = self._board.beat.remote(self._key, self._now())
            ready, _ = ray.wait([self._asked], timeout=_ANSWER_S)
            if ready:
                self._asked = None
                stop: Stop | None = ray.get(ready[0])
                return stop
            return None
        self._asked = None
        return None

    def _now(self) -> dict[str, Any]:
        return {**self._facts, "device_seconds": self._world * (time.monotonic() - self._start)}

    def end(self, stop: Stop | None = None, failure: str | None = None) -> None:
        """Say that the trial ends. stop: one that it found itself, such as a storage that is full."""
        with contextlib.suppress(ray.exceptions.RayError):
            self._board.beat.remote(self._key, self._now())
            if stop is not None and stop.scope == "run":
                self._board.stop.remote(stop)
            ray.get(self._board.end.remote(self._key, failure), timeout=_BEGIN_S)
