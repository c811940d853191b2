"""One weight update and one architecture update of a population (paper, Algorithm 1, first order).

No loop and no files here. Shapes: P members, B clips. `update` is the number of the update, counted over both kinds.
With several workers each holds its share of a batch, and all make the update that one would make on the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stgs.layers import ForwardContext
from stgs.losses import balanced_cross_entropy, num_correct
from stgs.parallel import SINGLE, Workers
from stgs.supernet import Supernet


@dataclass(frozen=True, slots=True)
class Batch:
    """This worker's clips of a batch.

    features: name -> [B, L, C] or [B, C], float32. labels: 0 or 1, [P, B]. class_weights: [P, 2]. clips: number of
    clips of the whole batch, all workers' together (None: B).
    """

    features: Mapping[str, Tensor]
    labels: Tensor
    class_weights: Tensor
    clips: int | None = None


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


def _forward(
    supernet: Supernet, batch: Batch, weights: Mapping[str, Tensor], context: ForwardContext
) -> tuple[Tensor, Tensor]:
    """This worker's part of each member's mean loss over the whole batch, and of its number of correct clips: [P]."""
    logits = supernet(batch.features, weights, context)
    losses = balanced_cross_entropy(logits, batch.labels, batch.class_weights, batch.clips)
    return losses, num_correct(logits.detach(), batch.labels)


def weight_update(
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    update: int,
    *,
    clip_norm: float = 0.0,
    temperature: Tensor | None = None,
    workers: Workers = SINGLE,
) -> tuple[Tensor, Tensor]:
    """One update of the weights on a training batch, with sampled candidates; the architecture stands still.

    Args:
        clip_norm: largest gradient norm of a member, 0 for none.
        temperature: of this update, [P] (None: the members' own).
        workers: who shares the batch. Features that require gradients get those of the whole batch's mean loss.

    Returns:
        The loss of each member before the update and the number of clips that it had right, over the whole batch: both
        [P], float.
    """
    context = ForwardContext(supernet.seeds, update, training=True, track_statistics=True, workers=workers)
    with torch.no_grad():
        weights = supernet.candidate_weights(update, temperature)
    losses, correct = _forward(supernet, batch, weights, context)
    optimizer.zero_grad(set_to_none=True)
    # Members share no parameter, so the gradient of the sum is each member's own.
    losses.sum().backward()
    gradients = {p: p.grad for p in supernet.weight_parameters().values() if p.grad is not None}
    losses, correct, *summed = workers.sum_together([losses.detach(), correct, *gradients.values()])
    for parameter, gradient in zip(gradients, summed, strict=True):
        parameter.grad = gradient
    if clip_norm > 0.0:
        clip_gradients(gradients, clip_norm)
    optimizer.step()
    return losses, correct


def architecture_update(
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    update: int,
    *,
    temperature: Tensor | None = None,
    workers: Workers = SINGLE,
    penalty: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One update of alpha, beta, gamma on a dev batch.

    No weight gradients are computed; batch statistics are used, and running ones do not move.

    Args:
        temperature: of this update, [P] (None: the members' own).
        workers: who shares the batch.
        penalty: from alpha, beta and gamma to a term of each member's loss, [P], whose gradient joins the update.

    Returns:
        The loss of each member before the update and the number of clips that it had right, over the whole batch: both
        [P], float. And the norm of the loss's gradient of alpha, beta and gamma, before the optimiser sees it, each
        [P]. All of them are without the penalty.
    """
    context = ForwardContext(supernet.seeds, update, training=True, track_statistics=False, workers=workers)
    parameters = supernet.architecture_parameters()
    with _frozen(supernet.weight_parameters().values()):
        weights = supernet.candidate_weights(update, temperature)
        losses, correct = _forward(supernet, batch, weights, context)
        gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    losses, correct, *summed = workers.sum_together([losses.detach(), correct, *gradients])
    norms = {}
    for (name, parameter), gradient in zip(parameters.items(), summed, strict=True):
        parameter.grad = gradient
        norms[name] = gradient.flatten(start_dim=1).norm(dim=1)
    if penalty is not None:
        # It is no sum over clips: every worker adds the same gradient to that of the whole batch.
        penalty(parameters).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses, correct, norms
