"""The engine that runs packs side by side: Ray Tune trials. It only schedules.

`cluster/engines_train.py` is the other engine. Tune's own files are scratch; a trial that dies is started again, as
often as it takes, and finds its state in the run directory, where deaths without progress are counted, too; those that
come before a search begins are counted on the board.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray.tune

from cluster.attempts import read_pack
from cluster.board import Key
from cluster.devices import planned_devices, process_resources
from cluster.driving import Driver
from cluster.features import Split
from cluster.search_loop import PackJob
from cluster.session import keep_signal_handlers
from cluster.trials import Trial, run_trial
from data_prep import storage

# Trials that Tune starts at once at least. More than there are devices wait for those that come; as many as there may
# be devices must be let in, and each costs the driver memory and a look at every step.
FEWEST_CONCURRENT_TRIALS = 32
FOR_EVER = -1
# Between the number of a trial's job and the name of its pack.
_SEPARATOR = "/"
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


class _CountDeaths(ray.tune.Callback):
    """Tells the board of every trial whose process is gone, and has Tune end the trial that is given up for it.

    keys: by the trials' names in Tune's configurations.
    """

    def __init__(self, board: Any, keys: Mapping[str, Key]) -> None:
        self._board, self._keys = board, keys

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called before Tune starts a trial again."""
        why = last_words(trial.get_pickled_error())
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.get(self._board.died.remote(self._keys[trial.config["trial"]], why)):
                # Should its next process live to ask, the board sends it home; else its death is the last.
                trial.max_failures = 0


def last_words(error: BaseException | None) -> str:
    """The line of an error of Ray that says most: the last one of a trace, the first one of other reports."""
    lines = str(error or "").strip().splitlines() or [""]
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]


def search_with_tune(
    trials: Sequence[Trial], splits: Mapping[str, Splits], driver: Driver, *, title: str, progress: bool
) -> Failures:
    """Search packs as Tune trials, each in its own process. Returns why those that could not be searched could not.

    trials: on one kind of device. splits: `train` and `dev` of each run, by its URI. Ends early, and orderly, with the
    driver's flag.
    """
    kind, threads = trials[0][0].device, max(job.threads for job, _ in trials)
    # What a trial is given does not grow with their number: its own name, and references to what it shares.
    jobs = {id(job): ray.put(job) for job, _ in trials}
    # Runs may have the same clips, which are then stored once.
    stored = {id(own): ray.put(own) for own in splits.values()}
    clips = {id(job): stored[id(splits[job.run])] for job, _ in trials}
    numbers = {key: number for number, key in enumerate(jobs)}
    names = [f"{numbers[id(job)]}{_SEPARATOR}{pack.name}" for job, pack in trials]
    keys = {name: (job.run, pack.name) for name, (job, pack) in zip(names, trials, strict=True)}
    trainable = ray.tune.with_parameters(
        _trial, jobs=list(jobs.values()), clips=[clips[key] for key in jobs], board=driver.board
    )
    concurrent = max(FEWEST_CONCURRENT_TRIALS, planned_devices(kind, threads))
    epochs = sum(job.config.epochs * len(pack.points) for job, pack in trials)
    with driver.watched(title, epochs, progress):
        given_up = work_with_tune(trainable, process_resources(kind, threads), keys, driver, concurrent=concurrent)
    return given_up | driver.failures()


def work_with_tune(
    trainable: Any,
    resources: Mapping[str, float],
    keys: Mapping[str, Key],
    driver: Driver,
    *,
    concurrent: int = FEWEST_CONCURRENT_TRIALS,
) -> Failures:
    """Run a trial of `trainable` for each of `keys`, by its name, which the trial finds as `trial` in its config.

    resources: of a trial. concurrent: trials that are let in at once, at most. A trial that dies is started again,
    unless the board has given it up. Ends early, and orderly, with the driver's flag. Returns why those trials ended
    that Tune itself gave up; the board knows of others.
    """
    with (
        tempfile.TemporaryDirectory(prefix="stgs-tune-") as scratch,
        own_output(),
        _tune_without_signals(driver),
    ):
        results = ray.tune.Tuner(
            ray.tune.with_resources(trainable, dict(resources)),
            param_space={"trial": ray.tune.grid_search([*keys])},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=min(len(keys), concurrent), reuse_actors=True),
            run_config=ray.tune.RunConfig(
                name="grid",
                storage_path=scratch,
                verbose=0,
                stop=_EndWithFlag(driver.session),
                callbacks=[_CountDeaths(driver.board, keys)],
                failure_config=ray.tune.FailureConfig(max_failures=FOR_EVER),
            ),
        ).fit()
    # Of deaths that Tune would not answer by another start, which leave nothing in the run directory.
    found = [results[index] for index in range(len(results))]
    return {keys[result.config["trial"]]: str(result.error) for result in found if result.error and result.config}


def _trial(config: dict[str, Any], *, jobs: Sequence[Any], clips: Sequence[Any], board: Any) -> None:
    """One trial: the search of one pack in its own process. clips: references to train and dev of each of `jobs`."""
    splits: Splits = ray.get(clips[_number(config)])
    run_trial(_chosen(config, jobs), splits["train"], splits["dev"], board)


def _number(config: dict[str, Any]) -> int:
    """Of a trial's job."""
    return int(config["trial"].partition(_SEPARATOR)[0])


def _chosen(config: dict[str, Any], jobs: Sequence[Any]) -> Trial:
    """The trial that Tune's configuration names. jobs: references to those that trials share."""
    name = config["trial"].partition(_SEPARATOR)[2]
    job: PackJob = ray.get(jobs[_number(config)])
    with storage.patient(job.patience_s):
        return job, read_pack(job.run, name)


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
