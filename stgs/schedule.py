"""What happens when: learning rates, batches, and the order of weight and architecture updates. Pure functions."""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from stgs.config import WeightSchedule

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
