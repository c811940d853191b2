"""The search of one pack: runs the epochs, writes states and curves, commits results.

The same loop is a Ray Tune trial, a Ray Train worker, or a plain call: it knows the run directory and nothing of Ray,
so a resume does not depend on which engine ran it before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cluster.attempts import Attempt, Pack, read_result
from cluster.features import Split
from stgs.clips import ClipSet
from stgs.config import SearchConfig
from stgs.genotype import count_macs, count_parameters
from stgs.population import PopulationSearch
from stgs.search_space import SearchSpace
from stgs.supernet import Member

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackJob:
    """What a pack's search needs beside its clips.

    run: URI of the run. device: `cpu` or `cuda`. threads: of this process; the bits depend on it. checkpoint_epochs:
    epochs between two states, at least 1.
    """

    run: str
    space: SearchSpace
    config: SearchConfig
    device: str
    threads: int
    checkpoint_epochs: int = 1


def search_pack(job: PackJob, pack: Pack, train: Split, dev: Split, report: Report) -> None:
    """Search the points of `pack` from the newest state on, until each has a result.

    report: called after every epoch with epoch, epochs, and the best dev AUC of the population.
    """
    if all(read_result(job.run, point.id) is not None for point in pack.points):
        return
    attempt = Attempt.claim(job.run, pack)
    torch.set_num_threads(job.threads)
    search = _build(job, pack, train, dev)
    state = attempt.newest_state()
    seconds = 0.0
    if state is not None:
        search.load_state_dict(state["search"])
        seconds = state["seconds"]
        attempt.log(f"continues at epoch {search.epoch}, update {search.update}")
    while not search.finished:
        start = time.perf_counter()
        rows = search.run_epoch()
        seconds += time.perf_counter() - start
        best = max(row["dev_auc"] for row in rows)
        progress = {"epoch": search.epoch, "epochs": job.config.epochs, "dev_auc": best}
        attempt.heartbeat(**progress, update=search.update)
        if search.finished or search.epoch % job.checkpoint_epochs == 0:
            attempt.write_state(search.update, {"search": search.state_dict(), "seconds": seconds})
        report(progress)
    _commit(attempt, search, seconds)
    attempt.drop_states()


def _build(job: PackJob, pack: Pack, train: Split, dev: Split) -> PopulationSearch:
    shuffles = [point.shuffle_seed for point in pack.points]
    kwargs: dict[str, Any] = {"members": len(pack.points), "device": job.device}
    names = list(job.space.features)
    clips = ClipSet(train.only(names).columns, train.shuffled_labels(shuffles, "train"), **kwargs)
    return PopulationSearch(
        job.space,
        [Member(point.temperature, point.num_samples, point.seed) for point in pack.points],
        estimator=pack.points[0].estimator,
        config=job.config,
        train=clips,
        # Dev clips weigh as the training clips do: the balance is part of the loss, not of the split.
        dev=ClipSet(
            dev.only(names).columns, dev.shuffled_labels(shuffles, "dev"), balance=clips.class_weights, **kwargs
        ),
        device=job.device,
    )


def _commit(attempt: Attempt, search: PopulationSearch, seconds: float) -> None:
    curves, digest = attempt.write_curves(search.rows)
    for index, (point, result) in enumerate(zip(attempt.pack.points, search.results(), strict=True)):
        share = seconds / len(attempt.pack.points)
        content: Mapping[str, Any] = {
            "genotype": result.genotype.to_dict(),
            "parameters": count_parameters(result.genotype),
            "macs": count_macs(result.genotype),
            "metrics": result.metrics,
            "seconds": seconds,
            "device_seconds": share,
            "curves": {"path": curves, "sha256": digest, "member": index},
        }
        if not attempt.commit(point, content):
            attempt.log(f"{point.id} has a result already; this attempt's is dropped")
