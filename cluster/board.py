"""The board of a command's searches: an actor beside the driver that knows how far each is, and whether to stop.

What moves the progress bar, what is counted for the budget and the wish to stop go through it, so none of them asks the
storage for anything. Where it is lost, trials save and end, and so does the command: heartbeats in the run directory
say the same, later, so a resume counts on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.attempt_record import FRUITLESS_ATTEMPTS
from cluster.limits import utc
from cluster.stopping import Stop

# (run, name of the pack): what a trial searches; of found networks (URI, what is trained there).
Key = tuple[str, str]
BOARD_LOST = Stop("run", "the board, the process beside the driver that keeps count of its searches, has died")
_HOUR = 3600.0
_BUDGET = "the budget of"
# So many deaths of a pack's process in a row, before its search asks the board anything, give the pack up: one more
# than attempts without success do, which tell it better where a process lives long enough to claim one.
SILENT_DEATHS = FRUITLESS_ATTEMPTS + 1
# A trial waits so long for the board's word before it begins, and for its answer between two steps.
_BEGIN_S, _ANSWER_S = 30.0, 0.1


@dataclass(slots=True)
class Limits:
    """deadline: Unix seconds. device_hours: budget of all runs of a command together."""

    deadline: float | None = None
    device_hours: float | None = None

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


class GivenUpError(RuntimeError):
    """The processes of this pack have died too often before their search began; the board knows the sentence."""


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
        # Device seconds of each run, kept as sums since every beat asks for them, and of the attempts that run.
        self._spent: dict[str, float] = {}
        self._current: dict[Key, float] = {}
        self._failures: dict[Key, str] = {}
        # Trials whose process has given a sign since the last death, and deaths in a row without one.
        self._seen: set[Key] = set()
        self._silent_deaths: dict[Key, int] = {}

    def add_run(self, run: str, spent: float) -> None:
        """Trials of `run` are to come. spent: device seconds of it before this command's work."""
        self._spent[run] = self._spent.get(run, 0.0) + spent

    def begin(self, key: Key) -> Stop | str | None:
        """A trial begins; it must not where a stop is returned, or a failure, since the pack was given up."""
        if key in self._failures:
            return self._failures[key]
        self._current.pop(key, None)
        self._recalled.pop(key, None)
        self._running.add(key)
        return self._wish(key)

    def beat(self, key: Key, facts: Mapping[str, Any]) -> Stop | None:
        """A trial says how far it is, at most once a second: points, device_seconds of this attempt, and from its first
        epoch on epoch and dev_auc. Returns whether it should stop.
        """
        self._running.add(key)
        self._seen.add(key)
        run, seconds = key[0], facts["device_seconds"]
        self._spent[run] = self._spent.get(run, 0.0) + seconds - self._current.get(key, 0.0)
        self._current[key] = seconds
        if "epoch" in facts:
            self._beats[key] = facts
        return self._wish(key)

    def end(self, key: Key, failure: str | None = None) -> None:
        """A trial ends. failure: why it could not search, where it could not say so in the run directory."""
        self._running.discard(key)
        self._seen.add(key)
        if failure is not None:
            self._failures.setdefault(key, failure)

    def died(self, key: Key, why: str) -> bool:
        """A trial's process is gone, as its engine says, which would start it again. why: in the engine's words.

        Returns whether the pack is given up: too often in a row no search had begun.
        """
        self._running.discard(key)
        if key in self._seen:
            self._seen.discard(key)
            self._silent_deaths[key] = 0
            return key in self._failures
        self._silent_deaths[key] = self._silent_deaths.get(key, 0) + 1
        if self._silent_deaths[key] >= SILENT_DEATHS:
            told = " ".join(why.split()) or "nothing more is known"
            self._failures.setdefault(
                key, f"{SILENT_DEATHS} processes in a row ended before their search began; the last one: {told}"
            )
        return key in self._failures

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
        self._check_limits()
        scores = [beat["dev_auc"] for beat in self._beats.values() if beat["dev_auc"] is not None]
        return BoardFacts(
            self._stop,
            frozenset(self._running),
            sum(beat["epoch"] * beat["points"] for beat in self._beats.values()),
            max(scores, default=None),
            dict(self._spent),
            dict(self._failures),
        )

    def _check_limits(self) -> None:
        self._stop = self._stop or self._limits.reached(sum(self._spent.values()), self._clock())

    def _wish(self, key: Key) -> Stop | None:
        self._check_limits()
        return self._stop or self._recalled.get(key)


def start_board(limits: Limits) -> Any:
    """A board on this node, as an actor; needs `cluster.session.connect`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Not started again: a second one would know neither the stop nor what is spent.
    remote: Any = ray.remote(num_cpus=0, max_restarts=0)(RunBoard)
    return remote.options(scheduling_strategy=here).remote(limits)


class BoardLink:
    """A trial's side of the board; a `StopCheck` that also tells how far the trial is.

    key: of the trial. points: whose epochs it counts together. world: processes that share it, each on one device.
    """

    def __init__(self, board: Any, key: Key, points: int, world: int = 1) -> None:
        self._board, self._world, self._key = board, world, key
        self._facts: dict[str, Any] = {"points": points}
        self._start = time.monotonic()
        self._asked: Any = None

    def begin(self) -> Stop | None:
        """Say that the trial begins; returns a stop where it must not. Raises GivenUpError."""
        try:
            answer: Stop | str | None = ray.get(self._board.begin.remote(self._key), timeout=_BEGIN_S)
        except ray.exceptions.ActorDiedError:
            return BOARD_LOST
        except ray.exceptions.RayError:  # it is slow, or out of reach for a while: asked again between two steps
            return None
        if isinstance(answer, str):
            raise GivenUpError(answer)
        return answer

    def report(self, row: Mapping[str, Any]) -> None:
        """What the search says after every epoch."""
        self._facts |= {"epoch": row["epoch"], "dev_auc": row["dev_auc"]}

    def __call__(self) -> Stop | None:
        """Whether to stop, as far as the board has answered: a slow answer is taken at the next call."""
        try:
            if self._asked is None:
                self._asked = self._board.beat.remote(self._key, self._now())
            ready, _ = ray.wait([self._asked], timeout=_ANSWER_S)
            if not ready:
                return None
            self._asked = None
            stop: Stop | None = ray.get(ready[0])
            return stop
        except ray.exceptions.ActorDiedError:
            return BOARD_LOST
        except ray.exceptions.RayError:
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
