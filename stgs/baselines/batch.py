"""Clips as MRDF and its relatives read them: pictures at 25 frames per second, and as many columns of filter banks.

Sizes, augmentations and normalisations are those of MRDF's released code (reference.md section 7). Clips keep their own
lengths: a batch is as long as its longest clip, and its `lengths` say where the others end.

Shapes: N clips of a split, B clips of this worker's part of a batch, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from stgs.config import InputError, require
from stgs.streamed import Stream
from stgs.streams import seed_tensor, uniform

# Pixels of a picture's side as a model sees it, and numbers of a frame's sound: 4 steps of 26 filters.
CROP = 100
AUDIO_VALUES = 104
# Mean and standard deviation of a pixel in [0, 1].
PIXEL_MEAN, PIXEL_DEVIATION = 0.421, 0.165

CATEGORIES = "ABCD"


@dataclass(frozen=True, slots=True)
class RawSequences:
    """This worker's clips of a batch, as arrays.

    video: uint8 [T_i, 3, H, W] of each clip, RGB; H and W are those of all clips, at least 100. filter_banks: float32
    [T_i, 104] of each clip, not normalised. index: positions in the split, int64 [B]. clips: number of clips of the
    whole batch, all workers' together.
    """

    video: Sequence[NDArray[np.uint8]]
    filter_banks: Sequence[NDArray[np.float32]]
    index: NDArray[np.int64]
    clips: int


class SequenceStream(Stream[RawSequences], Protocol):
    """A stream of sequences."""

    @property
    def categories(self) -> NDArray[np.str_]:
        """A, B, C or D of all workers' clips, [N]; the same on every worker."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Which senses of B clips are fake: int64 [B] each, 0 or 1."""

    visual_fake: Tensor
    audio_fake: Tensor

    @property
    def fake(self) -> Tensor:
        """Whether either sense is fake, int64 [B]."""
        return self.visual_fake | self.audio_fake

    @classmethod
    def of(cls, categories: NDArray[np.str_], device: torch.device | str = "cpu") -> Labels:
        """The labels of categories, [B].

        Raises InputError for a category that is none of A, B, C, D.
        """
        unknown = sorted(set(categories.tolist()) - set(CATEGORIES))
        if unknown:
            raise InputError(f"category is {unknown[0]!r}, but it must be one of {', '.join(CATEGORIES)}.")
        # B: its sound is fake; C: its pictures; D: both.
        visual, audio = (np.isin(categories, list(fakes)).astype(np.int64) for fakes in ("CD", "BD"))
        return cls(torch.from_numpy(visual).to(device), torch.from_numpy(audio).to(device))

    def at(self, index: Tensor) -> Labels:
        """Those of the clips at these positions, int64 [B]."""
        return Labels(self.visual_fake[index], self.audio_fake[index])


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """What a model takes.

    video: float32 [B, 3, T, 100, 100], (x / 255 - 0.421) / 0.165 of pixels x. audio: float32 [B, 104, T], the 104
    numbers of a frame with mean 0 and variance 1. Both are zero behind a clip's end. lengths: int64 [B], frames of
    each clip, 1 to T, on the CPU: what is computed from them there need not wait for the device.
    """

    video: Tensor
    audio: Tensor
    lengths: Tensor


def collate(
    raw: RawSequences, *, device: torch.device | str = "cpu", augment: tuple[int, int] | None = None
) -> SequenceBatch:
    """A batch on `device`.

    Args:
        augment: (seed, epoch) of a random crop and a flip with probability 0.5, the same in all frames of a clip, which
            depend on these and on the clip's position in the split alone; None: the centre.

    Raises:
        InputError: a clip without frames, with pictures below 100 x 100, with another number of filter banks, or with
            such as are not finite.
    """
    device = torch.device(device)
    clips_of = zip(raw.index.tolist(), raw.video, raw.filter_banks, strict=True)
    sizes = [_checked(position, video, banks) for position, video, banks in clips_of]
    # Pixels travel as bytes and are cut on the device: a host that cuts them row by row is too slow for a GPU.
    clips = sent(raw.video, device).split(sizes)
    video = torch.zeros(len(sizes), 3, max(sizes), CROP, CROP, device=device)
    for own, clip, (top, left, flip) in zip(video, clips, _cuts(raw, augment), strict=True):
        cut = clip[:, :, top : top + CROP, left : left + CROP]
        own[:, : len(clip)] = (cut.flip(-1) if flip else cut).transpose(0, 1)
    behind = torch.arange(max(sizes), device=device) >= sent([np.array(sizes)], device)[:, None]
    video.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_DEVIATION).masked_fill_(behind[:, None, :, None, None], 0.0)
    audio = functional.layer_norm(sent(raw.filter_banks, device), (AUDIO_VALUES,))
    audio = pad_sequence(list(audio.split(sizes)), batch_first=True).mT.contiguous()
    return SequenceBatch(video, audio, torch.tensor(sizes))


def _checked(position: int, video: NDArray[np.uint8], banks: NDArray[np.float32]) -> int:
    """Frames of the clip at this position in the split, whose arrays must belong together."""
    frames, _, height, width = video.shape
    clip, way_out = f"the clip at position {position} of its split", "prepare the corpus anew."
    require(frames > 0, f"{clip} has no frames; {way_out}")
    require(
        min(height, width) >= CROP,
        f"{clip} has pictures of {height} x {width}, but at least {CROP} x {CROP} are needed; {way_out}",
    )
    require(
        banks.shape == (frames, AUDIO_VALUES),
        f"{clip} has {frames} frames and filter banks of shape {banks.shape}, but they must be "
        f"{(frames, AUDIO_VALUES)}; {way_out}",
    )
    require(bool(np.isfinite(banks).all()), f"{clip} has filter banks that are not finite; {way_out}")
    return frames


def sent(arrays: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Arrays as one on the device, joined along their first axis; they may be read-only."""
    # From pinned memory the host does not wait, and reads the next batch while the device works on this one.
    pinned = device.type == "cuda"
    dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    joined = torch.empty(sum(map(len, arrays)), *arrays[0].shape[1:], dtype=dtype, pin_memory=pinned)
    np.concatenate(arrays, out=joined.numpy())
    return joined.to(device, non_blocking=True)


def _cuts(raw: RawSequences, augment: tuple[int, int] | None) -> list[tuple[int, int, bool]]:
    """Of each clip the top and the left of its cut, and whether it is flipped."""
    spare = np.array([[size - CROP for size in video.shape[2:]] for video in raw.video])
    if augment is None:
        return [(top, left, False) for top, left in (spare // 2).tolist()]
    seed, epoch = augment
    # The streams' members are the positions in the split here.
    drawn = uniform(seed_tensor(raw.index.tolist()), epoch, f"augment/{seed}", (3,)).numpy()
    corners = (drawn[:, :2] * (spare + 1)).astype(np.int64)
    return [(top, left, flip < 0.5) for (top, left), flip in zip(corners.tolist(), drawn[:, 2].tolist(), strict=True)]
