"""The engines that run packs: Ray Tune trials, or Ray Train workers. They only schedule.

Tune's own files are scratch; a trial that dies is started again and finds its state in the run directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.train
import ray.tune
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.attempts import Pack, read_heartbeat, read_pack
from cluster.devices import process_resources
from cluster.features import Split
from cluster.search_loop import PackJob, search_pack
from cluster.session import keep_signal_handlers
from cluster.shards import progress_bar
from data_prep.storage import InputError

# A driver process of Tune holds at most this many trials at once; the devices are what limits them otherwise.
MAX_CONCURRENT_TRIALS = 32
TRIAL_FAILURES = 3
HEARTBEAT_SECONDS = 1.0
# Tune and Train take these for themselves while they run.
STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1)

Trial = tuple[PackJob, Pack]
Splits = Mapping[str, Split]
# (run, name of the pack) -> why its search failed.
Failures = dict[tuple[str, str], str]


@contextlib.contextmanager
def _bar(title: str, trials: Sequence[Trial], shown: bool) -> Iterator[None]:
    """A progress bar over epochs of points, moved by the packs' heartbeats, whichever engine searches them.

    Callbacks of Ray Train run in a process of their own, and those of Tune must survive pickling: neither can hold it.
    """
    total = sum(job.config.epochs * len(pack.points) for job, pack in trials)
    done = threading.Event()

    with progress_bar(title, total, "epoch", shown) as bar:

        def look() -> None:
            beats = [(read_heartbeat(job.run, pack), pack) for job, pack in trials]
            started = [(facts, pack) for facts, pack in beats if facts is not None]
            if started:
                bar.set_postfix(dev_auc=f"{max(facts['dev_auc'] for facts, _ in started):.3f}", refresh=False)
                bar.update(max(sum(facts["epoch"] * len(pack.points) for facts, pack in started) - bar.n, 0))

        def look_if_possible() -> None:
            # A storage that does not answer for a moment must not fail a search that goes well.
            with contextlib.suppress(OSError):
                look()

        def follow() -> None:
            # Looking takes the longer the more packs there are; it must not become the driver's main work.
            while not done.wait(HEARTBEAT_SECONDS * max(1.0, len(trials) / 10)):
                look_if_possible()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            look_if_possible()


def search_with_tune(trials: Sequence[Trial], splits: Splits, *, title: str, progress: bool) -> Failures:
    """Search packs as Tune trials, each in its own process. Returns why those that failed did.

    trials: on one kind of device. splits: `train` and `dev`.
    """
    resources = process_resources(trials[0][0].device, max(job.threads for job, _ in trials))
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(_trial, jobs=[job for job, _ in trials], train=splits["train"], dev=splits["dev"]),
        resources,
    )
    space = {"trial": ray.tune.grid_search([{"number": n, "pack": pack.name} for n, (_, pack) in enumerate(trials)])}
    with (
        tempfile.TemporaryDirectory(prefix="stgs-tune-") as scratch,
        _bar(title, trials, progress),
        _own_output(),
        keep_signal_handlers(*STOP_SIGNALS),
    ):
        results = ray.tune.Tuner(
            trainable,
            param_space=space,
            tune_config=ray.tune.TuneConfig(
                max_concurrent_trials=min(len(trials), MAX_CONCURRENT_TRIALS), reuse_actors=True
            ),
            run_config=ray.tune.RunConfig(
                name="grid",
                storage_path=scratch,
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=TRIAL_FAILURES),
            ),
        ).fit()
    found = [results[index] for index in range(len(results))]
    keys = [(job.run, pack.name) for job, pack in trials]
    return {
        keys[result.config["trial"]["number"]]: str(result.error)
        for result in found
        if result.error and result.config is not None
    }


def _trial(config: dict[str, Any], *, jobs: Sequence[PackJob], train: Split, dev: Split) -> None:
    """One trial: the search of one pack in its own process."""
    job = jobs[config["trial"]["number"]]
    search_pack(job, read_pack(job.run, config["trial"]["pack"]), train, dev, ray.tune.report)


def search_with_train(trial: Trial, splits: Splits | None, *, progress: bool) -> Failures:
    """Search one pack in `job.workers` Ray Train workers, which share every batch. Returns why it failed, if it did.

    splits: `train` and `dev`; None where the search reads the clips while it runs. Where a worker dies, the whole group
    starts again, from the newest state.

    Raises:
        KeyboardInterrupt: the search was stopped with Ctrl-C.
    """
    job, pack = trial
    data = None if splits is None else ray.put(splits)
    with (
        tempfile.TemporaryDirectory(prefix="stgs-train-") as scratch,
        _bar("search", [trial], progress),
        _own_output(),
        keep_signal_handlers(*STOP_SIGNALS),
    ):
        trainer = TorchTrainer(
            _train_worker,
            # A reference inside a list reaches the worker as a reference, so the data stay in the object store.
            train_loop_config={"job": job, "pack": pack.name, "data": [data]},
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.workers,
                use_gpu=job.device == "cuda",
                resources_per_worker=process_resources(job.device, job.threads),
            ),
            torch_config=TorchConfig(backend="nccl" if job.device == "cuda" else "gloo"),
            run_config=ray.train.RunConfig(
                name="search",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=TRIAL_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return {(job.run, pack.name): _reason(error)}
        except SystemExit:
            # Train answers Ctrl-C by ending the controller, and then the program.
            raise KeyboardInterrupt from None
    return {}


def _reason(error: Exception) -> str:
    """Why Train's workers failed: the sentence of wrong input, where one found some, else all that Train says."""
    failures = getattr(error, "worker_failures", {}).values()
    return next((str(failure) for failure in failures if isinstance(failure, InputError)), str(error))


def _train_worker(config: dict[str, Any]) -> None:
    job: PackJob = config["job"]
    if job.device == "cuda":
        # Workers of one node see each other's GPUs; this is the one that is meant by `cuda`.
        torch.cuda.set_device(ray.train.torch.get_device())
    reference = config["data"][0]
    splits = {} if reference is None else ray.get(reference)

    def report(row: dict[str, Any]) -> None:
        """Nothing: ray.train.report would hold every epoch up for up to two seconds, and the heartbeat says it all."""

    search_pack(job, read_pack(job.run, config["pack"]), splits.get("train"), splits.get("dev"), report)


@contextlib.contextmanager
def _own_output() -> Iterator[None]:
    """Send what Tune and Train print to where their log goes (descriptor 2, see `cluster.session`): a command's result
    stands alone on standard output.
    """
    with os.fdopen(os.dup(2), "w", errors="backslashreplace") as log, contextlib.redirect_stdout(log):
        yield
