"""Batch normalisation over workers is torch's own on all their values; here of one worker, whose values are all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stgs.baselines.batch_norm import SharedBatchNorm, share_batch_norms
from stgs.parallel import SINGLE


def filled(layer: nn.Module) -> nn.Module:
    """With parameters and statistics that are not those of the start."""
    generator = torch.Generator().manual_seed(1)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return layer


def passed(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What comes out, all gradients of a random loss, and the state behind it."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype))
    gradients = {f"gradient of {name}": p.grad for name, p in layer.named_parameters()}
    return {"y": y.detach(), "gradient of x": x.grad, **gradients, **layer.state_dict()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (7, 4)), (nn.BatchNorm2d, (7, 4, 3, 5)), (nn.BatchNorm3d, (2, 4, 3, 2, 5))]
)
def test_it_is_torchs_own(
    kind: type[nn.Module], shape: tuple[int, ...], momentum: float | None, training: bool
) -> None:
    x = 50.0 + torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = nn.Sequential(filled(kind(4, momentum=momentum))).double().train(training)
    shared = copy.deepcopy(plain)
    share_batch_norms(shared, SINGLE)
    assert isinstance(shared[0], SharedBatchNorm)
    for _ in range(2):
        expected, found = passed(plain, x), passed(shared, x)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.allclose(found[name], tensor, rtol=1e-9, atol=1e-9), name
            assert found[name].dtype == tensor.dtype


def test_halves_are_normalised_by_statistics_in_float32() -> None:
    x = (30.0 + torch.randn(50, 4, 9, generator=torch.Generator().manual_seed(0))).bfloat16()
    plain = nn.Sequential(filled(nn.BatchNorm1d(4)))
    shared = copy.deepcopy(plain)
    share_batch_norms(shared, SINGLE)
    expected, found = passed(plain, x), passed(shared, x)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        tolerance = 1e-5 if tensor.dtype == torch.float32 else 2e-2
        assert torch.allclose(found[name], tensor, rtol=tolerance, atol=tolerance * float(tensor.abs().max())), name


def test_sharing_keeps_parameters_and_names() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3), nn.PReLU()), nn.BatchNorm1d(2, affine=False))
    before = dict(model.named_parameters())
    names, other = list(model.state_dict()), model[1]
    share_batch_norms(model, SINGLE)
    assert isinstance(model[0][0], SharedBatchNorm)
    assert list(model.state_dict()) == names
    assert all(p is before[name] for name, p in model.named_parameters())
    assert model[1] is other
