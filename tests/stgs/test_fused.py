"""Hand-written gradients against numerical ones, and fused layers against the chains of plain ones they stand for."""

import pytest
import torch
from torch import Tensor

from stgs.config import InputError
from stgs.fused import Block, NormalisedProduct, SelfAttention, weighted_sum
from stgs.parallel import SINGLE

P, N, C = 2, 7, 3


def block(relu: bool, kept: Tensor | None) -> Block:
    return Block(1e-5, relu, kept, 1.0 if kept is None else 1.25, None, None, SINGLE)


def products(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """weight, bias, and the inputs and matrices of two blocks: one shared by the members, one of their own."""
    shapes = [(2, P, 1, C), (2, P, 1, C), (N, 4), (P, 4, C), (P, N, 5), (P, 5, C)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("relu", "dropped"), [(False, False), (True, False), (True, True)])
def test_normalised_product_equals_the_chain_and_its_gradient(relu: bool, dropped: bool) -> None:
    kept = torch.randint(0, 2, (2, P, N, C), dtype=torch.uint8) if dropped else None
    inputs = products()
    weight, bias, *pairs = inputs
    y = NormalisedProduct.apply(block(relu, kept), *inputs)
    chain = torch.stack([pairs[0] @ pairs[1], pairs[2] @ pairs[3]])
    variance, mean = torch.var_mean(chain, dim=2, keepdim=True, correction=0)
    chain = (chain - mean) / (variance + 1e-5).sqrt() * weight + bias
    chain = torch.relu(chain) if relu else chain
    chain = chain if kept is None else chain * kept * 1.25
    assert torch.allclose(y, chain, rtol=1e-9)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad((y * upstream).sum(), inputs)
    expected = torch.autograd.grad((chain * upstream).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


def test_normalised_product_gradient_is_the_numerical_one() -> None:
    assert torch.autograd.gradcheck(lambda *a: NormalisedProduct.apply(block(False, None), *a), products())


def test_dropout_without_a_relu_is_refused() -> None:
    with pytest.raises(InputError, match="relu is False"):
        block(False, torch.ones(2, P, N, C, dtype=torch.uint8))


def test_only_the_gradients_asked_for_are_computed() -> None:
    inputs = products()
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(index == 4)
    y = NormalisedProduct.apply(block(True, None), *inputs)
    y.sum().backward()
    assert [tensor.grad is not None for tensor in inputs] == [index == 4 for index in range(6)]


def test_there_is_no_silently_wrong_second_derivative() -> None:
    inputs = products()
    y = NormalisedProduct.apply(block(True, None), *inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs[3], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_weighted_sum_and_its_gradient() -> None:
    weights = torch.randn(P, 4, dtype=torch.float64, requires_grad=True)
    nodes = [torch.randn(P, 2, 3, C, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    given = [nodes[0], None, nodes[1], nodes[2]]
    expected = sum(weights[:, k].view(-1, 1, 1, 1) * node for k, node in zip((0, 2, 3), nodes, strict=True))
    assert torch.allclose(weighted_sum(weights, given), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda w, a, b, c: weighted_sum(w, [a, None, b, c]), (weights, *nodes))
    # Of one node twice, the gradients add up.
    assert torch.autograd.gradcheck(lambda w, a: weighted_sum(w[:, :2], [a, a]), (weights, nodes[0]))


def test_self_attention_and_its_gradient() -> None:
    x = torch.randn(P, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    assert torch.allclose(SelfAttention.apply(x), expected, rtol=1e-9)
    assert torch.autograd.gradcheck(SelfAttention.apply, (x,))
