"""Training of a found network, one epoch at a time. Neither files nor a cluster here."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.bilevel import Batch
from stgs.clips import ClipSet, require_features
from stgs.config import FoundConfig, InputError, require
from stgs.found_network import FoundNetwork
from stgs.genotype import Genotype
from stgs.layers import ForwardContext
from stgs.losses import balanced_cross_entropy
from stgs.metrics import auc, best_threshold
from stgs.schedule import epoch_batches, learning_rate

EVALUATION_BATCH = 256


def predict(network: FoundNetwork, clips: ClipSet) -> NDArray[np.float64]:
    """P(fake) of every clip, [P, N] in [0, 1], in evaluation mode."""
    context = ForwardContext(network.seeds, 0, training=False, track_statistics=False)
    with torch.no_grad():
        parts = [
            network(clips.batch(np.arange(start, min(start + EVALUATION_BATCH, len(clips)))).features, context)
            for start in range(0, len(clips), EVALUATION_BATCH)
        ]
    return torch.sigmoid(torch.cat(parts, dim=1).double()).cpu().numpy()


class FoundTraining:
    """Networks of one genotype that are fitted side by side: weights from train, epoch and threshold from dev.

    Args:
        genotype: the architecture.
        seeds: seed of each network; P of them.
        config: how.
        train, dev: the splits, on `device`.

    Raises:
        InputError: clips without a feature of the genotype, or with one of another size.
    """

    def __init__(
        self,
        genotype: Genotype,
        seeds: Sequence[int],
        *,
        config: FoundConfig,
        train: ClipSet,
        dev: ClipSet,
        device: torch.device | str = "cpu",
    ) -> None:
        used = {name: genotype.features[name] for name in genotype.used_features}
        for clips in (train, dev):
            require_features(clips, used, genotype.length)
        self.config, self.train, self.dev = config, train, dev
        self.network = FoundNetwork(
            genotype, seeds, dropout=config.dropout, attention_dropout=config.attention_dropout
        ).to(device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=config.weights.learning_rate_max,
            weight_decay=config.weights.weight_decay,
            fused=True,
        )
        self.epoch = 0
        self.update = 0
        self.best_auc = [-1.0] * len(seeds)
        self.best_epoch = [-1] * len(seeds)
        self._best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    @property
    def finished(self) -> bool:
        """Whether the epoch limit is reached."""
        return self.epoch >= self.config.epochs

    def run_epoch(self) -> list[float]:
        """One pass over the training clips, then the evaluation on dev. Returns the dev AUC of each network."""
        batches = epoch_batches(len(self.train), self.config.batch_size, self.config.data_seed, self.epoch, "train")
        for index, clips in enumerate(batches):
            rate = learning_rate(self.config.weights, self.epoch + index / len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._update(self.train.batch(clips))
        self.epoch += 1
        scores = predict(self.network, self.dev)
        aucs = [auc(row, labels) for row, labels in zip(scores, self.dev.labels.cpu().numpy(), strict=True)]
        current = self.network.state_dict()
        for member, value in enumerate(aucs):
            if value >= self.best_auc[member]:  # ties go to the later epoch
                self.best_auc[member], self.best_epoch[member] = value, self.epoch
                for name, tensor in current.items():
                    self._best[name][member] = tensor[member]
        return aucs

    def _update(self, batch: Batch) -> None:
        context = ForwardContext(self.network.seeds, self.update, training=True, track_statistics=True)
        losses = balanced_cross_entropy(self.network(batch.features, context), batch.labels, batch.class_weights)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        self.update += 1

    def best_network(self) -> FoundNetwork:
        """A copy of the network with each member's weights of its best epoch; the training may go on.

        Raises:
            InputError: no epoch has been run.
        """
        require(self.epoch > 0, "the training has run no epoch, so there is no best network; run at least one.")
        network = copy.deepcopy(self.network)
        network.load_state_dict(self._best)
        return network

    def thresholds(self) -> list[float]:
        """The threshold of each member's best epoch with the highest balanced accuracy on dev."""
        scores = predict(self.best_network(), self.dev)
        return [best_threshold(row, labels) for row, labels in zip(scores, self.dev.labels.cpu().numpy(), strict=True)]


def member_weights(network: FoundNetwork, member: int = 0) -> dict[str, Tensor]:
    """The weights of one network of a population, with a member axis of 1, on the CPU."""
    return {name: tensor[member : member + 1].cpu().contiguous() for name, tensor in network.state_dict().items()}


def load_found_network(genotype: Genotype, weights: Mapping[str, Any]) -> FoundNetwork:
    """A found network with given weights (`member_weights`), for evaluation.

    Raises:
        InputError: weights that do not fit the genotype.
    """
    network = FoundNetwork(genotype, [0])
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise InputError(f"the weights do not fit the genotype: {error}") from None
    return network
