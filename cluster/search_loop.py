"""The search of one pack: runs the epochs, writes states and curves, commits results.

The same loop is a Ray Tune trial, a Ray Train worker, or a plain call: it knows the run directory, and of Ray only the
errors of a lost task, so a resume does not depend on which engine ran it before.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from ray.exceptions import RayError

from cluster.agreement import Made, StopError, by_first
from cluster.attempt_record import (
    FRUITLESS_ATTEMPTS,
    STORAGE_ERRORS,
    dispensable,
    fruitless_attempts,
    in_passing,
    last_words,
)
from cluster.attempts import Attempt, Pack, Point, open_points, write_failure
from cluster.features import Split
from cluster.running import Running, Seconds
from cluster.stopping import Stop, StopCheck, never
from data_prep import storage
from data_prep.storage import CredentialsError, NoSpaceError, UnreachableError
from stgs.clips import ClipSet
from stgs.config import InputError, SearchConfig
from stgs.genotype import count_macs, count_parameters
from stgs.parallel import PeerLostError, Workers, default_workers
from stgs.population import PopulationSearch
from stgs.search_space import SearchSpace
from stgs.search_state import slice_state
from stgs.supernet import Member

if TYPE_CHECKING:
    from cluster.finetune import FinetuneJob

Report = Callable[[dict[str, Any]], None]


# Words of RuntimeErrors that are about the device, or its driver, as PyTorch and the libraries below it say it.
_OF_DEVICES = (
    "CUDA error", "CUDA driver", "No CUDA GPUs", "cudaGetDeviceCount", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS",
    "NCCL error",
)  # fmt: skip


class DeviceLostError(RuntimeError):
    """The device failed, not the search. A process that has met a CUDA error meets it at every later use of the device,
    so this one must end; the search goes on in another.
    """


class SearchFailedError(RuntimeError):
    """The points of a search with several workers have failed, which their files say; the other workers must end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackJob:
    """What a pack's search needs beside its clips.

    run: URI of the run. device: `cpu` or `cuda`. threads: of this process; the bits depend on it. checkpoint_epochs:
    epochs between two states, at least 1. checkpoint_minutes: a state is also saved, inside an epoch if need be, when
    the last one is so old; None: at the ends of epochs only. workers: processes that share every batch. session: the
    driver's; what has failed in it is not tried again. patience_s: seconds for which storage may be silent before the
    search stops. finetune: where the clips come from in a search that trains its
    backbones, None for cached features.
    """

    run: str
    space: SearchSpace
    config: SearchConfig
    device: str
    threads: int
    checkpoint_epochs: int = 1
    checkpoint_minutes: float | None = None
    workers: int = 1
    session: str = ""
    patience_s: float = 300.0
    finetune: FinetuneJob | None = None


def search_pack(
    job: PackJob, pack: Pack, train: Split | None, dev: Split | None, report: Report, stop: StopCheck = never
) -> Stop | None:
    """Search the points of `pack` that are open, from the newest state on, until each has a result or failed.

    Every worker of torch.distributed's default process group calls this; the first one alone writes states and results.
    An error of the search itself ends in its points' failed.json, which the same session does not try again.

    Args:
        report: called in the first worker after every epoch with epoch, epochs, the best dev AUC of the population and
            device_seconds of this attempt.
        stop: asked before every update. What any worker is told holds for all.

    Returns:
        None where every point has a result or failed.json. Otherwise why the search stopped, where a state was saved
        (or could not be, because storage does not answer, is full, or is closed to these credentials).

    Raises:
        DeviceLostError: the device failed; this process must end, and the search be begun again in another.
        PeerLostError, RayError: another worker, or a task that reads clips, is gone; the search has to be begun again.
        UnreachableError, NoSpaceError: the same with several workers, where one of them cannot read its clips.
        SearchFailedError: with several workers, after an error whose sentence stands in failed.json.
    """
    workers = default_workers()
    begun = _Begun(Attempt(job.run, pack, -1), [])
    try:
        with storage.patient(job.patience_s):
            if not _begin(begun, job, workers):
                return None
            return _search(begun, job, train, dev, report, stop, workers)
    except StopError as stopped:
        return stopped.stop
    except _EngineError as error:
        _note(begun, str(error))
        raise error.error from None
    except (PeerLostError, RayError) as error:
        # Not the search's own: another worker, or a task that reads its clips, is gone. Attempts without success count.
        _note(begun, f"{type(error).__name__}: {error}")
        raise
    except (UnreachableError, NoSpaceError, CredentialsError) as error:
        # From a search that reads its clips while it runs. The other workers wait for one that goes on.
        _note(begun, str(error))
        if workers.world > 1:
            raise
        if begun.running is not None:
            begun.running.end_in_trouble(Stop("run", str(error)))
        return Stop("run", str(error))
    except Exception as error:  # the search's own, of whatever kind: it would come again in every attempt
        if is_of_device(error):
            # An attempt that says no more than this counts as one that died.
            _note(begun, "".join(traceback.format_exception(error)).rstrip())
            raise DeviceLostError(f"the device failed ({type(error).__name__}: {_first_line(error)})") from None
        return _fail(begun, job, error, workers)


class _EngineError(Exception):
    """What `report` or `stop` raised, which is no failure of the search."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"the engine failed ({type(error).__name__}: {error})")
        self.error = error


@dataclass(slots=True)
class _Begun:
    """What this process works on, as far as it has come.

    attempt: without meaning before there are points; in workers beside the first one for its log only.
    """

    attempt: Attempt
    points: list[Point]
    running: Running | None = None


def _begin(begun: _Begun, job: PackJob, workers: Workers) -> bool:
    """Claim an attempt at the open points; False if there are none, or none is left after this."""
    pack = begun.attempt.pack

    def claim() -> tuple[int, list[Point]]:
        points = open_points(job.run, pack, job.session)
        if not points:
            return -1, points
        fruitless = fruitless_attempts(job.run, pack, job.session)
        if len(fruitless) >= FRUITLESS_ATTEMPTS:
            log = f"packs/{pack.name}/attempts/{fruitless[-1]}/log.txt"
            for point in points:
                reason = f"{FRUITLESS_ATTEMPTS} attempts in a row ended without finishing an epoch; see {log}"
                write_failure(job.run, point.id, reason, job.session)
            return -1, []
        return Attempt.claim(job.run, pack, job.session).number, points

    number, begun.points = by_first(claim, workers)
    log_name = "log.txt" if workers.rank == 0 else f"log-{workers.rank}.txt"
    begun.attempt = Attempt(job.run, pack, number, log_name)
    return bool(begun.points)


def _search(
    begun: _Begun,
    job: PackJob,
    train: Split | None,
    dev: Split | None,
    report: Report,
    stop: StopCheck,
    workers: Workers,
) -> Stop | None:
    attempt, points = begun.attempt, begun.points
    torch.set_num_threads(job.threads)
    search = _build(job, points, train, dev, workers)
    state = by_first(lambda: attempt.newest_state([point.id for point in points]), workers)
    seconds = _continue(search, points, state)
    where = f"continues at epoch {search.epoch}, update {search.update}"
    attempt.log(where if state is not None else "starts anew: no state of these points can be continued")
    begun.running = running = Running(job, attempt, points, search, seconds, lambda: _of_engine(stop))
    while not search.finished:
        rows = search.run_epoch(running.asked_to_stop)
        if running.stop is not None:
            running.end_stopped()
            return running.stop
        assert rows is not None
        running.end_epoch(rows)
        if workers.rank == 0:
            _of_engine(partial(report, running.progress()))
    try:
        by_first(lambda: _commit(attempt, points, search, running.seconds, job), workers, running.stop_after)
    except StopError as stopped:
        running.end_in_trouble(stopped.stop)
        raise
    if workers.rank == 0:
        with dispensable():
            attempt.drop_states()
    running.end("complete")
    return None


def _of_engine(call: Callable[[], Made]) -> Made:
    """What `call` returns; its errors are the engine's."""
    try:
        return call()
    except Exception as error:
        raise _EngineError(error) from error


def _note(begun: _Begun, line: str) -> None:
    """A last line in the log of an attempt that is given up here, if it has begun."""
    if begun.points:
        begun.attempt.log(line)
        with in_passing():
            begun.attempt.write_log()


def is_of_device(error: Exception) -> bool:
    """Whether an error is the device's; of too little memory it is the search's, which would need as much again."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in _OF_DEVICES)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _fail(begun: _Begun, job: PackJob, error: Exception, workers: Workers) -> Stop | None:
    """Tell an error of the search in its points' files. Returns a stop where storage does not take that."""
    if not begun.points:  # nothing is begun: whoever called must tell it
        raise error
    told = _first_line(error)
    if not isinstance(error, InputError | storage.InputError):
        # Wrong input is told in one sentence; anything else needs the place where it happened.
        told = f"{type(error).__name__}: {told}; see {begun.attempt.relative}/{begun.attempt.log_name}"
    begun.attempt.log("".join(traceback.format_exception(error)).rstrip())
    try:
        with storage.patient(job.patience_s):
            for point in begun.points:
                write_failure(job.run, point.id, told, job.session)
    except STORAGE_ERRORS as unwritten:
        return Stop("run", f"{told}; {unwritten}")
    finally:
        if begun.running is not None:
            begun.running.end("failed", told)
        with last_words(job.patience_s):
            begun.attempt.write_log()
    if workers.world > 1:
        raise SearchFailedError(told) from error
    return None


def _continue(search: PopulationSearch, points: Sequence[Point], state: dict[str, Any] | None) -> Seconds:
    """Put a new search where the state of these points, or of more, left off. Returns what each point took so far."""
    if state is None:
        return Seconds([0.0] * len(points), [0.0] * len(points))
    members = [state["points"].index(point.id) for point in points]
    search.load_state_dict(slice_state(state["search"], members))
    return Seconds(*([state[name][member] for member in members] for name in ("seconds", "device_seconds")))


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
    attempt: Attempt, points: Sequence[Point], search: PopulationSearch, seconds: Seconds, job: PackJob
) -> None:
    curves, digest = attempt.write_curves(search.rows)
    for index, (point, result) in enumerate(zip(points, search.results(), strict=True)):
        if result.genotype is None:
            write_failure(attempt.run, point.id, str(result.failure), job.session)
            attempt.log(f"{point.id} failed: {result.failure}")
            continue
        content: dict[str, Any] = {
            "genotype": result.genotype.to_dict(),
            "parameters": count_parameters(result.genotype),
            "macs": count_macs(result.genotype),
            "metrics": result.metrics,
            "candidates": [
                {"genotype": json.loads(genotype), "dev_auc": value} for genotype, value in result.candidates
            ],
            "seconds": sum(seconds.wall),
            "device_seconds": seconds.device[index],
            "curves": {"path": curves, "sha256": digest, "member": index},
        }
        if job.finetune is not None:
            # With the attempt, so that those of the attempt whose result stands are the run's.
            content["backbones"] = job.finetune.keep(attempt, search)
        if not attempt.commit(point, content):
            attempt.log(f"{point.id} has a result already; this attempt's is dropped")
