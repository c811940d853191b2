"""The candidate operations of an inner step (paper, section 3; reference.md section 2).

Every operation maps two states [P, B, L, C] to one. In a supernet both are the same tensor, which is known from
identity (`x is y`) and halves the work of the convolutions over a concatenation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stgs.config import InputError
from stgs.fused import SelfAttention
from stgs.layers import ConvolutionBlock, DroppingLayer, ForwardContext, MemberLayerNorm
from stgs.search_space import OPERATIONS


@dataclass(frozen=True, slots=True)
class OperationShape:
    """What an operation is built for: member seeds, C, L, and dropout in [0, 1)."""

    seeds: Sequence[int]
    channels: int
    length: int
    dropout: float
    attention_dropout: float


class Zero(nn.Module):
    """Nothing: zeros."""

    def forward(self, x: Tensor, y: Tensor, context: ForwardContext) -> Tensor:
        """x, y: [P, B, L, C]. Returns the same shape."""
        return torch.zeros_like(x)


class Sum(nn.Module):
    """x + y."""

    def forward(self, x: Tensor, y: Tensor, context: ForwardContext) -> Tensor:
        """x, y: [P, B, L, C]. Returns the same shape."""
        return x + y


class Attention(DroppingLayer):
    """LayerNorm(dropout(softmax(x y^T / sqrt(C)) y)), attention between the L positions of a clip."""

    def __init__(self, shape: OperationShape, name: str) -> None:
        super().__init__(name, shape.attention_dropout)
        self.layer_norm = MemberLayerNorm(len(shape.seeds), shape.length, shape.channels)

    def forward(self, x: Tensor, y: Tensor, context: ForwardContext) -> Tensor:
        """x, y: [P, B, L, C]. Returns the same shape."""
        if x is y:
            attended = SelfAttention.apply(x)
        else:
            attended = torch.softmax(x @ y.transpose(-1, -2) / math.sqrt(x.shape[-1]), dim=-1) @ y
        return self.layer_norm(context.dropout(attended, self))


class _Concatenation(ConvolutionBlock):
    """Conv1d(2C -> size) of the concatenation, BatchNorm1d, an activation, dropout."""

    def __init__(self, shape: OperationShape, name: str, size_out: int) -> None:
        super().__init__(shape.seeds, name, 2 * shape.channels, size_out, shape.dropout)

    def joined(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What is multiplied by what. For a state beside itself x (W1 + W2), half the arithmetic of [x, x] [W1; W2]."""
        weight = self.linear.weight
        if x is y:
            return x, weight.unflatten(1, (2, -1)).sum(dim=1)
        return torch.cat([x, y], dim=-1), weight


class LinearGLU(_Concatenation):
    """Gated linear unit of Conv1d(2C -> 2C): first half * sigmoid(second half)."""

    def __init__(self, shape: OperationShape, name: str) -> None:
        super().__init__(shape, name, 2 * shape.channels)

    def forward(self, x: Tensor, y: Tensor, context: ForwardContext) -> Tensor:
        """x, y: [P, B, L, C]. Returns the same shape."""
        joined, matrix = self.joined(x, y)
        gated = nn.functional.glu(self.block(joined, context, matrix=matrix, relu=False, dropout=0.0), dim=-1)
        return context.dropout(gated, self)


class ConcatFC(_Concatenation):
    """ReLU of Conv1d(2C -> C)."""

    def __init__(self, shape: OperationShape, name: str) -> None:
        super().__init__(shape, name, shape.channels)

    def forward(self, x: Tensor, y: Tensor, context: ForwardContext) -> Tensor:
        """x, y: [P, B, L, C]. Returns the same shape."""
        joined, matrix = self.joined(x, y)
        return self.block(joined, context, matrix=matrix)


def build_operation(operation: str, shape: OperationShape, name: str) -> nn.Module:
    """The module of a candidate; `name` names its streams of initial weights and dropout.

    Raises:
        InputError: unknown operation.
    """
    if operation == "zero":
        return Zero()
    if operation == "sum":
        return Sum()
    parametric = {"attention": Attention, "linear_glu": LinearGLU, "concat_fc": ConcatFC}
    if operation not in parametric:
        raise InputError(f"operation is {operation!r}; choose from {', '.join(OPERATIONS)}.")
    return parametric[operation](shape, name)
