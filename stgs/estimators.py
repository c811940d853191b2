"""Gradient estimators: from architecture logits to the weights that mix the candidates.

Shapes: P members, M samples, ... any axes (edges, steps), K candidates.

On a CPU a member has the same bits alone and in a pack. So powers and sums of exponentials are written with exp, log
and log1p, whose kernels treat every position of a tensor alike (those of pow and logaddexp do not), and samples are
padded to whole blocks, in which torch sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from stgs.config import InputError, require
from stgs.streams import seed_tensor, uniforms

# Sums over a multiple of this many samples have an order of additions that more samples of zeros do not change.
_SAMPLE_BLOCK = 8
# exp of this is near 1e26: far above any difference of logits that a softmax still resolves, far below overflow.
_LARGEST_EXPONENT = 60.0


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
    return gumbel_noises(seeds, update, {name: (num_samples, *shape)})[name]


def gumbel_noises(
    seeds: Tensor | Sequence[int], update: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """What `gumbel_noise` gives for each name and shape (M, ..., K), drawn in one go: float32 [P, M, ..., K]."""
    for shape in shapes.values():
        require(shape[0] >= 1, f"num_samples is {shape[0]}, but at least 1 sample is needed.")
    counts = [math.prod(shape) for shape in shapes.values()]
    names = tuple(f"gumbel/{name}" for name in shapes)
    drawn = uniforms(seed_tensor(seeds, _device(seeds)), update, names, max(counts))
    noise = -torch.log(-torch.log(drawn)).float()
    return {
        name: part[:, :count].unflatten(1, shape)
        for (name, shape), count, part in zip(shapes.items(), counts, noise.unbind(), strict=True)
    }


def relax(
    logits: Tensor,
    noise: Tensor | None,
    *,
    estimator: str,
    temperature: Tensor | Sequence[float] | float,
    num_samples: Tensor | Sequence[int] | int,
    normalise: bool = True,
) -> Tensor:
    """Weights of the candidates, differentiable in `logits`.

    With p = softmax(logits), g_m the noise, S_m = softmax((logits + g_m) / temperature) and z_m = onehot(argmax S_m):

    - `softmax`: p, with its exact gradient (BM-NAS, arXiv 2104.09379). noise, temperature, num_samples are not used.
    - `stgs`: forward the mean of z_m, backward the gradient of the mean of S_m (STGS-BMNAS, arXiv 2406.13384, eq. 6-7
      with M samples).
    - `egs`: forward max over m of z_m, divided by its sum over K; backward the gradient of the element-wise max over m
      of S_m, divided by the same sum, held constant (ensemble Gumbel-softmax, arXiv 1905.01786).
    - `gumbel_rao`: forward z_1, backward the gradient of the mean of M samples S drawn conditionally on z_1
      (Rao-Blackwell, arXiv 2010.04838). S_1 is the first of them, so M = 1 is `stgs` with M = 1.
    - `released`: softmax of the logits after M rounds of logits = (logits + g_m) / temperature, soft forward and
      backward, as in the released code of STGS-BMNAS. Its gradient is of the order temperature^-M: it is here to
      reproduce that code, not to search with.

    The temperature shapes the gradient alone, except in `released`: z_m is k with probability p_k at every temperature.

    Args:
        logits: [P, ..., K].
        noise: standard Gumbel [P, M_max, ..., K]; None for `softmax`.
        estimator: one of `ESTIMATORS`.
        temperature: above 0; [P] or a number.
        num_samples: samples that a member uses, the first of its noise, 1 to M_max; [P] or a number.
        normalise: False leaves the division out of `egs`: bare multi-hot vectors.

    Returns:
        Weights shaped like `logits`, each at least 0, summing to 1 over K unless `normalise` is False.

    Raises:
        InputError: unknown estimator, noise whose shape does not fit, temperature or num_samples out of range (values
            that lie on an accelerator are not read back, so they are not checked here), `normalise` False for another
            estimator than `egs`.
    """
    require(estimator in ESTIMATORS, f"estimator is {estimator!r}; choose one of {', '.join(ESTIMATORS)}.")
    require(normalise or estimator == "egs", f"normalise is False, but estimator is {estimator!r}; only egs allows it.")
    if estimator == "softmax":
        return torch.softmax(logits, dim=-1)
    return _RELAXATIONS[estimator](_samples(logits, noise, temperature, num_samples, normalise))


@dataclass(frozen=True, slots=True)
class _Samples:
    """What an estimator that samples is given; the tensors broadcast against [P, M, ..., K].

    M is that of the noise, rounded up to whole blocks.
    logits: [P, 1, ..., K]. noise: [P, M, ..., K]. temperature, counts (samples that a member uses): [P, 1, ..., 1].
    number: 0 to M - 1, the number of the sample, [1, M, ..., 1].
    """

    logits: Tensor
    noise: Tensor
    temperature: Tensor
    counts: Tensor
    number: Tensor
    normalise: bool

    @property
    def used(self) -> Tensor:
        """Whether a member uses a sample, bool [P, M, ..., 1]."""
        return self.number < self.counts

    def soft(self, perturbed: Tensor) -> Tensor:
        """S of perturbed logits [P, M, ..., K]."""
        return torch.softmax(perturbed / self.temperature, dim=-1)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over each member's own samples, [P, M, ..., K] -> [P, ..., K]."""
        return (values * self.used).sum(dim=1) / self.counts.squeeze(1)


def _samples(
    logits: Tensor,
    noise: Tensor | None,
    temperature: Tensor | Sequence[float] | float,
    num_samples: Tensor | Sequence[int] | int,
    normalise: bool,
) -> _Samples:
    fits = noise is not None and noise.shape[:1] + noise.shape[2:] == logits.shape and noise.dim() == logits.dim() + 1
    if noise is None or not fits:
        found = None if noise is None else tuple(noise.shape)
        raise InputError(f"noise has shape {found}, but logits {tuple(logits.shape)} need [P, M, ..., K].")
    members, most = noise.shape[:2]
    tail = (1,) * (logits.dim() - 1)
    missing = -most % _SAMPLE_BLOCK
    return _Samples(
        logits=logits.unsqueeze(1),
        noise=pad(noise, (0, 0) * len(tail) + (0, missing)),
        temperature=_per_member(temperature, members, logits, "temperature").view(members, 1, *tail),
        counts=_per_member(num_samples, members, logits, "num_samples", most=most).view(members, 1, *tail),
        number=torch.arange(most + missing, dtype=logits.dtype, device=logits.device).view(1, -1, *tail),
        normalise=normalise,
    )


def _one_hot(perturbed: Tensor) -> Tensor:
    """z of perturbed logits: the argmax of S is that of logits + noise, and is taken there, because a high temperature
    rounds near values of S to ties."""
    best = perturbed.detach().argmax(dim=-1, keepdim=True)
    return torch.zeros_like(perturbed, requires_grad=False).scatter_(-1, best, 1.0)


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, to the bit because the difference is an exact zero, with the gradient of `soft`."""
    return hard + (soft - soft.detach())


def _stgs(samples: _Samples) -> Tensor:
    perturbed = samples.logits + samples.noise
    return _straight_through(samples.mean(_one_hot(perturbed)), samples.mean(samples.soft(perturbed)))


def _egs(samples: _Samples) -> Tensor:
    perturbed = samples.logits + samples.noise
    hard = (_one_hot(perturbed) * samples.used).amax(dim=1)
    # Below every S, so that a sample which the member does not use can neither win nor share a tie.
    soft = torch.where(samples.used, samples.soft(perturbed), -1.0).amax(dim=1)
    if not samples.normalise:
        return _straight_through(hard, soft)
    total = hard.sum(dim=-1, keepdim=True)
    return _straight_through(hard / total, soft / total)


def _gumbel_rao(samples: _Samples) -> Tensor:
    first = samples.noise[:, :1]
    hard = _one_hot(samples.logits + first)
    with torch.no_grad():
        log_p = torch.log_softmax(samples.logits, dim=-1)
        others = _conditional_noise(log_p, samples.noise[:, 1:], hard)
    perturbed = samples.logits + torch.cat([first, others], dim=1)
    return _straight_through(hard.squeeze(1), samples.mean(samples.soft(perturbed)))


def _conditional_noise(log_p: Tensor, noise: Tensor, hard: Tensor) -> Tensor:
    """Gumbel noise G given the argmax of log_p + G (arXiv 2010.04838, eq. 6 and 7).

    With E = exp(-noise), which is exponential, the winner D has log_p + G = -log E_D and every other candidate i
    -log(E_i / p_i + E_D), which lies below. In terms of the noise that is g_D and -logaddexp(-g_i - log p_i, -g_D).

    log_p: normalised, [P, 1, ..., K]. noise: fresh, [P, M, ..., K]. hard: one-hot of the argmax, [P, 1, ..., K].
    Returns [P, M, ..., K].
    """
    winner = (noise * hard).sum(dim=-1, keepdim=True)
    free = noise + log_p
    loser = torch.minimum(free, winner) - torch.log1p(torch.exp(-(free - winner).abs()))
    return torch.where(hard > 0, winner, loser) - log_p


def _released(samples: _Samples) -> Tensor:
    # The loop written out: logits t^-M + sum over m of g_m t^-(M - m + 1).
    log_temperature = samples.temperature.log()
    exponent = -samples.counts * log_temperature
    # Below temperature 1 the powers grow. One factor for all of them keeps the winner, and the softmax at one-hot.
    excess = (exponent - _LARGEST_EXPONENT).clamp_min(0.0)
    divisions = (samples.counts - samples.number).clamp_min(0.0)
    powers = torch.exp(-divisions * log_temperature - excess) * samples.used
    noise = (samples.noise * powers).sum(dim=1)
    return torch.softmax((samples.logits * torch.exp(exponent - excess)).squeeze(1) + noise, dim=-1)


_RELAXATIONS: dict[str, Callable[[_Samples], Tensor]] = {
    "stgs": _stgs,
    "egs": _egs,
    "gumbel_rao": _gumbel_rao,
    "released": _released,
}
ESTIMATORS = ("softmax", *_RELAXATIONS)
# No gradient at all: every update of the weights draws architectures by chance (`stgs.candidates.uniform_weights`).
UNIFORM = "uniform"
SAMPLERS = (*ESTIMATORS, UNIFORM)


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
