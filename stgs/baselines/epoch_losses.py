"""What an epoch of a baseline's training has added up so far: enough to stop between two updates and to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(slots=True)
class EpochLosses:
    """Sums over the updates of an epoch that has begun.

    planned: updates of the epoch. done: those made. clips: clips that they have seen. names: the loss and its terms.
    totals: sums over the clips of the updates whose losses were finite, and the number of these clips, float64
    [names + 1], on the device; None before the first update. seconds: that the epoch has taken.
    """

    planned: int
    done: int = 0
    clips: int = 0
    names: tuple[str, ...] = ()
    totals: Tensor | None = None
    seconds: float = 0.0

    def add(self, losses: Mapping[str, Tensor], clips: int) -> None:
        """Take in an update: means over the batch's clips. The host does not wait for the device."""
        means = torch.stack([value.detach() for value in losses.values()]).double()
        row = functional.pad(means * clips, (0, 1), value=clips)
        row = torch.where(means.isfinite().all(), row, 0.0)
        self.totals = row if self.totals is None else self.totals + row
        self.names = tuple(losses)
        self.clips += clips
        self.done += 1

    def means(self) -> tuple[dict[str, float], int]:
        """Name -> mean over the clips of updates with finite losses, NaN where there was none; clips of the others."""
        if self.totals is None:
            return {}, 0
        *totals, clips = self.totals.tolist()
        means = {name: total / (clips or math.nan) for name, total in zip(self.names, totals, strict=True)}
        return means, self.clips - int(clips)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as a tensor and plain values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> EpochLosses:
        """Those that `state_dict` gave, on `device`."""
        totals = state["totals"]
        return cls(**{**state, "names": tuple(state["names"]), "totals": None if totals is None else totals.to(device)})
