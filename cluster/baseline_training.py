"""Trains the parts of a baseline's run side by side: each a Ray Tune trial, or a group of Ray Train workers inside one.

The truth is the run directory: a resume leaves out the parts that have their result, and the engines only schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import ray.tune

from cluster.baseline_part import FAILED_NAME, PartJob, is_finished
from cluster.baseline_runs import BaselineSettings, PlannedPart, SplitParts, growing_settings
from cluster.baseline_streams import Sequences
from cluster.baseline_worker_loop import PartWorker
from cluster.board import BoardLink
from cluster.devices import chosen_device, planned_devices, process_resources, require_processes
from cluster.driving import Driver, driving
from cluster.engines import FEWEST_CONCURRENT_TRIALS, Failures, work_with_tune
from cluster.engines_train import WorkerGroup, fit_with_train, groups_removed, load_shared, shared
from cluster.limits import RunLimits
from cluster.liveness import require_idle
from cluster.runs import open_run
from cluster.stopping import Stop, StopCheck
from cluster.trials import work_alone, work_together
from data_prep import storage
from stgs.parallel import SINGLE, Workers, default_workers

# A trial that only drives a group of workers: it stays on the head, and takes nothing from them.
_DRIVES = {"CPU": 0, "node:__internal_head__": 0.001}


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """What came of the parts. failed: part -> why it has no result. stop: why it ended early, None where every part is
    finished or failed. unfinished: parts that are neither.
    """

    out: str
    failed: Mapping[str, str]
    stop: Stop | None = None
    unfinished: int = 0


def train_baseline(
    out: str,
    settings: BaselineSettings,
    sequences: Sequences,
    split: SplitParts,
    parts: Sequence[PlannedPart],
    *,
    workers: WorkerGroup,
    resume: bool,
    limits: RunLimits,
    started: float,
    place: str = "--out",
) -> BaselineResult:
    """Train and test every part that has no result yet; needs `cluster.session.connect`.

    Args:
        out: directory of the run.
        parts: of `cluster.baseline_runs.plan_parts`.
        workers: that share each batch of a part; with one, a part is a process of its own.
        resume: continue a run that stands, of the same settings, which may have more folds or shuffles.
        limits: when to end before all is done. started: when the command began, in Unix seconds.
        place: the option that says where the run lies, for messages.

    Raises:
        KeyboardInterrupt: a second signal came before the trainings had ended orderly; they can be resumed.
        InputError: the run was begun with other settings or clips, or with more parts, another driver works on it, a
            worker would have no clips, or the cluster cannot hold the workers.
    """
    run, device = storage.absolute(out), chosen_device(settings.device)
    require_idle(run, takeover=limits.takeover)

    for part in parts:
        _require_shares(part_job(run, settings, sequences, part, device=device), workers)
    if not all(is_finished(run, part.name) for part in parts):
        require_processes(device, settings.threads, workers.fewest)
    deadline = limits.deadline_at(started)
    with driving(deadline=deadline, device_hours=limits.device_hours) as driver:
        content = _content(settings, device, sequences, split, parts)
        hints = _hints(sequences, split, settings)
        growing = growing_settings(run, content, place)
        open_run(run, content, resume=resume, hints=hints, growing=growing, place=place)
        driver.work_on(run, takeover=limits.takeover)
        waiting = [part for part in parts if not is_finished(run, part.name)]
        jobs = [part_job(run, settings, sequences, part, device=device, session=driver.session) for part in waiting]
        failures = _train(jobs, settings.arrays, driver, workers) if jobs and driver.stop is None else {}
        result = _result(run, jobs, failures, driver)
        driver.complete = not result.unfinished
    return result


def part_job(
    run: str, settings: BaselineSettings, sequences: Sequences, part: PlannedPart, *, device: str, session: str = ""
) -> PartJob:
    """What the workers of a part need. run: URI. device: `cpu` or `cuda`. session: the driver's."""
    return PartJob(
        run=run,
        part=part.name,
        model=settings.model,
        baseline=settings.baseline,
        training=part.training(settings.training),
        corpus=sequences.uri,
        files=sequences.meta.files,
        splits=part.splits,
        digests={"corpus": sequences.meta.digest, "splits": part.digest},
        shuffle_seed=part.shuffle_seed,
        weights=settings.weights,
        device=device,
        threads=settings.threads,
        session=session,
    )


def _require_shares(job: PartJob, group: WorkerGroup) -> None:
    """Refuse workers for whom a batch would have no clip."""
    if job.is_trained:
        for count in {group.fewest, group.most}:
            job.stream("train", Workers(0, count)).largest_share(job.training.epochs)


def _content(
    settings: BaselineSettings, device: str, sequences: Sequences, split: SplitParts, parts: Sequence[PlannedPart]
) -> dict[str, Any]:
    """What config.yaml says."""
    return {
        **settings.content(device),
        **split.told,
        "corpus_digest": sequences.meta.digest,
        "manifest_digest": split.digest,
        "split_digests": {part.name: part.digest for part in parts if part.shuffle_seed is None},
    }


def _hints(sequences: Sequences, split: SplitParts, settings: BaselineSettings) -> dict[str, Any]:
    """Where things were."""
    weights = settings.weights
    return {
        "sequences": sequences.uri,
        "manifest": split.manifest,
        "weights": None if weights is None else weights.uri,
    }


def _train(jobs: Sequence[PartJob], arrays: Mapping[str, Any] | None, driver: Driver, group: WorkerGroup) -> Failures:
    """Train the parts, and see why some failed."""
    for job in jobs:  # they are about to be tried again
        if storage.exists(job.uri(FAILED_NAME)):
            storage.delete(job.uri(FAILED_NAME))
    kind, threads = jobs[0].device, jobs[0].threads
    # By reference, so that what a trial is given does not grow with their number.
    given: dict[str, Any] = {
        "jobs": {job.part: ray.put(job) for job in jobs},
        "data": shared(arrays),
        "board": driver.board,
    }
    keys = {job.part: job.key for job in jobs}
    with driver.watched("baseline", sum(job.epochs for job in jobs), True), groups_removed():
        if group.most == 1:
            concurrent = max(FEWEST_CONCURRENT_TRIALS, planned_devices(kind, threads))
            trainable = ray.tune.with_parameters(_train_alone, **given)
            found = work_with_tune(trainable, process_resources(kind, threads), keys, driver, concurrent=concurrent)
        else:
            trainable = ray.tune.with_parameters(_drive_group, **given, scaling=group.scaling(kind, threads))
            concurrent = _groups_at_once(planned_devices(kind, threads), group)
            found = work_with_tune(trainable, _DRIVES, keys, driver, concurrent=concurrent)
    return found | driver.failures()


def _groups_at_once(devices: int, group: WorkerGroup) -> int:
    """Trials that drive a group each, let in at once: as many as find room on so many devices, and the next one. Each
    takes a gigabyte of the head's memory, also while it waits.
    """
    return max(1, devices // group.fewest) + 1


def _result(run: str, jobs: Sequence[PartJob], failures: Failures, driver: Driver) -> BaselineResult:
    waiting = [job for job in jobs if not is_finished(run, job.part)]
    failed = {job.part: failures[job.key] for job in waiting if job.key in failures}
    unfinished = len(waiting) - len(failed)
    # Without a flag, somebody ended Tune itself.
    stop = (driver.stop or Stop("run", "the training was ended from outside")) if unfinished else None
    return BaselineResult(run, failed, stop, unfinished)


def _train_alone(config: dict[str, Any], *, jobs: Mapping[str, Any], data: Mapping[str, Any], board: Any) -> None:
    """A trial that trains a part in its own process."""
    job: PartJob = ray.get(jobs[config["trial"]])
    link = BoardLink(board, job.key, 1)

    def work(stop: StopCheck) -> Stop | None:
        (reference,) = data["data"]
        arrays = None if reference is None else ray.get(reference)
        return PartWorker(job, arrays, SINGLE, report=link.report, stop=stop).run()

    work_alone(link, work)


def _drive_group(
    config: dict[str, Any],
    *,
    jobs: Mapping[str, Any],
    data: Mapping[str, Any],
    board: Any,
    scaling: ray.train.ScalingConfig,
) -> None:
    """A trial that has a part trained by a group of Ray Train workers."""
    job: PartJob = ray.get(jobs[config["trial"]])
    cause = fit_with_train(_train_together, {"job": job, **data}, job.key, board, scaling)
    if cause is not None:
        ray.get(board.end.remote(job.key, cause))


def _train_together(settings: dict[str, Any]) -> None:
    """One of the workers of a group, in a process of Ray Train."""
    job, board = settings["job"], settings["board"]
    # A group that has failed by itself is started again by Train, and would meet the same.
    if job.key in ray.get(board.facts.remote()).failures:
        return
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    link = BoardLink(board, job.key, 1, world)

    def work(arrays: Mapping[str, Any], stop: StopCheck) -> Stop | None:
        return PartWorker(job, arrays or None, default_workers(), report=link.report, stop=stop).run()

    work_together(link, partial(load_shared, settings, job.device), work, rank, world)
