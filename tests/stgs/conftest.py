"""What several tests of stgs share: planted features, and the fusion network written plainly with torch.nn.

The plain layers follow the description of the released search space: clips first, channels second, positions last, one
network, no member axis. `Pair` ties one of their parameters to its counterpart in stgs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stgs import layers, operations
from tests.planted_clips import planted_clips


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The environment says one thread, too, but torch may have been imported before it was read."""
    torch.set_num_threads(1)


@dataclass
class Pair:
    """A plain parameter and its counterpart with a member axis; `convert` maps a member's values to the plain form."""

    plain: Tensor
    ours: Tensor
    convert: Callable[[Tensor], Tensor]

    def load(self, member: int) -> None:
        """Give the plain parameter the member's values."""
        self.plain.data.copy_(self.convert(self.ours.detach()[member]))

    def gradient(self, member: int) -> Tensor:
        """The member's gradient in the plain form; 0 where stgs computes none: a bias that normalisation takes out."""
        return torch.zeros_like(self.plain) if self.ours.grad is None else self.convert(self.ours.grad[member])


def pair_convolution(plain: nn.Conv1d, ours: layers.MemberLinear) -> list[Pair]:
    return [
        Pair(plain.weight, ours.weight, lambda w: w.T.unsqueeze(-1)),
        Pair(plain.bias, ours.bias, lambda b: b[0]),
    ]


def pair_batch_norm(plain: nn.BatchNorm1d, ours: layers.MemberBatchNorm) -> list[Pair]:
    return [Pair(plain.weight, ours.weight, lambda w: w[0]), Pair(plain.bias, ours.bias, lambda b: b[0])]


def pair_layer_norm(plain: nn.LayerNorm, ours: layers.MemberLayerNorm) -> list[Pair]:
    return [Pair(plain.weight, ours.weight, lambda w: w[0].T), Pair(plain.bias, ours.bias, lambda b: b[0].T)]


class PlainReshape(nn.Module):
    """Conv1d(C_in -> C), BatchNorm1d, ReLU; a vector is repeated L times first."""

    def __init__(self, size: int, channels: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.convolution = nn.Conv1d(size, channels, 1)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.dim() == 3 else x.unsqueeze(-1).repeat(1, 1, self.length)
        return torch.relu(self.norm(self.convolution(x)))

    def pairs(self, ours: layers.Reshape) -> list[Pair]:
        return [*pair_convolution(self.convolution, ours.linear), *pair_batch_norm(self.norm, ours.norm)]


class PlainSum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def pairs(self, ours: operations.Sum) -> list[Pair]:
        return []


class PlainZero(PlainSum):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.0 * (x + y)


class PlainAttention(nn.Module):
    """softmax(x y^T / sqrt(C)) y between positions, LayerNorm([C, L])."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([channels, length])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        queries, keys = x.transpose(1, 2), y.transpose(1, 2)
        scores = torch.einsum("bic,bjc->bij", queries, keys) / math.sqrt(x.shape[1])
        return self.norm(torch.einsum("bij,bjc->bci", functional.softmax(scores, dim=2), keys))

    def pairs(self, ours: operations.Attention) -> list[Pair]:
        return pair_layer_norm(self.norm, ours.layer_norm)


class PlainConcatenation(nn.Module):
    """GLU of Conv1d(2C -> 2C) and BatchNorm1d, or ReLU of Conv1d(2C -> C) and BatchNorm1d."""

    def __init__(self, channels: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        size = 2 * channels if gated else channels
        self.convolution = nn.Conv1d(2 * channels, size, 1)
        self.norm = nn.BatchNorm1d(size)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.norm(self.convolution(torch.cat([x, y], dim=1)))
        return functional.glu(z, dim=1) if self.gated else functional.relu(z)

    def pairs(self, ours: operations._Concatenation) -> list[Pair]:
        return [*pair_convolution(self.convolution, ours.linear), *pair_batch_norm(self.norm, ours.norm)]


def plain_operation(name: str, channels: int, length: int) -> nn.Module:
    return {
        "zero": PlainZero,
        "sum": PlainSum,
        "attention": lambda: PlainAttention(channels, length),
        "linear_glu": lambda: PlainConcatenation(channels, gated=True),
        "concat_fc": lambda: PlainConcatenation(channels, gated=False),
    }[name]()


class PlainTail(nn.Module):
    """Conv1d -> BatchNorm1d -> ReLU, plus the first input, LayerNorm([C, L])."""

    def __init__(self, size: int, channels: int, length: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(size, channels, 1)
        self.batch_norm = nn.BatchNorm1d(channels)
        self.layer_norm = nn.LayerNorm([channels, length])

    def forward(self, joined: Tensor, first: Tensor) -> Tensor:
        return self.layer_norm(torch.relu(self.batch_norm(self.convolution(joined))) + first)

    def pairs(self, ours: layers.Tail) -> list[Pair]:
        return [
            *pair_convolution(self.convolution, ours.linear),
            *pair_batch_norm(self.batch_norm, ours.norm),
            *pair_layer_norm(self.layer_norm, ours.layer_norm),
        ]


class PlainHead(nn.Module):
    """LayerNorm([cells * C, L]), ReLU, flatten, Linear(cells * C * L -> 1)."""

    def __init__(self, cells: int, channels: int, length: int) -> None:
        super().__init__()
        self.shape = (cells * channels, length)
        self.norm = nn.LayerNorm(self.shape)
        self.classifier = nn.Linear(cells * channels * length, 1)

    def forward(self, cells: list[Tensor]) -> Tensor:
        return self.classifier(torch.relu(self.norm(torch.cat(cells, dim=1))).flatten(1))[:, 0]

    def pairs(self, ours: layers.Head) -> list[Pair]:
        channels, length = self.shape
        return [
            *pair_layer_norm(self.norm, ours.layer_norm),
            # stgs flattens positions first, channels second.
            Pair(
                self.classifier.weight,
                ours.classifier.weight,
                lambda w: w.view(length, channels).T.reshape(1, -1),
            ),
            Pair(self.classifier.bias, ours.classifier.bias, lambda b: b[0]),
        ]


@pytest.fixture(scope="session")
def plain() -> SimpleNamespace:
    """The plain layers."""
    return SimpleNamespace(
        Pair=Pair,
        Reshape=PlainReshape,
        operation=plain_operation,
        Tail=PlainTail,
        Head=PlainHead,
    )


@pytest.fixture(scope="session")
def planted() -> Callable[..., tuple[dict[str, np.ndarray], np.ndarray]]:
    """`planted_clips`."""
    return planted_clips
