"""The grid: its points, its packs, and how its results are gathered.

The truth is the run directory: a resume leaves out what has a result and gives the rest to the engines, which only
schedule (`cluster/engines.py`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray

from cluster.attempts import Pack, Point, point_uri, read_result, write_failure, write_packs
from cluster.engines import Failures, search_with_train, search_with_tune
from cluster.features import FeatureSource
from cluster.runs import open_run
from cluster.search_loop import PackJob
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.config import SearchConfig, WeightSchedule
from stgs.estimators import ESTIMATORS
from stgs.search_space import SearchSpace, search_space
from stgs.supernet import Member

SENSES = ("both", "visual", "audio")
GRID_NAME = "grid.parquet"
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """What all points of a run have in common.

    preset: `default`, or `released` for the released code's space. sense: features of `both` senses, or of one.
    num_cells, num_steps, channels: size of the space. device: `auto`, `cpu` or `cuda`. threads: of a CPU process; the
    bits depend on it. checkpoint_epochs: epochs between two saved states.
    """

    preset: str = "default"
    sense: str = "both"
    num_cells: int = 2
    num_steps: int = 2
    channels: int = 128
    device: str = "auto"
    threads: int = 1
    checkpoint_epochs: int = 1
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        _require_at_least(self, threads=1, checkpoint_epochs=1)
        for name, allowed in (("sense", SENSES), ("device", DEVICES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}.")

    def space(self, source: FeatureSource) -> SearchSpace:
        """The search space over the features of a box."""
        space = search_space(
            self.preset,
            source.features,
            length=source.length,
            num_cells=self.num_cells,
            num_steps=self.num_steps,
            channels=self.channels,
        )
        return space if self.sense == "both" else space.restricted(self.sense)


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig:
    """What a grid searches: every combination of the axes is a point.

    temperatures, num_samples, estimators, seeds: the axes. shuffles: 0, or the number of points with shuffled labels
    that stand in the place of each point (a control). pack: points that are searched as one population, 0 for
    ceil(points / devices).
    """

    temperatures: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)
    num_samples: tuple[int, ...] = (5, 10, 15, 20)
    estimators: tuple[str, ...] = ("stgs",)
    seeds: tuple[int, ...] = (0,)
    shuffles: int = 0
    pack: int = 0
    settings: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        for name in ("temperatures", "num_samples", "estimators", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InputError(f"{name} is {list(values)}; give at least one value, each once.")
        _require_at_least(self, shuffles=0, pack=0)
        for estimator in self.estimators:
            if estimator not in ESTIMATORS:
                raise InputError(f"estimators names {estimator!r}; choose from {', '.join(ESTIMATORS)}.")
        for temperature, samples in itertools.product(self.temperatures, self.num_samples):
            Member(temperature, samples, 0)  # refuses values out of range

    def points(self) -> list[Point]:
        """All points, in the order temperature, num_samples, estimator, seed, shuffle."""
        shuffles: Sequence[int | None] = range(self.shuffles) if self.shuffles else [None]
        axes = (self.temperatures, self.num_samples, self.estimators, self.seeds, shuffles)
        return [Point(*values) for values in itertools.product(*axes)]


def _require_at_least(config: object, **lowest: int) -> None:
    for name, value in lowest.items():
        if getattr(config, name) < value:
            raise InputError(f"{name} is {getattr(config, name)}, but it must be at least {value}.")


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
    begun = {out: _begin(out, config, source, resume) for out, config in grids.items()}
    trials = [(job, pack) for job, packs in begun.values() for pack in _unfinished(job.run, packs)]
    failed = search_with_tune(trials, source, title=title, progress=progress) if trials else {}
    results = {out: gather(job.run, packs, failed) for out, (job, packs) in begun.items()}
    if any(len(result.rows) + len(result.failed) < len(grids[out].points()) for out, result in results.items()):
        # Tune ends orderly when it is interrupted, as if it had finished.
        raise KeyboardInterrupt
    return results


def run_single(
    out: str, config: GridConfig, source: FeatureSource, *, resume: bool, progress: bool = True
) -> GridResult:
    """Search the one point of `config` in a Ray Train worker; otherwise like `run_grids` of one."""
    if len(config.points()) != 1:
        raise InputError(f"a search has one point, but these settings have {len(config.points())}; use 'stgs grid'.")
    job, packs = _begin(out, config, source, resume)
    waiting = _unfinished(job.run, packs)
    failed = search_with_train((job, waiting[0]), source, progress=progress) if waiting else {}
    return gather(job.run, packs, failed)


def _begin(out: str, config: GridConfig, source: FeatureSource, resume: bool) -> tuple[PackJob, list[Pack]]:
    settings = replace(config.settings, device=_device(config.settings.device))
    content = {
        **asdict(replace(config, settings=settings)),
        "features_digest": source.meta.digest,
        "manifest_digest": source.manifest.meta.digest,
        "split_digest": source.split_digest(),
    }
    hints = {"features": source.uri, "manifest": source.manifest_uri}
    run = open_run(out, content, resume=resume, hints=hints)
    packs = write_packs(run, _packs(config, settings))
    job = PackJob(
        run=run,
        space=settings.space(source),
        config=settings.search,
        device=settings.device,
        threads=settings.threads,
        checkpoint_epochs=settings.checkpoint_epochs,
    )
    return job, packs


def _device(wanted: str) -> str:
    gpus = ray.cluster_resources().get("GPU", 0)
    if wanted == "cuda" and not gpus:
        raise InputError("device is 'cuda', but the cluster has no GPU; give --device cpu.")
    return ("cuda" if gpus else "cpu") if wanted == "auto" else wanted


def _packs(config: GridConfig, settings: SearchSettings) -> list[Pack]:
    """Points by estimator (a population has one), cut into packs of equal size, as far as they go."""
    resources = ray.cluster_resources()
    devices = resources.get("GPU", 0) if settings.device == "cuda" else resources.get("CPU", 0) // settings.threads
    points = config.points()
    size = config.pack or math.ceil(len(points) / max(int(devices), 1))
    packs: list[Pack] = []
    for estimator in config.estimators:
        own = [point for point in points if point.estimator == estimator]
        for start in range(0, len(own), size):
            packs.append(Pack(f"pack-{len(packs):04d}", tuple(own[start : start + size])))
    return packs


def _unfinished(run: str, packs: Sequence[Pack]) -> list[Pack]:
    return [pack for pack in packs if any(read_result(run, point.id) is None for point in pack.points)]


def gather(run: str, packs: Sequence[Pack], errors: Failures) -> GridResult:
    """Collect the results of a run: write grid.parquet and the points' genotype.json, which can be rebuilt any time.

    errors: why packs failed just now. A point without a result and without an error is left out: it has not been
    searched yet.
    """
    rows, failed = [], {}
    for pack in packs:
        for point in pack.points:
            result = read_result(run, point.id)
            if result is None:
                reason = errors.get((run, pack.name))
                if reason is not None:
                    failed[point.id] = reason
                    write_failure(run, point.id, reason)
                continue
            genotype = json.dumps(result["genotype"])
            storage.write(point_uri(run, point.id, "genotype.json"), (genotype + "\n").encode())
            rows.append(
                {
                    "id": point.id,
                    **asdict(point),
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


def config_from_dict(content: Mapping[str, Any]) -> GridConfig:
    """The grid's settings from a run's config.yaml (`asdict` of a GridConfig, beside the digests)."""
    settings = dict(content["settings"])
    search = dict(settings.pop("search"))
    search["weights"] = WeightSchedule(**search["weights"])
    axes = {name: tuple(content[name]) for name in ("temperatures", "num_samples", "estimators", "seeds")}
    return GridConfig(
        **axes,
        shuffles=content["shuffles"],
        pack=content["pack"],
        settings=SearchSettings(**settings, search=SearchConfig(**search)),
    )
