"""One weight update and one architecture update: what moves, what stands still, and by how much."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stgs import bilevel
from stgs.bilevel import Batch, architecture_update, clip_gradients, weight_update
from stgs.layers import ForwardContext, reshape_features
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


def right_probability(net: Supernet, data: Batch, update: int, temperature: Tensor | None = None) -> Tensor:
    """The probability that each member gives to each clip's label, in an update, [P, B]."""
    context = ForwardContext(net.seeds, update, training=True, track_statistics=False)
    logits = net(data.features, net.candidate_weights(update, temperature), context)
    probability = torch.sigmoid(logits.double())
    return torch.where(data.labels > 0, probability, 1 - probability)


def plain_losses(net: Supernet, data: Batch, update: int, temperature: Tensor | None = None) -> Tensor:
    """The losses of an update, written out."""
    right = right_probability(net, data, update, temperature)
    weight = torch.where(data.labels > 0, data.class_weights[:, 1:], data.class_weights[:, :1])
    return -(weight * right.log()).mean(dim=1)


def test_weight_update_moves_weights_and_statistics_only(net: Supernet) -> None:
    before, data = snapshot(net), batch()
    expected = plain_losses(net, data, 5).detach()
    num_right = (right_probability(net, data, 5) > 0.5).sum(dim=1)
    optimizer = torch.optim.Adam(net.weight_parameters().values(), lr=1e-3)
    losses, correct = weight_update(net, optimizer, data, 5)
    assert correct.is_floating_point()
    assert correct.tolist() == num_right.tolist()
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert not losses.requires_grad
    assert all(parameter.grad is None for parameter in net.architecture_parameters().values())
    changed = moved(net, before)
    assert not {name for name in changed if name.startswith("architecture.")}
    # Everything else moves, every running statistic too, but the biases that batch normalisation takes out again.
    assert {name for name in before if not name.startswith("architecture.")} - changed == {
        name for name in before if name.endswith(".linear.bias")
    }


def test_weight_update_follows_the_gradient_of_each_member(net: Supernet) -> None:
    data = batch()
    parameters = net.weight_parameters()
    gradients = torch.autograd.grad(plain_losses(net, data, 2).sum(), list(parameters.values()), materialize_grads=True)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    weight_update(net, torch.optim.SGD(parameters.values(), lr=0.5), data, 2)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert torch.allclose(parameter, before[name] - 0.5 * gradient, atol=1e-5), name


def test_weight_updates_lower_the_loss(net: Supernet) -> None:
    data = batch()
    optimizer = torch.optim.Adam(net.weight_parameters().values(), lr=1e-2)
    losses = [weight_update(net, optimizer, data, update)[0] for update in range(40)]
    assert bool((torch.stack(losses[-5:]).mean(dim=0) < 0.5 * torch.stack(losses[:5]).mean(dim=0)).all())


def test_clipping_bounds_each_member_alone(net: Supernet) -> None:
    data = batch()
    parameters = net.weight_parameters()
    gradients = torch.autograd.grad(plain_losses(net, data, 2).sum(), list(parameters.values()), materialize_grads=True)
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


def test_architecture_update_moves_the_architecture_only(net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    before, data = snapshot(net), batch()
    parameters = net.architecture_parameters()
    expected = plain_losses(net, data, 5)
    gradients = torch.autograd.grad(expected.sum(), list(parameters.values()))
    computed = []
    for name, parameter in net.weight_parameters().items():
        parameter.register_hook(lambda _, name=name: computed.append(name))
    num_right = (right_probability(net, data, 5) > 0.5).sum(dim=1)
    recorded = []

    def reshaped(*call: object) -> list:
        groups = reshape_features(*call)
        recorded.extend(group.requires_grad for _, group in groups)
        return groups

    monkeypatch.setattr("stgs.supernet.reshape_features", reshaped)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
    losses, correct, norms = architecture_update(net, optimizer, data, 5)
    assert correct.tolist() == num_right.tolist()
    # Nothing before the first candidate is recorded for a backward pass.
    assert recorded == [False, False]
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


def test_an_update_may_have_its_own_temperature(net: Supernet) -> None:
    data, temperature = batch(), torch.tensor([2.0, 0.5])
    parameters = net.architecture_parameters()
    expected = torch.autograd.grad(plain_losses(net, data, 5, temperature).sum(), list(parameters.values()))
    still = torch.optim.SGD(parameters.values(), lr=0.0)
    *_, norms = architecture_update(net, still, data, 5, temperature=temperature)
    *_, own = architecture_update(net, still, data, 5)
    for name, gradient in zip(parameters, expected, strict=True):
        assert torch.allclose(norms[name].double(), gradient.double().flatten(1).norm(dim=1), rtol=1e-4)
        assert not torch.allclose(norms[name], own[name], rtol=1e-2)
    # The temperature shapes the gradient of the architecture alone, so a weight update does not see it (`stgs`).
    still = torch.optim.SGD(net.weight_parameters().values(), lr=0.0)
    assert torch.equal(
        weight_update(net, still, data, 5, temperature=temperature)[0], weight_update(net, still, data, 5)[0]
    )


def test_penalty_joins_the_update_and_neither_the_loss_nor_the_norms(net: Supernet) -> None:
    data = batch()
    parameters = net.architecture_parameters()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    plain = torch.autograd.grad(plain_losses(net, data, 5).sum(), list(parameters.values()))
    scale = torch.tensor([3.0, 5.0])
    optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
    expected = plain_losses(net, data, 5)
    losses, _, norms = architecture_update(
        net, optimizer, data, 5, penalty=lambda logits: scale * (logits["alpha"].sum(dim=(1, 2)))
    )
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    for (name, parameter), gradient in zip(parameters.items(), plain, strict=True):
        whole = gradient + scale.view(-1, 1, 1) * (name == "alpha")
        assert torch.allclose(parameter, before[name] - 0.5 * whole, atol=1e-6)
        assert torch.allclose(norms[name], gradient.flatten(1).norm(dim=1), rtol=1e-4)


def test_features_that_require_gradients_get_them(net: Supernet) -> None:
    data = batch()
    leaves = {name: x.clone().requires_grad_() for name, x in data.features.items()}
    with_leaves = Batch(leaves, data.labels, data.class_weights)
    expected = torch.autograd.grad(plain_losses(net, with_leaves, 2).sum(), list(leaves.values()))
    weight_update(net, torch.optim.SGD(net.weight_parameters().values(), lr=0.1), with_leaves, 2)
    for (name, leaf), gradient in zip(leaves.items(), expected, strict=True):
        assert torch.allclose(leaf.grad, gradient, rtol=1e-4, atol=1e-6), name


def test_architecture_update_uses_batch_statistics(net: Supernet) -> None:
    data = batch()
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.fill_(float("nan"))
    losses, *_ = architecture_update(net, torch.optim.SGD(net.architecture_parameters().values(), lr=0.1), data, 0)
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
    monkeypatch.setattr(Supernet, "candidate_weights", lambda self, u, t: drawn.append(u) or original(self, u, t))
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    data = batch()
    losses = [bilevel.weight_update(net, still, data, update)[0][0] for update in range(4)]
    losses += [bilevel.architecture_update(net, still, data, update)[0][0] for update in range(4, 8)]
    assert drawn == list(range(8))
    assert len(set(map(float, losses))) == 8
