"""The 36 augmentations: ways to change a clip that leave it as real or as fake as it was.

Each has a name, and one draw of its parameters per clip, from the clip's id and that name alone: the same clip gets
the same change whatever else is prepared, all its frames alike, and picture and sound stay in step. Which clips get
which is decided in `augmented_manifest`, without a look at the labels.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from data_prep.audio import SAMPLE_RATE
from data_prep.storage import InputError
from data_prep.video_filter import VideoFilter

Parameters = dict[str, float]
Intervals = tuple[tuple[float, float], ...]
"""One or more intervals; a number is drawn from one of them, each as likely, uniformly."""

_MAY_IMITATE = "may imitate voice conversion"
_SEED = "seed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """One way to change a clip."""

    name: str
    sense: Literal["visual", "audio", "both"]
    """What it changes."""
    text: str
    """What it does; {parameter} stands for the range that the parameter is drawn from."""
    ranges: Mapping[str, Intervals] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    """Parameters that are multiples of a whole number; the ends of their intervals are."""
    make_filter: Callable[[Parameters], VideoFilter] | None = None
    """For those that work on the clip's decoded frames, not on the face crops."""
    default: bool = True
    """Whether it is used where none is named."""
    note: str = ""

    @property
    def description(self) -> str:
        """One line: what it does, with the ranges of its parameters."""
        shown = {name: " or ".join(map(_interval_text, intervals)) for name, intervals in self.ranges.items()}
        line = self.text.format(**shown)
        return f"{line} ({self.note})" if self.note else line

    def draw(self, clip_id: str) -> Parameters:
        """The parameters for one clip: a number from each range, and a `seed` for whatever else is random."""
        generator = np.random.default_rng(_seed_of(clip_id, self.name))
        drawn: Parameters = {}
        for name, intervals in self.ranges.items():
            low, high = intervals[generator.integers(len(intervals))]
            step = self.steps.get(name)
            if step is None:
                drawn[name] = float(generator.uniform(low, high))
            else:
                drawn[name] = float(step * generator.integers(int(low) // step, int(high) // step, endpoint=True))
        return drawn | {_SEED: int(generator.integers(2**31))}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is done to one clip; see `plan`."""

    augmentation: Augmentation | None
    parameters: Parameters
    window_s: float

    @property
    def speed(self) -> float:
        """How many seconds of the clip go into one second of the window, for picture and sound alike."""
        return self.parameters.get("speed", 1.0)

    @property
    def drawn(self) -> str:
        """The parameters that were drawn, for a caption: `factor 1.3`; empty where none are."""
        if self.augmentation is None:
            return ""
        ranges = self.augmentation.ranges.items()
        free = [name for name, intervals in ranges if len(intervals) > 1 or intervals[0][0] < intervals[0][1]]
        return ", ".join(f"{name} {self.parameters[name]:.3g}" for name in free)

    @property
    def video_filter(self) -> VideoFilter | None:
        """What is done to the decoded frames, before faces are searched for."""
        if self.augmentation is None or self.augmentation.make_filter is None:
            return None
        return self.augmentation.make_filter(self.parameters)

    def images(self, frames: np.ndarray) -> np.ndarray:
        """Face crops uint8 [frames, 3, side, side], RGB, all changed alike; themselves where nothing is to be done."""
        if self.augmentation is None or self.augmentation.sense != "visual" or self.augmentation.make_filter:
            return frames
        # It imports torchvision, which who only needs the names does without.
        from data_prep import augment_visual

        return augment_visual.change(self.augmentation.name, frames, self.parameters)

    def sound(self, samples: np.ndarray) -> np.ndarray:
        """float32 [round(window_s * 16,000)]: the sound at 16 kHz, changed, in step with the picture.

        samples: float32 [round(window_s * speed * 16,000)], mono; themselves where nothing is to be done. Peaks may
        rise above 1, as those of a decoded file may.
        """
        if self.augmentation is None or self.augmentation.sense == "visual":
            return samples
        # It imports audiomentations, see `images`.
        from data_prep import augment_sound

        changed = augment_sound.change(self.augmentation.name, samples, self.parameters)
        length = round(self.window_s * SAMPLE_RATE)
        # Only a stretched sound may miss the window's length, by a rounded sample.
        return np.pad(changed, (0, max(0, length - len(changed))))[:length] if self.speed != 1 else changed


def plan(name: str | None, clip_id: str, *, window_s: float = 3.0) -> Plan:
    """What augmentation `name` (null: nothing) does to the clip `clip_id`, of which `window_s` seconds are taken.

    Raises InputError if there is no such augmentation.
    """
    if name is None:
        return Plan(augmentation=None, parameters={}, window_s=window_s)
    augmentation = augmentation_named(name)
    return Plan(augmentation=augmentation, parameters=augmentation.draw(clip_id), window_s=window_s)


def augmentation_named(name: str) -> Augmentation:
    """The augmentation `name`. Raises InputError if there is none."""
    if name not in AUGMENTATIONS:
        raise InputError(f"augmentation {name!r} is none; choose from {', '.join(AUGMENTATIONS)}.")
    return AUGMENTATIONS[name]


def _seed_of(clip_id: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{clip_id}\0{name}".encode()).digest())


def _interval_text(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _fixed(value: float) -> Intervals:
    return ((value, value),)


def _h264(crf: int) -> Augmentation:
    return Augmentation(
        name=f"h264_crf{crf}",
        sense="visual",
        text="video coded again: H.264 at constant rate factor {crf}",
        ranges={"crf": _fixed(crf)},
        make_filter=lambda drawn: VideoFilter(codec="h264", quality=round(drawn["crf"])),
    )


def _visual(name: str, text: str, **ranges: Intervals) -> Augmentation:
    return Augmentation(name=name, sense="visual", text=text, ranges=ranges)


def _audio(name: str, text: str, **ranges: Intervals) -> Augmentation:
    return Augmentation(name=name, sense="audio", text=text, ranges=ranges)


_VISUAL = (
    _h264(28),
    _h264(40),
    Augmentation(
        name="mpeg4_low",
        sense="visual",
        text="video coded again: MPEG-4 part 2 at quantiser {quantiser} of 31",
        ranges={"quantiser": ((8, 14),)},
        steps={"quantiser": 1},
        make_filter=lambda drawn: VideoFilter(codec="mpeg4", quality=round(drawn["quantiser"])),
    ),
    _visual("jpeg_40", "each crop coded as JPEG at quality {quality}", quality=_fixed(40)),
    _visual("blur", "Gaussian blur, sigma {sigma} pixels of 224", sigma=((1.0, 2.0),)),
    _visual(
        "motion_blur",
        "blur along a line of {length} pixels of 224, at {degrees} degrees",
        length=((4, 8),),
        degrees=((0, 180),),
    ),
    _visual(
        "gaussian_noise", "Gaussian noise of {deviation} grey levels, the same on every frame", deviation=((5, 10),)
    ),
    _visual("half_resolution", "shrunk to half its side and enlarged again"),
    _visual("brighter", "brightness times {factor}", factor=((1.1, 1.25),)),
    _visual("darker", "brightness times {factor}", factor=((0.7, 0.85),)),
    _visual("contrast_up", "contrast times {factor}", factor=((1.2, 1.5),)),
    _visual("contrast_down", "contrast times {factor}", factor=((0.6, 0.8),)),
    _visual("gamma", "gamma {gamma}", gamma=((0.7, 0.85), (1.2, 1.4))),
    _visual("saturation", "saturation times {factor}", factor=((0.5, 0.75), (1.3, 1.5))),
    _visual("hue", "hue turned by {turn} of the colour circle", turn=((-0.035, -0.015), (0.015, 0.035))),
    _visual("grey", "no colour"),
    _visual("flip", "left and right exchanged"),
    _visual(
        "crop",
        "a square of {share} of the crop's side, anywhere in it, enlarged",
        share=((0.85, 0.95),),
        left=((0, 1),),
        top=((0, 1),),
    ),
    _visual("rotation", "turned by {degrees} degrees, corners filled by reflection", degrees=((-10, -3), (3, 10))),
    Augmentation(
        name="frame_drops",
        sense="visual",
        text="a frame is dropped with probability {share}: the one before it stays",
        ranges={"share": ((0.1, 0.3),)},
        make_filter=lambda drawn: VideoFilter(drop_share=drawn["share"], seed=int(drawn[_SEED])),
    ),
)
_AUDIO = (
    _audio("aac_32k", "coded as AAC at {kilobits} kbit/s", kilobits=_fixed(32)),
    _audio("opus_16k", "coded as Opus at {kilobits} kbit/s", kilobits=_fixed(16)),
    _audio("mp3_32k", "coded as mp3 at {kilobits} kbit/s", kilobits=_fixed(32)),
    _audio("telephone_8k", "coded as on the telephone: mu-law at 8 kHz"),
    Augmentation(
        name="gain",
        sense="audio",
        text="volume changed by {decibels} dB",
        ranges={"decibels": ((-9, -3), (3, 9))},
        note="spectrograms that are normalised clip by clip, as they are by default, do not show it",
    ),
    _audio("white_noise_20db", "white noise {snr} dB below the sound", snr=_fixed(20)),
    _audio("white_noise_10db", "white noise {snr} dB below the sound", snr=_fixed(10)),
    _audio("pink_noise", "pink noise {snr} dB below the sound", snr=((10, 20),)),
    _audio("reverb_small", "in a room of 2.5 to 4.5 m that rings for {rt60} s", rt60=((0.2, 0.35),), size=((0, 1),)),
    _audio("reverb_large", "in a hall of 7 to 11 m that rings for {rt60} s", rt60=((0.5, 0.8),), size=((0, 1),)),
    _audio("low_pass", "nothing above {hertz} Hz (24 dB per octave)", hertz=((2500, 4000),)),
    _audio("high_pass", "nothing below {hertz} Hz (24 dB per octave)", hertz=((200, 500),)),
    _audio(
        "band_pass",
        "nothing outside {low} Hz to {high} Hz (24 dB per octave)",
        low=((200, 400),),
        high=((3000, 3800),),
    ),
    Augmentation(
        name="clipping",
        sense="audio",
        text="the loudest {percent} % of the samples clipped",
        ranges={"percent": ((2, 8),)},
        steps={"percent": 2},
    ),
    Augmentation(
        name="pitch",
        sense="audio",
        text="voice {semitones} semitones higher",
        ranges={"semitones": ((-2, -1), (1, 2))},
        default=False,
        note=_MAY_IMITATE,
    ),
    Augmentation(
        name="tempo",
        sense="both",
        text="picture and sound {speed} times as fast, at the same pitch",
        ranges={"speed": ((0.9, 0.95), (1.05, 1.1))},
        default=False,
        note=_MAY_IMITATE,
    ),
)

AUGMENTATIONS: dict[str, Augmentation] = {item.name: item for item in (*_VISUAL, *_AUDIO)}
DEFAULT_NAMES: tuple[str, ...] = tuple(name for name, item in AUGMENTATIONS.items() if item.default)
"""Those used where none is named: pitch and tempo are left out."""
