"""A pack that two processes share is stopped, and fails, without Ray.

The module is its own program: `python test_running_workers.py DIRECTORY` runs both workers, which leave what they saw.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from cluster import search_loop
from cluster.features import open_features
from cluster.stopping import Stop
from data_prep.storage import NoSpaceError
from tests.cluster.pack_runs import AN_EPOCH, Runs, after, failing
from tests.planted import make_features
from tests.worker_groups import join, run

NOTICE = Stop("node", "the node of rank 1 leaves")


def stopped_and_resumed(runs: Runs, rank: int) -> Any:
    """Rank 1 alone is told to stop, inside the second epoch."""
    stops = [runs.search(after(AN_EPOCH + 2, NOTICE)) if rank == 1 else runs.search()]
    distributed.barrier()
    update = runs.beat()["update"]
    distributed.barrier()
    stops.append(runs.search())
    return [[stop and stop.reason for stop in stops], update, runs.beat()["world"]]


def undisturbed(runs: Runs, rank: int) -> Any:
    """Nothing happens."""
    return runs.search()


def full_disk(runs: Runs, rank: int) -> Any:
    """The first worker, which writes, cannot."""
    with failing(NoSpaceError("The disk is full."), "state-"):
        stop = runs.search()
    return [stop and stop.scope, stop and stop.reason]


def defect(runs: Runs, rank: int) -> Any:
    """Rank 1 alone meets an error inside an epoch, and ends, as Ray ends such a group."""
    original = search_loop._build

    def build(*arguments: Any) -> Any:
        search = original(*arguments)
        if rank == 1:
            search._dev_batch = lambda number: 1 / 0
        return search

    search_loop._build = build
    try:
        runs.search(session="one")
    except RuntimeError as error:
        return [type(error).__name__, str(error)]


SCENES: list[Callable[[Runs, int], Any]] = [undisturbed, stopped_and_resumed, full_disk, defect]


def rank_main(rank: int, directory: Path) -> None:
    """One worker."""
    source = open_features(str(directory / "features"), str(directory / "manifest"))
    join(rank, 2, directory, "both")
    for scene in SCENES:
        seen = scene(Runs(directory / scene.__name__, source), rank)
        (directory / f"{scene.__name__}-{rank}.json").write_text(json.dumps(seen))
    # Not by way of the interpreter's end, where a group without its other worker would be wound up.
    os._exit(0)


def main(directory: Path) -> None:
    """Both workers. They are forked, so that torch is imported once; no thread has been started here."""
    torch.set_num_threads(1)
    make_features(directory)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank_main, args=(rank, directory)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    run(__file__, folder, repository)
    return folder


@pytest.fixture
def seen(directory: Path) -> Callable[[Callable[[Runs, int], Any]], list[Any]]:
    """What both workers saw in a scene."""
    return lambda scene: [json.loads((directory / f"{scene.__name__}-{rank}.json").read_text()) for rank in range(2)]


def runs_of(directory: Path, scene: Callable[[Runs, int], Any]) -> Runs:
    return Runs(directory / scene.__name__, open_features(str(directory / "features"), str(directory / "manifest")))


def test_workers_stop_together_and_go_on_to_the_same_bits(directory: Path, seen: Callable) -> None:
    assert seen(undisturbed) == [None, None]
    assert seen(stopped_and_resumed) == [[[NOTICE.reason, None], 7, 2]] * 2
    runs = runs_of(directory, stopped_and_resumed)
    assert runs.outcome() == runs_of(directory, undisturbed).outcome()
    assert "drained at update 7 after 1 epochs: the node of rank 1 leaves" in runs.log(0)
    assert "continues at epoch 1, update 7" in runs.log(1)


def test_workers_stop_together_where_the_first_one_cannot_save(seen: Callable) -> None:
    assert seen(full_disk) == [["run", "The disk is full."]] * 2


def test_an_error_of_any_worker_fails_the_points(directory: Path, seen: Callable) -> None:
    first, second = seen(defect)
    sentence = "ZeroDivisionError: division by zero; see packs/pack-0000/attempts/0/log-1.txt"
    assert second == ["SearchFailedError", sentence]
    assert first[0] == "PeerLostError"
    runs = runs_of(directory, defect)
    assert runs.failures() == [sentence] * 2
    assert "1 / 0" in runs.path(0, "log-1.txt").read_text()
    assert "another worker is gone" in runs.log(0)
    # A group that is started again leaves the points alone.
    assert runs.search(session="one") is None
    assert not runs.path(1).exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
