"""One weight update and one architecture update of a population (paper, Algorithm 1, first order).

No loop and no files here. Shapes: P members, B clips. `update` is the number of the update, counted over both kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stgs.layers import ForwardContext
from stgs.losses import balanced_cross_entropy
from stgs.supernet import Supernet


@dataclass(frozen=True, slots=True)
class Batch:
    """features: name -> [B, L, C] or [B, C], float32. labels: 0 or 1, [P, B]. class_weights: [P, 2]."""

    features: Mapping[str, Tensor]
    labels: Tensor
    class_weights: Tensor


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale each member's gradients so that their joint norm is at most `max_norm`."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.flatten(start_dim=1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    scale = (max_norm / norm.clamp_min(max_norm)).detach()
    for g in gradients:
        g.mul_(scale.view(-1, *(1,) * (g.dim() - 1)))


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Compute no gradients of these parameters inside the block."""
    held = list(parameters)
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


def weight_update(
    supernet: Supernet, optimizer: torch.optim.Optimizer, batch: Batch, update: int, clip_norm: float = 0.0
) -> Tensor:
    """One update of the weights on a training batch, with sampled candidates; the architecture stands still.

    clip_norm: largest gradient norm of a member, 0 for none. Returns the loss of each member before the update, [P].
    """
    context = ForwardContext(supernet.seeds, update, training=True, track_statistics=True)
    with torch.no_grad():
        weights = supernet.candidate_weights(update)
    losses = balanced_cross_entropy(supernet(batch.features, weights, context), batch.labels, batch.class_weights)
    optimizer.zero_grad(set_to_none=True)
    # Members share no parameter, so the gradient of the sum is each member's own.
    losses.sum().backward()
    if clip_norm > 0.0:
        clip_gradients(supernet.weight_parameters().values(), clip_norm)
    optimizer.step()
    return losses.detach()


def architecture_update(
    supernet: Supernet, optimizer: torch.optim.Optimizer, batch: Batch, update: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """One update of alpha, beta, gamma on a dev batch.

    No weight gradients are computed; batch statistics are used, and running ones do not move.

    Returns:
        The loss of each member before the update, [P], and the norm of its gradient of alpha, beta and gamma before the
        optimiser sees it, each [P].
    """
    context = ForwardContext(supernet.seeds, update, training=True, track_statistics=False)
    parameters = supernet.architecture_parameters()
    with _frozen(supernet.weight_parameters().values()):
        weights = supernet.candidate_weights(update)
        losses = balanced_cross_entropy(supernet(batch.features, weights, context), batch.labels, batch.class_weights)
        gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    norms = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        parameter.grad = gradient
        norms[name] = gradient.flatten(start_dim=1).norm(dim=1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses.detach(), norms
