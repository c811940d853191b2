"""Fused layers with hand-written gradients: few passes over memory, few kernels, little kept for the backward pass.

Shapes: P members, F blocks, N = clips x positions, K and C channels. Everything here computes what a chain of plain
layers computes; the tests compare with torch.nn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stgs.config import require
from stgs.parallel import Workers


@dataclass(frozen=True, slots=True)
class RunningStatistics:
    """Running means and variances of F batch normalisations, each [P, 1, C], and the share of a new batch in them."""

    means: Sequence[Tensor]
    variances: Sequence[Tensor]
    momentum: float

    def move(self, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
        """Move towards a batch's means and biased variances [F, P, 1, C] of `count` values."""
        # The running variance is the unbiased one, as in torch.nn.BatchNorm1d.
        correction = count / (count - 1).clamp_min(1) if isinstance(count, Tensor) else count / max(count - 1, 1)
        new = [*mean.unbind(), *(variance * correction).unbind()]
        torch._foreach_lerp_([*self.means, *self.variances], new, self.momentum)


def merged_statistics(mean: Tensor, variance: Tensor, count: int, workers: Workers) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of all workers' values, each like `mean`, from each worker's own.

    Chan, Golub and LeVeque (1979): deviations from the common mean, not a difference of squares, which cancels.
    """
    own = torch.stack([mean, variance, torch.full_like(mean, count)])
    means, variances, counts = workers.stack(own).unbind(dim=1)
    total = counts.sum(dim=0)
    share = counts / total
    merged = (share * means).sum(dim=0)
    return merged, (share * (variances + (means - merged).square())).sum(dim=0), total


@dataclass(frozen=True, slots=True)
class Block:
    """What a `NormalisedProduct` does beside its products.

    eps: of the normalisation. relu: whether a ReLU follows. kept: 0 where the dropout behind the ReLU drops and 1
    elsewhere, uint8 [F, P, N, C], or None; keep_scale: what the rest is multiplied by. running: what moves towards the
    batch's statistics, or None. offset: a constant [F, P, 1, C] that belongs to the products; normalisation takes it
    out again, so that it counts for the running means only. workers: whose values the statistics are taken over.
    Raises InputError for dropout without a ReLU.
    """

    eps: float
    relu: bool
    kept: Tensor | None
    keep_scale: float
    running: RunningStatistics | None
    offset: Tensor | None
    workers: Workers

    def __post_init__(self) -> None:
        # The gradient takes the mask from the zeros of the output, which has none to tell apart without a ReLU.
        require(
            self.relu or self.kept is None,
            "relu is False, but a block drops only behind a ReLU; set relu, or give a dropout of 0.",
        )


def _by_member(x: Tensor, members: int) -> Tensor:
    """[P, N, K] from that, or from [N, K] that the members share."""
    return x if x.dim() == 3 else x.expand(members, *x.shape)


class NormalisedProduct(torch.autograd.Function):
    """dropout(relu(batch_norm(x W))), the convolution with kernel 1 that every block begins with, for F blocks at once.

    forward(block, weight, bias, x_1, W_1, ..., x_F, W_F): each x [P, N, K], or [N, K] shared by the members; each W
    [P, K, C], with a K of its own; weight and bias of the normalisation [F, P, 1, C]. Returns [F, P, N, C]. The
    statistics are those of all workers' values, and the gradient of x is complete; those of the parameters are this
    worker's part, as every parameter's gradient is until the update sums them.
    """

    @staticmethod
    def forward(ctx: Any, block: Block, weight: Tensor, bias: Tensor, *pairs: Tensor) -> Tensor:
        inputs, matrices = pairs[::2], pairs[1::2]
        members, _, channels = matrices[0].shape
        centred = weight.new_empty(len(inputs), members, inputs[0].shape[-2], channels)
        for x, matrix, out in zip(inputs, matrices, centred.unbind(), strict=True):
            torch.bmm(_by_member(x, members), matrix, out=out)
        mean = centred.mean(dim=2, keepdim=True)
        centred -= mean
        y = centred * centred
        variance = y.mean(dim=2, keepdim=True)
        count: Tensor | int = y.shape[2]
        if block.workers.world > 1:
            own_mean = mean
            mean, variance, count = merged_statistics(mean, variance, y.shape[2], block.workers)
            centred += own_mean - mean
        if block.running is not None:
            block.running.move(mean if block.offset is None else mean + block.offset, variance, count)
        inverse = torch.rsqrt(variance + block.eps)
        factor, shift = weight * inverse, bias
        if block.kept is not None:
            # ReLU commutes with a positive factor.
            factor, shift = factor.mul_(block.keep_scale), bias * block.keep_scale
        torch.addcmul(shift, centred, factor, out=y)
        if block.relu:
            y.relu_()
        if block.kept is not None:
            y.mul_(block.kept.to(y.dtype))
        ctx.save_for_backward(centred, inverse, factor, y if block.relu else None, *pairs)
        ctx.block, ctx.count = block, count
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        centred, inverse, factor, y, *pairs = ctx.saved_tensors
        block: Block = ctx.block
        if y is not None:
            # y is 0 where the ReLU or the dropout cut it off.
            cut = torch.empty_like(y)
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0, grad_input=cut)
        product = gradient * centred
        sums = torch.stack([gradient.sum(dim=2, keepdim=True), product.sum(dim=2, keepdim=True).mul_(inverse)])
        whole = block.workers.sum_(sums.clone()) if block.workers.world > 1 else sums
        # factor * (gradient - mean gradient - normalised * mean of gradient * normalised), in two passes.
        mean_gradient, slope = (whole * (factor / -ctx.count)).unbind()
        torch.addcmul(mean_gradient, centred, slope.mul_(inverse), out=product).addcmul_(gradient, factor)
        _, needs_weight, needs_bias, *needs = ctx.needs_input_grad
        of_pairs: list[Tensor | None] = []
        for index, part in enumerate(product.unbind()):
            x, matrix = pairs[2 * index : 2 * index + 2]
            needs_x, needs_matrix = needs[2 * index : 2 * index + 2]
            of_x = torch.bmm(part, matrix.transpose(1, 2)) if needs_x else None
            of_pairs.append(of_x if of_x is None or x.dim() == 3 else of_x.sum(dim=0))
            of_pairs.append(torch.bmm(_by_member(x, len(part)).transpose(1, 2), part) if needs_matrix else None)
        own_bias, own_weight = sums.mul_(block.keep_scale).unbind() if needs_weight or needs_bias else (None, None)
        return None, own_weight, own_bias, *of_pairs


class WeightedSum(torch.autograd.Function):
    """The sum over k of node_k * weight_k: forward(weights [P, k], *nodes), nodes [P, B, L, C], or None for zeros."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *nodes: Tensor | None) -> Tensor:
        total: Tensor | None = None
        for node, weight in zip(nodes, weights.unbind(dim=1), strict=True):
            if node is not None:
                factor = weight.view(-1, 1, 1, 1)
                total = node * factor if total is None else total.addcmul_(node, factor)
        assert total is not None, "there is nothing to sum"
        ctx.save_for_backward(weights, *nodes)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *nodes = ctx.saved_tensors
        needs_weights, *needs_nodes = ctx.needs_input_grad
        of_nodes = [
            gradient * weight.view(-1, 1, 1, 1) if needed else None
            for weight, needed in zip(weights.unbind(dim=1), needs_nodes, strict=True)
        ]
        if not needs_weights:
            return None, *of_nodes
        nothing, product = torch.zeros_like(weights[:, 0]), torch.empty_like(gradient)
        of_weights = [
            nothing if node is None else torch.mul(gradient, node, out=product).sum(dim=(1, 2, 3)) for node in nodes
        ]
        return torch.stack(of_weights, dim=1), *of_nodes


def weighted_sum(weights: Tensor, nodes: Sequence[Tensor | None]) -> Tensor:
    """The sum over k of node_k * weight_k. weights: [P, k]. nodes: k of [P, B, L, C], at least one, or None for zeros.

    Returns [P, B, L, C].
    """
    return WeightedSum.apply(weights, *nodes)


class SelfAttention(torch.autograd.Function):
    """softmax(x x^T / sqrt(C)) x, attention of a clip's L positions to each other: forward(x [P, B, L, C])."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        clips = x.flatten(0, 1)
        weights = torch.bmm(clips, clips.transpose(1, 2)).mul_(x.shape[-1] ** -0.5).softmax(dim=-1)
        ctx.save_for_backward(clips, weights)
        return torch.bmm(weights, clips).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        clips, weights = ctx.saved_tensors
        flat = gradient.flatten(0, 1)
        product = torch.bmm(flat, clips.transpose(1, 2)).mul_(weights)
        scores = torch.addcmul(product, weights, product.sum(dim=-1, keepdim=True), value=-1.0)
        # x stands on both sides of the scores, so their gradient meets it twice.
        scores = (scores + scores.transpose(1, 2)).mul_(clips.shape[-1] ** -0.5)
        return torch.bmm(weights.transpose(1, 2), flat).baddbmm_(scores, clips).view(gradient.shape)
