"""A picture that shows what a corpus holds: for each of some clips its face crops and its spectrogram."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from data_prep import boxes

_SIDE = 96  # of a face crop, in pixels
_SPECTROGRAM_WIDTH = 192
_HEADER = 18
_GAP = 6
_RANGE_DB = 80.0  # of a spectrogram, below its loudest value
_MOST_PARTS = 8  # read at most: a part may have 100 MB
_COLUMNS = ("clip_id", "category", "frames", "spectrogram", "face_score", "duration_s", "leading_silence_s")


def contact_sheet(parts: Sequence[str], *, clips: int = 24) -> tuple[bytes, int]:
    """A JPEG of up to `clips` clips from `parts`, the URIs of a corpus's parts, and how many it shows.

    The clips are spread evenly over the corpus in order of clip_id. A red frame marks a crop in which no face was found
    (its box is taken from the nearest frame that has one). Spectrograms: time to the right, 0 to 8 kHz upwards, 80 dB.
    """
    chosen = _spread(parts, min(_MOST_PARTS, clips))
    rows: list[dict[str, Any]] = []
    for number, part in enumerate(chosen):
        share = math.ceil((clips - len(rows)) / (len(chosen) - number))
        rows += _rows(part, share)
    return draw_rows(rows), len(rows)


def draw_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A JPEG of corpus rows, one below the other, drawn as `contact_sheet` says."""
    width, height = _row_size(rows)
    sheet = Image.new("RGB", (width, max(1, len(rows)) * height), "white")
    for position, row in enumerate(rows):
        _draw_row(sheet, position * height, row)
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=85)
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


def _row_size(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    frames = len(rows[0]["frames"]) if rows else 1
    return frames * _SIDE + _GAP + _SPECTROGRAM_WIDTH, _HEADER + _SIDE + _GAP


def _draw_row(sheet: Image.Image, top: int, row: Mapping[str, Any]) -> None:
    draw = ImageDraw.Draw(sheet)
    text = (
        f"{' '.join(filter(None, (row['category'], row['clip_id'])))}   {row['duration_s']:.1f} s, leading silence "
        f"{row['leading_silence_s']:.2f} s, face scores {row['face_score'].min():.2f} to {row['face_score'].max():.2f}"
    )
    draw.text((2, top + 2), text, fill="black", font=ImageFont.load_default(12))
    top += _HEADER
    for position, (frame, score) in enumerate(zip(row["frames"], row["face_score"], strict=True)):
        face = Image.fromarray(np.moveaxis(frame, 0, -1)).resize((_SIDE, _SIDE), Image.Resampling.BOX)
        sheet.paste(face, (position * _SIDE, top))
        if not score > 0:
            corner = (position * _SIDE, top)
            draw.rectangle((corner, (corner[0] + _SIDE - 1, corner[1] + _SIDE - 1)), outline="red", width=3)
    sheet.paste(_spectrogram_picture(row["spectrogram"]), (len(row["frames"]) * _SIDE + _GAP, top))


def _spectrogram_picture(magnitude: np.ndarray) -> Image.Image:
    """magnitude float32 [frames, bins] -> a grey picture, the louder the darker."""
    level = 20 * np.log10(np.maximum(magnitude, 1e-10) / max(float(magnitude.max()), 1e-10))
    shade = np.clip(-level / _RANGE_DB, 0, 1) * 255
    picture = Image.fromarray(shade.astype(np.uint8).T[::-1])
    return picture.resize((_SPECTROGRAM_WIDTH, _SIDE), Image.Resampling.BOX)
