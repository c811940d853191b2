"""One clip to one row of the corpus, or to one reject.

One window of the clip gives both senses: position i of the frames and of the sound is the same moment. The same clip
gives the same bytes, whatever else is prepared (with one number of torch threads, which the caller sets).
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data_prep import audio, augmentations, faces
from data_prep.augmentations import Plan
from data_prep.damages import DamagedClip
from data_prep.decoder import Decoder
from data_prep.faces import FaceDetector, Track
from data_prep.manifest import Row, resolve_path
from data_prep.preparer import Preparer
from data_prep.rejects import MOST_TIMEOUT_S, Reject, RejectedError, RejectReason
from data_prep.storage import InputError
from data_prep.window import ClipWindow, WindowSettings
from data_prep.window_stream import RefusedWindow, StreamedWindow

__all__ = [
    "CORPUS_SCHEMA",
    "REJECT_SCHEMA",
    "ClipPreparer",
    "PrepareConfig",
    "Reject",
    "RejectReason",
    "window_settings",
]

LABEL_COLUMNS = ("clip_id", "label", "category", "dataset", "subject", "target", "method", "augmentation")
MEASURED_COLUMNS = (
    "fps",
    "duration_s",
    "leading_silence_s",
    "trailing_silence_s",
    "trimmed_leading_s",
    "trimmed_trailing_s",
    "loudness_dbfs",
)
FACT_COLUMNS = ("width", "height", "sample_rate", "bit_rate", "file_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """How a clip becomes a row. Raises InputError for values that fit no clip or not each other."""

    window_s: float = 3.0
    """Length of the one window that is taken from each clip, in seconds; shorter clips are repeated."""
    window: Literal["centre", "random"] = "centre"
    """Where the window lies: in the middle, or at a place drawn from the clip_id."""
    num_frames: int = 8
    """Frames per clip, in the middles of as many equal parts of the window."""
    frame_size: int = 224
    """Side of a face crop, in pixels."""
    spectrogram_frames: int = 300
    """Spectrogram frames (10 ms each) that are kept, from the window's beginning."""
    faces: Literal["mtcnn", "none"] = "mtcnn"
    """Face detector; none takes the middle square of each frame (for benchmarks)."""
    face_margin: float = 0.3
    """A crop's side is 1 + face_margin times the longer side of the face's box."""
    min_face_score: float = 0.9
    """A frame shows a face if the detector's score reaches this."""
    min_faces: int = 6
    """A clip with fewer frames that show a face is rejected: no_face."""
    min_face_size: int = 30
    """Smallest face that is searched for, in pixels after shrinking."""
    detect_max_side: int = 480
    """Frames with a longer side are shrunk to it before detection (crops are cut from the full frame)."""
    min_duration_s: float = 0.5
    """A clip in which picture and sound run together for less is rejected: too_short."""
    silence_dbfs: float = -60.0
    """A clip whose window has an RMS level below this is rejected: silent."""
    leading_silence_db: float = -40.0
    """Silence ends where the RMS of 10 ms exceeds this level relative to the clip's peak."""
    target_dbfs: float = -30.0
    """RMS level to which a quieter window is raised."""
    trim_silence: bool = False
    """Take the silence at both ends off sound and picture first, so that its length tells nothing."""
    clip_timeout: float = 60.0
    """Seconds that decoding a clip may take; a slower one is rejected: timeout."""

    def __post_init__(self) -> None:
        sizes = ("window_s", "num_frames", "frame_size", "spectrogram_frames", "min_face_size", "detect_max_side")
        for name in (*sizes, "min_duration_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("silence_dbfs", "leading_silence_db", "target_dbfs"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; give a number of decibels.")
        if not 0 < self.clip_timeout <= MOST_TIMEOUT_S:
            raise InputError(f"clip_timeout is {self.clip_timeout}; give seconds above 0, at most {MOST_TIMEOUT_S:,}.")
        if not 0 <= self.min_face_score <= 1:
            raise InputError(f"min_face_score is {self.min_face_score}; give a probability, 0 to 1.")
        for name, allowed in (("window", ("centre", "random")), ("faces", ("mtcnn", "none"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(allowed)}.")
        if not 1 <= self.min_faces <= self.num_frames:
            raise InputError(f"min_faces is {self.min_faces}; give a number from 1 to num_frames, {self.num_frames}.")
        if not 0 <= self.face_margin < math.inf:
            raise InputError(f"face_margin is {self.face_margin}; give 0 or more.")
        most = round(self.window_s * audio.SAMPLE_RATE) // audio.HOP_SAMPLES + 1
        if self.spectrogram_frames > most:
            raise InputError(
                f"spectrogram_frames is {self.spectrogram_frames}, but window_s {self.window_s} has only {most}; "
                f"lengthen the window."
            )


def CORPUS_SCHEMA(config: PrepareConfig) -> pa.Schema:  # noqa: N802 (a schema, but one that depends on the config)
    """Columns of a corpus: labels as in the manifest, then what `ClipPreparer` measured."""
    frames, size = config.num_frames, config.frame_size
    return pa.schema(
        [
            pa.field("clip_id", pa.string(), nullable=False),
            pa.field("label", pa.int8(), nullable=False),
            *(pa.field(name, pa.string(), nullable=False) for name in ("category", "dataset", "subject")),
            *(pa.field(name, pa.string()) for name in ("target", "method", "augmentation")),
            pa.field("frames", pa.fixed_shape_tensor(pa.uint8(), (frames, 3, size, size))),
            pa.field("spectrogram", pa.fixed_shape_tensor(pa.float32(), (config.spectrogram_frames, audio.NUM_BINS))),
            pa.field("window_start_s", pa.float64(), nullable=False),
            pa.field("frame_times_s", pa.fixed_shape_tensor(pa.float64(), (frames,))),
            pa.field("face_score", pa.fixed_shape_tensor(pa.float32(), (frames,))),
            pa.field("face_box", pa.fixed_shape_tensor(pa.float32(), (frames, 4))),
            pa.field("fps", pa.float64(), nullable=False),
            pa.field("duration_s", pa.float64(), nullable=False),
            pa.field("leading_silence_s", pa.float64(), nullable=False),
            pa.field("trailing_silence_s", pa.float64(), nullable=False),
            pa.field("trimmed_leading_s", pa.float64(), nullable=False),
            pa.field("trimmed_trailing_s", pa.float64(), nullable=False),
            pa.field("loudness_dbfs", pa.float64(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("sample_rate", pa.int32(), nullable=False),
            pa.field("bit_rate", pa.float64(), nullable=False),
            pa.field("file_bytes", pa.int64(), nullable=False),
            pa.field("num_faces", pa.int32(), nullable=False),
            pa.field("face_choice", pa.string(), nullable=False),
        ]
    )


REJECT_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""Columns of a corpus's rejects; see `Reject`."""


class ClipPreparer(Preparer):
    """Makes corpus rows; detector, decoder: as of `Preparer`. Construction also warms librosa."""

    def __init__(
        self, config: PrepareConfig, *, detector: FaceDetector | None = None, decoder: Decoder | None = None
    ) -> None:
        super().__init__(config, detector, decoder)
        self.config = config
        # librosa compiles on its first STFT, which takes seconds: here, not in the first clip.
        audio.magnitude_spectrogram(np.zeros(audio.SAMPLE_RATE, np.float32), 1)

    def __call__(
        self, row: Row, roots: Mapping[str, str], damage: DamagedClip | None = None
    ) -> dict[str, Any] | Reject:
        """A row of CORPUS_SCHEMA for a row of a manifest whose paths lie below `roots`, or why there is none.

        frames: uint8 [num_frames, 3, frame_size, frame_size], RGB. spectrogram: float32 [spectrogram_frames, 257],
        magnitudes. Both are augmented as the row's `augmentation` says. Times are seconds since the clip's beginning,
        the moment from which picture and sound are both there, or the first sound if silence is trimmed; frame_times_s
        are the time stamps of the frames shown at window_start_s + (i + 0.5) * window_s / num_frames (taken round again
        in a shorter clip; further apart where an augmentation speeds the clip up). face_box: left, top, right, bottom
        in the pixels of the picture as it is shown; face_score: 0 where the box is another frame's; num_faces: most
        faces seen in one frame; face_choice: why this face, see `faces.Track`. leading_silence_s, trailing_silence_s,
        trimmed_leading_s, trimmed_trailing_s, loudness_dbfs, fps, duration_s: see `window.ClipWindow`; width, height,
        sample_rate, bit_rate, file_bytes: see `file_facts.FileFacts`. None of them knows of the augmentation.

        damage: what the clip, which is not augmented, suffers before it is looked at; what is measured of the whole
        clip does not know of it either.

        Raises InputError if there is no such augmentation.
        """
        try:
            return {name: row[name] for name in LABEL_COLUMNS} | self._prepare(row, roots, damage)
        except RejectedError as rejected:
            return Reject(
                clip_id=row["clip_id"], path=row["video_path"], reason=rejected.reason, detail=rejected.detail
            )

    def _prepare(self, row: Row, roots: Mapping[str, str], damage: DamagedClip | None) -> dict[str, Any]:
        config = self.config
        plan = augmentations.plan(row["augmentation"], row["clip_id"], window_s=config.window_s)
        video_uri, audio_uri = clip_files(row, roots)
        settings = window_settings(config, plan, row["clip_id"])
        if damage is None:
            clip = self._decoder.read_window(video_uri, audio_uri, **settings)
        else:
            clip = damage.window(self._decoder.read_window(video_uri, audio_uri, **damage.settings(settings)))
        made = self._prepare_window(clip, plan)
        choice = {name: made.pop(name) for name in ("num_faces", "face_choice")}  # the schema's last columns
        return {
            **made,
            **{name: getattr(clip, name) for name in MEASURED_COLUMNS},
            **{name: getattr(clip.facts, name) for name in FACT_COLUMNS},
            **choice,
        }

    def windows(
        self, video_uri: str, *, hop_s: float, first: int = 0, count: int | None = None
    ) -> Iterator[dict[str, Any] | RefusedWindow]:
        """The windows of a clip of any length, decoded in one pass, in order; see `window_stream.StreamSettings`.

        A window is a row of CORPUS_SCHEMA without labels and without what is measured of the whole clip or its file,
        but with duration_s, width and height, and with window_end_s; or it is refused, for what a clip that is no
        longer would be refused for.

        Raises RejectedError, before the first window, where the clip has none.
        """
        config = self.config
        streamed = self._decoder.stream_windows(
            video_uri,
            window_s=config.window_s,
            hop_s=hop_s,
            num_frames=config.num_frames,
            min_duration_s=config.min_duration_s,
            leading_silence_db=config.leading_silence_db,
            trim_silence=config.trim_silence,
            first=first,
            count=count,
        )
        for window in streamed:
            if isinstance(window, RefusedWindow):
                yield window
                continue
            span = {"start_s": window.start_s, "end_s": window.end_s, "duration_s": window.duration_s}
            try:
                made = self._prepare_window(window, augmentations.plan(None, "", window_s=config.window_s))
            except RejectedError as rejected:
                yield RefusedWindow(**span, reason=rejected.reason, detail=rejected.detail)
            else:
                height, width = window.images[0].shape[:2]
                size = {"width": width, "height": height}
                yield made | size | {"window_end_s": window.end_s, "duration_s": window.duration_s}

    def _prepare_window(self, window: ClipWindow | StreamedWindow, plan: Plan) -> dict[str, Any]:
        """What is seen and heard in a window. Raises RejectedError: silent, no_face."""
        config = self.config
        level = audio.dbfs(window.sound)
        if level < config.silence_dbfs:
            raise RejectedError(RejectReason.SILENT, f"the level is {level:.1f} dBFS, under {config.silence_dbfs:g}")
        track, margin = self._find_face(window.images)
        crops = [
            faces.crop(image, box, margin=margin, size=config.frame_size)
            for image, box in zip(window.images, track.boxes, strict=True)
        ]
        # In this order, or a change of the volume would be undone.
        sound = plan.sound(audio.raise_volume(window.sound, config.target_dbfs))
        return {
            "frames": plan.images(np.stack(crops)),
            "spectrogram": audio.magnitude_spectrogram(sound, config.spectrogram_frames),
            "window_start_s": window.start_s,
            "frame_times_s": window.frame_times_s,
            "face_score": track.scores,
            "face_box": track.boxes,
            "num_faces": track.num_faces,
            "face_choice": track.choice,
        }

    def _find_face(self, images: list[np.ndarray]) -> tuple[Track, float]:
        """The face to follow, and the margin of its crops. Raises RejectedError: no_face."""
        config = self.config
        if self._detector is None:
            boxes = np.stack([faces.centre_box(*images[0].shape[:2])] * len(images))
            return Track(boxes, np.zeros(len(images), np.float32), 0, "none"), 0.0
        found = self._detector(np.stack(images))
        track = faces.follow_face(found, min_score=config.min_face_score, frames=images)
        num_shown = int(np.count_nonzero(track.scores))
        if num_shown < config.min_faces:
            detail = f"the face that was followed is in {num_shown} of {len(images)} frames, under {config.min_faces}"
            raise RejectedError(RejectReason.NO_FACE, detail)
        return track, config.face_margin


def window_settings(config: PrepareConfig, plan: Plan, clip_id: str) -> WindowSettings:
    """The window that is taken of the clip `clip_id`, and what is done to it while it is decoded."""
    return {
        "window_s": config.window_s,
        "place": 0.5 if config.window == "centre" else _random_place(clip_id),
        "num_frames": config.num_frames,
        "min_duration_s": config.min_duration_s,
        "leading_silence_db": config.leading_silence_db,
        "trim_silence": config.trim_silence,
        "speed": plan.speed,
        "video_filter": plan.video_filter,
    }


def _random_place(clip_id: str) -> float:
    """0 to 1, uniform over clips, the same for a clip in every corpus."""
    return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big") / 2**64


def clip_files(row: Row, roots: Mapping[str, str]) -> tuple[str, str | None]:
    """(picture, sound or None: it is in the picture's file) of a manifest's row. Raises RejectedError: unreadable."""
    try:
        video_uri = resolve_path(roots, row["video_path"])
        return video_uri, None if row["audio_path"] is None else resolve_path(roots, row["audio_path"])
    except InputError as error:
        # The manifest was checked when it was written, so a symbolic link has changed since.
        raise RejectedError(RejectReason.UNREADABLE, str(error)) from error
