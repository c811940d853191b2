"""The engine that runs one pack in several processes: Ray Train workers, whose number may change while they search."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray import PlacementGroupID
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import InsufficientClusterResourcesError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, ResizingState, RestartingState
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from cluster.board import Key
from cluster.devices import process_resources
from cluster.driving import Driver
from cluster.engines import FOR_EVER, Failures, Splits, last_words, own_output
from cluster.features import Split
from cluster.stopping import Stop
from cluster.trials import Trial, run_worker
from data_prep.storage import InputError

_LOOK_SECONDS = 0.5
# Workers that are about to be resized get so long to save where they are.
_SAVE_SECONDS = 60.0
_ABORT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """fewest, most: workers that share every batch. resize_s: seconds between two looks for machines that came or
    went, where the two numbers differ.
    """

    fewest: int = 1
    most: int = 1
    resize_s: float = 600.0

    def __post_init__(self) -> None:
        if self.resize_s < 1:
            raise InputError(f"resize_seconds is {self.resize_s:g}, but it must be at least 1.")

    def scaling(self, kind: str, threads: int) -> ray.train.ScalingConfig:
        """As Train says it. kind: `cpu` or `cuda`."""
        settings: dict[str, Any] = {"num_workers": self.most}
        if self.fewest < self.most:
            settings = {"num_workers": (self.fewest, self.most), "elastic_resize_monitor_interval_s": self.resize_s}
        return ray.train.ScalingConfig(
            use_gpu=kind == "cuda", resources_per_worker=process_resources(kind, threads), **settings
        )


class _Trainer(TorchTrainer):
    """Hands out its controller instead of taking SIGINT, so that the driver decides when to give up waiting."""

    def __init__(self, *arguments: Any, started: Callable[[Any], None], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._started = started

    def _register_sigint_handler(self, controller: Any) -> None:
        self._started(controller)


class _Link(ControllerCallback):
    """Links Train's controller to the board: lets the workers save where they are before Train ends them to start
    another number of them, and counts groups that died.
    """

    def __init__(self, board: Any, key: Key) -> None:
        self._board, self._key = board, key
        self._at_work = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Train's controller, in its own process, whenever its state changes."""
        self._at_work = isinstance(previous_state, ResizingState)
        error = getattr(current_state, "training_failed_error", None)
        if isinstance(current_state, RestartingState | ReschedulingState) and not _no_room(error):
            failures = list(getattr(error, "worker_failures", {}).values())
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._board.died.remote(self._key, last_words(failures[0] if failures else error)))

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Called before every start of workers: of the first ones, of others in the place of dead ones, and of another
        number of them, while the former ones are at work.
        """
        if not self._at_work:
            return
        stop = Stop("node", f"the search goes on with {resize_decision.num_workers} workers")
        deadline = time.monotonic() + _SAVE_SECONDS
        try:
            running = ray.get(self._board.recall.remote(self._key, stop))
            while running and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS / 5)
                running = ray.get(self._board.recall.remote(self._key, stop))
        except ray.exceptions.RayError:  # without the board the newest state has to do
            return


def _no_room(error: Exception | None) -> bool:
    """Whether workers could not be started because machines are missing, which the search waits for."""
    cause = getattr(error, "controller_failure", None)
    return isinstance(cause, InsufficientClusterResourcesError | WorkerGroupStartupTimeoutError)


class _Abort:
    """A context in which Train's controller is ended once the driver's work is over, or the pack is given up: it would
    wait for machines, or for workers that do not return, or start others, for ever.
    """

    def __init__(self, driver: Driver, key: Key) -> None:
        self._driver, self._key = driver, key
        self._controller: Any = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.done = False

    def watch(self, controller: Any) -> None:
        """Called with the controller once it runs."""
        self._controller = controller

    def __enter__(self) -> _Abort:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._left.wait(_LOOK_SECONDS):
            if (self._driver.over or self._key in self._driver.failures()) and self._controller is not None:
                self.done = True
                self._controller.abort.remote()
                # It hears nothing while it waits for a worker's place.
                if not self._left.wait(_ABORT_SECONDS):
                    ray.kill(self._controller)
                return


def search_with_train(
    trial: Trial, splits: Splits | None, driver: Driver, group: WorkerGroup, *, progress: bool
) -> Failures:
    """Search one pack in Ray Train workers, which share every batch. Returns why it failed, if it did.

    splits: `train` and `dev`; None where the search reads the clips while it runs. Where a worker dies, the whole group
    starts again, from the newest state. Ends early, and orderly, with the driver's flag.
    """
    job, pack = trial
    key = (job.run, pack.name)
    settings = {"trial": trial, **shared(splits)}
    with driver.watched("search", job.config.epochs * len(pack.points), progress):
        cause = work_with_train(_train_worker, settings, key, driver, group.scaling(job.device, job.threads))
    return ({} if cause is None else {key: cause}) | driver.failures()


def shared(data: Mapping[str, Any] | None) -> dict[str, Any]:
    """Data, such as splits, as a setting of workers, who get them with `load_shared`."""
    # A reference inside a list reaches the worker as a reference, so the data stay in the object store.
    return {"data": [None if data is None else ray.put(data)]}


def load_shared(settings: Mapping[str, Any], device: str) -> Mapping[str, Any]:
    """Prepare a worker's process for its device, and get what `shared` was given; nothing where that was None."""
    if device == "cuda":
        # Workers of one node see each other's GPUs; this is the one that is meant by `cuda`.
        torch.cuda.set_device(ray.train.torch.get_device())
    reference = settings["data"][0]
    data: Mapping[str, Any] = {} if reference is None else ray.get(reference)
    return data


def work_with_train(
    work: Callable[[dict[str, Any]], None],
    settings: Mapping[str, Any],
    key: Key,
    driver: Driver,
    scaling: ray.train.ScalingConfig,
) -> str | None:
    """`fit_with_train` in the driver's own process: ends early with its flag, or where the board gives `key` up."""
    with groups_removed(), _Abort(driver, key) as abort:
        try:
            return fit_with_train(work, settings, key, driver.board, scaling, started=abort.watch)
        except ray.exceptions.RayActorError:
            if not abort.done:
                raise
    return None


def fit_with_train(
    work: Callable[[dict[str, Any]], None],
    settings: Mapping[str, Any],
    key: Key,
    board: Any,
    scaling: ray.train.ScalingConfig,
    started: Callable[[Any], None] = lambda controller: None,
) -> str | None:
    """Run `work` in every worker of a Ray Train group. Returns why Train gave up, if it did.

    settings: what each is given, with the `board`. Where a worker dies, the group starts again, for ever. started: is
    given Train's controller, where this runs in a main thread.
    """
    # Of any kind, as Train's configuration says.
    callbacks: list[Any] = [_Link(board, key)]
    with tempfile.TemporaryDirectory(prefix="stgs-train-") as scratch, own_output():
        trainer = _Trainer(
            work,
            train_loop_config={**settings, "board": board},
            scaling_config=scaling,
            torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
            run_config=ray.train.RunConfig(
                name="search",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=FOR_EVER),
                callbacks=callbacks,
            ),
            started=started,
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return f"Ray Train gave up: {last_words(getattr(error, 'controller_failure', error))}"
    return None


@contextlib.contextmanager
def groups_removed() -> Iterator[None]:
    """Remove the placement groups that have been made meanwhile and stand at the end: of a Train that was ended, whose
    own cleaner asks the dashboard, which a private cluster has not.
    """
    before = _placement_groups()
    try:
        yield
    finally:
        for name in _placement_groups() - before:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def _placement_groups() -> set[str]:
    """The placement groups of this driver that stand, by their hexadecimal names, which end in that of its job."""
    job = ray.get_runtime_context().get_job_id()
    return {
        name for name, facts in placement_group_table().items() if name.endswith(job) and facts["state"] != "REMOVED"
    }


def _train_worker(config: dict[str, Any]) -> None:
    trial: Trial = config["trial"]

    def load() -> tuple[Split | None, Split | None]:
        splits = load_shared(config, trial[0].device)
        return splits.get("train"), splits.get("dev")

    context = ray.train.get_context()
    # Nothing is reported to Train: ray.train.report would hold every epoch up for up to two seconds.
    run_worker(trial, load, config["board"], context.get_world_rank(), context.get_world_size())
