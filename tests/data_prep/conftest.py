"""Clips made on the spot, whose frames and sound are known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_prep.audio import SoundCollector
from data_prep.clip import ClipPreparer, PrepareConfig, Reject, RejectReason
from data_prep.decoder import Decoder
from data_prep.faces import Faces
from data_prep.manifest import MANIFEST_COLUMNS

SIDE = 64

_PLAIN = PrepareConfig(faces="none", frame_size=SIDE)
_VIDEO_OPTIONS = {
    "libx264": {"crf": "8", "preset": "ultrafast"},
    "libx265": {"crf": "8", "preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"crf": "8", "b": "0", "deadline": "realtime", "cpu-used": "8"},
}


def numbered_image(index: int, side: int = SIDE) -> np.ndarray:
    """A picture that shows its own number, 0 to 255: two hexadecimal digits as the greys of its two halves."""
    image = np.empty((side, side, 3), np.uint8)
    image[:, : side // 2] = 16 + 14 * (index % 16)
    image[:, side // 2 :] = 16 + 14 * (index // 16)
    return image


def read_number(frame: np.ndarray) -> int:
    """The number of a picture uint8 [3, side, side] that was coded, decoded and perhaps resized."""
    quarter = frame.shape[2] // 4
    middles = frame[:, :, quarter], frame[:, :, 3 * quarter]
    low, high = (round((float(middle.mean()) - 16) / 14) for middle in middles)
    return low + 16 * high


def tone(frequency: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    """float32 [samples]: a sine."""
    times = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def write_clip(
    path: Path,
    *,
    frame_times: np.ndarray | None = None,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    sound_start: float = 0.0,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    channels: int = 1,
    options: dict[str, str] | None = None,
    coder: dict[str, str] | None = None,
    side: int = SIDE,
    rotation: int = 0,
    mirrored: bool = False,
    one_shot: bool = False,
) -> Path:
    """Writes a clip whose frame i is `numbered_image(i)`, shown from frame_times[i] on; the default: 75 at 25 fps.

    one_shot: the upper quarter is black and the lower one white, so that the frames do not look like as many shots.

    options: of the container; coder: of the video coder, beside those that keep the numbers readable. rotation: degrees
    counter-clockwise by which a player turns the frames, before it mirrors them left to right.
    """
    times = np.arange(75) / 25 if frame_times is None else frame_times
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        if len(times):
            video = container.add_stream(video_codec, rate=25)
            video.width = video.height = side
            video.pix_fmt = "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
            video.codec_context.time_base = Fraction(1, 1000 if video_codec.startswith("lib") else 25)
            video.options = _VIDEO_OPTIONS.get(video_codec, {"qscale": "2"}) | (coder or {})
            if rotation or mirrored:
                video.set_display_rotation(rotation, hflip=mirrored)
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=rate, layout="mono" if channels == 1 else "stereo")
        for index, time in enumerate(times):
            image = numbered_image(index, side)
            if one_shot:
                image[: side // 4], image[-(side // 4) :] = 0, 255
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = video.codec_context.time_base
            frame.pts = round(time / frame.time_base)
            container.mux(video.encode(frame))
        if len(times):
            container.mux(video.encode(None))
        if sound is not None:
            for start in range(0, len(sound), 1024):
                container.mux(audio.encode(audio_frame(sound[start : start + 1024], rate, sound_start + start / rate)))
            container.mux(audio.encode(None))
    return path


def audio_frame(samples: np.ndarray, rate: int, time: float | None) -> av.AudioFrame:
    """A mono frame of samples -1 to 1 that begins at `time`, in seconds."""
    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate = rate
    frame.time_base = Fraction(1, rate)
    frame.pts = None if time is None else round(time * rate)
    return frame


def manifest_row(name: str, **changes: Any) -> dict[str, Any]:
    """A row for the file `name` below the root "clips"."""
    row: dict[str, Any] = dict.fromkeys(MANIFEST_COLUMNS)
    row |= {"clip_id": name, "video_path": f"clips/{name}", "label": 0, "category": "A"}
    return row | {"dataset": "clips", "subject": "someone"} | changes


@dataclass
class FixedDetector:
    """Finds the same box in each of the first `num_frames` frames, with the same score."""

    box: tuple[float, float, float, float] = (16, 16, 48, 48)
    score: float = 0.99
    num_frames: int = 8

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        found = Faces(np.array([self.box], np.float32), np.array([self.score], np.float32))
        none = Faces(np.empty((0, 4), np.float32), np.empty(0, np.float32))
        return [found if index < self.num_frames else none for index in range(len(frames))]


def rising_tones(num_seconds: int, rate: int = 16_000) -> np.ndarray:
    """One second of 500 Hz, one of 1000 Hz, and so on."""
    return np.concatenate([tone(500 * (second + 1), 1.0, rate) for second in range(num_seconds)])


def heard_seconds(row: dict[str, Any], times: list[float]) -> list[int]:
    """Which second of `rising_tones` sounds at each time of a row's window (in seconds)."""
    loudest = row["spectrogram"][[round(time * 100) for time in times]].argmax(axis=1) * 31.25
    return [round(frequency / 500) - 1 for frequency in loudest]


def frame_numbers(row: dict[str, Any]) -> list[int]:
    """The numbers that a row's frames show."""
    return [read_number(frame) for frame in row["frames"]]


@dataclass(frozen=True)
class ClipTools:
    """What the tests of this folder share; pytest's import mode lets no test import another file."""

    write: Callable[..., Path] = write_clip
    row: Callable[..., dict[str, Any]] = manifest_row
    tone: Callable[..., np.ndarray] = tone
    audio_frame: Callable[..., av.AudioFrame] = audio_frame
    image: Callable[..., np.ndarray] = numbered_image
    number: Callable[[np.ndarray], int] = read_number
    numbers: Callable[[dict[str, Any]], list[int]] = frame_numbers
    rising_tones: Callable[..., np.ndarray] = rising_tones
    heard_seconds: Callable[..., list[int]] = heard_seconds
    detector: type[FixedDetector] = FixedDetector


@pytest.fixture(scope="session")
def clips() -> ClipTools:
    """Makes clips, and reads the numbers that their frames show."""
    return ClipTools()


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """One decoding process for all tests of this folder that do not look at the process itself."""
    with Decoder() as made:
        yield made


@pytest.fixture
def prepare(tmp_path: Path, decoder: Decoder) -> Callable[..., dict[str, Any]]:
    """Prepares the clip `name` in tmp_path, which must not be rejected; other arguments go into its row."""

    def call(name: str, config: PrepareConfig = _PLAIN, *, detector: Any = None, **changes: Any) -> dict[str, Any]:
        preparer = ClipPreparer(config, detector=detector, decoder=decoder)
        made = preparer(manifest_row(name, **changes), {"clips": str(tmp_path)})
        assert not isinstance(made, Reject), made
        return made

    return call


@pytest.fixture
def reject(tmp_path: Path, decoder: Decoder) -> Callable[..., tuple[RejectReason, str]]:
    """Prepares the clip `name` in tmp_path, which must be rejected; gives the reason and its detail."""

    def call(name: str, config: PrepareConfig = _PLAIN, *, detector: Any = None, **changes: Any) -> tuple[Any, str]:
        row = manifest_row(name, **changes)
        made = ClipPreparer(config, detector=detector, decoder=decoder)(row, {"clips": str(tmp_path)})
        assert isinstance(made, Reject)
        assert (made.clip_id, made.path) == (row["clip_id"], row["video_path"])
        assert made.detail
        assert "\n" not in made.detail
        return made.reason, made.detail

    return call


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of samples whose level was measured in this process, in the order of the calls."""
    numbers: list[int] = []
    measure = SoundCollector._measure_blocks

    def noted(collector: SoundCollector, samples: np.ndarray) -> None:
        numbers.append(len(samples))
        measure(collector, samples)

    monkeypatch.setattr(SoundCollector, "_measure_blocks", noted)
    return numbers
