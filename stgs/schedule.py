"""What happens when: learning rates, temperatures, batches, and the order of weight and architecture updates.

Pure functions.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.config import TEMPERATURE_SCHEDULES, WeightSchedule, require

WEIGHTS, ARCHITECTURE = "weights", "architecture"


def learning_rate(schedule: WeightSchedule, epoch: float) -> float:
    """Cosine with warm restarts (SGDR, arXiv 1608.03983).

    epoch: epochs done, as a fraction, at least 0. Returns a rate between the schedule's minimum and maximum.
    """
    length = float(schedule.restart_epochs)
    while epoch >= length:
        epoch -= length
        length *= schedule.restart_multiplier
    span = schedule.learning_rate_max - schedule.learning_rate_min
    return schedule.learning_rate_min + 0.5 * span * (1.0 + math.cos(math.pi * epoch / length))


def scheduled_temperature(initial: Tensor, schedule: str, final: float, progress: float) -> Tensor:
    """The members' temperatures at a point of the search.

    Args:
        initial: each member's temperature at the start, above 0, [P].
        schedule: `constant` keeps it, as the paper does; `linear` and `exponential` (geometric) interpolate between it
            and `final`.
        final: temperature of all members at the end, above 0.
        progress: updates done / updates of the whole search, in [0, 1].

    Returns:
        [P], on the device of `initial`.

    Raises:
        InputError: unknown schedule, or `final` or `progress` out of range.
    """
    require(
        schedule in TEMPERATURE_SCHEDULES,
        f"temperature_schedule is {schedule!r}; choose one of {', '.join(TEMPERATURE_SCHEDULES)}.",
    )
    require(0 < final < math.inf, f"final_temperature is {final}, but it must be finite and above 0.")
    require(0 <= progress <= 1, f"progress is {progress}, but it must lie in [0, 1].")
    if schedule == "constant":
        return initial
    if schedule == "linear":
        return initial * (1.0 - progress) + final * progress
    # Not a power of a tensor: the bits of that depend on the number of members.
    return initial * torch.exp((math.log(final) - initial.log()) * progress)


def epoch_batches(num_clips: int, batch_size: int, data_seed: int, epoch: int, split: str) -> list[NDArray[np.int64]]:
    """One pass over a split: a permutation of 0 .. num_clips - 1, cut into ceil(num_clips / batch_size) batches.

    The batches differ by at most one clip, so that no last batch of few clips disturbs batch statistics. They depend on
    (data_seed, epoch, split, sizes) alone, never on labels or members.
    """
    order = np.random.default_rng([data_seed, epoch, zlib.crc32(split.encode())]).permutation(num_clips)
    return np.array_split(order, math.ceil(num_clips / batch_size))


def update_order(num_weight: int, num_architecture: int, alternate: str) -> list[str]:
    """The updates of one epoch: `spread` puts the architecture updates evenly between the weight updates, `epoch` after
    all of them. Returns a list of `WEIGHTS` and `ARCHITECTURE`.
    """
    if alternate == "epoch":
        return [WEIGHTS] * num_weight + [ARCHITECTURE] * num_architecture
    order = []
    for index in range(1, num_weight + 1):
        done = index * num_architecture // num_weight
        before = (index - 1) * num_architecture // num_weight
        order += [WEIGHTS] + [ARCHITECTURE] * (done - before)
    return order
