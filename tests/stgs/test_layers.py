"""Layers of a population against torch.nn, one member at a time."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from stgs.layers import (
    ConvolutionBlock,
    DroppingLayer,
    ForwardContext,
    MemberLayerNorm,
    MemberLinear,
    Reshape,
    convolution_blocks,
    reshape_features,
)
from stgs.streams import seed_tensor

SEEDS = [3, 1, 4]
P, B, L, C = 3, 5, 4, 6


def context(*, training: bool = True, track: bool = True, update: int = 0) -> ForwardContext:
    return ForwardContext(seed_tensor(SEEDS), update, training=training, track_statistics=track)


def test_linear_starts_uniform_as_torch_layers_do() -> None:
    layer = MemberLinear([0], "x", 64, 500)
    bound = 1 / 8
    for parameter in (layer.weight, layer.bias):
        x = parameter.detach()
        assert float(x.abs().max()) <= bound
        assert float(x.abs().max()) > 0.95 * bound
    # Variance of a uniform number: (2 bound)^2 / 12; its fourth central moment is 9/5 of the variance squared.
    variance = bound**2 / 3
    error = variance * (0.8 / layer.weight.numel()) ** 0.5
    assert abs(float(layer.weight.detach().var()) - variance) < 4.5 * error
    alone, pack = MemberLinear([4], "x", 64, 5), MemberLinear(SEEDS, "x", 64, 5)
    assert torch.equal(alone.weight[0], pack.weight[2])
    assert not torch.equal(alone.weight[0], MemberLinear([4], "y", 64, 5).weight[0])


def identity_block(seeds: list[int], channels: int) -> ConvolutionBlock:
    """A block whose product changes nothing but for its bias."""
    block = ConvolutionBlock(seeds, "x", channels, channels, 0.0)
    block.linear.weight.data.copy_(torch.eye(channels).expand_as(block.linear.weight))
    nn.init.normal_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    return block


@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_equals_torch_in_training_and_evaluation(track: bool) -> None:
    layer = identity_block(SEEDS, C)
    norm = layer.norm
    plain = [nn.BatchNorm1d(C, track_running_stats=True) for _ in range(P)]
    for member, reference in enumerate(plain):
        reference.weight.data.copy_(norm.weight.detach()[member, 0])
        reference.bias.data.copy_(norm.bias.detach()[member, 0])
    shift = layer.linear.bias.detach().unsqueeze(2)
    for _ in range(3):
        x = 3.0 + 2.0 * torch.randn(P, B, L, C)
        y = layer.block(x, context(track=track), relu=False)
        for member, reference in enumerate(plain):
            if not track:
                reference.reset_running_stats()
            expected = reference((x + shift)[member].transpose(1, 2)).transpose(1, 2)
            assert torch.allclose(y[member], expected, atol=1e-5)
    x = torch.randn(P, B, L, C)
    y = layer.block(x, context(training=False), relu=False)
    for member, reference in enumerate(plain):
        if not track:
            reference.reset_running_stats()
        assert torch.allclose(norm.running_mean[member, 0], reference.running_mean, atol=1e-6)
        assert torch.allclose(norm.running_variance[member, 0], reference.running_var, atol=1e-5)
        expected = reference.eval()((x + shift)[member].transpose(1, 2)).transpose(1, 2)
        assert torch.allclose(y[member], expected, atol=1e-5)


def test_blocks_together_equal_blocks_alone() -> None:
    blocks = [ConvolutionBlock(SEEDS, f"block{index}", 3 + index, C, 0.4) for index in range(3)]
    inputs = [torch.randn(B * L, 3), torch.randn(P, B * L, 4), torch.randn(B * L, 5)]
    together = convolution_blocks(blocks, inputs, context(), (B, L))
    running = [block.norm.running_variance.clone() for block in blocks]
    for index, block in enumerate(blocks):
        alone = convolution_blocks([block], [inputs[index]], context(track=False), (B, L))
        assert torch.equal(together[index], alone[0])
        assert not torch.equal(running[index], torch.ones_like(running[index]))


def test_layer_norm_runs_over_channels_and_positions() -> None:
    layer = MemberLayerNorm(P, L, C)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = 1.0 + 2.0 * torch.randn(P, B, L, C)
    for member in range(P):
        norm = nn.LayerNorm([C, L])
        norm.weight.data.copy_(layer.weight.detach()[member, 0].T)
        norm.bias.data.copy_(layer.bias.detach()[member, 0].T)
        expected = norm(x[member].transpose(1, 2)).transpose(1, 2)
        assert torch.allclose(layer(x)[member], expected, atol=1e-5)


def reshaped(layer: Reshape, feature: Tensor, how: ForwardContext) -> Tensor:
    ((indices, y),) = reshape_features([layer], [feature], how)
    assert indices == [0]
    return y[0]


@pytest.mark.parametrize("shape", [(B, L, 3), (B, 3)])
def test_reshape_equals_the_plain_layer(shape: tuple[int, ...], plain: SimpleNamespace) -> None:
    layer = Reshape(SEEDS, "visual.a", 3, C, L, 0.2)
    x = torch.randn(shape)
    y = reshaped(layer, x, context(training=False))
    # Without dropout, in training.
    layer.dropout = 0.0
    trained = reshaped(layer, x, context())
    assert y.shape == trained.shape == (P, B, L, C)
    for member in range(P):
        reference = plain.Reshape(3, C, L)
        for pair in reference.pairs(layer):
            pair.load(member)
        channels_first = x.transpose(1, 2) if x.dim() == 3 else x
        assert torch.allclose(y[member], reference.eval()(channels_first).transpose(1, 2), atol=1e-5)
        assert torch.allclose(trained[member], reference.train()(channels_first).transpose(1, 2), atol=1e-5)
        running = reference.norm.running_var
        if x.dim() == 2:
            # torch corrects for B * L values, of which only B are different.
            count = B * L
            running = 0.9 + (running - 0.9) * (count - 1) / count * B / (B - 1)
        assert torch.allclose(layer.norm.running_variance[member, 0], running, atol=1e-5)


def test_dropout_of_a_repeated_vector_is_drawn_for_every_position() -> None:
    layer = Reshape([0], "visual.a", 3, 64, L, 0.5)
    one = ForwardContext(seed_tensor([0]), 0, training=True, track_statistics=False)
    y = reshaped(layer, torch.randn(B, 3), one)
    kept = (y != 0).float()
    assert not torch.equal(kept[:, :, 0], kept[:, :, 1])


def test_dropout_is_off_in_evaluation_and_keeps_the_expectation() -> None:
    x = torch.ones(P, 200, L, C)
    assert torch.equal(context(training=False).dropout(x, DroppingLayer("a", 0.5)), x)
    assert torch.equal(context().dropout(x, DroppingLayer("a", 0.0)), x)
    y = context().dropout(x, DroppingLayer("a", 0.25))
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    # Standard error of the mean of 0 or 4/3 with chances 1/4 and 3/4.
    assert abs(float(y.mean()) - 1.0) < 4.5 * (1 / 3 / y.numel()) ** 0.5


def test_layers_drop_different_positions() -> None:
    x = torch.ones(P, B, L, C)
    one, other = (context().dropout(x, DroppingLayer(name, 0.5)) for name in "ab")
    assert not torch.equal(one, other)
    # Masks that were drawn together are those of each layer alone.
    drawn = context().with_masks({"a": 0.5, "b": 0.5, "c": 0.0}, (B, L, C))
    assert torch.equal(drawn.dropout(x, DroppingLayer("b", 0.5)), other)
    assert torch.equal(drawn.dropout(x, DroppingLayer("c", 0.0)), x)


def gradient_of(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x)[0]


def test_dropout_gradient_is_the_mask() -> None:
    x = torch.randn(P, B, L, C, requires_grad=True)
    y = context().dropout(x, DroppingLayer("a", 0.5))
    assert torch.equal(gradient_of(y, x) * x, y)
