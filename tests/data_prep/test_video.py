from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from data_prep.rejects import RejectedError, RejectReason
from data_prep.video import FrameCollector, Picture


def frame(clips: Any, index: int, time: float | None, side: int = 64) -> av.VideoFrame:
    made = av.VideoFrame.from_ndarray(clips.image(index, side), format="rgb24")
    made.time_base = Fraction(1, 90_000)
    made.pts = None if time is None else round(time * 90_000)
    return made


def collect(clips: Any, frame_times: list[float | None], wanted: list[float], fps: float = 25.0) -> list[Picture]:
    collector = FrameCollector(wanted, fps=fps)
    for index, time in enumerate(frame_times):
        collector.add(frame(clips, index, time))
    return collector.pictures()


def numbers(clips: Any, pictures: list[Picture]) -> list[int]:
    return [clips.number(picture.image.transpose(2, 0, 1)) for picture in pictures]


def test_the_frame_shown_at_each_moment_is_kept(clips: Any) -> None:
    pictures = collect(clips, [index / 25 for index in range(25)], [0.0, 0.0399, 0.0401, 0.5, 0.999])
    assert numbers(clips, pictures) == [0, 0, 1, 12, 24]
    assert [picture.time_s for picture in pictures] == pytest.approx([0.0, 0.0, 0.04, 0.48, 0.96], abs=1e-5)


def test_frames_of_uneven_length_are_held_until_the_next(clips: Any) -> None:
    assert numbers(clips, collect(clips, [0.0, 0.1, 2.0, 2.1], [0.05, 1.9, 2.05])) == [0, 1, 2]


def test_collecting_stops_after_the_last_moment(clips: Any) -> None:
    collector = FrameCollector([0.1, 0.3], fps=10)
    done = []
    for index in range(5):
        collector.add(frame(clips, index, index / 10))
        done.append(collector.done)
    # Frame 3 begins at 0.3 itself; that nothing comes later that is shown then is known from frame 4 on.
    assert done == [False, False, False, False, True]
    assert numbers(clips, collector.pictures()) == [1, 3]


def test_a_stamp_rounded_up_by_the_clock_counts_as_due(clips: Any) -> None:
    assert numbers(clips, collect(clips, [0.0, 1 / 3 + 4e-6, 2 / 3], [1 / 3])) == [1]


def test_frames_without_stamps_follow_each_other_at_the_rate(clips: Any) -> None:
    assert numbers(clips, collect(clips, [None] * 10, [0.0, 0.25, 0.85], fps=10)) == [0, 2, 8]


def test_frames_out_of_order_are_not_shown(clips: Any) -> None:
    assert numbers(clips, collect(clips, [0.0, 0.2, 0.1, 0.4], [0.15, 0.3])) == [0, 1]


def test_frames_of_another_size_take_that_of_the_first(clips: Any) -> None:
    collector = FrameCollector([0.0, 1.0], fps=1)
    collector.add(frame(clips, 5, 0.0, side=64))
    collector.add(frame(clips, 6, 1.0, side=128))
    assert [picture.image.shape for picture in collector.pictures()] == [(64, 64, 3)] * 2
    assert numbers(clips, collector.pictures()) == [5, 6]


def test_picture_that_breaks_off_or_begins_late_is_unreadable(clips: Any) -> None:
    with pytest.raises(RejectedError, match=r"the picture breaks off at 0\.40 s, before 0\.90 s") as info:
        collect(clips, [index / 25 for index in range(10)], [0.1, 0.9])
    assert info.value.reason is RejectReason.UNREADABLE
    with pytest.raises(RejectedError, match=r"the picture begins at 2\.00 s, after 0\.10 s"):
        collect(clips, [2.0, 2.1], [0.1])
    with pytest.raises(RejectedError, match="no picture can be decoded"):
        collect(clips, [], [0.1])
    # A little short, as where a stream ends one frame before the other, is no damage.
    assert numbers(clips, collect(clips, [index / 25 for index in range(10)], [0.45])) == [9]


def test_colours_are_rgb(clips: Any) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 200
    collector = FrameCollector([0.0], fps=25)
    made = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
    made.time_base, made.pts = Fraction(1, 25), 0
    collector.add(made)
    (picture,) = collector.pictures()
    np.testing.assert_allclose(picture.image.mean(axis=(0, 1)), [200, 0, 0], atol=3)
