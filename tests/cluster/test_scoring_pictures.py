"""Which windows are shown where not all can be."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cluster.scoring_pictures import KeptPictures

MOST = 10


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100, 1], [9, 1]),
        ([1, 100], [1, 9]),
        ([100, 2, 100], [4, 2, 4]),
        ([3, 2, 1], [3, 2, 1]),
        ([4] * 12, [1] * 10 + [0] * 2),
    ],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_no_place_is_free_while_a_window_is_left_out(sizes: list[int], expected: list[int], mixed: bool) -> None:
    windows = [(clip, float(index), {"frames": index}) for clip, size in enumerate(sizes) for index in range(size)]
    if mixed:
        random.Random(0).shuffle(windows)
    kept = KeptPictures(MOST)
    for number, window in enumerate(windows, 1):
        kept.add(*window)
        assert sum(bool(picture) for _, _, picture in windows[:number]) == min(number, MOST)
    left = [sum(bool(picture) for own, _, picture in windows if own == clip) for clip in range(len(sizes))]
    assert left == expected


@pytest.mark.parametrize("count", [30, 200])
def test_the_windows_of_a_clip_are_spread_over_it(count: int) -> None:
    windows = [(0, float(index), {"frames": index}) for index in range(count)]
    kept = KeptPictures(MOST)
    for window in windows:
        kept.add(*window)
    shown = [start for _, start, picture in windows if picture]
    assert (shown[0], shown[-1]) == (0, count - 1)
    assert np.diff(shown).max() <= 3 * count / MOST
