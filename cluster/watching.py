"""How far a run is, from its storage alone: neither the cluster nor its driver is asked.

Loads neither torch nor Ray, so that `stgs status` starts at once.

Storage requests of one look: a listing of the run (on S3 one request for 1,000 objects), driver.json, packs/index.json
of the run and of each part, the newest heartbeat of each unfinished pack (and the claim of an attempt that has none
yet), failed.json of those failed points that are shown, and, unless the run's own driver works, driver.json of each
control. The first look also reads config.yaml, every pack.json, and result.json of the finished points shown: later
ones of the same `Watcher` remember those. Reads go side by side.
"""

from __future__ import annotations

import heapq
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from cluster.liveness import DRIVER_NAME, SILENT_SECONDS, is_live, read_driver
from cluster.points import Pack
from cluster.run_json import Json, number_of, parse_object, read_object, text_of
from cluster.watched_settings import watched_settings
from data_prep import storage
from data_prep.storage import InputError

RUNNING, LOST, FAILED, WAITING, DONE = STATES = ("running", "lost", "failed", "waiting", "done")
"""States of a point, in the order in which they are shown. lost: its attempt has given no sign for a minute and has not
said that it ended; it waits for a restart. A point that was stopped in good order is waiting."""

_ATTEMPT_FILE = re.compile(r"packs/([^/]+)/attempts/(\d+)/(claim|heartbeat)\.json")
_POINT_FILE = re.compile(r"points/([^/]+)/(result|failed)\.json")
# Below a part of a protocol lie those of its controls.
_PART_FILE = re.compile(r"((?:parts/[^/]+/)+)(.+)")
_CHOICES = ("alpha", "beta", "gamma")
_READERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class PointStatus:
    """A point of a run. What is unknown is None: also what the version that made the run did not write yet.

    state: one of STATES. epoch: the last one that ended; epochs: the limit. dev_auc: of that epoch, of a finished point
    of its best. entropies: of alpha, beta and gamma, divided by their maximum, 0 to 1. device_seconds: of a finished
    point; of another one its share of the latest attempt. machine: where that attempt runs, or ran last. attempts: at
    its pack, and at the one that this was split off. seconds_left: until the epoch limit. reason: why it failed or was
    stopped.
    """

    id: str
    pack: str
    state: str
    attempts: int = 0
    epoch: int | None = None
    epochs: int | None = None
    dev_auc: float | None = None
    entropies: dict[str, float | None] = field(default_factory=dict)
    device_seconds: float | None = None
    machine: str | None = None
    seconds_left: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """A look at a run.

    time: Unix seconds. driver: driver.json with `state`: live, ended, or lost (no sign for a minute, or its process is
    gone); None where none was written. counts: points by state, all of STATES; of a protocol those of its parts.
    points: those that were wanted, in the order of STATES, then of the grid, as `part/id` where they are a part's.
    parts: the counts of each search under parts/, a control of a part as `part/control`. seconds_left: until all points
    are done, on as many machines as are at work now. controls: the live drivers of controls, as `driver`, by their
    parts, where the run's own driver does not work: they are searched by a later command, `stgs train`. unit: what is
    counted: a `point`, or a `part` of a baseline.
    """

    run: str
    time: float
    driver: Json | None
    counts: dict[str, int]
    points: list[PointStatus]
    parts: dict[str, dict[str, int]]
    seconds_left: float | None
    controls: dict[str, Json] = field(default_factory=dict)
    unit: str = "point"

    @property
    def over(self) -> bool:
        """Whether nothing more happens unless somebody resumes the run."""
        if self.controls:
            return False
        if self.driver is not None:
            return bool(self.driver["state"] == "ended")
        counts = [self.counts, *self.parts.values()]
        # Without any point it has just begun.
        return any(self.counts.values()) and not any(
            each[state] for each in counts for state in (RUNNING, LOST, WAITING)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is left to do at a pack. state: of its unfinished points. epoch_seconds: of its last epoch.

    epochs_left, epoch_seconds: None where unknown.
    """

    state: str
    epochs_left: int | None
    epoch_seconds: float | None


def seconds_left(works: Sequence[Work]) -> float | None:
    """Seconds until all work is done if as many packs go on side by side as run now; None where nothing tells.

    A pack whose epochs were not timed takes as long for one as those that run do on average.
    """
    if not works:
        return 0.0
    timed = [work.epoch_seconds for work in works if work.state == RUNNING and work.epoch_seconds is not None]
    if not timed:
        return None
    typical = statistics.fmean(timed)
    busy: list[float] = []
    later: list[float] = []
    for work in works:
        if work.epochs_left is None:
            return None
        needed = work.epochs_left * (typical if work.epoch_seconds is None else work.epoch_seconds)
        (busy if work.state == RUNNING else later).append(needed)
    heapq.heapify(busy)
    for needed in later:
        # The machine that is free first takes the next pack.
        heapq.heapreplace(busy, busy[0] + needed)
    return max(busy)


class Watcher:
    """Looks at one run again and again, remembering what cannot change.

    run: URI of the run. Raises InputError where there is none.
    """

    def __init__(self, run: str) -> None:
        self.run = storage.absolute(run)
        # Of a search that has said nothing yet; and the parts that its points lie in, if they lie in any.
        settings = watched_settings(self.run)
        self.epochs, self.parts = settings.epochs, settings.parts
        # Contents of pack.json and result.json by URI: they never change once they stand.
        self._kept: dict[str, bytes] = {}

    def look(self, *, most: int | None = None, clock: Callable[[], float] = time.time) -> RunStatus:
        """The run as it is now. most: points to return, None for all. clock: Unix seconds."""
        now = clock()
        arms = {name: _Arm(self, name, files) for name, files in self._list().items()}
        with ThreadPoolExecutor(_READERS) as readers:
            for arm in arms.values():
                arm.look(now, readers)
            mine = [arms[name] for name in self.parts or ("",) if name in arms]
            own = [(arm, point) for arm in mine for point in arm.points]
            own.sort(key=lambda held: STATES.index(held[1].state))
            shown = list(readers.map(lambda held: held[0].detailed(held[1]), own[:most]))
            driver = driver_facts(self.run, now)
            is_driven = driver is not None and driver["state"] == "live"
            controls = {} if is_driven else self._controls(arms, now, readers)
        return RunStatus(
            run=self.run,
            time=now,
            driver=driver,
            counts=counts_of(point for _, point in own),
            points=shown,
            parts={name: counts_of(arm.points) for name, arm in arms.items() if name and arm.files.has_packs},
            seconds_left=seconds_left([work for arm in arms.values() for work in arm.works]),
            controls=controls,
        )

    def _controls(self, arms: Mapping[str, _Arm], now: float, readers: Executor) -> dict[str, Json]:
        """The live drivers of controls, by their parts."""
        driven = [arm for name, arm in arms.items() if name and name not in self.parts and arm.files.has_driver]
        facts = readers.map(lambda arm: driver_facts(arm.uri, now), driven)
        found = zip(driven, facts, strict=True)
        return {arm.name: told for arm, told in found if told is not None and told["state"] == "live"}

    def _list(self) -> dict[str, _Files]:
        """What stands of the run itself, under the empty name, and of each part that has packs or a driver."""
        arms = {"": _Files()}
        for path in storage.list(self.run):
            part = _PART_FILE.fullmatch(path)
            name, below = ("/".join(part[1].split("/")[1::2]), part[2]) if part else ("", path)
            arms.setdefault(name, _Files()).add(below)
        names = sorted(arms, key=lambda name: name.split("/"))
        return {name: arms[name] for name in names if not name or arms[name].has_packs or arms[name].has_driver}

    def read_once(self, uri: str) -> bytes:
        """An object that never changes once it stands."""
        if uri not in self._kept:
            self._kept[uri] = storage.read(uri)
        return self._kept[uri]


@dataclass(slots=True)
class _Files:
    """What the listing of an arm (a run, or one of its parts) says. claims, beats: numbers of attempts, by pack."""

    has_packs: bool = False
    has_driver: bool = False
    results: set[str] = field(default_factory=set)
    failures: set[str] = field(default_factory=set)
    claims: dict[str, list[int]] = field(default_factory=dict)
    beats: dict[str, list[int]] = field(default_factory=dict)

    def add(self, path: str) -> None:
        if match := _ATTEMPT_FILE.fullmatch(path):
            numbers = self.claims if match[3] == "claim" else self.beats
            numbers.setdefault(match[1], []).append(int(match[2]))
        elif match := _POINT_FILE.fullmatch(path):
            (self.results if match[2] == "result" else self.failures).add(match[1])
        elif path == "packs/index.json":
            self.has_packs = True
        elif path == DRIVER_NAME:
            self.has_driver = True


class _Arm:
    """One look at a run, or at one of its parts. `look` fills `points`, in the order of the grid, and `works`."""

    def __init__(self, watcher: Watcher, name: str, files: _Files) -> None:
        self.watcher, self.files, self.name = watcher, files, name
        self.uri = storage.join(watcher.run, *(f"parts/{part}" for part in name.split("/"))) if name else watcher.run
        self.points: list[PointStatus] = []
        self.works: list[Work] = []

    def look(self, now: float, readers: Executor) -> None:
        # A run has no packs before its driver has fixed them.
        names = self._names() if self.files.has_packs else []
        packs = list(readers.map(self._pack, names))
        for points, work in readers.map(lambda pack: self._of_pack(pack, now), packs):
            self.points += points
            self.works += [] if work is None else [work]

    def detailed(self, point: PointStatus) -> PointStatus:
        """The point, called after its part, with what result.json or failed.json says of it."""
        uri = self._in("points", point.id)
        point = replace(point, id=f"{self.name}/{point.id}") if self.name else point
        if point.state == FAILED:
            return replace(point, reason=text_of(read_object(storage.join(uri, "failed.json")), "reason"))
        if point.state != DONE:
            return point
        result = parse_object(self.watcher.read_once(storage.join(uri, "result.json")))
        metrics = result.get("metrics")
        if not isinstance(metrics, dict):
            return replace(point, reason="its result.json is damaged")
        return replace(
            point,
            epoch=number_of(metrics, "epochs"),
            dev_auc=number_of(metrics, "dev_auc"),
            entropies=_entropies(metrics),
            device_seconds=number_of(result, "device_seconds"),
        )

    def _in(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)

    def _names(self) -> list[str]:
        uri = self._in("packs", "index.json")
        try:
            names = json.loads(storage.read(uri))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _damaged(uri)
        return names

    def _pack(self, name: str) -> Pack:
        uri = self._in("packs", name, "pack.json")
        try:
            return Pack.from_json(self.watcher.read_once(uri))
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            raise _damaged(uri) from None

    def _state(self, point_id: str) -> str | None:
        """Of a finished point; a result outranks a failure."""
        return DONE if point_id in self.files.results else FAILED if point_id in self.files.failures else None

    def _of_pack(self, pack: Pack, now: float) -> tuple[list[PointStatus], Work | None]:
        lineage = [pack]
        while lineage[-1].parent is not None:
            lineage.append(self._pack(lineage[-1].parent))
        common = PointStatus(
            id="",
            pack=pack.name,
            state=WAITING,
            attempts=sum(len(self.files.claims.get(item.name, ())) for item in lineage),
            epochs=self.watcher.epochs,
        )
        states = {point.id: self._state(point.id) for point in pack.points}
        if None not in states.values():
            return [replace(common, id=name, state=str(state)) for name, state in states.items()], None
        common, beat = self._at_work(common, lineage, now)
        points = [
            replace(common, id=name, state=state, machine=None, epoch=None, reason=None, seconds_left=None)
            if state is not None
            else _with_beat(replace(common, id=name), beat)
            for name, state in states.items()
        ]
        left = None if common.epochs is None else max(common.epochs - (common.epoch or 0), 0)
        return points, Work(state=common.state, epochs_left=left, epoch_seconds=number_of(beat, "epoch_seconds"))

    def _at_work(self, common: PointStatus, lineage: Sequence[Pack], now: float) -> tuple[PointStatus, Json]:
        """`common` with what the attempts at an unfinished pack say, and the newest heartbeat.

        lineage: the pack, the one that it was split off, and so on: its first attempt goes on from their states.
        """
        beating = next((item.name for item in lineage if item.name in self.files.beats), None)
        newest = None if beating is None else max(self.files.beats[beating])
        beat = {} if beating is None else self._attempt_file(beating, newest, "heartbeat.json")
        name = lineage[0].name
        number = max(self.files.claims.get(name, ()), default=None)
        state, sign = WAITING, beat
        if number is not None:
            # An attempt that has claimed the pack and still loads its clips has no heartbeat yet.
            sign = beat if (beating, newest) == (name, number) else self._attempt_file(name, number, "claim.json")
            if not sign.get("ended"):
                state = RUNNING if now - (number_of(sign, "time") or 0.0) < SILENT_SECONDS else LOST
        epoch, seconds = number_of(beat, "epoch"), number_of(beat, "epoch_seconds")
        epochs = common.epochs if number_of(beat, "epochs") is None else number_of(beat, "epochs")
        left = None
        if state == RUNNING and epoch is not None and epochs is not None and seconds is not None:
            left = (epochs - epoch) * seconds
        facts: Json = {"epoch": epoch, "epochs": epochs}
        facts |= {"machine": text_of(sign, "host"), "reason": text_of(sign, "reason")}
        return replace(common, state=state, seconds_left=left, **facts), beat

    def _attempt_file(self, pack: str, number: int | None, name: str) -> Json:
        return read_object(self._in("packs", pack, "attempts", str(number), name))


def _with_beat(point: PointStatus, beat: Json) -> PointStatus:
    """The point with what its pack's heartbeat says of it alone."""
    told = beat.get("points")
    told = told if isinstance(told, dict) else {}
    own, seconds = told.get(point.id), number_of(beat, "device_seconds")
    own = own if isinstance(own, dict) else {}
    epoch = number_of(own, "epoch")
    return replace(
        point,
        epoch=point.epoch if epoch is None else epoch,
        dev_auc=number_of(own, "dev_auc"),
        entropies=_entropies(own),
        device_seconds=seconds / len(told) if told and seconds is not None else None,
    )


def driver_facts(run: str, now: float) -> Json | None:
    """driver.json with `state`; None where it says neither who wrote it, nor when."""
    facts = read_driver(run)
    if (
        facts is None
        or number_of(facts, "time") is None
        or number_of(facts, "pid") is None
        or not text_of(facts, "host")
    ):
        return None
    # These are shown in numbers.
    facts |= {name: number_of(facts, name) for name in ("deadline", "device_hours", "device_seconds")}
    return {**facts, "state": "ended" if facts.get("ended") else "live" if is_live(facts, now=now) else "lost"}


def _entropies(facts: Json) -> dict[str, float | None]:
    return {name: number_of(facts, f"normalised_entropy_{name}") for name in _CHOICES}


def counts_of(points: Iterable[PointStatus]) -> dict[str, int]:
    """Points by state, all of STATES."""
    found = Counter(point.state for point in points)
    return {state: found[state] for state in STATES}


def _damaged(uri: str) -> InputError:
    return InputError(f"{uri} is gone or damaged, which says what is searched; put it back from a copy of the run.")
