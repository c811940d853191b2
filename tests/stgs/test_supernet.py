"""The supernet against a plain one of torch.nn, and members against supernets of their own."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from stgs.config import InputError
from stgs.estimators import gumbel_noise
from stgs.layers import ForwardContext
from stgs.search_space import SearchSpace, search_space
from stgs.supernet import Member, Supernet

FEATURES = {"visual.a": 5, "visual.pooled": 7, "audio.a": 3, "audio.pooled": 6}
SPACES = {
    "default": search_space("default", FEATURES, channels=4, length=3),
    "released": search_space("released", FEATURES, channels=4, length=3),
    "large": search_space("default", FEATURES, channels=4, length=3, num_cells=3, num_steps=3),
    "single": search_space("default", FEATURES, channels=4, length=3, num_cells=1, num_steps=1, operations=("sum",)),
}
MEMBERS = [Member(10.0, 15, 3), Member(0.5, 1, 8), Member(20.0, 4, 5)]
B = 6


def features(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(B, size, generator=generator)
        if name.endswith("pooled")
        else torch.randn(B, 3, size, generator=generator)
        for name, size in FEATURES.items()
    }


def context(members: list[Member], *, training: bool, update: int = 0, track: bool = False) -> ForwardContext:
    seeds = torch.tensor([member.seed for member in members])
    return ForwardContext(seeds, update, training=training, track_statistics=track)


def build(space: SearchSpace, members: list[Member], *, dropout: float = 0.0, scale: float = 1.0) -> Supernet:
    """A supernet whose parameters are all away from zero and one, by a rule that depends on the member's seed alone."""
    net = Supernet(space, members, dropout=dropout, attention_dropout=dropout, initial_logit_scale=scale)
    for name, parameter in net.named_parameters():
        for index, member in enumerate(members):
            generator = torch.Generator().manual_seed(member.seed * 1000 + len(name) + 31 * parameter[0].numel())
            parameter.data[index] += 0.2 * torch.randn(parameter.shape[1:], generator=generator)
    return net


class PlainSupernet(nn.Module):
    """One supernet, clips first and channels second, with a loop over every edge of the description."""

    def __init__(self, space: SearchSpace, plain: SimpleNamespace) -> None:
        super().__init__()
        c, length = space.channels, space.length
        self.space = space
        self.reshape = nn.ModuleDict(
            {name.replace(".", "_"): plain.Reshape(size, c, length) for name, size in space.features.items()}
        )
        self.cells = nn.ModuleList()
        for _ in range(space.num_cells):
            steps = nn.ModuleList(
                nn.ModuleDict({name: plain.operation(name, c, length) for name in space.operations})
                for _ in range(space.num_steps)
            )
            size = c * space.num_steps if space.tail == "concat" else c
            cell = nn.ModuleDict({"steps": steps, "tail": plain.Tail(size, c, length)})
            cell.register_parameter(
                "operation_weight", nn.Parameter(torch.ones(space.num_steps, len(space.operations)))
            )
            if space.tail == "weighted_sum":
                cell.register_parameter("step_weight", nn.Parameter(torch.ones(space.num_steps)))
            self.cells.append(cell)
        self.head = plain.Head(space.num_cells, c, length)

    def forward(self, inputs: dict[str, Tensor], alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
        """alpha, beta: weights of (Identity, Zero) of every edge; gamma: of every operation of every step."""
        space = self.space
        nodes = []
        for name in space.features:
            x = inputs[name]
            nodes.append(self.reshape[name.replace(".", "_")](x.transpose(1, 2) if x.dim() == 3 else x))
        alpha_row = beta_row = gamma_row = 0
        outputs: list[Tensor] = []
        for cell in self.cells:
            x = torch.zeros_like(nodes[0])
            for node in nodes + (outputs if space.earlier_cells else []):
                identity, zero = alpha[alpha_row]
                x = x + identity * node + zero * torch.zeros_like(node)
                alpha_row += 1
            states = [x, x]
            for index, operations in enumerate(cell["steps"]):
                s = torch.zeros_like(x)
                for state in states:
                    s = s + beta[beta_row, 0] * state
                    beta_row += 1
                y = torch.zeros_like(x)
                for k, name in enumerate(space.operations):
                    y = y + gamma[gamma_row, k] * cell.operation_weight[index, k] * operations[name](s, s)
                gamma_row += 1
                states.append(y)
            steps = states[2:]
            if space.tail == "concat":
                joined = torch.cat(steps, dim=1)
            else:
                joined = sum(w * step for w, step in zip(cell.step_weight, steps, strict=True))
            outputs.append(cell["tail"](joined, x))
        assert (alpha_row, beta_row, gamma_row) == (len(alpha), len(beta), len(gamma))
        return self.head(outputs)

    def pairs(self, ours: Supernet, pair: type) -> list:
        """Every parameter of both sides."""
        found = []
        for plain, layer in zip(self.reshape.values(), ours.reshape, strict=True):
            found += plain.pairs(layer)
        for plain, cell in zip(self.cells, ours.cells, strict=True):
            for operations, candidates in zip(plain["steps"], cell.steps, strict=True):
                for name in candidates:
                    found += operations[name].pairs(candidates[name])
            found.append(pair(plain.operation_weight, cell.fusion_weight, lambda w: w))
            if hasattr(plain, "step_weight"):
                found.append(pair(plain.step_weight, cell.step_weight, lambda w: w))
            found += plain["tail"].pairs(cell.tail)
        return found + self.head.pairs(ours.head)


def running_statistics(net: Supernet) -> None:
    """Statistics away from 0 and 1, by name, so that evaluation tests them."""
    for name, buffer in net.named_buffers():
        if "running" in name:
            generator = torch.Generator().manual_seed(len(name))
            buffer.add_(torch.rand(buffer.shape, generator=generator))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_member_equals_a_plain_supernet(space: SearchSpace, training: bool, plain: SimpleNamespace) -> None:
    # In float64, so that a wrong term cannot hide in rounding.
    net = build(space, MEMBERS).double()
    running_statistics(net)
    inputs = {name: x.double() for name, x in features().items()}
    weights = {
        name: torch.rand(len(MEMBERS), *shape, dtype=torch.float64, requires_grad=True)
        for name, shape in space.shapes().items()
    }
    upstream = torch.randn(len(MEMBERS), B, dtype=torch.float64)
    logits = net(inputs, weights, context(MEMBERS, training=training))
    assert logits.shape == (len(MEMBERS), B)
    (logits * upstream).sum().backward()

    for member in range(len(MEMBERS)):
        reference = PlainSupernet(space, plain).double().train(training)
        pairs = reference.pairs(net, plain.Pair)
        assert {id(p.ours) for p in pairs} == {id(p) for p in net.weight_parameters().values()}
        assert {id(p.plain) for p in pairs} == {id(p) for p in reference.parameters()}
        for pair in pairs:
            pair.load(member)
        ours = {n.rpartition(".")[0]: (m, m.running_mean) for n, m in net.named_modules() if hasattr(m, "running_mean")}
        norms = [m for m in reference.modules() if isinstance(m, nn.BatchNorm1d)]
        by_weight = {id(pair.ours): pair.plain for pair in pairs}
        for norm, mean in ours.values():
            twin = next(m for m in norms if m.weight is by_weight[id(norm.weight)])
            twin.running_mean.copy_(mean[member, 0])
            twin.running_var.copy_(norm.running_variance[member, 0])
        relaxed = [weights[name].detach()[member].requires_grad_() for name in ("alpha", "beta", "gamma")]
        expected = reference(inputs, *relaxed)
        assert torch.allclose(logits[member], expected, rtol=1e-9, atol=1e-11)
        (expected * upstream[member]).sum().backward()
        for name, leaf in zip(("alpha", "beta", "gamma"), relaxed, strict=True):
            assert torch.allclose(weights[name].grad[member], leaf.grad, rtol=1e-7, atol=1e-10), name
        for pair in pairs:
            if pair.plain.grad is None:
                assert not pair.gradient(member).any()
            else:
                assert torch.allclose(pair.gradient(member), pair.plain.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_population_equals_single_supernets(space: SearchSpace, training: bool) -> None:
    """With samples and dropout: everything random belongs to the member."""
    pack = build(space, MEMBERS, dropout=0.3)
    update = 7 if training else None
    logits = pack(
        features(), pack.candidate_weights(update), context(MEMBERS, training=training, update=7, track=training)
    )
    upstream = torch.randn(len(MEMBERS), B)
    (logits * upstream).sum().backward()
    for index, member in enumerate(MEMBERS):
        single = build(space, [member], dropout=0.3)
        own = single(
            features(), single.candidate_weights(update), context([member], training=training, update=7, track=training)
        )
        assert torch.allclose(logits[index], own[0], rtol=1e-5, atol=1e-5)
        (own[0] * upstream[index]).sum().backward()
        together = dict(pack.named_parameters())
        for name, parameter in single.named_parameters():
            expected, found = parameter.grad, together[name].grad
            assert (expected is None) == (found is None), name
            if expected is not None:
                # M = 1 may switch all states off; batch normalisation of constants then magnifies rounding.
                scale = max(1.0, float(expected.abs().max()))
                assert torch.allclose(found[index], expected[0], rtol=1e-3, atol=1e-4 * scale), name
        for name, buffer in single.named_buffers():
            assert torch.allclose(dict(pack.named_buffers())[name][index], buffer[0], rtol=1e-5, atol=1e-6), name


def test_members_start_alike_alone_and_in_a_pack() -> None:
    pack = Supernet(SPACES["default"], MEMBERS)
    single = Supernet(SPACES["default"], MEMBERS[1:2])
    for name, parameter in single.named_parameters():
        assert torch.equal(dict(pack.named_parameters())[name][1], parameter[0]), name


def test_no_two_layers_start_from_the_same_numbers() -> None:
    net = Supernet(SPACES["large"], MEMBERS[:1])
    starts = [
        p.detach().flatten()[:4]
        for n, p in net.named_parameters()
        if n.endswith(("linear.weight", "classifier.weight"))
    ]
    assert len({tuple((s / s.abs().max()).tolist()) for s in starts}) == len(starts)


def test_architecture_starts_small_and_random() -> None:
    net = Supernet(SPACES["large"], [Member(1.0, 1, seed) for seed in range(200)])
    for name, logits in net.architecture_parameters().items():
        n = logits.numel()
        assert abs(float(logits.detach().mean())) < 4.5e-3 / n**0.5, name
        assert abs(float(logits.detach().std()) / 1e-3 - 1) < 4.5 / (2 * n) ** 0.5, name


def test_candidate_weights() -> None:
    net = build(SPACES["default"], MEMBERS)
    exact = net.candidate_weights(None)
    sampled = net.candidate_weights(4)
    for name, logits in net.architecture_parameters().items():
        assert torch.allclose(exact[name], torch.softmax(logits, dim=-1))
        for index, member in enumerate(MEMBERS):
            noise = gumbel_noise([member.seed], 4, name, member.num_samples, logits.shape[1:])[0]
            choices = (logits.detach()[index] + noise).argmax(dim=-1)
            share = nn.functional.one_hot(choices, logits.shape[-1]).double().mean(dim=0)
            assert torch.allclose(sampled[name].detach()[index].double(), share, atol=1e-6)
    net.estimator = "softmax"
    assert all(torch.equal(weights, exact[name]) for name, weights in net.candidate_weights(4).items())


def test_evaluation_is_deterministic_and_moves_nothing() -> None:
    net = build(SPACES["default"], MEMBERS, dropout=0.5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    one, two = (
        net(features(), net.candidate_weights(None), context(MEMBERS, training=False, update=update))
        for update in (1, 2)
    )
    assert torch.equal(one, two)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_parameters_are_split_into_architecture_and_weights() -> None:
    net = Supernet(SPACES["default"], MEMBERS)
    architecture, weights = net.architecture_parameters(), net.weight_parameters()
    assert list(architecture) == ["alpha", "beta", "gamma"]
    assert {id(p) for p in net.parameters()} == {id(p) for p in (*architecture.values(), *weights.values())}
    assert len(list(net.parameters())) == len(architecture) + len(weights)
    assert all(p.shape[0] == len(MEMBERS) for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_wrong_members_are_refused(arguments: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Member(**{"temperature": 1.0, "num_samples": 1, "seed": 0, **arguments})


def test_wrong_populations_are_refused() -> None:
    with pytest.raises(InputError, match="members"):
        Supernet(SPACES["default"], [])
    with pytest.raises(InputError, match="'magic'"):
        Supernet(SPACES["default"], MEMBERS, estimator="magic")
