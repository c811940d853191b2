"""What the found networks of a search space cost: the smallest and the largest count, and the expected one, which an
architecture loss can hold down.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stgs.config import require
from stgs.genotype import head_parameters, operation_costs, reshape_parameters, tail_parameters
from stgs.search_space import IDENTITY, SearchSpace


def reshape_counts(space: SearchSpace) -> dict[str, int]:
    """Feature -> parameters of its reshape layer, in index order."""
    return {name: reshape_parameters(size, space.channels) for name, size in space.features.items()}


def operation_counts(space: SearchSpace) -> dict[str, int]:
    """Operation -> parameters, for those that decoding may pick: all of the space but Zero."""
    costs = operation_costs(space.channels, space.length)
    return {name: costs[name][0] for name in space.operations if name != "zero"}


def constant_parameters(space: SearchSpace) -> int:
    """Parameters that every found network of the space has: tails, and the layer norm of the head."""
    tail = tail_parameters(space.num_steps, space.channels, space.length)
    return space.num_cells * tail + head_parameters(space.num_cells, space.channels, space.length)


def smallest_parameters(space: SearchSpace) -> int:
    """Parameters, without the classifier, of the smallest genotype that decoding can give.

    Cell 1 needs two features. Each later cell needs an input that no earlier cell used, while there is one: the cell
    before it, which costs nothing, or, where earlier cells are no inputs, another feature.
    """
    needed = 2 if space.earlier_cells else space.num_cells + 1
    steps = space.num_cells * space.num_steps
    reshape = sum(sorted(reshape_counts(space).values())[:needed])
    return constant_parameters(space) + steps * min(operation_counts(space).values()) + reshape


def largest_parameters(space: SearchSpace) -> int:
    """Parameters, without the classifier, of the largest genotype that decoding can give: two new features a cell."""
    steps = space.num_cells * space.num_steps
    reshape = sum(sorted(reshape_counts(space).values(), reverse=True)[: 2 * space.num_cells])
    return constant_parameters(space) + steps * max(operation_counts(space).values()) + reshape


def require_fitting(space: SearchSpace, max_parameters: int) -> None:
    """Raise `InputError` if no found network of the space has as few as `max_parameters`; 0 stands for no limit."""
    smallest = smallest_parameters(space)
    require(
        not 0 < max_parameters < smallest,
        f"max_parameters is {max_parameters}, but the smallest found network of this space has {smallest}; give at "
        "least that, 0 for no limit, or fewer channels.",
    )


class ExpectedParameters:
    """Expected parameters of the found network, as a share of the largest found network of the space.

    Every choice is taken to be independent of the others: an edge of alpha is Identity with its probability, and a
    step's operation is drawn from softmax(gamma) over the operations but Zero, which decoding never picks. A feature
    costs its reshape layer if at least one cell reads it: 1 - product over cells of (1 - P(Identity)). Tails and head
    are the same in every found network, and beta costs nothing.

    Decoding gives each cell two inputs, independent edges any number: the value is the decoded genotype's own share
    where operations are decided and Identity is certain for the features that it uses, each in at least one cell, and
    impossible for the others. It lies above 0, and above 1 only where more than two features a cell are likely.

    Args:
        space: the search space.
        device, dtype: those of the logits.
    """

    def __init__(
        self, space: SearchSpace, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        largest = largest_parameters(space)

        def shares(counts: Mapping[str, int]) -> Tensor:
            return torch.tensor([count / largest for count in counts.values()], device=device, dtype=dtype)

        self._constant = constant_parameters(space) / largest
        self._reshape, self._operations = shares(reshape_counts(space)), shares(operation_counts(space))
        self._edges_per_cell = [len(space.cell_inputs(cell)) for cell in range(space.num_cells)]
        kept = [index for index, name in enumerate(space.operations) if name != "zero"]
        self._kept = torch.tensor(kept, device=device)

    def __call__(self, logits: Mapping[str, Tensor]) -> Tensor:
        """The share of each member, differentiable.

        logits: alpha [P, edges, 2] and gamma [P, steps, operations], as `SearchSpace.shapes` says. Returns [P].
        """
        # In logarithms: a product's gradient where a factor is 0 makes torch look at the values, hence wait.
        log_zero = torch.log_softmax(logits["alpha"], dim=-1)[..., 1 - IDENTITY]
        features = len(self._reshape)
        cells = [edges[:, :features] for edges in log_zero.split(self._edges_per_cell, dim=1)]
        used = -torch.expm1(torch.stack(cells, dim=1).sum(dim=1))
        operations = torch.softmax(logits["gamma"].index_select(2, self._kept), dim=-1)
        return self._constant + (used * self._reshape).sum(dim=1) + (operations * self._operations).sum(dim=(1, 2))
