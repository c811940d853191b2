"""What every worker of a group does that trains found networks together: one architecture after the other.

All workers do the same; the first one alone reads and writes states and files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.exceptions import RayError

from cluster.agreement import StopError, agreed_stop, by_first
from cluster.attempt_count import AttemptCount
from cluster.attempt_record import FRUITLESS_ATTEMPTS
from cluster.board import Key
from cluster.features import Split
from cluster.finetune import FinetuneJob
from cluster.found_loop import (
    begin_training,
    load_state,
    members_of,
    neutral_of,
    read_state,
    save_state,
    state_uri,
    write_networks,
)
from cluster.network_files import NetworkJob
from cluster.search_loop import DeviceLostError, SearchFailedError, is_of_device
from cluster.stopping import Stop, StopCheck
from cluster.trained_backbones import with_own_backbones, write_backbones
from data_prep import storage
from data_prep.storage import InputError
from stgs.config import FoundConfig
from stgs.config import InputError as SettingError
from stgs.found_finetune import FoundFinetune
from stgs.found_training import FoundTraining
from stgs.genotype import genotype_from_json
from stgs.parallel import PeerLostError, Workers

# A stop waits so long for the end of an epoch, where a state can be saved; of longer ones the last state counts.
EPOCH_PATIENCE_SECONDS = 15.0
# Ends of a worker that are not the training's own fault.
_FROM_OUTSIDE = (StopError, PeerLostError, RayError, DeviceLostError)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundJob:
    """What the workers train, beside the clips.

    training: URI of the folder where the driver's sign stands. groups: jobs of one architecture each; with `finetune`
    one job each. device: `cpu` or `cuda`. threads: of each worker. facts: provenance of the features. trained_on: what
    identifies the clips, and how backbones are trained. session: the driver's. save_seconds: between two states, at
    least; they are saved after epochs. patience_s: seconds for which storage may be silent. finetune: where the clips
    come from, and how the backbones are trained; None for cached features.
    """

    training: str
    groups: Sequence[Sequence[NetworkJob]]
    config: FoundConfig
    device: str
    threads: int
    facts: Mapping[str, Any]
    trained_on: Mapping[str, Any]
    session: str
    save_seconds: float
    patience_s: float = 300.0
    finetune: FinetuneJob | None = None

    @property
    def key(self) -> Key:
        """Of the work as a whole, on the board."""
        return (self.training, "networks")

    @property
    def epochs(self) -> int:
        """Epochs of all networks."""
        return sum(len(members_of(group)) for group in self.groups) * self.config.epochs


class FoundWorker:
    """One of the workers.

    Args:
        splits: train and dev; empty with `job.finetune`.
        report: called after every epoch with `epoch`, those of all networks, and `dev_auc`, the best so far or None.
        fail: called, in the first worker, with a network's URI and why it failed.
        stop: asked between updates.
    """

    def __init__(
        self,
        job: FoundJob,
        splits: Mapping[str, Split],
        workers: Workers,
        *,
        report: Callable[[dict[str, Any]], None],
        fail: Callable[[str, str], None],
        stop: StopCheck,
    ) -> None:
        self._job, self._splits, self._workers = job, splits, workers
        self._report, self._fail, self._stop = report, fail, stop
        self._epochs_before = 0

    def run(self, failed: Collection[str]) -> Stop | None:
        """Train all networks whose files do not stand, but those that `failed`. Returns why it stopped, if it did.

        Raises:
            SearchFailedError: a training failed by itself, as `fail` was told: a new group of workers goes on.
            DeviceLostError, PeerLostError, RayError, UnreachableError, NoSpaceError: as of `cluster.search_loop`.
        """
        torch.set_num_threads(self._job.threads)

        def missing(group: Sequence[NetworkJob]) -> list[NetworkJob]:
            return [job for job in group if job.uri not in failed and not storage.exists(job.uri)]

        try:
            with storage.patient(self._job.patience_s):
                for group in self._job.groups:
                    jobs = by_first(partial(missing, group), self._workers)
                    if jobs:
                        self._train_or_tell(jobs)
                    self._epochs_before += len(members_of(group)) * self._job.config.epochs
        except StopError as stopped:
            return stopped.stop
        return None

    def _train_or_tell(self, jobs: Sequence[NetworkJob]) -> None:
        try:
            self._train(jobs)
        except (*_FROM_OUTSIDE, storage.UnreachableError, storage.NoSpaceError):
            raise
        except Exception as error:  # the training's own, of whatever kind: it would come again
            if is_of_device(error):
                raise DeviceLostError(f"the device failed ({type(error).__name__}: {error})") from None
            told = str(error) if isinstance(error, InputError | SettingError) else f"{type(error).__name__}: {error}"
            for job in jobs:
                self._fail(job.uri, told)
            raise SearchFailedError(told) from error

    def _train(self, jobs: Sequence[NetworkJob]) -> None:
        training = self._begin(jobs)
        if training is None:
            return
        job, workers = self._job, self._workers
        identity = {**job.trained_on, **({"seed": jobs[0].seed} if job.finetune else {})}
        uri = state_uri(jobs[0], job.config, identity)
        before = load_state(by_first(lambda: read_state(uri), workers), training, jobs)
        attempts = self._attempts(uri)
        if by_first(lambda: attempts.add(epoch=training.epoch), workers) > FRUITLESS_ATTEMPTS:
            self._refuse(jobs, f"{FRUITLESS_ATTEMPTS} attempts in a row ended without saving a new epoch")
            return
        start = time.perf_counter()

        def seconds() -> float:
            return before + (time.perf_counter() - start) * workers.world

        self._run_epochs(training, jobs, uri, seconds)
        thresholds = training.thresholds()
        if isinstance(training, FoundFinetune):
            neutral = training.neutral_values()
        else:
            neutral = neutral_of(training, self._splits["train"])

        def write() -> dict[str, str]:
            given: dict[str, Any] = {"thresholds": thresholds, "neutral": neutral, "seconds": seconds()}
            failed = write_networks(jobs, training, facts=self._provenance(jobs, training), **given)
            if storage.exists(uri):
                storage.delete(uri)
            attempts.forget()
            return failed

        for network, reason in by_first(write, workers).items():
            if workers.rank == 0:
                self._fail(network, reason)

    def _begin(self, jobs: Sequence[NetworkJob]) -> FoundTraining | None:
        """The training before its first epoch; None where it is refused, in all workers alike."""
        job, workers = self._job, self._workers
        training: FoundTraining | None = None
        told = None
        try:
            if job.finetune is None:
                training = begin_training(jobs, job.config, self._splits, device=job.device, workers=workers)
            else:
                assert jobs[0].genotype is not None
                training = job.finetune.found_training(
                    genotype_from_json(jobs[0].genotype), jobs[0].seed, job.config, device=job.device, workers=workers
                )
        except (InputError, SettingError) as error:
            told = str(error)
        refusals = [refusal for refusal in workers.gather(told) if refusal is not None]
        if refusals:
            self._refuse(jobs, refusals[0])
            return None
        return training

    def _refuse(self, jobs: Sequence[NetworkJob], reason: str) -> None:
        if self._workers.rank == 0:
            for job in jobs:
                self._fail(job.uri, reason)

    def _run_epochs(
        self, training: FoundTraining, jobs: Sequence[NetworkJob], uri: str, seconds: Callable[[], float]
    ) -> None:
        """Run the epochs that are left; states are saved when they are due, and at a stop."""
        saved, saved_at = training.epoch, time.monotonic()

        def save(is_due: bool) -> None:
            nonlocal saved, saved_at
            if training.epoch > saved and (is_due or time.monotonic() - saved_at >= self._job.save_seconds):
                save_state(uri, training, seconds(), jobs)
                saved, saved_at = training.epoch, time.monotonic()

        while not training.finished:
            began = time.monotonic()
            self._stop_here(self._stop(), lambda: save(True), uri)
            training.run_epoch(partial(self._between_updates, began, uri))
            by_first(lambda: save(False), self._workers)
            if self._workers.rank == 0:
                scores = np.asarray(training.best_auc)
                best = float(np.nanmax(scores)) if np.isfinite(scores).any() else None
                epoch = self._epochs_before + training.epoch * len(training.seeds)
                self._report({"epoch": epoch, "dev_auc": best})

    def _between_updates(self, began: float, uri: str) -> None:
        """End a long epoch halfway where a stop is asked for. began: when the epoch did."""
        is_long = time.monotonic() - began >= EPOCH_PATIENCE_SECONDS
        self._stop_here(self._stop() if is_long else None, lambda: None, uri)

    def _stop_here(self, own: Stop | None, save: Callable[[], None], uri: str) -> None:
        """Raise StopError in all workers where one was told to stop."""
        stop = agreed_stop(own, self._workers)
        if stop is None:
            return

        def leave() -> None:
            save()
            self._attempts(uri).forget()

        by_first(leave, self._workers)
        raise StopError(stop)

    def _attempts(self, state: str) -> AttemptCount:
        """Those at a training, counted beside its state."""
        return AttemptCount(f"{state.removesuffix('.pt')}.attempts.json", self._job.session)

    def _provenance(self, jobs: Sequence[NetworkJob], training: FoundTraining) -> Mapping[str, Any]:
        """How features are made; the backbones that a training has made itself are written before that."""
        if not isinstance(training, FoundFinetune) or training.failures[0] is not None:
            return self._job.facts
        return with_own_backbones(self._job.facts, jobs[0].uri, write_backbones(jobs[0].uri, training))
