"""How the points of a grid are cut into packs, and what searching a pack needs."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cluster.attempts import INDEX_NAME, Pack, Point, pack_uri
from cluster.devices import device_memory, planned_devices
from cluster.features import FeatureSource
from cluster.search_loop import PackJob
from cluster.settings import AUTO, GridConfig, Options, SearchSettings, config_from_dict, named_settings, settings_of
from data_prep import storage
from data_prep.storage import InputError
from stgs.forecast import largest_population

# Settings of a search, beside its space, that its memory depends on.
_MEMORY_SETTINGS = ("batch_size", "clip_norm", "dropout", "attention_dropout")
_PACK_NUMBER = re.compile(r"pack-(\d+)")
# Of the hexadecimal digest of a cut, in the names of its parts: of one pack there are few cuts.
_DIGEST_DIGITS = 6
# Requests to the storage at once, where there are many.
_STORAGE_THREADS = 16
Item = TypeVar("Item")
Made = TypeVar("Made")
# Settings of a grid that a resume may give more values than the run was begun with.
GROWING = ("temperatures", "num_samples", "estimators", "seeds", "axes")


def pack_job(run: str, settings: SearchSettings, source: FeatureSource, pack: Pack, session: str = "") -> PackJob:
    """The job of a pack: the run's settings with the options that the pack's points share.

    session: of the driver that has it searched.
    """
    settings = settings_of(settings, pack.points[0].options)
    return PackJob(
        run=run,
        space=settings.space(source),
        config=settings.search,
        device=settings.device,
        threads=settings.threads,
        checkpoint_epochs=settings.checkpoint_epochs,
        checkpoint_minutes=settings.checkpoint_minutes,
        finetune=source.finetune,
        session=session,
    )


def devices_for(config: GridConfig, settings: SearchSettings) -> int:
    """Devices that packs are planned for."""
    return config.devices or planned_devices(settings.device, settings.threads)


def share_devices(config: GridConfig, settings: SearchSettings, parts: int) -> GridConfig:
    """The grid of one of several parts that are searched side by side: planned for its share of the devices.

    settings: with the device that was chosen.
    """
    if parts < 2 or config.pack != AUTO:
        return config
    return replace(config, devices=math.ceil(devices_for(config, settings) / parts))


def plan_packs(
    config: GridConfig,
    settings: SearchSettings,
    source: FeatureSource,
    workers: int = 1,
    standing: Sequence[Pack] = (),
) -> list[Pack]:
    """Points of one estimator and the same options (a population has one of each), cut into packs of equal size, as far
    as they go.

    settings: with the device that was chosen; its memory bounds an automatic size. workers: processes that share each
    batch. standing: packs that the run has; what they hold is left out.
    """
    there = {point.id for pack in standing for point in pack.points}
    points = [point for point in config.points() if point.id not in there]
    groups: dict[tuple[str, Options], list[Point]] = {}
    for point in points:
        groups.setdefault((point.estimator, point.options), []).append(point)
    devices = devices_for(config, settings) if config.pack == AUTO else 1
    share = math.ceil(len(points) / devices)
    first = max((int(match[1]) + 1 for pack in standing if (match := _PACK_NUMBER.match(pack.name))), default=0)
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
            packs.append(Pack(f"pack-{first + len(packs):04d}", tuple(own[start : start + size])))
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


def grown(config: GridConfig, standing: Mapping[str, Any], run: str) -> GridConfig:
    """`config` with the values of the run's axes first and in the run's order, and new ones behind them.

    standing: the run's settings, as its config.yaml holds them. The points of the run keep their names and their
    settings. Raises InputError where a value of the run is missing, or where the run has no such axis: its points are
    named without it.
    """
    own = config_from_dict(standing)
    settings = dict(named_settings(config.settings))
    values: dict[str, Any] = {
        name: _joined(name, getattr(own, name), getattr(config, name), run) for name in GROWING[:-1]
    }
    axes = {}
    for name, there in own.axes.items():
        given = config.axes.get(name) or (settings[name],)
        axes[name] = _joined(name, there, given, run)
    new = [name for name in config.axes if name not in own.axes]
    if new:
        value = dict(named_settings(own.settings))[new[0]]
        raise InputError(
            f"{run} was begun with one {new[0]} ({value!r}), so its points are named without it; search several values "
            "of it into another --out."
        )
    return replace(config, **values, axes=axes)


def _joined(name: str, there: Sequence[Any], given: Sequence[Any], run: str) -> tuple[Any, ...]:
    missing = [value for value in there if value not in given]
    if missing:
        raise InputError(
            f"{run} was begun with {name} {list(there)}, not {list(given)}, which lacks {missing[0]!r}; name all "
            "values of the run, with new ones beside them, or give another --out."
        )
    return (*there, *(value for value in given if value not in there))


def add_packs(run: str, standing: Sequence[Pack], planned: Sequence[Pack]) -> list[Pack]:
    """Give a run packs, its first or more; those that it has stay as they are. Returns all.

    The index comes last: a run killed before has its former packs, and a resume plans the others anew.
    """
    packs = [*standing, *planned]
    _write(run, planned, packs)
    return packs


def split_packs(run: str, packs: Sequence[Pack], devices: int, finished: Collection[str]) -> list[Pack]:
    """Split the unfinished packs of a run so that up to `devices` of them can be searched side by side.

    packs: all packs of the run, in order. finished: ids of the points with a result. A part holds points without one,
    and goes on from the newest state of the pack that it was split off; packs are never merged. Returns the packs of
    the run after that.

    Two drivers may split the same pack in two ways at once. The parts are named after what they hold, so each finds its
    own, and the index that was written last counts; points that it does not hold are planned anew by a resume, and lose
    the states that they had under the other's names, but no result.
    """
    waiting = {pack.name: [point for point in pack.points if point.id not in finished] for pack in packs}
    pieces = {name: 1 for name, points in waiting.items() if points}
    splittable = sum(len(waiting[name]) for name in pieces)
    for _ in range(len(pieces), min(devices, splittable)):
        largest = max(pieces, key=lambda name: len(waiting[name]) / pieces[name])
        pieces[largest] += 1
    after: list[Pack] = []
    for pack in packs:
        count = pieces.get(pack.name, 1)
        after += [pack] if count == 1 else _parts(pack, waiting[pack.name], count)
    new = [pack for pack in after if pack not in packs]
    if new:
        _write(run, new, after)
    return after


def _parts(pack: Pack, waiting: Sequence[Point], count: int) -> list[Pack]:
    """`count` packs of the points of `pack` that wait, and one of the others, so that the run's packs hold every point.

    The number of the part and a digest of the cut make the name.
    """
    cuts = [len(waiting) * number // count for number in range(count + 1)]
    parts = [(str(number), tuple(waiting[start:end])) for number, (start, end) in enumerate(itertools.pairwise(cuts))]
    others = tuple(point for point in pack.points if point not in waiting)
    parts += [("done", others)] if others else []
    digest = hashlib.sha256(repr([[point.id for point in points] for _, points in parts]).encode()).hexdigest()
    return [Pack(f"{pack.name}.{part}-{digest[:_DIGEST_DIGITS]}", points, pack.name) for part, points in parts]


def _write(run: str, new: Sequence[Pack], packs: Sequence[Pack]) -> None:
    side_by_side(lambda pack: storage.write(storage.join(pack_uri(run, pack.name), "pack.json"), pack.to_json()), new)
    storage.write(storage.join(run, "packs", INDEX_NAME), json.dumps([pack.name for pack in packs]).encode())


def pack_names(run: str) -> list[str]:
    """The names of a run's packs, in order, as its index has them now; none before they are fixed."""
    try:
        names: list[str] = json.loads(storage.read(storage.join(run, "packs", INDEX_NAME)))
    except FileNotFoundError:
        return []
    return names


def side_by_side(work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """What `work` returns for each item, in their order. Storage is waited for side by side where there are many."""
    if len(items) < _STORAGE_THREADS:
        return [work(item) for item in items]
    with concurrent.futures.ThreadPoolExecutor(_STORAGE_THREADS) as threads:
        return list(threads.map(work, items))
