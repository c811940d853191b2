"""Adam for the parameters of a population, whose members must not feel each other."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

# On a CPU the fused kernel treats what is left over of whole vectors by other instructions, which round differently.
_VECTOR = 32
_FUSED_DEVICES = ("cpu", "cuda")


def adam(
    parameters: Collection[nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.Adam:
    """Adam, fused where a member's values do not depend on its place in the population.

    parameters: each [P, ...], all on one device. weight_decay: joins the gradient, as in Adam's paper. A state loads on
    any device: the groups and their order are the same on all, and the kernels are those of the device that loads it.
    """
    groups = []
    for odd in (False, True):
        own = [p for p in parameters if (p[0].numel() % _VECTOR > 0) == odd]
        if own:
            device = own[0].device.type
            fused = device in _FUSED_DEVICES and not (odd and device == "cpu")
            groups.append({"params": own, "fused": fused, "foreach": not fused})
    optimizer = torch.optim.Adam(groups, lr=learning_rate, betas=betas, weight_decay=weight_decay)
    optimizer.register_load_state_dict_pre_hook(_with_own_kernels)
    return optimizer


def _with_own_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state that is about to be loaded, whose groups say which kernels another device took."""
    groups = [
        {**saved, "fused": own["fused"], "foreach": own["foreach"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}
