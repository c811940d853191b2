"""Random numbers that depend on (seed, update, name, position) alone.

A counter-based generator: every number is a hash of its coordinates, so nothing has to be saved for a resume, and a
member draws the same numbers alone or anywhere in a pack, on every device and on every worker. The 64-bit key of a
stream comes from two rounds of the SplitMix64 finaliser (Steele et al., OOPSLA 2014); each 32-bit word is its counter
hashed twice with the multiply-xorshift constants of Wellons' `lowbias32`, once under either half of the key. The keys
enter in two different places, because streams that differed by an exclusive-or of the counter alone would contain the
same words in another order.

All arithmetic is on signed tensors that wrap around; a logical right shift is an arithmetic one and a mask.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_GOLDEN_RATIO = 0x9E3779B97F4A7C15


def _signed(value: int, bits: int) -> int:
    """The two's complement reading of the lowest `bits` bits of `value`."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _mix64(x: Tensor) -> Tensor:
    """SplitMix64 finaliser on int64."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB, 64)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _mix32_(x: Tensor, scratch: Tensor) -> Tensor:
    """`lowbias32` on int32, in place; `scratch` has the shape of `x`."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None)):
        torch.bitwise_right_shift(x, shift, out=scratch)
        scratch.bitwise_and_((1 << (32 - shift)) - 1)
        x.bitwise_xor_(scratch)
        if factor is not None:
            x.mul_(_signed(factor, 32))
    return x


def seed_tensor(seeds: Tensor | Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Member seeds as an int64 tensor [P]."""
    return torch.as_tensor(seeds, dtype=torch.int64, device=device)


def _keys(seeds: Tensor, update: int, hashes: Tensor) -> Tensor:
    """64-bit keys of the streams with these hashes (`_hashes`, [n, 1]) of each member, int64 [n, P]."""
    key = _mix64(seeds + _signed(_GOLDEN_RATIO, 64))
    return _mix64(key ^ (hashes ^ _signed((update + 1) * _GOLDEN_RATIO, 64)))


def _name_hash(name: str) -> int:
    return _signed(zlib.crc32(name.encode()) << 32, 64)


def _words(keys: Tensor, counters: Tensor) -> Tensor:
    """The words of the streams `keys` [...] at `counters`, int32 [count]: int32 [..., count]."""
    low, high = keys.to(torch.int32), (keys >> 32).to(torch.int32)
    words = counters.bitwise_xor(low[..., None])
    scratch = torch.empty_like(words)
    _mix32_(words, scratch).add_(high[..., None])
    return _mix32_(words, scratch)


def random_words(seeds: Tensor, update: int, name: str, count: int) -> Tensor:
    """The first `count` uniform 32-bit words of each member's stream.

    seeds: int64 [P]. Returns int32 [P, count] on the device of `seeds`.
    """
    return _words(_keys(seeds, update, _hashes((name,), seeds.device)), _counters(count, seeds.device))[0]


def uniform(seeds: Tensor, update: int, name: str, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in the open interval (0, 1), with a resolution of 2^-32.

    seeds: int64 [P]. Returns float64 [P, *shape]; float64 keeps both ends away from 0 and 1.
    """
    return uniforms(seeds, update, (name,), math.prod(shape))[0].view(len(seeds), *shape)


def uniforms(seeds: Tensor, update: int, names: tuple[str, ...], count: int) -> Tensor:
    """The first `count` numbers of `uniform` from each of n streams, drawn in one go: float64 [n, P, count]."""
    words = _words(_keys(seeds, update, _hashes(names, seeds.device)), _counters(count, seeds.device))
    return (words.double() + (2.0**31 + 0.5)) * 2.0**-32


def normal(seeds: Tensor, update: int, name: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32 [P, *shape]."""
    return (math.sqrt(2.0) * torch.erfinv(2.0 * uniform(seeds, update, name, shape) - 1.0)).float()


def dropout_masks(
    seeds: Tensor,
    update: int,
    probabilities: Mapping[str, float],
    shape: Sequence[int],
    *,
    first: int = 0,
    stride: int = 1,
) -> dict[str, Tensor]:
    """Which positions the dropout of each layer keeps.

    One word serves four positions, so probabilities are rounded (`dropout_levels`). Every row begins with a word of its
    own, so that workers can draw the rows of their clips alone: first, first + stride, first + 2 stride, ... of the
    whole batch.

    Args:
        seeds: int64 [P].
        probabilities: name of a layer's stream -> probability in [0, 1).
        shape: rows, and the positions of one.

    Returns:
        Name -> uint8 [P, *shape], 1 where kept and 0 where dropped.
    """
    rows, positions = shape[0], math.prod(shape[1:])
    words_per_row = -(-positions // 4)
    counters = _counters(rows * words_per_row, seeds.device)
    if (first, stride) != (0, 1):
        row = torch.arange(first, first + rows * stride, stride, dtype=torch.int32, device=seeds.device)
        counters = (row[:, None] * words_per_row + counters[:words_per_row]).flatten()
    names = tuple(probabilities)
    at_once = len(names)
    if seeds.device.type == "cpu":
        at_once = _WORDS_IN_CACHE // (len(seeds) * len(counters))
    at_once = max(1, at_once)
    masks: dict[str, Tensor] = {}
    for start in range(0, len(names), at_once):
        part = names[start : start + at_once]
        levels = _levels(tuple(probabilities[name] for name in part), seeds.device)
        words = _words(_keys(seeds, update, _hashes(part, seeds.device)), counters)
        # In place on bytes: torch compares into booleans, and converts those, an order of magnitude slower on a CPU.
        kept = words.view(torch.uint8).view(len(part), len(seeds), rows, -1)[..., :positions].ge_(levels)
        masks |= {name: mask.reshape(len(seeds), *shape) for name, mask in zip(part, kept.unbind(), strict=True)}
    return masks


# Words that are drawn in one go on a CPU, 1 MB of them: the passes over them find them in a core's cache.
_WORDS_IN_CACHE = 1 << 18


def dropout_levels(probability: float) -> int:
    """Of 256 levels those that are dropped: `probability`, in [0, 1), as a multiple of 1/256, 255/256 at most."""
    return min(round(probability * 256), 255)


def keep_scale(probability: float) -> float:
    """What inverted dropout multiplies kept positions by, so that the expectation is exactly the input."""
    return 256.0 / (256 - dropout_levels(probability))


@functools.lru_cache(maxsize=256)
def _counters(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=256)
def _hashes(names: tuple[str, ...], device: torch.device) -> Tensor:
    """Hashes of the names of streams, int64 [n, 1]. Kept, as the levels are: a copy to a device waits for it."""
    return torch.tensor([[_name_hash(name)] for name in names], dtype=torch.int64, device=device)


@functools.lru_cache(maxsize=256)
def _levels(probabilities: tuple[float, ...], device: torch.device) -> Tensor:
    """Levels of dropout, uint8 [n, 1, 1, 1]."""
    levels = torch.tensor([dropout_levels(p) for p in probabilities], dtype=torch.uint8, device=device)
    return levels.view(-1, 1, 1, 1)
