"""Gradient estimators: from architecture logits to the weights that mix the candidates.

Shapes: P members, M samples, ... any axes (edges, steps), K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stgs.config import InputError, require
from stgs.streams import seed_tensor, uniform

ESTIMATORS = ("softmax", "stgs")


def gumbel_noise(
    seeds: Tensor | Sequence[int], update: int, name: str, num_samples: int, shape: Sequence[int]
) -> Tensor:
    """Standard Gumbel noise from a counter-based stream per (member seed, update, name).

    The first m samples do not depend on `num_samples`: a member with a smaller number in a pack draws what it draws
    alone.

    Args:
        seeds: member seeds, int64 [P]; the noise lies on the device of this tensor.
        update: number of the update, counted over weight and architecture updates, at least 0.
        name: which logits the noise is for, such as `alpha`.
        num_samples: M, at least 1.
        shape: shape of one member's logits (..., K).

    Returns:
        float32 [P, M, *shape].
    """
    require(num_samples >= 1, f"num_samples is {num_samples}, but at least 1 sample is needed.")
    drawn = uniform(seed_tensor(seeds, _device(seeds)), update, f"gumbel/{name}", (num_samples, *shape))
    return -torch.log(-torch.log(drawn)).float()


def relax(
    logits: Tensor,
    noise: Tensor | None,
    *,
    estimator: str,
    temperature: Tensor | Sequence[float] | float,
    num_samples: Tensor | Sequence[int] | int,
) -> Tensor:
    """Weights of the candidates, differentiable in `logits`.

    `softmax`: softmax(logits), exact gradient (BM-NAS, arXiv 2104.09379); noise, temperature and num_samples are not
    used. `stgs`: with S_m = softmax((logits + g_m) / temperature), forward the mean of the one-hot vectors of
    argmax S_m, backward the gradient of the mean of S_m (STGS-BMNAS, arXiv 2406.13384, eq. 6-7 with M samples). The
    temperature shapes the gradient alone: the frequency of the one-hot vectors is softmax(logits) at every temperature.

    Args:
        logits: [P, ..., K].
        noise: standard Gumbel [P, M_max, ..., K]; None for `softmax`.
        estimator: one of `ESTIMATORS`.
        temperature: above 0; [P] or a number.
        num_samples: samples that a member uses, the first of its noise, 1 to M_max; [P] or a number.

    Returns:
        Weights shaped like `logits`, each at least 0, summing to 1 over K.

    Raises:
        InputError: unknown estimator, noise whose shape does not fit, temperature or num_samples out of range (values
            that lie on an accelerator are not read back, so they are not checked here).
    """
    if estimator == "softmax":
        return torch.softmax(logits, dim=-1)
    if estimator == "stgs":
        return _straight_through(logits, noise, temperature, num_samples)
    raise InputError(f"estimator is {estimator!r}; choose one of {', '.join(ESTIMATORS)}.")


def _straight_through(
    logits: Tensor,
    noise: Tensor | None,
    temperature: Tensor | Sequence[float] | float,
    num_samples: Tensor | Sequence[int] | int,
) -> Tensor:
    fits = noise is not None and noise.shape[:1] + noise.shape[2:] == logits.shape and noise.dim() == logits.dim() + 1
    if noise is None or not fits:
        found = None if noise is None else tuple(noise.shape)
        raise InputError(f"noise has shape {found}, but logits {tuple(logits.shape)} need [P, M, ..., K].")
    members, most = noise.shape[:2]
    tail = (1,) * (logits.dim() - 1)
    scale = _per_member(temperature, members, logits, "temperature").view(members, 1, *tail)
    counts = _per_member(num_samples, members, logits, "num_samples", most=most)
    share = (torch.arange(most, device=logits.device) < counts[:, None]) / counts[:, None]
    share = share.to(logits.dtype).view(members, most, *tail)

    perturbed = logits.unsqueeze(1) + noise
    soft = torch.softmax(perturbed / scale, dim=-1)
    # argmax of S is argmax of logits + noise; taken there, because a high temperature rounds near values of S to ties.
    hard = torch.zeros_like(soft).scatter_(-1, perturbed.detach().argmax(dim=-1, keepdim=True), 1.0)
    soft_mean = (soft * share).sum(dim=1)
    hard_mean = (hard * share).sum(dim=1)
    # The difference is an exact zero, so the forward value is the hard mean to the bit.
    return hard_mean + (soft_mean - soft_mean.detach())


def _per_member(
    value: Tensor | Sequence[float] | float, members: int, like: Tensor, name: str, most: int | None = None
) -> Tensor:
    """`value` as a tensor [P]: whole numbers from 1 to `most`, or, where it is None, finite numbers above 0."""
    tensor = torch.as_tensor(value, dtype=like.dtype)
    if tensor.device.type == "cpu":
        if most is None:
            inside, range_ = (tensor > 0) & tensor.isfinite(), "finite and above 0"
        else:
            inside, range_ = (tensor >= 1) & (tensor <= most) & (tensor == tensor.round()), f"whole, from 1 to {most}"
        require(bool(inside.all()), f"{name} is {tensor.tolist()}, but every value must be {range_}.")
    require(
        tensor.dim() == 0 or tensor.shape == (members,),
        f"{name} has shape {tuple(tensor.shape)}, but a number or one value for each of {members} members is needed.",
    )
    return tensor.to(like.device).expand(members)


def _device(seeds: Tensor | Sequence[int]) -> torch.device:
    return seeds.device if isinstance(seeds, Tensor) else torch.device("cpu")
