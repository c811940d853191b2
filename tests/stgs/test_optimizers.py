"""Adam of a population: each member's steps have the bits of the member alone, and follow torch's plain Adam."""

import pytest
import torch
from torch import Tensor, nn

from stgs.optimizers import adam

MEMBERS, UPDATES = 16, 30
SETTINGS = {"learning_rate": 3e-3, "betas": (0.5, 0.999), "weight_decay": 1e-3}


def run(start: Tensor, gradients: Tensor) -> Tensor:
    parameter = nn.Parameter(start.clone())
    optimizer = adam([parameter], **SETTINGS)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


# 34: the logits of 17 edges; 5: those of one step; 1: a bias. 64 and 96 are whole vectors.
@pytest.mark.parametrize("size", [1, 5, 34, 64, 96, 100])
def test_a_member_has_the_same_bits_alone(size: int) -> None:
    start, gradients = 1e-3 * torch.randn(MEMBERS, size), torch.randn(UPDATES, MEMBERS, size)
    together = run(start, gradients)
    for member in range(MEMBERS):
        alone = run(start[member : member + 1], gradients[:, member : member + 1])
        assert torch.equal(alone[0], together[member])


@pytest.mark.parametrize("size", [34, 64])
def test_steps_are_those_of_plain_adam(size: int) -> None:
    start, gradients = torch.randn(3, size), torch.randn(UPDATES, 3, size)
    plain = nn.Parameter(start.double())
    optimizer = torch.optim.Adam([plain], lr=3e-3, betas=(0.5, 0.999), weight_decay=1e-3, foreach=False)
    for gradient in gradients:
        plain.grad = gradient.double()
        optimizer.step()
    # float32 against float64: each of 30 steps of at most about 3e-3 is rounded to 6e-8 of values near 1.
    assert torch.allclose(run(start, gradients).double(), plain.detach(), atol=5e-6)


def trained(device: str, updates: int = 0) -> tuple[list[nn.Parameter], torch.optim.Adam]:
    """Parameters of odd and of whole vectors, by turns, and their optimiser after some updates."""
    generator = torch.Generator().manual_seed(3)
    parameters = [nn.Parameter(torch.randn(2, size, generator=generator).to(device)) for size in (5, 64, 34, 96)]
    optimizer = adam(parameters, **SETTINGS)
    step(parameters, optimizer, updates)
    return parameters, optimizer


def step(parameters: list[nn.Parameter], optimizer: torch.optim.Adam, updates: int) -> None:
    for number in range(updates):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number)).to(p.device)
        optimizer.step()


def kernels(optimizer: torch.optim.Adam) -> list[tuple[bool, bool]]:
    return [(group["fused"], group["foreach"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_state_loads_on_another_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    state = trained("cpu", updates=3)[1].state_dict()
    parameters, optimizer = trained(device)
    before = kernels(optimizer)
    assert before != kernels(trained("cpu")[1])
    optimizer.load_state_dict(state)
    assert kernels(optimizer) == before
    for p in parameters:
        assert optimizer.state[p]["exp_avg"].shape == p.shape
        assert optimizer.state[p]["exp_avg"].device == p.device
    step(parameters, optimizer, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_comes_back_from_an_accelerator() -> None:
    there, moved = trained("cuda", updates=3)
    here, optimizer = trained("cpu")
    before = kernels(optimizer)
    for p, other in zip(here, there, strict=True):
        p.data.copy_(other.data)
    optimizer.load_state_dict(moved.state_dict())
    assert kernels(optimizer) == before
    step(here, optimizer, 2)
    step(there, moved, 2)
    for p, other in zip(here, there, strict=True):
        assert torch.allclose(p, other.cpu(), atol=1e-5)
