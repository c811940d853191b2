"""Training of found networks in Ray Train workers that share every batch: on cached features, or end to end.

One group of workers trains one architecture after the other, because starting a group takes longer than training many.
States lie under training/ beside the folder of the networks, where the next group finds them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train

from cluster.agreement import by_first
from cluster.board import BoardLink
from cluster.devices import require_processes
from cluster.driving import Driver, driving
from cluster.engines import Splits
from cluster.engines_train import WorkerGroup, load_shared, shared, work_with_train
from cluster.features import FeatureSource
from cluster.finetune import CorpusSource
from cluster.found_loop import SAVE_SECONDS, trained_on, waiting_groups
from cluster.found_worker_loop import FoundJob, FoundWorker
from cluster.limits import RunLimits
from cluster.liveness import require_idle
from cluster.network_files import NetworkJob, provenance
from cluster.stopping import Stop, StopCheck
from cluster.trained_backbones import end_to_end_provenance
from cluster.trials import work_together
from data_prep import storage
from data_prep.storage import InputError
from stgs.config import FoundConfig
from stgs.parallel import Workers, default_workers

TRAINING_FOLDER = "training"
_NO_LIMITS = RunLimits(takeover=True)


@dataclass(frozen=True, slots=True)
class TrainedNetworks:
    """What came of some networks. failed: uri -> why there is none. stop: why the training ended early, None where
    every network stands or failed. unfinished: networks that are neither.
    """

    failed: Mapping[str, str]
    stop: Stop | None = None
    unfinished: int = 0


def train_networks_with_workers(
    jobs: Sequence[NetworkJob],
    config: FoundConfig,
    source: FeatureSource,
    *,
    run: str,
    device: str,
    threads: int,
    workers: WorkerGroup | int = 1,
    limits: RunLimits = _NO_LIMITS,
    started: float | None = None,
    progress: bool = True,
    save_seconds: float = SAVE_SECONDS,
) -> TrainedNetworks:
    """Train every network whose file does not stand in Ray Train workers; needs `cluster.session.connect`.

    Networks of one architecture are fitted side by side. With a corpus (`cluster.finetune.open_corpus`) each network is
    trained by itself, end to end with its backbones, whose weights are written beside its file
    (`cluster.trained_backbones`). A stop, by a signal or a limit, saves a state and returns; the same call goes on from
    there. Where a worker dies, the whole group starts again, from the newest state.

    Args:
        source: features, or a corpus.
        run: URI of the run; the driver's sign stands below `training`.
        device: `cpu` or `cuda`. threads: of each worker on a CPU.
        workers: their number, or a range in which it may change.
        limits: when to end early; the budget is that of this run's trainings with workers.
        started: when the command began, in Unix seconds (default: now).
        save_seconds: between two states of a training, at least; they are saved after epochs.

    Raises:
        InputError: more workers than clips of a batch, no room for the workers, another driver that trains in this
            run, or with a corpus a job with shuffled labels or without a genotype.
    """
    group = WorkerGroup(workers, workers) if isinstance(workers, int) else workers
    groups = waiting_groups(jobs)
    if not groups:
        return TrainedNetworks({})
    for count in {group.fewest, group.most}:
        _require_clips(config, source, count)
    require_processes(device, threads, group.fewest)
    if isinstance(source, CorpusSource):
        groups = [[job] for jobs in groups for job in jobs]
        _require_trainable(groups)
    training = storage.join(run, TRAINING_FOLDER)
    require_idle(training, takeover=limits.takeover)
    deadline = limits.deadline_at(time.time() if started is None else started)
    with driving(deadline=deadline, device_hours=limits.device_hours) as driver:
        driver.work_on(training, takeover=limits.takeover)
        job = FoundJob(
            training=training,
            groups=groups,
            config=config,
            device=device,
            threads=threads,
            session=driver.session,
            save_seconds=save_seconds,
            **_clips_of(source),
        )
        result = _train(job, source, driver, group, progress)
        driver.complete = not result.unfinished
    return result


def _clips_of(source: FeatureSource) -> dict[str, Any]:
    """What the workers have to know of the clips."""
    if not isinstance(source, CorpusSource):
        facts = provenance(source)
        return {"facts": facts, "trained_on": trained_on(facts)}
    facts = end_to_end_provenance(source)
    digests = {name: facts[name] for name in ("corpus_digest", "split_digest")}
    return {"facts": facts, "trained_on": {**digests, **source.run_settings()}, "finetune": source.job}


def _require_clips(config: FoundConfig, source: FeatureSource, workers: int) -> None:
    """Refuse batches that have no clip for each worker."""
    if isinstance(source, CorpusSource):
        source.job.fitted(config, Workers(0, workers)).largest_share(config.epochs)
        return
    count = sum(source.manifest_clips(split) for split in config.fitted_on)
    batches = max(-(-count // config.batch_size), 1)
    if 0 < count // batches < workers:
        raise InputError(
            f"batches have as few as {count // batches} clips, but each of {workers} workers needs one; give fewer "
            "workers or a larger batch_size."
        )


def _require_trainable(groups: Sequence[Sequence[NetworkJob]]) -> None:
    """Refuse networks that cannot be trained end to end."""
    for (job,) in groups:
        if job.genotype is None:
            raise InputError(
                f"{job.uri} is of kind {job.kind}, a control on cached features, which has no end-to-end training; "
                "leave it out."
            )
        if job.shuffle_seed is not None:
            raise InputError(
                f"{job.uri} is to have shuffled labels, a control on cached features, which has no end-to-end "
                "training; leave it out."
            )


def _train(job: FoundJob, source: FeatureSource, driver: Driver, group: WorkerGroup, progress: bool) -> TrainedNetworks:
    """Train in a group of workers, unless the flag is up already, and see what came of it."""
    cause = None
    if driver.stop is None:
        settings = {"job": job, **shared(None if job.finetune else source.load_splits(("train", "dev")))}
        with driver.watched("train", job.epochs, progress):
            scaling = group.scaling(job.device, job.threads)
            cause = work_with_train(_found_worker, settings, job.key, driver, scaling)
    failures = driver.failures()
    cause = cause or failures.get(job.key)
    failed: dict[str, str] = {}
    unfinished = 0
    for network in (network for jobs in job.groups for network in jobs):
        reason = failures.get((job.training, network.uri))
        if reason is None and not storage.exists(network.uri):
            reason = cause
            unfinished += cause is None
        if reason is not None:
            failed[network.uri] = reason
    # Without a flag, somebody ended Train itself.
    stop = (driver.stop or Stop("run", "the training was ended from outside")) if unfinished else None
    return TrainedNetworks(failed, stop, unfinished)


def _found_worker(settings: dict[str, Any]) -> None:
    """One of the workers, in a process of Ray Train."""
    job: FoundJob = settings["job"]
    board = settings["board"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    link = BoardLink(board, job.key, 1, world)

    def fail(uri: str, reason: str) -> None:
        ray.get(board.end.remote((job.training, uri), reason))

    def failed() -> Collection[str]:
        return [uri for training, uri in ray.get(board.facts.remote()).failures if training == job.training]

    def work(splits: Splits, stop: StopCheck) -> Stop | None:
        workers = default_workers()
        worker = FoundWorker(job, splits, workers, report=link.report, fail=fail, stop=stop)
        return worker.run(by_first(failed, workers))

    work_together(link, partial(load_shared, settings, job.device), work, rank, world)
