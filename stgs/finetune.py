"""The search with the backbones in the loop: clips are read as frames and spectrograms, and the backbones learn, too.

Shapes: N clips of a split, B clips of this worker's part of a batch, T frames, S spectrogram frames, F frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stgs.backbone_trainer import BackboneTrainer, FinetuneConfig
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.bilevel import Batch
from stgs.clips import ClipSet
from stgs.config import SearchConfig, require
from stgs.epoch_sums import EpochSums
from stgs.parallel import SINGLE, Workers
from stgs.population import PopulationSearch, Row
from stgs.search_space import SearchSpace
from stgs.supernet import Member


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


class ClipStream(Protocol):
    """A split whose clips are read while they are used, each worker its share."""

    @property
    def labels(self) -> NDArray[np.int8]:
        """0 real, 1 fake, of all workers' clips, [N]; the same on every worker."""

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch; the same on every worker."""

    def batches(self, epoch: int) -> Iterator[RawClips]:
        """One pass over this worker's clips in the order of `epoch`: `num_batches(epoch)` batches, none empty."""

    def in_order(self) -> Iterator[RawClips]:
        """This worker's clips, the same ones in every call; each clip of the split is one worker's."""


class StreamedClips(ClipSet):
    """A split without features in memory: labels [1, N] and class weights [1, 2] are, the clips come from `stream`.

    balance: class weights to use; None computes them from the stream's labels.
    """

    def __init__(self, stream: ClipStream, device: torch.device | str, balance: Tensor | None = None) -> None:
        super().__init__({}, stream.labels, members=1, device=device, balance=balance)
        self.stream = stream

    def with_features(self, clips: RawClips, features: Mapping[str, Tensor]) -> Batch:
        """The batch of clips whose features these are."""
        where = torch.as_tensor(clips.index, device=self.labels.device)
        return Batch(features, self.labels.index_select(1, where), self.class_weights, clips=clips.clips)


class FinetuneSearch(PopulationSearch):
    """A search of one member that trains the backbones, too; see `stgs.backbone_trainer` for how.

    Weight updates train the fusion network and the backbones on one loss. Architecture updates and evaluations run the
    backbones without gradients. Under float16, an update whose features overflow changes nothing; its loss in the row
    is that of zeros. An evaluation on such features ends the member.

    Args:
        space, members, estimator, config, device, workers: as of `PopulationSearch`; one member.
        train, dev: where the clips come from.
        backbones: which backbones, with which weights to start from; their features must be those of the space.
        finetune: how they are trained.

    Raises:
        InputError: several members, or a space of other features than the backbones give.
    """

    def __init__(
        self,
        space: SearchSpace,
        members: Sequence[Member],
        *,
        estimator: str,
        config: SearchConfig,
        train: ClipStream,
        dev: ClipStream,
        backbones: BackboneConfig,
        finetune: FinetuneConfig,
        device: torch.device | str = "cpu",
        workers: Workers = SINGLE,
    ) -> None:
        require(
            len(members) == 1,
            f"{len(members)} points are to share the backbones, but they are trained for one; search one point.",
        )
        self.backbones = backbones
        train_clips = StreamedClips(train, device)
        dev_clips = StreamedClips(dev, device, train_clips.class_weights)
        self._clips = {"train": train_clips, "dev": dev_clips}
        super().__init__(
            space,
            members,
            estimator=estimator,
            config=config,
            train=train_clips,
            dev=dev_clips,
            device=device,
            workers=workers,
        )
        self.trainer = BackboneTrainer(FeatureExtractor(backbones).to(device), finetune, list(space.features), workers)
        # Readers of the epoch under way, and the batches that came from each.
        self._iterators: dict[str, Iterator[RawClips]] = {}
        self._read: dict[str, int] = {}
        # Backbones of the epoch that the genotype is taken from, on the CPU.
        self._best: dict[str, dict[str, Tensor]] = {}

    def run_epoch(self, stop: Callable[[], bool] = lambda: False) -> list[Row] | None:
        """As of `PopulationSearch`; the backbones of the best epoch are kept for `best_backbones`.

        A search that loads a state from inside an epoch reads that epoch's clips from the first one on, to find those
        that come next. With another number of workers they come in another order: the epoch then goes on at the same
        batch of that order, or is begun anew where it has another number of batches.
        """
        rows = super().run_epoch(stop)
        if rows is not None and self._progress[0].state["best_epoch"] == self.epoch:
            self._best = {}  # not beside the new ones: they are large
            self._best = {
                sense: {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
                for sense, network in (
                    ("visual", self.trainer.extractor.visual),
                    ("audio", self.trainer.extractor.audio),
                )
            }
        return rows

    def best_backbones(self) -> dict[str, dict[str, Tensor]]:
        """`visual` and `audio` -> state dict of the backbone at the best epoch, as a weights file holds it."""
        return self._best

    def state_dict(self) -> dict[str, Any]:
        """As of `PopulationSearch`, with the backbones, their optimiser and those of the best epoch."""
        return super().state_dict() | {"backbones": self.trainer.state_dict(), "best_backbones": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As of `PopulationSearch`."""
        super().load_state_dict(state)
        self.trainer.load_state_dict(state["backbones"])
        self._best = state["best_backbones"]

    def _require_features(self) -> None:
        given = self.backbones.features
        for name, channels in self.space.features.items():
            require(
                given.get(name) == channels,
                f"the space has feature {name!r} with {channels} channels, but the backbones give "
                f"{given.get(name, 'none')}; make the space from the backbones' own features.",
            )
        require(
            self.space.length == self.backbones.length,
            f"the space has length {self.space.length}, but the backbones give {self.backbones.length}.",
        )

    def _begin_epoch(self) -> tuple[int, int]:
        streams = {split: clips.stream for split, clips in self._clips.items()}
        self._iterators = {split: stream.batches(self.epoch) for split, stream in streams.items()}
        self._read = dict.fromkeys(streams, 0)
        return streams["train"].num_batches(self.epoch), streams["dev"].num_batches(self.epoch)

    def _next(self, split: str, number: int) -> RawClips:
        """Batch `number` of the epoch; those before it that this process has not read are passed over."""
        while True:
            clips = next(self._iterators[split])
            self._read[split] += 1
            if self._read[split] > number:
                return clips

    def _train_batch(self, number: int) -> Batch:
        clips = self._next("train", number)
        return self._clips["train"].with_features(clips, self.trainer.begin(*self._inputs(clips)))

    def _dev_batch(self, number: int) -> Batch:
        clips = self._next("dev", number)
        features = self.trainer.guarded(self.trainer.features(*self._inputs(clips)))
        return self._clips["dev"].with_features(clips, features)

    def _weight_update(self, batch: Batch, rate: float, temperature: Tensor | None, sums: EpochSums) -> None:
        with self._skipped_on_overflow(self.weight_optimizer):
            super()._weight_update(batch, rate, temperature, sums)

    def _architecture_update(self, batch: Batch, temperature: Tensor | None, sums: EpochSums) -> None:
        with self._skipped_on_overflow(self.architecture_optimizer):
            super()._architecture_update(batch, temperature, sums)

    def _skipped_on_overflow(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        skip = self.trainer.overflowed
        return nullcontext() if skip is None else _taken_back(skip, self.supernet, optimizer)

    def _remedy(self) -> str:
        lower = "lower the learning rates, backbone_learning_rate, too, or give a clip_norm"
        precision = self.trainer.precision
        return lower if precision == "float32" else f"{lower}, or set precision to float32 (it is {precision})"

    def _after_weight_update(self, batch: Batch, rate_factor: float) -> None:
        self.trainer.backward(batch.features)
        self.trainer.step(rate_factor)

    def _evaluation_batches(self) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        for clips in self._clips["dev"].stream.in_order():
            yield clips.index, self._clips["dev"].with_features(clips, self.trainer.features(*self._inputs(clips)))

    def _inputs(self, clips: RawClips) -> tuple[Tensor, Tensor]:
        frames, spectrogram = torch.from_numpy(clips.frames), torch.from_numpy(clips.spectrogram)
        device = self.trainer.device
        if device.type == "cuda":
            # From pinned memory the host does not wait, and reads the next batch while the device works on this one.
            frames, spectrogram = frames.pin_memory(), spectrogram.pin_memory()
        return frames.to(device, non_blocking=True), spectrogram.to(device, non_blocking=True)


@contextmanager
def _taken_back(skip: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Where `skip`, a bool on the device, holds, take back what the block does to a network and its optimiser's state.

    Without a look at `skip`, for which the host would have to wait.
    """
    before = [tensor.clone() for tensor in network.state_dict().values()]
    moments = {p: {name: value.clone() for name, value in own.items()} for p, own in optimizer.state.items()}
    yield
    for tensor, old in zip(network.state_dict().values(), before, strict=True):
        torch.where(skip, old, tensor, out=tensor)
    for p, own in optimizer.state.items():
        for name, value in own.items():
            # Before its first step Adam has no state, which is the same as zeros.
            old = moments[p][name] if p in moments else torch.zeros_like(value)
            torch.where(skip, old, value, out=value)
