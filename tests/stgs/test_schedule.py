"""Learning rates against torch's scheduler; temperatures; batches as a partition; the order of updates."""

import itertools
import math

import numpy as np
import pytest
import torch

from stgs.config import TEMPERATURE_SCHEDULES, InputError, WeightSchedule
from stgs.schedule import (
    ARCHITECTURE,
    WEIGHTS,
    epoch_batches,
    learning_rate,
    scheduled_temperature,
    update_order,
)


@pytest.mark.parametrize(("first", "multiplier"), [(1, 2), (3, 1), (5, 2), (2, 3)])
def test_learning_rate_equals_torch(first: int, multiplier: int) -> None:
    schedule = WeightSchedule(
        learning_rate_max=3e-3, learning_rate_min=2e-6, restart_epochs=first, restart_multiplier=multiplier
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
    optimizer.step()
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first, multiplier, eta_min=2e-6)
    batches = 7
    for epoch, index in itertools.product(range(20), range(batches)):
        torch_schedule.step(epoch + index / batches)
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(schedule, epoch + index / batches) == pytest.approx(expected, rel=1e-9)


def test_learning_rate_restarts_at_its_maximum() -> None:
    schedule = WeightSchedule()
    for epoch in (0, 1, 3, 7, 15):
        assert learning_rate(schedule, epoch) == schedule.learning_rate_max
        assert learning_rate(schedule, epoch + 1 - 1e-9) < schedule.learning_rate_max
    assert learning_rate(schedule, 2.999999) == pytest.approx(schedule.learning_rate_min, rel=1e-3)


@pytest.mark.parametrize(("clips", "size"), [(100, 16), (64, 64), (65, 64), (5, 64), (1, 1), (7, 1)])
def test_batches_are_a_partition_of_even_sizes(clips: int, size: int) -> None:
    batches = epoch_batches(clips, size, 3, 4, "train")
    assert sorted(np.concatenate(batches).tolist()) == list(range(clips))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-clips // size)


def test_batches_depend_on_seed_epoch_and_split_alone() -> None:
    def order(*arguments: object) -> list[int]:
        return np.concatenate(epoch_batches(200, 16, *arguments)).tolist()

    base = order(0, 0, "train")
    assert order(0, 0, "train") == base
    for other in (order(1, 0, "train"), order(0, 1, "train"), order(0, 0, "dev")):
        assert other != base


@pytest.mark.parametrize(("weight", "architecture"), [(8, 8), (10, 3), (3, 10), (7, 0), (1, 1), (5, 4)])
def test_spread_is_even(weight: int, architecture: int) -> None:
    order = update_order(weight, architecture, "spread")
    assert order.count(WEIGHTS) == weight
    assert order.count(ARCHITECTURE) == architecture
    assert order[0] == WEIGHTS
    places = [i for i, kind in enumerate(order) if kind == ARCHITECTURE]
    for done, place in enumerate(places, start=1):
        # The j-th of A architecture updates follows the weight update that completes the share j / A.
        share = order[:place].count(WEIGHTS) / weight
        assert done / architecture - 1e-9 <= share < done / architecture + 1 / weight


def test_released_order_puts_architecture_updates_last() -> None:
    assert update_order(3, 2, "epoch") == [WEIGHTS] * 3 + [ARCHITECTURE] * 2


INITIAL = torch.tensor([20.0, 1.0, 0.5, 10.0])


@pytest.mark.parametrize("schedule", TEMPERATURE_SCHEDULES)
def test_temperature_starts_at_the_members_own_and_ends_at_the_final_one(schedule: str) -> None:
    assert torch.equal(scheduled_temperature(INITIAL, schedule, 1.0, 0.0), INITIAL)
    end = scheduled_temperature(INITIAL, schedule, 2.0, 1.0)
    assert torch.allclose(end, INITIAL if schedule == "constant" else torch.full((4,), 2.0))


@pytest.mark.parametrize("progress", [0.1, 0.5, 0.93])
def test_temperature_between_its_ends(progress: float) -> None:
    for index, start in enumerate(INITIAL.tolist()):
        expected = {
            "constant": start,
            "linear": start + progress * (2.0 - start),
            "exponential": start ** (1 - progress) * 2.0**progress,
        }
        for schedule, value in expected.items():
            assert float(scheduled_temperature(INITIAL, schedule, 2.0, progress)[index]) == pytest.approx(value)


def test_exponential_temperature_falls_by_the_same_factor_in_equal_times() -> None:
    values = torch.stack([scheduled_temperature(INITIAL, "exponential", 0.1, step / 5) for step in range(6)])
    ratios = values[1:] / values[:-1]
    assert torch.allclose(ratios, ratios[:1].expand_as(ratios))


@pytest.mark.parametrize("schedule", TEMPERATURE_SCHEDULES)
def test_scheduled_temperature_has_the_same_bits_alone_and_in_a_pack(schedule: str) -> None:
    initial = torch.linspace(0.3, 40.0, 37)
    together = scheduled_temperature(initial, schedule, 1.5, 0.37)
    for index in range(len(initial)):
        alone = scheduled_temperature(initial[index : index + 1], schedule, 1.5, 0.37)
        assert torch.equal(together[index], alone[0])


def test_scheduled_temperature_reads_nothing_back_from_the_device() -> None:
    for schedule in TEMPERATURE_SCHEDULES:
        assert scheduled_temperature(INITIAL.to("meta"), schedule, 1.0, 0.5).device.type == "meta"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schedule": "cosine"}, "'cosine'; choose one of constant, linear, exponential"),
        ({"final": 0.0}, "final_temperature is 0.0"),
        ({"final": math.nan}, "final_temperature is nan"),
        ({"progress": -0.1}, "progress is -0.1"),
        ({"progress": 1.01}, "progress is 1.01"),
    ],
)
def test_wrong_temperature_schedules_are_refused(change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        scheduled_temperature(INITIAL, **{"schedule": "linear", "final": 1.0, "progress": 0.5, **change})
