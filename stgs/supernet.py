"""The supernet: the fusion network that holds every candidate, for a population of members at once.

Shapes: P members, B clips, L positions, C channels, F features. Every parameter has the leading member axis P; P = 1
is an ordinary supernet. Members share the batch and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stgs.candidates import uniform_weights
from stgs.config import require, require_at_least
from stgs.estimators import SAMPLERS, UNIFORM, gumbel_noises, relax
from stgs.fused import weighted_sum
from stgs.layers import ForwardContext, Head, Reshape, Tail, dropout_probabilities, reshape_features
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


# Operations that need no module in a supernet.
FREE = ("zero", "sum")


class Cell(nn.Module):
    """One cell of the supernet: its steps mix every operation over every state, its tail joins the steps."""

    multiplicity: Tensor

    def __init__(self, shape: OperationShape, space: SearchSpace, number: int) -> None:
        super().__init__()
        self.space = space
        self.steps = nn.ModuleList()
        for step in range(space.num_steps):
            name = f"cell{number + 1}.step{step + 1}"
            self.steps.append(
                nn.ModuleDict(
                    {key: build_operation(key, shape, f"{name}.{key}") for key in space.operations if key not in FREE}
                )
            )
        members = len(shape.seeds)
        # w_o of the paper's weighted fusion (eq. 17): one scalar per candidate. Zero's has no effect.
        self.fusion_weight = nn.Parameter(torch.ones(members, space.num_steps, len(space.operations)))
        # The sum of a state with itself is the state with twice the weight: no pass over memory for it.
        multiplicity = torch.tensor([2.0 if operation == "sum" else 1.0 for operation in space.operations])
        self.register_buffer("multiplicity", multiplicity.repeat(members, 1, 1), persistent=False)
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
        scale = (gamma * self.fusion_weight * self.multiplicity).unbind(dim=1)
        for index, operations in enumerate(self.steps):
            # in1 and in2 are the same tensor here, so their two edges add up.
            edges = torch.cat([beta[index][:, :2].sum(dim=1, keepdim=True), beta[index][:, 2:]], dim=1)
            state = weighted_sum(edges, [x, *outputs])
            outputs.append(weighted_sum(scale[index], self._candidates(operations, state, context)))  # type: ignore[arg-type]
        if self.space.tail == "concat":
            return self.tail(torch.cat(outputs, dim=-1), x, context)
        return self.tail(weighted_sum(self.step_weight, outputs), x, context)

    def _candidates(self, operations: nn.ModuleDict, state: Tensor, context: ForwardContext) -> list[Tensor | None]:
        """What each operation of the space makes of the state twice; Zero is None, Sum half of it (`multiplicity`)."""
        made = {name: operation(state, state, context) for name, operation in operations.items()}
        return [state if name == "sum" else made.get(name) for name in self.space.operations]


class Supernet(nn.Module):
    """A population of supernets over one search space.

    Args:
        space: the search space.
        members: temperature, num_samples and seed of each member.
        estimator: the gradient estimator of all members, one of `stgs.estimators.ESTIMATORS`, or `uniform`.
        dropout, attention_dropout: in [0, 1).
        initial_logit_scale: standard deviation of the architecture logits at the start; with `uniform` they are 0.

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
        require(estimator in SAMPLERS, f"estimator is {estimator!r}; choose one of {', '.join(SAMPLERS)}.")
        self.space = space
        self.estimator = estimator
        self.max_samples = max(member.num_samples for member in members)
        if estimator == UNIFORM:
            initial_logit_scale = 0.0
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
        self._dropouts = dropout_probabilities(self)
        self._edges_per_cell = [len(space.cell_inputs(cell)) for cell in range(space.num_cells)]
        self._edges_per_step = [len(space.states(step)) for step in range(space.num_steps)] * space.num_cells

    def architecture_parameters(self) -> dict[str, nn.Parameter]:
        """alpha, beta and gamma, in this order."""
        return {name: self.architecture[name] for name in ARCHITECTURE_PARAMETERS}

    def weight_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter but the architecture's, by name."""
        return self._weights

    @torch.no_grad()
    def keep_members(self, positions: Sequence[int]) -> None:
        """Cut the population down to the members at `positions` (at least one), in this order.

        Parameters stay the same objects, so an optimiser keeps them; its own state has to be cut by its owner.
        """
        where = torch.tensor(positions, device=self.seeds.device)
        for parameter in self.parameters():
            parameter.data = parameter.data.index_select(0, where)
            parameter.grad = None
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.index_select(0, where))
        self.max_samples = int(self.num_samples.max())

    def candidate_weights(self, update: int | None, temperature: Tensor | None = None) -> dict[str, Tensor]:
        """Weights of the candidates of alpha, beta, gamma: relaxed with the noise of `update`, or, where it is None,
        the probabilities softmax(logits), as an evaluation uses them (paper, eq. 15, 18). Each shaped like its logits.
        With `uniform` those of an update are an architecture drawn by chance, and have no gradient.

        temperature: that of this update, [P]; None for the members' own.
        """
        temperature = self.temperature if temperature is None else temperature
        parameters = self.architecture_parameters()
        if update is None or self.estimator == "softmax":
            return {name: torch.softmax(logits, dim=-1) for name, logits in parameters.items()}
        if self.estimator == UNIFORM:
            return uniform_weights(self.seeds, update, self.space)
        most = dict.fromkeys(parameters, self.max_samples)
        if self.estimator == "released":
            most["beta"] = 1  # the released code perturbs it once only (reference.md section 3)
        shapes = {name: (most[name], *logits.shape[1:]) for name, logits in parameters.items()}
        noise = gumbel_noises(self.seeds, update, shapes)
        return {
            name: relax(
                logits,
                noise[name],
                estimator=self.estimator,
                temperature=temperature,
                num_samples=self.num_samples.clamp(max=most[name]),
            )
            for name, logits in parameters.items()
        }

    def forward(self, features: Mapping[str, Tensor], weights: Mapping[str, Tensor], context: ForwardContext) -> Tensor:
        """Logits of 'fake'.

        Args:
            features: name -> [B, L, C_f] or [B, C_f], float32, shared by the members.
            weights: what `candidate_weights` returned.

        Returns:
            [P, B].
        """
        space = self.space
        clips = len(next(iter(features.values())))
        context = context.with_masks(self._dropouts, (clips, space.length, space.channels))
        # Weights of Identity [P, edges], split by the cell or step that the edges lead to.
        alpha = weights["alpha"][..., IDENTITY].split(self._edges_per_cell, dim=1)
        from_features = self._mix_features([features[name] for name in space.features], alpha, context)
        beta = weights["beta"][..., IDENTITY].split(self._edges_per_step, dim=1)
        gamma = weights["gamma"].unflatten(1, (space.num_cells, space.num_steps))

        outputs: list[Tensor] = []
        for number, cell in enumerate(self.cells):
            x = from_features[number]
            if space.earlier_cells:
                for output, weight in zip(outputs, alpha[number][:, len(space.features) :].unbind(dim=1), strict=True):
                    x = torch.addcmul(x, output, weight.view(-1, 1, 1, 1))
            steps = beta[number * space.num_steps : (number + 1) * space.num_steps]
            outputs.append(cell(x, steps, gamma[:, number], context))
        return self.head(outputs)

    def _mix_features(
        self, features: Sequence[Tensor], alpha: Sequence[Tensor], context: ForwardContext
    ) -> list[Tensor]:
        """The features' share of every cell's input, each [P, B, L, C]; one pass over the features for all cells."""
        edges = [cell.unbind(dim=1) for cell in alpha]
        total: Tensor | None = None
        for indices, group in reshape_features(list(self.reshape), features, context):  # type: ignore[arg-type]
            shape = group.shape[1:]
            weights = torch.stack([cell[i] for cell in edges for i in indices], dim=1).unflatten(1, (len(edges), -1))
            nodes = group.flatten(start_dim=2).transpose(0, 1)
            total = torch.bmm(weights, nodes) if total is None else torch.baddbmm(total, weights, nodes)
        assert total is not None, "there is no feature"
        return list(total.view(len(total), len(edges), *shape[1:]).unbind(dim=1))
