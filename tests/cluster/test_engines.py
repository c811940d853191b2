"""The engines: how Tune's trials and Train's workers end, and what is told of those that cannot search."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    RestartingState,
    RunningState,
    SchedulingState,
)
from ray.train.v2.api.exceptions import ControllerError

from cluster import engines, engines_train, grid, trials
from cluster.attempts import Pack
from cluster.board import SILENT_DEATHS, Limits, RunBoard
from cluster.driving import Driver
from cluster.engines_train import WorkerGroup
from cluster.features import FeatureSource, open_features
from cluster.grid import run_grids, run_single
from cluster.settings import GridConfig, SearchSettings
from cluster.stopping import Stop
from data_prep.storage import InputError
from jobs import cli
from jobs.grid import outcome
from stgs.config import SearchConfig
from tests.planted import make_features

SETTINGS = SearchSettings(channels=8, search=SearchConfig(epochs=3, batch_size=32))
CONFIG = GridConfig(temperatures=(5.0, 10.0), num_samples=(5, 10), pack=2, settings=SETTINGS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


class Undriven(Driver):
    """A driver without a board, in tests without Ray."""

    def look(self) -> None:
        """Nobody is asked."""


class Deadly:
    """Clips whose reader dies."""

    def only(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_a_pack_that_kills_its_process_fails_and_the_others_stand(
    ray_session: None, tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = engines.run_trial

    def trial(config: dict[str, Any], *, jobs: Any, clips: Any, board: Any) -> None:
        chosen = engines._chosen(config, jobs)
        if chosen[1].name == "pack-0001":  # before it says anything
            os._exit(1)
        splits = ray.get(clips[0])
        search(chosen, deadly if chosen[1].name == "pack-0000" else splits["train"], splits["dev"], board)

    deadly: Any = Deadly()
    config = replace(CONFIG, temperatures=(5.0, 10.0, 20.0), num_samples=(5,), pack=1)
    first, second, third = config.points()
    run = str(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(engines, "_trial", trial)
        result = run_grids({run: config}, source, resume=False, progress=False)[run]
    assert [row["id"] for row in result.rows] == [third.id]
    assert result.failed == {
        first.id: "3 attempts in a row ended without finishing an epoch; see packs/pack-0000/attempts/2/log.txt",
        second.id: "4 processes in a row ended before their search began; the last one: The actor died unexpectedly "
        "before finishing this task.",
    }
    assert not (tmp_path / "run" / "packs" / "pack-0001" / "attempts").exists(), "it has never begun"
    assert (tmp_path / "run" / "points" / first.id / "failed.json").is_file()
    assert outcome(run, result, 1.0).exit_code == cli.PARTLY

    mended = run_grids({run: config}, source, resume=True, progress=False)[run]
    assert mended.failed == {}
    assert [row["id"] for row in mended.rows] == [first.id, second.id, third.id]


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_what_a_worker_raises_before_it_searches_ends_the_search(
    ray_session: None, tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = engines_train.run_worker

    def refuse() -> Any:
        raise InputError("part-0 was changed.")

    def worker(config: dict[str, Any]) -> None:
        # As one of two, so that its group is started again.
        work(config["trial"], refuse, config["board"], 1, 2)

    monkeypatch.setattr(engines_train, "_train_worker", worker)
    config = replace(CONFIG, temperatures=(5.0,), num_samples=(5,), pack=1)
    (point,) = config.points()
    result = run_single(str(tmp_path / "run"), config, source, resume=False, progress=False)
    assert (result.rows, result.failed, result.stop) == ([], {point.id: "part-0 was changed."}, None)
    assert not list((tmp_path / "run" / "packs").glob("*/attempts")), "none was claimed"
    assert outcome("run", result, 1.0).exit_code == cli.FAILED


class Handle:
    """A board's handle that answers by itself."""

    def __init__(self, board: RunBoard) -> None:
        self._board = board

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._board, name))


KEY = ("run", "pack-0000")


def test_workers_that_die_before_they_search_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answer, **_: answer)
    board = RunBoard(Limits())
    link = engines_train._Link(Handle(board), KEY)
    waiting = ControllerError(WorkerGroupStartupTimeoutError(1))
    died = ray.train.WorkerGroupError("trace", {1: ray.exceptions.ActorDiedError()})
    for _ in range(2 * SILENT_DEATHS):
        link.after_controller_state_update(SchedulingState(Any), ReschedulingState(waiting))
    assert not board.facts().failures, "machines that are missing are waited for"
    for _ in range(SILENT_DEATHS):
        link.after_controller_state_update(RunningState(), RestartingState(died))
    assert "4 processes in a row ended before" in board.facts().failures[KEY]


def test_the_first_worker_ends_at_the_boards_stop_and_tells_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answer, **_: answer)
    monkeypatch.setattr(trials, "_node_flag", lambda: lambda: None)
    monkeypatch.setattr(trials, "search_pack", lambda *_: pytest.fail("it must not begin"))
    board = RunBoard(Limits())
    trial: Any = (SimpleNamespace(run="run"), Pack("pack-0000", ()))
    board.stop(Stop("run", "SIGTERM"))
    trials.run_worker(trial, lambda: (None, None), Handle(board), 0, 1)
    assert (board.facts().running, board.facts().failures) == (frozenset(), {})

    def refuse() -> Any:
        raise RuntimeError("no device")

    trials.run_worker(trial, refuse, Handle(board), 0, 1)
    assert board.facts().failures == {KEY: "RuntimeError: no device"}


def test_how_ray_train_ends_is_told(source: FeatureSource, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed(ray.train.TrainingFailedError):
        """As Train raises it when workers failed."""

        def __init__(self) -> None:
            super().__init__("a long trace")

    class Trainer:
        """Ends as TorchTrainer does when its controller is gone, or when its workers failed."""

        end: BaseException = ray.exceptions.RayActorError()

        def __init__(self, *_: Any, **settings: Any) -> None:
            assert settings["scaling_config"].num_workers == 2
            assert settings["run_config"].failure_config.max_failures == -1

        def fit(self) -> None:
            raise self.end

    monkeypatch.setattr(engines_train, "_Trainer", Trainer)
    one = replace(CONFIG, temperatures=(5.0,), num_samples=(5,))
    (pack,) = grid.plan_packs(one, SETTINGS, source)
    job = grid.pack_job("run", replace(SETTINGS, device="cpu"), source, pack)
    arguments: Any = ((job, pack), None, Undriven(None), WorkerGroup(2, 2))
    with pytest.raises(ray.exceptions.RayActorError):
        engines_train.search_with_train(*arguments, progress=False)
    monkeypatch.setattr(Trainer, "end", Failed())
    found = engines_train.search_with_train(*arguments, progress=False)
    assert found == {("run", pack.name): "Ray Train gave up: a long trace"}
    told = {("run", pack.name): "part-0 was changed."}
    monkeypatch.setattr(Undriven, "failures", lambda self: told)
    assert engines_train.search_with_train(*arguments, progress=False) == told, "the board knows the sentence"


def test_workers_are_told_to_train_as_they_are_asked_for() -> None:
    fixed, elastic = WorkerGroup(2, 2).scaling("cpu", 3), WorkerGroup(1, 4, 30.0).scaling("cuda", 3)
    assert (fixed.num_workers, fixed.use_gpu, fixed.resources_per_worker) == (2, False, {"CPU": 3})
    assert (elastic.num_workers, elastic.use_gpu, elastic.elastic_resize_monitor_interval_s) == ((1, 4), True, 30.0)
    with pytest.raises(InputError, match=r"resize_seconds is 0.5, but it must be at least 1\."):
        WorkerGroup(1, 2, 0.5)
