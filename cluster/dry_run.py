"""What a search or a grid would need, told before it starts: packs, their places, memory a device, time.

Nothing is written, and no clips are read: the memory is counted from shapes, the time measured on noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import torch

from cluster.attempts import Pack
from cluster.devices import (
    chosen_device,
    device_memory,
    free_resources,
    planned_devices,
    process_resources,
    require_processes,
    startable_types,
)
from cluster.features import FeatureSource
from cluster.packing import plan_packs, share_devices
from cluster.placement import place_packs, waiting_for
from cluster.settings import GridConfig, SearchSettings, settings_of
from data_prep.audio import NUM_BINS
from stgs.finetune_forecast import forecast_finetune, measure_finetune
from stgs.forecast import USABLE_SHARE, SearchForecast, UpdateSeconds, forecast_search, measure_updates


@dataclass(frozen=True, slots=True)
class DryRun:
    """payload: the facts, for `--json`. text: the same in words."""

    payload: dict[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class _PackForecast:
    """A pack with what its search is expected to take. part: that it belongs to, empty of a run without parts.
    seconds: of the whole search.
    """

    part: str
    pack: Pack
    memory: SearchForecast
    epoch_seconds: float
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.part}/{self.pack.name}" if self.part else self.pack.name

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "points": len(self.pack.points),
            "estimator": self.pack.points[0].estimator,
            "options": self.pack.points[0].label,
            "device_bytes": self.memory.device_bytes,
            "clip_bytes": self.memory.clip_bytes,
            "state_bytes": self.memory.state_bytes,
            "update_bytes": self.memory.update_bytes,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
        }


def dry_run(
    config: GridConfig,
    sources: FeatureSource | Mapping[str, FeatureSource],
    *,
    workers: int = 1,
    in_turn: bool = False,
) -> DryRun:
    """Forecast of a grid, or of a search, which is a grid of one point; needs `cluster.session.connect`.

    sources: features, or a corpus whose backbones are trained, too; of a run with parts those of each, by name.
    workers: processes that share each batch of a pack; what they exchange is not in the time. in_turn: one pack is
    searched after another. A dozen updates of each kind of pack are run on a device of the cluster to measure their
    time.

    Raises:
        InputError: settings that this features box does not hold, a device that is not there, too few of them, or a
            device on which one point alone does not fit.
    """
    settings = replace(config.settings, device=chosen_device(config.settings.device))
    require_processes(settings.device, settings.threads, workers)
    parts = {"": sources} if isinstance(sources, FeatureSource) else sources
    forecasts: list[_PackForecast] = []
    process, free = process_resources(settings.device, settings.threads), free_resources()  # before the measurements
    available = device_memory(settings.device, settings.threads)
    measured: _Measured = {}
    own = config if in_turn else share_devices(config, settings, len(parts))
    for part, source in parts.items():
        packs = plan_packs(own, settings, source, workers)
        forecasts += _forecasts(part, packs, settings, source, workers, measured)
    devices = config.devices or planned_devices(settings.device, settings.threads)
    side_by_side = 1 if in_turn else max(devices // workers, 1)
    places = place_packs(len(forecasts), free, process, workers)
    device_seconds = workers * sum(forecast.seconds for forecast in forecasts)
    payload = {
        "points": len(config.points()) * len(parts),
        "device": settings.device,
        "devices": devices,
        "workers": workers,
        **{name: max(_clips(source)[name] for source in parts.values()) for name in ("train_clips", "dev_clips")},
        "available_bytes": available,
        "usable_bytes": None if available is None else int(available * USABLE_SHARE[settings.device]),
        "packs": [
            {**forecast.facts(), "nodes": list(place.nodes)} for forecast, place in zip(forecasts, places, strict=True)
        ],
        "node_types": startable_types(process),
        "seconds": _side_by_side([forecast.seconds for forecast in forecasts], side_by_side),
        "device_seconds": device_seconds,
        "device_hours": device_seconds / 3600,
    }
    trained = any(source.finetune is not None for source in parts.values())
    return DryRun(payload, _text(payload, trained=trained))


# Seconds of the updates of a kind of pack, an estimator with options, and how many points they were measured with.
_Measured = dict[tuple[Any, ...], tuple[int, UpdateSeconds]]


def _clips(source: FeatureSource) -> dict[str, Any]:
    return {f"{split}_clips": source.manifest_clips(split) for split in ("train", "dev")}


def _forecasts(
    part: str,
    packs: Sequence[Pack],
    settings: SearchSettings,
    source: FeatureSource,
    workers: int,
    measured: _Measured,
) -> list[_PackForecast]:
    """The packs of a part, in the order of their names. measured: what was so far, added to where a kind is new."""
    clips = _clips(source)
    forecasts = []
    for pack in sorted(packs, key=lambda pack: -len(pack.points)):
        own = settings_of(settings, pack.points[0].options)
        # The first of a kind is its largest, and the smaller ones are taken to cost their part of it.
        kind = (pack.points[0].estimator, pack.points[0].options)
        memory, measure = _forecast(pack, own, source, workers, clips)
        if kind not in measured:
            measured[kind] = (len(pack.points), _on_a_device(measure, own))
        size, updates = measured[kind]
        epoch = updates.epoch(own.search, **clips) * len(pack.points) / size
        forecasts.append(_PackForecast(part, pack, memory, epoch, epoch * own.search.epochs))
    return sorted(forecasts, key=lambda forecast: forecast.pack.name)


def _forecast(
    pack: Pack, settings: SearchSettings, source: FeatureSource, workers: int, clips: dict[str, Any]
) -> tuple[SearchForecast, Callable[[], UpdateSeconds]]:
    """Memory of a pack's search in one of its workers, and what measures its updates there."""
    space, search, job = settings.space(source), settings.search, source.finetune
    share = source.largest_share(search, workers)
    facts: dict[str, Any] = {
        "estimator": pack.points[0].estimator,
        "num_samples": max(point.num_samples for point in pack.points),
        "device": settings.device,
    }
    if job is None:
        members = len(pack.points)
        own = replace(search, batch_size=share)
        vectors = source.vectors()
        memory = forecast_search(space, own, members=members, vectors=vectors, **clips)
        return memory, partial(measure_updates, space, own, members=members, vectors=vectors, **facts)
    corpus = source.meta.config
    inputs: dict[str, Any] = {
        "backbones": job.backbones,
        "finetune": job.finetune,
        "clips": share,
        "frame_size": corpus["frame_size"],
        "spectrogram": (corpus["spectrogram_frames"], NUM_BINS),
    }
    labels = sum(clips.values())
    memory = forecast_finetune(space, search, device=settings.device, split_clips=labels, **inputs)
    return memory, partial(measure_finetune, space, search, **inputs, **facts)


def _on_a_device(measure: Callable[[], UpdateSeconds], settings: SearchSettings) -> UpdateSeconds:
    """Measure on a device of the cluster, with what a trial asks for."""
    threads, reserved = settings.threads, process_resources(settings.device, settings.threads)

    def task() -> UpdateSeconds:
        torch.set_num_threads(threads)
        return measure()

    place: Any = ray.remote(num_cpus=reserved["CPU"], num_gpus=reserved.get("GPU", 0))
    found: UpdateSeconds = ray.get(place(task).remote())
    return found


def _side_by_side(seconds: list[float], devices: int) -> float:
    """When the last of these searches ends, each begun in order on the device that is free first."""
    free = [0.0] * devices
    for needed in seconds:
        first = free.index(min(free))
        free[first] += needed
    return max(free)


def _text(facts: dict[str, Any], trained: bool) -> str:
    packs = facts["packs"]
    points, number = _plural(facts["points"], "point"), _plural(len(packs), "pack")
    lines = [
        f"{points} in {number}, on {_plural(facts['devices'], facts['device'] + ' device')}; at most "
        f"{facts['train_clips']:,} train and {facts['dev_clips']:,} dev clips",
        "memory, counted:",
        *_memory_lines(facts, trained),
        "time, expected from a few updates on noise:",
    ]
    for pack in packs:
        lines.append(f"  {pack['name']}: {_time(pack['epoch_seconds'])} an epoch, {_time(pack['seconds'])} in all")
    lines.append("place, on the cluster as it is now:")
    for pack in packs:
        where = f"starts on {', '.join(_counted(pack['nodes']))}" if pack["nodes"] else waiting_for(facts["node_types"])
        lines.append(f"  {pack['name']}: {where}")
    lines.append(
        f"all packs: {_time(facts['seconds'])} if nothing else runs and no search stops early; "
        f"{_time(facts['device_seconds'])} of device time ({facts['device_hours']:.3g} device hours)"
    )
    return "\n".join(lines)


def _counted(nodes: list[str]) -> list[str]:
    """Each node once, with how many workers it has where it has several."""
    return [f"{node} ({nodes.count(node)} workers)" if nodes.count(node) > 1 else node for node in dict.fromkeys(nodes)]


def _memory_lines(facts: dict[str, Any], trained: bool) -> list[str]:
    """trained: the backbones are, too."""
    available, usable = facts["available_bytes"], facts["usable_bytes"]
    lines = []
    for pack in facts["packs"]:
        what = " ".join(part for part in (pack["estimator"], pack["options"]) if part)
        line = (
            f"  {pack['name']}: {_plural(pack['points'], 'point')} ({what}), {_size(pack['device_bytes'])} a device "
            f"(clips {_size(pack['clip_bytes'])}, weights and optimisers {_size(pack['state_bytes'])}, an update "
            f"{_size(pack['update_bytes'])})"
        )
        if usable is not None and pack["device_bytes"] > usable:
            # Several points are a grid's; one alone may be a search's, whose workers share a batch.
            one = f"smaller {'--micro-batch or ' if trained else ''}--batch-size, or with 'stgs search' more --workers"
            line += f"; THIS DOES NOT FIT: give a {'smaller --pack' if pack['points'] > 1 else one}"
        lines.append(line)
    if available is None:
        lines.append("  no device is there to be asked how much it has")
    else:
        lines.append(f"  available: {_size(available)} a device, of which {_size(usable)} are planned with")
    return lines


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
