"""What a search will need of a device, before it starts: memory counted exactly, time measured on a few updates.

The memory is counted by running the very updates of a search on the meta device, whose tensors have shapes but no
values, and by adding up the storages that are alive: nothing is computed, whatever the size.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stgs.bilevel import Batch, architecture_update, weight_update
from stgs.clips import ClipSet
from stgs.config import InputError, SearchConfig, require_at_least
from stgs.layers import ForwardContext
from stgs.population import EVALUATION_BATCH, PopulationSearch
from stgs.search_space import SearchSpace
from stgs.supernet import Member, Supernet

# Share of a device's memory that is planned with; the rest is for the gaps that its allocator leaves. Seen on a CPU
# with glibc: 1.5 times the bytes that were alive (and 1.0 to 1.1 times with MALLOC_MMAP_THRESHOLD_=131072).
USABLE_SHARE = {"cpu": 0.6, "cuda": 0.9}
# The count of updates of each kind in the two epochs that are measured; their difference tells the kinds apart.
_PROBE_UPDATES = ((1, 2), (2, 1))
# The same for a batch of one clip: a split has both classes, so two clips at least.
_PROBE_UPDATES_OF_ONE = ((2, 4), (4, 2))


@dataclass(frozen=True, slots=True)
class SearchForecast:
    """Memory of the search of `members` points on one device, in bytes.

    clip_bytes: cached features and labels of train and dev. state_bytes: parameters, buffers and Adam's moments.
    update_bytes: the most that comes on top at any time: gradients, saved activations and temporaries of a weight or
    architecture update, or the activations of an evaluation.
    """

    members: int
    clip_bytes: int
    state_bytes: int
    update_bytes: int

    @property
    def device_bytes(self) -> int:
        """All of it."""
        return self.clip_bytes + self.state_bytes + self.update_bytes


class StorageCount(TorchDispatchMode):
    """Counts the bytes of all storages that operations made inside the context and that are still alive.

    now: at present. peak: the most so far; may be set back to `now`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def forecast_search(
    space: SearchSpace,
    config: SearchConfig,
    *,
    members: int,
    train_clips: int,
    dev_clips: int,
    vectors: Collection[str] | None = None,
) -> SearchForecast:
    """Memory of a search of `members` points on cached features, at least 1, with these numbers of clips.

    vectors: the features without positions, here and below; None: those whose name ends in `.pooled`. Not counted: what
    a process and its libraries take by themselves, and the gaps of an allocator.
    """
    require_at_least("members", members, 1)
    shapes = _shapes(space, vectors)
    with torch.device("meta"), StorageCount() as count:
        supernet = _supernet(space, config, members)
        parameters = sum(parameter.nbytes for parameter in supernet.parameters())
        # Adam keeps two moments; fused, it makes no temporaries, and no more does this stand-in.
        state = 3 * parameters + sum(buffer.nbytes for buffer in supernet.buffers())
        kinds = (supernet.weight_parameters(), supernet.architecture_parameters())
        weights, architecture = (torch.optim.SGD(kind.values(), foreach=False) for kind in kinds)
        start = count.now
        for parameter in supernet.weight_parameters().values():
            parameter.grad = torch.empty_like(parameter)  # left by the weight update before
        batch = _batch(shapes, members, min(config.batch_size, train_clips))
        weight_update(supernet, weights, batch, 0, clip_norm=config.clip_norm)
        batch = _batch(shapes, members, min(config.batch_size, dev_clips))
        architecture_update(supernet, architecture, batch, 1)
        del batch
        _evaluate(supernet, _batch(shapes, members, min(EVALUATION_BATCH, dev_clips)))
        added = count.peak - start
    return SearchForecast(members, clip_bytes(space, members, train_clips + dev_clips, vectors), state, added)


def _supernet(space: SearchSpace, config: SearchConfig, members: int) -> Supernet:
    """A supernet without values: one member's, whose tensors are replaced by those of `members` on the meta device."""
    # One member costs little to draw, and its samples are nothing beside its activations, so the estimator is any.
    with torch.device("cpu"):
        supernet = Supernet(
            space,
            [Member(1.0, 1, 0)],
            estimator="softmax",
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
    for parameter in supernet.parameters():
        grown = torch.empty(members, *parameter.shape[1:])
        torch.utils.swap_tensors(parameter, nn.Parameter(grown))
    for module in supernet.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(members, *buffer.shape[1:], dtype=buffer.dtype))
    return supernet


def _shapes(space: SearchSpace, vectors: Collection[str] | None) -> dict[str, tuple[int, ...]]:
    """Feature -> its shape a clip as it is read, [C, L], or [C] of a vector."""
    if vectors is None:
        vectors = [name for name in space.features if name.endswith(".pooled")]
    return {name: (size,) if name in vectors else (size, space.length) for name, size in space.features.items()}


def _batch(shapes: dict[str, tuple[int, ...]], members: int, clips: int) -> Batch:
    """A batch as it is gathered: float16 columns that become float32, positions first."""
    features = {
        name: torch.empty(clips, *reversed(shape), dtype=torch.float16).float() for name, shape in shapes.items()
    }
    return Batch(features, torch.empty(members, clips, dtype=torch.int8), torch.empty(members, 2))


def _evaluate(supernet: Supernet, batch: Batch) -> None:
    context = ForwardContext(supernet.seeds, 0, training=False, track_statistics=False)
    with torch.no_grad():
        supernet(batch.features, supernet.candidate_weights(None), context)


def clip_bytes(space: SearchSpace, members: int, clips: int, vectors: Collection[str] | None = None) -> int:
    """Bytes of cached features (float16) and labels (int8, a row a member) of `clips` clips."""
    values = sum(map(math.prod, _shapes(space, vectors).values()))
    return clips * (2 * values + members)


def largest_population(
    space: SearchSpace,
    config: SearchConfig,
    *,
    most: int,
    train_clips: int,
    dev_clips: int,
    memory_bytes: int,
    device: str = "cuda",
    vectors: Collection[str] | None = None,
) -> int:
    """Points, from 1 to `most`, whose search fits `memory_bytes` of a device, with a reserve for its allocator.

    device: `cpu` or `cuda`.

    Raises:
        InputError: one point alone does not fit.
    """

    def needed(members: int) -> int:
        return forecast_search(
            space, config, members=members, train_clips=train_clips, dev_clips=dev_clips, vectors=vectors
        ).device_bytes

    usable = int(memory_bytes * USABLE_SHARE[device])
    all_of_them = needed(most)
    if all_of_them <= usable:
        return most
    one = needed(1)
    if one > usable:
        raise InputError(
            f"one search needs {_size(one)} of memory, but a {device} device can give {_size(usable)}; give "
            "a smaller batch_size, fewer channels or fewer clips."
        )
    # The need is the largest of several sums, each growing evenly with the members, so no point lies above the chord.
    return 1 + int((usable - one) / ((all_of_them - one) / (most - 1)))


def _size(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True, slots=True)
class UpdateSeconds:
    """Measured seconds of a population: of a weight update, and of an architecture update with its share of dev's
    evaluation.
    """

    weights: float
    architecture: float

    def epoch(self, config: SearchConfig, train_clips: int, dev_clips: int) -> float:
        """Expected seconds of an epoch with architecture updates."""
        batches = [math.ceil(clips / config.batch_size) for clips in (train_clips, dev_clips)]
        return batches[0] * self.weights + batches[1] * self.architecture


def measure_updates(
    space: SearchSpace,
    config: SearchConfig,
    *,
    members: int,
    estimator: str,
    num_samples: int,
    device: str,
    vectors: Collection[str] | None = None,
) -> UpdateSeconds:
    """Seconds of updates of the real size, on random clips, on this device, with the threads that torch has now.

    Two short searches are run for two epochs each, and the second epochs are taken: a dozen updates altogether.
    """

    def epoch_seconds(updates: tuple[int, int]) -> float:
        train, dev = (noise_clips(space, members, count * config.batch_size, device, vectors) for count in updates)
        search = PopulationSearch(
            space,
            [Member(10.0, num_samples, seed) for seed in range(members)],
            estimator=estimator,
            config=replace(config, epochs=2, warmup_epochs=0),
            train=train,
            dev=dev,
            device=device,
        )
        return second_epoch_seconds(search, device)

    return solve_updates(epoch_seconds, _PROBE_UPDATES if config.batch_size > 1 else _PROBE_UPDATES_OF_ONE)


def solve_updates(
    epoch_seconds: Callable[[tuple[int, int]], float], probes: Sequence[tuple[int, int]] = _PROBE_UPDATES
) -> UpdateSeconds:
    """Seconds of both kinds of updates from those of two epochs with so many (weight, architecture) updates."""
    times = np.array([epoch_seconds(updates) for updates in probes])
    solved = np.linalg.solve(np.array(probes, float), times)
    # Noise of a busy machine must not make one of them nothing.
    weights, architecture = np.maximum(solved, 0.1 * solved.mean())
    return UpdateSeconds(float(weights), float(architecture))


def second_epoch_seconds(search: PopulationSearch, device: str) -> float:
    """Seconds of a new search's second epoch; the first one warms the device up."""
    search.run_epoch()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    search.run_epoch()  # ends with numbers on the host, so nothing is left running on the device
    return time.perf_counter() - start


def noise_clips(
    space: SearchSpace, members: int, clips: int, device: str, vectors: Collection[str] | None = None
) -> ClipSet:
    """Clips of noise on a device, half of them fake, that fit a space; vectors: as of `forecast_search`."""
    random = np.random.default_rng(0)
    columns = {
        name: random.standard_normal((clips, *shape), dtype=np.float32).astype(np.float16)
        for name, shape in _shapes(space, vectors).items()
    }
    return ClipSet(columns, (np.arange(clips) % 2).astype(np.int8), members=members, device=device)
