"""What every one of the 36 augmentations has to hold, and how its parameters are drawn."""

import random
import re
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from data_prep.augmentations import AUGMENTATIONS, DEFAULT_NAMES, augmentation_named, plan
from data_prep.storage import InputError
from data_prep.video_filter import filtered
from tests.data_prep.frames import Shown

RATE = 16_000
WINDOW_S = 1.5
FPS = 25
SIDE = 64
NAMES = sorted(AUGMENTATIONS)
NOT_DRAWN = {"aac_32k", "flip", "grey", "h264_crf28", "h264_crf40", "half_resolution", "jpeg_40", "mp3_32k", "opus_16k"}
NOT_DRAWN |= {"telephone_8k"}
CODED = {"h264_crf28", "h264_crf40", "mpeg4_low"}
STRETCHED = {"pitch", "tempo"}


def moving(count: int = 30) -> np.ndarray:
    """uint8 [count, SIDE, SIDE, 3]: a smooth coloured pattern, no two of whose frames are equal."""
    generator = np.random.default_rng(3)
    coarse = generator.uniform(40, 215, (count + SIDE // 8 + 1, SIDE // 8 + 1, 3))
    picture = np.kron(coarse, np.ones((8, 8, 1)))
    return np.stack([picture[3 * index : 3 * index + SIDE, :SIDE] for index in range(count)]).astype(np.uint8)


def voice(seconds: float) -> np.ndarray:
    """float32: syllables of a gliding voice, and a little breath."""
    generator = np.random.default_rng(4)
    times = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * (130 * times + 25 * np.sin(2.1 * times))
    harmonics = sum(np.sin(number * phase + number**2) / number for number in range(1, 30))
    envelope = np.maximum(0, np.sin(2 * np.pi * 2.7 * times + np.sin(3 * times))) ** 2
    breath = 0.02 * generator.standard_normal(len(times))
    return (envelope * (0.1 * harmonics + breath) + 1e-4 * breath).astype(np.float32)


def decoded(images: np.ndarray) -> list[av.VideoFrame]:
    """The frames of a file that shows `images`."""
    frames = []
    for index, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = index, Fraction(1, FPS)
        frames.append(frame)
    return frames


def augmented(name: str | None, clip_id: str, images: np.ndarray, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [count, 3, SIDE, SIDE] shown at the moments of `images`, and the sound, as `prepare` makes them.

    sound: enough for the speed; its beginning is taken.
    """
    made = plan(name, clip_id, window_s=WINDOW_S)
    shown = Shown()
    frames = decoded(images)
    if made.video_filter is None:
        shown.frames = frames
    else:
        sink = filtered(shown, made.video_filter, first_s=0.0, last_s=len(images) / FPS)
        for frame in frames:
            sink.add(frame)
        sink.finish()
    times = np.array([frame.time for frame in shown.frames])
    latest = np.searchsorted(times, np.arange(len(images)) / FPS + 1e-6) - 1
    crops = np.stack([shown.frames[index].to_ndarray(format="rgb24").transpose(2, 0, 1) for index in latest])
    return made.images(crops), made.sound(sound[: round(WINDOW_S * made.speed * RATE)])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return moving()


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return voice(2 * WINDOW_S)


@pytest.fixture(scope="module")
def plain(images: np.ndarray, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return augmented(None, "clip", images, sound)


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_its_own_sense_alone_and_keeps_the_shape(
    name: str, images: np.ndarray, sound: np.ndarray, plain: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, heard = augmented(name, "clip", images, sound)
    assert (frames.shape, frames.dtype) == (plain[0].shape, np.uint8)
    assert (heard.shape, heard.dtype) == (plain[1].shape, np.float32)
    assert np.isfinite(heard).all()
    sense = AUGMENTATIONS[name].sense
    # What tempo does to the picture, the decoder does: it is told the speed.
    assert np.array_equal(frames, plain[0]) == (sense != "visual")
    assert np.array_equal(heard, plain[1]) == (sense == "visual")


@pytest.mark.parametrize("name", NAMES)
def test_it_depends_on_the_clip_and_the_name_alone(name: str, images: np.ndarray, sound: np.ndarray) -> None:
    first = augmented(name, "clip", images, sound)
    random.seed(17)
    np.random.seed(17)
    torch.manual_seed(17)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    again = augmented(name, "clip", images, sound)
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[1], first[1])
    # Nobody else's random numbers are used up.
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1][1])
    assert torch.equal(torch.get_rng_state(), states[2])
    others = [augmented(name, f"clip {number}", images, sound) for number in range(4)]
    same = all(np.array_equal(one, two) for other in others for one, two in zip(other, first, strict=True))
    assert same == (name in NOT_DRAWN)


@pytest.mark.parametrize("name", sorted(set(NAMES) - CODED))
def test_frames_that_are_alike_stay_alike(name: str, images: np.ndarray, sound: np.ndarray) -> None:
    still = np.repeat(images[:1], 6, axis=0)
    frames, _ = augmented(name, "clip", still, sound)
    np.testing.assert_array_equal(frames, np.repeat(frames[:1], 6, axis=0))


@pytest.mark.parametrize("name", [name for name in NAMES if AUGMENTATIONS[name].sense != "visual"])
def test_sound_stays_in_step(name: str, images: np.ndarray, sound: np.ndarray) -> None:
    for clip_id in ("one", "two", "three"):
        made = plan(name, clip_id, window_s=WINDOW_S)
        _, heard = augmented(name, clip_id, images[:1], sound)
        expected = sound[: round(WINDOW_S * made.speed * RATE)]
        if name in STRETCHED:
            # The waves are others, so the energies of syllables are compared, at the moments of the new speed: means
            # over 50 ms, in which the pulses of the voice cannot be seen. The stretcher's blocks last 100 ms and more.
            shape = np.hanning(800)
            energy = np.convolve(expected**2, shape, "same")
            expected = np.interp(np.arange(len(heard)) * made.speed, np.arange(len(energy)), energy)
            heard = np.convolve(heard**2, shape, "same")
        assert abs(lag(expected, heard)) <= (0.005 if name in STRETCHED else 0.001) * RATE


def lag(one: np.ndarray, other: np.ndarray) -> int:
    """Samples by which `other` comes later, where the two agree best."""
    size = 2 * len(one)
    products = np.fft.irfft(np.conj(np.fft.rfft(one, size)) * np.fft.rfft(other, size))
    best = int(np.argmax(products))
    return best if best < len(one) else best - size


@pytest.mark.parametrize("name", [name for name in NAMES if AUGMENTATIONS[name].sense != "visual"])
@pytest.mark.parametrize("level", [0.0, 1.5])
def test_silence_and_overdriven_sounds_are_no_special_case(name: str, level: float) -> None:
    made = plan(name, "clip", window_s=WINDOW_S)
    sound = level * np.sign(voice(WINDOW_S * made.speed))
    heard = made.sound(sound.astype(np.float32))
    assert np.isfinite(heard).all()
    if level == 0 and name != "telephone_8k":  # The smallest step of mu-law is not 0.
        assert np.abs(heard).max() < 1e-3


@pytest.mark.parametrize("side", [32, 65, 224])
@pytest.mark.parametrize("name", [name for name in NAMES if AUGMENTATIONS[name].sense == "visual"])
def test_crops_of_any_size_do(name: str, side: int) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, 3, side, side), dtype=np.uint8)
    before = frames.copy()
    assert plan(name, "clip").images(frames).shape == frames.shape
    np.testing.assert_array_equal(frames, before)


def test_there_are_36_of_which_two_are_off() -> None:
    assert len(AUGMENTATIONS) == 36
    off = {name for name, item in AUGMENTATIONS.items() if not item.default}
    assert off == STRETCHED == set(AUGMENTATIONS) - set(DEFAULT_NAMES)
    for name, item in AUGMENTATIONS.items():
        assert item.name == name
        assert re.fullmatch("[a-z0-9_]+", name)
        assert ("voice conversion" in item.description) == (name in off)
        assert "{" not in item.description
        assert "\n" not in item.description


@pytest.mark.parametrize("name", NAMES)
def test_parameters_lie_in_their_ranges_and_reach_all_of_them(name: str) -> None:
    item = AUGMENTATIONS[name]
    draws = [item.draw(str(number)) for number in range(300)]
    for parameter, intervals in item.ranges.items():
        values = np.array([drawn[parameter] for drawn in draws])
        shares = [np.mean((values >= low) & (values <= high)) for low, high in intervals]
        assert sum(shares) == 1
        # A half of 300 lies within 5 standard deviations, 0.029 each.
        assert all(abs(share - 1 / len(intervals)) < 0.15 for share in shares)
        assert values.max() <= intervals[-1][1]
        # Of 300 draws none in the last tenth of an interval has a probability of 0.95 ** 300.
        spread = intervals[-1][1] - intervals[-1][0]
        assert values.max() >= intervals[-1][1] - 0.1 * spread


def test_what_was_drawn_can_be_read() -> None:
    assert re.fullmatch(r"factor 1\.\d+", plan("brighter", "clip").drawn)
    assert plan("h264_crf28", "clip").drawn == plan(None, "clip").drawn == ""


@pytest.mark.parametrize(("name", "parameter", "step"), [("mpeg4_low", "quantiser", 1), ("clipping", "percent", 2)])
def test_what_is_said_to_be_drawn_is_what_is_applied(name: str, parameter: str, step: int) -> None:
    made = [plan(name, str(number)) for number in range(200)]
    drawn = {one.parameters[parameter] for one in made}
    ((low, high),) = AUGMENTATIONS[name].ranges[parameter]
    assert drawn == set(range(int(low), int(high) + 1, step))
    assert {one.drawn for one in made} == {f"{parameter} {value:g}" for value in drawn}


def test_nothing_is_done_without_a_name() -> None:
    made = plan(None, "clip")
    frames, sound = np.zeros((2, 3, 8, 8), np.uint8), np.zeros(48_000, np.float32)
    assert made.images(frames) is frames
    assert made.sound(sound) is sound
    assert (made.speed, made.video_filter) == (1.0, None)


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"'sepia' is none; choose from h264_crf28, .*tempo\."):
        plan("sepia", "clip")
    assert augmentation_named("flip").name == "flip"
