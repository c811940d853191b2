"""The damages that clips suffer in the world, each in several severities: how well does a network stand them?

A damage happens to the decoded clip before anything else is done to it: to whole frames before faces are looked for,
and to the sound at its own level. What is random in one depends on the clip's id and the damage's name alone, so that
a severity differs from the next by its strength, not by its draw. Severity 0 is no damage.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from data_prep.storage import InputError
from data_prep.video_filter import VideoFilter
from data_prep.window import ClipWindow, WindowSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One kind of damage."""

    name: str
    sense: Literal["visual", "audio", "both"]
    """What it damages; both: what is between them."""
    text: str
    """What it does, in words."""
    unit: str
    """Of `values`."""
    values: Mapping[int, float]
    """Severity -> strength, from the mildest on. Of a damage with a sign, negative severities are the other way."""

    def label(self, severity: int) -> str:
        """The strength in words: `10 dB SNR`; of severity 0 `none`."""
        if severity == 0:
            return "none"
        sign = "+" if min(self.values) < 0 else ""
        return f"{self.values[severity]:{sign}g} {self.unit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedClip:
    """What one damage of one severity does to one clip; see `damage_to`."""

    damage: Damage
    severity: int
    clip_id: str

    @property
    def value(self) -> float:
        """The strength, in the damage's unit."""
        return self.damage.values[self.severity]

    @property
    def seed(self) -> int:
        """Of what is random: of the clip and the damage, whatever the severity."""
        digest = hashlib.sha256(f"{self.clip_id}\0{self.damage.name}".encode()).digest()
        return int.from_bytes(digest[:4])

    def settings(self, settings: WindowSettings) -> WindowSettings:
        """`settings` of a window, with what is done to the clip while it is decoded."""
        changed: WindowSettings = {**settings}
        if self.damage.name == VIDEO_CODEC:
            changed["video_filter"] = VideoFilter(codec="h264", quality=round(self.value))
        if self.damage.name == OFFSET:
            changed["sound_offset_s"] = self.value / 1000
        return changed

    def window(self, window: ClipWindow) -> ClipWindow:
        """A decoded window, with what is done to it then; itself where nothing is."""
        # It imports torchvision and audiomentations, which who only needs the names does without.
        from data_prep import damage_effects

        return damage_effects.damaged(self.damage.name, window, self.value, self.seed)


VIDEO_CODEC, BLUR, PICTURE_NOISE, RESOLUTION = "video_codec", "blur", "picture_noise", "resolution"
AUDIO_CODEC, SOUND_NOISE, REVERBERATION, OFFSET = "audio_codec", "sound_noise", "reverberation", "offset"


def _rising(*values: float) -> dict[int, float]:
    return dict(enumerate(values, start=1))


_ALL = (
    Damage(
        name=VIDEO_CODEC,
        sense="visual",
        text="the frames of the window coded again: H.264 at a constant rate factor",
        unit="CRF",
        values=_rising(28, 34, 40, 46, 51),
    ),
    Damage(
        name=BLUR,
        sense="visual",
        text="Gaussian blur of the whole frame",
        unit="px sigma",
        values=_rising(1, 2, 3, 4, 6),
    ),
    Damage(
        name=PICTURE_NOISE,
        sense="visual",
        text="Gaussian noise, another one on every frame",
        unit="grey levels sigma",
        values=_rising(5, 10, 20, 40, 60),
    ),
    Damage(
        name=RESOLUTION,
        sense="visual",
        text="the sides of the frame divided by a factor, and enlarged again",
        unit="times smaller",
        values=_rising(1.5, 2, 3, 4, 6),
    ),
    Damage(
        name=AUDIO_CODEC,
        sense="audio",
        text="the sound of the window coded again: AAC, mono at 16 kHz",
        unit="kbit/s",
        values=_rising(32, 24, 16, 12, 8),
    ),
    Damage(
        name=SOUND_NOISE,
        sense="audio",
        text="white noise at a ratio of sound to noise",
        unit="dB SNR",
        values=_rising(30, 20, 10, 5, 0),
    ),
    Damage(
        name=REVERBERATION,
        sense="audio",
        text="the voice 1 m away in a room of 60 cubic metres with a reverberation time",
        unit="s RT60",
        values=_rising(0.2, 0.4, 0.8, 1.2, 2.0),
    ),
    Damage(
        name=OFFSET,
        sense="both",
        text="the sound out of step with the picture: late, where the number is positive",
        unit="ms",
        values={-3: -400, -2: -200, -1: -80, 1: 80, 2: 200, 3: 400},
    ),
)
DAMAGES: dict[str, Damage] = {damage.name: damage for damage in _ALL}


def damage_named(name: str) -> Damage:
    """The damage `name`. Raises InputError if there is none."""
    if name not in DAMAGES:
        raise InputError(f"damage {name!r} is none; choose from {', '.join(DAMAGES)}.")
    return DAMAGES[name]


def damage_to(clip_id: str, name: str, severity: int) -> DamagedClip | None:
    """What the damage `name` does to the clip `clip_id`; None for severity 0.

    Raises InputError if there is no such damage or severity.
    """
    damage = damage_named(name)
    if severity == 0:
        return None
    if severity not in damage.values:
        known = ", ".join(map(str, sorted([0, *damage.values])))
        raise InputError(f"severity {severity} of damage {name!r} is none; choose from {known}.")
    return DamagedClip(damage=damage, severity=severity, clip_id=clip_id)
