"""The engine that runs packs side by side: Ray Tune trials. It only schedules.

`cluster/engines_train.py` is the other engine. Tune's own files are scratch; a trial that dies is started again, as
often as it takes, and finds its state in the run directory, where deaths without progress are counted, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray.tune

from cluster.devices import process_resources
from cluster.driving import Driver
from cluster.features import Split
from cluster.session import keep_signal_handlers
from cluster.trials import Trial, run_trial

# A driver process of Tune holds at most this many trials at once; the devices are what limits them otherwise.
MAX_CONCURRENT_TRIALS = 32
FOR_EVER = -1
# Tells Tune to leave SIGINT to us.
_OWN_SIGINT = "TUNE_DISABLE_SIGINT_HANDLER"

Splits = Mapping[str, Split]
# (run, name of the pack) -> why its search failed.
Failures = dict[tuple[str, str], str]
# Drivers at work, by session: Tune copies its stopper, which must ask this process's driver nevertheless.
_drivers: dict[str, Driver] = {}


class _EndWithFlag(ray.tune.Stopper):
    """Ends the Tune run once the driver's work is over, also where trials wait for machines."""

    def __init__(self, session: str) -> None:
        self.session = session

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.session in _drivers and _drivers[self.session].over


def search_with_tune(
    trials: Sequence[Trial], splits: Splits, driver: Driver, *, title: str, progress: bool
) -> Failures:
    """Search packs as Tune trials, each in its own process. Returns why those that could not be searched could not.

    trials: on one kind of device. splits: `train` and `dev`. Ends early, and orderly, with the driver's flag.
    """
    resources = process_resources(trials[0][0].device, max(job.threads for job, _ in trials))
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(
            _trial, trials=list(trials), train=splits["train"], dev=splits["dev"], board=driver.board
        ),
        resources,
    )
    with (
        tempfile.TemporaryDirectory(prefix="stgs-tune-") as scratch,
        driver.watched(title, sum(job.config.epochs * len(pack.points) for job, pack in trials), progress),
        own_output(),
        _tune_without_signals(driver),
    ):
        results = ray.tune.Tuner(
            trainable,
            param_space={"trial": ray.tune.grid_search(list(range(len(trials))))},
            tune_config=ray.tune.TuneConfig(
                max_concurrent_trials=min(len(trials), MAX_CONCURRENT_TRIALS), reuse_actors=True
            ),
            run_config=ray.tune.RunConfig(
                name="grid",
                storage_path=scratch,
                verbose=0,
                stop=_EndWithFlag(driver.session),
                failure_config=ray.tune.FailureConfig(max_failures=FOR_EVER),
            ),
        ).fit()
    # Of deaths that Tune would not answer by another start, which leave nothing in the run directory.
    keys = [(job.run, pack.name) for job, pack in trials]
    found = [results[index] for index in range(len(results))]
    given_up = {keys[result.config["trial"]]: str(result.error) for result in found if result.error and result.config}
    return given_up | driver.failures()


def _trial(config: dict[str, Any], *, trials: Sequence[Trial], train: Split, dev: Split, board: Any) -> None:
    """One trial: the search of one pack in its own process."""
    run_trial(trials[config["trial"]], train, dev, board)


@contextlib.contextmanager
def _tune_without_signals(driver: Driver) -> Iterator[None]:
    """Tune asks `driver` whether to end, and takes no signals for itself."""
    before = os.environ.get(_OWN_SIGINT)
    os.environ[_OWN_SIGINT] = "1"
    _drivers[driver.session] = driver
    try:
        with keep_signal_handlers(signal.SIGINT, signal.SIGUSR1):
            yield
    finally:
        del _drivers[driver.session]
        if before is None:
            del os.environ[_OWN_SIGINT]
        else:
            os.environ[_OWN_SIGINT] = before


@contextlib.contextmanager
def own_output() -> Iterator[None]:
    """Send what Tune and Train print to where their log goes (descriptor 2, see `cluster.session`): a command's result
    stands alone on standard output.
    """
    with os.fdopen(os.dup(2), "w", errors="backslashreplace") as log, contextlib.redirect_stdout(log):
        yield
