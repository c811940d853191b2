"""Training of a found network, one epoch at a time. Neither files nor a cluster here."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.bilevel import Batch
from stgs.clips import ClipSet, require_features
from stgs.concat_linear import ConcatLinear, ConcatLinearInputs
from stgs.config import FoundConfig, InputError, require
from stgs.found_network import FoundNetwork
from stgs.genotype import Genotype
from stgs.layers import ForwardContext
from stgs.losses import balanced_cross_entropy
from stgs.metrics import auc, best_threshold
from stgs.optimizers import adam
from stgs.parallel import SINGLE, Workers
from stgs.schedule import epoch_batches, learning_rate

STATE_VERSION = 1
EVALUATION_BATCH = 256
# The threshold of networks that leave no clips to choose one on.
HALF = 0.5

Architecture = Genotype | ConcatLinearInputs
Network = FoundNetwork | ConcatLinear
EvaluationBatches = Iterator[tuple[NDArray[np.int64], Batch]]


def build_network(
    architecture: Architecture, seeds: Sequence[int], *, dropout: float = 0.2, attention_dropout: float = 0.1
) -> Network:
    """The untrained networks of an architecture, one for each seed. dropout, attention_dropout: in [0, 1)."""
    if isinstance(architecture, ConcatLinearInputs):
        return ConcatLinear(architecture, seeds)
    return FoundNetwork(architecture, seeds, dropout=dropout, attention_dropout=attention_dropout)


def evaluation_batches(clips: ClipSet, workers: Workers = SINGLE) -> EvaluationBatches:
    """This worker's share of the clips of a split, in order: their positions in it, and the clips."""
    for start in range(0, len(clips), EVALUATION_BATCH):
        index = workers.share(np.arange(start, min(start + EVALUATION_BATCH, len(clips))))
        if len(index):
            yield index, clips.batch(index)


def predict_batches(
    network: Network, batches: EvaluationBatches, count: int, workers: Workers = SINGLE
) -> NDArray[np.float64]:
    """P(fake) of `count` clips, [P, N] in [0, 1], in evaluation mode, from each worker's `batches` of them."""
    context = ForwardContext(network.seeds, 0, training=False, track_statistics=False)
    device = network.seeds.device
    logits = torch.zeros(len(network.seeds), count, device=device)
    with torch.no_grad():
        for index, batch in batches:
            logits[:, torch.as_tensor(index, device=device)] = network(batch.features, context)
        workers.sum_(logits)
    return torch.sigmoid(logits.double()).cpu().numpy()


def predict(network: Network, clips: ClipSet) -> NDArray[np.float64]:
    """P(fake) of every clip, [P, N] in [0, 1], in evaluation mode."""
    return predict_batches(network, evaluation_batches(clips), len(clips))


class FoundTraining:
    """Networks of one architecture that are fitted side by side: weights from train, epoch and threshold from dev.

    Where `config.fit_on` is `train+dev`, weights come from both, and nothing is chosen. A network that has been done by
    `config.patience`, or whose scores ceased to be finite, stays in the population without a say, so that the others
    do not feel it; the training ends with the last of them.

    Args:
        architecture: what is trained.
        seeds: seed of each network; P of them.
        config: how.
        train, dev: the splits, on `device`.
        workers: this process among those that share each batch; all must make the same calls.

    Raises:
        InputError: clips without a feature of the architecture, or with one of another size.
    """

    def __init__(
        self,
        architecture: Architecture,
        seeds: Sequence[int],
        *,
        config: FoundConfig,
        train: ClipSet,
        dev: ClipSet,
        device: torch.device | str = "cpu",
        workers: Workers = SINGLE,
    ) -> None:
        self.architecture, self.config, self.workers = architecture, config, workers
        self.train, self.dev = train, dev
        self._require_features()
        self.network = build_network(
            architecture, seeds, dropout=config.dropout, attention_dropout=config.attention_dropout
        ).to(device)
        self.optimizer = adam(
            list(self.network.parameters()),
            learning_rate=config.weights.learning_rate_max,
            weight_decay=config.weights.weight_decay,
        )
        self.seeds = list(seeds)
        self.epoch = 0
        self.update = 0
        self.best_auc = [math.nan] * len(seeds)
        self.best_epoch = [0] * len(seeds)
        self.failures: list[str | None] = [None] * len(seeds)
        """Why networks have no result: their scores ceased to be finite. None for the others."""
        # The last epoch with a better AUC than all before, from which patience counts.
        self._improved = [0] * len(seeds)
        self._best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    @property
    def finished(self) -> bool:
        """Whether the epoch limit is reached, or every network is done."""
        return self.epoch >= self.config.epochs or not any(map(self._active, range(len(self.seeds))))

    def _active(self, member: int) -> bool:
        patience = self.config.patience
        waited = self.epoch - self._improved[member]
        return self.failures[member] is None and (patience == 0 or waited < patience)

    def run_epoch(self, between: Callable[[], object] = lambda: None) -> list[float]:
        """One pass over the clips that are fitted, then the evaluation on dev.

        between: called before every update. What it raises ends the epoch halfway; only an earlier state goes on.

        Returns the AUC on dev of each network; of one that is done the best it had, NaN for one that failed.
        """
        active = [member for member in range(len(self.seeds)) if self._active(member)]
        num_batches = self._begin_epoch()
        for number in range(num_batches):
            between()
            rate = learning_rate(self.config.weights, self.epoch + number / num_batches)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = self._batch(number)
            self._update(batch)
            self._after_update(batch, rate / self.config.weights.learning_rate_max)
        self.epoch += 1
        scores, labels = self.scores(self.network), self.dev.labels.cpu().numpy()
        aucs = list(self.best_auc)
        for member in active:
            aucs[member] = self._judge(member, scores[member], labels[member])
        self._keep([member for member in active if self.best_epoch[member] == self.epoch])
        return aucs

    def _judge(self, member: int, scores: NDArray[np.float64], labels: NDArray[np.int8]) -> float:
        """Follow a network's AUC on dev: whether this epoch is its best so far. Returns the AUC."""
        if not np.isfinite(scores).all():
            self.best_auc[member] = math.nan
            self.failures[member] = (
                f"the scores of the network of seed {self.seeds[member]} ceased to be finite in epoch {self.epoch}; "
                f"{self._remedy()}."
            )
            return math.nan
        value = auc(scores, labels)
        first = self.best_epoch[member] == 0
        if first or value > self.best_auc[member]:
            self._improved[member] = self.epoch
        # Ties go to the later epoch; without clips to choose by, the last one is taken.
        if first or value >= self.best_auc[member] or self.config.fit_on != "train":
            self.best_auc[member], self.best_epoch[member] = value, self.epoch
        return value

    def _update(self, batch: Batch) -> None:
        context = ForwardContext(
            self.network.seeds, self.update, training=True, track_statistics=True, workers=self.workers
        )
        logits = self.network(batch.features, context)
        losses = balanced_cross_entropy(logits, batch.labels, batch.class_weights, batch.clips)
        self.optimizer.zero_grad(set_to_none=True)
        # Members share no parameter, so the gradient of the sum is each member's own.
        losses.sum().backward()
        fitted = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        gradients = self.workers.sum_together([p.grad for p in fitted if p.grad is not None])
        for parameter, gradient in zip(fitted, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.update += 1

    # What a training reads and keeps. Cached features here; one that makes its features overrides these.

    def _require_features(self) -> None:
        used = {name: self.architecture.features[name] for name in self.architecture.used_features}
        for clips in (self.train, self.dev):
            require_features(clips, used, self.architecture.length)
        # The clips that weights are fitted on.
        self._fitted = self.train if self.config.fit_on == "train" else self.train.joined(self.dev)

    def _begin_epoch(self) -> int:
        """Make the batches of `self.epoch` ready; their number."""
        config = self.config
        batches = epoch_batches(len(self._fitted), config.batch_size, config.data_seed, self.epoch, "train")
        # On the clips' device: one transfer an epoch, not one an update.
        order = torch.as_tensor(np.concatenate(batches), device=self._fitted.labels.device)
        self._order = order.split([len(batch) for batch in batches])
        return len(batches)

    def _batch(self, number: int) -> Batch:
        """This worker's share of a batch of the epoch."""
        return self._fitted.batch(self._order[number], self.workers)

    def _after_update(self, batch: Batch, rate_factor: float) -> None:
        """What follows an update; rate_factor is the scheduled learning rate as a share of its maximum."""

    def _keep(self, members: Sequence[int]) -> None:
        """Keep the weights of networks whose best epoch so far is this one."""
        current = self.network.state_dict()
        for name, best in self._best.items():
            for member in members:
                best[member] = current[name][member]

    def _remedy(self) -> str:
        """What may keep the numbers of a network finite."""
        return "lower its learning rate"

    def scores(self, network: Network) -> NDArray[np.float64]:
        """P(fake) of the dev clips, [P, N], in every worker."""
        batches = evaluation_batches(self.dev, self.workers)
        return predict_batches(network, batches, len(self.dev), self.workers)

    def best_network(self) -> Network:
        """A copy of the network with each member's weights of its best epoch; the training may go on.

        Raises:
            InputError: no epoch has been run.
        """
        require(self.epoch > 0, "the training has run no epoch, so there is no best network; run at least one.")
        network = copy.deepcopy(self.network)
        network.load_state_dict(self._best)
        return network

    def thresholds(self) -> list[float]:
        """The threshold of each network's best epoch with the highest balanced accuracy on dev; NaN where it failed.

        All workers call this. Where dev was fitted, too, it is 0.5.
        """
        if self.config.fit_on != "train":
            return [HALF] * len(self.seeds)
        scores, labels = self.scores(self.best_network()), self.dev.labels.cpu().numpy()
        return [
            best_threshold(scores[member], labels[member]) if failure is None else math.nan
            for member, failure in enumerate(self.failures)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue after an epoch: tensors and plain values (readable with `weights_only=True`).

        The tensors are those of the training, which it changes: save or copy them before the next epoch.
        """
        return {
            "version": STATE_VERSION,
            "architecture": self.architecture.to_json(),
            "seeds": self.seeds,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "update": self.update,
            "best_auc": list(self.best_auc),
            "best_epoch": list(self.best_epoch),
            "improved": list(self._improved),
            "failures": list(self.failures),
            "best": self._best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same training; of what comes the bits are those without the interruption.

        Raises:
            InputError: a state of another version, architecture, or of other seeds.
        """
        own = {"version": STATE_VERSION, "architecture": self.architecture.to_json(), "seeds": self.seeds}
        for name, value in own.items():
            require(
                state.get(name) == value,
                f"the state has {name} {state.get(name)}, but this training has {value}; begin it anew.",
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.update = state["epoch"], state["update"]
        self.best_auc, self.best_epoch = list(state["best_auc"]), list(state["best_epoch"])
        self._improved, self.failures = list(state["improved"]), list(state["failures"])
        for name, best in self._best.items():
            best.copy_(state["best"][name])


def member_weights(network: Network, member: int = 0) -> dict[str, Tensor]:
    """The weights of one network of a population, with a member axis of 1, on the CPU."""
    return {name: tensor[member : member + 1].cpu().contiguous() for name, tensor in network.state_dict().items()}


def load_network(architecture: Architecture, weights: Mapping[str, Any]) -> Network:
    """A network with given weights (`member_weights`), for evaluation.

    Raises:
        InputError: weights that do not fit the architecture.
    """
    network = build_network(architecture, [0])
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        what = "genotype" if isinstance(architecture, Genotype) else "features"
        raise InputError(f"the weights do not fit the {what}: {error}") from None
    return network


def load_found_network(genotype: Genotype, weights: Mapping[str, Any]) -> FoundNetwork:
    """`load_network` of a genotype."""
    network = load_network(genotype, weights)
    assert isinstance(network, FoundNetwork)
    return network
