"""Training of one found network end to end: clips are read as frames and spectrograms, and the backbones learn, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.backbone_trainer import BackboneTrainer, FinetuneConfig
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.bilevel import Batch
from stgs.config import FoundConfig, require
from stgs.found_training import HALF, FoundTraining, Network, predict_batches
from stgs.genotype import Genotype
from stgs.metrics import best_threshold
from stgs.parallel import SINGLE, Workers
from stgs.streamed import ClipStream, StreamedClips


class FoundFinetune(FoundTraining):
    """A network that is fitted together with its backbones, on one loss; see `stgs.backbone_trainer` for how.

    Loss, schedule, dropout and choices are those of `FoundTraining`. Under float16, an update whose features overflow
    changes nothing; an evaluation on such features ends the training.

    Args:
        genotype, seed, config, device, workers: as of `FoundTraining`, of one network.
        fitted: the clips that weights are fitted on: those of train, or, with `config.fit_on`, of train and dev.
        dev: the clips that the epoch and the threshold are chosen on.
        backbones: which backbones, with which weights to start from.
        finetune: how they are trained.

    Raises:
        InputError: a genotype of other features than the backbones give.
    """

    def __init__(
        self,
        genotype: Genotype,
        seed: int,
        *,
        config: FoundConfig,
        fitted: ClipStream,
        dev: ClipStream,
        backbones: BackboneConfig,
        finetune: FinetuneConfig,
        device: torch.device | str = "cpu",
        workers: Workers = SINGLE,
    ) -> None:
        self.backbones = backbones
        self._streamed = StreamedClips(fitted, device)
        self._dev_clips = StreamedClips(dev, device, self._streamed.class_weights)
        super().__init__(
            genotype,
            [seed],
            config=config,
            train=self._streamed,
            dev=self._dev_clips,
            device=device,
            workers=workers,
        )
        names = list(genotype.used_features)
        self.trainer = BackboneTrainer(FeatureExtractor(backbones).to(device), finetune, names, workers)
        self._scores = np.full((1, len(self._dev_clips)), np.nan)
        # Backbones of the best epoch, on the CPU, and the scores there.
        self._best_backbones: dict[str, dict[str, Tensor]] = {}
        self._best_scores = self._scores

    def best_backbones(self) -> dict[str, dict[str, Tensor]]:
        """`visual` and `audio` -> state dict of the backbone at the best epoch, as a weights file holds it."""
        return self._best_backbones

    def thresholds(self) -> list[float]:
        """As of `FoundTraining`, from the scores of the best epoch."""
        if self.config.fit_on != "train":
            return [HALF]
        if self.failures[0] is not None:
            return [float("nan")]
        return [best_threshold(self._best_scores[0], self._dev_clips.labels[0].cpu().numpy())]

    def neutral_values(self) -> dict[str, Tensor]:
        """The mean of each feature over the clips that are fitted, by the best epoch's backbones: name -> float32 [C]
        or [C, L], on the CPU.

        All workers call this, once the training has ended: it continues with these backbones.
        """
        for sense, state in self._best_backbones.items():
            getattr(self.trainer.extractor, sense).load_state_dict(state)
        # A worker may have no clips.
        sums = {name: torch.zeros(shape, device=self.trainer.device) for name, shape in self._shapes().items()}
        clips = self._streamed
        for _, batch in self.trainer.batches(clips, clips.stream.in_order()):
            for name, x in batch.features.items():
                sums[name] += x.sum(dim=0) / len(clips)
        # [L, C] -> [C, L], as files of features have it.
        return {name: self.workers.sum_(mean).cpu().movedim(0, -1).contiguous() for name, mean in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """As of `FoundTraining`, with the backbones, their optimiser, those of the best epoch and the scores there."""
        return super().state_dict() | {
            "backbones": self.trainer.state_dict(),
            "best_backbones": self._best_backbones,
            "best_scores": torch.from_numpy(self._best_scores),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As of `FoundTraining`; a state of another number of workers goes on with the clips in another order."""
        super().load_state_dict(state)
        self.trainer.load_state_dict(state["backbones"])
        self._best_backbones = dict(state["best_backbones"])
        self._best_scores = state["best_scores"].numpy()

    def scores(self, network: Network) -> NDArray[np.float64]:
        """P(fake) of the dev clips, [1, N], with the backbones as they are, in every worker."""
        clips = self._dev_clips
        batches = self.trainer.batches(clips, clips.stream.in_order())
        self._scores = predict_batches(network, batches, len(clips), self.workers)
        return self._scores

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Feature -> [C] or [L, C]."""
        channels, length = self.backbones.features, self.backbones.length
        return {
            name: (channels[name],) if name.endswith(".pooled") else (length, channels[name])
            for name in self.trainer.names
        }

    def _require_features(self) -> None:
        given = self.backbones.features
        for name in self.architecture.used_features:
            channels = self.architecture.features[name]
            require(
                given.get(name) == channels,
                f"the genotype has feature {name!r} with {channels} channels, but the backbones give "
                f"{given.get(name, 'none')}; give the backbones and taps that it was searched with.",
            )
        require(
            self.architecture.length == self.backbones.length,
            f"the genotype has length {self.architecture.length}, but the backbones give {self.backbones.length}; "
            "give a corpus of as many frames a clip.",
        )

    def _begin_epoch(self) -> int:
        return self._streamed.begin_epoch(self.epoch)

    def _batch(self, number: int) -> Batch:
        clips = self._streamed.at(number)
        return self._streamed.with_features(clips, self.trainer.begin(*self.trainer.inputs(clips)))

    def _update(self, batch: Batch) -> None:
        with self.trainer.undoing_overflow(self.network, self.optimizer):
            super()._update(batch)

    def _after_update(self, batch: Batch, rate_factor: float) -> None:
        self.trainer.backward(batch.features)
        self.trainer.step(rate_factor)

    def _keep(self, members: Sequence[int]) -> None:
        super()._keep(members)
        if members:
            self._best_backbones = {}  # not beside the new ones: they are large
            self._best_backbones = self.trainer.weights()
            self._best_scores = self._scores

    def _remedy(self) -> str:
        return self.trainer.remedy("lower its learning rate, and backbone_learning_rate")
