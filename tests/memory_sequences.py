"""Sequences that stand in memory, and a baseline of a few hundred parameters that learns from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stgs.baselines.base import Baseline, BaselineConfig
from stgs.baselines.batch import Labels, RawSequences
from stgs.baselines.losses import contrast, cross_entropy, fake_probability, margin
from stgs.parallel import SINGLE, Workers
from stgs.schedule import epoch_batches


class MemorySequences:
    """A `stgs.baselines.batch.SequenceStream` of noise, its clips dealt out as cached features are.

    Args:
        num_clips: of the categories A, B, C, D in turn.
        batch_size: clips of a batch of all workers.
        workers: who shares the clips.
        signal: levels by which the pictures of C and D are brighter on the left and on the right, and a tenth of which
            a quarter of the filter banks of B and D is higher.
        seed: of the clips.
    """

    def __init__(
        self, num_clips: int, *, batch_size: int = 5, workers: Workers = SINGLE, signal: int = 40, seed: int = 0
    ) -> None:
        random = np.random.default_rng(seed)
        self.batch_size, self.workers = batch_size, workers
        self.categories: NDArray[np.str_] = np.array(["ABCD"[clip % 4] for clip in range(num_clips)])
        self.video: list[NDArray[np.uint8]] = []
        self.filter_banks: list[NDArray[np.float32]] = []
        for category in self.categories:
            frames = int(random.integers(2, 6))
            video = random.integers(60, 160, (frames, 3, 112, 112), dtype=np.uint8)
            banks = random.normal(10, 2, (frames, 104)).astype(np.float32)
            if category in "CD":
                video[..., 56 - 20 : 56 + 20] += np.uint8(signal)
            if category in "BD":
                banks[:, :26] += np.float32(signal / 10)
            self.video.append(video)
            self.filter_banks.append(banks)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return -(-len(self.video) // self.batch_size)

    def batches(self, epoch: int) -> Iterator[RawSequences]:
        """This worker's clips of an epoch."""
        for index in epoch_batches(len(self.video), self.batch_size, 0, epoch, "train"):
            yield self.at(self.workers.share(index), len(index))

    def in_order(self) -> Iterator[RawSequences]:
        """This worker's clips, three at a time."""
        index = self.workers.share(np.arange(len(self.video)))
        for start in range(0, len(index), 3):
            yield self.at(index[start : start + 3])

    def at(self, index: Sequence[int] | NDArray[np.int64], clips: int | None = None) -> RawSequences:
        """The clips at these positions."""
        return RawSequences(
            [self.video[i] for i in index],
            [self.filter_banks[i] for i in index],
            np.asarray(index, np.int64),
            len(index) if clips is None else clips,
        )


class TinyBaseline(Baseline):
    """A convolution with batch normalisation on coarse pictures, and a linear layer on the sound."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.pictures = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten())
        self.visual = nn.Linear(64, 8)
        self.audio = nn.Linear(104, 8)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(16, 2)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """m_logits [B, 2], visual and audio [B, 8]."""
        kind, frames = self.head.weight.dtype, lengths.tolist()
        own = [clip[:, :length].transpose(0, 1) for clip, length in zip(video.to(kind), frames, strict=True)]
        seen = self.visual(self.pictures(functional.avg_pool2d(torch.cat(own), 10)))
        means = {
            "visual": torch.stack([clip.mean(dim=0) for clip in seen.split(frames)]),
            "audio": self.audio(audio.to(kind).sum(dim=2) / lengths.to(audio.device)[:, None]),
        }
        return {"m_logits": self.head(self.dropout(torch.cat(list(means.values()), dim=1))), **means}

    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        terms = {
            "clip_loss": cross_entropy(outputs["m_logits"], labels.fake),
            "visual_loss": margin(outputs["visual"], labels.visual_fake),
            "audio_loss": margin(outputs["audio"], labels.audio_fake),
            "contrast_loss": contrast(outputs["visual"], outputs["audio"], 1 - labels.fake),
        }
        return {"loss": sum(terms.values(), start=torch.zeros(())), **terms}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return fake_probability(outputs["m_logits"])


def tiny_baseline(dropout: float = 0.1, seed: int = 0) -> TinyBaseline:
    """One with weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyBaseline(BaselineConfig(layers=0, width=48, dropout=dropout))
