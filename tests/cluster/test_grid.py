"""The grid on Ray Tune; a killed grid resumes to the same results."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train

from cluster import devices, engines, found_loop, grid
from cluster.attempts import read_failure, write_packs
from cluster.controls import GRID, grid_jobs
from cluster.evaluation import score_clips
from cluster.features import FeatureSource, open_features
from cluster.found_loop import read_network
from cluster.grid import read_grid, run_grids, run_single
from cluster.runs import read_config
from cluster.search_loop import search_pack
from cluster.settings import GridConfig, SearchSettings, config_from_dict
from data_prep.storage import InputError
from stgs.config import FoundConfig, SearchConfig
from stgs.genotype import count_parameters, genotype_from_json
from stgs.search_space import SearchSpace
from tests.planted import make_features

SETTINGS = SearchSettings(channels=8, search=SearchConfig(epochs=3, batch_size=32))
CONFIG = GridConfig(temperatures=(5.0, 10.0), num_samples=(5, 10), pack=2, settings=SETTINGS)
VOLATILE = ("seconds", "device_seconds", "curves")
KILL_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


def stable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what may differ between two runs: seconds, and the attempt that committed."""
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_grid_searches_every_point_and_twice_the_same(ray_session: None, tmp_path: Path, source: FeatureSource) -> None:
    runs = [str(tmp_path / name) for name in ("one", "two")]
    results = run_grids(dict.fromkeys(runs, CONFIG), source, resume=False, progress=False)
    rows = results[runs[0]].rows
    assert [(row["temperature"], row["num_samples"]) for row in rows] == [(5, 5), (5, 10), (10, 5), (10, 10)]
    assert results[runs[0]].failed == {}
    assert stable(rows) == stable(results[runs[1]].rows)
    assert stable(read_grid(runs[0])) == stable(rows)
    for row in rows:
        genotype = json.loads((tmp_path / "one" / "points" / row["id"] / "genotype.json").read_text())
        assert genotype == json.loads(row["genotype"])
        assert list(genotype["features"]) == list(source.features)

    again = run_grids({runs[0]: CONFIG}, source, resume=True, progress=False)[runs[0]]
    assert stable(again.rows) == stable(rows)
    attempts = list((tmp_path / "one" / "packs").glob("*/attempts/*"))
    assert len(attempts) == 2, "a resume of a finished grid starts no attempt"

    with pytest.raises(InputError, match="stands already; continue it with --resume"):
        run_grids({runs[0]: CONFIG}, source, resume=False)
    other = replace(CONFIG, num_samples=(5, 20))
    with pytest.raises(InputError, match=r"was begun with num_samples \[5, 10\], not \[5, 20\]"):
        run_grids({runs[0]: other}, source, resume=True)


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_failing_point_is_recorded_and_the_others_stand(
    ray_session: None, tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.engines.TRIAL_FAILURES", 0)
    attempts = tmp_path / "run" / "packs" / "pack-0000" / "attempts"
    attempts.parent.mkdir(parents=True)
    attempts.write_text("a file where the first pack's attempts should be")
    config = replace(CONFIG, num_samples=(5,), pack=1)
    result = run_grids({str(tmp_path / "run"): config}, source, resume=False, progress=False)[str(tmp_path / "run")]
    first, second = config.points()
    assert [row["id"] for row in result.rows] == [second.id]
    assert "cannot be a directory" in result.failed[first.id]
    assert (tmp_path / "run" / "points" / first.id / "failed.json").is_file()

    attempts.unlink()
    mended = run_grids({str(tmp_path / "run"): config}, source, resume=True, progress=False)[str(tmp_path / "run")]
    assert mended.failed == {}
    assert [row["id"] for row in mended.rows] == [first.id, second.id]


def grid_command(features: str, manifest: str, out: Path, *more: str) -> list[str]:
    settings = ("--channels", "8", "--epochs", "4", "--batch-size", "16", "--pack", "2", "--num-cpus", "1")
    axes = ("--temperatures", "10", "--num-samples", "5", "10", "--dropout", "0.1", "0.2")
    return [
        sys.executable, "-m", "jobs.grid", features, "--manifest", manifest, "--out", str(out), *settings, *axes, *more
    ]  # fmt: skip


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_killed_grid_resumes_to_the_results_of_an_undisturbed_one(
    ray_session: None, tmp_path: Path, source: FeatureSource, repository: Path
) -> None:
    run = tmp_path / "killed"
    command = grid_command(source.uri, source.manifest_uri, run)
    with (tmp_path / "first.log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=repository, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + KILL_TIMEOUT_S
            while not list(run.glob("packs/*/attempts/0/state-*.pt")):
                assert driver.poll() is None, (tmp_path / "first.log").read_text()
                assert time.monotonic() < deadline, "no state was written in time"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    driver.wait(timeout=0.1)
        finally:
            # The driver alone: its Ray processes notice that it is gone, as on a machine that stays.
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    assert not list(run.glob("points/*/result.json")), "the kill came in the middle of the grid"
    done = subprocess.run(
        [*command, "--resume"], cwd=repository, capture_output=True, text=True, check=False, timeout=KILL_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    log_text = (run / "packs" / "pack-0000" / "attempts" / "1" / "log.txt").read_text()
    assert "continues at epoch" in log_text

    config = config_from_dict(read_config(str(run)))
    undisturbed = run_grids({str(tmp_path / "whole"): config}, source, resume=False, progress=False)
    assert stable(read_grid(str(run))) == stable(undisturbed[str(tmp_path / "whole")].rows)


@pytest.fixture
def cluster_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int | None], list[SearchSpace]]:
    """Gives the planner a cluster of so many devices, each with memory for so many points of 8 channels, and returns
    the list of the spaces whose memory is then forecast.
    """
    forecasts: list[SearchSpace] = []

    def give(devices: int, points: int | None) -> list[SearchSpace]:
        def largest(space: SearchSpace, config: SearchConfig, *, most: int, **facts: Any) -> int:
            # The box's own vectors, not those that some naming suggests.
            assert facts.pop("vectors") == {"visual.pooled", "audio.pooled"}
            assert facts == {"train_clips": 96, "dev_clips": 48, "memory_bytes": 1000, "device": "cpu"}
            forecasts.append(space)
            # A point's memory is taken to grow with its channels.
            return min(most, int(points or 0) * 8 // space.channels)

        monkeypatch.setattr(grid, "planned_devices", lambda kind, threads: devices)
        monkeypatch.setattr(grid, "device_memory", lambda kind, threads: None if points is None else 1000)
        monkeypatch.setattr(grid, "largest_population", largest)
        return forecasts

    return give


def sizes(config: GridConfig, source: FeatureSource) -> list[int]:
    packs = grid.plan_packs(config, replace(config.settings, device="cpu"), source)
    assert [pack.name for pack in packs] == [f"pack-{index:04d}" for index in range(len(packs))]
    assert [point for pack in packs for point in pack.points] == sorted(
        config.points(), key=lambda point: (config.options().index(point.options), point.estimator != "stgs")
    )
    return [len(pack.points) for pack in packs]


def test_packs_hold_points_of_one_estimator_and_one_set_of_options(source: FeatureSource) -> None:
    several = replace(CONFIG, estimators=("stgs", "softmax"), axes={"dropout": (0.1, 0.2)}, pack=3)
    assert sizes(several, source) == [3, 1] * 4
    for pack in grid.plan_packs(several, SETTINGS, source):
        assert len({(point.estimator, point.options) for point in pack.points}) == 1


def test_packs_are_planned_for_devices_and_their_memory(
    source: FeatureSource, cluster_of: Callable[[int, int | None], list[SearchSpace]]
) -> None:
    automatic = replace(CONFIG, pack="auto")
    forecasts = cluster_of(1, None)
    assert sizes(automatic, source) == [4]
    assert sizes(replace(automatic, devices=3), source) == [2, 2], "ceil(4 / 3) points a pack"
    cluster_of(2, None)
    assert sizes(automatic, source) == [2, 2]
    assert sizes(replace(automatic, devices=1), source) == [4], "--devices stands above what the cluster has"
    cluster_of(1, 3)
    assert sizes(automatic, source) == [3, 1]
    cluster_of(8, 3)
    assert sizes(automatic, source) == [1, 1, 1, 1]
    cluster_of(1, 4)
    assert sizes(replace(automatic, axes={"channels": (8, 16)}), source) == [4, 2, 2], "each pack's own space counts"
    before = len(forecasts)
    sizes(replace(automatic, axes={"channels": (8, 16), "learning_rate_max": (1e-3, 3e-3)}), source)
    assert len(forecasts) - before == 2, "what needs the same memory is forecast once"


def test_a_resume_with_more_devices_splits_automatic_packs(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch, cluster_of: Callable[[int, None], Any]
) -> None:
    monkeypatch.setattr(grid, "chosen_device", lambda wanted: "cpu")
    cluster_of(1, None)
    for pack, expected in (("auto", [2, 2]), (4, [4])):
        run, config = str(tmp_path / str(pack)), replace(CONFIG, pack=pack)
        first = grid._begin(run, config, source, resume=False)
        assert [len(pack.points) for pack in first.packs] == [4]
        # The number of devices is no part of what the run was begun with.
        again = grid._begin(run, replace(config, devices=2), source, resume=True)
        trials = again.trials(source)
        assert [len(pack.points) for _, pack in trials] == expected
        assert [point for _, pack in trials for point in pack.points] == config.points()


def test_a_cluster_that_is_too_small_leaves_no_trace(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_most", lambda resource, size: 2 // size if resource == "CPU" else 0)
    one = replace(CONFIG, temperatures=(5.0,), num_samples=(5,), pack=1, settings=replace(SETTINGS, threads=3))
    for search in (lambda out: run_single(out, one, source, resume=False), lambda out: search_grid(out, one, source)):
        with pytest.raises(InputError, match="a search needs 3 CPU, but the cluster has 2"):
            search(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def search_grid(out: str, config: GridConfig, source: FeatureSource, resume: bool = False) -> grid.GridResult:
    return run_grids({out: config}, source, resume=resume, progress=False)[out]


def test_failures_are_forgotten_when_points_are_tried_again_and_not_before(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = {"CPU": 2}
    monkeypatch.setattr(devices, "_most", lambda resource, size: room.get(resource, 0) // size)
    config = replace(CONFIG, temperatures=(5.0,), pack=1)
    first, second = (point.id for point in config.points())
    run = str(tmp_path / "run")
    seen: list[str | None] = []

    def no_search(trials: Any, splits: Any, **_: Any) -> dict[Any, str]:
        assert sorted(splits) == ["dev", "train"]
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
    monkeypatch.setattr(grid, "search_with_tune", lambda trials, splits, **_: {(run, "pack-0000"): "no luck"})
    with pytest.raises(KeyboardInterrupt):  # the second point was not reached
        search_grid(run, config, source, resume=True)


def test_an_interrupted_search_is_no_result(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_most", lambda resource, size: 2 // size if resource == "CPU" else 0)
    planned: list[SearchConfig] = []

    def largest(space: SearchSpace, search: SearchConfig, **_: Any) -> int:
        planned.append(search)
        return 1

    monkeypatch.setattr(grid, "device_memory", lambda kind, threads: 1000)
    monkeypatch.setattr(grid, "largest_population", largest)
    one = replace(CONFIG, temperatures=(5.0,), num_samples=(5,), pack="auto")
    monkeypatch.setattr(grid, "search_with_train", lambda trial, splits, **_: {})
    with pytest.raises(KeyboardInterrupt):
        run_single(str(tmp_path / "run"), one, source, workers=2, resume=False)
    assert [search.batch_size for search in planned] == [16], "a worker holds its share of a batch"


def test_how_ray_train_ends_is_told(source: FeatureSource, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed(ray.train.TrainingFailedError):
        """As Train raises it when workers failed."""

        def __init__(self) -> None:
            super().__init__("a long trace")
            self.worker_failures = {0: RuntimeError("no"), 1: InputError("part-0 was changed.")}

    class Trainer:
        """Ends as TorchTrainer does when SIGINT reaches it, or when its workers failed."""

        end: BaseException = SystemExit(0)

        def __init__(self, *_: Any, **settings: Any) -> None:
            assert settings["scaling_config"].num_workers == 2

        def fit(self) -> None:
            raise self.end

    monkeypatch.setattr(engines, "TorchTrainer", Trainer)
    one = replace(CONFIG, temperatures=(5.0,), num_samples=(5,))
    (pack,) = grid.plan_packs(one, SETTINGS, source)
    job = replace(grid.pack_job("run", replace(SETTINGS, device="cpu"), source, pack), workers=2)
    with pytest.raises(KeyboardInterrupt):
        engines.search_with_train((job, pack), None, progress=False)
    monkeypatch.setattr(Trainer, "end", Failed())
    found = engines.search_with_train((job, pack), None, progress=False)
    assert found == {("run", pack.name): "part-0 was changed."}, "wrong input is one sentence"


def test_a_storage_that_fails_stops_no_search(source: FeatureSource, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def broken(run: str, pack: Any) -> None:
        looks.append(run)
        raise OSError("the storage does not answer")

    monkeypatch.setattr(engines, "read_heartbeat", broken)
    (pack, _) = grid.plan_packs(CONFIG, SETTINGS, source)
    with engines._bar("grid", [(grid.pack_job("run", SETTINGS, source, pack), pack)], shown=False):
        pass
    assert looks


def test_a_pack_is_searched_with_its_points_options(source: FeatureSource) -> None:
    config = replace(CONFIG, axes={"channels": (8, 16), "learning_rate_max": (1e-3, 3e-3)})
    packs = grid.plan_packs(config, SETTINGS, source)
    jobs = [grid.pack_job("run", replace(SETTINGS, device="cpu"), source, pack) for pack in packs]
    found = [(job.space.channels, job.config.weights.learning_rate_max) for job in jobs]
    assert found == [(8, 1e-3), (8, 1e-3), (8, 3e-3), (8, 3e-3), (16, 1e-3), (16, 1e-3), (16, 3e-3), (16, 3e-3)]


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
    packs = write_packs(run, grid.plan_packs(replace(config, pack=2), config.settings, source))
    for pack in packs:
        job = grid.pack_job(run, config.settings, source, pack)
        search_pack(job, pack, splits["train"], splits["dev"], lambda row: None)
    rows = grid.gather(run, packs, {}).rows
    assert [row["options"] for row in rows] == ["num_steps=1"] * 2 + ["num_steps=2"] * 2
    assert stable(read_grid(run)) == stable(rows)
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
