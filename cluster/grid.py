"""The grid: how it is begun and continued, and how its results are gathered.

The truth is the run directory: a resume leaves out what has a result and gives the rest to the engines, which only
schedule (`cluster/engines.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.attempts import (
    Pack,
    clear_failure,
    point_uri,
    read_failure,
    read_packs,
    read_result,
    split_packs,
    write_failure,
    write_packs,
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
from cluster.packing import GROWING, add_packs, devices_for, grown, pack_job, plan_packs
from cluster.runs import find_config, open_run
from cluster.settings import AUTO, GridConfig, SearchSettings, settings_of
from cluster.stopping import Stop
from cluster.trials import Trial
from data_prep import boxes, storage
from data_prep.storage import InputError

GRID_NAME = "grid.parquet"
_NO_LIMITS = RunLimits()


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
    begun = {out: _begin(out, config, source, resume) for out, config in grids.items()}
    runs = [grid.run for grid in begun.values()]
    with driving(runs, deadline=deadline, device_hours=limits.device_hours) as driver:
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
    grid = _begin(out, config, source, resume, group.fewest)
    with driving([grid.run], deadline=deadline, device_hours=limits.device_hours) as driver:
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
    finished = _finished(storage.absolute(out))
    if any(point.id not in finished for point in config.points()):
        require_processes(chosen_device(config.settings.device), config.settings.threads, workers)


def _finished(run: str) -> set[str]:
    """The points with a result."""
    paths = storage.list(storage.join(run, "points"))
    return {path.split("/")[0] for path in paths if path.endswith("/result.json")}


def _forget_failures(trials: Sequence[Trial]) -> None:
    """Points that failed are about to be tried again."""
    for job, pack in trials:
        for point in pack.points:
            clear_failure(job.run, point.id)


def _result(grid: _Begun, failed: Failures, driver: Driver) -> GridResult:
    result = gather(grid.run, grid.packs, failed)
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
        finished = _finished(self.run)
        waiting = [pack for pack in self.packs if any(point.id not in finished for point in pack.points)]
        return [(pack_job(self.run, self.settings, source, pack, session), pack) for pack in waiting]


def _begin(out: str, config: GridConfig, source: FeatureSource, resume: bool, workers: int = 1) -> _Begun:
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
    if planned:
        packs = add_packs(run, packs, planned) if packs else write_packs(run, planned)
    if config.pack == AUTO:
        packs = split_packs(run, packs, devices_for(config, settings))
    return _Begun(run, settings, packs)


def gather(run: str, packs: Sequence[Pack], errors: Failures) -> GridResult:
    """Collect the results of a run: write grid.parquet, the points' genotype.json and the trained backbones, which can
    be rebuilt any time.

    errors: why packs failed just now. A point without a result that no file calls failed, either, is left out: it has
    not been searched yet.
    """
    rows, failed = [], {}
    for pack in packs:
        for point in pack.points:
            result = read_result(run, point.id)
            if result is None:
                reason = read_failure(run, point.id)
                if reason is None and (reason := errors.get((run, pack.name))) is not None:
                    write_failure(run, point.id, reason)
                if reason is not None:
                    failed[point.id] = reason
                continue
            publish_backbones(run, result)
            genotype = json.dumps(result["genotype"])
            storage.write(point_uri(run, point.id, "genotype.json"), (genotype + "\n").encode())
            rows.append(
                {
                    "id": point.id,
                    **point.facts(),
                    "genotype": genotype,
                    "parameters": result["parameters"],
                    "macs": result["macs"],
                    **result["metrics"],
                    "seconds": result["seconds"],
                    "device_seconds": result["device_seconds"],
                    "pack": pack.name,
                    "curves": result["curves"]["path"],
                    "curves_member": result["curves"]["member"],
                }
            )
    if rows:
        storage.write(storage.join(run, GRID_NAME), boxes.table_bytes(pa.Table.from_pylist(rows)))
    return GridResult(run, rows, failed)


def read_grid(run: str) -> list[dict[str, Any]]:
    """The rows of a run's grid.parquet. Raises InputError if the run has none yet."""
    try:
        return boxes.read_table(storage.join(run, GRID_NAME)).to_pylist()
    except FileNotFoundError:
        raise InputError(f"{run} has no results yet; run 'stgs grid --resume' on it first.") from None
