"""How far trainings on Ray are: an actor that the tasks tell of their epochs, for the driver's progress bar.

Light to import: the actor's process needs no torch.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Between two messages of a task, and at most for an answer of the actor.
TELL_SECONDS = 0.5


class EpochCounter:
    """Group of networks -> epochs that they have run, all networks of the group counted."""

    def __init__(self) -> None:
        self._epochs: dict[int, int] = {}

    def tell(self, group: int, epochs: int) -> None:
        """Note how far a group is."""
        self._epochs[group] = epochs

    def epochs(self) -> dict[int, int]:
        """How far all groups are that have told."""
        return self._epochs


def start_counter() -> Any:
    """The counter as an actor on this node, without which training goes on; needs `cluster.session.connect`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0)(EpochCounter)
    return remote.options(scheduling_strategy=here).remote()


def told(counter: Any) -> dict[int, int]:
    """What the counter knows; nothing where it does not answer: the bar then stands still, and no more."""
    try:
        epochs: dict[int, int] = ray.get(counter.epochs.remote(), timeout=TELL_SECONDS)
    except ray.exceptions.RayError:
        return {}
    return epochs


class CounterLink:
    """A task's side of the counter, to be called after every epoch."""

    def __init__(self, counter: Any, group: int) -> None:
        self._counter, self._group = counter, group
        self._told_at = -TELL_SECONDS

    def __call__(self, epochs: int) -> None:
        """Tell of the group's epochs, unless that was done just now."""
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            self._counter.tell.remote(self._group, epochs)
