import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_prep import faces
from data_prep.faces import Faces, MtcnnDetector, Track, follow_face


def found(*boxes: tuple[float, float, float, float, float]) -> Faces:
    """Faces from (left, top, side, score) with an optional height."""
    values = np.array([(left, top, left + width, top + height) for left, top, width, height, _ in boxes], np.float32)
    return Faces(values.reshape(-1, 4), np.array([box[4] for box in boxes], np.float32))


LEFT = (10, 10, 40, 50, 0.99)
RIGHT = (200, 10, 30, 40, 0.99)


def lefts(track: Track) -> list[float]:
    return track.boxes[:, 0].tolist()


def test_the_larger_of_two_faces_is_followed_even_when_the_other_is_larger_once() -> None:
    nearer = (195, 5, 60, 70, 0.999)
    track = follow_face([found(LEFT, RIGHT), found(nearer, LEFT), found(RIGHT, LEFT)], min_score=0.9)
    # Sums of the longer sides: 3 * 50 and 40 + 70 + 40, the same; so the one that is larger when both begin.
    np.testing.assert_array_equal(track.boxes, np.array([[10, 10, 50, 60]] * 3, np.float32))
    np.testing.assert_allclose(track.scores, 0.99)
    assert (track.num_faces, track.choice) == (2, "close")


def test_a_large_face_throughout_beats_a_larger_one_that_appears_once() -> None:
    passing = (300, 10, 120, 150, 0.999)
    frames = [found(LEFT), found(LEFT), found(passing, LEFT), found(LEFT)]
    track = follow_face(frames, min_score=0.9)
    assert lefts(track) == [10] * 4  # 4 * 50 against 150
    assert (track.num_faces, track.choice) == (2, "largest_track")
    assert follow_face(frames[1:], min_score=0.9).choice == "close"  # 150 against 150
    assert lefts(follow_face(frames[2:], min_score=0.9)) == [300, 300]  # 100 against 150


def test_a_moving_face_is_followed_step_by_step() -> None:
    path = [(10 + 20 * step, 10, 40, 50, 0.95) for step in range(5)]
    assert lefts(follow_face([found(RIGHT, place) for place in path], min_score=0.9)) == [10, 30, 50, 70, 90]


@pytest.mark.parametrize(
    ("lefts_of_two", "sizes_of_two"),
    [
        # One comes nearer to the old place of two than two stays, but its own is nearer still.
        ((140, 170, 200), (44, 44, 44)),
        # Two is the larger face for a while, and near enough to the old place of one to be taken for it.
        ((130, 135, 140), (44, 52, 52)),
    ],
)
def test_faces_that_come_near_each_other_keep_their_tracks(
    lefts_of_two: tuple[int, ...], sizes_of_two: tuple[int, ...]
) -> None:
    lefts_of_one = (100, 120, 140) if lefts_of_two[-1] == 200 else (100, 100, 100)
    one = [(left, 10, 40, 50, 0.95) for left in lefts_of_one]
    two = [(left, 10, 40, size, 0.95) for left, size in zip(lefts_of_two, sizes_of_two, strict=True)]
    for order in itertools.product([1, -1], repeat=3):
        frames = [found(*pair[::way]) for way, pair in zip(order, zip(one, two, strict=True), strict=True)]
        assert lefts(follow_face(frames, min_score=0.9)) == [*lefts_of_one]


def test_the_track_does_not_depend_on_the_order_in_which_faces_are_found() -> None:
    generator = np.random.default_rng(0)
    frames = [
        [
            (x + int(generator.integers(-8, 9)), 10, side, side, 0.95)
            for x, side in ((0, 60), (100, 60), (200, 60), (330, 58))
        ]
        for _ in range(8)
    ]
    expected = follow_face([found(*boxes) for boxes in frames], min_score=0.9)
    for _ in range(10):
        shuffled = [found(*(boxes[i] for i in generator.permutation(4))) for boxes in frames]
        track = follow_face(shuffled, min_score=0.9)
        np.testing.assert_array_equal(track.boxes, expected.boxes)
    assert max(lefts(expected)) < 10  # Three are of one size: the leftmost.


def test_a_cut_to_another_shot_starts_a_new_track() -> None:
    elsewhere = (400, 300, 40, 50, 0.99)
    track = follow_face([found(LEFT), found(LEFT), found(elsewhere)], min_score=0.9)
    assert lefts(track) == [10, 10, 10]
    assert track.scores.tolist() == [pytest.approx(0.99), pytest.approx(0.99), 0]
    assert (track.num_faces, track.choice) == (1, "largest_track")
    tiny = (25, 30, 10, 12, 0.99)  # At the same place, but no face shrinks to a quarter.
    assert lefts(follow_face([found(tiny), found(LEFT), found(LEFT)], min_score=0.9)) == [10, 10, 10]


def test_a_cut_back_finds_the_face_again() -> None:
    reverse = (400, 300, 70, 80, 0.99)
    shots = [found(LEFT), found(LEFT), found(reverse), found(reverse), found(LEFT), found(LEFT)]
    track = follow_face(shots, min_score=0.9)
    assert lefts(track) == [10] * 6  # 4 * 50 against 2 * 80
    assert np.flatnonzero(track.scores).tolist() == [0, 1, 4, 5]
    assert track.choice == "close"


def test_a_cut_is_seen_in_the_pictures_where_the_faces_lie_alike() -> None:
    generator = np.random.default_rng(0)
    shots = [np.kron(generator.integers(0, 256, (4, 4, 3), np.uint8), np.ones((45, 80, 1), np.uint8)) for _ in range(2)]
    larger = (12, 12, 44, 55, 0.99)
    cuts = [0, 0, 0, 1, 1, 0, 0, 0]
    boxes = [found(larger if cut else LEFT) for cut in cuts]
    assert lefts(follow_face(boxes, min_score=0.9)) == [12 if cut else 10 for cut in cuts]
    # The camera pans by a fifth of a patch, and the light changes, within a shot.
    frames = [np.roll(shots[cut], 16 * (index % 2), axis=1) // (1 + index % 2) for index, cut in enumerate(cuts)]
    track = follow_face(boxes, min_score=0.9, frames=frames)
    assert lefts(track) == [10] * 8
    assert np.flatnonzero(track.scores == 0).tolist() == [3, 4]
    assert track.choice == "largest_track"  # 6 * 50 against 2 * 55
    black = [np.zeros_like(frames[0])] * 2  # Pictures in which nothing can be told apart.
    assert follow_face([found(LEFT), found(LEFT)], min_score=0.9, frames=black).choice == "only"


def test_a_missing_box_comes_from_the_nearest_frame_the_earlier_of_two() -> None:
    doubtful = (10, 10, 40, 50, 0.89)
    near = (30, 10, 40, 50, 0.99)
    track = follow_face([found(), found(LEFT), found(doubtful), found(near), found(), found()], min_score=0.9)
    assert lefts(track) == [10, 10, 10, 30, 30, 30]
    np.testing.assert_allclose(track.scores, [0, 0.99, 0, 0.99, 0, 0])
    assert (track.num_faces, track.choice) == (1, "only")


def test_a_clip_without_faces_has_no_boxes() -> None:
    track = follow_face([found(), found((1, 1, 5, 5, 0.5))], min_score=0.9)
    assert np.isnan(track.boxes).all()
    assert track.scores.tolist() == [0, 0]
    assert (track.num_faces, track.choice) == (0, "none")


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
