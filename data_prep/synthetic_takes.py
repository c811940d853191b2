"""Takes for the demo corpus: a drawn subject moves its head, blinks, speaks, is filmed, and may have its face forged.

A frame costs a paste of the inner face, one affine warp of the head and a cut-out of camera grain.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops

from data_prep.synthetic_faces import CANVAS, FACE_BOX, OPEN_LEVELS, WIDTH_LEVELS, Layers

_PIVOT = np.array([CANVAS / 2, CANVAS / 2 + 60])  # a head turns about the top of its neck
_REACH = 82  # half the width in pixels of the column in which a head is warped: hair and tilt included
_GRAIN_SLACK = 32  # fields of grain are this much larger than a frame
_FACTOR = 4  # the forger works at this fraction of the resolution; divides the inner face's sides
_GRID = 0.04  # relative depth of the grid that its enlargement leaves


@dataclass(frozen=True, slots=True)
class InnerFaces:
    """What moves in a face, brows to chin, over a take."""

    distinct: np.ndarray
    """uint8 [U, h, w, 4]: FACE_BOX, RGBA, in each state that occurs."""
    shown: np.ndarray
    """int [T]: which of them each frame shows."""


def inner_faces(layers: Layers, openness: np.ndarray, spread: np.ndarray, lids: np.ndarray) -> InnerFaces:
    """The inner face in every frame: openness and spread of the mouth [T], 0 to 1, lids [T] an index of `eyes`."""
    level = np.round(np.clip(openness, 0, 1) * (OPEN_LEVELS - 1)).astype(int)
    width = np.round(np.clip(spread, 0, 1) * (WIDTH_LEVELS - 1)).astype(int)
    states, shown = np.unique(np.stack([level, width, lids]), axis=1, return_inverse=True)
    faces = []
    for state_level, state_width, lid in states.T:
        face = layers.head.copy()
        face.paste(layers.mouths[state_level][state_width], layers.mouth_box[:2])
        face.paste(layers.eyes[lid], layers.eyes_box[:2])
        faces.append(np.asarray(face.crop(FACE_BOX)))
    return InnerFaces(np.stack(faces), shown)


@dataclass(frozen=True, slots=True)
class Motion:
    """A head's movement in one take, frame by frame."""

    shift: np.ndarray
    """float [T, 2]: right and down, pixels."""
    tilt: np.ndarray
    """float [T]: radians."""
    scale: np.ndarray
    """float [T]: 1 is the size at rest."""


def draw_motion(rng: np.random.Generator, num_frames: int, fps: int) -> Motion:
    """A slow sway about a place of its own."""
    times = np.arange(num_frames) / fps

    def sway(size: float) -> np.ndarray:
        rates, phases = rng.uniform(0.15, 0.9, 3), rng.uniform(0, 2 * np.pi, 3)
        return size * np.sin(2 * np.pi * rates * times[:, None] + phases).sum(axis=1) / 1.7

    shift = np.stack([sway(4.0), sway(2.5)], axis=1) + rng.uniform(-5, 5, 2)
    return Motion(shift, sway(0.04) + rng.uniform(-0.04, 0.04), 1 + sway(0.012) + rng.uniform(-0.03, 0.03))


def draw_lids(rng: np.random.Generator, num_frames: int, fps: int) -> np.ndarray:
    """A blink every two to four seconds: int [T], 0 open, 1 half, 2 closed."""
    lids = np.zeros(num_frames, int)
    blink = rng.uniform(0.2, 2.5)
    while blink * fps < num_frames:
        first = int(blink * fps)
        lids[first : first + 5] = np.array([1, 2, 2, 1, 1])[: num_frames - first]
        blink += rng.uniform(2.0, 4.0)
    return lids


def draw_grain(rng: np.random.Generator, *, sigma: float = 2.5, num_fields: int = 6) -> list[Image.Image]:
    """Fields of camera noise around 128 (RGB), larger than a frame so that each frame takes another cut-out."""
    size = CANVAS + _GRAIN_SLACK
    luma = rng.normal(128, sigma, (num_fields, size, size, 1))
    chroma = rng.normal(0, 0.4 * sigma, (num_fields, size, size, 3))
    return [Image.fromarray(field, "RGB") for field in np.round(luma + chroma).clip(0, 255).astype(np.uint8)]


def render(
    layers: Layers, motion: Motion, faces: np.ndarray, grain: list[Image.Image], rng: np.random.Generator
) -> list[Image.Image]:
    """The frames of a take, RGB [CANVAS, CANVAS], with these inner faces (uint8 [T, h, w, 4])."""
    frames = []
    for index, face in enumerate(faces):
        head = layers.head.copy()
        head.paste(Image.fromarray(face, "RGBA"), FACE_BOX[:2])
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


def forge(real: InnerFaces, donor: InnerFaces, rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """Inner faces made by a generator from `donor`, blended into `real`: uint8 [T, h, w, 4].

    What gives them away is what gives generated faces away. They are made at a quarter of the resolution and enlarged
    by a transposed convolution, whose overlaps leave a grid (Odena, Dumoulin and Olah, "Deconvolution and checkerboard
    artifacts", 2016). Their colours, moved to the skin's mean, miss it a little, and flicker from frame to frame. They
    are blended in with a narrow seam and tremble against the head by up to a pixel. `strength`, 0 to 2, scales
    loss of detail (all of it at 1), grid, colour error and flicker.
    """
    skin = real.distinct[..., :3].astype(np.float32)
    source = donor.distinct[..., :3].astype(np.float32)
    height, width = skin.shape[1:3]
    replaced = _seam(height, width, np.zeros((1, 2, 1, 1)))
    source *= (skin * replaced).mean(axis=(0, 1, 2)) / (source * replaced).mean(axis=(0, 1, 2))
    made = source + min(strength, 1.0) * (_enlarged(source) - source)
    made *= 1 + strength * _GRID * _grid(height, width)
    num_frames = len(real.shown)
    miss = 1 + strength * 0.035 * rng.uniform(0.6, 1.4) * rng.choice([-1, 1])
    gain = miss + strength * 0.03 * rng.standard_normal((num_frames, 1, 1, 1)).astype(np.float32)
    mask = _seam(height, width, rng.uniform(-1, 1, (num_frames, 2, 1, 1)))
    out = real.distinct[real.shown]
    kept = skin[real.shown]
    out[..., :3] = (kept + (made[donor.shown] * gain - kept) * mask + 0.5).clip(0, 255)
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
    """1 within an oval, 0 outside, with a border of 2 pixels; moved by `shift` [T, 2, 1, 1]: float32 [T, h, w, 1]."""
    y = np.abs(np.arange(height)[:, None] - (height - 1) / 2 - shift[:, 0]) / (height / 2 - 3)
    x = np.abs(np.arange(width)[None, :] - (width - 1) / 2 - shift[:, 1]) / (width / 2 - 8)
    radius = (x**2.5 + y**2.5) ** 0.4
    return ((1 - radius) * height / 4).clip(0, 1)[..., None].astype(np.float32)
