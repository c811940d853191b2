"""The grid on Ray Tune; a killed grid resumes to the same results."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import devices, found_loop, grid, packing
from cluster.attempts import read_failure
from cluster.controls import GRID, grid_jobs
from cluster.driving import Driver
from cluster.evaluation import score_clips
from cluster.features import FeatureSource, open_features
from cluster.found_loop import read_network
from cluster.grid import read_grid, run_grids, run_single
from cluster.limits import RunLimits
from cluster.liveness import read_driver
from cluster.packing import add_packs
from cluster.runs import read_config
from cluster.search_loop import search_pack
from cluster.settings import GridConfig, SearchSettings, config_from_dict
from cluster.stopping import Stop
from data_prep import storage
from data_prep.storage import InputError, UnreachableError
from jobs import cli, train
from jobs.train import TrainJobConfig
from stgs.config import FoundConfig, SearchConfig
from stgs.genotype import count_parameters, genotype_from_json
from stgs.search_space import SearchSpace
from tests.cluster.undriven import drive_without_ray
from tests.planted import make_features

SETTINGS = SearchSettings(channels=8, search=SearchConfig(epochs=3, batch_size=32))
CONFIG = GridConfig(temperatures=(5.0, 10.0), num_samples=(5, 10), pack=2, settings=SETTINGS)
FEWER = replace(CONFIG, temperatures=(5.0,))
VOLATILE = ("seconds", "device_seconds", "curves")
KILL_TIMEOUT_S = 120
# On a machine that does much else.
STOP_TIMEOUT_S = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


def stable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what may differ between two runs: seconds, and the attempt that committed."""
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_a_grid_that_was_given_more_points_equals_one_that_had_them(
    ray_session: None, tmp_path: Path, source: FeatureSource
) -> None:
    whole, run = str(tmp_path / "whole"), str(tmp_path / "grown")
    # Side by side: what they do not share are packs.
    first = run_grids({whole: CONFIG, run: FEWER}, source, resume=False, progress=False)
    rows = first[whole].rows
    assert [(row["temperature"], row["num_samples"]) for row in rows] == [(5, 5), (5, 10), (10, 5), (10, 10)]
    assert (first[whole].failed, first[whole].stop) == ({}, None)
    assert stable(first[run].rows) == stable(rows[:2])
    untouched = (tmp_path / "grown" / "packs" / "pack-0000" / "pack.json").stat().st_mtime_ns
    # In the order of the run, whatever the order in which they are named.
    named = replace(CONFIG, temperatures=(10.0, 5.0))
    grown = run_grids({run: named}, source, resume=True, progress=False)[run]
    assert stable(grown.rows) == stable(rows) == stable(read_grid(run))
    assert read_config(run)["temperatures"] == [5.0, 10.0]
    assert (tmp_path / "grown" / "packs" / "pack-0000" / "pack.json").stat().st_mtime_ns == untouched
    for row in rows:
        genotype = json.loads((tmp_path / "grown" / "points" / row["id"] / "genotype.json").read_text())
        assert genotype == json.loads(row["genotype"])
        assert list(genotype["features"]) == list(source.features)

    again = run_grids({run: CONFIG}, source, resume=True, progress=False)[run]
    assert stable(again.rows) == stable(rows)
    attempts = list((tmp_path / "grown" / "packs").glob("*/attempts/*"))
    assert len(attempts) == 2, "a resume of a finished grid starts no attempt"
    driver = read_driver(run)
    assert driver is not None
    assert (driver["ended"], driver["generation"]) == ("complete", 3)
    assert driver["device_seconds"] > sum(row["device_seconds"] for row in rows)

    with pytest.raises(InputError, match="stands already; continue it with --resume"):
        run_grids({run: CONFIG}, source, resume=False)
    other = replace(CONFIG, num_samples=(5, 20))
    with pytest.raises(InputError, match=r"was begun with num_samples \[5, 10\], not \[5, 20\], which lacks 10; name"):
        run_grids({run: other}, source, resume=True)


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_a_grid_ends_orderly_at_its_limits_and_where_others_work(
    ray_session: None, tmp_path: Path, source: FeatureSource
) -> None:
    run = str(tmp_path / "run")
    # More packs than devices, so that some wait when the budget is spent.
    config = replace(CONFIG, pack=1, settings=replace(SETTINGS, search=SearchConfig(epochs=2000, batch_size=32)))

    def search(resume: bool, **limits: Any) -> grid.GridResult:
        return run_grids({run: config}, source, resume=resume, progress=False, limits=RunLimits(**limits))[run]

    budget = 8 / 3600
    result = search(False, device_hours=budget)
    assert result.stop is not None
    assert (result.stop.reason, result.unfinished) == ("the budget of 0.00222222 device hours is spent", 4)
    assert result.stopped() == (
        f"stopped early: {result.stop.reason}; 0 of 4 points have a result, go on with --resume and a larger "
        "--device-hours."
    )
    attempts = sorted((tmp_path / "run" / "packs").glob("*/attempts/*"))
    # Two side by side, or one where the other's process took longer to start than the budget lasts.
    assert len(attempts) in (1, 2)
    for attempt in attempts:
        beat = json.loads((attempt / "heartbeat.json").read_text())
        assert (beat["ended"], beat["reason"]) == ("stopped", result.stop.reason)
        assert beat["update"] == 0 or (attempt / f"state-{beat['update']}.pt").exists()
    driver = read_driver(run)
    assert driver is not None
    assert (driver["ended"], driver["device_hours"]) == ("stopped", budget)

    # What is spent is spent, and what has passed has passed: nothing is begun.
    assert search(True, device_hours=budget).stop == result.stop
    late = search(True, deadline="2000-01-01T00:00Z").stop
    assert late is not None
    assert late.reason == "the deadline 2000-01-01 00:00 UTC has passed"
    assert sorted((tmp_path / "run" / "packs").glob("*/attempts/*")) == attempts

    other = {**driver, "host": "elsewhere", "time": time.time(), "ended": None, "generation": 7}
    (tmp_path / "run" / "driver.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"is being worked on by process .* of elsewhere .* take over with --takeover"):
        search(True, deadline="2000-01-01T00:00Z")
    assert search(True, deadline="2000-01-01T00:00Z", takeover=True).stop == late
    taken = read_driver(run)
    assert taken is not None
    assert (taken["generation"], taken["ended"]) == (8, "stopped")


def grid_command(features: str, manifest: str, out: Path, *more: str) -> list[str]:
    settings = ("--channels", "8", "--epochs", "20", "--batch-size", "4", "--pack", "2", "--num-cpus", "1")
    axes = ("--temperatures", "10", "--num-samples", "5", "10")
    return [
        sys.executable, "-m", "jobs.grid", features, "--manifest", manifest, "--out", str(out), *settings, *axes, *more
    ]  # fmt: skip


def end_after_a_state(command: list[str], run: Path, attempt: int, signum: int, cwd: Path, log: Path) -> int:
    """Start a driver, send it a signal once an attempt at the first pack has a state, and return its exit code."""
    with log.open("wb") as output:
        driver = subprocess.Popen(command, cwd=cwd, stdout=output, stderr=output, start_new_session=True)
        try:
            deadline = time.monotonic() + KILL_TIMEOUT_S
            while not list(run.glob(f"packs/pack-0000/attempts/{attempt}/state-*.pt")):
                assert driver.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "no state was written in time"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    driver.wait(timeout=0.1)
            # To the driver alone: its Ray processes notice that it is gone, as on a machine that stays.
            driver.send_signal(signum)
            return driver.wait(timeout=STOP_TIMEOUT_S)
        finally:
            driver.kill()
            driver.wait()


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_grid_that_was_stopped_and_killed_ends_as_an_undisturbed_one(
    ray_session: None, tmp_path: Path, source: FeatureSource, repository: Path
) -> None:
    run = tmp_path / "disturbed"
    command = grid_command(source.uri, source.manifest_uri, run)
    log = tmp_path / "first.log"
    assert end_after_a_state(command, run, 0, signal.SIGTERM, repository, log) == cli.STOPPED
    assert "stopped early: SIGTERM; 0 of 2 points have a result, go on with --resume." in log.read_text()
    attempt = run / "packs" / "pack-0000" / "attempts" / "0"
    beat = json.loads((attempt / "heartbeat.json").read_text())
    assert (beat["ended"], beat["reason"]) == ("stopped", "SIGTERM")
    assert (attempt / f"state-{beat['update']}.pt").exists(), "saved where it was, not at an epoch's end"
    assert not list(run.glob("points/*/result.json")), "the signal came in the middle of the grid"

    resumed = [*command, "--resume"]
    assert end_after_a_state(resumed, run, 1, signal.SIGKILL, repository, tmp_path / "second.log") == -signal.SIGKILL
    where = f"continues at epoch {beat['epoch']}, update {beat['update']}"
    done = subprocess.run(
        resumed, cwd=repository, capture_output=True, text=True, check=False, timeout=KILL_TIMEOUT_S
    )  # without --takeover: what was killed on this machine is not live
    assert done.returncode == 0, done.stderr
    logs = [(run / "packs" / "pack-0000" / "attempts" / number / "log.txt").read_text() for number in ("1", "2")]
    assert where in logs[0]
    assert "continues at epoch" in logs[1]

    config = config_from_dict(read_config(str(run)))
    undisturbed = run_grids({str(tmp_path / "whole"): config}, source, resume=False, progress=False)
    assert stable(read_grid(str(run))) == stable(undisturbed[str(tmp_path / "whole")].rows)


def test_a_cluster_that_is_too_small_leaves_no_trace(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_most", lambda resource, size: 2 // size if resource == "CPU" else 0)
    one = replace(CONFIG, temperatures=(5.0,), num_samples=(5,), pack=1, settings=replace(SETTINGS, threads=3))
    for search in (lambda out: run_single(out, one, source, resume=False), lambda out: search_grid(out, one, source)):
        with pytest.raises(InputError, match="a search needs 3 CPU, but the cluster has 2"):
            search(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def undriven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches are driven without Ray."""

    drive_without_ray(monkeypatch)


def search_grid(out: str, config: GridConfig, source: FeatureSource, resume: bool = False) -> grid.GridResult:
    return run_grids({out: config}, source, resume=resume, progress=False)[out]


def test_failures_are_forgotten_when_points_are_tried_again_and_not_before(
    tmp_path: Path, source: FeatureSource, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = {"CPU": 2}
    monkeypatch.setattr(devices, "_most", lambda resource, size: room.get(resource, 0) // size)
    config = replace(CONFIG, temperatures=(5.0,), pack=1)
    first, second = (point.id for point in config.points())
    run = str(tmp_path / "run")
    seen: list[str | None] = []

    def no_search(trials: Any, splits: Any, driver: Any, **_: Any) -> dict[Any, str]:
        assert {of_run: sorted(own) for of_run, own in splits.items()} == {run: ["dev", "train"]}
        seen.append(read_failure(run, first))
        return {(run, "pack-0000"): "no luck", (run, "pack-0001"): "nor here"}

    monkeypatch.setattr(grid, "search_with_tune", no_search)
    assert search_grid(run, config, source).failed == {first: "no luck", second: "nor here"}
    room["CPU"] = 0
    with pytest.raises(InputError, match="needs 1 CPU"):
        search_grid(run, config, source, resume=True)
    assert read_failure(run, first) == "no luck", "a refused resume keeps what is known"
    room["CPU"] = 2
    search_grid(run, config, source, resume=True)
    assert seen == [None, None]
    monkeypatch.setattr(grid, "search_with_tune", lambda *_, **__: {(run, "pack-0000"): "no luck"})
    ended = search_grid(run, config, source, resume=True)  # before the second point was reached
    assert (ended.failed, ended.unfinished) == ({first: "no luck"}, 1)
    assert ended.stop == Stop("run", "the search was ended from outside")


def test_storage_that_is_silent_after_a_stop_ends_as_stopped(
    tmp_path: Path, source: FeatureSource, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_most", lambda resource, size: 2 // size if resource == "CPU" else 0)

    def stopped(trials: Any, splits: Any, driver: Driver, **_: Any) -> dict[Any, str]:
        driver.request(Stop("run", "SIGTERM"))
        return {}

    def silent(*_: Any, **__: Any) -> Any:
        raise UnreachableError("it does not answer.")

    monkeypatch.setattr(grid, "search_with_tune", stopped)
    monkeypatch.setattr(grid, "gather", silent)
    result = search_grid(str(tmp_path / "run"), CONFIG, source)
    assert (result.stop, result.unfinished) == (Stop("run", "SIGTERM; it does not answer."), 4)
    told = train._stopped(TrainJobConfig(run="run"), [result], Stop("run", "SIGTERM"))
    assert (told.exit_code, told.text) == (
        cli.STOPPED,
        "stopped early: SIGTERM; 0 of the controls' 4 points have a result, go on with the same command.",
    )


def test_an_interrupted_search_is_no_result(
    tmp_path: Path, source: FeatureSource, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_most", lambda resource, size: 2 // size if resource == "CPU" else 0)
    planned: list[SearchConfig] = []

    def largest(space: SearchSpace, search: SearchConfig, **_: Any) -> int:
        planned.append(search)
        return 1

    monkeypatch.setattr(packing, "device_memory", lambda kind, threads: 1000)
    monkeypatch.setattr(packing, "largest_population", largest)
    one = replace(CONFIG, temperatures=(5.0,), num_samples=(5,), pack="auto")
    monkeypatch.setattr(grid, "search_with_train", lambda *_, **__: {})
    result = run_single(str(tmp_path / "run"), one, source, workers=2, resume=False)
    assert (result.rows, result.failed, result.unfinished) == ([], {}, 1)
    assert [search.batch_size for search in planned] == [16], "a worker holds its share of a batch"


@pytest.mark.parametrize("settings", [{"preset": "released"}, {"length": 2, "feature_names": ("*.layer?",)}])
def test_every_space_is_searched_and_its_networks_trained_and_scored(
    tmp_path: Path, source: FeatureSource, settings: dict[str, Any]
) -> None:
    search = SearchConfig(epochs=2, batch_size=48, alternate="epoch", max_parameters=2500)
    config = GridConfig(
        temperatures=(10.0,), num_samples=(2, 3), axes={"num_steps": (1, 2)},
        settings=SearchSettings(channels=4, device="cpu", search=search, **settings),
    )  # fmt: skip
    run, splits = str(tmp_path), source.load_splits(("train", "dev", "test"))
    packs = add_packs(run, [], grid.plan_packs(replace(config, pack=2), config.settings, source))
    for pack in packs:
        job = grid.pack_job(run, config.settings, source, pack)
        search_pack(job, pack, splits["train"], splits["dev"], lambda row: None)
    rows = grid.gather(run, packs, {}).rows
    assert [row["options"] for row in rows] == ["num_steps=1"] * 2 + ["num_steps=2"] * 2
    assert stable(read_grid(run)) == stable(rows)
    asked: list[tuple[str, str]] = []
    with storage.observed(lambda operation, uri, moment: asked.append((operation, uri.removeprefix(run)))):
        assert grid.gather(run, packs, {}, hurried=lambda: True).rows == rows
    once = [pair for number, pair in enumerate(asked) if pair not in asked[:number]]
    reads = [("read", f"/points/{row['id']}/result.json") for row in rows]
    whole = [("read", "/grid.parquet"), ("write", "/grid.parquet")]
    assert once == [("list", "/points"), *reads, *whole], "what stands is not written again"
    jobs = grid_jobs(run, GRID, rows)
    assert [job.point for job in jobs] == config.points()
    for job, row in zip(jobs, rows, strict=True):
        genotype = genotype_from_json(row["genotype"])
        assert {len(cell.steps) for cell in genotype.cells} == {dict(job.point.options)["num_steps"]}
        assert row["parameters"] == count_parameters(genotype) <= 2500
        if "preset" in settings:
            assert {name for cell in genotype.cells for name in cell.inputs} <= set(source.features)
    found_loop._fit(jobs[:1], FoundConfig(epochs=1), found_loop.provenance(source), splits, "cpu", 1)
    stored = read_network(jobs[0].uri)
    assert stored.facts["point"]["options"] == "num_steps=1"
    assert score_clips(stored, splits["test"]).shape == (48,)
