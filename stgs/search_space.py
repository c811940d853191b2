"""The search space: which choices there are, and how the architecture parameters are laid out. No tensors here.

Two levels (paper, eq. 11-17). alpha has one edge for every (cell, candidate input), beta one for every (cell, step,
state inside the cell); both choose from `EDGE_OPERATIONS`. gamma chooses the operation of every (cell, step).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from stgs.config import InputError, require, require_at_least

EDGE_OPERATIONS = ("identity", "zero")
IDENTITY = EDGE_OPERATIONS.index("identity")
OPERATIONS = ("zero", "sum", "attention", "linear_glu", "concat_fc")
ARCHITECTURE_PARAMETERS = ("alpha", "beta", "gamma")
TAILS = ("concat", "weighted_sum")

RELEASED_FEATURES = {
    "visual.layer2": 512,
    "visual.layer3": 1024,
    "visual.layer4": 2048,
    "visual.pooled": 2048,
    "audio.layer2": 128,
    "audio.layer3": 256,
    "audio.layer4": 512,
    "audio.pooled": 512,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """What can be found.

    features: name -> channels of the features a cell may read, in index order. num_cells, num_steps: cells, and inner
    steps a cell. channels, length: C and L of everything behind the reshape layers. operations: candidates of a step.
    earlier_cells: whether a cell may read earlier cells. tail: how a supernet cell joins its steps, `concat` ->
    Conv(2C -> C), or the released code's `weighted_sum` -> Conv(C -> C).
    """

    features: Mapping[str, int]
    num_cells: int = 2
    num_steps: int = 2
    channels: int = 128
    length: int = 8
    operations: tuple[str, ...] = OPERATIONS
    earlier_cells: bool = True
    tail: str = "concat"

    def __post_init__(self) -> None:
        require(
            len(self.features) >= 2, f"features names {sorted(self.features)}, but a cell needs at least 2 to choose."
        )
        for name, channels in self.features.items():
            require_at_least(f"features[{name!r}]", channels, 1)
            require(not name.startswith("cell"), f"feature {name!r} begins with 'cell', which names earlier cells.")
        for field in ("num_cells", "num_steps", "channels", "length"):
            require_at_least(field, getattr(self, field), 1)
        for operation in self.operations:
            require(operation in OPERATIONS, f"operation is {operation!r}; choose from {', '.join(OPERATIONS)}.")
        require(
            len(set(self.operations)) == len(self.operations),
            f"operations is {list(self.operations)}, but each may be named once only.",
        )
        require(
            any(operation != "zero" for operation in self.operations),
            f"operations is {list(self.operations)}, but decoding needs one besides zero.",
        )
        require(self.tail in TAILS, f"tail is {self.tail!r}; choose one of {', '.join(TAILS)}.")

    def cell_inputs(self, cell: int) -> tuple[str, ...]:
        """Candidate inputs of cell number `cell` (from 0): the features, then the earlier cells, if allowed."""
        earlier = tuple(f"cell{index + 1}" for index in range(cell)) if self.earlier_cells else ()
        return (*self.features, *earlier)

    def states(self, step: int) -> tuple[str, ...]:
        """What step number `step` (from 0) of a cell may read: the cell's two inputs and the earlier steps."""
        return ("in1", "in2", *(f"step{index + 1}" for index in range(step)))

    @property
    def alpha_edges(self) -> tuple[tuple[int, str], ...]:
        """(cell, input) of every edge of alpha, in order."""
        return tuple((cell, name) for cell in range(self.num_cells) for name in self.cell_inputs(cell))

    @property
    def beta_edges(self) -> tuple[tuple[int, int, str], ...]:
        """(cell, step, state) of every edge of beta, in order."""
        return tuple(
            (cell, step, state)
            for cell in range(self.num_cells)
            for step in range(self.num_steps)
            for state in self.states(step)
        )

    @property
    def gamma_steps(self) -> tuple[tuple[int, int], ...]:
        """(cell, step) of every choice of gamma, in order."""
        return tuple((cell, step) for cell in range(self.num_cells) for step in range(self.num_steps))

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of one member's logits: alpha [edges, 2], beta [edges, 2], gamma [steps, operations]."""
        return {
            "alpha": (len(self.alpha_edges), len(EDGE_OPERATIONS)),
            "beta": (len(self.beta_edges), len(EDGE_OPERATIONS)),
            "gamma": (len(self.gamma_steps), len(self.operations)),
        }

    def probability_names(self) -> list[str]:
        """A name for every probability that says what a member prefers, in the order of the logits' flattened rows.

        One an edge of alpha (`alpha/cell1/visual.layer2`) and of beta (`beta/cell1/step1/in1`), P(Identity); one a
        candidate of gamma (`gamma/cell1/step1/linear_glu`).
        """
        alpha = [f"alpha/cell{cell + 1}/{name}" for cell, name in self.alpha_edges]
        beta = [f"beta/cell{cell + 1}/step{step + 1}/{state}" for cell, step, state in self.beta_edges]
        gamma = [
            f"gamma/cell{cell + 1}/step{step + 1}/{operation}"
            for cell, step in self.gamma_steps
            for operation in self.operations
        ]
        return alpha + beta + gamma

    def restricted(self, sense: str) -> SearchSpace:
        """The same space with one sense's features only; `sense` is `visual` or `audio`."""
        kept = {name: size for name, size in self.features.items() if name.startswith(f"{sense}.")}
        require(
            len(kept) >= 2,
            f"sense is {sense!r}, but of the features {sorted(self.features)} fewer than 2 are of it; give more "
            "features or another sense.",
        )
        return replace(self, features=kept)


def search_space(preset: str, features: Mapping[str, int], **changes: object) -> SearchSpace:
    """The space of a preset over given features.

    `default` is the paper's space; `released` is the released code's: no Zero among the operations, features only as
    inputs of cells, and the weighted-sum tail in the supernet (reference.md section 2). `changes` override fields.
    """
    presets: dict[str, dict[str, object]] = {
        "default": {},
        "released": {"operations": OPERATIONS[1:], "earlier_cells": False, "tail": "weighted_sum"},
    }
    if preset not in presets:
        raise InputError(f"preset is {preset!r}; choose one of {', '.join(presets)}.")
    return SearchSpace(features=dict(features), **{**presets[preset], **changes})  # type: ignore[arg-type]
