"""How the engines run the parts of a baseline: what a group of workers and its trial tell; the rest is seen end to end
in tests/jobs/test_baseline.py.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import baseline_training
from cluster.baseline_names import planned_parts
from cluster.baseline_part import PartJob
from cluster.baseline_runs import folds_protocol, growing_settings, plan_parts, split_by_protocol
from cluster.baseline_streams import open_sequences
from cluster.board import Limits, RunBoard
from cluster.engines_train import WorkerGroup
from cluster.protocol_splits import ProtocolConfig
from cluster.runs import open_run, read_config
from cluster.stopping import Stop
from data_prep import storage
from data_prep.storage import InputError
from tests.cluster.baseline_parts import SETTINGS, make_jobs
from tests.cluster.undriven import Undriven
from tests.tiny_sequences import make_sequences

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


def test_groups_are_let_in_as_they_find_room(job: PartJob, monkeypatch: pytest.MonkeyPatch) -> None:
    concurrent: list[int] = []
    monkeypatch.setattr(baseline_training.ray, "put", lambda value: value)
    monkeypatch.setattr(baseline_training, "groups_removed", contextlib.nullcontext)
    monkeypatch.setattr(baseline_training, "planned_devices", lambda kind, threads: 8)
    monkeypatch.setattr(
        baseline_training, "work_with_tune", lambda *_, **options: concurrent.append(options["concurrent"]) or {}
    )
    for group in (WorkerGroup(1, 1), WorkerGroup(1, 8), WorkerGroup(4, 8), WorkerGroup(3, 3), WorkerGroup(9, 9)):
        assert baseline_training._train([job], None, Undriven(None), group) == {}
    # Those that wait for devices beside the next one would but take memory.
    assert concurrent == [32, 9, 3, 3, 2]


def test_a_run_grows_by_folds_and_shuffles_alone(tmp_path: Path) -> None:
    make_sequences(tmp_path, subjects={"train": 8, "dev": 2, "test": 2}, frames=(1, 1))
    sequences, manifest, run = open_sequences(str(tmp_path / "sequences")), str(tmp_path / "manifest"), str(tmp_path)

    def begin(folds: int | None, shuffles: int = 0, split_seed: int = 0, resume: bool = True, **changes: Any) -> Any:
        protocol = folds_protocol(ProtocolConfig(), folds)
        split = split_by_protocol(manifest, replace(protocol, split_seed=split_seed), folds)
        settings = replace(SETTINGS, shuffles=shuffles, **changes)
        parts = plan_parts(settings, sequences, split)
        content = baseline_training._content(settings, "cpu", sequences, split, parts)
        open_run(run, content, resume=resume, hints={}, growing=growing_settings(run, content))
        return read_config(run)

    first = begin(2, resume=False)
    with pytest.raises(InputError, match="stands already; continue it with --resume"):
        begin(5, resume=False)
    assert begin(2) == first
    grown = begin(5, shuffles=1)
    assert planned_parts(grown["protocol"]["parts"], grown["shuffles"]) == [*grown["split_digests"], "shuffle-0"]
    assert [*grown["split_digests"]] == [f"fold-{fold}" for fold in range(5)]
    for name in ("fold-0", "fold-1"):
        assert grown["split_digests"][name] == first["split_digests"][name]
        assert grown["protocol"]["parts"][name] == first["protocol"]["parts"][name]
    for asked, sentence in (
        ({"folds": 4, "shuffles": 1}, "was begun with --folds 5, not 4; give 5 or more, or another --out"),
        ({"folds": 5}, "was begun with --shuffles 1, not 0; give 1 or more"),
        ({"folds": 5, "shuffles": 1, "split_seed": 3}, "with --folds 5 --split-seed 0, not --folds 5 --split-seed 3"),
        ({"folds": None, "shuffles": 1}, "begun with --folds 5 --split-seed 0, not no --folds; give those"),
        ({"folds": 5, "shuffles": 2, "threads": 2}, "was begun with threads 1, not 2"),
    ):
        with pytest.raises(InputError, match=sentence):
            begin(**asked)
    # Equal settings of other clips are no more of the same.
    unlike = {**grown, "split_digests": {**grown["split_digests"], "fold-1": "other"}}
    assert growing_settings(run, unlike) == ()
    assert read_config(run) == grown


def test_workers_without_clips_are_refused(job: PartJob) -> None:
    baseline_training._require_shares(job, WorkerGroup(1, 2))
    with pytest.raises(InputError, match="one of 4 workers would get 0 train clips"):
        baseline_training._require_shares(job, WorkerGroup(1, 4))
