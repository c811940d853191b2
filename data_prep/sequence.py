"""The sequences box: what a row is made by, its columns, and its arrays.

A row is a whole clip, as the published baselines take it: 25 small face crops a second, and the log filter banks of the
sound beside each of them. Rows differ in length, so that their arrays are plain binary values, not tensor columns.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from data_prep.filter_banks import STACKED_BANKS
from data_prep.rejects import MOST_TIMEOUT_S
from data_prep.storage import InputError

FRAMES_PER_S = 25
FRAME_SIZE = 112
"""Side of a face crop, in pixels: half of 224. Training cuts 100 x 100 out of it."""
SEQUENCE_CLIPS = 16
"""Clips of a shard: each has 9.4 MB of pictures in 10 s."""
_MOST_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceConfig:
    """How a clip becomes a sequence. Fields that `clip.PrepareConfig` has too mean the same, of the whole clip.

    Raises InputError for values that fit no clip.
    """

    max_seconds: float = 10.0
    """Of a longer clip the first so many seconds are taken; a shorter one is taken whole, and not repeated."""
    faces: Literal["mtcnn", "none"] = "mtcnn"
    """Face detector; none takes the middle square of each frame (for benchmarks)."""
    face_margin: float = 0.3
    """A crop's side is 1 + face_margin times the longer side of the face's box."""
    min_face_score: float = 0.9
    """A frame shows a face if the detector's score reaches this."""
    min_face_share: float = 0.75
    """One frame every 0.375 s is searched for faces; a clip with a smaller share of these that show the face is
    rejected: no_face."""
    min_face_size: int = 30
    """Smallest face that is searched for, in pixels after shrinking."""
    detect_max_side: int = 480
    """Frames with a longer side are shrunk to it before detection (crops are cut from the full frame)."""
    min_duration_s: float = 0.5
    """A clip in which picture and sound run together for less is rejected: too_short."""
    silence_dbfs: float = -60.0
    """A clip whose taken sound has an RMS level below this is rejected: silent."""
    leading_silence_db: float = -40.0
    """Silence ends where the RMS of 10 ms exceeds this level relative to the clip's peak."""
    trim_silence: bool = False
    """Take the silence at both ends off sound and picture first, so that its length tells nothing."""
    clip_timeout: float = 60.0
    """Seconds that decoding a clip may take; a slower one is rejected: timeout."""

    def __post_init__(self) -> None:
        for name in ("min_face_size", "detect_max_side", "min_duration_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a number above 0.")
        if not 1 / FRAMES_PER_S <= self.max_seconds <= _MOST_SECONDS:
            raise InputError(
                f"max_seconds is {self.max_seconds}; give seconds, {1 / FRAMES_PER_S} (one frame) to {_MOST_SECONDS:g}."
            )
        for name in ("silence_dbfs", "leading_silence_db"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; give a number of decibels.")
        if not 0 < self.clip_timeout <= MOST_TIMEOUT_S:
            raise InputError(f"clip_timeout is {self.clip_timeout}; give seconds above 0, at most {MOST_TIMEOUT_S:,}.")
        for name in ("min_face_score", "min_face_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")
        if self.faces not in ("mtcnn", "none"):
            raise InputError(f"faces is {self.faces!r}; give one of mtcnn, none.")
        if not 0 <= self.face_margin < math.inf:
            raise InputError(f"face_margin is {self.face_margin}; give 0 or more.")


SEQUENCE_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("category", "dataset", "subject")),
        *(pa.field(name, pa.string()) for name in ("target", "method", "augmentation")),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("video", pa.large_binary(), nullable=False),
        pa.field("filter_banks", pa.large_binary(), nullable=False),
        pa.field("face_times_s", pa.list_(pa.float64()), nullable=False),
        pa.field("face_score", pa.list_(pa.float32()), nullable=False),
        pa.field("face_box", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
        *(
            pa.field(name, pa.float64(), nullable=False)
            for name in (
                "fps", "duration_s", "leading_silence_s", "trailing_silence_s", "trimmed_leading_s",
                "trimmed_trailing_s", "loudness_dbfs",
            )
        ),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("width", "height", "sample_rate")),
        pa.field("bit_rate", pa.float64(), nullable=False),
        pa.field("file_bytes", pa.int64(), nullable=False),
        pa.field("num_faces", pa.int32(), nullable=False),
        pa.field("face_choice", pa.string(), nullable=False),
    ]
)  # fmt: skip
"""Columns of sequences: labels as in the manifest, then what `sequence_preparer.SequencePreparer` measured."""


ARRAY_COLUMNS = ("clip_id", "num_frames", "video", "filter_banks")
"""What `sequence_arrays` reads."""


def sequence_arrays(table: pa.Table, uri: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(video, filter_banks) of each row, without a copy: uint8 [T, 3, 112, 112] and float32 [T, 104], read-only.

    table: with the columns ARRAY_COLUMNS. uri: of its part, for errors. Raises InputError if a row has no frame, or
    arrays of another size than its frames take.
    """
    video = _arrays(table, uri, "video", np.dtype(np.uint8), (3, FRAME_SIZE, FRAME_SIZE))
    return video, _arrays(table, uri, "filter_banks", np.dtype(np.float32), (STACKED_BANKS,))


def _arrays(table: pa.Table, uri: str, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> list[np.ndarray]:
    frame_bytes = math.prod(shape) * dtype.itemsize
    arrays = []
    for clip_id, frames, value in zip(table["clip_id"], table["num_frames"], table[name], strict=True):
        count, buffer = frames.as_py(), value.as_buffer()
        if not count or count < 1 or buffer is None or buffer.size != count * frame_bytes:
            held = "nothing" if buffer is None else f"{buffer.size} bytes"
            raise InputError(
                f"{uri}: {name} of clip {clip_id.as_py()!r} holds {held}, but {count} frames are told, of "
                f"{frame_bytes} bytes each; prepare the sequences again into another --out."
            )
        arrays.append(np.frombuffer(buffer, dtype).reshape(count, *shape))
    return arrays
