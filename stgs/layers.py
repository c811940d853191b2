"""Layers of a population: the leading axis of every parameter is the member axis.

Shapes: P members, B clips, L positions, C channels; activations are [P, B, L, C], so that a member's convolution with
kernel 1 is one matrix product and LayerNorm([C, L]) runs over contiguous memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stgs.streams import dropout_mask, seed_tensor, uniform


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """What a forward pass needs beside its input.

    seeds: member seeds, int64 [P], of the dropout masks. update: number of the update, which the masks depend on.
    training: batch statistics and dropout, or running statistics and none. track_statistics: whether batch
    normalisation moves its running statistics (an architecture update does not).
    """

    seeds: Tensor
    update: int
    training: bool
    track_statistics: bool

    def dropout(self, x: Tensor, name: str, probability: float) -> Tensor:
        """Dropout of x [P, ...] from the stream (member seed, update, `name`)."""
        if not self.training or probability == 0.0:
            return x
        return x * dropout_mask(self.seeds, self.update, f"dropout/{name}", x.shape[1:], probability)


class MemberLinear(nn.Module):
    """y = x W + b for every member: a convolution with kernel 1. weight [P, in, out], bias [P, 1, out].

    Both start uniform in +-1/sqrt(in), as PyTorch's own layers do, from a stream of (member seed, name).
    """

    def __init__(self, seeds: Sequence[int], name: str, size_in: int, size_out: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(size_in)
        members = seed_tensor(seeds)

        def start(part: str, shape: tuple[int, int]) -> nn.Parameter:
            drawn = uniform(members, 0, f"initial/{name}.{part}", shape)
            return nn.Parameter(((2.0 * drawn - 1.0) * bound).float())

        self.weight = start("weight", (size_in, size_out))
        self.bias = start("bias", (1, size_out))

    def forward(self, x: Tensor) -> Tensor:
        """x: [P, ..., in], or [N, in] shared by all members. Returns [P, ..., out] or [P, N, out]."""
        members, size_in, size_out = self.weight.shape
        if x.dim() == 2:
            return torch.baddbmm(self.bias, x.expand(members, *x.shape), self.weight)
        y = torch.baddbmm(self.bias, x.reshape(members, -1, size_in), self.weight)
        return y.view(*x.shape[:-1], size_out)

    def twice(self, x: Tensor) -> Tensor:
        """The layer applied to the concatenation of x with itself, x: [P, ..., in / 2], at half the arithmetic."""
        members, size_in, size_out = self.weight.shape
        weight = self.weight.view(members, 2, size_in // 2, size_out).sum(dim=1)
        return torch.baddbmm(self.bias, x.reshape(members, -1, size_in // 2), weight).view(*x.shape[:-1], size_out)


class _BatchNormFunction(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias over axis 1 of [P, N, C], with statistics of the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(dim=1, keepdim=True)
        normalised = x - mean
        variance = (normalised * normalised).mean(dim=1, keepdim=True)
        inverse = torch.rsqrt(variance + eps)
        normalised.mul_(inverse)
        ctx.save_for_backward(normalised, inverse, weight)
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias, normalised, weight), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        normalised, inverse, weight = ctx.saved_tensors
        count = normalised.shape[1]
        # Both sums are parts of the gradient of x, so they are needed even where weight and bias are frozen.
        bias_gradient = gradient.sum(dim=1, keepdim=True)
        weight_gradient = (gradient * normalised).sum(dim=1, keepdim=True)
        x_gradient = torch.addcmul(gradient, normalised, weight_gradient, value=-1.0 / count)
        x_gradient.sub_(bias_gradient / count).mul_(weight * inverse)
        return x_gradient, weight_gradient, bias_gradient, None


class MemberBatchNorm(nn.Module):
    """BatchNorm1d of every member; weight, bias and running statistics are [P, 1, C]."""

    eps = 1e-5
    momentum = 0.1
    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, members: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, channels))
        self.bias = nn.Parameter(torch.zeros(members, 1, channels))
        self.register_buffer("running_mean", torch.zeros(members, 1, channels))
        self.register_buffer("running_variance", torch.ones(members, 1, channels))

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x: [P, ..., C], normalised over all axes between. Returns the same shape."""
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        if not context.training:
            scale = self.weight * torch.rsqrt(self.running_variance + self.eps)
            return torch.addcmul(self.bias, flat - self.running_mean, scale).view(x.shape)
        y, mean, variance = _BatchNormFunction.apply(flat, self.weight, self.bias, self.eps)
        if context.track_statistics:
            count = flat.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                # The running variance is the unbiased one, as in torch.nn.BatchNorm1d.
                self.running_variance.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        return y.view(x.shape)


class MemberLayerNorm(nn.Module):
    """LayerNorm([C, L]) of every member; weight and bias [P, 1, L, C]."""

    eps = 1e-5

    def __init__(self, members: int, length: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, length, channels))
        self.bias = nn.Parameter(torch.zeros(members, 1, length, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: [P, B, L, C]. Returns the same shape."""
        return torch.addcmul(self.bias, nn.functional.layer_norm(x, x.shape[-2:], eps=self.eps), self.weight)


class Reshape(nn.Module):
    """Reshape layer of one feature: Conv1d(C_in -> C), BatchNorm1d, ReLU, dropout; a vector is repeated L times.

    The repetition stands after the ReLU: every layer before it acts on each position alone, and mean and variance of L
    equal positions are those of one, so the pass gives the same values at 1/L of the work. Only the running variance
    differs: its correction is B / (B - 1) for the B values that there are, not that of L * B.
    """

    def __init__(
        self, seeds: Sequence[int], name: str, size_in: int, channels: int, length: int, dropout: float
    ) -> None:
        super().__init__()
        self.name = f"reshape.{name}"
        self.length = length
        self.dropout = dropout
        self.linear = MemberLinear(seeds, self.name, size_in, channels)
        self.norm = MemberBatchNorm(len(seeds), channels)

    def forward(self, feature: Tensor, context: ForwardContext) -> Tensor:
        """feature: [B, L, C_in] or [B, C_in], shared by the members. Returns [P, B, L, C]."""
        y = torch.relu(self.norm(self.linear(feature.reshape(-1, feature.shape[-1])), context))
        y = y.view(y.shape[0], feature.shape[0], -1, y.shape[-1]).expand(-1, -1, self.length, -1)
        return context.dropout(y, self.name, self.dropout)


class Tail(nn.Module):
    """End of a cell: Conv1d -> BatchNorm1d -> ReLU -> dropout, plus the cell's first input, LayerNorm([C, L])."""

    def __init__(
        self, seeds: Sequence[int], name: str, size_in: int, channels: int, length: int, dropout: float
    ) -> None:
        super().__init__()
        self.name = name
        self.dropout = dropout
        self.linear = MemberLinear(seeds, f"{name}.linear", size_in, channels)
        self.norm = MemberBatchNorm(len(seeds), channels)
        self.layer_norm = MemberLayerNorm(len(seeds), length, channels)

    def forward(self, joined: Tensor, first_input: Tensor, context: ForwardContext) -> Tensor:
        """joined: [P, B, L, C_in], first_input: [P, B, L, C]. Returns [P, B, L, C]."""
        y = torch.relu(self.norm(self.linear(joined), context))
        return self.layer_norm(context.dropout(y, self.name, self.dropout) + first_input)


class Head(nn.Module):
    """LayerNorm over the concatenated cells, ReLU, and the classifier Linear(cells * C * L -> 1)."""

    def __init__(self, seeds: Sequence[int], num_cells: int, channels: int, length: int) -> None:
        super().__init__()
        self.layer_norm = MemberLayerNorm(len(seeds), length, num_cells * channels)
        self.classifier = MemberLinear(seeds, "head.classifier", num_cells * channels * length, 1)

    def forward(self, cells: Sequence[Tensor]) -> Tensor:
        """cells: each [P, B, L, C]. Returns the logits of 'fake', [P, B]."""
        y = torch.relu(self.layer_norm(torch.cat(list(cells), dim=-1)))
        return self.classifier(y.flatten(start_dim=2)).squeeze(-1)
