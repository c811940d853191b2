"""A part of a baseline's run: trained, stopped and resumed, tested once, by one worker and by two that share batches.

The module is its own program: `python test_baseline_worker_loop.py DIRECTORY` runs two workers over gloo.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from cluster import baseline_part, baseline_worker_loop, part_reader
from cluster.baseline_part import PartJob
from cluster.baseline_weights import open_weights
from cluster.baseline_worker_loop import PartWorker
from data_prep import boxes, storage
from data_prep.storage import InputError, UnreachableError
from stgs.baselines import training
from stgs.baselines.evaluation import predict
from stgs.baselines.training import initial_baseline
from stgs.metrics import auc
from stgs.parallel import SINGLE, Workers
from tests import worker_groups
from tests.cluster.baseline_parts import SETTINGS, SMALL, Told, elsewhere, make_jobs, metrics, read_here, work

FILES = ("curves.parquet", "metrics.json", "network.safetensors", "scores.parquet")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_reader.RayReader, "__call__", read_here)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sequences")


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[PartJob, Told]:
    """A part that was never interrupted."""
    (job,) = make_jobs(folder)
    told = Told()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(part_reader.RayReader, "__call__", read_here)
        assert work(job, told) is None
    return job, told


def test_a_part_leaves_weights_scores_and_what_they_say(trained: tuple[PartJob, Told]) -> None:
    job, told = trained
    assert sorted(storage.list(job.uri(""))) == list(FILES), "neither states nor counts of attempts stay"
    assert [row["epoch"] for row in told.rows] == [1, 2]
    content, scores = metrics(job), pq.read_table(job.uri("scores.parquet")).to_pydict()
    assert scores["clip_id"] == [f"clip-00{subject}-{kind}" for subject in (6, 7) for kind in "ABCD"]
    assert scores["label"] == [0, 1, 1, 1] * 2
    found = content["datasets"]["planted"]
    assert (found["clips"], found["fake"], found["subjects"]) == (8, 6, 2)
    assert found["network"]["auc"]["value"] == pytest.approx(auc(scores["score"], scores["label"]))
    network = storage.read(job.uri("network.safetensors"))
    model = initial_baseline("mrdf_ce", SMALL, 0)
    model.load_state_dict(safetensors.torch.load(network))
    assert predict(model, job.stream("test", SINGLE)).tolist() == scores["score"]
    assert content["dev_auc"] == auc(predict(model, job.stream("dev", SINGLE)), job.splits["dev"].labels)
    assert content["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert content["weights"] == {"initial": "random", "checkpoint": None}
    assert pq.read_table(job.uri("curves.parquet"))["epoch"].to_pylist() == [1, 2]


def test_what_is_tested_is_the_epoch_that_was_best_on_dev(
    tmp_path: Path, trained: tuple[PartJob, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.9, 0.1, 0.9])
    monkeypatch.setattr(training, "auc", lambda *_: next(values))
    two = elsewhere(trained[0], tmp_path / "two")
    one = replace(two, run=str(tmp_path / "one"), training=replace(two.training, epochs=1))
    assert work(two) is None
    assert work(one) is None
    assert (metrics(two)["best_epoch"], metrics(two)["epochs"], metrics(two)["dev_auc"]) == (1, 2, 0.9)
    for name in ("network.safetensors", "scores.parquet"):
        assert storage.read(two.uri(name)) == storage.read(one.uri(name)), name


def test_a_part_that_is_stopped_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, trained: tuple[PartJob, Told]
) -> None:
    whole, stops = trained[0], 0
    torn = elsewhere(whole, tmp_path / "torn")
    # Every second question: stops lie inside epochs, and before the evaluation that ends one.
    while (stop := work(torn, Told(stop_after=2))) is not None:
        assert stop.reason == "SIGTERM"
        assert set(storage.list(torn.uri(""))) <= {"state.pt", "curves.parquet"}
        stops += 1
        assert stops < 20, "it goes on from what it has saved"
    assert stops == trained[1].asked // 2 - (trained[1].asked % 2 == 0)
    assert metrics(torn) == metrics(whole)
    for name in ("network.safetensors", "scores.parquet"):
        assert storage.read(torn.uri(name)) == storage.read(whole.uri(name)), name


def test_what_is_finished_is_neither_trained_nor_tested_again(
    tmp_path: Path, trained: tuple[PartJob, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartJob, "stream", lambda *_: 1 / 0)
    assert work(trained[0]) is None
    with pytest.raises(ZeroDivisionError):
        work(elsewhere(trained[0], tmp_path / "other"))


def test_of_two_drivers_the_first_result_stays(
    tmp_path: Path, trained: tuple[PartJob, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(trained[0], run=str(tmp_path), training=replace(trained[0].training, epochs=1))
    second = replace(first, training=replace(first.training, seed=7))
    assert work(first) is None
    before = {name: storage.read(first.uri(name)) for name in ("metrics.json", "scores.parquet", "network.safetensors")}
    # The second has begun before the first was done.
    monkeypatch.setattr(baseline_worker_loop, "is_finished", lambda *_: False)
    assert work(second) is None
    assert {name: storage.read(first.uri(name)) for name in before} == before
    # Or had written its weights before.
    with monkeypatch.context() as patched:
        patched.setattr(baseline_worker_loop, "write_network", lambda *_: "another")
        assert work(second) is None
    assert {name: storage.read(first.uri(name)) for name in before} == before
    # Or is done at the same moment.
    monkeypatch.setattr(baseline_part, "is_finished", lambda *_: False)
    assert work(second) is None
    assert storage.read(first.uri("metrics.json")) == before["metrics.json"]


def test_states_are_saved_inside_an_epoch_when_they_are_due(
    tmp_path: Path, trained: tuple[PartJob, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, bool]] = []
    save = baseline_worker_loop.save_state

    def watched(job: PartJob, state: Any, seconds: float) -> None:
        saved.append((state["epoch"], state["sums"] is not None))
        save(job, state, seconds)

    monkeypatch.setattr(baseline_worker_loop, "save_state", watched)
    monkeypatch.setattr(baseline_worker_loop, "_SAVING_SHARE", 1e9)
    assert work(replace(elsewhere(trained[0], tmp_path), save_seconds=0.0)) is None
    assert len(saved) == trained[1].asked
    assert (1, True) in saved


def test_storage_that_takes_no_state_ends_the_part_to_be_continued(
    tmp_path: Path, trained: tuple[PartJob, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: Any) -> None:
        raise UnreachableError("the storage does not answer.")

    monkeypatch.setattr(baseline_worker_loop, "save_state", silent)
    stop = work(replace(elsewhere(trained[0], tmp_path), save_seconds=0.0))
    assert stop is not None
    assert (stop.scope, stop.reason) == ("run", "the storage does not answer.")


def test_a_part_that_fails_says_why(tmp_path: Path, trained: tuple[PartJob, Told]) -> None:
    job = elsewhere(trained[0], tmp_path)
    wild = replace(job, training=replace(job.training, learning_rate=1e38))
    with pytest.raises(InputError, match="the loss ceased to be finite in epoch"):
        work(wild)
    assert "the loss ceased to be finite" in json.loads(storage.read(wild.uri("failed.json")))["reason"]
    assert not storage.exists(wild.uri("metrics.json"))
    # Another attempt may have a result, which outranks the failure.
    assert work(job) is None
    assert not storage.exists(job.uri("failed.json"))


def test_a_batch_beyond_the_memory_is_told_with_the_ways_out(
    tmp_path: Path, trained: tuple[PartJob, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(PartWorker, "_run_epochs", full)
    with pytest.raises(
        InputError, match=r"a batch of 8 clips on 1 workers does not fit .* or --recompute or a smaller"
    ):
        work(elsewhere(trained[0], tmp_path))


def test_processes_that_die_without_anything_new_give_the_part_up(
    tmp_path: Path, trained: tuple[PartJob, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    job = elsewhere(trained[0], tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(PartWorker, "_run_epochs", killed)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                work(job)
        with pytest.raises(InputError, match="3 attempts in a row ended without saving anything new"):
            work(job)
    assert work(replace(job, session="later")) is None


def test_a_released_checkpoint_is_scored_without_training(tmp_path: Path, trained: tuple[PartJob, Told]) -> None:
    file, state = tmp_path / "released.ckpt", initial_baseline("mrdf_ce", SMALL, 5).state_dict()
    torch.save({"state_dict": {**state, "extra.weight": torch.zeros(2)}}, file)
    weights, arrays = open_weights(None, str(file), "mrdf_ce", SMALL)
    assert weights is not None
    job = replace(elsewhere(trained[0], tmp_path), weights=weights)
    job = replace(job, splits={split: index for split, index in job.splits.items() if split != "train"})
    told = Told()
    assert work(job, told, arrays=arrays) is None
    content = metrics(job)
    assert (told.rows, content["epochs"], content["best_epoch"]) == ([], 0, 0)
    assert storage.list(job.uri("")) == ["metrics.json", "scores.parquet"]
    checkpoint = content["weights"]["checkpoint"]
    assert (checkpoint["left_over"], checkpoint["missing"]) == (["extra.weight"], [])
    assert content["digests"]["network"] == checkpoint["sha256"] == weights.sha256
    expected = predict(initial_baseline("mrdf_ce", SMALL, 5), job.stream("test", SINGLE))
    assert boxes.read_table(job.uri("scores.parquet"))["score"].to_pylist() == expected.tolist()


def test_a_checkpoint_whose_scores_are_no_numbers_is_named(tmp_path: Path, trained: tuple[PartJob, Told]) -> None:
    file, state = tmp_path / "broken.ckpt", initial_baseline("mrdf_ce", SMALL, 5).state_dict()
    broken = {name: array * 1e30 if array.is_floating_point() else array for name, array in state.items()}
    torch.save({"state_dict": broken}, file)
    weights, arrays = open_weights(None, str(file), "mrdf_ce", SMALL)
    job = replace(elsewhere(trained[0], tmp_path), weights=weights)
    sentence = (
        r"8 of 8 dev clips have scores that are no numbers with the weights of .*broken\.ckpt; give another --che"
    )
    with pytest.raises(InputError, match=sentence):
        work(job, arrays=arrays)


def test_weights_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="but a checkpoint is not trained any more; give one of them"):
        open_weights("a", "b", "mrdf_ce", SMALL)
    with pytest.raises(InputError, match=r"no\.pt is no file; give --initial-weights a file"):
        open_weights(str(tmp_path / "no.pt"), None, "mrdf_ce", SMALL)
    assert open_weights(None, None, "mrdf_ce", SMALL) == (None, None)


def together(directory: Path, workers: Workers) -> list[Any]:
    """Two workers, or one: a part without dropout, stopped once where they are two."""
    part_reader.RayReader.__call__ = read_here  # type: ignore[method-assign]
    still = replace(SETTINGS, baseline=replace(SMALL, dropout=0.0), training=replace(SETTINGS.training, epochs=1))
    # One batch a epoch, since workers take their clips in another order than one does.
    still = replace(still, training=replace(still.training, batch_size=16))
    (job,) = make_jobs(directory, still)
    job = elsewhere(job, directory / f"run-{workers.world}")
    told = Told()
    stops = []
    if workers.world > 1:
        # The second worker alone is told to stop, as where its node leaves.
        stops.append(work(job, Told(stop_after=1 if workers.rank else 9999), workers))
        for found in (None, ("another", {}), PermissionError("not for this user")):
            with pytest.MonkeyPatch.context() as patched:
                if workers.rank:
                    patched.setattr(baseline_worker_loop, "read_state", Mock(side_effect=[found]))
                stops.append(work(job, Told(), workers))
    last = work(job, told, workers)
    return [[stop and stop.reason for stop in stops], last, [row["epoch"] for row in told.rows]]


def test_two_workers_stop_together_and_train_as_one(tmp_path: Path, repository: Path) -> None:
    make_jobs(tmp_path)
    found = worker_groups.results(__file__, tmp_path, repository, (2,))
    unlike = f"worker 1 does not find the {tmp_path}/run-2/parts/all/state.pt that the first one has read, which every"
    for stops, *rest in found[2]:
        # Where a worker does not get the first one's state, all end alike.
        assert [stop.partition(" node")[0] for stop in stops] == ["SIGTERM", unlike, unlike, "not for this user"]
        assert rest[0] is None
    assert [rows for *_, rows in found[2]] == [[1], []]
    assert found[1] == [[[], None, [1]]]
    jobs = [elsewhere(make_jobs(tmp_path)[0], tmp_path / f"run-{world}") for world in (1, 2)]
    one, two = (np.array(boxes.read_table(job.uri("scores.parquet"))["score"].to_pylist()) for job in jobs)
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert [metrics(job)["workers"] for job in jobs] == [1, 2]


if __name__ == "__main__":
    root = Path(sys.argv[1])
    worker_groups.main(root, (2,), lambda workers: together(root, workers))
