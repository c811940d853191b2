"""What a run directory tells of its run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.points import Pack
from cluster.watching import RunStatus, Watcher, Work, seconds_left
from data_prep import storage
from data_prep.storage import InputError
from jobs.status import text
from tests.cluster.planted_runs import EPOCHS, NOW, beat, claim, drive, fail, finish, plant, plant_packs, points, put
from tests.s3 import s3_bucket

SUBPROCESS_S = 60


def look(run: str, most: int | None = None) -> RunStatus:
    return Watcher(run).look(most=most, clock=lambda: NOW)


def states(status: RunStatus) -> dict[str, str]:
    return {point.id: point.state for point in status.points}


@pytest.fixture
def packs() -> list[Pack]:
    """Six packs of one point."""
    return [Pack(f"pack-{number:04d}", (point,)) for number, point in enumerate(points(6))]


@pytest.fixture
def run(tmp_path: Path, packs: list[Pack]) -> str:
    """A run at which nobody has worked yet."""
    return plant(str(tmp_path / "run"), packs)


def test_points_in_every_state(run: str, packs: list[Pack]) -> None:
    done, waiting, failed, lost, running, twice = packs
    finish(run, done.points[0])
    fail(run, failed.points[0], "it did not converge.")
    beat(run, lost, age=61.0)
    beat(run, running, 0, age=500.0)
    beat(run, running, 1, age=59.0)
    finish(run, twice.points[0])
    fail(run, twice.points[0])
    status = look(run)
    assert states(status) == {
        running.points[0].id: "running",
        lost.points[0].id: "lost",
        failed.points[0].id: "failed",
        waiting.points[0].id: "waiting",
        done.points[0].id: "done",
        twice.points[0].id: "done",
    }
    assert [point.state for point in status.points] == ["running", "lost", "failed", "waiting", "done", "done"]
    assert status.counts == {"running": 1, "lost": 1, "failed": 1, "waiting": 1, "done": 2}
    at_work, gone, broken, idle, finished, _ = status.points
    assert (at_work.epoch, at_work.epochs, at_work.dev_auc, at_work.attempts) == (12, EPOCHS, 0.9, 2)
    assert at_work.entropies == {"alpha": 0.7, "beta": 0.8, "gamma": 0.9}
    assert (at_work.machine, at_work.device_seconds) == ("node-7", 50.0)
    assert at_work.seconds_left == (EPOCHS - 12) * 4.0
    assert gone.seconds_left is None
    assert broken.reason == "it did not converge."
    assert (idle.epoch, idle.epochs, idle.machine, idle.attempts) == (None, EPOCHS, None, 0)
    assert (finished.epoch, finished.dev_auc, finished.device_seconds) == (25, 0.95, 60.0)
    assert finished.entropies == dict.fromkeys(("alpha", "beta", "gamma"), 0.5)


def test_device_seconds_of_a_pack_are_shared_by_its_points(tmp_path: Path) -> None:
    pack = Pack("pack-0000", points(4))
    run = plant(str(tmp_path / "run"), [pack])
    beat(run, pack)
    assert [point.device_seconds for point in look(run).points] == [12.5] * 4


@pytest.mark.parametrize(("age", "expected"), [(5.0, "running"), (90.0, "lost")])
def test_an_attempt_that_still_loads_its_clips_is_judged_by_its_claim(
    run: str, packs: list[Pack], age: float, expected: str
) -> None:
    beat(run, packs[0], 0, age=1000.0, epoch=7)
    claim(run, packs[0], 1, age=age)
    point = look(run, most=1).points[0]
    assert (point.state, point.epoch, point.attempts) == (expected, 7, 2)


@pytest.mark.parametrize("ended", ["stopped", "drained"])
def test_a_pack_that_was_stopped_in_good_order_waits(run: str, packs: list[Pack], ended: str) -> None:
    beat(run, packs[0], age=5.0, epoch=7, ended=ended, reason="SIGTERM")
    point = look(run, most=1).points[0]
    assert (point.state, point.epoch, point.reason, point.seconds_left) == ("waiting", 7, "SIGTERM", None)


def test_a_pack_that_was_split_shows_where_it_came_from(tmp_path: Path) -> None:
    first, second = points(2)
    parent = Pack("pack-0000", (first, second))
    run = plant(str(tmp_path / "run"), [parent])
    beat(run, parent, age=900.0, epoch=9)
    parts = [Pack(f"pack-0000.{number}", (point,), "pack-0000") for number, point in enumerate((first, second))]
    plant_packs(run, parts)
    beat(run, parts[0], epoch=10)
    running, waiting = look(run).points
    assert (running.pack, running.state, running.epoch, running.attempts) == ("pack-0000.0", "running", 10, 2)
    assert (waiting.pack, waiting.state, waiting.epoch, waiting.attempts) == ("pack-0000.1", "waiting", 9, 1)


def test_a_heartbeat_of_an_earlier_version_leaves_gaps(run: str, packs: list[Pack]) -> None:
    beat(run, packs[0])
    old = {"time": NOW - 3, "host": "vm", "pid": 1, "epoch": 4, "epochs": 8, "dev_auc": 0.5, "update": 36}
    put(run, "packs/pack-0000/attempts/0/heartbeat.json", old)
    point = look(run, most=1).points[0]
    assert (point.state, point.epoch, point.epochs, point.machine) == ("running", 4, 8, "vm")
    assert (point.dev_auc, point.device_seconds, point.seconds_left) == (None, None, None)
    assert set(point.entropies.values()) == {None}


def test_a_damaged_heartbeat_says_nothing(run: str, packs: list[Pack]) -> None:
    beat(run, packs[0])
    storage.write(storage.join(run, "packs/pack-0000/attempts/0/heartbeat.json"), b'{"time": 18')
    assert look(run).counts["lost"] == 1


DAMAGES = [b"", b"{}", b"[]", b"null", b'{"time": null}', b'{"time": 18', b'{"time": "soon", "points": 3}', b"\xff\x00"]
DAMAGES += [json.dumps({"time": NOW, "host": 7, "pid": None, "epoch": "4", "points": {"a": 1}, "metrics": []}).encode()]
DAMAGES += [b'{"time": null, "host": "h", "pid": 1, "ended": "complete"}']


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_the_rest_is_shown_or_the_file_is_named(run: str, packs: list[Pack], damage: bytes) -> None:
    drive(run)
    finish(run, packs[0].points[0])
    fail(run, packs[1].points[0])
    beat(run, packs[2])
    claim(run, packs[3])
    for name in storage.list(run):
        uri = storage.join(run, name)
        whole = storage.read(uri)
        storage.write(uri, damage)
        if name == "config.yaml":
            try:
                look(run)
            except InputError as error:
                assert uri in str(error)  # noqa: PT017 - which of both depends on the damage
        elif name == "packs/index.json" and damage == b"[]":
            assert look(run).points == []
        elif name.endswith(("pack.json", "index.json")):
            with pytest.raises(InputError, match="is gone or damaged") as told:
                look(run)
            assert uri in str(told.value)
        else:
            status = look(run)
            assert len(status.points) == len(packs), name
            json.dumps(dataclasses.asdict(status))
            assert text(status)
        storage.write(uri, whole)


def test_parts_are_counted_by_themselves(run: str, packs: list[Pack]) -> None:
    control = Pack("pack-0000", points(3, first_seed=50))
    plant_packs(storage.join(run, "parts", "visual"), [control])
    put(run, "parts/random/networks/random-0.json", {})
    finish(storage.join(run, "parts", "visual"), control.points[0])
    beat(storage.join(run, "parts", "visual"), control)
    status = look(run)
    assert status.parts == {"visual": {"running": 2, "lost": 0, "failed": 0, "waiting": 0, "done": 1}}
    assert sum(status.counts.values()) == len(status.points) == 6


def test_drivers(run: str, packs: list[Pack]) -> None:
    assert look(run).driver is None
    drive(run, age=10.0)
    assert look(run).driver["state"] == "live"
    drive(run, age=61.0)
    assert look(run).driver["state"] == "lost"
    drive(run, age=3600.0, ended="stopped", reason="SIGTERM")
    status = look(run)
    assert status.driver["state"] == "ended"
    assert status.over


def test_controls_at_work_are_shown_and_waited_for(run: str, packs: list[Pack]) -> None:
    drive(run, age=900.0, ended="complete")
    for pack in packs:
        finish(run, pack.points[0])
    visual, audio, late = (storage.join(run, "parts", arm) for arm in ("visual", "audio", "uniform"))
    for arm in (visual, audio):
        plant_packs(arm, packs[:1])
        drive(arm, age=4.0)
    # Whose packs are not fixed yet.
    drive(late, age=4.0)
    status = look(run)
    assert (list(status.controls), status.over) == (["audio", "uniform", "visual"], False)
    assert list(status.parts) == ["audio", "visual"]
    lines = text(status).splitlines()
    assert lines[1].startswith("driver: complete")
    told = [line for line in lines if line.startswith("controls")]
    assert told == ["controls: being searched by process 4711 on node-7, last sign 4 s ago"]
    for arm in (visual, audio, late):
        drive(arm, age=4.0, ended="complete")
    assert (look(run).controls, look(run).over) == ({}, True)
    drive(visual, age=90.0)
    assert look(run).over, "the process is gone: only a restart goes on"
    drive(visual, age=4.0)
    drive(run, age=4.0)
    assert look(run).controls == {}


def test_a_part_of_a_protocol_is_no_control(tmp_path: Path, packs: list[Pack]) -> None:
    run = plant(str(tmp_path / "protocol"), [])
    config = {"config": {"protocol": {"protocol": "folds", "parts": {"fold-0": {}}}}, "hints": {}}
    storage.write(storage.join(run, "config.yaml"), json.dumps(config).encode())
    fold = storage.join(run, "parts", "fold-0")
    plant_packs(fold, packs[:1])
    drive(run, ended="stopped")
    drive(fold)
    assert (look(run).controls, look(run).over) == ({}, True)
    drive(storage.join(fold, "parts", "visual"))
    assert (list(look(run).controls), look(run).over) == (["fold-0/visual"], False)


def test_a_run_without_a_driver_is_over_when_no_point_is_left(run: str, packs: list[Pack], tmp_path: Path) -> None:
    assert not look(plant(str(tmp_path / "begun"), [])).over
    for pack in packs[1:]:
        finish(run, pack.points[0])
    beat(run, packs[0], age=900.0)
    assert not look(run).over, "a lost point may come back"
    fail(run, packs[0].points[0])
    assert look(run).over


def work(state: str, epochs: int | None, seconds: float | None) -> Work:
    return Work(state=state, epochs_left=epochs, epoch_seconds=seconds)


@pytest.mark.parametrize(
    ("works", "expected"),
    [
        ([], 0.0),
        ([work("running", 5, 2.0)], 10.0),
        ([work("running", 5, 2.0), work("running", 4, 5.0)], 20.0),
        # The machine that is free after 10 s takes the pack of 15 s, the other one, free after 20 s, that of 5 s.
        ([work("running", 5, 2.0), work("running", 4, 5.0), work("lost", 3, 5.0), work("waiting", 1, 5.0)], 25.0),
        # Nobody has timed the waiting one: an epoch takes the mean of 2 s and 4 s.
        ([work("running", 5, 2.0), work("running", 5, 4.0), work("waiting", 10, None)], 40.0),
        ([work("waiting", 5, 2.0)], None),
        ([work("running", 5, None), work("waiting", 5, 2.0)], None),
        ([work("running", 5, 2.0), work("waiting", None, 2.0)], None),
    ],
)
def test_time_left_on_the_machines_that_work(works: list[Work], expected: float | None) -> None:
    assert seconds_left(works) == expected


def test_requests_grow_with_unfinished_packs_only(tmp_path: Path) -> None:
    packs = [Pack(f"pack-{number:04d}", points(2, first_seed=2 * number)) for number in range(20)]
    run = plant(str(tmp_path / "run"), packs)
    drive(run)
    for pack in packs[:17]:
        for point in pack.points:
            finish(run, point)
    for pack in packs[17:]:
        for number, age in ((0, 500.0), (1, 1.0)):
            beat(run, pack, number, age=age)
    requests: Counter[str] = Counter()

    def count(operation: str, uri: str, moment: str) -> None:
        if moment == "before":
            requests[operation] += 1

    watcher = Watcher(run)
    with storage.observed(count):
        watcher.look(most=10, clock=lambda: NOW)
        # index.json, driver.json, 20 packs, 3 heartbeats, and results of the 4 finished points that are shown.
        assert requests == {"list": 1, "read": 2 + 20 + 3 + 4}
        requests.clear()
        watcher.look(most=10, clock=lambda: NOW)
        assert requests == {"list": 1, "read": 2 + 3}


def test_a_bucket_tells_the_same(run: str, packs: list[Pack]) -> None:
    finish(run, packs[0].points[0])
    beat(run, packs[1])
    fail(run, packs[2].points[0])
    drive(run)
    local = look(run)
    with s3_bucket() as bucket:
        for path in storage.list(run):
            storage.write(storage.join(bucket, "run", path), storage.read(storage.join(run, path)))
        remote = look(f"{bucket}/run")
        assert replace(remote, run=run) == local
        with pytest.raises(InputError, match="is no run"):
            Watcher(f"{bucket}/other")


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no run: it has no config\.yaml; give the --out"):
        Watcher(str(tmp_path))
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is damaged"):
        Watcher(str(tmp_path))


def test_watching_loads_neither_torch_nor_ray(repository: Path, run: str) -> None:
    script = (
        "import sys; from jobs.cli import main; main(['status', sys.argv[1]]);"
        "print(sorted({'torch', 'ray', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, run]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=SUBPROCESS_S)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "6 points: 6 waiting" in done.stdout
