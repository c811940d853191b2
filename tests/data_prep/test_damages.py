"""Damages do what they say, by measures that are independent of them; and severity 0 does nothing."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from scipy.signal import correlate, resample

from data_prep.clip import ClipPreparer, Reject
from data_prep.damages import DAMAGES, DamagedClip, damage_named, damage_to
from data_prep.decoder import Decoder
from data_prep.storage import InputError
from data_prep.window import ClipWindow, WindowSettings
from tests.cluster.clip_files import CONFIG, write_clip

RATE = 16_000
SETTINGS: WindowSettings = {
    "window_s": 1.0,
    "place": 0.5,
    "num_frames": 8,
    "min_duration_s": 0.5,
    "leading_silence_db": -40.0,
}
ROW = {
    **dict.fromkeys(("audio_path", "target", "method", "augmentation")),
    "clip_id": "clip",
    "video_path": "clips/clip.mp4",
    "label": 0,
    "category": "A",
    "dataset": "noise",
    "subject": "nobody",
}


def damaged(name: str, severity: int, clip_id: str = "clip") -> DamagedClip:
    made = damage_to(clip_id, name, severity)
    assert made is not None
    return made


def severities(name: str) -> list[int]:
    return list(damage_named(name).values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("damaged")
    write_clip(made / "clip.mp4", 3)
    return made


@pytest.fixture(scope="module")
def preparer(decoder: Decoder) -> Iterator[ClipPreparer]:
    with ClipPreparer(CONFIG, decoder=decoder) as made:
        yield made


@pytest.fixture(scope="module")
def plain(folder: Path, decoder: Decoder) -> ClipWindow:
    """The window of moving noise as it is."""
    return decoder.read_window(str(folder / "clip.mp4"), None, **SETTINGS)


def row_of(preparer: ClipPreparer, folder: Path, damage: DamagedClip | None) -> dict[str, Any]:
    made = preparer(ROW, {"clips": str(folder)}, damage)
    assert not isinstance(made, Reject), made
    return made


def test_severity_0_is_the_corpus_row_and_no_damage_touches_the_other_sense(
    preparer: ClipPreparer, folder: Path
) -> None:
    undamaged = row_of(preparer, folder, None)
    for name, damage in DAMAGES.items():
        assert damage_to("clip", name, 0) is None
        made = row_of(preparer, folder, damaged(name, max(damage.values)))
        differs = {field for field in ("frames", "spectrogram") if made[field].tobytes() != undamaged[field].tobytes()}
        assert differs == ({"frames"} if damage.sense == "visual" else {"spectrogram"}), name
        again = row_of(preparer, folder, damaged(name, max(damage.values)))
        assert all(again[field].tobytes() == made[field].tobytes() for field in ("frames", "spectrogram")), name


def write_texture(path: Path) -> Path:
    """A silent clip of a moving texture with detail on all scales, as a photograph has, hardly compressed."""
    side = 128
    waves = np.fft.rfft2(np.random.default_rng(2).standard_normal((side, side)))
    scale = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    texture = np.fft.irfft2(waves / np.maximum(scale, 1 / side))
    texture = np.clip(128 + 45 * texture / texture.std(), 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "1"})
        video.width = video.height = side
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for index in range(25):
            image = np.repeat(np.roll(texture, 2 * index, axis=1)[..., None], 3, axis=2)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def pictures(window: ClipWindow) -> np.ndarray:
    return np.stack(window.images).astype(float)


def test_h264_loses_more_at_each_severity(tmp_path: Path, decoder: Decoder) -> None:
    path = str(write_texture(tmp_path / "texture.mkv"))
    plain = decoder.read_window(path, None, **SETTINGS)
    psnr = []
    for severity in severities("video_codec"):
        damage = damaged("video_codec", severity)
        made = damage.window(decoder.read_window(path, None, **damage.settings(SETTINGS)))
        np.testing.assert_array_equal(made.frame_times_s, plain.frame_times_s)
        psnr.append(20 * math.log10(255 / math.sqrt(np.mean((pictures(made) - pictures(plain)) ** 2))))
    assert (np.diff(psnr) < -0.5).all()


def laplacian_variance(window: ClipWindow) -> float:
    grey = pictures(window).mean(axis=-1)
    middle = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return float((around - 4 * middle).var())


@pytest.mark.parametrize("name", ["blur", "resolution"])
def test_detail_is_lost(name: str, plain: ClipWindow) -> None:
    # White noise: a clip's own texture has lost what is fine in it.
    noise = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    window = replace(plain, images=[noise] * 8)
    left = [laplacian_variance(window)]
    left += [laplacian_variance(damaged(name, severity).window(window)) for severity in severities(name)]
    assert (np.diff(left) < 0).all()
    if name == "blur":
        # The variance of white noise after a Gaussian of sigma is 1 / (4 pi sigma**2) of what it was.
        for severity, sigma in damage_named("blur").values.items():
            if sigma <= 3:  # The border's mirror weighs more for wider ones, and levels are rounded.
                inner = pictures(damaged("blur", severity).window(window))[0, 20:-20, 20:-20]
                expected = noise.astype(float).var() / (4 * math.pi * sigma**2)
                assert inner.var() == pytest.approx(expected, rel=0.25)


def test_picture_noise_has_its_deviation_and_differs_from_frame_to_frame(plain: ClipWindow) -> None:
    grey = np.full((90, 110, 3), 128, np.uint8)
    frames = [grey.copy() for _ in range(7)]
    window = replace(plain, images=[*frames, frames[0]])
    for severity, sigma in damage_named("picture_noise").values.items():
        made = pictures(damaged("picture_noise", severity).window(window)) - 128
        if sigma <= 40:  # Beyond, the ends of the scale cut it off.
            assert made.std() == pytest.approx(sigma, rel=0.03)
        assert abs(np.corrcoef(made[0].ravel(), made[1].ravel())[0, 1]) < 0.05
        assert (made[7] == made[0]).all(), "a picture that is shown twice is damaged once"
    other = pictures(damaged("picture_noise", 1, "another clip").window(window)) - 128
    assert (
        abs(
            np.corrcoef(other[0].ravel(), (pictures(damaged("picture_noise", 1).window(window)) - 128)[0].ravel())[0, 1]
        )
        < 0.05
    )


def with_sound(plain: ClipWindow, sound: np.ndarray) -> ClipWindow:
    return replace(plain, sound=sound.astype(np.float32))


def voice(seconds: float = 3.0) -> np.ndarray:
    """Noise below 4 kHz that swells four times a second, as speech does."""
    count = round(seconds * RATE)
    noise = resample(np.random.default_rng(5).standard_normal(count // 2), count)
    return 0.1 * noise * (1 + np.sin(2 * np.pi * 4 * np.arange(count) / RATE))


def test_sound_noise_lies_as_far_below_as_it_says(plain: ClipWindow) -> None:
    window = with_sound(plain, voice())
    for severity, snr in damage_named("sound_noise").values.items():
        noise = damaged("sound_noise", severity).window(window).sound - window.sound
        measured = 10 * math.log10(float((window.sound**2).mean() / (noise.astype(float) ** 2).mean()))
        assert measured == pytest.approx(snr, abs=0.5)


def test_aac_loses_more_at_each_severity_and_delays_nothing(plain: ClipWindow) -> None:
    window = with_sound(plain, voice())
    ratios = []
    for severity in severities("audio_codec"):
        made = damaged("audio_codec", severity).window(window).sound
        # Eight points to a sample.
        fine, coded = (resample(sound[: 2 * RATE], 16 * RATE) for sound in (window.sound, made))
        lag = int(correlate(coded, fine, "same", "fft").argmax()) - len(fine) // 2
        assert abs(lag) < 8
        ratios.append(float(((made - window.sound) ** 2).mean()))
    assert (np.diff(ratios) > 0).all()


def test_a_room_rings_as_long_as_it_says_from_the_direct_sound_on(plain: ClipWindow) -> None:
    click = np.zeros(4 * RATE)
    click[100] = 0.5
    for severity, rt60 in damage_named("reverberation").values.items():
        made = damaged("reverberation", severity).window(with_sound(plain, click)).sound.astype(float)
        assert np.abs(made).argmax() == 100
        assert (np.abs(made[:100]) < 1e-6).all()
        assert made.std() == pytest.approx(click.std(), rel=1e-3)
        # Schroeder: energy that is still to come, from -5 to -35 dB below that of the tail, extended to 60 dB.
        left = 10 * np.log10(np.cumsum((made[101:] ** 2)[::-1])[::-1][: round(0.7 * rt60 * RATE)])
        first, last = (int(np.argmax(left < left[0] - level)) for level in (5, 35))
        assert 2 * (last - first) / RATE == pytest.approx(rt60, rel=0.1)


def write_flashes(path: Path, seconds: float, *, sound: str = "pcm_s16le") -> tuple[Path, np.ndarray]:
    """A clip whose picture is bright, and whose sound is loud, in the same 25ths of a second; returns which."""
    bright = np.random.default_rng(11).random(round(25 * seconds)) < 0.3
    level = np.repeat(bright, RATE // 25)
    noise = np.random.default_rng(12).uniform(-0.5, 0.5, len(level)) * level
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "1"})
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(sound, rate=RATE, layout="mono")
        for shown in bright:
            image = np.full((32, 32, 3), 230 if shown else 20, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.round(noise * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path, bright


@pytest.mark.parametrize(("seconds", "place"), [(6.0, 0.5), (6.0, 0.0), (6.0, 1.0), (2.0, 0.5)])
def test_the_offset_is_that_of_the_clicks_against_the_flashes(
    tmp_path: Path, decoder: Decoder, seconds: float, place: float
) -> None:
    path, bright = write_flashes(tmp_path / "flashes.mkv", seconds)
    settings: WindowSettings = {**SETTINGS, "window_s": 2.0, "num_frames": 50, "place": place}
    whole = decoder.read_window(str(path), None, **{**settings, "window_s": seconds, "num_frames": 4}).sound
    start = place * (seconds - 2.0)
    for severity, offset_ms in damage_named("offset").values.items():
        damage = damaged("offset", severity)
        made = damage.window(decoder.read_window(str(path), None, **damage.settings(settings)))
        # Positive is late: what is heard at a moment was shown that much earlier. Beyond an end the other one follows.
        first = round((start - offset_ms / 1000) * RATE)
        np.testing.assert_allclose(made.sound, np.take(whole, range(first, first + 2 * RATE), mode="wrap"), atol=1e-6)
        seen = np.array([image.mean() > 128 for image in made.images])
        np.testing.assert_array_equal(seen, bright[round(25 * start) :][:50])
        loud = np.sqrt((made.sound.reshape(50, -1) ** 2).mean(axis=1))
        lags = np.arange(-12, 13)
        fits = [np.corrcoef(np.roll(seen, lag)[12:-12], loud[12:-12])[0, 1] for lag in lags]
        assert lags[int(np.argmax(fits))] * 40 == offset_ms


def test_a_damage_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(InputError, match="damage 'rain' is none; choose from video_codec"):
        damage_to("clip", "rain", 1)
    with pytest.raises(InputError, match="severity 9 of damage 'blur' is none; choose from 0, 1, 2, 3, 4, 5"):
        damage_to("clip", "blur", 9)


def test_labels_say_strength_and_unit() -> None:
    assert [DAMAGES["sound_noise"].label(severity) for severity in (0, 1)] == ["none", "30 dB SNR"]
    assert [DAMAGES["offset"].label(severity) for severity in (-3, 1)] == ["-400 ms", "+80 ms"]
