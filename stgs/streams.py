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

import math
import zlib
from collections.abc import Sequence

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


def random_words(seeds: Tensor, update: int, name: str, count: int) -> Tensor:
    """Uniform 32-bit words.

    seeds: int64 [P]. Returns int32 [P, count] on the device of `seeds`.
    """
    key = _mix64(seeds + _signed(_GOLDEN_RATIO, 64))
    key = _mix64(key ^ _signed((update + 1) * _GOLDEN_RATIO ^ (zlib.crc32(name.encode()) << 32), 64))
    low, high = key.to(torch.int32), (key >> 32).to(torch.int32)
    words = torch.arange(count, dtype=torch.int32, device=seeds.device).bitwise_xor(low[:, None])
    scratch = torch.empty_like(words)
    _mix32_(words, scratch).add_(high[:, None])
    return _mix32_(words, scratch)


def uniform(seeds: Tensor, update: int, name: str, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in the open interval (0, 1), with a resolution of 2^-32.

    seeds: int64 [P]. Returns float64 [P, *shape]; float64 keeps both ends away from 0 and 1.
    """
    words = random_words(seeds, update, name, math.prod(shape))
    return ((words.double() + (2.0**31 + 0.5)) * 2.0**-32).view(len(seeds), *shape)


def normal(seeds: Tensor, update: int, name: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32 [P, *shape]."""
    return (math.sqrt(2.0) * torch.erfinv(2.0 * uniform(seeds, update, name, shape) - 1.0)).float()


def dropout_mask(seeds: Tensor, update: int, name: str, shape: Sequence[int], probability: float) -> Tensor:
    """Mask of inverted dropout: 0 where dropped, 1 / (share kept) elsewhere; its expectation is exactly 1.

    One word serves four positions, so `probability`, in [0, 1), is rounded to a multiple of 1/256, 255/256 at most.
    seeds: int64 [P]. Returns float32 [P, *shape].
    """
    count = math.prod(shape)
    levels = min(round(probability * 256), 255)
    words = random_words(seeds, update, name, -(-count // 4))
    # In place on bytes: torch compares into booleans, and converts those, an order of magnitude slower on a CPU.
    kept = words.view(torch.uint8)[:, :count].ge_(levels)
    return kept.to(torch.float32).mul_(256.0 / (256 - levels)).view(len(seeds), *shape)
