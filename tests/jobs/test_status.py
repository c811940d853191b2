"""`stgs status`: what it prints of planted runs."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.points import Pack
from cluster.watching import Watcher
from data_prep import storage
from data_prep.storage import UnreachableError
from jobs.status import duration, main, text
from tests.cluster.planted_runs import NOW, beat, drive, fail, finish, plant, plant_packs, points

TERMINAL_S = 60
ID = "temperature-10_samples-15_stgs_seed-"


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the moment of which the planted runs speak."""
    monkeypatch.setattr("cluster.watching.Watcher.look.__kwdefaults__", {"most": None, "clock": lambda: NOW})


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Four points: one runs, one is done, one has failed, one waits; and a control that is done."""
    packs = [Pack(f"pack-{number:04d}", (point,)) for number, point in enumerate(points(4))]
    run = plant(str(tmp_path / "run"), packs)
    drive(run, age=4.0, deadline=NOW + 7800, device_hours=2.0)
    finish(run, packs[0].points[0])
    beat(run, packs[1])
    fail(run, packs[2].points[0], "3 attempts in a row ended without finishing an epoch")
    control = Pack("pack-0000", points(1))
    plant_packs(storage.join(run, "parts", "visual"), [control])
    finish(storage.join(run, "parts", "visual"), control.points[0])
    return run


def test_a_run_at_work(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"run: {run}",
        "driver: live, process 4711 on node-7, last sign 4 s ago",
        "submission: grid-1",
        "deadline: 2027-01-15 10:10 UTC, in 2 h 10 min",
        "device hours: 0.50 of 2",
        # One machine: 18 epochs of 4 s, then 30 for the point that waits.
        "4 points: 1 running, 1 failed, 1 waiting, 1 done; about 3 min left",
        "part visual: 1 point: 1 done",
        "",
        # What matters most stands in the first 80 columns.
        f"state    {'point':<{len(ID) + 1}}  epoch  dev AUC  left  entropies          device s  machine  attempts",
        f"running  {ID}1  12/30    0.900  72 s  0.700 0.800 0.900      50.0  node-7          1",
        f"failed   {ID}2   -/30        -     -  -                         -  -               0",
        f"waiting  {ID}3   -/30        -     -  -                         -  -               0",
        f"done     {ID}0  25/30    0.950     -  0.500 0.500 0.500      60.0  -               0",
        f"failed: {ID}2: 3 attempts in a row ended without finishing an epoch",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("age", "more", "expected"),
    [
        (7200.0, {}, "driver: lost since 2027-01-15 06:00 UTC (process 4711 on node-7); go on with --resume"),
        (180.0, {"ended": "complete"}, "driver: complete 3 min ago (process 4711 on node-7)"),
        (5.0, {"ended": "stopped", "reason": "SIGTERM"}, "driver: stopped 5 s ago: SIGTERM (process 4711 on node-7)"),
        (5.0, {"deadline": NOW - 9}, "deadline: 2027-01-15 07:59 UTC, has passed"),
    ],
)
def test_the_driver(
    run: str, capsys: pytest.CaptureFixture[str], age: float, more: dict[str, object], expected: str
) -> None:
    drive(run, age=age, **more)
    assert main([run]) == 0
    assert expected in capsys.readouterr().out.splitlines()


def test_damaged_files_end_in_no_traceback(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write(storage.join(run, f"points/{ID}0/result.json"), b'{"metrics": {"dev')
    storage.write(storage.join(run, "driver.json"), b"{}")
    assert main([run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "driver: has left no sign" in lines
    assert f"damaged: {ID}0: its result.json is damaged" in lines
    storage.write(storage.join(run, "packs/index.json"), b'["pack-0000", "pa')
    assert main([run]) == 2
    assert capsys.readouterr().err.startswith(f"stgs status: {run}/packs/index.json is gone or damaged")


def test_a_narrow_screen_shows_which_point_and_how_far(run: str) -> None:
    status = Watcher(run).look(clock=lambda: NOW)
    named = [dataclasses.replace(point, id=f"{150 * 'x'}_dropout-0.{n}") for n, point in enumerate(status.points)]
    lines = text(dataclasses.replace(status, points=named), 80).splitlines()
    rows = [line[:80] for line in lines if line.startswith(("running", "waiting", "done"))]
    assert all(re.search(r"\.\.\.x+_dropout-0\.\d +\S+/30 +(0\.9\d0|-) +(72 s|-)", row) for row in rows), rows
    assert len(rows) == 3


def test_json_holds_the_same(run: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([run, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["counts"] == {"running": 1, "lost": 0, "failed": 1, "waiting": 1, "done": 1}
    assert [point["state"] for point in told["points"]] == ["running", "failed", "waiting", "done"]
    assert (told["driver"]["state"], told["over"], told["seconds_left"]) == ("live", False, 18 * 4.0 + 30 * 4.0)


def test_of_many_points_the_first_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(str(tmp_path / "run"), [Pack("pack-0000", points(45))])
    assert main([run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("waiting") for line in lines) == 40
    assert lines[-1] == "... and 5 more; --all shows them"
    assert main([run, "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("waiting") for line in lines) == 45
    assert lines[-1].split()[1].endswith("seed-44")


def test_a_run_that_has_just_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(str(tmp_path / "run"), [])
    assert main([run]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"run: {run}", "driver: has left no sign", "points: none yet, the driver has not laid them out"
    ]  # fmt: skip


def test_wrong_use(tmp_path: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "is no run: it has no config.yaml; give the --out of 'stgs grid'.\n" in capsys.readouterr().err
    assert main([run, "--watch", "--every", "0.5"]) == 2
    assert "--every is 0.5, but it must be at least 1 second." in capsys.readouterr().err


def test_watching_ends_with_the_run(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    fails = [UnreachableError("s3://b: S3 does not answer.")]

    def cut_off(operation: str, uri: str, moment: str) -> None:
        if len(pauses) == 1 and fails:
            raise fails.pop()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            drive(run, ended="complete")

    monkeypatch.setattr(time, "sleep", pause)
    with storage.patient(0), storage.observed(cut_off):
        assert main([run, "--watch", "--every", "3"]) == 0
    assert pauses == [3.0] * 3
    out = capsys.readouterr().out
    assert out.count("driver: live") == 3
    assert out.count("s3://b: S3 does not answer. Trying again.") == 1
    assert out.count("driver: complete") == 1


def test_watching_is_left_by_an_interrupt(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert main([run, "--watch"]) == 0
    assert capsys.readouterr().out.count("driver: live") == 2


def test_a_terminal_gets_a_screen_of_its_own(run: str, repository: Path) -> None:
    # The planted moment is to come: for the real clock its signs of life are new.
    command = [sys.executable, "-m", "jobs.status", run, "--watch", "--every", "1"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=repository, stdout=theirs, env={**os.environ, "LINES": "8", "COLUMNS": "60"}
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + TERMINAL_S
    try:
        while True:
            assert time.monotonic() < deadline, shown.decode()
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                shown += os.read(ours, 65536)
            except OSError:  # how Linux tells that the other end is closed
                break
            if b"...\x1b[K" in shown:
                drive(run, ended="complete")
        assert process.wait(timeout=TERMINAL_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    before, screen, after = shown.decode().replace("\x1b[?1049l", "\x1b[?1049h").split("\x1b[?1049h")
    assert before == ""
    lines = screen.split("\x1b[H")[1].split("\x1b[K")
    assert len(lines) == 8
    assert max(len(line.strip()) for line in lines) <= 60
    assert "driver: live" in screen
    assert "driver: complete" in after
    assert f"done     {ID}0  25/30" in after, "the whole table stays"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3599, "1 h 00 min"), (7800, "2 h 10 min"), (187200, "2 d 04 h")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
