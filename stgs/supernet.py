"""The supernet: the fusion network that holds every candidate, for a population of members at once.

Shapes: P members, B clips, L positions, C channels, F features. Every parameter has the leading member axis P; P = 1
is an ordinary supernet. Members share the batch and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stgs.config import require, require_at_least
from stgs.estimators import ESTIMATORS, gumbel_noise, relax
from stgs.layers import ForwardContext, Head, Reshape, Tail
from stgs.operations import OperationShape, build_operation
from stgs.search_space import ARCHITECTURE_PARAMETERS, IDENTITY, SearchSpace
from stgs.streams import normal, seed_tensor


@dataclass(frozen=True, slots=True)
class Member:
    """One supernet of a population: temperature lambda > 0, num_samples M >= 1, and the seed of everything random."""

    temperature: float
    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"temperature is {self.temperature}, but it must be above 0.")
        require_at_least("num_samples", self.num_samples, 1)


class Cell(nn.Module):
    """One cell of the supernet: its steps mix every operation over every state, its tail joins the steps."""

    def __init__(self, shape: OperationShape, space: SearchSpace, number: int) -> None:
        super().__init__()
        self.space = space
        self.steps = nn.ModuleList()
        for step in range(space.num_steps):
            name = f"cell{number + 1}.step{step + 1}"
            self.steps.append(
                nn.ModuleDict(
                    {key: build_operation(key, shape, f"{name}.{key}") for key in space.operations if key != "zero"}
                )
            )
        members = len(shape.seeds)
        # w_o of the paper's weighted fusion (eq. 17): one scalar per candidate. Zero's has no effect.
        self.fusion_weight = nn.Parameter(torch.ones(members, space.num_steps, len(space.operations)))
        if space.tail == "weighted_sum":
            self.step_weight = nn.Parameter(torch.ones(members, space.num_steps))
        size_in = space.channels * (space.num_steps if space.tail == "concat" else 1)
        self.tail = Tail(shape.seeds, f"cell{number + 1}.tail", size_in, space.channels, space.length, shape.dropout)

    def forward(self, x: Tensor, beta: Sequence[Tensor], gamma: Tensor, context: ForwardContext) -> Tensor:
        """One pass of the cell.

        Args:
            x: the cell's input, which stands for in1 and in2, [P, B, L, C].
            beta: for each step the weights of Identity of its states in1, in2, step1, ..., [P, states].
            gamma: weights of the operations, [P, steps, operations].

        Returns:
            [P, B, L, C].
        """
        outputs: list[Tensor] = []
        scale = gamma * self.fusion_weight
        for index, operations in enumerate(self.steps):
            # in1 and in2 are the same tensor here, so their two edges add up.
            weights = (beta[index][:, 0] + beta[index][:, 1], *beta[index][:, 2:].unbind(dim=1))
            state = _mix([x, *outputs], weights)
            candidates = [operation(state, state, context) for operation in operations.values()]  # type: ignore[operator]
            factors = zip(self.space.operations, scale[:, index].unbind(dim=1), strict=True)
            outputs.append(_mix(candidates, [factor for name, factor in factors if name != "zero"]))
        if self.space.tail == "concat":
            return self.tail(torch.cat(outputs, dim=-1), x, context)
        return self.tail(_mix(outputs, self.step_weight.unbind(dim=1)), x, context)


def _mix(nodes: Sequence[Tensor], weights: Sequence[Tensor], total: Tensor | None = None) -> Tensor:
    """total + the sum of node * weight; nodes [P, B, L, C], weights [P]. One pass over memory a node."""
    for node, weight in zip(nodes, weights, strict=True):
        factor = weight.view(-1, 1, 1, 1)
        total = node * factor if total is None else torch.addcmul(total, node, factor)
    assert total is not None, "there is nothing to mix"
    return total


class Supernet(nn.Module):
    """A population of supernets over one search space.

    Args:
        space: the search space.
        members: temperature, num_samples and seed of each member.
        estimator: the gradient estimator of all members, one of `stgs.estimators.ESTIMATORS`.
        dropout, attention_dropout: in [0, 1).
        initial_logit_scale: standard deviation of the architecture logits at the start.

    Raises:
        InputError: no member, or unknown estimator.
    """

    seeds: Tensor
    temperature: Tensor
    num_samples: Tensor

    def __init__(
        self,
        space: SearchSpace,
        members: Sequence[Member],
        *,
        estimator: str = "stgs",
        dropout: float = 0.2,
        attention_dropout: float = 0.1,
        initial_logit_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        require(len(members) > 0, "members is empty, but a population needs at least one.")
        require(estimator in ESTIMATORS, f"estimator is {estimator!r}; choose one of {', '.join(ESTIMATORS)}.")
        self.space = space
        self.estimator = estimator
        self.max_samples = max(member.num_samples for member in members)
        seeds = [member.seed for member in members]
        self.register_buffer("seeds", seed_tensor(seeds), persistent=False)
        self.register_buffer("temperature", torch.tensor([float(m.temperature) for m in members]), persistent=False)
        self.register_buffer("num_samples", torch.tensor([m.num_samples for m in members]), persistent=False)

        self.architecture = nn.ParameterDict(
            {
                name: nn.Parameter(initial_logit_scale * normal(seed_tensor(seeds), 0, f"initial/{name}", shape))
                for name, shape in space.shapes().items()
            }
        )
        shape = OperationShape(seeds, space.channels, space.length, dropout, attention_dropout)
        self.reshape = nn.ModuleList(
            Reshape(seeds, name, size, space.channels, space.length, dropout) for name, size in space.features.items()
        )
        self.cells = nn.ModuleList(Cell(shape, space, number) for number in range(space.num_cells))
        self.head = Head(seeds, space.num_cells, space.channels, space.length)
        # Kept, because a walk over the modules takes a noticeable part of an update of one member.
        self._weights = {name: p for name, p in self.named_parameters() if not name.startswith("architecture.")}
        self._edges_per_cell = [len(space.cell_inputs(cell)) for cell in range(space.num_cells)]
        self._edges_per_step = [len(space.states(step)) for step in range(space.num_steps)] * space.num_cells

    def architecture_parameters(self) -> dict[str, nn.Parameter]:
        """alpha, beta and gamma, in this order."""
        return {name: self.architecture[name] for name in ARCHITECTURE_PARAMETERS}

    def weight_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter but the architecture's, by name."""
        return self._weights

    def candidate_weights(self, update: int | None) -> dict[str, Tensor]:
        """Weights of the candidates of alpha, beta, gamma: relaxed with the noise of `update`, or, where it is None,
        the probabilities softmax(logits), as an evaluation uses them (paper, eq. 15, 18). Each shaped like its logits.
        """
        weights = {}
        for name, logits in self.architecture_parameters().items():
            if update is None or self.estimator == "softmax":
                weights[name] = torch.softmax(logits, dim=-1)
                continue
            noise = gumbel_noise(self.seeds, update, name, self.max_samples, logits.shape[1:])
            weights[name] = relax(
                logits, noise, estimator=self.estimator, temperature=self.temperature, num_samples=self.num_samples
            )
        return weights

    def forward(self, features: Mapping[str, Tensor], weights: Mapping[str, Tensor], context: ForwardContext) -> Tensor:
        """Logits of 'fake'.

        Args:
            features: name -> [B, L, C_f] or [B, C_f], float32, shared by the members.
            weights: what `candidate_weights` returned.

        Returns:
            [P, B].
        """
        space = self.space
        reshaped = [layer(features[name], context) for layer, name in zip(self.reshape, space.features, strict=True)]
        # Weights of Identity [P, edges], split by the cell or step that the edges lead to.
        alpha = weights["alpha"][..., IDENTITY].split(self._edges_per_cell, dim=1)
        from_features = self._mix_features(reshaped, alpha)
        beta = weights["beta"][..., IDENTITY].split(self._edges_per_step, dim=1)
        gamma = weights["gamma"].unflatten(1, (space.num_cells, space.num_steps))

        outputs: list[Tensor] = []
        for number, cell in enumerate(self.cells):
            x = from_features[number]
            if space.earlier_cells:
                x = _mix(outputs, alpha[number][:, len(reshaped) :].unbind(dim=1), x)
            steps = beta[number * space.num_steps : (number + 1) * space.num_steps]
            outputs.append(cell(x, steps, gamma[:, number], context))
        return self.head(outputs)

    def _mix_features(self, reshaped: Sequence[Tensor], alpha: Sequence[Tensor]) -> list[Tensor]:
        """The features' share of every cell's input, each [P, B, L, C]; one pass over the features for all cells."""
        count = len(reshaped)
        stacked = torch.stack(list(reshaped), dim=1)
        weights = torch.stack([edge[:, :count] for edge in alpha], dim=1)
        mixed = torch.bmm(weights, stacked.flatten(start_dim=2)).view(len(stacked), len(alpha), *stacked.shape[2:])
        return list(mixed.unbind(dim=1))
