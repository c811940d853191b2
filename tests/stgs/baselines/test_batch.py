"""Batches of sequences: what a crop, a flip, a padding and a normalisation are, by a plain loop over the clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stgs.baselines.batch import Labels, RawSequences, collate
from stgs.config import InputError
from tests.memory_sequences import MemorySequences

CLIPS = MemorySequences(8)
EVERYTHING = range(8)
POSITIONS = np.arange(400)


def pixels(video: Tensor) -> NDArray[np.uint8]:
    """The bytes [3, T, 100, 100] that a clip's normalised pictures were made from."""
    return np.round((video.double() * 0.165 + 0.421).numpy() * 255).astype(np.uint8)


def addressed(index: NDArray[np.int64], frames: int = 1) -> RawSequences:
    """Clips whose first channel holds each pixel's row, and whose second one its column."""
    rows, columns = np.indices((112, 112), dtype=np.uint8)
    video = np.stack([rows, columns, rows]).repeat(frames, axis=0).reshape(3, frames, 112, 112).transpose(1, 0, 2, 3)
    banks = np.zeros((frames, 104), np.float32)
    return RawSequences([video] * len(index), [banks] * len(index), index, len(index))


def cuts(index: NDArray[np.int64], augment: tuple[int, int], frames: int = 1) -> list[tuple[int, int, bool]]:
    """Top, left and flip of each clip, read from its pictures, which are checked to be such a cut."""
    found = []
    for video in collate(addressed(index, frames), augment=augment).video:
        seen = pixels(video)
        top, left, last = int(seen[0, 0, 0, 0]), int(seen[1, 0, 0].min()), int(seen[1, 0, 0, -1])
        columns = np.arange(left, left + 100)
        flip = last == left
        assert (seen[0] == np.arange(top, top + 100)[:, None]).all()
        assert (seen[1] == (columns[::-1] if flip else columns)).all()
        found.append((top, left, flip))
    return found


def test_a_batch_is_what_a_plain_loop_makes() -> None:
    batch = collate(CLIPS.at(EVERYTHING))
    longest = max(map(len, CLIPS.video))
    assert batch.video.shape == (8, 3, longest, 100, 100)
    assert batch.audio.shape == (8, 104, longest)
    assert batch.lengths.tolist() == [len(video) for video in CLIPS.video]
    assert len(set(batch.lengths.tolist())) > 1
    normalise = nn.LayerNorm(104, elementwise_affine=False)
    for clip, (video, banks) in enumerate(zip(CLIPS.video, CLIPS.filter_banks, strict=True)):
        centre = (video[:, :, 6:106, 6:106] / 255 - 0.421) / 0.165
        assert torch.allclose(batch.video[clip, :, : len(video)], torch.from_numpy(centre).float().transpose(0, 1))
        assert torch.allclose(batch.audio[clip, :, : len(video)], normalise(torch.from_numpy(banks)).T, atol=1e-6)
        assert not batch.video[clip, :, len(video) :].any()
        assert not batch.audio[clip, :, len(video) :].any()


def test_a_clip_is_cut_alike_in_all_its_frames_and_in_every_batch() -> None:
    """Neither the batch nor the worker changes it, nor the clip's length."""
    index, augment = POSITIONS[:12], (3, 1)
    whole = cuts(index, augment, frames=3)
    assert cuts(index[::-1], augment)[::-1] == whole
    assert cuts(index[1::2], augment) == whole[1::2]


def test_cuts_depend_on_seed_and_epoch_and_take_every_place_alike() -> None:
    drawn = cuts(POSITIONS, (3, 1))
    for other in ((3, 2), (4, 1)):
        same = np.mean([a == b for a, b in zip(drawn, cuts(POSITIONS, other), strict=True)])
        assert same < 0.03  # 1 / 338 of chance
    for axis in range(2):
        count = np.bincount([cut[axis] for cut in drawn], minlength=13)
        assert len(count) == 13
        # Each of 13 places of 400 clips: 31 +- 5.3.
        assert (abs(count - 400 / 13) < 4.5 * 5.3).all()
    assert abs(sum(flip for *_, flip in drawn) - 200) < 4.5 * 10


def test_read_only_arrays_are_taken() -> None:
    raw = MemorySequences(1).at([0])
    for array in (*raw.video, *raw.filter_banks, raw.index):
        array.flags.writeable = False
    assert collate(raw, augment=(0, 0)).lengths.tolist() == [len(raw.video[0])]


def test_labels_are_those_of_the_categories() -> None:
    labels = Labels.of(np.array(list("ABCD")))
    assert labels.audio_fake.tolist() == [0, 1, 0, 1]
    assert labels.visual_fake.tolist() == [0, 0, 1, 1]
    assert labels.fake.tolist() == [0, 1, 1, 1]
    assert labels.at(torch.tensor([3, 0])).fake.tolist() == [1, 0]
    with pytest.raises(InputError, match="category is 'E'"):
        Labels.of(np.array(["A", "E"]))


@pytest.mark.parametrize(
    ("video", "banks", "words"),
    [
        ((0, 3, 112, 112), (0, 104), "no frames"),
        ((2, 3, 112, 99), (2, 104), "112 x 99"),
        ((2, 3, 112, 112), (3, 104), r"\(3, 104\)"),
        ((2, 3, 112, 112), (2, 26), r"\(2, 26\)"),
    ],
)
def test_clips_of_other_shapes_are_refused(video: tuple[int, ...], banks: tuple[int, ...], words: str) -> None:
    good = MemorySequences(1).at([0])
    raw = RawSequences(
        [*good.video, np.zeros(video, np.uint8)],
        [*good.filter_banks, np.zeros(banks, np.float32)],
        np.array([3, 71]),
        2,
    )
    with pytest.raises(InputError, match=f"the clip at position 71 of its split has .*{words}"):
        collate(raw)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_filter_banks_that_are_not_finite_are_refused(value: float) -> None:
    raw = MemorySequences(3).at([2, 1])
    raw.filter_banks[1][-1, 50] = value
    with pytest.raises(InputError, match="the clip at position 1 of its split has filter banks that are not finite"):
        collate(raw)
