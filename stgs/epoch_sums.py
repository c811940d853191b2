"""What an epoch of a population has added up so far: enough to stop between two updates and to go on to the same bits.

Shapes: P members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stgs.schedule import ARCHITECTURE, WEIGHTS
from stgs.search_space import ARCHITECTURE_PARAMETERS

# The rows call the weight updates after the split they read.
_COLUMNS = {WEIGHTS: "train", ARCHITECTURE: "architecture"}


@dataclass(slots=True)
class EpochSums:
    """Sums over the updates of an epoch that has begun.

    planned: weight and architecture updates of the epoch. done: those made, by kind. clips: clips of all workers that
    they have seen, by kind. rate: learning rate of the last weight update, 0 before the first. progress: epochs done
    when the last update began, as a fraction. losses: sum of the losses of the clips and number of correct ones, by
    kind, [P, 2]. norms: sum of the gradient norms of alpha, beta and gamma, [P, 3].

    The tensors are float64: one sum after the other, whose order a stop does not change, would lose digits of float32.
    """

    planned: tuple[int, int]
    done: dict[str, int]
    clips: dict[str, int]
    rate: float
    progress: float
    losses: dict[str, Tensor]
    norms: Tensor

    @classmethod
    def begin(cls, planned: tuple[int, int], members: int, device: torch.device | str) -> EpochSums:
        """Those of an epoch without an update. members: the active ones."""

        def zeros(columns: int) -> Tensor:
            return torch.zeros(members, columns, dtype=torch.float64, device=device)

        kinds = (WEIGHTS, ARCHITECTURE)
        return cls(
            planned=planned,
            done=dict.fromkeys(kinds, 0),
            clips=dict.fromkeys(kinds, 0),
            rate=0.0,
            progress=0.0,
            losses={kind: zeros(2) for kind in kinds},
            norms=zeros(len(ARCHITECTURE_PARAMETERS)),
        )

    @property
    def updates(self) -> int:
        """Updates made, of both kinds."""
        return sum(self.done.values())

    def add(self, kind: str, losses: Tensor, correct: Tensor, clips: int) -> None:
        """Take in an update: mean losses over the batch's clips, and the number of correct ones, each [P]."""
        self.losses[kind] += torch.stack([losses * clips, correct], dim=1)
        self.clips[kind] += clips
        self.done[kind] += 1

    def add_norms(self, norms: Mapping[str, Tensor]) -> None:
        """Take in an architecture update's gradient norms: parameter -> [P]."""
        self.norms += torch.stack([norms[name] for name in ARCHITECTURE_PARAMETERS], dim=1)

    def columns(self) -> dict[str, Tensor]:
        """What the rows say of the epoch's updates, means over clips and updates: column -> [P], NaN where none was."""
        found: dict[str, Tensor] = {}
        for kind, name in _COLUMNS.items():
            mean = self.losses[kind] / (self.clips[kind] or math.nan)
            found |= {f"{name}_loss": mean[:, 0], f"{name}_accuracy": mean[:, 1]}
        norms = self.norms / (self.done[ARCHITECTURE] or math.nan)
        return found | {f"gradient_norm_{name}": norms[:, i] for i, name in enumerate(ARCHITECTURE_PARAMETERS)}

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str) -> EpochSums:
        """Those that `state_dict` gave, on `device`; nothing is shared with the state."""
        return cls(
            planned=tuple(state["planned"]),
            done=dict(state["done"]),
            clips=dict(state["clips"]),
            rate=state["rate"],
            progress=state["progress"],
            losses={kind: value.to(device, copy=True) for kind, value in state["losses"].items()},
            norms=state["norms"].to(device, copy=True),
        )


def slice_sums(state: Mapping[str, Any], positions: Sequence[int]) -> dict[str, Any]:
    """The state of the sums of the members at `positions`, in this order."""
    losses = {kind: value[list(positions)] for kind, value in state["losses"].items()}
    return {**state, "losses": losses, "norms": state["norms"][list(positions)]}
