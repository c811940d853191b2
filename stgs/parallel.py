"""Data-parallel workers: what the processes that train one population together exchange.

Every worker holds the same population and draws the same noise; the clips of a global batch are dealt out, worker r
takes those at r, r + world, r + 2 world, ... (design.md section 4). Collectives on tensors run on torch.distributed's
default process group; with one worker nothing is exchanged. Each of them raises PeerLostError where another worker is
gone, or has answered nothing for as long as the group waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from stgs.config import require

# Gradients are summed over the workers in buffers of about this many values: few collectives, little extra memory.
BUCKET_VALUES = 8 * 2**20
Index = TypeVar("Index", NDArray[np.int64], Tensor)
Value = TypeVar("Value")


class PeerLostError(RuntimeError):
    """Another worker is gone, and with it the group: only new processes can go on, from the last state."""


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those of a data-parallel training: rank in [0, world).

    hosts: process group for plain values, which must not make a host wait for its GPU; None: the default group.
    """

    rank: int = 0
    world: int = 1
    hosts: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(0 <= self.rank < self.world, f"rank is {self.rank}, but it must lie in [0, world = {self.world}).")

    def share(self, index: Index) -> Index:
        """This worker's part of the clips of a global batch, [B] -> [ceil((B - rank) / world)]."""
        return index[self.rank :: self.world]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over the workers, and return it. It must be contiguous."""
        if self.world > 1:
            with _collective():
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

    def sum_each_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of `tensors`, all of one dtype, by its sum over the workers, many in one collective."""
        for bucket in _buckets(tensors) if self.world > 1 else ():
            for tensor, total in zip(bucket, self.sum_together(bucket), strict=True):
                tensor.copy_(total)

    def stack(self, tensor: Tensor) -> Tensor:
        """The workers' tensors, all of one shape, stacked in order of rank: [world, ...]."""
        if self.world == 1:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        with _collective():
            distributed.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def any(self, flag: bool) -> bool:
        """Whether one of the workers says so; all of them call this."""
        if self.world == 1:
            return flag
        word = torch.tensor(int(flag))
        with _collective():
            distributed.all_reduce(word, distributed.ReduceOp.MAX, self.hosts)
        return bool(word)

    def from_first(self, value: Value) -> Value:
        """The first worker's `value`, in every worker. It must be picklable; the others' is not looked at."""
        if self.world == 1:
            return value
        box: list[Any] = [value if self.rank == 0 else None]
        with _collective():
            distributed.broadcast_object_list(box, 0, self.hosts)
        received: Value = box[0]
        return received

    def only_first(self, compute: Callable[[], Value]) -> Value:
        """What `compute` gives the first worker, in every worker; the others do not call it. It must be picklable.

        An error of the first worker is raised there; the others, which would wait for it in vain, raise PeerLostError.
        """
        values, failure = [], None
        if self.rank == 0:
            try:
                values.append(compute())
            except Exception as error:  # of any kind: the others are told, then it goes on as it was
                failure = error
        values = self.from_first(values)
        if failure is not None:
            raise failure
        if not values:
            raise PeerLostError("the first worker has failed; its own error says why")
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """The workers' values in order of rank. They must be picklable."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        with _collective():
            distributed.all_gather_object(box, value, self.hosts)
        return box


SINGLE = Workers()


def default_workers() -> Workers:
    """The workers of torch.distributed's default process group, or one worker where there is none.

    Where the default group is one of GPUs, this makes another for their hosts, so all workers must call it.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return SINGLE
    hosts = None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")
    return Workers(distributed.get_rank(), distributed.get_world_size(), hosts)


@contextmanager
def _collective() -> Iterator[None]:
    """Tell a lost worker apart from other errors of a collective."""
    try:
        yield
    except distributed.DistError as error:  # what NCCL raises, and the store through which workers find each other
        raise PeerLostError(f"another worker is gone ({error})") from error
    except RuntimeError as error:
        # gloo raises nothing more special. Its connections live in one folder of its source, which its messages name;
        # there, a check that failed ("enforce fail") means different tensors on both sides: a mistake, not a loss.
        text = str(error)
        lost = "gloo/transport" in text or "caused pair closure" in text
        if not lost or "enforce fail" in text:
            raise
        raise PeerLostError(f"another worker is gone ({text})") from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    values = 0
    for tensor in tensors:
        bucket.append(tensor)
        values += tensor.numel()
        if values >= BUCKET_VALUES:
            yield bucket
            bucket, values = [], 0
    if bucket:
        yield bucket
