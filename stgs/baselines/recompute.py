"""Trades time for memory: what a part of a network makes on its way is computed anew in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(part: Callable[[Tensor], Tensor], x: Tensor, norms: nn.Module) -> Tensor:
    """`part(x)`, of which only x is kept for the backward pass. The results and gradients are the same.

    part: must not draw random numbers. norms: the module that holds its batch normalisations, whose running statistics
    move once, not once more when they are computed anew.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(norms)

    made: Tensor = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return made


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Meanwhile no running statistics of a module move, in training mode, either."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum, norm.num_batches_tracked = momentum, counted
