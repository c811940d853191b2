"""Data-parallel workers: what the processes that train one population together exchange.

Every worker holds the same population and draws the same noise; the clips of a global batch are dealt out, worker r
takes those at r, r + world, r + 2 world, ... (design.md section 4). Collectives run on torch.distributed's default
process group; with one worker nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from stgs.config import require

Index = TypeVar("Index", NDArray[np.int64], Tensor)


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those of a data-parallel training: rank in [0, world)."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.rank < self.world, f"rank is {self.rank}, but it must lie in [0, world = {self.world}).")

    def share(self, index: Index) -> Index:
        """This worker's part of the clips of a global batch, [B] -> [ceil((B - rank) / world)]."""
        return index[self.rank :: self.world]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over the workers, and return it. It must be contiguous."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def sum_together(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over the workers of each of `tensors`, all of one dtype, in a single collective.

        With one worker they are returned as they are.
        """
        if self.world == 1:
            return list(tensors)
        flat = self.sum_(torch.cat([tensor.flatten() for tensor in tensors]))
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def stack(self, tensor: Tensor) -> Tensor:
        """The workers' tensors, all of one shape, stacked in order of rank: [world, ...]."""
        if self.world == 1:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)


SINGLE = Workers()


def default_workers() -> Workers:
    """The workers of torch.distributed's default process group, or one worker where there is none."""
    if distributed.is_available() and distributed.is_initialized():
        return Workers(distributed.get_rank(), distributed.get_world_size())
    return SINGLE
