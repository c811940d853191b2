"""What every worker does that trains one part of a baseline, alone or with others: train, choose on dev, test once.

All workers of a part do the same; the first one alone writes files. A state is read by each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.agreement import StopError, agreed_stop, by_first, end_the_run
from cluster.attempt_count import AttemptCount
from cluster.attempt_record import FRUITLESS_ATTEMPTS, STORAGE_ERRORS, dispensable, in_passing
from cluster.baseline_part import (
    ATTEMPTS_NAME,
    STATE_NAME,
    PartJob,
    Trained,
    commit,
    is_finished,
    read_state,
    save_state,
    write_curves,
    write_failure,
    write_network,
)
from cluster.baseline_streams import SequenceShards
from cluster.search_loop import DeviceLostError, is_of_device
from cluster.stopping import Stop, StopCheck
from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError
from stgs.baselines.base import Baseline
from stgs.baselines.evaluation import predict
from stgs.baselines.training import BaselineTraining, initial_baseline
from stgs.config import InputError as SettingError
from stgs.metrics import auc, best_threshold
from stgs.parallel import PeerLostError, Workers

# Saving takes a twentieth of the time at most: a state of 105 million parameters has 1.7 GB.
_SAVING_SHARE = 1 / 20
# Epochs that take less than this are drawn together.
_CURVES_SECONDS = 5.0
# Ends of a worker that are not the training's own fault.
_FROM_OUTSIDE = (StopError, PeerLostError, DeviceLostError, UnreachableError, NoSpaceError)


class PartWorker:
    """One of the workers.

    Args:
        arrays: of the file of weights of the job; None where it has none.
        report: called after every epoch with `epoch` and `dev_auc`, the best so far or None.
        stop: asked between updates.
    """

    def __init__(
        self,
        job: PartJob,
        arrays: Mapping[str, Tensor] | None,
        workers: Workers,
        *,
        report: Callable[[dict[str, Any]], None],
        stop: StopCheck,
    ) -> None:
        self._job, self._arrays, self._workers = job, arrays, workers
        self._report, self._check = report, stop
        self._attempts = AttemptCount(job.uri(ATTEMPTS_NAME), job.session)
        # Seconds of the attempts before this one, and when this one began.
        self._before, self._began = 0.0, time.perf_counter()
        self._saved_at, self._save_took, self._curves_at = time.monotonic(), 0.0, 0.0
        self._stop: Stop | None = None
        # Why the first worker cannot go on.
        self._trouble: Stop | None = None

    def run(self) -> Stop | None:
        """Train and test the part, unless its result stands. Returns why it stopped, if it did.

        Raises:
            InputError: the part cannot be trained, as failed.json says, too.
            DeviceLostError, PeerLostError, UnreachableError, NoSpaceError: as of `cluster.search_loop`.
        """
        torch.set_num_threads(self._job.threads)
        try:
            with storage.patient(self._job.patience_s):
                self._train_or_tell()
        except StopError as stopped:
            return stopped.stop
        return None

    def _train_or_tell(self) -> None:
        job = self._job
        try:
            if not by_first(lambda: is_finished(job.run, job.part), self._workers):
                self._work()
        except _FROM_OUTSIDE:
            raise
        except Exception as error:  # the training's own, of whatever kind: it would come again
            if is_of_device(error):
                raise DeviceLostError(f"the device failed ({type(error).__name__}: {error})") from None
            told = self._told(error)
            with dispensable():
                write_failure(job, told)
            if isinstance(error, SettingError | torch.OutOfMemoryError):
                raise InputError(told) from error
            raise

    def _told(self, error: Exception) -> str:
        job = self._job
        if isinstance(error, torch.OutOfMemoryError):
            less = "a smaller --batch-size" if job.training.recompute else "--recompute or a smaller --batch-size"
            return (
                f"a batch of {job.training.batch_size} clips on {self._workers.world} workers does not fit the memory "
                f"of the device; give more --workers, or {less} in another run."
            )
        return str(error) if isinstance(error, InputError | SettingError) else f"{type(error).__name__}: {error}"

    def _work(self) -> None:
        job, workers = self._job, self._workers
        model = initial_baseline(job.model, job.baseline, job.training.seed)
        if job.weights is not None:
            assert self._arrays is not None
            job.weights.fill(model, self._arrays)
        trained = self._trained(model) if job.is_trained else self._as_it_is(model)
        if trained is None:
            return
        scores = self._scores(model, job.stream("test", workers))
        by_first(lambda: commit(job, model, trained, scores, workers.world), workers)

    def _scores(self, model: Baseline, stream: SequenceShards) -> NDArray[np.float64]:
        """P(fake) of the clips of a split. Raises InputError where they are no numbers."""
        job, workers = self._job, self._workers
        scores = workers.from_first(predict(model, stream, precision=job.training.precision, workers=workers))
        if wrong := int((~np.isfinite(scores)).sum()):
            told = f"{wrong} of {len(scores)} {stream.split} clips have scores that are no numbers"
            if job.is_trained:
                raise InputError(f"{told}; give --precision float32, or a lower --learning-rate, in another run.")
            assert job.weights is not None
            raise InputError(
                f"{told} with the weights of {job.weights.uri}; give another --checkpoint, or --precision float32, in "
                "another run."
            )
        return scores

    def _as_it_is(self, model: Baseline) -> Trained:
        """A checkpoint: its threshold is chosen on dev."""
        job = self._job
        assert job.weights is not None
        stream = job.stream("dev", self._workers)
        model.to(job.device)
        scores, fake = self._scores(model, stream), stream.labels
        return Trained(auc(scores, fake), 0, best_threshold(scores, fake), [], self._seconds(), job.weights.sha256)

    def _trained(self, model: Baseline) -> Trained | None:
        """The model gets the weights of its best epoch, which are written; None where another driver's result stands
        by then.
        """
        job, workers = self._job, self._workers
        training = BaselineTraining(
            model,
            job.training,
            train=job.stream("train", workers),
            dev=job.stream("dev", workers),
            device=job.device,
            workers=workers,
        )
        self._load(training)
        place = {"epoch": training.epoch, "update": training.update}
        if by_first(lambda: self._attempts.add(**place), workers) > FRUITLESS_ATTEMPTS:
            raise InputError(f"{FRUITLESS_ATTEMPTS} attempts in a row ended without saving anything new")
        self._run_epochs(training)
        training.use_best()

        def write() -> str | None:
            write_curves(job, training.rows)
            return write_network(job, training.best_weights())

        network = by_first(write, workers)
        if network is None:
            return None
        return Trained(
            training.best_auc, training.best_epoch, training.threshold(), training.rows, self._seconds(), network
        )

    def _load(self, training: BaselineTraining) -> None:
        """Go on from the state that stands, if it is one of this training."""
        state = self._read_state()
        if state is None:
            return
        try:
            training.load_state_dict(state["training"])
        except SettingError:  # of an earlier version
            return
        self._before = float(state["seconds"])

    def _read_state(self) -> dict[str, Any] | None:
        """What the first worker finds: a state is large, so that each reads it by itself, not as a message of the
        first. Where one of them cannot, or finds another, all end.
        """
        job, workers = self._job, self._workers
        own: list[tuple[str, dict[str, Any]]] = []

        def first() -> str | None:
            own.extend(filter(None, [read_state(job)]))
            return own[0][0] if own else None

        expected = by_first(first, workers)
        if expected is None:
            return None
        stop = None
        if workers.rank > 0:
            try:
                first()
            except STORAGE_ERRORS as error:
                stop = end_the_run(error)
            else:
                if not own or own[0][0] != expected:
                    stop = Stop(
                        "run",
                        f"worker {workers.rank} does not find the {job.uri(STATE_NAME)} that the first one has read, "
                        "which every node must reach",
                    )
        if (agreed := agreed_stop(stop, workers)) is not None:
            raise StopError(agreed)
        return own[0][1]

    def _run_epochs(self, training: BaselineTraining) -> None:
        """Run the epochs that are left; states are saved when they are due, and at a stop."""

        def asked_to_stop() -> bool:
            self._save_if_due(training)
            self._stop = agreed_stop(self._trouble or self._check(), self._workers)
            return self._stop is not None

        while not training.finished:
            if training.run_epoch(asked_to_stop) is None:
                self._leave(training)
            if self._workers.rank == 0:
                best = training.best_auc
                self._report({"epoch": training.epoch, "dev_auc": best if np.isfinite(best) else None})
                self._show(training)

    def _save_if_due(self, training: BaselineTraining) -> None:
        """In the first worker, between two updates; others hear of trouble when all agree on a stop."""
        wait = max(self._job.save_seconds, self._save_took / _SAVING_SHARE)
        if self._workers.rank == 0 and time.monotonic() - self._saved_at >= wait:
            try:
                self._save(training)
            except STORAGE_ERRORS as error:
                self._trouble = end_the_run(error)

    def _save(self, training: BaselineTraining) -> None:
        begin = time.monotonic()
        save_state(self._job, training.state_dict(), self._seconds())
        self._saved_at = time.monotonic()
        self._save_took = self._saved_at - begin

    def _leave(self, training: BaselineTraining) -> None:
        """End because of a stop: with a state, and as none of the attempts that are counted."""

        def leave() -> None:
            if self._trouble is None:
                self._save(training)
                write_curves(self._job, training.rows)
                self._attempts.forget()

        assert self._stop is not None
        by_first(leave, self._workers)
        raise StopError(self._stop)

    def _show(self, training: BaselineTraining) -> None:
        """Write the curves, for those who watch."""
        if time.monotonic() - self._curves_at >= _CURVES_SECONDS:
            with in_passing():
                write_curves(self._job, training.rows)
            self._curves_at = time.monotonic()

    def _seconds(self) -> float:
        """Device seconds of all attempts, as far as states tell."""
        return self._before + (time.perf_counter() - self._began) * self._workers.world
