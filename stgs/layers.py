"""Layers of a population: the leading axis of every parameter is the member axis.

Shapes: P members, B clips, L positions, C channels; activations are [P, B, L, C], so that a member's convolution with
kernel 1 is one matrix product and LayerNorm([C, L]) runs over contiguous memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from stgs.fused import Block, NormalisedProduct, RunningStatistics
from stgs.parallel import SINGLE, Workers
from stgs.streams import dropout_masks, keep_scale, seed_tensor, uniform


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """torch.stack, but without a copy of a single tensor."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """What a forward pass needs beside its input.

    seeds: member seeds, int64 [P], of the dropout masks. update: number of the update, which the masks depend on.
    training: batch statistics and dropout, or running statistics and none. track_statistics: whether batch
    normalisation moves its running statistics (an architecture update does not). workers: who shares the batch; in
    training its statistics are those of all workers' clips, and masks those that one worker would draw for all clips.
    masks: those that have been drawn already, by name of the layer. dropping: whether dropout is on in training.
    momentum: share of a batch in the running statistics that it moves, None for the layers' own.
    """

    seeds: Tensor
    update: int
    training: bool
    track_statistics: bool
    workers: Workers = SINGLE
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    dropping: bool = True
    momentum: float | None = None

    def with_masks(self, probabilities: Mapping[str, float], shape: Sequence[int]) -> ForwardContext:
        """This context with the masks of all dropout layers (name -> probability) of `shape` drawn in one go."""
        drawing = self.training and self.dropping and not self.masks
        return replace(self, masks=self._draw(probabilities, shape)) if drawing else self

    def kept_by(self, layers: Sequence[DroppingLayer], shape: Sequence[int], probability: float) -> Tensor | None:
        """Which positions of `shape` the dropout of each of F layers keeps: uint8 [F, P, *shape], None if it is off."""
        if not self.training or not self.dropping or probability == 0.0:
            return None
        missing = {layer.name: probability for layer in layers if layer.name not in self.masks}
        masks = {**self.masks, **self._draw(missing, shape)} if missing else self.masks
        return stacked([masks[layer.name] for layer in layers])

    def dropout(self, x: Tensor, layer: DroppingLayer) -> Tensor:
        """The dropout of a layer on x [P, B, ...]."""
        kept = self.kept_by([layer], x.shape[1:], layer.dropout)
        return x if kept is None else x * kept[0].to(x.dtype).mul_(keep_scale(layer.dropout))

    def _draw(self, probabilities: Mapping[str, float], shape: Sequence[int]) -> dict[str, Tensor]:
        workers = self.workers
        streams = {f"dropout/{name}": p for name, p in probabilities.items() if p > 0.0}
        masks = dropout_masks(self.seeds, self.update, streams, shape, first=workers.rank, stride=workers.world)
        return {name.removeprefix("dropout/"): mask for name, mask in masks.items()}


def dropout_probabilities(network: nn.Module) -> dict[str, float]:
    """Name of every layer with dropout -> its probability. All their masks are of one shape, [B, L, C]."""
    return {layer.name: layer.dropout for layer in network.modules() if isinstance(layer, DroppingLayer)}


class DroppingLayer(nn.Module):
    """A layer that ends with dropout, from the stream `name`; `dropout` is its probability in [0, 1)."""

    def __init__(self, name: str, dropout: float) -> None:
        super().__init__()
        self.name = name
        self.dropout = dropout


class MemberLinear(nn.Module):
    """W and b of every member's x W + b, a convolution with kernel 1: weight [P, in, out], bias [P, 1, out].

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


class MemberBatchNorm(nn.Module):
    """Parameters and running statistics of every member's BatchNorm1d, each [P, 1, C]."""

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


class ConvolutionBlock(DroppingLayer):
    """Conv1d with kernel 1, BatchNorm1d, ReLU and dropout of every member.

    The convolution's bias is a parameter that training leaves alone, without a gradient: batch normalisation takes it
    out again. It counts where the running statistics are used.
    """

    def __init__(
        self, seeds: Sequence[int], name: str, size_in: int, size_out: int, dropout: float, *, linear: str = ""
    ) -> None:
        super().__init__(name, dropout)
        self.linear = MemberLinear(seeds, linear or name, size_in, size_out)
        self.norm = MemberBatchNorm(len(seeds), size_out)

    def block(
        self,
        x: Tensor,
        context: ForwardContext,
        *,
        matrix: Tensor | None = None,
        relu: bool = True,
        dropout: float | None = None,
    ) -> Tensor:
        """x: [P, B, L, K]. `matrix` replaces the convolution's weight, `dropout` its probability.

        Returns [P, B, L, C].
        """
        y = convolution_blocks([self], [x.flatten(1, 2)], context, x.shape[1:3], [matrix], relu=relu, dropout=dropout)
        return y.squeeze(0)


def convolution_blocks(
    blocks: Sequence[ConvolutionBlock],
    inputs: Sequence[Tensor],
    context: ForwardContext,
    rows: Sequence[int],
    matrices: Sequence[Tensor | None] = (),
    *,
    relu: bool = True,
    dropout: float | None = None,
) -> Tensor:
    """F blocks of one output size, each on its own input, in one go.

    Args:
        inputs: each [P, N, K], or [N, K] where the members share it; N is the product of `rows`.
        matrices: what replaces the convolutions' weights, where it is not None.
        relu: whether a ReLU follows the normalisation.
        dropout: probability, instead of the blocks' own, which is that of all of them.

    Returns:
        [F, P, *rows, C].
    """
    weights = [
        block.linear.weight if matrix is None else matrix
        for block, matrix in zip(blocks, matrices or [None] * len(blocks), strict=True)
    ]
    shape = (len(blocks), len(weights[0]), *rows, weights[0].shape[-1])
    if not context.training:
        y = _evaluated(blocks, inputs, weights).view(shape)
        return torch.relu(y) if relu else y
    norms = [block.norm for block in blocks]
    dropout = blocks[0].dropout if dropout is None else dropout
    masks = context.kept_by(blocks, shape[2:], dropout)
    running = offset = None
    if context.track_statistics:
        offset = stacked([block.linear.bias.detach() for block in blocks])
        momentum = MemberBatchNorm.momentum if context.momentum is None else context.momentum
        running = RunningStatistics(
            [norm.running_mean for norm in norms], [norm.running_variance for norm in norms], momentum
        )
    block = Block(
        MemberBatchNorm.eps,
        relu,
        kept=None if masks is None else masks.flatten(2, -2),
        keep_scale=keep_scale(dropout),
        running=running,
        offset=offset,
        workers=context.workers,
    )
    pairs = [tensor for pair in zip(inputs, weights, strict=True) for tensor in pair]
    scale, shift = stacked([norm.weight for norm in norms]), stacked([norm.bias for norm in norms])
    return NormalisedProduct.apply(block, scale, shift, *pairs).view(shape)


def _evaluated(blocks: Sequence[ConvolutionBlock], inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Convolution and normalisation with running statistics, [F, P, N, C]."""
    outputs = []
    for block, x, weight in zip(blocks, inputs, weights, strict=True):
        norm = block.norm
        scale = norm.weight * torch.rsqrt(norm.running_variance + norm.eps)
        shift = torch.addcmul(norm.bias, block.linear.bias - norm.running_mean, scale)
        outputs.append(torch.addcmul(shift, torch.matmul(x, weight), scale))
    return stacked(outputs)


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


class Reshape(ConvolutionBlock):
    """Reshape layer of one feature: Conv1d(C_in -> C), BatchNorm1d, ReLU, dropout; a vector is repeated L times.

    `reshape_features` runs it.
    """

    def __init__(
        self, seeds: Sequence[int], name: str, size_in: int, channels: int, length: int, dropout: float
    ) -> None:
        super().__init__(seeds, f"reshape.{name}", size_in, channels, dropout)
        self.length = length


# How many features are reshaped in one go on a CPU: with more, a pack of 16 outgrows the caches, and its tensors the
# heap, whose larger blocks come from fresh pages. An accelerator takes all in one go. The number depends neither on
# the pack, whose members would then see other roundings than alone, nor on a worker's share of the batch.
_FEATURES_AT_ONCE = 4


def reshape_features(
    layers: Sequence[Reshape], features: Sequence[Tensor], context: ForwardContext
) -> list[tuple[list[int], Tensor]]:
    """The reshape layers of features [B, L, C_f] or [B, C_f], which the members share.

    Returns:
        Groups of features: their F indices, and what became of them, [F, P, B, L, C].
    """
    at_once = _FEATURES_AT_ONCE if features[0].device.type == "cpu" else len(layers)
    groups = []
    for dim in (3, 2):
        alike = [index for index, feature in enumerate(features) if feature.dim() == dim]
        for start in range(0, len(alike), at_once):
            part = alike[start : start + at_once]
            groups.append((part, _reshape([layers[i] for i in part], [features[i] for i in part], context)))
    return groups


def _reshape(layers: Sequence[Reshape], features: Sequence[Tensor], context: ForwardContext) -> Tensor:
    """Features of one shape but for their channels, [F, P, B, L, C].

    A vector is repeated behind the ReLU: every layer before it acts on each position alone, and mean and variance of L
    equal positions are those of one, so the pass gives the same values at 1/L of the work. Only the running variance
    differs: its correction is B / (B - 1) for the B values that there are, not that of L * B.
    """
    rows, length = features[0].shape[:-1], layers[0].length
    inputs = [feature.flatten(0, -2) for feature in features]
    if len(rows) == 2:
        return convolution_blocks(layers, inputs, context, rows)
    y = convolution_blocks(layers, inputs, context, rows, dropout=0.0).unsqueeze(3)
    kept = context.kept_by(layers, (*rows, length, y.shape[-1]), layers[0].dropout)
    if kept is None:
        return y.expand(-1, -1, -1, length, -1)
    return y * kept.to(y.dtype).mul_(keep_scale(layers[0].dropout))


class Tail(ConvolutionBlock):
    """End of a cell: Conv1d -> BatchNorm1d -> ReLU -> dropout, plus the cell's first input, LayerNorm([C, L])."""

    def __init__(
        self, seeds: Sequence[int], name: str, size_in: int, channels: int, length: int, dropout: float
    ) -> None:
        super().__init__(seeds, name, size_in, channels, dropout, linear=f"{name}.linear")
        self.layer_norm = MemberLayerNorm(len(seeds), length, channels)

    def forward(self, joined: Tensor, first_input: Tensor, context: ForwardContext) -> Tensor:
        """joined: [P, B, L, C_in], first_input: [P, B, L, C]. Returns [P, B, L, C]."""
        return self.layer_norm(self.block(joined, context) + first_input)


class Head(nn.Module):
    """LayerNorm over the concatenated cells, ReLU, and the classifier Linear(cells * C * L -> 1)."""

    def __init__(self, seeds: Sequence[int], num_cells: int, channels: int, length: int) -> None:
        super().__init__()
        self.layer_norm = MemberLayerNorm(len(seeds), length, num_cells * channels)
        self.classifier = MemberLinear(seeds, "head.classifier", num_cells * channels * length, 1)

    def forward(self, cells: Sequence[Tensor]) -> Tensor:
        """cells: each [P, B, L, C]. Returns the logits of 'fake', [P, B]."""
        y = torch.relu(self.layer_norm(torch.cat(list(cells), dim=-1))).flatten(start_dim=2)
        # A sum, not a matrix product: that of width 1 is the only one here whose bits depend on the number of members.
        return (y * self.classifier.weight.transpose(1, 2)).sum(dim=-1) + self.classifier.bias.squeeze(-1)
