"""Layers of a population against torch.nn, one member at a time."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from stgs.layers import (
    ForwardContext,
    MemberBatchNorm,
    MemberLayerNorm,
    MemberLinear,
    Reshape,
    _BatchNormFunction,
)
from stgs.streams import seed_tensor

SEEDS = [3, 1, 4]
P, B, L, C = 3, 5, 4, 6


def context(*, training: bool = True, track: bool = True, update: int = 0) -> ForwardContext:
    return ForwardContext(seed_tensor(SEEDS), update, training=training, track_statistics=track)


def test_linear_is_a_convolution_with_kernel_1() -> None:
    layer = MemberLinear(SEEDS, "x", C, 2)
    x = torch.randn(P, B, L, C)
    for member in range(P):
        convolution = nn.Conv1d(C, 2, 1)
        convolution.weight.data.copy_(layer.weight.detach()[member].T.unsqueeze(-1))
        convolution.bias.data.copy_(layer.bias.detach()[member, 0])
        expected = convolution(x[member].transpose(1, 2)).transpose(1, 2)
        assert torch.allclose(layer(x)[member], expected, atol=1e-6)
    shared = torch.randn(7, C)
    assert torch.allclose(layer(shared), layer(shared.expand(P, 7, C)), atol=1e-6)


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


def test_linear_twice_is_the_layer_on_a_tensor_beside_itself() -> None:
    layer = MemberLinear(SEEDS, "x", 2 * C, 5).double()
    x = torch.randn(P, B, L, C, dtype=torch.float64)
    assert torch.allclose(layer.twice(x), layer(torch.cat([x, x], dim=-1)), rtol=1e-12)


def test_batch_norm_gradient_is_the_numerical_one() -> None:
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: _BatchNormFunction.apply(*a, 1e-5)[0], (x, weight, bias))


def test_batch_norm_has_no_silently_wrong_second_derivative() -> None:
    x = torch.randn(1, 7, 3, requires_grad=True)
    layer = MemberBatchNorm(1, 3)
    (gradient,) = torch.autograd.grad(layer(x, context()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_equals_torch_in_training_and_evaluation(track: bool) -> None:
    layer = MemberBatchNorm(P, C)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    plain = [nn.BatchNorm1d(C, track_running_stats=True) for _ in range(P)]
    for member, norm in enumerate(plain):
        norm.weight.data.copy_(layer.weight.detach()[member, 0])
        norm.bias.data.copy_(layer.bias.detach()[member, 0])
    for _ in range(3):
        x = 3.0 + 2.0 * torch.randn(P, B, L, C)
        y = layer(x, context(track=track))
        for member, norm in enumerate(plain):
            if not track:
                norm.reset_running_stats()
            expected = norm(x[member].transpose(1, 2)).transpose(1, 2)
            assert torch.allclose(y[member], expected, atol=1e-5)
    x = torch.randn(P, B, L, C)
    y = layer(x, context(training=False))
    for member, norm in enumerate(plain):
        if not track:
            norm.reset_running_stats()
        assert torch.allclose(layer.running_mean[member, 0], norm.running_mean, atol=1e-6)
        assert torch.allclose(layer.running_variance[member, 0], norm.running_var, atol=1e-5)
        expected = norm.eval()(x[member].transpose(1, 2)).transpose(1, 2)
        assert torch.allclose(y[member], expected, atol=1e-5)


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


@pytest.mark.parametrize("shape", [(B, L, 3), (B, 3)])
def test_reshape_equals_the_plain_layer(shape: tuple[int, ...], plain: SimpleNamespace) -> None:
    layer = Reshape(SEEDS, "visual.a", 3, C, L, 0.2)
    x = torch.randn(shape)
    y = layer(x, ForwardContext(seed_tensor(SEEDS), 0, training=False, track_statistics=False))
    # Without dropout, in training.
    layer.dropout = 0.0
    trained = layer(x, context())
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
    y = layer(torch.randn(B, 3), ForwardContext(seed_tensor([0]), 0, training=True, track_statistics=False))
    kept = (y != 0).float()
    assert not torch.equal(kept[:, :, 0], kept[:, :, 1])


def test_dropout_is_off_in_evaluation_and_keeps_the_expectation() -> None:
    x = torch.ones(P, 200, L, C)
    assert torch.equal(context(training=False).dropout(x, "a", 0.5), x)
    assert torch.equal(context().dropout(x, "a", 0.0), x)
    y = context().dropout(x, "a", 0.25)
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    # Standard error of the mean of 0 or 4/3 with chances 1/4 and 3/4.
    assert abs(float(y.mean()) - 1.0) < 4.5 * (1 / 3 / y.numel()) ** 0.5


def test_layers_drop_different_positions() -> None:
    x = torch.ones(P, B, L, C)
    assert not torch.equal(context().dropout(x, "a", 0.5), context().dropout(x, "b", 0.5))


def gradient_of(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x)[0]


def test_dropout_gradient_is_the_mask() -> None:
    x = torch.randn(P, B, L, C, requires_grad=True)
    y = context().dropout(x, "a", 0.5)
    assert torch.equal(gradient_of(y, x) * x, y)
