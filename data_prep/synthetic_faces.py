"""Drawn faces for the demo corpus: a subject's traits, and the layers of which its frames are put together.

A subject is drawn once (Pillow, at twice the size, then reduced), with its mouth at every opening and its eyes at every
lid; synthetic_takes.py moves and films it. Coordinates are those of a frame, `CANVAS` pixels square; a head at rest
stands in its middle. Nothing here touches a file.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CANVAS = 224
FACE_BOX = (60, 80, 164, 176)
"""Left, top, right, bottom of the inner face, brows to chin, in which whatever moves lies, for every subject."""
_OVER = 2  # layers are drawn at this multiple and reduced, which gives smooth outlines
OPEN_LEVELS = 12
WIDTH_LEVELS = 3

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom in canvas pixels


@dataclass(frozen=True, slots=True)
class FaceTraits:
    """What makes one subject look like itself; lengths in canvas pixels, angles in radians."""

    half_width: float
    half_height: float
    jaw: float  # exponent of the outline below the eyes: 2 is an ellipse, more is squarer
    eye_gap: float
    eye_height: float
    eye_size: float
    iris: Colour
    brow_thickness: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_drop: float
    mouth_width: float
    lip_fullness: float
    lip_tint: float
    skin: Colour
    hair: Colour
    hair_volume: float
    hair_length: float
    fringe: float
    light_angle: float
    light_strength: float
    warmth: float  # white balance: above 0 warmer, below 0 colder
    clothes: Colour
    background: tuple[Colour, Colour]


def draw_traits(rng: np.random.Generator) -> FaceTraits:
    """One subject's traits."""

    def grey(low: float, high: float, hue: float) -> Colour:
        return _colour(rng.uniform(low, high) + rng.uniform(-hue, hue, 3))

    depth = rng.uniform(0, 1)  # skin from light to dark along one line, with a little hue of its own
    skin = np.array([238, 200, 172]) * (1 - depth) + np.array([156, 112, 86]) * depth + rng.uniform(-8, 8, 3)
    hairs = [(38, 28, 24), (74, 50, 34), (120, 84, 48), (168, 134, 82), (92, 88, 86), (24, 22, 30)]
    hair = np.array(hairs[rng.integers(len(hairs))]) * (1 - 0.6 * depth) + rng.uniform(-8, 8, 3)
    irises = [(70, 44, 26), (58, 84, 104), (70, 92, 60), (44, 34, 30)]
    half_width = rng.uniform(50, 56)
    return FaceTraits(
        half_width=half_width,
        half_height=half_width * rng.uniform(1.24, 1.38),
        jaw=rng.uniform(2.0, 2.5),
        eye_gap=half_width * rng.uniform(0.41, 0.47),
        eye_height=rng.uniform(10, 15),
        eye_size=rng.uniform(8.5, 10.5),
        iris=irises[rng.integers(len(irises))],
        brow_thickness=rng.uniform(3.0, 4.5),
        brow_tilt=rng.uniform(-1.5, 2.5),
        nose_length=rng.uniform(21, 26),
        nose_width=rng.uniform(7.5, 10.5),
        mouth_drop=rng.uniform(32, 36),
        mouth_width=rng.uniform(16.5, 20.5),
        lip_fullness=rng.uniform(3.2, 5.2),
        lip_tint=rng.uniform(0.45, 0.75),
        skin=_colour(skin),
        hair=_colour(hair),
        hair_volume=rng.uniform(5, 12),
        hair_length=rng.uniform(-20, 28),
        fringe=rng.uniform(0.50, 0.66),
        light_angle=rng.uniform(-2.4, -0.7),
        light_strength=rng.uniform(0.25, 0.55),
        warmth=rng.uniform(-0.05, 0.05),
        clothes=grey(40, 160, 40),
        background=(grey(80, 180, 22), grey(80, 180, 22)),
    )


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (int(v) for v in np.clip(np.round(values), 0, 255))
    return red, green, blue


def _scaled(colour: Colour, factor: float) -> Colour:
    return _colour(np.array(colour) * factor)


@dataclass(frozen=True, slots=True)
class Layers:
    """One subject, drawn: what a take is put together from."""

    traits: FaceTraits
    backdrop: Image.Image  # RGB [CANVAS, CANVAS]: background and shoulders
    head: Image.Image  # RGBA, with closed mouth and open eyes
    mouth_box: Box
    mouths: list[list[Image.Image]]  # [OPEN_LEVELS][WIDTH_LEVELS], RGBA patches of mouth_box
    eyes_box: Box
    eyes: list[Image.Image]  # open, half, closed: RGBA patches of eyes_box


def draw_layers(traits: FaceTraits) -> Layers:
    """Draw a subject's layers (about 60 ms)."""
    bare = _bare_head(traits)
    mouth_y = CANVAS / 2 + traits.mouth_drop
    mouth_box = ((112 - 36), int(mouth_y - 19), (112 + 36), int(mouth_y + 25))
    eyes_y = CANVAS / 2 - traits.eye_height
    eyes_box = ((112 - 44), int(eyes_y - 9), (112 + 44), int(eyes_y + 9))
    mouths = [
        [_patch(bare, mouth_box, lambda d, lv=level, wd=width: _draw_mouth(d, traits, lv, wd)) for width in _WIDTHS]
        for level in np.linspace(0, 1, OPEN_LEVELS)
    ]
    eyes = [_patch(bare, eyes_box, lambda d, ld=lid: _draw_eyes(d, traits, ld)) for lid in (0.0, 0.55, 1.0)]
    head = bare.resize((CANVAS, CANVAS), Image.Resampling.BOX)
    head.paste(mouths[0][1], mouth_box[:2])
    head.paste(eyes[0], eyes_box[:2])
    return Layers(traits, _backdrop(traits), head, mouth_box, mouths, eyes_box, eyes)


_WIDTHS = (0.84, 1.0, 1.12)  # rounded, neutral, spread lips


def _patch(bare: Image.Image, box: Box, draw_on) -> Image.Image:  # type: ignore[no-untyped-def]
    """The bare head's pixels in `box` with something drawn on them; reduced to canvas size, RGBA."""
    left, top, right, bottom = (side * _OVER for side in box)
    patch = bare.crop((left, top, right, bottom))
    draw_on(_Pen(ImageDraw.Draw(patch), box[0], box[1]))
    return patch.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BOX)


class _Pen:
    """ImageDraw in canvas coordinates on an image drawn at _OVER times the size, whose corner stands at (left, top)."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: float = 0, top: float = 0) -> None:
        self._draw, self._left, self._top = draw, left, top

    def _at(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [((x - self._left) * _OVER, (y - self._top) * _OVER) for x, y in points]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self._draw.ellipse(self._at([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: Colour) -> None:
        self._draw.polygon(self._at(points), fill=fill)

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float) -> None:
        self._draw.line(self._at(points), fill=fill, width=max(1, round(width * _OVER)), joint="curve")


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels of an oversized layer, in canvas pixels from the middle."""
    axis = (np.arange(CANVAS * _OVER) + 0.5) / _OVER - CANVAS / 2
    return axis[None, :], axis[:, None]


def _outline(traits: FaceTraits, grow: float = 0.0) -> np.ndarray:
    """Distance from the middle in units of the face's outline: below 1 is inside. [2 CANVAS, 2 CANVAS]."""
    x, y = _grid()
    power = np.where(y > 0, traits.jaw, 2.0)
    across, along = np.abs(x) / (traits.half_width + grow), np.abs(y) / (traits.half_height + grow)
    return (across**power + along**power) ** (1 / power)


def _bare_head(traits: FaceTraits) -> Image.Image:
    """Head without mouth and eyes: neck, ears, shaded skin, nose, brows, hair. RGBA at _OVER times the size."""
    x, y = _grid()
    radius = _outline(traits)
    slope = np.sqrt(np.clip(1 - np.minimum(radius, 1) ** 2, 0, 1))  # how much the skin faces the camera
    light = math.cos(traits.light_angle) * x / traits.half_width + math.sin(traits.light_angle) * y / traits.half_height
    shade = 0.72 + 0.34 * slope + traits.light_strength * 0.35 * light
    shade -= 0.10 * np.exp(-(((np.abs(x) - traits.eye_gap) / 13) ** 2) - ((y + traits.eye_height) / 9) ** 2)  # sockets
    cheek = np.exp(-(((np.abs(x) - 0.55 * traits.half_width) / 11) ** 2) - ((y - 16) / 11) ** 2)
    tint = np.array([1.0, 1.0, 1.0]) + np.array([0.05, -0.04, -0.03]) * cheek[..., None]
    skin = np.array(traits.skin) * shade[..., None] * tint
    inside = radius < 1
    pixels = np.zeros((CANVAS * _OVER, CANVAS * _OVER, 4))
    _fill_ears_and_neck(pixels, traits, x, y)
    pixels[inside, :3], pixels[inside, 3] = skin[inside], 255
    _fill_hair(pixels, traits, x, y)
    head = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")
    pen = _Pen(ImageDraw.Draw(head))
    _draw_nose(pen, traits)
    _draw_brows(pen, traits)
    return head


def _fill_ears_and_neck(pixels: np.ndarray, traits: FaceTraits, x: np.ndarray, y: np.ndarray) -> None:
    collar = traits.half_height + 18 + 6 * np.cos(x / 18)
    neck = (np.abs(x) < traits.half_width * 0.52) & (y > 0.4 * traits.half_height) & (y < collar)
    ears = ((np.abs(x) - traits.half_width) / 7) ** 2 + ((y + 2) / 13) ** 2 < 1
    pixels[neck, :3], pixels[neck, 3] = np.array(traits.skin) * 0.62, 255
    pixels[ears, :3], pixels[ears, 3] = np.array(traits.skin) * 0.80, 255


def _fill_hair(pixels: np.ndarray, traits: FaceTraits, x: np.ndarray, y: np.ndarray) -> None:
    around = _outline(traits, traits.hair_volume) < 1
    top = y < -traits.fringe * traits.half_height + 0.004 * (x - 8) ** 2  # the fringe's lower border
    sides = (_outline(traits, -2) > 1) & (y < traits.hair_length)
    hair = around & (top | sides)
    strands = 1 + 0.10 * np.sin(x * 0.55 + 0.05 * y + 0.02 * x * x * np.sign(x)) - 0.10 * y / traits.half_height
    pixels[hair, :3] = (np.array(traits.hair) * strands[..., None])[hair]
    pixels[hair, 3] = 255


def _draw_nose(pen: _Pen, traits: FaceTraits) -> None:
    x, top, tip = CANVAS / 2, CANVAS / 2 - traits.eye_height, CANVAS / 2 - traits.eye_height + traits.nose_length
    side = 1 if math.cos(traits.light_angle) < 0 else -1  # the shadow falls away from the light
    dark, bright = _scaled(traits.skin, 0.66), _scaled(traits.skin, 1.12)
    width = traits.nose_width
    pen.line([(x + side * 3.0, top + 3), (x + side * 4.0, tip - 6), (x + side * width * 0.8, tip)], dark, 1.4)
    pen.ellipse(x, tip - 2, width * 0.42, 3.6, bright)
    for nostril in (-1, 1):
        pen.ellipse(x + nostril * width * 0.5, tip + 2.0, 2.3, 1.4, _scaled(traits.skin, 0.36))
    pen.line([(x - width * 0.85, tip + 1.5), (x, tip + 4.0), (x + width * 0.85, tip + 1.5)], dark, 1.0)


def _draw_brows(pen: _Pen, traits: FaceTraits) -> None:
    y = CANVAS / 2 - traits.eye_height - traits.eye_size - 4
    for side in (-1, 1):
        x, reach = CANVAS / 2 + side * traits.eye_gap, traits.eye_size + 1.5
        points = [(x - side * reach, y + 1.5), (x, y - traits.brow_tilt), (x + side * reach, y + 1.0)]
        pen.line(points, _colour(np.minimum(np.array(traits.hair), 0.5 * np.array(traits.skin))), traits.brow_thickness)


def _draw_eyes(pen: _Pen, traits: FaceTraits, lid: float) -> None:
    """Both eyes; lid 0 is open, 1 closed."""
    y, size = CANVAS / 2 - traits.eye_height, traits.eye_size
    for side in (-1, 1):
        x, height = CANVAS / 2 + side * traits.eye_gap, size * 0.52 * (1 - lid)
        pen.ellipse(x, y, size + 1, size * 0.62, _scaled(traits.skin, 0.80))
        if height > 1:
            pen.ellipse(x, y, size, height, (238, 236, 232))
            pen.ellipse(x, y, min(size * 0.46, height), height, traits.iris)
            pen.ellipse(x, y, min(size * 0.22, height), min(size * 0.22, height), (14, 12, 12))
            pen.ellipse(x - 1.5, y - 1.2, 0.9, 0.9, (250, 250, 250))
        pen.line([(x - size, y + 0.5), (x, y - height - 0.3), (x + size, y + 0.5)], (40, 30, 28), 1.5)


def _draw_mouth(pen: _Pen, traits: FaceTraits, level: float, width: float) -> None:
    """Lips and what is between them; level 0 is closed, 1 wide open; width multiplies the resting width."""
    x, y = CANVAS / 2, CANVAS / 2 + traits.mouth_drop
    half, opening = traits.mouth_width * width * (1 - 0.12 * level), 11.0 * level
    lip = _colour(np.array(traits.skin) * (1 - traits.lip_tint) + np.array([160, 52, 58]) * traits.lip_tint)
    upper, lower = traits.lip_fullness * 0.85, traits.lip_fullness
    angle = np.linspace(0, math.pi, 17)
    top = [(x - half * math.cos(a), y - (upper + 0.35 * opening) * math.sin(a) ** 0.8) for a in angle]
    bottom = [(x + half * math.cos(a), y + (lower + opening) * math.sin(a)) for a in angle]
    pen.polygon(top + bottom, lip)
    pen.ellipse(x, y + lower * 0.75 + opening * 0.92, half * 0.42, 1.0, _scaled(lip, 1.12))
    if opening > 1.0:
        _draw_inner_mouth(pen, x, y, half * 0.80, opening)
    else:
        closed = [(x - half, y), (x - half * 0.3, y + 0.6), (x + half * 0.3, y + 0.6), (x + half, y)]
        pen.line(closed, _scaled(lip, 0.4), 1.6)
    pen.line([(x - half * 0.4, y + 13 + opening), (x + half * 0.4, y + 13 + opening)], _scaled(traits.skin, 0.88), 1.6)


def _draw_inner_mouth(pen: _Pen, x: float, y: float, half: float, opening: float) -> None:
    angle = np.linspace(0, math.pi, 13)
    top = [(x - half * math.cos(a), y - 0.35 * opening * math.sin(a)) for a in angle]
    bottom = [(x + half * math.cos(a), y + opening * math.sin(a)) for a in angle]
    pen.polygon(top + bottom, (52, 18, 20))
    pen.ellipse(x, y + opening * 0.78, half * 0.5, opening * 0.22, (150, 66, 70))  # tongue
    teeth = y + min(3.0, 0.4 * opening) - 0.2 * opening
    pen.polygon([*top[2:-2], (x + half * 0.6, teeth), (x - half * 0.6, teeth)], (226, 222, 212))


def _backdrop(traits: FaceTraits) -> Image.Image:
    """Background (a soft gradient with two out-of-focus shapes) and shoulders."""
    x, y = _grid()
    mix = ((y + CANVAS / 2) / CANVAS + 0.3 * x / CANVAS)[..., None].clip(0, 1)
    pixels = np.array(traits.background[0]) * (1 - mix) + np.array(traits.background[1]) * mix
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")
    pen = _Pen(ImageDraw.Draw(image))
    pen.ellipse(30, 60, 34, 60, _scaled(traits.background[1], 0.85))
    pen.ellipse(205, 40, 28, 50, _scaled(traits.background[0], 1.12))
    image = image.filter(ImageFilter.GaussianBlur(9 * _OVER))
    pen = _Pen(ImageDraw.Draw(image))
    shoulder = CANVAS / 2 + traits.half_height + 8
    pen.ellipse(CANVAS / 2, shoulder + 52, 96, 52, traits.clothes)
    return image.resize((CANVAS, CANVAS), Image.Resampling.BOX)
