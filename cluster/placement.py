"""Where the packs of a grid would start on the cluster as it is, and what the others wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """nodes: addresses of the nodes of a pack's workers; empty where it waits."""

    nodes: tuple[str, ...]


def place_packs(
    packs: int, free: Mapping[str, Mapping[str, float]], process: Mapping[str, float], workers: int = 1
) -> list[Placement]:
    """Places of `packs` packs, in their order, each of so many workers.

    free: address -> free resources of a node, in the order in which nodes are filled. process: resources of one worker.
    Ray decides by itself; this is what it can do at most now, so a pack that waits here does wait.
    """
    left = {address: dict(resources) for address, resources in free.items()}
    placed = []
    for _ in range(packs):
        nodes = _take(left, process, workers)
        placed.append(Placement(tuple(nodes)))
    return placed


def _take(left: dict[str, dict[str, float]], process: Mapping[str, float], workers: int) -> list[str]:
    """Places for all workers of a pack, taken from what is left; none where they do not all find one."""
    rooms = {
        address: int(min(resources.get(name, 0.0) // size for name, size in process.items()))
        for address, resources in left.items()
    }
    nodes = [address for address, room in rooms.items() for _ in range(room)][:workers]
    if len(nodes) < workers:
        return []
    for address in nodes:
        for name, size in process.items():
            left[address][name] -= size
    return nodes


def waiting_for(types: Sequence[str]) -> str:
    """What a pack that waits waits for. types: node types of the autoscaler that could hold one of its processes."""
    return f"waits for a node of type {' or '.join(types)}" if types else "waits until another pack has ended"
