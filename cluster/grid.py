"""The grid: its points, its packs, and how its results are gathered.

The truth is the run directory: a resume leaves out what has a result and gives the rest to the engines, which only
schedule (`cluster/engines.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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
    split_packs,
    write_failure,
    write_packs,
)
from cluster.audits import keep_audit
from cluster.devices import chosen_device, device_memory, planned_devices, require_processes
from cluster.engines import Failures, Trial, search_with_train, search_with_tune
from cluster.features import FeatureSource
from cluster.finetune import publish_backbones
from cluster.runs import open_run
from cluster.search_loop import PackJob
from cluster.settings import AUTO, GridConfig, Options, SearchSettings, settings_of
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.forecast import largest_population

GRID_NAME = "grid.parquet"
# Settings of a search, beside its space, that its memory depends on.
_MEMORY_SETTINGS = ("batch_size", "clip_norm", "dropout", "attention_dropout")


@dataclass(frozen=True, slots=True)
class GridResult:
    """rows: one a point with a result (the columns of grid.parquet). failed: id -> reason of the others."""

    run: str
    rows: list[dict[str, Any]]
    failed: dict[str, str]


def run_grids(
    grids: Mapping[str, GridConfig],
    source: FeatureSource,
    *,
    resume: bool,
    progress: bool = True,
    title: str = "grid",
) -> dict[str, GridResult]:
    """Search every point of every grid on Ray Tune, all packs side by side; needs `cluster.session.connect`.

    grids: directory of the run -> its settings. resume: continue runs that stand. title: of the progress bar. Returns
    the results by directory.

    Raises:
        KeyboardInterrupt: the search was stopped before its end; it can be resumed.
        InputError: a run was begun with other settings, features or splits, or the cluster cannot hold one trial.
    """
    for out, config in grids.items():
        _require_room(out, config)
    begun = {out: _begin(out, config, source, resume) for out, config in grids.items()}
    trials = [trial for grid in begun.values() for trial in grid.trials(source)]
    failed: Failures = {}
    if trials:
        splits = source.load_splits(("train", "dev"))
        _forget_failures(trials)
        failed = search_with_tune(trials, splits, title=title, progress=progress)
    return {out: _complete(gather(grid.run, grid.packs, failed), grids[out]) for out, grid in begun.items()}


def run_single(
    out: str, config: GridConfig, source: FeatureSource, *, workers: int = 1, resume: bool, progress: bool = True
) -> GridResult:
    """Search the one point of `config` in Ray Train workers that share every batch; otherwise like `run_grids` of one.

    source: features, or a corpus whose backbones are trained, too (`cluster.finetune.open_corpus`).
    """
    if len(config.points()) != 1:
        raise InputError(f"a search has one point, but these settings have {len(config.points())}; use 'stgs grid'.")
    if workers < 1:
        raise InputError(f"workers is {workers}, but at least 1 is needed.")
    source.largest_share(config.settings.search, workers)  # refuses workers without clips, before the run begins
    _require_room(out, config, workers)
    grid = _begin(out, config, source, resume, workers)
    trials = [(replace(job, workers=workers), pack) for job, pack in grid.trials(source)]
    failed: Failures = {}
    if trials:
        # A search that trains its backbones reads the clips while it runs.
        splits = source.load_splits(("train", "dev")) if source.finetune is None else None
        _forget_failures(trials)
        failed = search_with_train(trials[0], splits, progress=progress)
    return _complete(gather(grid.run, grid.packs, failed), config)


def _require_room(out: str, config: GridConfig, workers: int = 1) -> None:
    """Refuse a cluster that cannot hold what a run has still to search, before the run is begun."""
    run = storage.absolute(out)
    packs = read_packs(run)
    if not packs or any(read_result(run, point.id) is None for pack in packs for point in pack.points):
        require_processes(chosen_device(config.settings.device), config.settings.threads, workers)


def _forget_failures(trials: Sequence[Trial]) -> None:
    """Points that failed are about to be tried again."""
    for job, pack in trials:
        for point in pack.points:
            clear_failure(job.run, point.id)


def _complete(result: GridResult, config: GridConfig) -> GridResult:
    """`result`; raises KeyboardInterrupt where points have neither a result nor a failure.

    Tune and Train end orderly when they are interrupted, as if they had finished.
    """
    if len(result.rows) + len(result.failed) < len(config.points()):
        raise KeyboardInterrupt
    return result


@dataclass(frozen=True, slots=True)
class _Begun:
    """A run whose packs are fixed. settings: resolved, of all points before their options."""

    run: str
    settings: SearchSettings
    packs: list[Pack]

    def trials(self, source: FeatureSource) -> list[Trial]:
        """The packs that have points without a result, each with its job."""
        open_points = {p.id for pack in self.packs for p in pack.points if read_result(self.run, p.id) is None}
        waiting = [pack for pack in self.packs if any(p.id in open_points for p in pack.points)]
        return [(pack_job(self.run, self.settings, source, pack), pack) for pack in waiting]


def _begin(out: str, config: GridConfig, source: FeatureSource, resume: bool, workers: int = 1) -> _Begun:
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
    # A run may go on with more devices or fewer: what depends on their number is fixed in its packs.
    hints = {
        "features": source.uri,
        "manifest": source.manifest_uri,
        "devices": content.pop("devices"),
        **source.run_hints(),
    }
    packs = read_packs(storage.absolute(out))
    # Planned before anything is written: a device may be too small.
    planned = [] if packs else plan_packs(config, settings, source, workers)
    run = open_run(out, content, resume=resume, hints=hints)
    keep_audit(run, source)
    if planned:
        return _Begun(run, settings, write_packs(run, planned))
    if config.pack == AUTO:
        packs = split_packs(run, packs, _devices(config, settings))
    return _Begun(run, settings, packs)


def pack_job(run: str, settings: SearchSettings, source: FeatureSource, pack: Pack) -> PackJob:
    """The job of a pack: the run's settings with the options that the pack's points share."""
    settings = settings_of(settings, pack.points[0].options)
    return PackJob(
        run=run,
        space=settings.space(source),
        config=settings.search,
        device=settings.device,
        threads=settings.threads,
        checkpoint_epochs=settings.checkpoint_epochs,
        finetune=source.finetune,
    )


def _devices(config: GridConfig, settings: SearchSettings) -> int:
    return config.devices or planned_devices(settings.device, settings.threads)


def plan_packs(config: GridConfig, settings: SearchSettings, source: FeatureSource, workers: int = 1) -> list[Pack]:
    """Points of one estimator and the same options (a population has one of each), cut into packs of equal size, as far
    as they go.

    settings: with the device that was chosen; its memory bounds an automatic size. workers: processes that share each
    batch.
    """
    groups: dict[tuple[str, Options], list[Point]] = {}
    for point in config.points():
        groups.setdefault((point.estimator, point.options), []).append(point)
    devices = _devices(config, settings) if config.pack == AUTO else 1
    share = math.ceil(len(config.points()) / devices)
    packs: list[Pack] = []
    # A forecast takes seconds, and many options change nothing about the memory.
    fitting: dict[str, int] = {}
    for (_, options), own in groups.items():
        size = config.pack
        if size == AUTO:
            group, most = settings_of(settings, options), min(share, len(own))
            facts = [getattr(group.search, name) for name in _MEMORY_SETTINGS]
            key = repr((group.space(source), facts, most))
            size = fitting[key] = fitting.get(key) or _fitting(group, source, most, workers)
        for start in range(0, len(own), size):
            packs.append(Pack(f"pack-{len(packs):04d}", tuple(own[start : start + size])))
    return packs


def _fitting(settings: SearchSettings, source: FeatureSource, most: int, workers: int) -> int:
    """How many points, up to `most`, a device's memory holds; `most` where nothing tells how much it has, or where the
    search keeps no features in memory.
    """
    memory = device_memory(settings.device, settings.threads)
    if memory is None or source.finetune is not None:
        return most
    return largest_population(
        settings.space(source),
        replace(settings.search, batch_size=source.largest_share(settings.search, workers)),
        most=most,
        train_clips=source.manifest_clips("train"),
        dev_clips=source.manifest_clips("dev"),
        memory_bytes=memory,
        device=settings.device,
        vectors=source.vectors(),
    )


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
                reason = errors.get((run, pack.name))
                if reason is not None:
                    write_failure(run, point.id, reason)
                else:
                    reason = read_failure(run, point.id)
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
