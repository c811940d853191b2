"""One weight update and one architecture update: what moves, what stands still, and by how much."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stgs import bilevel
from stgs.bilevel import Batch, architecture_update, clip_gradients, weight_update
from stgs.layers import ForwardContext
from stgs.search_space import search_space
from stgs.supernet import Member, Supernet

FEATURES = {"visual.a": 5, "visual.pooled": 7, "audio.a": 3}
SPACE = search_space("default", FEATURES, channels=4, length=3)
MEMBERS = [Member(10.0, 15, 3), Member(1.0, 5, 8)]
P, B = len(MEMBERS), 12


@pytest.fixture
def net() -> Supernet:
    return Supernet(SPACE, MEMBERS, initial_logit_scale=0.5)


def batch(seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    features = {
        name: torch.tensor(random.standard_normal((B, size) if "pooled" in name else (B, 3, size))).float()
        for name, size in FEATURES.items()
    }
    labels = torch.tensor(random.integers(0, 2, (P, B)), dtype=torch.int8)
    return Batch(features, labels, torch.tensor([[0.8, 1.2], [1.5, 0.5]]))


def snapshot(net: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def moved(net: Supernet, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


def plain_losses(net: Supernet, data: Batch, update: int) -> Tensor:
    """The losses of an update, written out."""
    context = ForwardContext(net.seeds, update, training=True, track_statistics=False)
    logits = net(data.features, net.candidate_weights(update), context)
    probability = torch.sigmoid(logits.double())
    right = torch.where(data.labels > 0, probability, 1 - probability)
    weight = torch.where(data.labels > 0, data.class_weights[:, 1:], data.class_weights[:, :1])
    return -(weight * right.log()).mean(dim=1)


def test_weight_update_moves_weights_and_statistics_only(net: Supernet) -> None:
    before, data = snapshot(net), batch()
    expected = plain_losses(net, data, 5).detach()
    optimizer = torch.optim.Adam(net.weight_parameters().values(), lr=1e-3)
    losses = weight_update(net, optimizer, data, 5)
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert not losses.requires_grad
    assert all(parameter.grad is None for parameter in net.architecture_parameters().values())
    changed = moved(net, before)
    assert not {name for name in changed if name.startswith("architecture.")}
    # Everything else moves, every running statistic too.
    assert {name for name in before if not name.startswith("architecture.")} == changed


def test_weight_update_follows_the_gradient_of_each_member(net: Supernet) -> None:
    data = batch()
    parameters = net.weight_parameters()
    gradients = torch.autograd.grad(plain_losses(net, data, 2).sum(), list(parameters.values()))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    weight_update(net, torch.optim.SGD(parameters.values(), lr=0.5), data, 2)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert torch.allclose(parameter, before[name] - 0.5 * gradient, atol=1e-5), name


def test_weight_updates_lower_the_loss(net: Supernet) -> None:
    data = batch()
    optimizer = torch.optim.Adam(net.weight_parameters().values(), lr=1e-2)
    losses = [weight_update(net, optimizer, data, update) for update in range(40)]
    assert bool((torch.stack(losses[-5:]).mean(dim=0) < 0.5 * torch.stack(losses[:5]).mean(dim=0)).all())


def test_clipping_bounds_each_member_alone(net: Supernet) -> None:
    data = batch()
    parameters = net.weight_parameters()
    gradients = torch.autograd.grad(plain_losses(net, data, 2).sum(), list(parameters.values()))
    norms = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    # Between the norms of the two members: one is scaled, the other is not.
    bound = float(norms.mean())
    assert float(norms.min()) < bound < float(norms.max())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    weight_update(net, torch.optim.SGD(parameters.values(), lr=1.0), data, 2, clip_norm=bound)
    for member in range(P):
        steps = torch.cat([(before[name] - p.detach())[member].flatten() for name, p in parameters.items()])
        whole = torch.cat([g[member].flatten() for g in gradients])
        assert float(steps.norm()) == pytest.approx(min(bound, float(norms[member])), rel=1e-4)
        assert torch.allclose(steps, whole * min(1.0, bound / float(norms[member])), atol=1e-5)


def test_clipping_of_zero_gradients_is_harmless() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.zeros(2, 3)
    clip_gradients([parameter], 1.0)
    assert parameter.grad.tolist() == [[0.0] * 3] * 2


def test_architecture_update_moves_the_architecture_only(net: Supernet) -> None:
    before, data = snapshot(net), batch()
    parameters = net.architecture_parameters()
    expected = plain_losses(net, data, 5)
    gradients = torch.autograd.grad(expected.sum(), list(parameters.values()))
    computed = []
    for name, parameter in net.weight_parameters().items():
        parameter.register_hook(lambda _, name=name: computed.append(name))
    recorded = []
    for layer in net.reshape:
        layer.register_forward_hook(lambda *call: recorded.append(call[-1].requires_grad))
    optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
    losses, norms = architecture_update(net, optimizer, data, 5)
    # Nothing before the first candidate is recorded for a backward pass.
    assert recorded == [False] * len(FEATURES)
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert moved(net, before) == {f"architecture.{name}" for name in ("alpha", "beta", "gamma")}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert torch.allclose(parameter, before[f"architecture.{name}"] - 0.5 * gradient, atol=1e-6)
        for member in range(P):
            assert float(norms[name][member]) == pytest.approx(float(gradient[member].norm()), rel=1e-4)
        assert parameter.grad is None
    assert computed == []
    assert all(p.grad is None and p.requires_grad for p in net.weight_parameters().values())
    # The hooks do work: a weight update calls them.
    weight_update(net, torch.optim.SGD(net.weight_parameters().values(), lr=0.0), data, 6)
    assert computed


def test_architecture_update_uses_batch_statistics(net: Supernet) -> None:
    data = batch()
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.fill_(float("nan"))
    losses, _ = architecture_update(net, torch.optim.SGD(net.architecture_parameters().values(), lr=0.1), data, 0)
    assert bool(torch.isfinite(losses).all())


def test_weights_can_be_trained_again_after_a_failed_architecture_update(net: Supernet) -> None:
    data = batch()
    optimizer = torch.optim.SGD(net.architecture_parameters().values(), lr=0.1)
    missing = Batch({"visual.a": data.features["visual.a"]}, data.labels, data.class_weights)
    with pytest.raises(KeyError):
        architecture_update(net, optimizer, missing, 0)
    assert all(p.requires_grad for p in net.parameters())


def test_both_updates_draw_fresh_samples_every_time(net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = Supernet.candidate_weights
    monkeypatch.setattr(Supernet, "candidate_weights", lambda self, u: drawn.append(u) or original(self, u))
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    data = batch()
    losses = [bilevel.weight_update(net, still, data, update)[0] for update in range(4)]
    losses += [bilevel.architecture_update(net, still, data, update)[0][0] for update in range(4, 8)]
    assert drawn == list(range(8))
    assert len(set(map(float, losses))) == 8
