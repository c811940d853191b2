"""Every candidate operation through the same tests: shape, gradients, the plain layer, and the shortcut x is y."""

from types import SimpleNamespace

import pytest
import torch

from stgs.config import InputError
from stgs.layers import ForwardContext
from stgs.operations import OperationShape, build_operation
from stgs.search_space import OPERATIONS
from stgs.streams import seed_tensor

SEEDS = [2, 7]
P, B, L, C = 2, 6, 3, 4


def build(name: str, dropout: float = 0.0) -> torch.nn.Module:
    operation = build_operation(name, OperationShape(SEEDS, C, L, dropout, dropout), f"cell1.step1.{name}")
    for parameter in operation.parameters():
        # Away from ones and zeros, so that no parameter can be left out unseen.
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return operation


def context(training: bool = True, update: int = 0) -> ForwardContext:
    return ForwardContext(seed_tensor(SEEDS), update, training=training, track_statistics=False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_the_plain_layer(name: str, training: bool, plain: SimpleNamespace) -> None:
    operation = build(name)
    x, y = (torch.randn(P, B, L, C, requires_grad=True) for _ in range(2))
    upstream = torch.randn(P, B, L, C)
    z = operation(x, y, context(training))
    assert z.shape == (P, B, L, C)
    inputs = [x, y, *operation.parameters()]
    gradients = (
        torch.autograd.grad((z * upstream).sum(), inputs, materialize_grads=True)
        if z.requires_grad
        else [torch.zeros_like(t) for t in inputs]
    )
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    for member in range(P):
        reference = plain.operation(name, C, L).train(training)
        pairs = reference.pairs(operation)
        assert len(pairs) == len(list(operation.parameters())) == len(list(reference.parameters()))
        for pair in pairs:
            pair.load(member)
        one, two = (t.detach()[member].transpose(1, 2).requires_grad_() for t in (x, y))
        expected = reference(one, two)
        assert torch.allclose(z[member], expected.transpose(1, 2), atol=1e-5)
        (expected * upstream[member].transpose(1, 2)).sum().backward()
        assert torch.allclose(gradients[0][member], one.grad.transpose(1, 2), atol=1e-5)
        assert torch.allclose(gradients[1][member], two.grad.transpose(1, 2), atol=1e-5)
        ours = dict(zip((id(p) for p in operation.parameters()), gradients[2:], strict=True))
        for pair in pairs:
            assert torch.allclose(pair.convert(ours[id(pair.ours)][member]), pair.plain.grad, atol=1e-4)


# In evaluation, too, as batch normalisation of a batch hides a wrong scale.
@pytest.mark.parametrize(("dropout", "training"), [(0.0, True), (0.5, True), (0.0, False)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_same_state_twice_equals_two_equal_states(name: str, dropout: float, training: bool) -> None:
    operation = build(name, dropout)
    parameters = list(operation.parameters())
    x = torch.randn(P, B, L, C, requires_grad=True)
    upstream = torch.randn(P, B, L, C)
    results = []
    for second in (x, x.clone()):
        y = operation(x, second, context(training))
        leaves = [x, *parameters]
        gradients = torch.autograd.grad((y * upstream).sum(), leaves, materialize_grads=True) if y.requires_grad else []
        results.append([y, *gradients])
    for shortcut, general in zip(*results, strict=True):
        assert torch.allclose(shortcut, general, atol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_members_do_not_touch_each_other(name: str) -> None:
    operation = build(name, 0.5)
    x = torch.randn(P, B, L, C)
    before = operation(x, x, context())[0]
    other = x.clone()
    other[1] += 5.0
    assert torch.equal(operation(other, other, context())[0], before)


@pytest.mark.parametrize("name", ["attention", "linear_glu", "concat_fc"])
def test_dropout_follows_the_update(name: str) -> None:
    operation = build(name, 0.5)
    x = torch.randn(P, B, L, C)
    assert torch.equal(operation(x, x, context(update=1)), operation(x, x, context(update=1)))
    assert not torch.equal(operation(x, x, context(update=1)), operation(x, x, context(update=2)))
    assert torch.equal(operation(x, x, context(False, update=1)), operation(x, x, context(False, update=2)))


def test_unknown_operation_is_refused() -> None:
    with pytest.raises(InputError, match="'product'"):
        build("product")
