"""Batch normalisation over the values of all workers, in the place of torch's own.

`torch.nn.SyncBatchNorm` does the same on GPUs alone; this one runs everywhere, and tells a lost worker. Shapes: B clips
or frames, C channels, ... any further axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from stgs.fused import merged_statistics
from stgs.parallel import SINGLE, Workers


def _wide(x: Tensor) -> Tensor:
    """What statistics are taken of: values of half precision as float32, as torch does it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Normalised(torch.autograd.Function):
    """forward(x [B, C, ...], weight [C], bias [C], mean [C], variance [C], count [C], eps, workers).

    The statistics are those of all workers' values and depend on x; the gradient of x is complete, those of weight and
    bias are this worker's part, as every parameter's gradient is until the update sums them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        workers: Workers,
    ) -> Tensor:
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.workers = workers
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        rows = (1, -1, *[1] * (x.dim() - 2))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        gradient, normalised = _wide(gradient), (_wide(x) - mean.view(rows)).mul_(inverse.view(rows))
        own = torch.stack([gradient.sum(axes), (gradient * normalised).sum(axes)])
        mean_gradient, slope = (ctx.workers.sum_(own.clone()) / count).unbind()
        of_x = (gradient - mean_gradient.view(rows)).sub_(normalised.mul_(slope.view(rows)))
        of_x.mul_((weight * inverse).view(rows))
        of_bias, of_weight = own.unbind()
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None, None


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation whose statistics in training are those of all workers' values, one as much as another.

    Parameters, running statistics and their names are those of the torch layer that it replaces.
    """

    workers: Workers = SINGLE

    def _check_input_dim(self, input: Tensor) -> None:
        """Every number of axes is welcome."""

    def forward(self, input: Tensor) -> Tensor:
        """input: [B, C, ...]. Returns the same shape and type; all workers call this, and its backward, alike."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None, "a normalisation without running statistics is not shared"
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        axes = [axis for axis in range(input.dim()) if axis != 1]
        variance, mean = torch.var_mean(_wide(input.detach()), axes, correction=0)
        mean, variance, count = merged_statistics(mean, variance, input.numel() // input.shape[1], self.workers)
        self.num_batches_tracked += 1
        momentum = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1).clamp_min(1)), momentum)
        return _Normalised.apply(input, self.weight, self.bias, mean, variance, count, self.eps, self.workers)


def share_batch_norms(module: nn.Module, workers: Workers) -> None:
    """Put a `SharedBatchNorm` in the place of every batch normalisation inside `module`, with its parameters.

    One that keeps no running statistics or has no scale and shift is left as it is.
    """
    for name, child in module.named_children():
        if not (isinstance(child, _BatchNorm) and child.affine and child.track_running_stats):
            share_batch_norms(child, workers)
            continue
        shared = SharedBatchNorm(child.num_features, child.eps, child.momentum)
        shared.workers = workers
        for own in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked", "training"):
            setattr(shared, own, getattr(child, own))
        setattr(module, name, shared)
