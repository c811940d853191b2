"""Dying between any two changes of storage, and storage that is full or silent from any change on: a resume is right.

In one process, without Ray: what a driver does (begin the run or let it grow, split its packs, gather) around the
search of each pack, with a real, tiny population. Every write, creation and deletion of the sequence is tried.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import stgs.population
from cluster import grid, packing, runs
from cluster.attempts import read_packs, read_result
from cluster.features import FeatureSource, open_features
from cluster.grid import GridConfig, GridResult, gather
from cluster.search_loop import search_pack
from cluster.settings import SearchSettings
from cluster.stopping import Stop
from data_prep import boxes, storage
from data_prep.storage import NoSpaceError, UnreachableError
from stgs.config import SearchConfig
from tests.memory_store import ROOT, MemoryStore
from tests.planted import make_features

RUN = f"{ROOT}/run"
SETTINGS = SearchSettings(
    device="cpu",
    channels=2,
    length=2,
    num_cells=1,
    num_steps=1,
    feature_names=("visual.layer3", "audio.layer2"),
    search=SearchConfig(epochs=2, batch_size=8),
)
ONE = GridConfig(temperatures=(10.0,), num_samples=(2,), devices=1, settings=SETTINGS)
TWO = GridConfig(temperatures=(10.0, 5.0), num_samples=(2,), devices=1, settings=SETTINGS)
SPLIT = GridConfig(temperatures=(10.0, 5.0), num_samples=(2,), devices=2, settings=SETTINGS)
SUBJECTS = {"train": 4, "dev": 2, "test": 1}
UPDATES_OF_AN_EPOCH = 2  # 4 subjects of 4 clips each, 8 clips a batch
CHANGES = ("write", "create", "delete")


class Death(BaseException):
    """The process is killed."""


class Fault:
    """A hook that raises `error` at the change with this number (from 0), and at whatever comes later.

    moment: before or after the change is made. wanted: in the URIs of the changes that count.
    """

    def __init__(self, number: int, moment: str, error: BaseException, wanted: str = "") -> None:
        self._left, self._moment, self._error, self._wanted = number, moment, error, wanted
        self.raised = False

    def __call__(self, operation: str, uri: str, moment: str) -> None:
        if not self.raised and moment == self._moment and operation in CHANGES and self._wanted in uri:
            self.raised = self._left == 0
            self._left -= 1
        # A full disk can still be read, and files can be deleted from it.
        spared = isinstance(self._error, NoSpaceError) and operation not in ("write", "create")
        if self.raised and uri.startswith(ROOT) and not spared:
            raise self._error


class Commits(Counter[str]):
    """A hook that counts how often each point's result was created."""

    def __call__(self, operation: str, uri: str, moment: str) -> None:
        if operation == "create" and moment == "after" and uri.endswith("/result.json"):
            self[uri] += 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted"), subjects=SUBJECTS))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """An empty storage, in a process whose patience costs no time."""
    patient, now = storage.patient, 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    by_our_clock = {"clock": lambda: now, "sleep": sleep, "say": len}
    monkeypatch.setattr(
        storage, "patient", lambda seconds=300.0, **options: patient(seconds, **{**options, **by_our_clock})
    )
    # Heartbeats come at the ends of epochs only, and what the machine says of itself is asked once.
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    environment = runs.environment()
    monkeypatch.setattr(runs, "environment", lambda: environment)
    monkeypatch.setattr(packing, "device_memory", lambda *_: None)
    memory = MemoryStore()
    with memory.installed(), storage.patient():
        yield memory


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the weight updates of each member, by its temperature."""
    counter: Counter[str] = Counter()
    usual = stgs.population.weight_update

    def counted(supernet: Any, *arguments: Any, **options: Any) -> Any:
        counter.update(f"{temperature:g}" for temperature in supernet.temperature.tolist())
        return usual(supernet, *arguments, **options)

    monkeypatch.setattr(stgs.population, "weight_update", counted)
    return counter


class Driver:
    """What `stgs grid --resume` does, without Ray."""

    def __init__(self, source: FeatureSource) -> None:
        self._source, self._splits = source, source.load_splits(("train", "dev"))

    def __call__(self, config: GridConfig) -> GridResult | Stop:
        begun = grid._begin(RUN, config, self._source, resume=True)
        trials = begun.trials()
        grid._forget_failures(trials)
        for job, pack in trials:
            stop = search_pack(job, pack, self._splits["train"], self._splits["dev"], lambda row: None)
            if stop is not None:
                return stop
        return gather(begun.run, begun.packs, {})


@pytest.fixture(scope="module")
def drive(source: FeatureSource) -> Driver:
    return Driver(source)


@pytest.fixture(params=["new", "grown", "split"])
def config(request: pytest.FixtureRequest, drive: Driver, store: MemoryStore) -> GridConfig:
    """What is asked for in the tests. new: of an empty storage. grown: of a run with one of its points. split: of a run
    that died after an epoch, whose pack is cut in two.
    """
    if request.param == "new":
        return TWO
    if request.param == "grown":
        drive(ONE)
        return TWO
    with storage.observed(Fault(0, "after", Death(), "/state-")), contextlib.suppress(Death):
        drive(TWO)
    return SPLIT


def outcome(result: GridResult | Stop) -> dict[str, Any]:
    """All that a search is for, by point."""
    assert isinstance(result, GridResult)
    assert not result.failed
    found = {}
    for row in result.rows:
        content = read_result(RUN, row["id"])
        assert content is not None
        assert storage.exists(storage.join(RUN, content["attempt"], "claim.json"))
        uri = storage.join(RUN, content["curves"]["path"])
        assert hashlib.sha256(storage.read(uri)).hexdigest() == content["curves"]["sha256"]
        member = content["curves"]["member"]
        # A point whose pack has other results already goes on alone, and is then the first member.
        curves = [line for line in boxes.read_table(uri).to_pylist() if line.pop("member") == member]
        facts = {name: row[name] for name in row if "seconds" not in name and not name.startswith("curves")}
        found[row["id"]] = (facts, content["genotype"], content["parameters"], content["metrics"], curves)
        assert row["genotype"] + "\n" == storage.read(storage.join(RUN, "points", row["id"], "genotype.json")).decode()
    wanted = sorted(point.id for point in TWO.points())
    assert sorted(found) == sorted(point.id for pack in read_packs(RUN) for point in pack.points) == wanted
    return found


def test_a_death_between_any_two_changes_costs_an_epoch_at_most(
    drive: Driver, config: GridConfig, store: MemoryStore, updates: Counter[str]
) -> None:
    """A process that dies leaves what stands in the storage at that moment, whichever line it was at."""
    updates.clear()
    commits = Commits()
    left = []

    def keep(operation: str, uri: str, moment: str) -> None:
        if operation in CHANGES and moment == "before":
            left.append((f"{operation} {uri}", dict(store.objects), Counter(updates), Commits(commits)))

    with storage.observed(commits), storage.observed(keep):
        expected = outcome(drive(config))
    assert not [uri for uri in store.objects if "/state-" in uri], "states are deleted once the results stand"
    needed = Counter(updates)
    assert len(left) > 20
    for place, store.objects, done, committed in left:
        updates.clear()
        with storage.observed(committed):
            assert outcome(drive(config)) == expected, place
        assert set(committed.values()) == {1}, place
        for member, count in (done + updates).items():
            assert count <= needed[member] + UPDATES_OF_AN_EPOCH, place


@pytest.mark.parametrize("config", ["new", "split"], indirect=True)
@pytest.mark.parametrize(
    ("error", "moment"),
    [
        (NoSpaceError("the disk is full."), "before"),
        (UnreachableError("it does not answer."), "before"),
        (UnreachableError("it does not answer."), "after"),
    ],
)
def test_storage_that_is_full_or_silent_from_any_change_on_ends_in_a_sentence(
    drive: Driver, config: GridConfig, store: MemoryStore, error: Exception, moment: str
) -> None:
    begin = dict(store.objects)
    expected = outcome(drive(config))
    for number in itertools.count():
        store.objects = dict(begin)
        fault = Fault(number, moment, error)
        with storage.observed(fault):
            try:
                ended = drive(config)
                told = ended.reason if isinstance(ended, Stop) else None
            except type(error) as raised:
                told = str(raised)
        if not fault.raised:
            break
        # The last deletions, logs and heartbeats can be done without.
        assert told == str(error) or (told is None and outcome(ended) == expected), number
        assert outcome(drive(config)) == expected, number
    assert number > 20


@pytest.mark.parametrize("config", ["new"], indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_outage_at_any_change_is_waited_for(
    drive: Driver, config: GridConfig, store: MemoryStore, moment: str
) -> None:
    """Requests or answers are lost once, at every change; nothing is done twice, and the end is the same."""
    expected = outcome(drive(config))
    store.objects = {}
    commits, lost = Commits(), set()

    def lose(operation: str, uri: str, when: str) -> None:
        place = (operation, uri)
        if operation in CHANGES and when == moment and place not in lost:
            lost.add(place)
            raise UnreachableError("it does not answer.")

    with storage.observed(lose), storage.observed(commits):
        assert outcome(drive(config)) == expected
    attempts = {uri.split("/attempts/")[1].split("/")[0] for uri in store.objects if "/attempts/" in uri}
    assert attempts == {"0"}
    assert len(lost) > 15
