"""What the augmentations of face crops do, against theory."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from data_prep.augmentations import Plan, plan

SIDE = 96
CLIPS = ("one", "two", "three")
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def scene(count: int = 3) -> np.ndarray:
    """uint8 [count, 3, SIDE, SIDE]: coloured, smooth, and with levels that leave room on both sides."""
    generator = np.random.default_rng(0)
    pictures = generator.integers(60, 180, (count, 8, 8, 3), dtype=np.uint8)
    enlarged = [Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in pictures]
    return np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in enlarged])


def constant(level: int) -> np.ndarray:
    return np.full((2, 3, SIDE, SIDE), level, np.uint8)


def close(changed: np.ndarray, expected: np.ndarray, levels: float = 1.0) -> bool:
    """Whether two pictures agree to the rounding of a level or so."""
    return bool(np.abs(changed.astype(float) - expected).max() <= levels + 1e-6)


@pytest.fixture(params=CLIPS)
def clip_id(request: pytest.FixtureRequest) -> str:
    return request.param


def test_flipped_twice_is_as_it_was() -> None:
    frames, flip = scene(), plan("flip", "clip")
    once = flip.images(frames)
    np.testing.assert_array_equal(once, frames[..., ::-1])
    np.testing.assert_array_equal(flip.images(once), frames)


def test_grey_has_equal_channels_of_the_same_luminance() -> None:
    frames = scene()
    grey = plan("grey", "clip").images(frames)
    assert (grey == grey[:, :1]).all()
    # Rounded down, with weights of four digits.
    assert close(grey[:, 0], np.tensordot(GREY, frames.astype(float), (0, 1)), 1.03)


@pytest.mark.parametrize("name", ["brighter", "darker"])
def test_brightness_is_a_factor(name: str, clip_id: str) -> None:
    frames, made = scene(), plan(name, clip_id)
    assert close(made.images(frames), np.clip(frames * made.parameters["factor"], 0, 255))
    assert (made.parameters["factor"] > 1) == (name == "brighter")


@pytest.mark.parametrize("name", ["contrast_up", "contrast_down"])
def test_contrast_scales_the_distance_from_the_mean_luminance_of_the_clip(name: str, clip_id: str) -> None:
    frames, made = scene(), plan(name, clip_id)
    mean = np.tensordot(GREY, frames.astype(float), (0, 1)).mean()
    # The mean is that of rounded greys.
    expected = np.clip((frames - mean) * made.parameters["factor"] + mean, 0, 255)
    assert close(made.images(frames), expected, 1.5)
    assert (made.parameters["factor"] > 1) == (name == "contrast_up")


def test_gamma_is_a_power_of_the_level(clip_id: str) -> None:
    frames, made = scene(), plan("gamma", clip_id)
    assert close(made.images(frames), 255 * (frames / 255) ** made.parameters["gamma"])


def test_saturation_scales_the_distance_from_grey(clip_id: str) -> None:
    frames, made = scene(), plan("saturation", clip_id)
    grey = np.tensordot(GREY, frames.astype(float), (0, 1))[:, None]
    assert close(made.images(frames), np.clip(grey + made.parameters["factor"] * (frames - grey), 0, 255), 2)


def test_hue_turns_colours_and_leaves_greys(clip_id: str) -> None:
    made = plan("hue", clip_id)
    assert close(made.images(constant(100)), constant(100))
    red = np.zeros((1, 3, SIDE, SIDE), np.uint8)
    red[:, 0] = 240
    turned = made.images(red)[0, :, 0, 0].astype(float)
    # From red, a sixth of the circle leads to yellow (full green) or to magenta (full blue).
    rising = 1 if made.parameters["turn"] > 0 else 2
    assert turned[rising] == pytest.approx(240 * 6 * abs(made.parameters["turn"]), abs=1.5)
    assert turned[0] == 240
    assert turned[3 - rising] == 0


def test_blur_widens_an_edge_by_its_sigma(clip_id: str) -> None:
    made = plan("blur", clip_id)
    edge = np.zeros((1, 3, SIDE, SIDE), np.uint8)
    edge[..., SIDE // 2 :] = 255
    sigma = made.parameters["sigma"] * SIDE / 224
    spread = spreads(made, edge, 1)
    # A kernel cut off at 3 sigma or more loses 1 % of the variance; sampling and levels of 1 / 255 cost the rest.
    assert spread == pytest.approx(sigma, abs=0.08)


def spreads(made: Plan, edge: np.ndarray, axis: int) -> float:
    """Standard deviation, in pixels, of the derivative of an edge across `axis` (0: rows, 1: columns)."""
    rise = np.diff(made.images(edge)[0, 0].astype(float).mean(axis=1 - axis)) / 255
    positions = np.arange(len(rise))
    mean = (rise * positions).sum()
    return math.sqrt((rise * (positions - mean) ** 2).sum())


def test_motion_blur_smears_along_its_line(clip_id: str) -> None:
    made = plan("motion_blur", clip_id)
    frames = np.zeros((1, 3, 224, 224), np.uint8)
    frames[..., 110:114, 110:114] = 255
    changed = made.images(frames)[0, 0].astype(float)
    assert changed.sum() == pytest.approx(255 * 16, rel=0.05)
    rows, columns = np.mgrid[:224, :224] - 111.5
    angle = math.radians(made.parameters["degrees"])
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    # A square of 4 pixels has variance 15 / 12 in any direction; a line of length l adds l**2 / 12 along itself, and
    # points of a grid in its stead up to about a quarter of a pixel squared, across it too.
    variances = [
        (changed * (distance - (changed * distance).sum() / changed.sum()) ** 2).sum() / changed.sum()
        for distance in (along, across)
    ]
    length = made.parameters["length"]
    assert variances[0] == pytest.approx(15 / 12 + length**2 / 12, rel=0.25)
    assert 15 / 12 - 0.1 <= variances[1] <= 15 / 12 + 0.35


def test_noise_has_its_deviation_and_is_the_same_on_every_frame(clip_id: str) -> None:
    made = plan("gaussian_noise", clip_id)
    changed = made.images(constant(128)).astype(float) - 128
    np.testing.assert_array_equal(changed[0], changed[1])
    count = changed[0].size
    # 5 standard errors of a mean and of a deviation; rounding adds a variance of 1 / 12.
    deviation = math.hypot(made.parameters["deviation"], math.sqrt(1 / 12))
    assert abs(changed[0].mean()) < 5 * deviation / math.sqrt(count)
    assert abs(changed[0].std() - deviation) < 5 * deviation / math.sqrt(2 * count)


def test_half_resolution_keeps_coarse_and_drops_fine_patterns() -> None:
    made = plan("half_resolution", "clip")
    board = np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 255
    fine = np.broadcast_to(board.astype(np.uint8), (1, 3, SIDE, SIDE))
    # A checkerboard of single pixels lies at the limit of the full resolution; its mean is 127.5.
    assert close(made.images(fine)[..., 4:-4, 4:-4], np.full((1, 3, SIDE - 8, SIDE - 8), 127.5), 3)
    coarse = scene()
    assert np.abs(made.images(coarse).astype(float) - coarse).mean() < 1


def test_jpeg_is_that_of_pillow() -> None:
    frames = scene()
    for frame, changed in zip(frames, plan("jpeg_40", "clip").images(frames), strict=True):
        file = io.BytesIO()
        Image.fromarray(frame.transpose(1, 2, 0)).save(file, "JPEG", quality=40)
        expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
        # Both halve the chroma planes; how they are smoothed on the way back is the decoder's choice.
        assert np.abs(changed.astype(float) - expected).mean() < 1


def test_crop_enlarges_a_part(clip_id: str) -> None:
    made = plan("crop", clip_id)
    ramp = np.broadcast_to(np.arange(SIDE) * 2.0 + 20, (1, 3, SIDE, SIDE)).astype(np.uint8)
    kept = round(made.parameters["share"] * SIDE)
    left = round(made.parameters["left"] * (SIDE - kept))
    # Pixel x of the crop lies at left + (x + 0.5) * kept / SIDE - 0.5 of the picture.
    positions = left + (np.arange(SIDE) + 0.5) * kept / SIDE - 0.5
    changed = made.images(ramp)
    inner = slice(2, -2)  # At the border there is nothing to interpolate with.
    assert close(changed[0, 0][:, inner], np.broadcast_to(positions * 2 + 20, (SIDE, SIDE))[:, inner], 1)
    upright = made.images(np.ascontiguousarray(ramp.swapaxes(2, 3)))
    top = round(made.parameters["top"] * (SIDE - kept))
    positions = top + (np.arange(SIDE) + 0.5) * kept / SIDE - 0.5
    assert close(upright[0, 0].T[:, inner], np.broadcast_to(positions * 2 + 20, (SIDE, SIDE))[:, inner], 1)


def test_rotation_turns_by_its_angle_and_leaves_no_black(clip_id: str) -> None:
    made = plan("rotation", clip_id)
    assert close(made.images(constant(255)), constant(255))
    ramp = np.broadcast_to(np.arange(SIDE) + 50.0, (1, 3, SIDE, SIDE)).astype(np.uint8)
    changed = made.images(ramp)[0, 0].astype(float)
    middle = slice(SIDE // 4, 3 * SIDE // 4)
    across = np.diff(changed[middle, middle], axis=1).mean()
    down = np.diff(changed[middle, middle], axis=0).mean()
    # Counter-clockwise: what pointed to the right points to the right and up.
    angle = math.degrees(math.atan2(-down, across))
    # Levels are whole numbers: over 48 pixels a slope is uncertain by 1 / 48, about a degree.
    assert angle == pytest.approx(made.parameters["degrees"], abs=1.2)
