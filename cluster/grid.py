"""The grid: how it is begun and continued, and how its results are gathered.

The truth is the run directory: a resume leaves out what has a result and gives the rest to the engines, which only
schedule (`cluster/engines.py`).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.attempts import (
    Pack,
    Point,
    clear_failure,
    point_uri,
    read_failure,
    read_packs,
    read_result,
    write_failure,
)
from cluster.audits import keep_audit
from cluster.board import way_on
from cluster.devices import chosen_device, require_processes
from cluster.driving import Driver, driving
from cluster.engines import Failures, search_with_tune
from cluster.engines_train import WorkerGroup, search_with_train
from cluster.features import FeatureSource
from cluster.finetune import publish_backbones
from cluster.limits import RunLimits
from cluster.liveness import require_idle
from cluster.packing import (
    GROWING,
    add_packs,
    devices_for,
    grown,
    pack_job,
    pack_names,
    plan_packs,
    side_by_side,
    split_packs,
)
from cluster.runs import find_config, open_run
from cluster.search_loop import PackJob
from cluster.settings import AUTO, GridConfig, Options, SearchSettings, settings_of
from cluster.stopping import Stop
from cluster.trials import Trial
from data_prep import boxes, storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError

GRID_NAME = "grid.parquet"
# Files of a point.
RESULT, FAILURE, _GENOTYPE = "result.json", "failed.json", "genotype.json"
_NO_LIMITS = RunLimits()
# Once a command is asked to stop, a storage that does not answer is waited for so long, and no longer.
_STOPPED_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class GridResult:
    """rows: one a point with a result (the columns of grid.parquet). failed: id -> reason of others. unfinished: points
    with neither. stop: why they are not finished, None where all are.
    """

    run: str
    rows: list[dict[str, Any]]
    failed: dict[str, str]
    unfinished: int = 0
    stop: Stop | None = None

    def stopped(self) -> str:
        """A sentence that says why the search ended early, and how to go on. It must have a `stop`."""
        assert self.stop is not None
        points = len(self.rows) + len(self.failed) + self.unfinished
        return (
            f"stopped early: {self.stop.reason}; {len(self.rows)} of {points} points have a result, go on with "
            f"{way_on(self.stop)}."
        )


def run_grids(
    grids: Mapping[str, GridConfig],
    source: FeatureSource,
    *,
    resume: bool,
    progress: bool = True,
    title: str = "grid",
    limits: RunLimits = _NO_LIMITS,
    started: float | None = None,
) -> dict[str, GridResult]:
    """Search every point of every grid on Ray Tune, all packs side by side; needs `cluster.session.connect`.

    grids: directory of the run -> its settings, which may have more values than the run was begun with. resume:
    continue runs that stand. title: of the progress bar. limits: when to end before all is done; of several grids
    together. started: when the command began, in Unix seconds (default: now). Returns the results by directory.

    Raises:
        KeyboardInterrupt: a second signal came before the searches had ended orderly; they can be resumed.
        InputError: a run was begun with other settings, features or splits, another driver works on it, or the cluster
            cannot hold one trial.
    """
    deadline = limits.deadline_at(time.time() if started is None else started)
    for out, config in grids.items():
        require_idle(storage.absolute(out), takeover=limits.takeover)
        _require_room(out, config)
    with driving(deadline=deadline, device_hours=limits.device_hours) as driver:
        fence = _Fence(driver, limits.takeover)
        begun = {out: _begin(out, config, source, resume, fence=fence) for out, config in grids.items()}
        trials = [trial for grid in begun.values() for trial in grid.trials(source, driver.session)]
        failed: Failures = {}
        if trials and driver.stop is None:
            splits = source.load_splits(("train", "dev"))
            _forget_failures(trials)
            failed = search_with_tune(trials, splits, driver, title=title, progress=progress)
        results = {out: _result(grid, failed, driver) for out, grid in begun.items()}
        driver.complete = not any(result.unfinished for result in results.values())
    return results


def run_single(
    out: str,
    config: GridConfig,
    source: FeatureSource,
    *,
    workers: WorkerGroup | int = 1,
    resume: bool,
    progress: bool = True,
    limits: RunLimits = _NO_LIMITS,
    started: float | None = None,
) -> GridResult:
    """Search the one point of `config` in Ray Train workers that share every batch; otherwise like `run_grids` of one.

    source: features, or a corpus whose backbones are trained, too (`cluster.finetune.open_corpus`). workers: their
    number, or a range in which it may change; no part of the run's settings.
    """
    group = WorkerGroup(workers, workers) if isinstance(workers, int) else workers
    if len(config.points()) != 1:
        raise InputError(f"a search has one point, but these settings have {len(config.points())}; use 'stgs grid'.")
    for count in (group.fewest, group.most):  # refuses workers without clips, before the run begins
        source.largest_share(config.settings.search, count)
    deadline = limits.deadline_at(time.time() if started is None else started)
    require_idle(storage.absolute(out), takeover=limits.takeover)
    _require_room(out, config, group.fewest)
    with driving(deadline=deadline, device_hours=limits.device_hours) as driver:
        grid = _begin(out, config, source, resume, group.fewest, _Fence(driver, limits.takeover))
        trials = grid.trials(source, driver.session)
        failed: Failures = {}
        if trials and driver.stop is None:
            # A search that trains its backbones reads the clips while it runs.
            splits = source.load_splits(("train", "dev")) if source.finetune is None else None
            _forget_failures(trials)
            failed = search_with_train(trials[0], splits, driver, group, progress=progress)
        result = _result(grid, failed, driver)
        driver.complete = not result.unfinished
    return result


def _require_room(out: str, config: GridConfig, workers: int = 1) -> None:
    """Refuse a cluster that cannot hold what a run has still to search, before the run is begun."""
    finished = _points_with(RESULT, storage.absolute(out))
    if any(point.id not in finished for point in config.points()):
        require_processes(chosen_device(config.settings.device), config.settings.threads, workers)


def _points_with(name: str, run: str) -> set[str]:
    """The points that have a file of this name, from one listing: asking for each takes minutes of a large grid."""
    paths = storage.list(storage.join(run, "points"))
    return {path.split("/")[0] for path in paths if path.endswith(f"/{name}")}


def _forget_failures(trials: Sequence[Trial]) -> None:
    """Points that failed are about to be tried again."""
    standing = {run: _points_with(FAILURE, run) for run in {job.run for job, _ in trials}}
    tried = [(job.run, point.id) for job, pack in trials for point in pack.points]
    side_by_side(lambda point: clear_failure(*point), [(run, point) for run, point in tried if point in standing[run]])


def _result(grid: _Begun, failed: Failures, driver: Driver) -> GridResult:
    try:
        result = gather(grid.run, grid.packs, failed, hurried=lambda: driver.stop is not None)
    except (UnreachableError, NoSpaceError) as error:
        if driver.stop is None:
            raise
        # The trials have saved what they could: a resume gathers it.
        told = Stop("run", f"{driver.stop.reason}; {error}")
        return GridResult(grid.run, [], {}, sum(len(pack.points) for pack in grid.packs), told)
    unfinished = sum(len(pack.points) for pack in grid.packs) - len(result.rows) - len(result.failed)
    # Without a flag, somebody ended Tune or Train itself.
    stop = (driver.stop or Stop("run", "the search was ended from outside")) if unfinished else None
    return replace(result, unfinished=unfinished, stop=stop)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A run whose packs are fixed. settings: resolved, of all points before their options."""

    run: str
    settings: SearchSettings
    packs: list[Pack]

    def trials(self, source: FeatureSource, session: str = "") -> list[Trial]:
        """The packs that have points without a result, each with its job."""
        finished = _points_with(RESULT, self.run)
        waiting = [pack for pack in self.packs if any(point.id not in finished for point in pack.points)]
        jobs: dict[Options, PackJob] = {}
        for pack in waiting:
            options = pack.points[0].options
            jobs[options] = jobs.get(options) or pack_job(self.run, self.settings, source, pack, session)
        return [(jobs[pack.points[0].options], pack) for pack in waiting]


@dataclass(frozen=True, slots=True)
class _Fence:
    """Keeps two drivers from fixing the packs of one run. takeover: this one goes on where another works."""

    driver: Driver
    takeover: bool

    def begin(self, run: str) -> None:
        """Before the packs are touched: whoever comes after this is refused, or takes over."""
        self.driver.work_on(run, takeover=self.takeover)

    def end(self, run: str) -> None:
        """After they were written: where another has taken over meanwhile, nothing is searched."""
        self.driver.confirm(run)


def _begin(
    out: str,
    config: GridConfig,
    source: FeatureSource,
    resume: bool,
    workers: int = 1,
    fence: _Fence | None = None,
) -> _Begun:
    """Open the run, then fix its packs inside the fence."""
    run = storage.absolute(out)
    standing = find_config(run) if resume else None
    if standing is not None:
        config = grown(config, standing, run)
    settings = replace(config.settings, device=chosen_device(config.settings.device))
    for options in config.options():
        settings_of(settings, options).space(source)  # refuses what this box does not hold, before the run begins
    content = {
        **asdict(replace(config, settings=settings)),
        **source.run_settings(),
        "features_digest": source.meta.digest,
        "manifest_digest": source.manifest.meta.digest,
        "split_digest": source.split_digest(),
    }
    # A run may go on with more devices or fewer, and save more often: what depends on devices is fixed in its packs.
    hints = {
        "features": source.uri,
        "manifest": source.manifest_uri,
        "devices": content.pop("devices"),
        "checkpoint_minutes": content["settings"].pop("checkpoint_minutes"),
        **source.run_hints(),
    }
    packs = read_packs(run)
    # Planned before anything is written: a device may be too small.
    planned = plan_packs(config, settings, source, workers, packs)
    open_run(run, content, resume=resume, hints=hints, growing=GROWING if resume else ())
    keep_audit(run, source)
    if fence is not None:
        fence.begin(run)
    if pack_names(run) != [pack.name for pack in packs]:  # another driver was here while this one was planning
        packs = read_packs(run)
        planned = plan_packs(config, settings, source, workers, packs)
    if planned:
        packs = add_packs(run, packs, planned)
    if config.pack == AUTO:
        packs = split_packs(run, packs, devices_for(config, settings), _points_with(RESULT, run))
    if fence is not None:
        fence.end(run)
    return _Begun(run, settings, packs)


def gather(
    run: str, packs: Sequence[Pack], errors: Failures, *, hurried: Callable[[], bool] = lambda: False
) -> GridResult:
    """Collect the results of a run: write grid.parquet, and the points' genotype.json and the trained backbones where
    they are missing. All can be rebuilt any time.

    errors: why packs failed just now. A point without a result that no file calls failed, either, is left out: it has
    not been searched yet. hurried: says, between two phases, whether a storage that does not answer is waited for no
    longer than half a minute.
    """
    held = [(pack, point) for pack in packs for point in pack.points]
    with _patience(hurried):
        paths = set(storage.list(storage.join(run, "points")))
    with _patience(hurried):
        found = side_by_side(lambda pair: _read_point(run, pair[1], paths), held)
    results = [(pack, point, result) for (pack, point), (result, _) in zip(held, found, strict=True) if result]
    with _patience(hurried):
        failed = _failed(run, held, found, errors)
    with _patience(hurried):
        for _, _, result in results:
            publish_backbones(run, result)
        bare = [(point, result) for _, point, result in results if f"{point.id}/{_GENOTYPE}" not in paths]
        side_by_side(lambda pair: _write_genotype(run, *pair), bare)
        rows = [_row(pack, point, result) for pack, point, result in results]
        if rows:
            storage.write(storage.join(run, GRID_NAME), boxes.table_bytes(pa.Table.from_pylist(rows)))
    return GridResult(run, rows, failed)


def _patience(hurried: Callable[[], bool]) -> contextlib.AbstractContextManager[None]:
    return storage.patient(_STOPPED_PATIENCE_S) if hurried() else contextlib.nullcontext()


def _read_point(run: str, point: Point, paths: Collection[str]) -> tuple[dict[str, Any] | None, str | None]:
    """Result and failure of a point. paths: those that are there, below points/."""
    if f"{point.id}/{RESULT}" in paths:
        return read_result(run, point.id), None
    return None, read_failure(run, point.id) if f"{point.id}/{FAILURE}" in paths else None


def _failed(
    run: str,
    held: Sequence[tuple[Pack, Point]],
    found: Sequence[tuple[dict[str, Any] | None, str | None]],
    errors: Failures,
) -> dict[str, str]:
    """Why points failed, by id; those that only `errors` knows get their file."""
    failed: dict[str, str] = {}
    untold = []
    for (pack, point), (result, reason) in zip(held, found, strict=True):
        told = errors.get((run, pack.name)) if reason is None else reason
        if result is None and told is not None:
            failed[point.id] = told
            if reason is None:
                untold.append(point.id)
    side_by_side(lambda point_id: write_failure(run, point_id, failed[point_id]), untold)
    return failed


def _write_genotype(run: str, point: Point, result: Mapping[str, Any]) -> None:
    storage.write(point_uri(run, point.id, _GENOTYPE), (json.dumps(result["genotype"]) + "\n").encode())


def _row(pack: Pack, point: Point, result: Mapping[str, Any]) -> dict[str, Any]:
    """A point's line of grid.parquet."""
    return {
        "id": point.id,
        **point.facts(),
        "genotype": json.dumps(result["genotype"]),
        "parameters": result["parameters"],
        "macs": result["macs"],
        **result["metrics"],
        "seconds": result["seconds"],
        "device_seconds": result["device_seconds"],
        "pack": pack.name,
        "curves": result["curves"]["path"],
        "curves_member": result["curves"]["member"],
    }


def read_grid(run: str) -> list[dict[str, Any]]:
    """The rows of a run's grid.parquet. Raises InputError if the run has none yet."""
    try:
        return boxes.read_table(storage.join(run, GRID_NAME)).to_pylist()
    except FileNotFoundError:
        raise InputError(f"{run} has no results yet; run 'stgs grid --resume' on it first.") from None
