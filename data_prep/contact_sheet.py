"""A picture that shows what a corpus, or sequences, hold: of some clips the face crops and the spectrogram."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from data_prep import boxes, faces
from data_prep.filter_banks import NUM_BANKS
from data_prep.sequence import sequence_arrays

_SIDE = 96  # of a face crop, in pixels
_SPECTROGRAM_WIDTH = 192
_HEADER = 18
_GAP = 6
_RANGE_DB = 80.0  # of a spectrogram, below the value that is black
_MOST_PARTS = 8  # read at most: a part may have 100 MB
_COLUMNS = (
    "clip_id", "category", "augmentation", "frames", "spectrogram", "width", "height", "face_box", "face_score",
    "num_faces", "face_choice", "duration_s", "leading_silence_s",
)  # fmt: skip
_SEQUENCE_FRAMES = 8  # of a sequence
_SEQUENCE_COLUMNS = (
    *(name for name in _COLUMNS if name not in ("frames", "spectrogram")), "num_frames", "video", "filter_banks",
)  # fmt: skip


def contact_sheet(
    parts: Sequence[str], *, clips: int = 24, face_margin: float | None = None, sequences: bool = False
) -> tuple[bytes, int]:
    """A JPEG of up to `clips` clips from `parts`, the URIs of a corpus's parts, and how many it shows.

    sequences: whether they are parts of sequences, of which 8 frames are shown that were searched for faces, and, in
    the place of spectrograms, filter banks.

    The clips are spread evenly over the corpus in order of clip_id. A red frame marks a crop in which the face was not
    found (its box is taken from the nearest frame that has it). Where several faces were seen, the caption tells most
    of them in one frame, and how the one was chosen (`faces.FaceChoice`). face_margin: that of the corpus; with it, a
    green box marks the chosen face (but not in an augmented clip, whose picture may be turned). Spectrograms: time to
    the right, 0 to 8 kHz upwards, 80 dB.
    """
    chosen = _spread(parts, min(_MOST_PARTS, clips))
    rows: list[dict[str, Any]] = []
    for number, part in enumerate(chosen):
        share = math.ceil((clips - len(rows)) / (len(chosen) - number))
        rows += _sequence_rows(part, share) if sequences else _rows(part, share)
    return draw_rows(rows, face_margin=face_margin), len(rows)


def draw_rows(
    rows: Sequence[Mapping[str, Any]], *, face_margin: float | None = None, captions: Sequence[str] | None = None
) -> bytes:
    """A JPEG of corpus rows, one below the other, drawn as `contact_sheet` says; captions: other lines above them."""
    width, height = _row_size(rows)
    sheet = Image.new("RGB", (width, max(1, len(rows)) * height), "white")
    for position, row in enumerate(rows):
        text = caption(row) if captions is None else captions[position]
        _draw_row(sheet, position * height, row, text, face_margin)
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=85, subsampling=0)  # or thin coloured lines would turn grey
    return data.getvalue()


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of `items`, evenly spread, or all where there are fewer."""
    count = min(count, len(items))
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def _rows(part: str, count: int) -> list[dict[str, Any]]:
    table = boxes.read_table(part, _COLUMNS)
    table = table.take(pa.array(_spread(range(table.num_rows), count), pa.int64()))
    columns = {name: boxes.column_to_numpy(table, name) for name in _COLUMNS}
    return [{name: columns[name][index] for name in _COLUMNS} for index in range(table.num_rows)]


def _sequence_rows(part: str, count: int) -> list[dict[str, Any]]:
    """Of some sequences of a part what a corpus row has, as far as it is drawn."""
    table = boxes.read_table(part, _SEQUENCE_COLUMNS)
    table = table.take(pa.array(_spread(range(table.num_rows), count), pa.int64()))
    plain = table.drop_columns(["video", "filter_banks"]).to_pylist()
    rows = []
    for row, video, banks in zip(plain, *sequence_arrays(table, part), strict=True):
        searched = len(row["face_score"])
        shown = (2 * np.arange(_SEQUENCE_FRAMES) + 1) * searched // (2 * _SEQUENCE_FRAMES)
        frames = video[(2 * shown + 1) * len(video) // (2 * searched)]
        # Logarithms of energies, of which a spectrogram has the roots.
        spectrogram = np.exp(banks.reshape(-1, NUM_BANKS) / 2)
        boxes_and_scores = {name: np.array(row[name], np.float32)[shown] for name in ("face_box", "face_score")}
        rows.append(row | boxes_and_scores | {"frames": frames, "spectrogram": spectrogram})
    return rows


def _row_size(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    frames = len(rows[0]["frames"]) if rows else 1
    return frames * _SIDE + _GAP + _SPECTROGRAM_WIDTH, _HEADER + _SIDE + _GAP


def _draw_row(sheet: Image.Image, top: int, row: Mapping[str, Any], text: str, face_margin: float | None) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((2, top + 2), text, fill="black", font=ImageFont.load_default(12))
    top += _HEADER
    for position, (frame, score) in enumerate(zip(row["frames"], row["face_score"], strict=True)):
        left = position * _SIDE
        sheet.paste(face_picture(frame, _SIDE), (left, top))
        if not score > 0:
            draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), outline="red", width=3)
        elif face_margin is not None and row["augmentation"] is None:
            x0, y0, x1, y1 = _box_in_crop(row, position, face_margin)
            draw.rectangle((left + x0, top + y0, left + x1, top + y1), outline="lime")
    spectrogram = spectrogram_picture(row["spectrogram"], (_SPECTROGRAM_WIDTH, _SIDE))
    sheet.paste(spectrogram, (len(row["frames"]) * _SIDE + _GAP, top))


def caption(row: Mapping[str, Any]) -> str:
    """The line above a corpus row's pictures."""
    name = " ".join(filter(None, (row["category"], row["clip_id"], row["augmentation"])))
    scores = row["face_score"]
    text = (
        f"{name}   {row['duration_s']:.1f} s, leading silence {row['leading_silence_s']:.2f} s, "
        f"face scores {scores.min():.2f} to {scores.max():.2f}"
    )
    if row["face_choice"] in ("largest_track", "close"):
        text += f", up to {row['num_faces']} faces: {row['face_choice']}"
    return text


def _box_in_crop(row: Mapping[str, Any], position: int, face_margin: float) -> list[int]:
    """Left, top, right, bottom of the face's box in the drawn crop, within it."""
    box = row["face_box"][position]
    left, top, side = faces.crop_square(row["height"], row["width"], box, margin=face_margin)
    inside = (box - np.array([left, top, left, top])) * (_SIDE / side)
    return [int(edge) for edge in np.clip(np.round(inside), 0, _SIDE - 1)]


def face_picture(crop: np.ndarray, side: int) -> Image.Image:
    """crop uint8 [3, size, size], RGB -> a picture of side x side pixels."""
    return Image.fromarray(np.moveaxis(crop, 0, -1)).resize((side, side), Image.Resampling.BOX)


def spectrogram_picture(magnitude: np.ndarray, size: tuple[int, int], *, loudest: float | None = None) -> Image.Image:
    """magnitude float32 [frames, bins] -> a grey picture, the louder the darker, 80 dB; size: width, height in pixels.

    loudest: the magnitude that is black, by default the spectrogram's own largest.
    """
    loudest = float(magnitude.max()) if loudest is None else loudest
    level = 20 * np.log10(np.maximum(magnitude, 1e-10) / max(loudest, 1e-10))
    shade = np.clip(-level / _RANGE_DB, 0, 1) * 255
    return Image.fromarray(shade.astype(np.uint8).T[::-1]).resize(size, Image.Resampling.BOX)
