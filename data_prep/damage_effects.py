"""What damages do to a decoded window: to its frames as they are shown, and to its sound at 16 kHz."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from data_prep import augment_sound, augment_visual, damages
from data_prep.audio import SAMPLE_RATE
from data_prep.window import ClipWindow

_VOICE_M = 1.0
_ROOM_M3 = 60.0
_SABINE = 0.161
"""Seconds per metre: RT60 = 0.161 V / A."""
_DECAY_DB = 60.0


def damaged(name: str, window: ClipWindow, value: float, seed: int) -> ClipWindow:
    """`window` with the damage `name` of strength `value`; itself where that happens elsewhere, as the codec's does.

    A picture that is shown several times is damaged once. Lengths and moments stay.
    """
    if name in PICTURES:
        distinct = {id(image): image for image in window.images}
        changed = {
            key: PICTURES[name](image, value, seed + index) for index, (key, image) in enumerate(distinct.items())
        }
        return replace(window, images=[changed[id(image)] for image in window.images])
    if name in SOUNDS:
        sound = SOUNDS[name](window.sound, value, seed)
        return replace(window, sound=np.ascontiguousarray(sound, dtype=np.float32))
    return window


def _blurred(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    return _image(augment_visual.blurred(_planes(image), sigma))


def _noisy(image: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    noisy = augment_visual.change("gaussian_noise", image[None], {"deviation": deviation, "seed": seed})
    return np.ascontiguousarray(noisy[0])


def _coarsened(image: np.ndarray, factor: float, seed: int) -> np.ndarray:
    return _image(augment_visual.coarsened(_planes(image), factor))


def _planes(image: np.ndarray) -> torch.Tensor:
    """uint8 [1, 3, height, width] of [height, width, 3]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def _image(planes: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(planes[0].numpy().transpose(1, 2, 0))


def _recoded(samples: np.ndarray, kilobits: float, seed: int) -> np.ndarray:
    # The encoder's delay is in its file, and the decoder leaves as much out.
    return augment_sound.change("aac_32k", samples, {"kilobits": kilobits})


def _with_noise(samples: np.ndarray, snr: float, seed: int) -> np.ndarray:
    return augment_sound.change("white_noise_20db", samples, {"snr": snr, "seed": seed})


def _reverberated(samples: np.ndarray, rt60_s: float, seed: int) -> np.ndarray:
    return augment_sound.reverberated(samples, _room_response(rt60_s, seed))


def _room_response(rt60_s: float, seed: int) -> np.ndarray:
    """float64: the direct sound, 1 at the first sample, and after it noise that falls by 60 dB in `rt60_s` seconds.

    The noise has as much more energy than the direct sound as a diffuse field has 1 m from a source that sends alike to
    all sides: 16 pi r**2 / A, with A by Sabine's formula. It reaches down to -60 dB.
    """
    random = np.random.default_rng(seed)
    times = np.arange(1, round(rt60_s * SAMPLE_RATE)) / SAMPLE_RATE
    noise = random.standard_normal(len(times)) * 10 ** (-_DECAY_DB / 20 * times / rt60_s)
    energy = 16 * np.pi * _VOICE_M**2 * rt60_s / (_SABINE * _ROOM_M3)
    return np.concatenate([[1.0], noise * np.sqrt(energy / np.square(noise).sum())])


Effect = Callable[[np.ndarray, float, int], np.ndarray]

PICTURES: dict[str, Effect] = {
    damages.BLUR: _blurred,
    damages.PICTURE_NOISE: _noisy,
    damages.RESOLUTION: _coarsened,
}
"""Damage -> its function of (frame uint8 [height, width, 3], strength, seed)."""
SOUNDS: dict[str, Effect] = {
    damages.AUDIO_CODEC: _recoded,
    damages.SOUND_NOISE: _with_noise,
    damages.REVERBERATION: _reverberated,
}
"""Damage -> its function of (float32 [samples], strength, seed)."""
