"""The search of a population, one epoch at a time, with everything needed to resume as one state dict.

Neither files nor a cluster here: `cluster/search_loop.py` runs this, writes its states and reports its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.bilevel import Batch, architecture_update, weight_update
from stgs.candidates import candidate_scores, random_genotypes
from stgs.clips import ClipSet, require_features
from stgs.config import InputError, SearchConfig, require
from stgs.cost import ExpectedParameters, require_fitting
from stgs.decoding import architecture_columns, decode
from stgs.epoch_sums import EpochSums
from stgs.estimators import UNIFORM
from stgs.layers import ForwardContext
from stgs.losses import balanced_cross_entropy
from stgs.metrics import auc
from stgs.optimizers import adam
from stgs.parallel import SINGLE, Workers
from stgs.progress import MemberProgress, MemberResult
from stgs.schedule import ARCHITECTURE, WEIGHTS, epoch_batches, learning_rate, scheduled_temperature, update_order
from stgs.search_space import SearchSpace
from stgs.search_state import members_of
from stgs.supernet import Member, Supernet

STATE_VERSION = 3
EVALUATION_BATCH = 256

Row = dict[str, Any]


class PopulationSearch:
    """Members that are searched side by side on the same batches.

    A member that has stopped, or whose numbers ceased to be finite, is cut out and costs nothing more; `active` holds
    the numbers of the others.

    Args:
        space, members, estimator: what is searched, by whom.
        config: how.
        train, dev: weights are updated on the first, architectures and the best epoch come from the second.
        device: where the supernet lives; both splits must be there.
        workers: this process among those that share each batch; all must make the same calls.

    Raises:
        InputError: clips without a feature of the space, or with one of another size; `uniform` without candidates.
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
        workers: Workers = SINGLE,
    ) -> None:
        self.space, self.config, self.train, self.dev, self.workers = space, config, train, dev, workers
        self._require_features()
        require_fitting(space, config.max_parameters)
        require(
            estimator != UNIFORM or config.candidates > 0,
            f"candidates is 0, but the estimator {UNIFORM!r} chooses among them; give at least 1.",
        )
        self.supernet = Supernet(
            space,
            members,
            estimator=estimator,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            initial_logit_scale=config.initial_logit_scale,
        ).to(device)
        self.weight_optimizer = adam(
            self.supernet.weight_parameters().values(),
            learning_rate=config.weights.learning_rate_max,
            weight_decay=config.weights.weight_decay,
        )
        self.architecture_optimizer = adam(
            self.supernet.architecture_parameters().values(),
            learning_rate=config.architecture_learning_rate,
            betas=(config.architecture_beta1, config.architecture_beta2),
            weight_decay=config.architecture_weight_decay,
        )
        self._expected_parameters = ExpectedParameters(space, device=device) if config.parameter_weight else None
        self._members = [(member.temperature, member.num_samples, member.seed) for member in members]
        self.active = list(range(len(members)))
        self.epoch = 0
        self.update = 0
        self.rows: list[Row] = []
        self._progress = [MemberProgress() for _ in members]
        # Of the epoch that has begun: its updates so far, and how many batches of train and dev stand ready.
        self._sums: EpochSums | None = None
        self._ready: tuple[int, int] | None = None

    @property
    def finished(self) -> bool:
        """Whether the epoch limit is reached or every member has ended early."""
        return self.epoch >= self.config.epochs or not self.active

    @property
    def inside_epoch(self) -> bool:
        """Whether an epoch has begun and is not over."""
        return self._sums is not None

    def run_epoch(self, stop: Callable[[], bool] = lambda: False) -> list[Row] | None:
        """One pass over the training clips with its architecture updates, then the evaluation on dev.

        stop: asked before each update and before the evaluation; all workers must get the same answers. Whatever it
        does, it finds the search between two updates, so it may take a `state_dict`.

        Returns:
            None where it was asked to stop: the next call goes on where this one left off, here or in a search that
            loads the state. Otherwise one row an active member: epoch (from 1), member, learning rate and temperature
            of the last update; loss and accuracy on train, of the architecture updates, and on dev, with the AUC there;
            entropies in nats and normalised; norms of the gradients of alpha, beta, gamma before Adam (mean over the
            epoch's updates) and of the weight decay that Adam adds to them (at the epoch's end); every probability by
            its name.
        """
        sums, num_train = self._begun()
        kinds = update_order(*sums.planned, self.config.alternate)[sums.updates :]
        for kind in kinds:
            if stop():
                return None
            sums.progress = self.epoch + sums.done[WEIGHTS] / num_train
            temperature = self._temperature(sums.progress / self.config.epochs)
            if kind == WEIGHTS:
                sums.rate = learning_rate(self.config.weights, sums.progress)
                self._weight_update(self._train_batch(sums.done[WEIGHTS]), sums.rate, temperature, sums)
            else:
                self._architecture_update(self._dev_batch(sums.done[ARCHITECTURE]), temperature, sums)
            self.update += 1
        if stop():
            return None
        temperature = self._temperature(sums.progress / self.config.epochs)
        self.epoch += 1
        self._sums = self._ready = None
        columns = {"temperature": temperature if temperature is not None else self.supernet.temperature}
        table = {name: column.double().cpu().numpy() for name, column in (columns | sums.columns()).items()}
        return self._record({"learning_rate": np.full(len(self.active), sums.rate), **table}, sums.done[ARCHITECTURE])

    def _begun(self) -> tuple[EpochSums, int]:
        """The sums of the epoch that is under way, or begins, and its number of training batches."""
        if self._ready is None:
            self._ready = self._begin_epoch()
        num_train, num_dev = self._ready
        still = self.epoch < self.config.warmup_epochs or self.supernet.estimator == UNIFORM
        planned = (num_train, 0 if still else num_dev)
        # Other workers may cut clips that are streamed into another number of batches: the epoch is begun anew.
        if self._sums is None or self._sums.planned != planned:
            self._sums = EpochSums.begin(planned, len(self.active), self.supernet.temperature.device)
        return self._sums, num_train

    def _weight_update(self, batch: Batch, rate: float, temperature: Tensor | None, sums: EpochSums) -> None:
        for group in self.weight_optimizer.param_groups:
            group["lr"] = rate
        losses, correct = weight_update(
            self.supernet,
            self.weight_optimizer,
            batch,
            self.update,
            clip_norm=self.config.clip_norm,
            temperature=temperature,
            workers=self.workers,
        )
        self._after_weight_update(batch, rate / self.config.weights.learning_rate_max)
        sums.add(WEIGHTS, losses, correct, _global_clips(batch))

    def _architecture_update(self, batch: Batch, temperature: Tensor | None, sums: EpochSums) -> None:
        losses, correct, norms = architecture_update(
            self.supernet,
            self.architecture_optimizer,
            batch,
            self.update,
            temperature=temperature,
            workers=self.workers,
            penalty=self._penalty if self._expected_parameters is not None else None,
        )
        sums.add(ARCHITECTURE, losses, correct, _global_clips(batch))
        sums.add_norms(norms)

    def _penalty(self, logits: Mapping[str, Tensor]) -> Tensor:
        assert self._expected_parameters is not None
        return self.config.parameter_weight * self._expected_parameters(logits)

    def _temperature(self, progress: float) -> Tensor | None:
        """Temperatures of the active members; None for their own."""
        config = self.config
        if config.temperature_schedule == "constant":
            return None
        return scheduled_temperature(
            self.supernet.temperature, config.temperature_schedule, config.final_temperature, progress
        )

    # What a search reads. Cached features here; `stgs.finetune` overrides these.

    def _require_features(self) -> None:
        for clips in (self.train, self.dev):
            require_features(clips, self.space.features, self.space.length)

    def _order(self, split: str) -> Sequence[Tensor]:
        """The clips of each batch of this epoch, on the clips' device: one transfer an epoch, not one an update."""
        clips = self.train if split == "train" else self.dev
        batches = epoch_batches(len(clips), self.config.batch_size, self.config.data_seed, self.epoch, split)
        order = torch.as_tensor(np.concatenate(batches), device=clips.labels.device)
        return order.split([len(batch) for batch in batches])

    def _begin_epoch(self) -> tuple[int, int]:
        """Make the batches of `self.epoch` ready; their numbers in train and dev."""
        self._train_order, self._dev_order = self._order("train"), self._order("dev")
        return len(self._train_order), len(self._dev_order)

    def _train_batch(self, number: int) -> Batch:
        return self.train.batch(self._train_order[number], self.workers)

    def _dev_batch(self, number: int) -> Batch:
        return self.dev.batch(self._dev_order[number], self.workers)

    def _after_weight_update(self, batch: Batch, rate_factor: float) -> None:
        """What follows a weight update; rate_factor is the scheduled learning rate as a share of its maximum."""

    def _remedy(self) -> str:
        """What may keep the numbers of a member finite."""
        return "lower the learning rates or give a clip_norm"

    def _evaluation_batches(self) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """This worker's share of the dev clips: their positions in dev, and the clips."""
        for start in range(0, len(self.dev), EVALUATION_BATCH):
            index = self.workers.share(np.arange(start, min(start + EVALUATION_BATCH, len(self.dev))))
            if len(index):
                yield index, self.dev.batch(index)

    def _calibration_batches(self) -> Iterator[Batch]:
        """This worker's share of training batches, the same ones each time."""
        for index in epoch_batches(len(self.train), self.config.batch_size, self.config.data_seed, 0, "train"):
            yield self.train.batch(index, self.workers)

    def dev_scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Logits of the dev clips [P, N] and losses [P], with probabilities in place of samples and no dropout."""
        context = ForwardContext(self.supernet.seeds, self.update, training=False, track_statistics=False)
        labels = self.dev.labels
        logits = torch.zeros(labels.shape, device=labels.device)
        with torch.no_grad():
            weights = self.supernet.candidate_weights(None)
            for index, batch in self._evaluation_batches():
                logits[:, torch.as_tensor(index, device=labels.device)] = self.supernet(
                    batch.features, weights, context
                )
            self.workers.sum_(logits)
            losses = balanced_cross_entropy(logits, labels, self.dev.class_weights)
        return logits.double().cpu().numpy(), losses.double().cpu().numpy()

    def logits(self) -> dict[str, NDArray[np.float64]]:
        """alpha, beta and gamma of the active members, each [P, rows, candidates]."""
        return {name: p.detach().double().cpu().numpy() for name, p in self.supernet.architecture_parameters().items()}

    def _record(self, columns: dict[str, NDArray[np.float64]], architecture_updates: int) -> list[Row]:
        scores, columns["dev_loss"] = self.dev_scores()
        labels = self.dev.labels.cpu().numpy()
        columns["dev_accuracy"] = ((scores > 0) == (labels > 0)).mean(axis=1)
        logits = self.logits()
        columns |= architecture_columns(logits, self.space, self.config.architecture_weight_decay)
        rows = []
        for position, member in enumerate(self.active):
            progress = self._progress[member]
            row: Row = {"epoch": self.epoch, "member": member}
            row |= {name: float(column[position]) for name, column in columns.items()}
            if not (np.isfinite(scores[position]).all() and math.isfinite(row["train_loss"])):
                row["dev_auc"] = math.nan
                progress.fail(
                    f"the losses or scores of member {member} ceased to be finite in epoch {self.epoch}; "
                    f"{self._remedy()}."
                )
            else:
                row["dev_auc"] = auc(scores[position], labels[position])
                own = {name: values[position] for name, values in logits.items()}
                genotype = decode(own, self.space, self.config.max_parameters).to_json()
                progress.follow(row, genotype, architecture_updates, self.config.patience)
            rows.append(row)
        self.rows += rows
        self._score_candidates()
        self._keep([number for number in self.active if self._progress[number].active])
        return rows

    def _score_candidates(self) -> None:
        """Before they are cut out: what the supernets of the members that end with this epoch say of candidates."""
        done = self.epoch >= self.config.epochs
        progress = [self._progress[member] for member in self.active]
        ending = [at for at, one in enumerate(progress) if not one.failed and (done or not one.active)]
        if not (self.config.candidates and ending):
            return
        # Members share their candidates, which compares them, but not where each is to find the best of its own: those
        # must not be the genotypes that others share, whatever the seeds.
        uniform, data_seed = self.supernet.estimator == UNIFORM, self.config.data_seed
        seeds = [(data_seed, self._members[self.active[at]][2], 1) if uniform else (data_seed,) for at in ending]
        count, limit = self.config.candidates, self.config.max_parameters
        drawn = {seed: random_genotypes(self.space, count, seed, limit) for seed in set(seeds)}
        common = min(map(len, drawn.values()))
        genotypes = [drawn[seed][:common] for seed in seeds]
        scores = candidate_scores(
            self.supernet,
            ending,
            genotypes,
            train=self._calibration_batches(),
            dev=self._evaluation_batches(),
            labels=self.dev.labels[ending],
            workers=self.workers,
        )
        for at, own, aucs in zip(ending, genotypes, scores.tolist(), strict=True):
            progress[at].take_candidates(own, aucs, choose=uniform)

    def _keep(self, members: Sequence[int]) -> None:
        """Cut all active members but these out of the supernet, the optimisers and the labels."""
        positions = [self.active.index(member) for member in members]
        # With none left the last ones stay in memory: layers without members cannot be built.
        if len(positions) not in (0, len(self.active)):
            for optimizer in (self.weight_optimizer, self.architecture_optimizer):
                for state in optimizer.state.values():
                    state |= {name: members_of(value, positions) for name, value in state.items()}
            self.supernet.keep_members(positions)
            self.train, self.dev = self.train.of_members(positions), self.dev.of_members(positions)
        self.active = list(members)

    def results(self) -> list[MemberResult]:
        """The result of each member, in order.

        Raises:
            InputError: no epoch has been run.
        """
        if self.epoch == 0:
            raise InputError("the search has run no epoch, so there is no result; run at least one.")
        return [progress.result(self.config) for progress in self._progress]

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as tensors and plain values (readable with `weights_only=True`).

        At any update: `sums` holds what the epoch under way has added up, None between two epochs.
        """
        return {
            "version": STATE_VERSION,
            "members": self._members,
            "active": self.active,
            "supernet": self.supernet.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "architecture_optimizer": self.architecture_optimizer.state_dict(),
            "epoch": self.epoch,
            "update": self.update,
            "rows": self.rows,
            "progress": [progress.state for progress in self._progress],
            "sums": None if self._sums is None else self._sums.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same population (`stgs.search_state.slice_state` makes one of a part of it).

        Raises:
            InputError: a state of another version, or of members of other temperatures, num_samples or seeds.
        """
        if state.get("version") != STATE_VERSION:
            raise InputError(
                f"the state has version {state.get('version')}, but this program reads {STATE_VERSION}; begin the run "
                "anew, or go on with the program that began it."
            )
        if [tuple(member) for member in state["members"]] != self._members:
            raise InputError(f"the state holds the members {state['members']}, but the pack has {self._members}.")
        self._keep(state["active"])
        if self.active:  # otherwise the state's tensors are those of members that have ended
            self.supernet.load_state_dict(state["supernet"])
            self.weight_optimizer.load_state_dict(state["weight_optimizer"])
            self.architecture_optimizer.load_state_dict(state["architecture_optimizer"])
        self.epoch, self.update = state["epoch"], state["update"]
        self.rows = list(state["rows"])
        self._progress = [MemberProgress(progress) for progress in state["progress"]]
        sums = state["sums"] if self.active else None
        self._sums = None if sums is None else EpochSums.from_state(sums, self.supernet.temperature.device)
        self._ready = None


def _global_clips(batch: Batch) -> int:
    return batch.labels.shape[1] if batch.clips is None else batch.clips
