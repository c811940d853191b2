"""The search of a population, one epoch at a time, with everything needed to resume as one state dict.

Neither files nor a cluster here: `cluster/search_loop.py` runs this, writes its states and reports its rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.bilevel import architecture_update, weight_update
from stgs.clips import ClipSet, require_features
from stgs.config import InputError, SearchConfig
from stgs.decoding import decode, entropies, maximum_entropies
from stgs.genotype import Genotype, genotype_from_json
from stgs.layers import ForwardContext
from stgs.losses import balanced_cross_entropy
from stgs.metrics import auc
from stgs.schedule import WEIGHTS, epoch_batches, learning_rate, update_order
from stgs.search_space import ARCHITECTURE_PARAMETERS, SearchSpace
from stgs.supernet import Member, Supernet

STATE_VERSION = 1
EVALUATION_BATCH = 256
# Early stopping (design.md section 4): all normalised entropies below the first, moving less than the second.
DECIDED_ENTROPY = 0.9
STILL_ENTROPY = 1e-3
# A search that ends above this entropy, with a genotype that changed this recently, has hardly moved.
UNDECIDED_ENTROPY = 0.99
RECENT_EPOCHS = 10

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MemberResult:
    """What a member's search found: the genotype of its best epoch, and how it got there.

    metrics: dev_auc and epoch of the best epoch, epochs run, normalised entropies at the end, and whether the
    architecture has hardly moved.
    """

    genotype: Genotype
    metrics: dict[str, Any]


class PopulationSearch:
    """Members that are searched side by side on the same batches.

    Args:
        space, members, estimator: what is searched, by whom.
        config: how.
        train, dev: weights are updated on the first, architectures and the best epoch come from the second.
        device: where the supernet lives; both splits must be there.

    Raises:
        InputError: clips without a feature of the space, or with one of another size.
    """

    def __init__(
        self,
        space: SearchSpace,
        members: Sequence[Member],
        *,
        estimator: str,
        config: SearchConfig,
        train: ClipSet,
        dev: ClipSet,
        device: torch.device | str = "cpu",
    ) -> None:
        for clips in (train, dev):
            require_features(clips, space.features, space.length)
        self.space, self.config, self.train, self.dev = space, config, train, dev
        self.supernet = Supernet(
            space,
            members,
            estimator=estimator,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            initial_logit_scale=config.initial_logit_scale,
        ).to(device)
        self.weight_optimizer = torch.optim.Adam(
            self.supernet.weight_parameters().values(),
            lr=config.weights.learning_rate_max,
            weight_decay=config.weights.weight_decay,
            fused=True,
        )
        self.architecture_optimizer = torch.optim.Adam(
            self.supernet.architecture_parameters().values(),
            lr=config.architecture_learning_rate,
            betas=(config.architecture_beta1, config.architecture_beta2),
            weight_decay=config.architecture_weight_decay,
            fused=True,
        )
        self.num_members = len(members)
        self._members = [(member.temperature, member.num_samples, member.seed) for member in members]
        self.epoch = 0
        self.update = 0
        self.rows: list[Row] = []
        self._progress: list[Row] = [
            {"best_auc": -1.0, "best_epoch": -1, "genotype": "", "still": 0, "changed_epoch": 0, "stopped_epoch": 0}
            for _ in members
        ]

    @property
    def finished(self) -> bool:
        """Whether the epoch limit is reached or every member has stopped early."""
        return self.epoch >= self.config.epochs or all(member["stopped_epoch"] for member in self._progress)

    def run_epoch(self) -> list[Row]:
        """One pass over the training clips with its architecture updates, then the evaluation on dev.

        Returns:
            One row a member that has not stopped: epoch (from 1), member, losses, dev AUC, entropies in nats and
            normalised, gradient norms of alpha, beta, gamma before Adam (mean over the epoch's updates), learning rate.
        """
        config = self.config
        train = epoch_batches(len(self.train), config.batch_size, config.data_seed, self.epoch, "train")
        dev = epoch_batches(len(self.dev), config.batch_size, config.data_seed, self.epoch, "dev")
        num_architecture = 0 if self.epoch < config.warmup_epochs else len(dev)
        weight_losses: list[Tensor] = []
        architecture_losses: list[Tensor] = []
        norms: list[Tensor] = []
        for kind in update_order(len(train), num_architecture, config.alternate):
            if kind == WEIGHTS:
                rate = learning_rate(config.weights, self.epoch + len(weight_losses) / len(train))
                for group in self.weight_optimizer.param_groups:
                    group["lr"] = rate
                batch = self.train.batch(train[len(weight_losses)])
                weight_losses.append(
                    weight_update(self.supernet, self.weight_optimizer, batch, self.update, config.clip_norm)
                )
            else:
                batch = self.dev.batch(dev[len(architecture_losses)])
                losses, gradient_norms = architecture_update(
                    self.supernet, self.architecture_optimizer, batch, self.update
                )
                architecture_losses.append(losses)
                norms.append(torch.stack([gradient_norms[name] for name in ARCHITECTURE_PARAMETERS]))
            self.update += 1
        self.epoch += 1
        missing = torch.full((self.num_members,), math.nan)
        columns = {
            "train_loss": torch.stack(weight_losses).mean(dim=0),
            "architecture_loss": torch.stack(architecture_losses).mean(dim=0) if norms else missing,
        }
        mean_norms = torch.stack(norms).mean(dim=0) if norms else missing.expand(len(ARCHITECTURE_PARAMETERS), -1)
        columns |= {f"gradient_norm_{name}": mean_norms[i] for i, name in enumerate(ARCHITECTURE_PARAMETERS)}
        return self._record({name: column.double().cpu().numpy() for name, column in columns.items()}, rate)

    def dev_scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Logits of the dev clips [P, N] and losses [P], with probabilities in place of samples and no dropout."""
        context = ForwardContext(self.supernet.seeds, self.update, training=False, track_statistics=False)
        logits, losses = [], []
        with torch.no_grad():
            weights = self.supernet.candidate_weights(None)
            for start in range(0, len(self.dev), EVALUATION_BATCH):
                index = np.arange(start, min(start + EVALUATION_BATCH, len(self.dev)))
                batch = self.dev.batch(index)
                scores = self.supernet(batch.features, weights, context)
                logits.append(scores)
                losses.append(balanced_cross_entropy(scores, batch.labels, batch.class_weights) * len(index))
        total = torch.stack(losses).sum(dim=0) / len(self.dev)
        return torch.cat(logits, dim=1).double().cpu().numpy(), total.double().cpu().numpy()

    def logits(self) -> dict[str, NDArray[np.float64]]:
        """alpha, beta and gamma of all members, each [P, rows, candidates]."""
        return {name: p.detach().double().cpu().numpy() for name, p in self.supernet.architecture_parameters().items()}

    def _record(self, columns: dict[str, NDArray[np.float64]], rate: float) -> list[Row]:
        scores, dev_losses = self.dev_scores()
        dev_labels = self.dev.labels.cpu().numpy()
        logits = self.logits()
        nats, maximum = entropies(logits), maximum_entropies(self.space)
        rows = []
        for index, progress in enumerate(self._progress):
            if progress["stopped_epoch"]:
                continue
            row: Row = {"epoch": self.epoch, "member": index, "learning_rate": rate}
            row |= {name: float(column[index]) for name, column in columns.items()}
            row |= {"dev_loss": float(dev_losses[index]), "dev_auc": auc(scores[index], dev_labels[index])}
            for name in ARCHITECTURE_PARAMETERS:
                row[f"entropy_{name}"] = float(nats[name][index])
                row[f"normalised_entropy_{name}"] = float(nats[name][index] / max(maximum[name], 1e-12))
            genotype = decode({name: values[index] for name, values in logits.items()}, self.space)
            self._follow(progress, row, genotype.to_json())
            rows.append(row)
        self.rows += rows
        return rows

    def _follow(self, progress: Row, row: Row, genotype: str) -> None:
        """Keep the best epoch (ties to the later) and decide whether the member stops."""
        previous = next((r for r in reversed(self.rows) if r["member"] == row["member"]), None)
        now = [row[f"normalised_entropy_{name}"] for name in ARCHITECTURE_PARAMETERS]
        moved = genotype != progress["genotype"] or previous is None
        if previous is not None:
            before = [previous[f"normalised_entropy_{name}"] for name in ARCHITECTURE_PARAMETERS]
            moved = moved or max(abs(a - b) for a, b in zip(now, before, strict=True)) >= STILL_ENTROPY
        if genotype != progress["genotype"]:
            progress["changed_epoch"] = self.epoch
        progress["genotype"] = genotype
        progress["still"] = 0 if moved else progress["still"] + 1
        if row["dev_auc"] >= progress["best_auc"]:
            progress |= {"best_auc": row["dev_auc"], "best_epoch": self.epoch, "best_genotype": genotype}
        if progress["still"] >= self.config.patience and max(now) < DECIDED_ENTROPY:
            progress["stopped_epoch"] = self.epoch

    def results(self) -> list[MemberResult]:
        """The result of each member, in order.

        Raises:
            InputError: no epoch has been run.
        """
        if self.epoch == 0:
            raise InputError("the search has run no epoch, so there is no result; run at least one.")
        results = []
        for index, progress in enumerate(self._progress):
            last = next(row for row in reversed(self.rows) if row["member"] == index)
            normalised = {name: last[f"normalised_entropy_{name}"] for name in ARCHITECTURE_PARAMETERS}
            recent = progress["changed_epoch"] > last["epoch"] - RECENT_EPOCHS
            metrics = {
                "dev_auc": progress["best_auc"],
                "best_epoch": progress["best_epoch"],
                "epochs": last["epoch"],
                "stopped_early": bool(progress["stopped_epoch"]) and last["epoch"] < self.config.epochs,
                **{f"normalised_entropy_{name}": value for name, value in normalised.items()},
                "hardly_moved": recent and min(normalised.values()) > UNDECIDED_ENTROPY,
            }
            results.append(MemberResult(genotype_from_json(progress["best_genotype"]), metrics))
        return results

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as tensors and plain values (readable with `weights_only=True`)."""
        return {
            "version": STATE_VERSION,
            "members": self._members,
            "supernet": self.supernet.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "architecture_optimizer": self.architecture_optimizer.state_dict(),
            "epoch": self.epoch,
            "update": self.update,
            "rows": self.rows,
            "progress": self._progress,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same population.

        Raises:
            InputError: a state of another version, or of members of other temperatures, num_samples or seeds.
        """
        if state.get("version") != STATE_VERSION:
            raise InputError(f"the state has version {state.get('version')}, but this program reads {STATE_VERSION}.")
        if [tuple(member) for member in state["members"]] != self._members:
            raise InputError(f"the state holds the members {state['members']}, but the pack has {self._members}.")
        self.supernet.load_state_dict(state["supernet"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.architecture_optimizer.load_state_dict(state["architecture_optimizer"])
        self.epoch, self.update = state["epoch"], state["update"]
        self.rows = list(state["rows"])
        self._progress = [dict(progress) for progress in state["progress"]]
