import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_prep import faces
from data_prep.faces import Faces, MtcnnDetector, follow_face


def found(*boxes: tuple[float, float, float, float, float]) -> Faces:
    """Faces from (left, top, side, score) with an optional height."""
    values = np.array([(left, top, left + width, top + height) for left, top, width, height, _ in boxes], np.float32)
    return Faces(values.reshape(-1, 4), np.array([box[4] for box in boxes], np.float32))


LEFT = (10, 10, 40, 50, 0.99)
RIGHT = (200, 10, 30, 40, 0.99)


def test_the_largest_face_is_followed_even_when_another_becomes_larger() -> None:
    nearer = (195, 5, 60, 70, 0.999)
    boxes, scores = follow_face([found(LEFT, RIGHT), found(nearer, LEFT), found(RIGHT, LEFT)], min_score=0.9)
    np.testing.assert_array_equal(boxes, np.array([[10, 10, 50, 60]] * 3, np.float32))
    np.testing.assert_allclose(scores, 0.99)


def test_a_moving_face_is_followed_step_by_step() -> None:
    path = [(10 + 20 * step, 10, 40, 50, 0.95) for step in range(5)]
    boxes, _ = follow_face([found(RIGHT, place) for place in path], min_score=0.9)
    assert boxes[:, 0].tolist() == [10, 30, 50, 70, 90]


def test_after_a_cut_the_largest_face_is_taken() -> None:
    boxes, _ = follow_face([found(LEFT), found((300, 300, 20, 20, 0.99), (400, 300, 60, 60, 0.99))], min_score=0.9)
    assert boxes[1].tolist() == [400, 300, 460, 360]
    tiny = (12, 12, 10, 10, 0.99)  # At the same place, but no face shrinks to a fifth.
    boxes, _ = follow_face([found(LEFT), found(tiny, RIGHT)], min_score=0.9)
    assert boxes[1].tolist() == [200, 10, 230, 50]


def test_a_missing_box_comes_from_the_nearest_frame_the_earlier_of_two() -> None:
    doubtful = (10, 10, 40, 50, 0.89)
    steps = [found(), found(LEFT), found(doubtful), found(RIGHT), found(), found()]
    boxes, scores = follow_face(steps, min_score=0.9)
    assert boxes[:, 0].tolist() == [10, 10, 10, 200, 200, 200]
    np.testing.assert_allclose(scores, [0, 0.99, 0, 0.99, 0, 0])


def test_a_clip_without_faces_has_no_boxes() -> None:
    boxes, scores = follow_face([found(), found((1, 1, 5, 5, 0.5))], min_score=0.9)
    assert np.isnan(boxes).all()
    assert scores.tolist() == [0, 0]


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose red is the column and whose green is the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


@pytest.mark.parametrize(
    ("box", "margin", "left", "top", "side"),
    [
        ((50, 60, 70, 100), 0.0, 40, 60, 40),
        ((50, 60, 70, 100), 0.5, 30, 50, 60),
        ((-10, -20, 30, 20), 0.0, 0, 0, 40),  # Moved into the image.
        ((190, 90, 230, 130), 0.5, 140, 60, 60),
        ((0, 0, 200, 300), 0.5, 40, 0, 120),  # No larger than the image.
    ],
)
def test_crop_is_the_square_around_the_box(
    box: tuple[float, ...], margin: float, left: int, top: int, side: int
) -> None:
    image = coordinates(120, 200)
    crop = faces.crop(image, np.array(box, np.float32), margin=margin, size=side)
    np.testing.assert_array_equal(crop, image[top : top + side, left : left + side].transpose(2, 0, 1))


@pytest.mark.parametrize("size", [20, 80])
def test_crop_is_scaled_to_its_size(size: int) -> None:
    crop = faces.crop(coordinates(120, 200), np.array([50, 60, 90, 100], np.float32), margin=0.0, size=size)
    assert crop.shape == (3, size, size)
    assert crop.dtype == np.uint8
    # Pixel i of the crop lies at 50 + (i + 0.5) * 40 / size - 0.5; the border pixels lean inwards.
    inner = slice(2, -2)
    expected = 50 + (np.arange(size) + 0.5) * 40 / size - 0.5
    np.testing.assert_allclose(crop[0, size // 2, inner], expected[inner], atol=1)


def test_centre_box() -> None:
    assert faces.centre_box(120, 200).tolist() == [40, 0, 160, 120]
    assert faces.centre_box(200, 120).tolist() == [0, 40, 120, 160]


def first_frames(path: Path, count: int) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = itertools.islice(container.decode(video=0), count)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def area(box: np.ndarray) -> float:
    return float((box[2:] - box[:2]).prod())


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    return MtcnnDetector(max_side=480, min_face_size=30)


def test_mtcnn_finds_a_real_face_whatever_the_frame_size(detector: MtcnnDetector, shared: Path) -> None:
    frames = first_frames(shared / "clips" / "voxceleb_224.mp4", 2)
    small = [faces_of_frame.boxes for faces_of_frame in detector(frames)]
    large = [faces_of_frame.boxes for faces_of_frame in detector(frames.repeat(5, axis=1).repeat(5, axis=2))]
    for boxes, others in zip(small, large, strict=True):
        assert boxes.shape == others.shape == (1, 4)
        low, high = np.maximum(boxes[0, :2], others[0, :2] / 5), np.minimum(boxes[0, 2:], others[0, 2:] / 5)
        both = (high - low).prod()
        assert both / (area(boxes[0]) + area(others[0] / 5) - both) > 0.7


def test_mtcnn_finds_nothing_in_frames_without_faces(detector: MtcnnDetector) -> None:
    grey = np.full((2, 96, 96, 3), 128, np.uint8)
    tiny = np.zeros((2, 20, 200, 3), np.uint8)
    for frames in (grey, tiny):
        assert [result.boxes.shape for result in detector(frames)] == [(0, 4), (0, 4)]


def test_large_frames_are_shrunk_for_the_detector_and_boxes_are_in_their_pixels(
    detector: MtcnnDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(frames: np.ndarray) -> tuple[list[Any], list[Any]]:
        assert frames.shape == (2, 480, 240, 3)
        return [np.array([[10, 20, 30, 40]])] * 2, [np.array([0.9])] * 2

    monkeypatch.setattr(detector._mtcnn, "detect", detect)
    for found_faces in detector(np.zeros((2, 1920, 960, 3), np.uint8)):
        assert found_faces.boxes.tolist() == [[40, 80, 120, 160]]


@pytest.mark.parametrize(
    "error", [IndexError("The shape of the mask [3] at index 0"), RuntimeError("expected a non-empty list of Tensors")]
)
def test_one_frame_that_fails_the_detector_does_not_cost_the_others(
    detector: MtcnnDetector, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def detect(frames: np.ndarray) -> tuple[list[Any], list[Any]]:
        if (frames == 255).any():
            raise error
        return [np.array([[1, 2, 3, 4]])] * len(frames), [np.array([0.9])] * len(frames)

    monkeypatch.setattr(detector._mtcnn, "detect", detect)
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    frames[1] = 255
    assert [len(result.boxes) for result in detector(frames)] == [1, 0, 1]


def test_other_errors_of_the_detector_are_not_hidden(detector: MtcnnDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    def detect(frames: np.ndarray) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(detector._mtcnn, "detect", detect)
    with pytest.raises(RuntimeError, match="CUDA"):
        detector(np.zeros((1, 64, 64, 3), np.uint8))
