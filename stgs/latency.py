"""Milliseconds that a clip takes on this machine's CPU: in the backbones, in the fusion network, and in both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stgs.backbones import FeatureExtractor
from stgs.layers import ForwardContext

FUSION, BACKBONES, ALL = "fusion", "backbones", "all"
BATCHES = (1, 32)
# Seconds of one measurement with backbones; the slowest call is made this often all the same.
_SECONDS, _MIN_REPETITIONS, _MAX_REPETITIONS = 1.0, 3, 200
# A network alone takes about a millisecond, so a part of the time gives as many repetitions.
_FUSION_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a part takes. part: `fusion`, `backbones` or `all`. batch: clips that are given together. threads: of
    torch. clips: of the batch that was timed, less than `batch` where that would have taken too long. repetitions: how
    often, after a warm-up. milliseconds_per_clip: the median of the repetitions; low, high: 5 % and 95 % of them.
    """

    part: str
    batch: int
    threads: int
    clips: int
    repetitions: int
    milliseconds_per_clip: float
    low: float
    high: float


@torch.no_grad()
def measure_latency(
    network: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    *,
    threads: Sequence[int],
    extractor: FeatureExtractor | None = None,
    clip_shapes: tuple[Sequence[int], Sequence[int]] | None = None,
    seconds: float = _SECONDS,
) -> list[Latency]:
    """Time a trained network alone, and with its backbones, for each number of threads and for batches of 1 and 32.

    torch's number of threads is as before afterwards.

    Args:
        network: a `FoundNetwork` or its like, of one member.
        shapes: of each feature that it reads, of one clip: [L, C] or [C].
        threads: numbers of threads, each at least 1.
        extractor, clip_shapes: backbones, and the shapes of what they read of one clip: frames [T, 3, H, W] and
            spectrogram [S, F]; None: the network alone.
        seconds: about what one measurement may take, after its warm-up.
    """
    rows: list[Latency] = []
    for number in dict.fromkeys(threads):
        with _threads(number):
            for batch in BATCHES:
                features = {name: torch.randn(batch, *shape) for name, shape in shapes.items()}
                times = _repeat(lambda features=features: [_fusion(network, features)], _FUSION_SHARE * seconds)  # type: ignore[misc]
                rows.append(_latency(FUSION, batch, number, batch, times[:, 0]))
            if extractor is not None and clip_shapes is not None:
                rows += _with_backbones(network, shapes, extractor, clip_shapes, number, seconds)
    return rows


def _with_backbones(
    network: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    extractor: FeatureExtractor,
    clip_shapes: tuple[Sequence[int], Sequence[int]],
    threads: int,
    seconds: float,
) -> Iterator[Latency]:
    def call(clips: int) -> Callable[[], list[float]]:
        frames = torch.randint(256, (clips, *clip_shapes[0]), dtype=torch.uint8)
        spectrogram = torch.rand(clips, *clip_shapes[1])
        return lambda: _both(network, shapes, extractor, frames, spectrogram)

    # As many clips as a call may have for a warm-up and the least number of repetitions in the time.
    single = clips = 1
    times = None
    for batch in BATCHES:
        if times is not None:
            clips = max(single, min(batch, int(seconds / (_MIN_REPETITIONS * times.sum(axis=1).min()))))
        if times is None or clips > single:
            times = _repeat(call(clips), seconds)
        for part, values in ((BACKBONES, times[:, 0]), (ALL, times.sum(axis=1))):
            yield _latency(part, batch, threads, clips, values)


def _both(
    network: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    extractor: FeatureExtractor,
    frames: Tensor,
    spectrogram: Tensor,
) -> list[float]:
    """Seconds in the backbones, and in all that follows."""
    start = time.perf_counter()
    taps = extractor(frames, spectrogram)
    middle = time.perf_counter()
    features = {}
    for name, shape in shapes.items():
        tap = taps[name].float()
        # A network of fewer positions reads the maximum over neighbouring ones.
        features[name] = tap if tap.dim() == 2 else tap.unflatten(2, (shape[0], -1)).amax(dim=3).transpose(1, 2)
    _fusion(network, features)
    return [middle - start, time.perf_counter() - middle]


def _fusion(network: nn.Module, features: Mapping[str, Tensor]) -> float:
    start = time.perf_counter()
    context = ForwardContext(torch.zeros(1, dtype=torch.int64), 0, training=False, track_statistics=False)
    torch.sigmoid(network(features, context))
    return time.perf_counter() - start


def _repeat(call: Callable[[], list[float]], seconds: float) -> np.ndarray:
    """Times of repeated calls after one that does not count, [repetitions, parts]."""
    call()
    times: list[list[float]] = []
    spent = 0.0
    while len(times) < _MIN_REPETITIONS or (spent < seconds and len(times) < _MAX_REPETITIONS):
        times.append(call())
        spent += sum(times[-1])
    return np.array(times)


def _latency(part: str, batch: int, threads: int, clips: int, seconds: np.ndarray) -> Latency:
    low, middle, high = (float(value) for value in np.quantile(seconds * 1000 / clips, [0.05, 0.5, 0.95]))
    return Latency(part, batch, threads, clips, len(seconds), middle, low, high)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
