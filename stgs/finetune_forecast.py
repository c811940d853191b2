"""What a search that trains the backbones, too, will need of a device, before it starts (see `stgs.forecast`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from stgs.backbone_trainer import BackboneTrainer, FinetuneConfig
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.config import SearchConfig
from stgs.finetune import FinetuneSearch
from stgs.forecast import (
    SearchForecast,
    StorageCount,
    UpdateSeconds,
    forecast_search,
    second_epoch_seconds,
    solve_updates,
)
from stgs.search_space import SearchSpace
from stgs.streamed import RawClips
from stgs.supernet import Member


def forecast_finetune(
    space: SearchSpace,
    config: SearchConfig,
    *,
    backbones: BackboneConfig,
    finetune: FinetuneConfig,
    device: str,
    clips: int,
    split_clips: int,
    frame_size: int,
    spectrogram: tuple[int, int],
) -> SearchForecast:
    """Memory of one worker of a search of one point with its backbones in the loop.

    Args:
        space, config, backbones, finetune: as of `stgs.finetune.FinetuneSearch`.
        device: `cpu` or `cuda`, which `auto` precision depends on; only on a CPU the backbones of the best epoch, which
            stay in the host's memory, are in the sum.
        clips: of this worker in a batch.
        split_clips: clips of train and dev, whose labels are kept.
        frame_size: height and width of a frame. spectrogram: its frames and frequencies.

    Returns:
        Its `clip_bytes` are labels alone. Not counted: what `forecast_search` leaves out, and the workspaces of
        convolutions; and what the host keeps of clips, see `buffer_bytes`.
    """
    # Counted apart: what a supernet's layers keep for the next update must not be tensors without values.
    fusion = forecast_search(space, replace(config, batch_size=clips), members=1, train_clips=clips, dev_clips=clips)
    with FakeTensorMode(), StorageCount() as count:
        # Weights of a file take the memory of any others.
        untrained = replace(
            backbones, visual_weights="random:0", audio_weights="random:0", spectrogram_statistics="clip"
        )
        half = finetune.precision in ("float16", "bfloat16") or (finetune.precision == "auto" and device == "cuda")
        # Of the two kinds of 16 bits, the one without a scaler, which looks at values.
        own = replace(finetune, precision="bfloat16" if half else "float32")
        trainer = BackboneTrainer(FeatureExtractor(untrained), own, list(space.features))
        # The best epoch's, which a CPU holds beside the others.
        tensors = trainer.extractor.state_dict().values() if device == "cpu" else ()
        best = [tensor.clone() for tensor in tensors]
        start = count.peak = count.now
        frames = torch.empty(clips, backbones.length, 3, frame_size, frame_size, dtype=torch.uint8)
        leaves = trainer.begin(frames, torch.empty(clips, *spectrogram))
        # The fusion network's update comes in between, beside the features, and the graph where it takes one pass.
        between = count.now + fusion.update_bytes
        for leaf in leaves.values():
            leaf.grad = torch.empty_like(leaf)
        trainer.backward(leaves)
        added = max(count.peak, between) - start
        # The first step makes Adam's moments, of the parameters that have a gradient.
        trainer.step(1.0)
        del frames, leaves, leaf
        state = count.now
        del best
    return SearchForecast(1, split_clips, state + fusion.state_bytes, added)


def buffer_bytes(
    backbones: BackboneConfig,
    finetune: FinetuneConfig,
    *,
    splits: Sequence[int],
    frame_size: int,
    spectrogram: tuple[int, int],
) -> int:
    """Host memory of a worker's clips that wait in the buffers which shuffle them, one a split, in bytes.

    splits: clips of the worker in train and in dev. The others: as of `forecast_finetune`.
    """
    frames = backbones.length * 3 * frame_size**2
    return sum(min(finetune.shuffle_clips, clips) for clips in splits) * (frames + 4 * math.prod(spectrogram))


@dataclass(frozen=True, slots=True)
class _Noise:
    """A split of black clips: so many batches of so many clips."""

    num: int
    clips: int
    frames: tuple[int, ...]
    spectrogram: tuple[int, int]

    @property
    def labels(self) -> NDArray[np.int8]:
        return (np.arange(self.num * self.clips) % 2).astype(np.int8)

    def num_batches(self, epoch: int) -> int:
        return self.num

    def batches(self, epoch: int) -> Iterator[RawClips]:
        return self.in_order()

    def in_order(self) -> Iterator[RawClips]:
        for number in range(self.num):
            index = np.arange(number * self.clips, (number + 1) * self.clips)
            frames = np.zeros((self.clips, *self.frames), np.uint8)
            spectrogram = np.random.default_rng(0).random((self.clips, *self.spectrogram), np.float32)
            yield RawClips(frames, spectrogram, index, self.clips)


def measure_finetune(
    space: SearchSpace,
    config: SearchConfig,
    *,
    backbones: BackboneConfig,
    finetune: FinetuneConfig,
    device: str,
    clips: int,
    estimator: str,
    num_samples: int,
    frame_size: int,
    spectrogram: tuple[int, int],
) -> UpdateSeconds:
    """Seconds of one worker's updates with the backbones in the loop, without reading clips; arguments as above.

    A batch that takes several micro-batches is measured on two of half the size, and scaled up to `clips`.
    """
    several = clips > finetune.micro_batch
    measured = max(finetune.micro_batch, 2) if several else max(clips, 2)
    parts = replace(finetune, micro_batch=max(measured // 2, 1)) if several else finetune
    untrained = replace(backbones, visual_weights="random:0", audio_weights="random:0")

    def epoch_seconds(updates: tuple[int, int]) -> float:
        frames = (backbones.length, 3, frame_size, frame_size)
        train, dev = (_Noise(number, measured, frames, spectrogram) for number in updates)
        search = FinetuneSearch(
            space,
            [Member(10.0, num_samples, 0)],
            estimator=estimator,
            config=replace(config, epochs=2, warmup_epochs=0),
            train=train,
            dev=dev,
            backbones=untrained,
            finetune=parts,
            device=device,
        )
        return second_epoch_seconds(search, device)

    found = solve_updates(epoch_seconds)
    return UpdateSeconds(found.weights * clips / measured, found.architecture * clips / measured)
