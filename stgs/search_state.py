"""Parts of the state of a population: what a split pack goes on with (`PopulationSearch.state_dict`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from stgs.epoch_sums import slice_sums


def members_of(value: Tensor, positions: Sequence[int]) -> Tensor:
    """A copy of the members at `positions` of a tensor [P, ...]; a scalar, such as Adam's count of steps, is whole."""
    return value.clone() if value.dim() == 0 else value[list(positions)].contiguous()


def slice_state(state: Mapping[str, Any], members: Sequence[int]) -> dict[str, Any]:
    """The state of a part of a population: of the members with these numbers, in this order, numbered anew from 0."""
    active = [member for member in members if member in state["active"]]
    positions = [state["active"].index(member) for member in active]
    sliced = dict(state)
    if positions:  # otherwise nothing of the supernet is ever used again
        sliced["supernet"] = {name: members_of(value, positions) for name, value in state["supernet"].items()}
        for name in ("weight_optimizer", "architecture_optimizer"):
            moments = {
                number: {key: members_of(value, positions) for key, value in own.items()}
                for number, own in state[name]["state"].items()
            }
            sliced[name] = {**state[name], "state": moments}
        sliced["sums"] = None if state["sums"] is None else slice_sums(state["sums"], positions)
    numbers = {member: number for number, member in enumerate(members)}
    return sliced | {
        "members": [state["members"][member] for member in members],
        "active": [numbers[member] for member in active],
        "rows": [{**row, "member": numbers[row["member"]]} for row in state["rows"] if row["member"] in numbers],
        "progress": [state["progress"][member] for member in members],
    }
