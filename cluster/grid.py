"""The grid: how searches are begun, continued and driven to their end, on Ray Tune or on Ray Train.

The truth is the run directory: a resume leaves out what has a result and gives the rest to the engines, which only
schedule (`cluster/engines.py`). What comes out is gathered by `cluster/gathering.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.attempts import Pack, clear_failure, read_packs
from cluster.audits import keep_audit
from cluster.devices import chosen_device, require_processes
from cluster.driving import Driver, driving
from cluster.engines import Failures, Splits, search_with_tune
from cluster.engines_train import WorkerGroup, search_with_train
from cluster.features import FeatureSource
from cluster.gathering import FAILURE, GRID_NAME, RESULT, GridResult, gather, read_grid
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
from cluster.runs import find_config, open_run, require_search
from cluster.search_loop import PackJob
from cluster.settings import AUTO, GridConfig, Options, SearchSettings, settings_of
from cluster.stopping import Stop
from cluster.trials import Trial
from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError

__all__ = ["GRID_NAME", "GridResult", "Whole", "gather", "read_grid", "run_grids", "run_single", "run_singles"]

_NO_LIMITS = RunLimits()
# The clips of all runs, or those of each, by its directory.
Sources = FeatureSource | Mapping[str, FeatureSource]
_SPLITS = ("train", "dev")


@dataclass(frozen=True, slots=True)
class Whole:
    """A run whose parts are runs of their own. config: of every part. source: its clips, before they are split."""

    out: str
    config: GridConfig
    source: FeatureSource


def run_grids(
    grids: Mapping[str, GridConfig],
    sources: Sources,
    *,
    resume: bool,
    progress: bool = True,
    title: str = "grid",
    limits: RunLimits = _NO_LIMITS,
    started: float | None = None,
    whole: Whole | None = None,
) -> dict[str, GridResult]:
    """Search every point of every grid on Ray Tune, all packs side by side; needs `cluster.session.connect`.

    grids: directory of the run -> its settings, which may have more values than the run was begun with. sources: the
    clips of all grids, or of each, by directory. resume: continue runs that stand. title: of the progress bar. limits:
    when to end before all is done; of several grids together. started: when the command began, in Unix seconds
    (default: now). whole: the run that the grids are parts of. Returns the results by directory.

    Raises:
        KeyboardInterrupt: a second signal came before the searches had ended orderly; they can be resumed.
        InputError: a run was begun with other settings, features or splits, another driver works on it, or the cluster
            cannot hold one trial.
    """

    def search(begun: Sequence[_Begun], trials: Sequence[Trial], driver: Driver) -> Failures:
        splits = _load_each(begun, trials)
        _forget_failures(trials)
        return search_with_tune(trials, splits, driver, title=title, progress=progress)

    work = _Work(grids, _by_run(grids, sources), resume, limits, started, whole)
    return work.done_by(search)


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
    runs = {out: config}
    found = run_singles(runs, source, workers=workers, resume=resume, progress=progress, limits=limits, started=started)
    return found[out]


def run_singles(
    runs: Mapping[str, GridConfig],
    sources: Sources,
    *,
    workers: WorkerGroup | int = 1,
    resume: bool,
    progress: bool = True,
    limits: RunLimits = _NO_LIMITS,
    started: float | None = None,
    whole: Whole | None = None,
) -> dict[str, GridResult]:
    """Like `run_single` for each of several runs, one after another, within the same limits; arguments as of
    `run_grids`.
    """
    group = WorkerGroup(workers, workers) if isinstance(workers, int) else workers
    by_run = _by_run(runs, sources)
    for out, config in runs.items():
        if len(config.points()) != 1:
            raise InputError(
                f"a search has one point, but these settings have {len(config.points())}; use 'stgs grid'."
            )
        for count in (group.fewest, group.most):  # refuses workers without clips, before a run begins
            by_run[out].largest_share(config.settings.search, count)

    def search(begun: Sequence[_Begun], trials: Sequence[Trial], driver: Driver) -> Failures:
        clips = {grid.run: grid.source for grid in begun}
        failed: Failures = {}
        for trial in trials:
            if driver.stop is not None:
                break
            source = clips[trial[0].run]
            # A search that trains its backbones reads the clips while it runs.
            splits = source.load_splits(_SPLITS) if source.finetune is None else None
            _forget_failures([trial])
            failed |= search_with_train(trial, splits, driver, group, progress=progress)
        return failed

    return _Work(runs, by_run, resume, limits, started, whole, group.fewest).done_by(search)


def _by_run(grids: Mapping[str, GridConfig], sources: Sources) -> Mapping[str, FeatureSource]:
    return dict.fromkeys(grids, sources) if isinstance(sources, FeatureSource) else sources


def _load_each(begun: Sequence[_Begun], trials: Sequence[Trial]) -> dict[str, Splits]:
    """Train and dev of each run that has trials; equal splits are loaded once, and a box is read once."""
    waiting = {job.run for job, _ in trials}
    sources = {grid.run: grid.source for grid in begun if grid.run in waiting}
    digests = {run: (source.uri, source.split_digest()) for run, source in sources.items()}
    tables = {source.uri: source for source in sources.values()}
    columns = {uri: source.columns() for uri, source in tables.items()}
    loaded: dict[tuple[str, str], Splits] = {}
    for run, source in sources.items():
        if digests[run] not in loaded:
            loaded[digests[run]] = source.load_splits(_SPLITS, columns[source.uri])
    return {run: loaded[digest] for run, digest in digests.items()}


@dataclass(frozen=True, slots=True)
class _Work:
    """What a command has to search: the arguments of `run_grids`. workers: that share each batch, the fewest."""

    grids: Mapping[str, GridConfig]
    sources: Mapping[str, FeatureSource]
    resume: bool
    limits: RunLimits
    started: float | None
    whole: Whole | None
    workers: int = 1

    def done_by(self, search: Callable[[Sequence[_Begun], Sequence[Trial], Driver], Failures]) -> dict[str, GridResult]:
        """Drive it: begin the runs, have the trials searched that are left, gather the results, by directory."""
        deadline = self.limits.deadline_at(time.time() if self.started is None else self.started)
        for out in self._outs():
            require_idle(storage.absolute(out), takeover=self.limits.takeover)
        for out, config in self.grids.items():
            _require_room(out, config, self.workers)
        with driving(deadline=deadline, device_hours=self.limits.device_hours) as driver:
            begun = self._begun(driver)
            trials = [trial for grid in begun.values() for trial in grid.trials(driver.session)]
            failed: Failures = {}
            if trials and driver.stop is None:
                failed = search(list(begun.values()), trials, driver)
            results = {out: _result(grid, failed, driver) for out, grid in begun.items()}
            driver.complete = not any(result.unfinished for result in results.values())
        return results

    def _outs(self) -> list[str]:
        return [*([] if self.whole is None else [self.whole.out]), *self.grids]

    def _begun(self, driver: Driver) -> dict[str, _Begun]:
        fence = _Fence(driver, self.limits.takeover)
        if self.whole is not None:
            run = _open_whole(self.whole, self.resume)
            driver.work_on(run, takeover=self.limits.takeover, is_whole=True)
        return {
            out: _begin(out, config, self.sources[out], self.resume, self.workers, fence)
            for out, config in self.grids.items()
        }


def _open_whole(whole: Whole, resume: bool) -> str:
    """Begin the run that has parts, or continue it; returns its URI. Its clips have no split of their own."""
    run = storage.absolute(whole.out)
    settled = _settle(run, whole.config, whole.source, resume)
    del settled.content["split_digest"]
    settled.open(run, resume)
    return run


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
    source: FeatureSource

    def trials(self, session: str = "") -> list[Trial]:
        """The packs that have points without a result, each with its job."""
        finished = _points_with(RESULT, self.run)
        waiting = [pack for pack in self.packs if any(point.id not in finished for point in pack.points)]
        jobs: dict[Options, PackJob] = {}
        for pack in waiting:
            options = pack.points[0].options
            jobs[options] = jobs.get(options) or pack_job(self.run, self.settings, self.source, pack, session)
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


@dataclass(frozen=True, slots=True)
class _Settled:
    """What a run is begun with. config, settings: with the values that it had, and with the device that was chosen.
    content, hints: of its config.yaml.
    """

    config: GridConfig
    settings: SearchSettings
    content: dict[str, Any]
    hints: dict[str, Any]

    def open(self, run: str, resume: bool) -> None:
        """Begin the run, or continue it; raises as `open_run` does."""
        growing, defaults = GROWING if resume else (), asdict(GridConfig())
        open_run(run, self.content, resume=resume, hints=self.hints, growing=growing, defaults=defaults)


def _settle(run: str, config: GridConfig, source: FeatureSource, resume: bool) -> _Settled:
    """Raises InputError for settings that these clips, or the run that stands, do not allow."""
    standing = find_config(run)
    if standing is not None:
        require_search(run, standing, "another --out")
    if standing is not None and resume:
        config = grown(config, standing, run)
    settings = replace(config.settings, device=chosen_device(config.settings.device))
    for options in config.options():
        settings_of(settings, options).space(source)  # refuses what this box does not hold, before the run begins
    content = {
        **asdict(replace(config, settings=settings)),
        **source.run_settings(),
        **source.protocol,
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
    return _Settled(config, settings, content, hints)


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
    settled = _settle(run, config, source, resume)
    config, settings = settled.config, settled.settings
    packs = read_packs(run)
    # Planned before anything is written: a device may be too small.
    planned = plan_packs(config, settings, source, workers, packs)
    settled.open(run, resume)
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
    return _Begun(run, settings, packs, source)
