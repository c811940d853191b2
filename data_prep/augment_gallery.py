"""What each augmentation does to one clip, to look at and to listen to."""

import html
import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep import audio, faces, storage
from data_prep.augmentations import AUGMENTATIONS, Plan, plan
from data_prep.clip import PrepareConfig, window_settings
from data_prep.contact_sheet import face_picture, spectrogram_picture
from data_prep.decoder import Decoder
from data_prep.faces import MtcnnDetector
from data_prep.rejects import RejectedError, RejectReason

INDEX_NAME, SHEET_NAME, ORIGINAL_NAME = "index.html", "gallery.jpg", "original"

_FACE_SIDE, _SPECTROGRAM_WIDTH = 168, 300  # pixels, of a picture of one augmentation
_FACES = 4
_CELL_SIDE, _CELL_SPECTROGRAM_WIDTH = 112, 150  # of the sheet of all
_SHEET_COLUMNS = 3
_HEADER, _GAP, _FONT_SIZE = 22, 8, 14


@dataclass(frozen=True, slots=True)
class _Example:
    """A clip's window as it is prepared, but for the sound's level."""

    frames: np.ndarray
    """uint8 [frames, 3, side, side]"""
    sound: np.ndarray
    """float32 [samples] at 16 kHz"""
    magnitude: np.ndarray
    """float32 [spectrogram_frames, 257]: its spectrogram"""


def write_gallery(clip: str, out: str, config: PrepareConfig) -> list[str]:
    """Writes, for each augmentation, NAME.jpg and NAME.wav of `clip`, a local path or s3:// URI, to directory `out`.

    gallery.jpg shows all of them, index.html plays them, original.wav is the sound as it was. The pictures hold face
    crops and spectrograms (time to the right, 0 to 8 kHz upwards), the original's above. Returns the names, in order.

    Raises RejectedError if the clip cannot be decoded or shows no face.
    """
    examples = _examples(clip, config)
    _, before = next(examples)
    storage.write(storage.join(out, f"{ORIGINAL_NAME}.wav"), _wav(before.sound))
    names, after = [f"{ORIGINAL_NAME}.wav"], {}
    for made, example in examples:
        assert made.augmentation is not None
        name = made.augmentation.name
        after[name] = example
        caption = f"{name}: {made.augmentation.description}" + (f"; here {made.drawn}" if made.drawn else "")
        storage.write(storage.join(out, f"{name}.jpg"), _jpeg(_picture(caption, before, example)))
        storage.write(storage.join(out, f"{name}.wav"), _wav(example.sound))
        names += [f"{name}.jpg", f"{name}.wav"]
    storage.write(storage.join(out, SHEET_NAME), _jpeg(_sheet(before, after)))
    storage.write(storage.join(out, INDEX_NAME), _index().encode())
    return [*names, SHEET_NAME, INDEX_NAME]


def _examples(clip: str, config: PrepareConfig) -> Iterator[tuple[Plan, _Example]]:
    """The clip as it is, then with each augmentation."""
    clip_id = _clip_id(clip)
    detector = MtcnnDetector(max_side=config.detect_max_side, min_face_size=config.min_face_size)
    with Decoder(timeout_s=config.clip_timeout) as decoder:
        unchanged = plan(None, clip_id, window_s=config.window_s)
        plain = _decoded(unchanged, clip, decoder, detector, config)
        yield unchanged, _example(*plain, config)
        for name in AUGMENTATIONS:
            made = plan(name, clip_id, window_s=config.window_s)
            is_plain = made.video_filter is None and made.speed == 1
            frames, sound = plain if is_plain else _decoded(made, clip, decoder, detector, config)
            yield made, _example(made.images(frames), made.sound(sound), config)


def _clip_id(clip: str) -> str:
    """The same file gets the same draws, wherever it lies."""
    return clip.rpartition("/")[2]


def _decoded(
    made: Plan, clip: str, decoder: Decoder, detector: MtcnnDetector, config: PrepareConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Face crops and sound of the window, after what the plan does to the decoded frames."""
    window = decoder.read_window(clip, None, **window_settings(config, made, _clip_id(clip)))
    track = faces.follow_face(detector(np.stack(window.images)), min_score=config.min_face_score, frames=window.images)
    if track.num_faces == 0:
        raise RejectedError(RejectReason.NO_FACE, "none of the window's frames shows a face")
    crops = [
        faces.crop(image, box, margin=config.face_margin, size=config.frame_size)
        for image, box in zip(window.images, track.boxes, strict=True)
    ]
    return np.stack(crops), window.sound


def _example(frames: np.ndarray, sound: np.ndarray, config: PrepareConfig) -> _Example:
    return _Example(frames, sound, audio.magnitude_spectrogram(sound, config.spectrogram_frames))


def _picture(caption: str, before: _Example, after: _Example) -> Image.Image:
    """Some frames and the spectrogram, those of `before` above."""
    positions = np.linspace(0, len(before.frames) - 1, min(_FACES, len(before.frames))).round().astype(int)
    width = len(positions) * _FACE_SIDE + _GAP + _SPECTROGRAM_WIDTH
    picture = Image.new("RGB", (width, 2 * (_HEADER + _FACE_SIDE)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (text, example) in enumerate(zip(("before", caption), (before, after), strict=True)):
        top = row * (_HEADER + _FACE_SIDE)
        draw.text((2, top + 3), text, fill="black", font=ImageFont.load_default(_FONT_SIZE))
        for column, position in enumerate(positions):
            picture.paste(face_picture(example.frames[position], _FACE_SIDE), (column * _FACE_SIDE, top + _HEADER))
        # As black as in the original, so that volumes can be compared.
        size, loudest = (_SPECTROGRAM_WIDTH, _FACE_SIDE), float(before.magnitude.max())
        spectrogram = spectrogram_picture(example.magnitude, size, loudest=loudest)
        picture.paste(spectrogram, (width - _SPECTROGRAM_WIDTH, top + _HEADER))
    return picture


def _sheet(before: _Example, after: dict[str, _Example]) -> Image.Image:
    """All augmentations: of each a frame before and after, and the spectrogram before and after."""
    width, height = 2 * (_CELL_SIDE + _CELL_SPECTROGRAM_WIDTH) + 2 * _GAP, _HEADER + _CELL_SIDE + _GAP
    rows = -(-len(after) // _SHEET_COLUMNS)
    sheet = Image.new("RGB", (_SHEET_COLUMNS * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    loudest, middle = float(before.magnitude.max()), len(before.frames) // 2
    font, spectrogram_size = ImageFont.load_default(_FONT_SIZE), (_CELL_SPECTROGRAM_WIDTH, _CELL_SIDE)
    for position, (name, example) in enumerate(after.items()):
        left, top = position % _SHEET_COLUMNS * width, position // _SHEET_COLUMNS * height
        draw.text((left + 2, top + 3), f"{name} ({AUGMENTATIONS[name].sense})", fill="black", font=font)
        pictures = [face_picture(one.frames[middle], _CELL_SIDE) for one in (before, example)]
        pictures += [spectrogram_picture(one.magnitude, spectrogram_size, loudest=loudest) for one in (before, example)]
        for picture in pictures:
            sheet.paste(picture, (left, top + _HEADER))
            left += picture.width + 2
    return sheet


def _jpeg(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90)
    return data.getvalue()


def _wav(sound: np.ndarray) -> bytes:
    """16 bits; peaks above 1 are cut off."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.SAMPLE_RATE)
        file.writeframes(np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return data.getvalue()


def _index() -> str:
    parts = [_player("original", "the sound as it was", ORIGINAL_NAME, None)]
    for name, augmentation in AUGMENTATIONS.items():
        text = augmentation.description + ("" if augmentation.default else "; off by default")
        parts.append(_player(name, text, name, name))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Augmentations</title></head><body>',
            *parts,
            "</body></html>\n",
        ]
    )


def _player(title: str, text: str, sound: str, picture: str | None) -> str:
    image = "" if picture is None else f'<p><img src="{picture}.jpg" alt="{picture}: before and after"></p>'
    heading = f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>"
    return f'{heading}<p><audio controls preload="none" src="{sound}.wav"></audio></p>{image}'
