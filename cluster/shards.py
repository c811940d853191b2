"""Runs a worker class over the shards of a box on Ray Data: one row is one shard, and the actor itself writes it.

So two runs leave the same bytes whatever the number of actors and whoever dies on the way, and a run that was stopped
repeats at most the shards that were in work.
"""

from __future__ import annotations

import abc
import contextlib
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import ray
import ray.data
import ray.exceptions
from tqdm import tqdm

from data_prep.decoder import DecoderStartError
from data_prep.storage import InputError, UnreachableError

Shard = dict[str, Any]
Result = dict[str, Any]

# How often a shard is tried again when its actor dies (a lost node, no memory left). Ray Data's default is for ever,
# which a clip that crashes the decoder would turn into an endless run.
_RETRIES = 3
# An actor tells of the clips it has done in so many messages per shard, each of at least so many clips; a message costs
# the driver some milliseconds. Their number is the same for every shard and every attempt, because of a second attempt
# Ray drops as many rows as it has of the first, whatever they hold: the result must have the same place in both.
_NEWS, _CLIPS_PER_NEWS = 8, 8
_SENTENCES: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (InputError, UnreachableError, DecoderStartError)
}


class ShardWorker(abc.ABC):
    """Base of the actors. A subclass implements `work`, and loads there what it needs, once: its errors are told."""

    @abc.abstractmethod
    def work(self, shard: Shard) -> Iterator[int | Result]:
        """Make one shard. Yields numbers of clips as they get done, and last the shard's result (JSON types)."""

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Ray Data's side of `work`: a batch of one shard in; rows with news of it out, the result in the last."""
        (shard,) = batch["shard"]
        clips, told = 0, 0
        try:
            for step in self.work(json.loads(shard)):
                if not isinstance(step, int):
                    yield from (_message(0) for _ in range(told, _NEWS))
                    yield _message(clips, result=json.dumps(step))
                    return
                clips += step
                if clips >= _CLIPS_PER_NEWS and told < _NEWS:
                    yield _message(clips)
                    clips, told = 0, told + 1
        except (ValueError, RuntimeError) as error:
            # By name: stgs has an InputError of its own, and importing it here would load torch for `prepare`, too.
            if type(error).__name__ not in _SENTENCES:
                raise
            # Told, not raised: after an error Ray Data leaves its actors, with their CPUs, to the garbage collector.
            yield from (_message(0) for _ in range(told, _NEWS))
            yield _message(clips, error=[type(error).__name__, str(error)])


def _message(clips: int, result: str = "", error: Sequence[str] = ("", "")) -> dict[str, np.ndarray]:
    """A row for the driver: clips done since the last one; in the shard's last its result, or an error by its name."""
    kind, sentence = error
    row = {"clips": clips, "result": result, "error": kind, "sentence": sentence}
    return {name: np.array([value]) for name, value in row.items()}


def run(
    worker: type[ShardWorker],
    arguments: dict[str, Any],
    shards: list[Shard],
    *,
    clips: int,
    title: str,
    actors: int | None = None,
    num_cpus: int = 1,
    num_gpus: float = 0,
    progress: bool = True,
    way_out: str,
) -> list[Result]:
    """The results of all `shards`, in their order, made by `worker(**arguments)` in actors.

    clips: their number in all shards, for the progress bar named `title`. actors: how many at most; None: as many as
    the cluster has CPUs and GPUs for. num_cpus, num_gpus: of each actor; a share of a GPU (below 1) is a multiple of
    0.0001, Ray's smallest. way_out: what to do where the cluster is too small for one actor. Raises InputError then,
    and where a worker does; RuntimeError if a shard's actor died in every attempt, or finds no S3 or no decoder.
    """
    if not shards:
        return []
    size = _number_of_actors(actors, len(shards), num_cpus, num_gpus, way_out)
    options = {"compute": ray.data.ActorPoolStrategy(size=size), "num_cpus": num_cpus, "num_gpus": num_gpus}
    results: dict[int, Result] = {}
    # Ray's rows come from a generator, whose end, an early one too, ends the actors.
    rows = cast(Generator[dict[str, Any], None, None], iter(_dataset(worker, arguments, shards, options).iter_rows()))
    with progress_bar(title, clips, "clip", progress) as bar, contextlib.closing(rows) as messages:
        try:
            for row in messages:
                bar.update(row["clips"])
                if row["error"]:
                    raise _SENTENCES[row["error"]](row["sentence"])
                if row["result"]:
                    result = json.loads(row["result"])
                    results[result.pop("position")] = result
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(f"{title}: an actor died {_RETRIES + 1} times at the same shard.") from error
    return [results[position] for position in range(len(shards))]


def _dataset(
    worker: type[ShardWorker], arguments: dict[str, Any], shards: list[Shard], options: dict[str, Any]
) -> ray.data.Dataset:
    rows = [{"shard": json.dumps(shard | {"position": position})} for position, shard in enumerate(shards)]
    with warnings.catch_warnings():
        # It has no other way to bound the restarts of an actor pool; pyproject.toml excludes the Ray that drops it.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            worker,
            fn_constructor_kwargs=arguments,
            batch_size=1,
            batch_format="numpy",
            max_restarts=_RETRIES,
            max_task_retries=_RETRIES,
            **options,
        )
    # Every row leaves its actor at once, so that the progress bar moves within a shard, too.
    dataset.context.target_max_block_size = 1
    return dataset


def _number_of_actors(wanted: int | None, shards: int, num_cpus: int, num_gpus: float, way_out: str) -> int:
    if wanted is not None and wanted < 1:
        raise InputError(f"actors is {wanted}, but at least 1 is needed.")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # Node by node, because an actor's CPUs and GPU lie on one.
    room = sum(_room(node.get("CPU", 0), node.get("GPU", 0), num_cpus, num_gpus) for node in nodes)
    if room < 1:
        needs = f"{num_cpus} CPUs" + (f" and {num_gpus:g} GPUs" if num_gpus else "")
        raise InputError(f"an actor needs {needs} on one machine, which this cluster does not have; {way_out}.")
    return min(shards, room, wanted or room)


def _room(cpus: float, gpus: float, num_cpus: int, num_gpus: float) -> int:
    """Actors that fit on one node."""
    room = int(cpus // num_cpus)
    if not num_gpus:
        return room
    return min(room, int(gpus) * int(1 / num_gpus) if num_gpus < 1 else int(gpus // num_gpus))


def progress_bar(title: str, total: int, unit: str, shown: bool) -> tqdm[Any]:
    """A bar on standard error; where that is a file, a line every half minute instead of ten a second."""
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=title, unit=unit, disable=not shown, mininterval=interval, file=sys.stderr)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of each of `packages` that is installed, for a box's meta.json."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
