"""Takes for the demo corpus: a drawn subject moves its head, blinks, speaks, is filmed, and may have its mouth forged.

A frame costs a paste of the mouth and the eyes, one affine warp of the head and a cut-out of camera grain.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops

from data_prep.synthetic_faces import CANVAS, OPEN_LEVELS, WIDTH_LEVELS, Layers

_PIVOT = np.array([CANVAS / 2, CANVAS / 2 + 60])  # a head turns about the top of its neck
_REACH = 82  # half the width in pixels of the column in which a head is warped: hair and tilt included
_GRAIN_SLACK = 32  # fields of grain are this much larger than a frame
_FACTOR = 4  # the forger works at this fraction of the resolution


@dataclass(frozen=True, slots=True)
class Motion:
    """A head's movement in one take, frame by frame."""

    shift: np.ndarray
    """float [T, 2]: right and down, pixels."""
    tilt: np.ndarray
    """float [T]: radians."""
    scale: np.ndarray
    """float [T]: 1 is the size at rest."""
    lids: np.ndarray
    """int [T]: index into `Layers.eyes`."""


def draw_motion(rng: np.random.Generator, num_frames: int, fps: int) -> Motion:
    """A slow sway, and a blink every two to four seconds."""
    times = np.arange(num_frames) / fps

    def sway(size: float) -> np.ndarray:
        rates, phases = rng.uniform(0.15, 0.9, 3), rng.uniform(0, 2 * np.pi, 3)
        return size * np.sin(2 * np.pi * rates * times[:, None] + phases).sum(axis=1) / 1.7

    lids = np.zeros(num_frames, int)
    blink = rng.uniform(0.2, 2.5)
    while blink < times[-1]:
        first = int(blink * fps)
        lids[first : first + 5] = np.array([1, 2, 2, 1, 1])[: num_frames - first]
        blink += rng.uniform(2.0, 4.0)
    shift = np.stack([sway(4.0), sway(2.5)], axis=1) + rng.uniform(-5, 5, 2)
    tilt = sway(0.04) + rng.uniform(-0.04, 0.04)
    scale = 1 + sway(0.012) + rng.uniform(-0.03, 0.03)
    return Motion(shift, tilt, scale, lids)


def mouth_patches(layers: Layers, openness: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The mouth, frame by frame: uint8 [T, h, w, 4] for openness and spread [T], 0 to 1."""
    level = np.round(np.clip(openness, 0, 1) * (OPEN_LEVELS - 1)).astype(int)
    width = np.round(np.clip(spread, 0, 1) * (WIDTH_LEVELS - 1)).astype(int)
    drawn = np.stack([[np.asarray(patch) for patch in row] for row in layers.mouths])
    return drawn[level, width]


def draw_grain(rng: np.random.Generator, *, sigma: float = 2.5, num_fields: int = 6) -> list[Image.Image]:
    """Fields of camera noise around 128 (RGB), larger than a frame so that each frame takes another cut-out."""
    size = CANVAS + _GRAIN_SLACK
    luma = rng.normal(128, sigma, (num_fields, size, size, 1))
    chroma = rng.normal(0, 0.4 * sigma, (num_fields, size, size, 3))
    return [Image.fromarray(field, "RGB") for field in np.round(luma + chroma).clip(0, 255).astype(np.uint8)]


def render(
    layers: Layers, motion: Motion, mouths: np.ndarray, grain: list[Image.Image], rng: np.random.Generator
) -> list[Image.Image]:
    """The frames of a take, RGB [CANVAS, CANVAS], with these mouth patches (uint8 [T, h, w, 4])."""
    frames = []
    for index, mouth in enumerate(mouths):
        head = layers.head.copy()
        head.paste(Image.fromarray(mouth, "RGBA"), layers.mouth_box[:2])
        if motion.lids[index]:
            head.paste(layers.eyes[motion.lids[index]], layers.eyes_box[:2])
        frame = layers.backdrop.copy()
        left = int(CANVAS / 2 + motion.shift[index, 0] + 70 * motion.tilt[index]) - _REACH
        warp = _inverse_affine(motion, index, left)
        moved = head.transform((2 * _REACH, CANVAS), Image.Transform.AFFINE, warp, Image.Resampling.BILINEAR)
        frame.paste(moved, (left, 0), moved)
        x, y = rng.integers(0, _GRAIN_SLACK, 2)
        noise = grain[index % len(grain)].crop((x, y, x + CANVAS, y + CANVAS))
        frames.append(ImageChops.add(frame, noise, 1, -128))
    return frames


def _inverse_affine(motion: Motion, index: int, left: int) -> tuple[float, ...]:
    """Pillow's coefficients: from a pixel of the frame, whose column 0 is `left`, to the layer's."""
    cosine = math.cos(motion.tilt[index]) / motion.scale[index]
    sine = math.sin(motion.tilt[index]) / motion.scale[index]
    x, y = _PIVOT + motion.shift[index] - (left, 0)
    return cosine, sine, _PIVOT[0] - cosine * x - sine * y, -sine, cosine, _PIVOT[1] + sine * x - cosine * y


def forge(real: np.ndarray, donor: np.ndarray, rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """A mouth region made by a generator from `donor`, blended into `real`: uint8 [T, h, w, 4], like both.

    What gives it away is what gives face generators away. It is made at a quarter of the resolution and enlarged by a
    transposed convolution, whose overlaps leave a grid (Odena, Dumoulin and Olah, "Deconvolution and checkerboard
    artifacts", 2016). Its colours, moved to the skin's mean, miss it a little, and flicker from frame to frame. It is
    blended in with a narrow seam and trembles against the head by up to a pixel. `strength` scales grid, colour error
    and flicker; 1 is ordinary.
    """
    num_frames, height, width = real.shape[:3]
    skin = real[..., :3].astype(np.float32)
    source = np.where(donor[..., 3:] > 0, donor[..., :3], real[..., :3]).astype(np.float32)
    source += skin.mean(axis=(0, 1, 2)) - source.mean(axis=(0, 1, 2))
    miss = 1 + strength * 0.035 * rng.uniform(0.6, 1.4) * rng.choice([-1, 1])
    gain = miss + strength * 0.03 * rng.standard_normal((num_frames, 1, 1, 1)).astype(np.float32)
    made = _enlarged(source) * (gain * (1 + strength * 0.08 * _grid(height, width)))
    mask = _seam(height, width, rng.uniform(-1, 1, (num_frames, 2, 1, 1)))
    out = real.copy()
    out[..., :3] = np.round(skin + (made - skin) * mask).clip(0, 255)
    return out


def _enlarged(source: np.ndarray) -> np.ndarray:
    """`source` float32 [T, h, w, 3] reduced by _FACTOR and enlarged again: half in blocks, half smoothed."""
    num_frames, height, width, _ = source.shape
    low = source.reshape(num_frames, height // _FACTOR, _FACTOR, width // _FACTOR, _FACTOR, 3).mean(axis=(2, 4))
    blocks = low.repeat(_FACTOR, axis=1).repeat(_FACTOR, axis=2)
    smooth = blocks.copy()
    smooth[:, 1:-1] = (blocks[:, :-2] + blocks[:, 1:-1] + blocks[:, 2:]) / 3
    smooth[:, :, 1:-1] = (smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]) / 3
    return 0.5 * (blocks + smooth)


def _grid(height: int, width: int) -> np.ndarray:
    """The overlaps of a transposed convolution, -1 to 1 with mean 0: float32 [1, height, width, 1]."""
    wave = np.array([1, -1, -1, 1], np.float32)
    rows, columns = np.resize(wave, height), np.resize(wave, width)
    return (0.5 * (rows[:, None] + columns[None, :]))[None, :, :, None]


def _seam(height: int, width: int, shift: np.ndarray) -> np.ndarray:
    """A rounded rectangle with a border of 2 pixels, moved by `shift` [T, 2, 1, 1]: float32 [T, height, width, 1]."""
    y = np.abs(np.arange(height)[:, None] - (height - 1) / 2 - shift[:, 0]) / (height / 2 - 3)
    x = np.abs(np.arange(width)[None, :] - (width - 1) / 2 - shift[:, 1]) / (width / 2 - 6)
    radius = np.sqrt(np.sqrt(x**4 + y**4))
    return ((1 - radius) * height / 4).clip(0, 1)[..., None].astype(np.float32)
