"""Two and three workers train a baseline as one does, pair losses and batch normalisation included.

The module is its own program, as `tests.worker_groups` has it.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stgs import parallel
from stgs.baselines.batch import Labels
from stgs.baselines.batch_norm import SharedBatchNorm, share_batch_norms
from stgs.baselines.training import BaselineTraining, BaselineTrainingConfig, gathered_outputs
from stgs.parallel import PeerLostError, Workers
from tests.memory_sequences import MemorySequences, tiny_baseline
from tests.worker_groups import Groups, main, results

WORLDS = (2, 3)
# Of each worker; their numbers differ, as those of frames do.
ROWS = {1: (9,), 2: (2, 7), 3: (1, 5, 3)}
VALUES = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 20.0


def run_training(workers: Workers, precision: str = "float32") -> dict[str, Any]:
    """Three epochs on batches that no number of workers divides, in float64 where rounding would become steps."""
    train, dev = MemorySequences(17, workers=workers), MemorySequences(10, workers=workers, seed=1)
    config = BaselineTrainingConfig(epochs=3, batch_size=5, learning_rate=1e-2, precision=precision)
    model = tiny_baseline(dropout=0.0)
    training = BaselineTraining(
        model.double() if precision == "float32" else model, config, train=train, dev=dev, workers=workers
    )
    stops = iter([False, False, True])
    training.run_epoch(lambda: next(stops))
    while not training.finished:
        training.run_epoch()
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in training.rows]
    training.use_best()
    scores = torch.from_numpy(training.score(dev))
    return {"rows": rows, "model": dict(model.state_dict()), "scores": scores, "threshold": training.threshold()}


def run_judging(workers: Workers) -> dict[str, Any]:
    """How often the loss of dev is computed, and what becomes of an error there."""
    train, dev = MemorySequences(5, workers=workers), MemorySequences(10, workers=workers, seed=1)
    model, lengths = tiny_baseline(), []

    def loss(outputs: dict[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        if not torch.is_grad_enabled():
            lengths.append(len(labels.fake))
            if len(lengths) > 1:
                raise MemoryError("no room")
        return type(model).loss(model, outputs, labels)

    model.loss = loss  # type: ignore[method-assign]
    training = BaselineTraining(model, BaselineTrainingConfig(batch_size=5), train=train, dev=dev, workers=workers)
    training.run_epoch()
    try:
        training.run_epoch()
    except (MemoryError, PeerLostError) as error:
        return {"lengths": lengths, "error": type(error).__name__}
    return {}


def run_batch_norm(workers: Workers) -> dict[str, Any]:
    """Forward and backward of this worker's rows of VALUES."""
    x = VALUES.split(ROWS[workers.world])[workers.rank].clone().requires_grad_()
    model = nn.Sequential(nn.BatchNorm1d(4)).double()
    share_batch_norms(model, workers)
    assert isinstance(model[0], SharedBatchNorm)
    y = model(x)
    y.square().mul(VALUES.split(ROWS[workers.world])[workers.rank] - 20.0).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"y": y.detach(), "gradient": x.grad, "gradients": gradients, "state": dict(model.state_dict())}


def run_gather(workers: Workers) -> dict[str, Tensor]:
    """Outputs of several shapes and types, of which one has a gradient."""
    own = VALUES.split(ROWS[workers.world])[workers.rank].clone().requires_grad_()
    outputs = {"whole": own, "first": own[:, 0, 0], "half": own[:, :, 0].bfloat16()}
    found = gathered_outputs(outputs, ROWS[workers.world], workers)
    (found["whole"].square().sum() + found["first"].sum()).backward()
    assert own.grad is not None
    return {**{name: x.detach() for name, x in found.items()}, "gradient": own.grad}


def work(workers: Workers) -> dict[str, Any]:
    """Everything that is compared."""
    # Several collectives for the gradients, though these are few.
    parallel.BUCKET_VALUES = 200
    return {
        "training": run_training(workers),
        "float16": run_training(workers, "float16"),
        "batch_norm": run_batch_norm(workers),
        "gather": run_gather(workers),
        "judging": run_judging(workers),
    }


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Groups:
    """World size -> what each rank got."""
    return results(__file__, tmp_path_factory.mktemp("workers"), repository, WORLDS)


@pytest.mark.parametrize("world", WORLDS)
def test_workers_train_as_one_does(groups: Groups, world: int) -> None:
    single, *several = (result["training"] for result in [*groups[1], *groups[world]])
    for found in several:
        for a, b in zip(single["rows"], found["rows"], strict=True):
            # Outputs are judged in float32.
            assert b == pytest.approx(a, rel=1e-5)
        for name, tensor in single["model"].items():
            assert torch.allclose(found["model"][name], tensor, rtol=1e-6, atol=1e-8), name
        assert torch.allclose(found["scores"], single["scores"], atol=1e-6)
        assert found["threshold"] == pytest.approx(single["threshold"], abs=1e-6)


@pytest.mark.parametrize("kind", ["training", "float16"])
@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_hold_the_same_bits(groups: Groups, world: int, kind: str) -> None:
    first, *others = (result[kind] for result in groups[world])
    for other in others:
        assert other["rows"] == first["rows"]
        assert torch.equal(other["scores"], first["scores"])
        for name, tensor in first["model"].items():
            assert torch.equal(other["model"][name], tensor), name


@pytest.mark.parametrize("world", [1, *WORLDS])
def test_the_first_worker_alone_judges_and_none_waits_for_it_when_it_fails(groups: Groups, world: int) -> None:
    first, *others = (result["judging"] for result in groups[world])
    assert (first["lengths"], first["error"]) == ([10, 10], "MemoryError")
    assert all((other["lengths"], other["error"]) == ([], "PeerLostError") for other in others)


@pytest.mark.parametrize("world", WORLDS)
def test_batch_norm_is_that_of_all_values(groups: Groups, world: int) -> None:
    single, *several = (result["batch_norm"] for result in [*groups[1], *groups[world]])
    for name in ("y", "gradient"):
        joined = torch.cat([found[name] for found in several])
        assert torch.allclose(joined, single[name], rtol=1e-9, atol=1e-9), name
    for name, gradient in single["gradients"].items():
        assert torch.allclose(sum(found["gradients"][name] for found in several), gradient), name
    for found in several:
        for name, tensor in single["state"].items():
            assert torch.allclose(found["state"][name], tensor), name


@pytest.mark.parametrize("world", [1, *WORLDS])
def test_outputs_are_gathered_in_order_of_rank_with_ones_own_gradient(groups: Groups, world: int) -> None:
    for rank, result in enumerate(groups[world]):
        found = result["gather"]
        assert torch.equal(found["whole"], VALUES)
        assert torch.equal(found["first"], VALUES[:, 0, 0])
        assert torch.equal(found["half"], VALUES[:, :, 0].bfloat16().to(found["half"].dtype))
        own = VALUES.split(ROWS[world])[rank]
        expected = 2 * own
        expected[:, 0, 0] += 1
        assert torch.allclose(found["gradient"], expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]), WORLDS, work)
