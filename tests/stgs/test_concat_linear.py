"""The control concat + linear: against a logistic regression written in NumPy, and trained by the common loop."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from stgs.clips import ClipSet
from stgs.concat_linear import ConcatLinear, ConcatLinearInputs
from stgs.config import FoundConfig, InputError, WeightSchedule
from stgs.found_training import FoundTraining, load_network, member_weights, predict
from stgs.layers import ForwardContext
from stgs.losses import balanced_cross_entropy
from stgs.parallel import Workers

SIZES = {"visual.a": 5, "visual.pooled": 7, "audio.a": 3}
INPUTS = ConcatLinearInputs(SIZES, 4)
SEEDS = [4, 9]


def clips(count: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn((count, size) if "pooled" in name else (count, 4, size)) for name, size in SIZES.items()}


def untrained() -> ConcatLinear:
    network = ConcatLinear(INPUTS, SEEDS)
    for parameter in network.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    network.norm.running_mean.copy_(torch.randn(2, 1, 15))
    network.norm.running_variance.copy_(torch.rand(2, 1, 15) + 0.5)
    return network


def in_numpy(network: ConcatLinear, features: dict[str, torch.Tensor], member: int, training: bool) -> np.ndarray:
    """The same logits, in double precision."""
    columns = [x.double().numpy() for x in features.values()]
    x = np.concatenate([c.mean(axis=1) if c.ndim == 3 else c for c in columns], axis=1)
    values = {name: tensor[member].detach().double().numpy() for name, tensor in network.state_dict().items()}
    mean, variance = values["norm.running_mean"][0], values["norm.running_variance"][0]
    if training:
        mean, variance = x.mean(axis=0), x.var(axis=0)
    y = (x - mean) / np.sqrt(variance + 1e-5) * values["norm.weight"][0] + values["norm.bias"][0]
    return y @ values["classifier.weight"][:, 0] + values["classifier.bias"][0, 0]


@pytest.mark.parametrize("training", [True, False])
def test_it_is_a_logistic_regression_of_mean_features(training: bool) -> None:
    network, features = untrained(), clips(6)
    logits = network(features, ForwardContext(network.seeds, 0, training=training, track_statistics=False))
    for member in range(2):
        expected = in_numpy(network, features, member, training)
        np.testing.assert_allclose(logits[member].detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_running_statistics_move_as_those_of_torch() -> None:
    network, features = ConcatLinear(INPUTS, SEEDS), clips(6)
    plain = torch.nn.BatchNorm1d(15)
    for update in range(3):
        network(features, ForwardContext(network.seeds, update, training=True, track_statistics=True))
        plain(torch.cat([x.mean(dim=1) if x.dim() == 3 else x for x in features.values()], dim=1))
        features = {name: 2.0 * x + 1.0 for name, x in features.items()}
    for member in range(2):
        assert torch.allclose(network.norm.running_mean[member, 0], plain.running_mean, atol=1e-6)
        assert torch.allclose(network.norm.running_variance[member, 0], plain.running_var, atol=1e-5)


def test_its_size_is_that_of_its_parameters() -> None:
    network = ConcatLinear(INPUTS, [0])
    assert INPUTS.count_parameters() == sum(p.numel() for p in network.parameters()) == 3 * 15 + 1
    assert INPUTS.count_macs() == network.classifier.weight.numel() == 15
    assert (network.used_features, network.length) == (tuple(SIZES), 4)
    with pytest.raises(InputError, match="features is empty"):
        ConcatLinearInputs({}, 4)


class _Meeting:
    """Lets threads sum tensors as workers do."""

    def __init__(self, world: int) -> None:
        self.barrier, self.given = threading.Barrier(world, timeout=30), [None] * world

    def workers(self, rank: int) -> Workers:
        meeting = self

        class Thread(Workers):
            def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
                meeting.given[rank] = tensor.clone()
                meeting.barrier.wait()
                total = sum(meeting.given)
                meeting.barrier.wait()
                return tensor.copy_(total)

        return Thread(rank, len(self.given))


def test_two_workers_see_the_statistics_of_all_clips() -> None:
    features, labels = clips(7), torch.tensor([[0, 1, 1, 0, 1, 0, 1]] * 2)
    weights = torch.ones(2, 2)
    alone = untrained()
    state = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    context = ForwardContext(alone.seeds, 0, training=True, track_statistics=True)
    balanced_cross_entropy(alone(features, context), labels, weights).sum().backward()
    meeting, networks = _Meeting(2), []

    def work(rank: int) -> None:
        network = ConcatLinear(INPUTS, SEEDS)
        network.load_state_dict(state)
        workers = meeting.workers(rank)
        context = ForwardContext(network.seeds, 0, training=True, track_statistics=True, workers=workers)
        own = {name: x[rank::2] for name, x in features.items()}
        balanced_cross_entropy(network(own, context), labels[:, rank::2], weights, clips=7).sum().backward()
        networks.append(network)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = networks
    for ours, theirs, whole in zip(one.parameters(), two.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(ours.grad + theirs.grad, whole.grad, atol=1e-5)
    assert torch.allclose(one.norm.running_variance, alone.norm.running_variance, atol=1e-5)
    assert torch.equal(one.norm.running_mean, two.norm.running_mean)


def test_the_common_loop_trains_it_and_its_weights_come_back(planted: Callable) -> None:
    names = ["visual.f0", "visual.f1", "audio.f0"]
    train, dev = (planted(seed, 192, names, ["visual.f1", "audio.f0"]) for seed in (1, 2))
    columns = train[0]
    inputs = ConcatLinearInputs({name: column.shape[1] for name, column in columns.items()}, 4)
    config = FoundConfig(epochs=12, batch_size=32, weights=WeightSchedule(learning_rate_max=3e-2))
    sets = {"train": ClipSet(*train, members=2), "dev": ClipSet(*dev, members=2)}
    run = FoundTraining(inputs, SEEDS, config=config, **sets)
    while not run.finished:
        run.run_epoch()
    assert min(run.best_auc) > 0.75
    network = run.best_network()
    again = load_network(inputs, member_weights(network, 1))
    np.testing.assert_allclose(predict(again, run.dev)[0], predict(network, run.dev)[1], atol=1e-6)
    other = ConcatLinearInputs({**inputs.features, "audio.f0": 3}, 4)
    with pytest.raises(InputError, match="do not fit the features"):
        load_network(other, member_weights(network))
