"""Losses of a population. Shapes: P members, B clips."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

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


def balanced_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy weighted by class, the mean over clips.

    logits: [P, B], of 'fake'. labels: 0 or 1, [P, B]. weights: [P, 2]. Returns [P].
    """
    weight = torch.where(labels > 0, weights[:, 1:], weights[:, :1])
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weight, reduction="none").mean(dim=1)
