"""Windows that are no longer than their clip, with small images; and every frame of a clip, cut to a face."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import faces, window_crops
from data_prep.media_file import open_descriptor
from data_prep.rejects import RejectedError, RejectReason
from data_prep.video import FrameCollector
from data_prep.window import ClipWindow, read_window, shortened

RATE = 16_000


def read(path: Path, **changes: Any) -> ClipWindow:
    settings: Any = {"place": 0.0, "num_frames": 8, "min_duration_s": 0.5, "leading_silence_db": -40.0}
    with open_descriptor(str(path)) as video:
        return read_window(video, None, **settings | changes)


def cut(path: Path, **changes: Any) -> np.ndarray:
    settings: Any = {"start_s": 0.0, "interval_s": 0.04, "margin": 0.0, "size": 8} | changes
    settings = {"length_s": settings["interval_s"] * len(settings["boxes"])} | settings
    with open_descriptor(str(path)) as video:
        return window_crops.read_crops(video, None, **settings)


@pytest.fixture
def clip(clips: Any, tmp_path: Path) -> Path:
    """2 s, whose frames tell their numbers."""
    return clips.write(
        tmp_path / "clip.mkv",
        frame_times=np.arange(50) / 25,
        sound=clips.rising_tones(2),
        audio_codec="pcm_s16le",
        video_codec="ffv1",
        side=96,
    )


def test_a_window_that_is_not_repeated_is_the_whole_clip(clip: Path, clips: Any) -> None:
    assert shortened(3.0, 8, 2.0) == (2.0, 5)
    assert shortened(3.0, 8, 4.0) == (3.0, 8)
    assert shortened(10.0, 27, 0.04) == (0.04, 1)
    window = read(clip, window_s=3.0, repeat=False)
    assert len(window.sound) == 2 * RATE
    assert [clips.number(image.transpose(2, 0, 1)) for image in window.images] == [5, 15, 25, 35, 45]
    repeated = read(clip, window_s=3.0)
    assert (len(repeated.sound), len(repeated.images)) == (3 * RATE, 8)
    np.testing.assert_array_equal(repeated.sound[: 2 * RATE], window.sound)


@pytest.mark.parametrize(("side", "size"), [(48, 48), (96, 96), (150, 96)])
def test_images_are_shrunk_as_the_detector_would(clip: Path, side: int, size: int) -> None:
    full = read(clip, window_s=1.0)
    small = read(clip, window_s=1.0, longest_side=side)
    for image, small_image in zip(full.images, small.images, strict=True):
        assert small_image.shape == (size, size, 3)
        np.testing.assert_array_equal(small_image, faces.shrunk(image, side))
    np.testing.assert_array_equal(small.frame_times_s, full.frame_times_s)
    assert small.facts == full.facts


def test_each_crop_is_of_its_own_place_and_moment(clip: Path, clips: Any) -> None:
    images = [clips.image(number, 96).transpose(2, 0, 1) for number in range(50)]
    boxes = [[40.0, float(top), 56.0, top + 16.0] for top in range(25)]
    crops = cut(clip, start_s=0.4, boxes=boxes)
    assert (crops.dtype, crops.shape) == (np.uint8, (25, 3, 8, 8))
    for index, crop in enumerate(crops):
        square = images[10 + index][:, index : index + 16, 40:56].reshape(3, 8, 2, 8, 2)
        # Stored as YUV, whose rounding is less than two levels.
        assert np.abs(crop - square.mean(axis=(2, 4))).max() < 2


def test_a_frame_that_stays_is_cut_at_every_place(clip: Path) -> None:
    boxes = [[0.0, 0.0, 16.0, 16.0], [80.0, 0.0, 96.0, 16.0]] * 2
    left, right, again, _ = cut(clip, start_s=0.2, interval_s=0.01, boxes=boxes)
    assert not np.array_equal(left, right)
    np.testing.assert_array_equal(left, again)


@pytest.mark.parametrize("rotation", [90, 180])
def test_places_are_those_of_the_picture_as_it_is_shown(clips: Any, tmp_path: Path, rotation: int) -> None:
    sound = clips.tone(300, 1.0, RATE)
    path = clips.write(tmp_path / "turned.mp4", frame_times=np.arange(25) / 25, sound=sound, rotation=rotation, side=96)
    (image, *_) = read(path, window_s=1.0, num_frames=25).images
    (crop,) = cut(path, boxes=[[10.0, 20.0, 58.0, 68.0]], size=24)
    np.testing.assert_array_equal(crop, window_crops._halved(image[20:68, 10:58].transpose(2, 0, 1)))


def test_means_over_four_pixels_are_rounded() -> None:
    image = np.zeros((3, 4, 4), np.uint8)
    image[0, :2, :2] = [[255, 255], [255, 255]]
    image[1, 2:, :2] = [[1, 0], [0, 1]]
    image[2, 2:, 2:] = [[1, 0], [0, 0]]
    halved = window_crops._halved(image)
    np.testing.assert_array_equal(halved, [[[255, 0], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]])


def test_what_is_not_there_is_refused(clip: Path) -> None:
    with pytest.raises(RejectedError, match="the picture breaks off") as info:
        cut(clip, boxes=[[0.0, 0.0, 16.0, 16.0]] * 60)
    assert info.value.reason is RejectReason.UNREADABLE


def test_no_full_picture_is_kept(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    keep = FrameCollector._keep_shown

    def noted(collector: FrameCollector) -> None:
        keep(collector)
        kept.append(sum(picture.image.nbytes for picture in collector._pictures))

    monkeypatch.setattr(FrameCollector, "_keep_shown", noted)
    cut(clip, boxes=[[0.0, 0.0, 96.0, 96.0]] * 50)
    assert kept == [count * 3 * 8 * 8 for count in range(1, 51)]
