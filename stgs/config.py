"""Settings of a search and of the training of a found network, and the error that wrong input raises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

TEMPERATURE_SCHEDULES = ("constant", "linear", "exponential")
FIT_ON = ("train", "train+dev")


class InputError(ValueError):
    """Wrong input: one sentence that names the field or file, the value, and the way out."""


def require(condition: bool, sentence: str) -> None:
    """Raise `InputError(sentence)` unless `condition` holds."""
    if not condition:
        raise InputError(sentence)


def require_at_least(field: str, value: float, minimum: float) -> None:
    """Raise `InputError` unless `value` >= `minimum`."""
    require(value >= minimum, f"{field} is {value}, but it must be at least {minimum}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSchedule:
    """Adam for the weights, with a cosine learning rate that restarts (reference.md section 1).

    The learning rate falls from `learning_rate_max` to `learning_rate_min` within a cycle; the first cycle lasts
    `restart_epochs` epochs, each later one `restart_multiplier` times as long as the one before. It is set per batch.
    """

    learning_rate_max: float = 1e-3
    learning_rate_min: float = 1e-6
    restart_epochs: int = 1
    restart_multiplier: int = 2
    weight_decay: float = 3e-4

    def __post_init__(self) -> None:
        require(
            0 < self.learning_rate_min <= self.learning_rate_max,
            f"learning_rate_min is {self.learning_rate_min}, but it must lie in (0, learning_rate_max = "
            f"{self.learning_rate_max}].",
        )
        require_at_least("restart_epochs", self.restart_epochs, 1)
        require_at_least("restart_multiplier", self.restart_multiplier, 1)
        require_at_least("weight_decay", self.weight_decay, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How a population of supernets is searched; the defaults are those of design.md section 4.

    epochs: passes over the training clips. batch_size: clips a batch, at most. alternate: `spread` puts the
    architecture updates evenly between an epoch's weight updates, `epoch` puts them after all of them (the released
    order). warmup_epochs: first epochs without architecture updates. clip_norm: largest gradient norm of a member's
    weights, 0 for none. patience: epochs without movement before a member stops early. data_seed: order of the
    batches, shared by all members. temperature_schedule: `constant` as in the paper, or `linear` or `exponential` from
    a member's temperature at the start to `final_temperature` at the end. parameter_weight: weight of the expected
    parameters in the architecture's loss, 0 for none (see `stgs.cost`). max_parameters: largest found network that
    decoding may give, in parameters without the classifier, 0 for no limit. candidates: random genotypes that the
    trained supernet scores on dev, which tells how well it ranks (see `stgs.candidates`); 0 for none.
    """

    epochs: int = 30
    batch_size: int = 64
    weights: WeightSchedule = WeightSchedule()
    architecture_learning_rate: float = 3e-3
    architecture_beta1: float = 0.5
    architecture_beta2: float = 0.999
    architecture_weight_decay: float = 1e-3
    initial_logit_scale: float = 1e-3
    dropout: float = 0.2
    attention_dropout: float = 0.1
    alternate: str = "spread"
    warmup_epochs: int = 0
    clip_norm: float = 0.0
    patience: int = 24
    data_seed: int = 0
    temperature_schedule: str = "constant"
    final_temperature: float = 1.0
    parameter_weight: float = 0.0
    max_parameters: int = 0
    candidates: int = 0

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size", "patience"):
            require_at_least(field, getattr(self, field), 1)
        for field in (
            "warmup_epochs",
            "clip_norm",
            "architecture_weight_decay",
            "initial_logit_scale",
            "parameter_weight",
            "max_parameters",
            "data_seed",
            "candidates",
        ):
            require_at_least(field, getattr(self, field), 0)
        require(
            self.architecture_learning_rate > 0,
            f"architecture_learning_rate is {self.architecture_learning_rate}, but it must be above 0.",
        )
        for field in ("dropout", "attention_dropout", "architecture_beta1", "architecture_beta2"):
            value = getattr(self, field)
            require(0 <= value < 1, f"{field} is {value}, but it must lie in [0, 1).")
        require(
            0 < self.final_temperature < math.inf,
            f"final_temperature is {self.final_temperature}, but it must be finite and above 0.",
        )
        require(
            self.temperature_schedule in TEMPERATURE_SCHEDULES,
            f"temperature_schedule is {self.temperature_schedule!r}; choose one of {', '.join(TEMPERATURE_SCHEDULES)}.",
        )
        require(self.alternate in ("spread", "epoch"), f"alternate is {self.alternate!r}; choose 'spread' or 'epoch'.")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundConfig:
    """How a found network is trained from scratch: the same schedule as in search, 100 epochs (design.md section 4).

    epochs: passes over the clips that are fitted, at most. batch_size: clips a batch, at most. data_seed: order of the
    batches. patience: epochs without a better AUC on dev after which a network is done, 0 for none: all epochs are run.
    fit_on: `train`, where dev chooses epoch and threshold, or `train+dev`, which leaves nothing to choose with: then
    the last epoch and the threshold 0.5 are taken.
    """

    epochs: int = 100
    batch_size: int = 64
    weights: WeightSchedule = WeightSchedule()
    dropout: float = 0.2
    attention_dropout: float = 0.1
    data_seed: int = 0
    patience: int = 0
    fit_on: Literal["train", "train+dev"] = "train"

    def __post_init__(self) -> None:
        require_at_least("epochs", self.epochs, 1)
        require_at_least("batch_size", self.batch_size, 1)
        for field in ("data_seed", "patience"):
            require_at_least(field, getattr(self, field), 0)
        for field in ("dropout", "attention_dropout"):
            value = getattr(self, field)
            require(0 <= value < 1, f"{field} is {value}, but it must lie in [0, 1).")
        require(self.fit_on in FIT_ON, f"fit_on is {self.fit_on!r}; choose one of {', '.join(FIT_ON)}.")
        require(
            self.fit_on == "train" or self.patience == 0,
            f"patience is {self.patience}, but a network that is fitted on {self.fit_on} has no dev clips to stop on; "
            "set patience to 0.",
        )

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """The splits that the weights are fitted on."""
        return tuple(self.fit_on.split("+"))


def released_found_config(**overrides: Any) -> FoundConfig:
    """How the released code trains found networks (reference.md section 3.8): learning rate 3e-4, first cycle of 5
    epochs, weight decay 1e-4, on train and dev, last epoch.

    overrides: fields of `FoundConfig` that differ.
    """
    weights = WeightSchedule(learning_rate_max=3e-4, restart_epochs=5, weight_decay=1e-4)
    settings: dict[str, Any] = {"weights": weights, "fit_on": "train+dev", **overrides}
    return FoundConfig(**settings)
