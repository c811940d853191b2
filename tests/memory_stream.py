"""A stream of clips that stand in memory, dealt out as cached features are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stgs.parallel import SINGLE, Workers
from stgs.schedule import epoch_batches
from stgs.streamed import RawClips
from tests.tiny_backbone import random_clips


@dataclass
class MemoryStream:
    """A `stgs.streamed.ClipStream` of noise; every third clip is real.

    planted: from 0 to 1, how much fakes differ from real clips: their frames are striped, and some of their sound is
    louder.
    """

    split: str
    num_clips: int
    batch_size: int
    length: int
    workers: Workers = SINGLE
    planted: float = 0.0

    def __post_init__(self) -> None:
        frames, spectrogram = random_clips(self.num_clips, self.length, seed=self.num_clips)
        self.frames, self.spectrogram = frames.numpy(), spectrogram.numpy()
        self.labels: NDArray[np.int8] = (np.arange(self.num_clips) % 3 > 0).astype(np.int8)
        if self.planted:
            fake = self.labels > 0
            striped = self.frames[fake]
            striped[..., ::4] = (striped[..., ::4] * (1.0 - self.planted)).astype(np.uint8)
            self.frames[fake] = striped
            self.spectrogram[fake, :, 4:6] *= 1.0 + self.planted

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return -(-self.num_clips // self.batch_size)

    def batches(self, epoch: int) -> Iterator[RawClips]:
        """This worker's clips of an epoch."""
        for index in epoch_batches(self.num_clips, self.batch_size, 0, epoch, self.split):
            yield self._at(self.workers.share(index), len(index))

    def in_order(self) -> Iterator[RawClips]:
        """This worker's clips."""
        for start in range(self.workers.rank, self.num_clips, 5 * self.workers.world):
            index = np.arange(start, self.num_clips, self.workers.world)[:5]
            yield self._at(index, len(index))

    def _at(self, index: NDArray[np.int64], clips: int) -> RawClips:
        return RawClips(self.frames[index], self.spectrogram[index], index, clips)
