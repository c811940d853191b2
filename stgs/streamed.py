"""Clips that are read while they are used, as frames and spectrograms: where backbones are trained.

Shapes: N clips of a split, B clips of this worker's part of a batch, T frames, S spectrogram frames, F frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.bilevel import Batch
from stgs.clips import ClipSet

Clips = TypeVar("Clips")
ClipsOut = TypeVar("ClipsOut", covariant=True)


@dataclass(frozen=True, slots=True)
class RawClips:
    """This worker's clips of a batch, as arrays that may be written to.

    frames: uint8 [B, T, 3, H, W]. spectrogram: float32 [B, S, F]. index: positions in the split, int64 [B]. clips:
    number of clips of the whole batch, all workers' together.
    """

    frames: NDArray[np.uint8]
    spectrogram: NDArray[np.float32]
    index: NDArray[np.int64]
    clips: int


class Stream(Protocol[ClipsOut]):
    """A split whose clips are read while they are used, each worker its share."""

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch; the same on every worker."""

    def batches(self, epoch: int) -> Iterator[ClipsOut]:
        """One pass over this worker's clips in the order of `epoch`: `num_batches(epoch)` batches, none empty."""

    def in_order(self) -> Iterator[ClipsOut]:
        """This worker's clips, the same ones in every call; each clip of the split is one worker's."""


class ClipStream(Stream[RawClips], Protocol):
    """A stream of frames and spectrograms."""

    @property
    def labels(self) -> NDArray[np.int8]:
        """0 real, 1 fake, of all workers' clips, [N]; the same on every worker."""


class EpochReader(Generic[Clips]):
    """The batches of an epoch by their number, from the iterator that gives them."""

    def __init__(self, batches: Iterator[Clips]) -> None:
        self._batches = batches
        self._read = 0

    def at(self, number: int) -> Clips:
        """Batch `number`; those before it that have not been read are passed over, those that have are gone."""
        while True:
            clips = next(self._batches)
            self._read += 1
            if self._read > number:
                return clips


class StreamedClips(ClipSet):
    """A split without features in memory: labels [1, N] and class weights [1, 2] are, the clips come from `stream`.

    balance: class weights to use; None computes them from the stream's labels.
    """

    def __init__(self, stream: ClipStream, device: torch.device | str, balance: Tensor | None = None) -> None:
        super().__init__({}, stream.labels, members=1, device=device, balance=balance)
        self.stream = stream
        self._epoch: EpochReader[RawClips] = EpochReader(iter(()))

    def begin_epoch(self, epoch: int) -> int:
        """Read the clips of `epoch` from its first one on. Returns its number of batches."""
        self._epoch = EpochReader(self.stream.batches(epoch))
        return self.stream.num_batches(epoch)

    def at(self, number: int) -> RawClips:
        """Batch `number` of the epoch, as of `EpochReader`."""
        return self._epoch.at(number)

    def with_features(self, clips: RawClips, features: Mapping[str, Tensor]) -> Batch:
        """The batch of clips whose features these are."""
        where = torch.as_tensor(clips.index, device=self.labels.device)
        return Batch(features, self.labels.index_select(1, where), self.class_weights, clips=clips.clips)
