"""The search of one pack: runs the epochs, writes states and curves, commits results.

The same loop is a Ray Tune trial, a Ray Train worker, or a plain call: it knows the run directory and nothing of Ray,
so a resume does not depend on which engine ran it before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from cluster.attempts import Attempt, Pack, Point, read_result, write_failure
from cluster.features import Split
from stgs.clips import ClipSet
from stgs.config import SearchConfig
from stgs.genotype import count_macs, count_parameters
from stgs.parallel import Workers, default_workers
from stgs.population import PopulationSearch, slice_state
from stgs.search_space import SearchSpace
from stgs.supernet import Member

if TYPE_CHECKING:
    from cluster.finetune import FinetuneJob

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackJob:
    """What a pack's search needs beside its clips.

    run: URI of the run. device: `cpu` or `cuda`. threads: of this process; the bits depend on it. checkpoint_epochs:
    epochs between two states, at least 1. workers: processes that share every batch. finetune: where the clips come
    from in a search that trains its backbones, None for cached features.
    """

    run: str
    space: SearchSpace
    config: SearchConfig
    device: str
    threads: int
    checkpoint_epochs: int = 1
    workers: int = 1
    finetune: FinetuneJob | None = None


def search_pack(job: PackJob, pack: Pack, train: Split | None, dev: Split | None, report: Report) -> None:
    """Search the points of `pack` that have no result, from the newest state on, until each has a result or failed.

    Every worker of torch.distributed's default process group calls this; the first one alone writes. report: called
    after every epoch with epoch, epochs, and the best dev AUC of the population.
    """
    workers = default_workers()
    attempt = None
    points: list[Point] = []
    if workers.rank == 0:
        points = [point for point in pack.points if read_result(job.run, point.id) is None]
        attempt = Attempt.claim(job.run, pack) if points else None
    points = _from_first(points, workers)
    if not points:
        return
    torch.set_num_threads(job.threads)
    search = _build(job, points, train, dev, workers)
    wanted = [point.id for point in points]
    state = _from_first(attempt.newest_state(wanted) if attempt is not None else None, workers)
    seconds = _continue(search, points, state)
    if attempt is not None:
        where = f"continues at epoch {search.epoch}, update {search.update}"
        attempt.log(where if state is not None else "starts anew: no state of these points can be continued")
    while not search.finished:
        active = list(search.active)
        start = time.perf_counter()
        rows = search.run_epoch()
        share = (time.perf_counter() - start) / len(active)
        for number in active:
            seconds[number] += share
        finite = [row["dev_auc"] for row in rows if row["dev_auc"] == row["dev_auc"]]
        progress = {"epoch": search.epoch, "epochs": job.config.epochs, "dev_auc": max(finite, default=0.0)}
        due = search.finished or search.epoch % job.checkpoint_epochs == 0
        content = search.state_dict() if due else None
        if attempt is not None:
            attempt.heartbeat(**progress, update=search.update)
            if content is not None:
                attempt.write_state(search.update, {"search": content, "points": wanted, "seconds": seconds})
        report(progress)
    if attempt is not None:
        _commit(attempt, points, search, seconds, job.finetune)
        attempt.drop_states()


def _from_first(value: Any, workers: Workers) -> Any:
    """The first worker's `value`, in every worker."""
    if workers.world == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def _continue(search: PopulationSearch, points: list[Point], state: dict[str, Any] | None) -> list[float]:
    """Put a new search where the state of these points, or of more, left off. Returns the device seconds of each."""
    if state is None:
        return [0.0] * len(points)
    members = [state["points"].index(point.id) for point in points]
    search.load_state_dict(slice_state(state["search"], members))
    return [state["seconds"][member] for member in members]


def _build(
    job: PackJob, points: list[Point], train: Split | None, dev: Split | None, workers: Workers
) -> PopulationSearch:
    if job.finetune is not None:
        return job.finetune.search(job.space, job.config, points, device=job.device, workers=workers)
    assert train is not None
    assert dev is not None
    shuffles = [point.shuffle_seed for point in points]
    kwargs: dict[str, Any] = {"members": len(points), "device": job.device}
    names, length = list(job.space.features), job.space.length
    clips = ClipSet(train.only(names, length).columns, train.shuffled_labels(shuffles, "train"), **kwargs)
    return PopulationSearch(
        job.space,
        [Member(point.temperature, point.num_samples, point.seed) for point in points],
        estimator=points[0].estimator,
        config=job.config,
        train=clips,
        # Dev clips weigh as the training clips do: the balance is part of the loss, not of the split.
        dev=ClipSet(
            dev.only(names, length).columns, dev.shuffled_labels(shuffles, "dev"), balance=clips.class_weights, **kwargs
        ),
        device=job.device,
        workers=workers,
    )


def _commit(
    attempt: Attempt,
    points: list[Point],
    search: PopulationSearch,
    seconds: list[float],
    finetune: FinetuneJob | None,
) -> None:
    curves, digest = attempt.write_curves(search.rows)
    for index, (point, result) in enumerate(zip(points, search.results(), strict=True)):
        if result.genotype is None:
            write_failure(attempt.run, point.id, str(result.failure))
            attempt.log(f"{point.id} failed: {result.failure}")
            continue
        content: dict[str, Any] = {
            "genotype": result.genotype.to_dict(),
            "parameters": count_parameters(result.genotype),
            "macs": count_macs(result.genotype),
            "metrics": result.metrics,
            "seconds": sum(seconds),
            "device_seconds": seconds[index] * search.workers.world,
            "curves": {"path": curves, "sha256": digest, "member": index},
        }
        if finetune is not None:
            # With the attempt, so that those of the attempt whose result stands are the run's.
            content["backbones"] = finetune.keep(attempt, search)
        if not attempt.commit(point, content):
            attempt.log(f"{point.id} has a result already; this attempt's is dropped")
