"""The search with the backbones in the loop: it reads frames and spectrograms, and the backbones learn, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.backbone_trainer import BackboneTrainer, FinetuneConfig
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.bilevel import Batch
from stgs.config import SearchConfig, require
from stgs.epoch_sums import EpochSums
from stgs.parallel import SINGLE, Workers
from stgs.population import PopulationSearch, Row
from stgs.search_space import SearchSpace
from stgs.streamed import ClipStream, StreamedClips
from stgs.supernet import Member


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
            self._best = self.trainer.weights()
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
        return self._clips["train"].begin_epoch(self.epoch), self._clips["dev"].begin_epoch(self.epoch)

    def _train_batch(self, number: int) -> Batch:
        clips = self._clips["train"].at(number)
        return self._clips["train"].with_features(clips, self.trainer.begin(*self.trainer.inputs(clips)))

    def _dev_batch(self, number: int) -> Batch:
        clips = self._clips["dev"].at(number)
        features = self.trainer.guarded(self.trainer.features(*self.trainer.inputs(clips)))
        return self._clips["dev"].with_features(clips, features)

    def _weight_update(self, batch: Batch, rate: float, temperature: Tensor | None, sums: EpochSums) -> None:
        with self.trainer.undoing_overflow(self.supernet, self.weight_optimizer):
            super()._weight_update(batch, rate, temperature, sums)

    def _architecture_update(self, batch: Batch, temperature: Tensor | None, sums: EpochSums) -> None:
        with self.trainer.undoing_overflow(self.supernet, self.architecture_optimizer):
            super()._architecture_update(batch, temperature, sums)

    def _remedy(self) -> str:
        return self.trainer.remedy("lower the learning rates, backbone_learning_rate, too, or give a clip_norm")

    def _after_weight_update(self, batch: Batch, rate_factor: float) -> None:
        self.trainer.backward(batch.features)
        self.trainer.step(rate_factor)

    def _evaluation_batches(self) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        clips = self._clips["dev"]
        return self.trainer.batches(clips, clips.stream.in_order())

    def _calibration_batches(self) -> Iterator[Batch]:
        clips = self._clips["train"]
        for _, batch in self.trainer.batches(clips, clips.stream.batches(0)):
            yield batch
