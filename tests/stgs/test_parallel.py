"""Data-parallel workers over gloo, without Ray: two and three processes make the updates that one makes.

The module is its own program, as `tests.worker_groups` has it.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stgs.bilevel import Batch, architecture_update, weight_update
from stgs.clips import ClipSet
from stgs.config import FoundConfig, InputError
from stgs.found_training import FoundTraining
from stgs.fused import Block, NormalisedProduct, RunningStatistics
from stgs.genotype import CellGene, Genotype, StepGene
from stgs.layers import MemberBatchNorm
from stgs.parallel import Workers
from stgs.search_space import search_space
from stgs.supernet import Member, Supernet
from tests.worker_groups import LOST, Groups, main, results

FEATURES = {"visual.a": 5, "visual.pooled": 7, "audio.a": 3}
SPACE = search_space("default", FEATURES, channels=6, length=3)
# No member of one sample: it may switch all states off, and the normalisation of constants then magnifies rounding.
MEMBERS = [Member(10.0, 15, 3), Member(1.0, 5, 8), Member(5.0, 8, 4)]
P, N, C = len(MEMBERS), 30, 6
WORLDS = (2, 3)
DTYPES = (torch.float64, torch.float32)


def penalty(logits: dict[str, Tensor]) -> Tensor:
    """A term that depends on the architecture alone."""
    return 0.01 * torch.softmax(logits["gamma"], dim=-1)[..., 1].sum(dim=1)


def run_search(workers: Workers, dtype: torch.dtype) -> dict[str, Any]:
    """Three weight and three architecture updates on batches that no number of workers divides."""
    random = np.random.default_rng(0)
    columns = {n: random.standard_normal((N, c) if "pooled" in n else (N, c, 3)) for n, c in FEATURES.items()}
    labels = (np.arange(P * N).reshape(P, N) % 3 == 0).astype(np.int8)
    clips = ClipSet(columns, labels, members=P)
    net = Supernet(SPACE, MEMBERS, dropout=0.3, attention_dropout=0.2, initial_logit_scale=0.5).to(dtype)
    weights = torch.optim.Adam(net.weight_parameters().values(), lr=1e-2, weight_decay=1e-3, fused=True)
    architecture = torch.optim.Adam(net.architecture_parameters().values(), lr=1e-2, fused=True)
    steps: list[Tensor] = []
    for update in range(0, 6, 2):
        first, second = (batch_of(clips, random.permutation(N)[:11], workers, dtype) for _ in range(2))
        temperature = net.temperature / (1 + update)
        steps += weight_update(net, weights, first, update, clip_norm=1.0, temperature=temperature, workers=workers)
        *measured, norms = architecture_update(
            net, architecture, second, update + 1, temperature=temperature, workers=workers, penalty=penalty
        )
        steps += [*measured, *norms.values()]
    gradients = {name: x.grad for name, x in first.features.items()}
    return {"net": dict(net.state_dict()), "steps": torch.stack(steps), "feature_gradients": gradients}


GENOTYPE = Genotype(
    features=FEATURES,
    channels=6,
    length=3,
    cells=(
        CellGene(
            ("visual.a", "audio.a"),
            (StepGene("concat_fc", ("in1", "in2")), StepGene("attention", ("step1", "in2"))),
        ),
        CellGene(("visual.pooled", "audio.a"), (StepGene("linear_glu", ("in1", "in2")),)),
    ),
)


def run_found_networks(workers: Workers) -> dict[str, Any]:
    """Two networks of one genotype, with dropout, on batches that no number of workers divides."""
    splits = []
    for seed in range(2):
        random = np.random.default_rng(seed)
        columns = {n: random.standard_normal((N, c) if "pooled" in n else (N, c, 3)) for n, c in FEATURES.items()}
        splits.append(ClipSet(columns, (np.arange(N) % 3 == 0).astype(np.int8), members=2))
    config = FoundConfig(epochs=2, batch_size=11, dropout=0.3, attention_dropout=0.2)

    def begun() -> FoundTraining:
        return FoundTraining(GENOTYPE, [3, 8], config=config, train=splits[0], dev=splits[1], workers=workers)

    exact = begun()
    exact.network.double()
    for number in range(exact._begin_epoch()):
        batch = exact._batch(number)
        exact._update(replace(batch, features={name: x.double() for name, x in batch.features.items()}))
    rounded = begun()
    aucs = torch.tensor([rounded.run_epoch() for _ in range(config.epochs)])
    found = {"aucs": aucs, "thresholds": torch.tensor(rounded.thresholds())}
    return {**found, "network": dict(exact.network.state_dict()), "state": rounded.network.state_dict()}


def batch_of(clips: ClipSet, index: np.ndarray, workers: Workers, dtype: torch.dtype) -> Batch:
    """A batch whose features require gradients, as those of a backbone that is trained with the rest."""
    batch = clips.batch(index, workers)
    features = {name: x.to(dtype).requires_grad_() for name, x in batch.features.items()}
    return Batch(features, batch.labels, batch.class_weights.to(dtype), batch.clips)


def batch_norm_case() -> tuple[MemberBatchNorm, Tensor, Tensor]:
    """A layer, clips far from a mean of 0, and the gradient of what comes out; the same in every process."""
    generator = torch.Generator().manual_seed(1)
    layer = MemberBatchNorm(P, C)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    x = 100.0 + torch.randn(P, 11, 4, C, generator=generator)
    return layer, x, torch.randn(x.shape, generator=generator)


def run_batch_norm(workers: Workers, between: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
    """Forward and backward of the layer on this worker's clips, behind a product that changes nothing.

    between: called between the two.
    """
    norm, x, upstream = batch_norm_case()
    rows = slice(workers.rank, None, workers.world)
    x = x[:, rows].clone().requires_grad_()
    running = RunningStatistics([norm.running_mean], [norm.running_variance], norm.momentum)
    block = Block(norm.eps, False, None, 1.0, running, None, workers)
    scale, shift = (parameter.unsqueeze(0) for parameter in (norm.weight, norm.bias))
    y = NormalisedProduct.apply(block, scale, shift, x.flatten(1, 2), torch.eye(C).repeat(P, 1, 1)).view(x.shape)
    between()
    y.backward(upstream[:, rows])
    gradients = {"x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return {"y": y.detach(), "mean": norm.running_mean, "variance": norm.running_variance, **gradients}


def work(workers: Workers) -> dict[Any, Any]:
    """Everything that is compared."""
    searches = {dtype: run_search(workers, dtype) for dtype in DTYPES}
    return {
        "batch_norm": run_batch_norm(workers),
        "values": run_values(workers),
        "found": run_found_networks(workers),
        **searches,
    }


def run_values(workers: Workers) -> dict[str, Any]:
    """What the workers make of plain values."""
    rank, last = workers.rank, workers.world - 1
    return {
        "any": [workers.any(flag) for flag in (False, rank == last, True)],
        "from_first": workers.from_first({"rank": rank}),
        "gather": workers.gather(f"rank {rank}"),
    }


def run_with_a_lost_peer(workers: Workers) -> list[str]:
    """The errors that every collective raises after the other worker has died; rank 1 does not return."""
    collectives: list[Callable[[], object]] = [
        # The other one dies before the backward pass, where autograd stands between the collective and its caller.
        lambda: run_batch_norm(workers, lambda: None if workers.rank == 0 else os._exit(0)),
        lambda: workers.sum_(torch.zeros(3)),
        lambda: workers.stack(torch.zeros(3)),
        lambda: workers.any(True),
        lambda: workers.from_first("value"),
        lambda: workers.gather("value"),
    ]
    errors = []
    for collective in collectives:
        try:
            collective()
        except RuntimeError as error:
            errors.append(type(error).__name__)
    return errors


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Groups:
    """World size -> what each rank got; LOST -> the errors of a worker whose peer has died."""
    return results(__file__, tmp_path_factory.mktemp("workers"), repository, WORLDS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_hold_the_same_bits(groups: Groups, world: int, dtype: torch.dtype) -> None:
    first, *others = (result[dtype] for result in groups[world])
    for other in others:
        assert torch.equal(first["steps"], other["steps"])
        for name, tensor in first["net"].items():
            assert torch.equal(tensor, other["net"][name]), name


@pytest.mark.parametrize("world", WORLDS)
def test_workers_make_the_updates_of_one(groups: Groups, world: int) -> None:
    """In float64: Adam turns the rounding of a gradient that is 0 into a whole step, unless it is far below its eps."""
    single, several = groups[1][0][torch.float64], groups[world][0][torch.float64]
    assert torch.allclose(single["steps"], several["steps"], rtol=1e-7)
    start = Supernet(SPACE, MEMBERS, dropout=0.3, attention_dropout=0.2, initial_logit_scale=0.5).state_dict()
    for name, tensor in single["net"].items():
        assert torch.allclose(tensor, several["net"][name], rtol=1e-6, atol=1e-7), name
        # Nothing is compared that stood still, but the biases that batch normalisation takes out again.
        assert torch.equal(tensor.float(), start[name]) == name.endswith(".linear.bias"), name


@pytest.mark.parametrize("world", WORLDS)
def test_found_networks_are_trained_as_by_one(groups: Groups, world: int) -> None:
    single, *several = (result["found"] for result in [*groups[1], *groups[world]])
    for found in several:
        for name, tensor in single["network"].items():
            assert torch.allclose(tensor, found["network"][name], rtol=1e-6, atol=1e-7), name
        # In float32 a step may be rounding alone; two clips of 200 pairs may then change places.
        assert torch.allclose(found["aucs"], single["aucs"], atol=0.02)
        for name, tensor in found["state"].items():
            assert torch.equal(tensor, several[0]["state"][name]), name
        assert torch.equal(found["thresholds"], several[0]["thresholds"])


@pytest.mark.parametrize("world", WORLDS)
def test_architectures_agree_in_float32(groups: Groups, world: int) -> None:
    single, several = groups[1][0][torch.float32], groups[world][0][torch.float32]
    for name in ("alpha", "beta", "gamma"):
        key = f"architecture.{name}"
        assert torch.allclose(single["net"][key], several["net"][key], atol=1e-4), name
    # The losses of the first updates; later ones have seen weights that Adam moved by rounding alone.
    assert torch.allclose(single["steps"][:4], several["steps"][:4], rtol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_features_get_the_gradient_of_the_whole_batch(groups: Groups, world: int) -> None:
    single = groups[1][0][torch.float64]["feature_gradients"]
    for rank, result in enumerate(groups[world]):
        for name, gradient in result[torch.float64]["feature_gradients"].items():
            assert gradient.abs().max() > 1e-6
            assert torch.allclose(gradient, single[name][rank::world], rtol=1e-5, atol=1e-9), name


@pytest.mark.parametrize("world", [1, *WORLDS])
def test_batch_norm_equals_torch_on_the_whole_batch(groups: Groups, world: int) -> None:
    layer, x, upstream = batch_norm_case()
    results = [result["batch_norm"] for result in groups[world]]
    for member in range(P):
        plain = nn.BatchNorm1d(C).double()
        plain.weight.data.copy_(layer.weight.detach()[member, 0])
        plain.bias.data.copy_(layer.bias.detach()[member, 0])
        whole = x[member].double().transpose(1, 2).requires_grad_()
        y = plain(whole)
        y.backward(upstream[member].double().transpose(1, 2))
        for rank, result in enumerate(results):
            # Clips of 100 +- 1 in float32: an error of 1e-5 in x - mean, and as much of its gradient.
            rows = slice(rank, None, world)
            assert torch.allclose(result["y"][member].double(), y.transpose(1, 2)[rows], atol=1e-4)
            assert torch.allclose(result["x"][member].double(), whole.grad.transpose(1, 2)[rows], atol=1e-4)
            assert torch.allclose(result["mean"][member, 0].double(), plain.running_mean, rtol=1e-6)
            assert torch.allclose(result["variance"][member, 0].double(), plain.running_var, rtol=1e-4)
        for name in ("weight", "bias"):
            summed = sum(result[name][member, 0].double() for result in results)
            assert torch.allclose(summed, getattr(plain, name).grad, atol=1e-3), name


@pytest.mark.parametrize("world", [1, *WORLDS])
def test_plain_values_are_shared(groups: Groups, world: int) -> None:
    expected = {
        "any": [False, True, True],
        "from_first": {"rank": 0},
        "gather": [f"rank {rank}" for rank in range(world)],
    }
    assert [result["values"] for result in groups[world]] == [expected] * world


def test_a_lost_peer_is_told_by_every_collective(groups: Groups) -> None:
    assert groups[LOST] == [["PeerLostError"] * 6]


def test_wrong_ranks_are_refused() -> None:
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match=f"rank is {rank}"):
            Workers(rank, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), WORLDS, work, run_with_a_lost_peer)
