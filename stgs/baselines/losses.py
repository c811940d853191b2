"""Losses of logits and of the two senses' embeddings, in float32 even where their inputs are of half precision.

Logits have the released code's columns: the last one is that of "real". Source: MRDF (reference.md section 7).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# A shorter embedding has no direction: it is taken for zero, whose cosine with anything is 0 and has no gradient.
_SHORTEST = 1e-8
# Clips whose cosines with all others are held at a time.
MARGIN_ROWS = 1024


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers as float32, or as float64 where they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, fake: Tensor) -> Tensor:
    """Mean cross-entropy of two columns, (fake, real).

    logits: [B, 2]. fake: int64 [B], 0 or 1. Returns a scalar.
    """
    return functional.cross_entropy(at_least_float32(logits), 1 - fake)


def fake_probability(logits: Tensor) -> Tensor:
    """P(fake) of two columns, (fake, real): [B, 2] to float64 [B]."""
    return torch.softmax(logits.double(), dim=1)[:, 0]


def unit(embeddings: Tensor) -> Tensor:
    """Vectors of length 1 in their directions, [..., C]; those shorter than 1e-8 become zero, with zero gradients."""
    x = at_least_float32(embeddings)
    squares = x.square().sum(dim=-1, keepdim=True)
    # Before the root, not behind it: the slope of the root at zero would make the gradient NaN.
    return x * squares.masked_fill(squares < _SHORTEST**2, math.inf).rsqrt()


def contrast(visual: Tensor, audio: Tensor, both_real: Tensor, margin: float = 0.0) -> Tensor:
    """Mean over clips of 1 - cos(visual, audio) where both senses are real, else of max(cos - margin, 0).

    visual, audio: [B, C]. both_real: [B], true or 1 where neither sense is fake. margin: in [-1, 1]. Returns a scalar.
    """
    cosines = (unit(visual) * unit(audio)).sum(dim=-1)
    return torch.where(both_real.bool(), 1.0 - cosines, (cosines - margin).clamp_min(0.0)).mean()


def margin(embeddings: Tensor, labels: Tensor, margin: float = 0.0) -> Tensor:
    """Mean over all B^2 ordered pairs, i = j included, of 1 - cos where labels agree, else of max(cos - margin, 0).

    embeddings: [B, C]. labels: [B]. margin: in [-1, 1]. Returns a scalar. Without a gradient it takes the memory of
    1,024 x B cosines at most, so that a whole split may be given.
    """
    units = unit(embeddings)
    blocks = zip(units.split(MARGIN_ROWS), labels.split(MARGIN_ROWS), strict=True)
    means = [_pairs(rows, own, units, labels, margin) * (len(rows) / len(units)) for rows, own in blocks]
    return torch.stack(means).sum()


def _pairs(rows: Tensor, own: Tensor, units: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The mean over the pairs of some vectors, [R, C] with labels `own`, with all; a function, to free its memory."""
    with torch.autocast(units.device.type, enabled=False):
        cosines = rows @ units.T
    agree = own[:, None] == labels[None, :]
    return torch.where(agree, 1.0 - cosines, (cosines - margin).clamp_min(0.0)).mean()
