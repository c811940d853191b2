"""Training of a baseline, one epoch at a time. Neither files nor a cluster here.

Workers share each batch: every one of them runs the model on its own clips, gathers the outputs of all, which are
small, and computes the loss of the whole batch, since losses of pairs need all pairs. The gradient of its own outputs
is then exact, and those of the parameters are summed. Batch normalisation takes its statistics over the frames of all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stgs.baselines import make_baseline
from stgs.baselines.base import Baseline, BaselineConfig
from stgs.baselines.batch import Labels, RawSequences, SequenceStream, collate, sent
from stgs.baselines.batch_norm import share_batch_norms
from stgs.baselines.epoch_losses import EpochLosses
from stgs.baselines.evaluation import predict, scores_of, split_outputs
from stgs.config import require, require_at_least
from stgs.metrics import auc, best_threshold
from stgs.parallel import SINGLE, Workers
from stgs.precision import gradient_scaler, mixed_precision, remedy, require_precision, resolved_precision
from stgs.streamed import EpochReader

STATE_VERSION = 1
BETAS = (0.5, 0.9)
Row = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineTrainingConfig:
    """How a baseline is trained; the defaults are those of MRDF's released code (reference.md section 7).

    epochs: passes over the training clips, at most. batch_size: clips of a batch of all workers, at most.
    learning_rate: Adam's at first; it is multiplied by `plateau_factor`, in (0, 1), once the loss on dev has not fallen
    for more than `plateau_patience` epochs, down to `smallest_learning_rate`. weight_decay: Adam's. precision:
    `float32`, `float16`, `bfloat16` or `auto` (see `stgs.precision`). seed: of initial weights, dropout, crops and
    flips. data_seed: of the order of the clips. shuffle_clips: clips of a worker from which the next one of a batch is
    drawn, at least 1; a second of each takes 0.95 MB of the worker's memory: 128 clips of 10 s take 1.2 GB. patience:
    epochs without a better AUC on dev before the training ends early, 0 for never. recompute: keep half as
    much in memory between the forward and the backward pass, and compute it anew: the same results, a third more time.

    Raises:
        InputError: a value outside these ranges.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    plateau_factor: float = 0.5
    plateau_patience: int = 3
    smallest_learning_rate: float = 1e-8
    precision: str = "auto"
    seed: int = 42
    data_seed: int = 0
    shuffle_clips: int = 128
    patience: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size", "shuffle_clips"):
            require_at_least(field, getattr(self, field), 1)
        for field in ("weight_decay", "plateau_patience", "smallest_learning_rate", "seed", "data_seed", "patience"):
            require_at_least(field, getattr(self, field), 0)
        require(
            0 < self.learning_rate < math.inf,
            f"learning_rate is {self.learning_rate}, but it must be finite and above 0.",
        )
        require(
            0 < self.plateau_factor < 1, f"plateau_factor is {self.plateau_factor}, but it must lie between 0 and 1."
        )
        require_precision(self.precision)


def initial_baseline(name: str, config: BaselineConfig, seed: int) -> Baseline:
    """A baseline with random weights that depend on `seed` alone; raises InputError as `make_baseline` does."""
    with drawing(seed):
        return make_baseline(name, config)


class BaselineTraining:
    """A baseline that is fitted to train and judged on dev.

    Under float16 an update whose numbers overflow changes nothing.

    Args:
        model: with the weights to start from; it is trained itself, on `device`.
        config: how.
        train, dev: the splits.
        workers: this process among those that share each batch; all must make the same calls.

    Raises:
        InputError: a split without real or without fake clips.
    """

    def __init__(
        self,
        model: Baseline,
        config: BaselineTrainingConfig,
        *,
        train: SequenceStream,
        dev: SequenceStream,
        device: torch.device | str = "cpu",
        workers: Workers = SINGLE,
    ) -> None:
        self.config, self.train, self.dev, self.workers = config, train, dev, workers
        self.device = torch.device(device)
        self.precision = resolved_precision(config.precision, self.device)
        self._labels = Labels.of(train.categories, self.device)
        self._dev_labels = Labels.of(dev.categories)
        for split, labels in (("training", self._labels), ("dev", self._dev_labels)):
            fake, clips = int(labels.fake.sum()), len(labels.fake)
            require(
                0 < fake < clips,
                f"{fake} of the {clips} {split} clips are fake, but real and fake ones are needed; check the splits.",
            )
        self.model = model.to(self.device)
        if config.recompute:
            self.model.recompute_activations()
        if workers.world > 1:
            share_batch_norms(self.model, workers)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self._parameters, lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = ReduceLROnPlateau(
            self.optimizer,
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            min_lr=config.smallest_learning_rate,
        )
        self.scaler = gradient_scaler(self.precision, self.device)
        self.epoch = 0
        self.update = 0
        self.rows: list[Row] = []
        self.best_auc = math.nan
        self.best_epoch = 0
        # The last epoch with a better AUC than all before, from which patience counts.
        self._improved = 0
        # Of the best epoch, on the CPU: the model's state and P(fake) of the dev clips.
        self._best: dict[str, Tensor] = {}
        self._best_scores = torch.zeros(0, dtype=torch.float64)
        # Of the epoch under way: what it has added up, and its batches as far as this process has read them.
        self._sums: EpochLosses | None = None
        self._reader: EpochReader[RawSequences] | None = None

    @property
    def finished(self) -> bool:
        """Whether the epoch limit is reached, or the AUC on dev has not risen for `config.patience` epochs."""
        patience = self.config.patience
        return self.epoch >= self.config.epochs or 0 < patience <= self.epoch - self._improved

    def run_epoch(self, stop: Callable[[], bool] = lambda: False) -> Row | None:
        """One pass over the training clips, then the evaluation on dev.

        stop: asked before each update and before the evaluation; all workers must get the same answers. Whatever it
        does, it finds the training between two updates, so it may take a `state_dict`.

        A training that loads a state from inside an epoch reads that epoch's clips from the first one on, to find those
        that come next. With another number of workers they come in another order: the epoch then goes on at the same
        batch of that order, or is begun anew where it has another number of batches.

        Returns:
            None where it was asked to stop: the next call goes on where this one left off, here or in a training that
            loads the state. Otherwise a row: epoch (from 1), `loss` and its terms on train (means over the clips of the
            updates, with dropout), dev_loss, dev_auc (NaN where scores are not finite), learning_rate of the epoch,
            seconds it took.

        Raises:
            InputError: the loss ceased to be finite.
        """
        sums, reader = self._begun()
        began = time.monotonic() - sums.seconds
        for number in range(sums.done, sums.planned + 1):
            sums.seconds = time.monotonic() - began
            if stop():
                return None
            if number < sums.planned:
                self._update(reader.at(number), sums)
        row = self._judged(sums)
        self._sums = self._reader = None
        self.rows.append(row | {"seconds": time.monotonic() - began})
        return self.rows[-1]

    def _begun(self) -> tuple[EpochLosses, EpochReader[RawSequences]]:
        """The sums and the batches of the epoch that is under way, or begins."""
        planned = self.train.num_batches(self.epoch)
        if self._sums is None or self._sums.planned != planned:
            self._sums = EpochLosses(planned)
        if self._reader is None:
            self._reader = EpochReader(self.train.batches(self.epoch))
        return self._sums, self._reader

    def _update(self, raw: RawSequences, sums: EpochLosses) -> None:
        index = self.workers.gather(raw.index)
        batch = collate(raw, device=self.device, augment=(self.config.seed, self.epoch))
        labels = self._labels.at(sent(index, self.device))
        # Under float16 an overflow on the way would stay in the running statistics for ever.
        before = [buffer.clone() for buffer in self.model.buffers()] if self.scaler.is_enabled() else []
        self.model.train()
        with (
            drawing(self.config.seed, self.update, self.workers.rank, device=self.device),
            mixed_precision(self.precision, self.device),
        ):
            outputs = self.model(batch.video, batch.audio, batch.lengths)
        losses = self.model.loss(gathered_outputs(outputs, [len(own) for own in index], self.workers), labels)
        self.scaler.scale(losses["loss"]).backward()
        for buffer, old in zip(self.model.buffers() if before else (), before, strict=True):
            torch.where(losses["loss"].isfinite(), buffer, old, out=buffer)
        self.workers.sum_each_([p.grad for p in self._parameters if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        sums.add(losses, raw.clips)
        self.update += 1

    def _judged(self, sums: EpochLosses) -> Row:
        """The evaluation on dev and what follows from it; the row without its seconds."""
        means, failed = sums.means()
        rate = float(self.optimizer.param_groups[0]["lr"])
        # Under float16 some updates overflow, and are skipped; in other precisions the weights are lost.
        require(
            failed == 0 or (self.scaler.is_enabled() and failed < sums.clips),
            f"the loss ceased to be finite in epoch {self.epoch + 1}; "
            f"{remedy(f'lower learning_rate (it is {rate:g} in this epoch)', self.precision)}.",
        )
        outputs = split_outputs(self.model, self.dev, precision=self.precision, workers=self.workers)
        # Of one worker: the loss of a large split takes its time, and all are to take the same decisions, whatever
        # their processors make of the last digit.
        dev_loss, scores = self.workers.only_first(lambda: self._loss_and_scores(outputs))
        value = auc(scores, self._dev_labels.fake.numpy()) if np.isfinite(scores).all() else math.nan
        self.epoch += 1
        self._follow(value, scores)
        self.schedule.step(dev_loss)
        return {"epoch": self.epoch, **means, "dev_loss": dev_loss, "dev_auc": value, "learning_rate": rate}

    def _loss_and_scores(self, outputs: Mapping[str, Tensor]) -> tuple[float, NDArray[np.float64]]:
        """The loss on dev and P(fake) of its clips, [N], of their outputs."""
        with torch.no_grad():
            loss = float(self.model.loss(outputs, self._dev_labels)["loss"])
        return loss, scores_of(self.model, outputs)

    def _follow(self, value: float, scores: NDArray[np.float64]) -> None:
        """Keep this epoch's weights, if none was better on dev: ties go to the later one, NaN is never kept."""
        first = self.best_epoch == 0
        if math.isnan(value) or not (first or value >= self.best_auc):
            return
        if first or value > self.best_auc:
            self._improved = self.epoch
        self.best_auc, self.best_epoch = value, self.epoch
        self._best = {}  # not beside the new ones: they are large
        self._best = {name: x.detach().to("cpu", copy=True) for name, x in self.model.state_dict().items()}
        self._best_scores = torch.from_numpy(scores)

    def best_weights(self) -> dict[str, Tensor]:
        """The model's state of the best epoch, on the CPU.

        Raises:
            InputError: no epoch has had finite scores.
        """
        require(
            self.best_epoch > 0,
            f"none of {self.epoch} epochs gave finite scores on dev, so there is no best one; "
            f"{remedy(f'lower learning_rate (it is {self.config.learning_rate:g})', self.precision)}.",
        )
        return self._best

    def use_best(self) -> None:
        """Give the model the weights of the best epoch; raises as `best_weights` does."""
        self.model.load_state_dict(self.best_weights())

    def threshold(self) -> float:
        """The threshold with the highest balanced accuracy on dev at the best epoch; raises as `best_weights` does."""
        self.best_weights()
        return best_threshold(self._best_scores.numpy(), self._dev_labels.fake.numpy())

    def score(self, stream: SequenceStream) -> NDArray[np.float64]:
        """P(fake) of a split's clips, [N], with the weights as they are; all workers call this, and get the same."""
        return self.workers.from_first(predict(self.model, stream, precision=self.precision, workers=self.workers))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, at any update, as tensors and plain values (readable with `weights_only=True`).

        The tensors are those of the training, which it changes: save or copy them before the next update.
        """
        return {
            "version": STATE_VERSION,
            "precision": self.precision,
            "seed": self.config.seed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "update": self.update,
            "rows": self.rows,
            "best_auc": self.best_auc,
            "best_epoch": self.best_epoch,
            "improved": self._improved,
            "best": self._best,
            "best_scores": self._best_scores,
            "sums": None if self._sums is None else self._sums.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same training; what comes has the bits that it has without the interruption.

        Raises:
            InputError: a state of another version, precision or seed.
        """
        own = {"version": STATE_VERSION, "precision": self.precision, "seed": self.config.seed}
        for name, value in own.items():
            require(
                state.get(name) == value,
                f"the state has {name} {state.get(name)}, but this training has {value}; begin it anew, or set {name} "
                "to that of the state.",
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.update, self.rows = state["epoch"], state["update"], list(state["rows"])
        self.best_auc, self.best_epoch, self._improved = state["best_auc"], state["best_epoch"], state["improved"]
        self._best, self._best_scores = dict(state["best"]), state["best_scores"]
        self._sums = None if state["sums"] is None else EpochLosses.from_state(state["sums"], self.device)
        self._reader = None


def gathered_outputs(outputs: Mapping[str, Tensor], sizes: Sequence[int], workers: Workers) -> dict[str, Tensor]:
    """The outputs of all workers' clips in order of rank, float32; a gradient passes to this worker's own alone.

    outputs: of this worker, each [B, ...]. sizes: B of each worker.
    """
    found = {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in outputs.items()}
    if workers.world == 1:
        return found
    own = torch.cat([x.reshape(len(x), -1) for x in found.values()], dim=1)
    padded = own.new_zeros(max(sizes), own.shape[1])
    padded[: len(own)] = own.detach()
    parts = [rows[:size] for rows, size in zip(workers.stack(padded), sizes, strict=True)]
    parts[workers.rank] = own
    columns = torch.cat(parts).split([x[0].numel() for x in found.values()], dim=1)
    return {name: rows.reshape(-1, *x.shape[1:]) for (name, x), rows in zip(found.items(), columns, strict=True)}


@contextmanager
def drawing(*seeds: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let torch's generators draw by these numbers alone, and leave them as they were."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]))
        yield
