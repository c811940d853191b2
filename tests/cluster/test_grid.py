"""The grid on Ray Tune and a single search on Ray Train; a killed grid resumes to the same results."""

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

from cluster.attempts import read_packs
from cluster.features import FeatureSource, open_features
from cluster.grid import GridConfig, SearchSettings, config_from_dict, read_grid, run_grids, run_single
from cluster.runs import read_config
from data_prep.storage import InputError
from stgs.config import SearchConfig
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
@pytest.mark.timeout(150)
def test_a_search_on_ray_train_finds_what_the_grid_finds(
    ray_session: None, tmp_path: Path, source: FeatureSource
) -> None:
    point = replace(CONFIG, temperatures=(10.0,), num_samples=(5,), pack=0)
    by_train = run_single(str(tmp_path / "train"), point, source, resume=False, progress=False)
    by_tune = run_grids({str(tmp_path / "tune"): point}, source, resume=False, progress=False)[str(tmp_path / "tune")]
    assert by_train.failed == {}
    assert stable(by_train.rows) == stable(by_tune.rows)
    with pytest.raises(InputError, match="a search has one point, but these settings have 4"):
        run_single(str(tmp_path / "four"), CONFIG, source, resume=False)


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
    settings = ("--channels", "8", "--epochs", "6", "--batch-size", "16", "--pack", "2", "--num-cpus", "1")
    axes = ("--temperatures", "10", "--num-samples", "5", "10")
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


def test_packs_cut_the_points_of_one_estimator(ray_session: None, tmp_path: Path, source: FeatureSource) -> None:
    from cluster import grid

    config = replace(CONFIG, estimators=("stgs", "softmax"), pack=3)
    packs = grid._packs(config, replace(SETTINGS, device="cpu"))
    assert [len(pack.points) for pack in packs] == [3, 1, 3, 1]
    assert all(len({point.estimator for point in pack.points}) == 1 for pack in packs)
    # Two CPUs and one thread each make two devices.
    automatic = grid._packs(replace(CONFIG, pack=0), replace(SETTINGS, device="cpu"))
    assert [len(pack.points) for pack in automatic] == [2, 2]
    assert read_packs(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperatures": ()}, "temperatures is"),
        ({"num_samples": (5, 5)}, "each once"),
        ({"num_samples": (0,)}, "num_samples is 0"),
        ({"temperatures": (0.0,)}, "temperature is 0.0"),
        ({"estimators": ("egs",)}, "estimators names 'egs'"),
        ({"pack": -1}, "pack is -1"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GridConfig(**changes)


def test_config_survives_its_file() -> None:
    from dataclasses import asdict

    assert config_from_dict(json.loads(json.dumps(asdict(CONFIG)))) == CONFIG
