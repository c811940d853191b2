"""Losses of a population. Shapes: P members, B clips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stgs.config import InputError


def class_weights(labels: Tensor) -> Tensor:
    """Loss weights that give both classes the same total: N / (2 N_class).

    labels: 0 or 1, [P, N]. Returns float32 [P, 2], the weight of class 0 and of class 1.

    Raises:
        InputError: a member has clips of one class only.
    """
    count = labels.shape[1]
    fake = labels.sum(dim=1)
    numbers = torch.stack([count - fake, fake], dim=1)
    if bool((numbers == 0).any()):
        raise InputError(
            f"a split holds as few as {numbers.min(dim=0).values.tolist()} real and fake clips, but both classes are "
            "needed; check the manifest's splits."
        )
    return count / (2.0 * numbers.float())


class _CrossEntropy(torch.autograd.Function):
    """-log P(label) from the logits of 'fake' and labels 0.0 or 1.0, both [P, B].

    Of exp and log1p alone, whose kernels on a CPU treat every position of a tensor alike: those of torch's own
    cross-entropy round what is left over of whole vectors otherwise, and a member would feel its place in the pack.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        small = torch.exp(-logits.abs())
        fake = torch.where(logits >= 0, 1.0, small) / (1.0 + small)
        ctx.save_for_backward(fake - labels)
        return torch.log1p(small) + logits.clamp_min(0.0) - logits * labels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return gradient * difference, None


def balanced_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, clips: int | None = None) -> Tensor:
    """Binary cross-entropy weighted by class, the mean over clips.

    logits: [P, B], of 'fake'. labels: 0 or 1, [P, B]. weights: [P, 2]. clips: number of clips to divide the sum by,
    where these are a worker's part of them (None: B). Returns [P].
    """
    weight = torch.where(labels > 0, weights[:, 1:], weights[:, :1])
    losses = _CrossEntropy.apply(logits, labels.to(logits.dtype)) * weight
    return losses.sum(dim=1) / (clips or labels.shape[1])


def num_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Clips on the right side of P(fake) = 0.5, where a clip on the line counts as real.

    logits: [P, B], of 'fake'. labels: 0 or 1, [P, B]. Returns [P], of the dtype of the logits.
    """
    return ((logits > 0) == (labels > 0)).sum(dim=1, dtype=logits.dtype)
