"""How the engines run the parts of a baseline: what a group of workers and its trial tell; the rest is seen end to end
in tests/jobs/test_baseline.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import baseline_training
from cluster.baseline_part import PartJob
from cluster.board import Limits, RunBoard
from cluster.engines_train import WorkerGroup
from cluster.stopping import Stop
from data_prep import storage
from data_prep.storage import InputError
from tests.cluster.baseline_parts import make_jobs
from tests.cluster.undriven import Undriven

SCALING = WorkerGroup(2, 2).scaling("cpu", 1)


class Remote:
    """An object as an actor, in this process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartJob:
    """A part, and a Ray that is this process."""
    monkeypatch.setattr(baseline_training.ray, "get", lambda reference: reference)
    (job,) = make_jobs(tmp_path)
    return job


def test_a_group_that_has_failed_by_itself_begins_no_more(job: PartJob, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr(baseline_training.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(baseline_training, "work_together", lambda *arguments: begun.append(arguments[-2:]))
    board = RunBoard(Limits())
    settings = {"job": job, "board": Remote(board), "data": [None]}
    baseline_training._train_together(settings)
    assert begun == [(1, 2)]
    board.end(job.key, "the loss ceased to be finite.")
    baseline_training._train_together(settings)
    assert len(begun) == 1


def test_why_train_gave_up_is_told(job: PartJob, monkeypatch: pytest.MonkeyPatch) -> None:
    board = RunBoard(Limits())
    monkeypatch.setattr(baseline_training, "fit_with_train", lambda *_: "Ray Train gave up: no such node")
    given: dict[str, Any] = {"jobs": {job.part: job}, "data": {"data": [None]}, "board": Remote(board)}
    baseline_training._drive_group({"trial": job.part}, **given, scaling=SCALING)
    assert board.facts().failures == {job.key: "Ray Train gave up: no such node"}


def test_a_part_has_a_result_a_failure_or_is_unfinished(job: PartJob) -> None:
    driver = Undriven(None)
    assert baseline_training._result(job.run, [job], {job.key: "so"}, driver).failed == {job.part: "so"}
    ended = baseline_training._result(job.run, [job], {}, driver)
    assert (ended.unfinished, ended.stop) == (1, Stop("run", "the training was ended from outside"))
    driver.request(Stop("run", "SIGTERM"))
    assert baseline_training._result(job.run, [job], {}, driver).stop == Stop("run", "SIGTERM")
    # A result outranks a failure that another attempt has met.
    storage.write(job.uri("metrics.json"), b"{}")
    assert baseline_training._result(job.run, [job], {job.key: "so"}, driver).failed == {}


def test_workers_without_clips_are_refused(job: PartJob) -> None:
    baseline_training._require_shares(job, WorkerGroup(1, 2))
    with pytest.raises(InputError, match="one of 4 workers would get 0 train clips"):
        baseline_training._require_shares(job, WorkerGroup(1, 4))
