"""One clip to one row of sequences, or to one reject.

The clip is decoded twice: once for its sound and for a few frames, small ones, in which the face is followed; then
every frame, of which only the face's crop is kept. The same clip gives the same bytes, whatever else is prepared.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep import audio, augmentations, faces, filter_banks
from data_prep.augmentations import Plan
from data_prep.clip import FACT_COLUMNS, LABEL_COLUMNS, MEASURED_COLUMNS, clip_files
from data_prep.decoder import Decoder
from data_prep.faces import FaceDetector, Faces, Track
from data_prep.manifest import Row
from data_prep.preparer import Preparer
from data_prep.rejects import Reject, RejectedError, RejectReason
from data_prep.sequence import FRAME_SIZE, FRAMES_PER_S, SequenceConfig
from data_prep.window import ClipWindow

_FACE_INTERVAL_S = 0.375
"""From one frame that is searched for faces to the next: as in the corpus, for which `faces` tells tracks apart."""
_FRAMES_AT_ONCE = 8
"""Searched for faces, as in the corpus: what MTCNN needs of memory grows with them."""


class SequencePreparer(Preparer):
    """Makes rows of sequences; detector, decoder: as of `Preparer`."""

    def __init__(
        self, config: SequenceConfig, *, detector: FaceDetector | None = None, decoder: Decoder | None = None
    ) -> None:
        super().__init__(config, detector, decoder)
        self.config = config

    def __call__(self, row: Row, roots: Mapping[str, str]) -> dict[str, Any] | Reject:
        """A row of SEQUENCE_SCHEMA for a row of a manifest whose paths lie below `roots`, or why there is none.

        num_frames: T, 25 a second of what is taken, rounded, at least 1. video: bytes of uint8 [T, 3, 112, 112], RGB;
        frame i is the one shown (i + 0.5) / 25 s after the beginning, cut around the face, whose box moves evenly from
        one frame that was searched to the next. filter_banks: bytes of float32 [T, 104], see `filter_banks.stacked`,
        of the sound as loud as it is: a change of its volume adds the same to all of them, which training takes off.
        Both are augmented as the row's `augmentation` says; a clip that is played faster has less of them.
        face_times_s, face_score, face_box: of the frames that were searched, else as the measured columns are, those
        of `clip.ClipPreparer`.

        Raises InputError if there is no such augmentation.
        """
        try:
            return {name: row[name] for name in LABEL_COLUMNS} | self._prepare(row, roots)
        except RejectedError as rejected:
            return Reject(
                clip_id=row["clip_id"], path=row["video_path"], reason=rejected.reason, detail=rejected.detail
            )

    def _prepare(self, row: Row, roots: Mapping[str, str]) -> dict[str, Any]:
        config = self.config
        plan = augmentations.plan(row["augmentation"], row["clip_id"])
        files = clip_files(row, roots)
        clip = self._decoder.read_window(
            *files,
            window_s=config.max_seconds,
            place=0.0,
            num_frames=max(1, round(config.max_seconds * plan.speed / _FACE_INTERVAL_S)),
            min_duration_s=config.min_duration_s,
            leading_silence_db=config.leading_silence_db,
            trim_silence=config.trim_silence,
            speed=plan.speed,
            video_filter=plan.video_filter,
            repeat=False,
            longest_side=config.detect_max_side,
        )
        level = audio.dbfs(clip.sound)
        if level < config.silence_dbfs:
            raise RejectedError(RejectReason.SILENT, f"the level is {level:.1f} dBFS, under {config.silence_dbfs:g}")
        track, margin = self._find_face(clip)
        # As long as what is taken becomes, played at the augmentation's speed.
        shown_s = min(config.max_seconds, clip.duration_s / plan.speed)
        plan = augmentations.plan(row["augmentation"], row["clip_id"], window_s=shown_s)
        num_frames = max(1, round(shown_s * FRAMES_PER_S))
        crops = self._crops(files, clip, track, margin, plan, num_frames)
        banks = filter_banks.log_filter_banks(filter_banks.as_int16(plan.sound(clip.sound)))
        return {
            "num_frames": num_frames,
            "video": plan.images(crops).tobytes(),
            "filter_banks": filter_banks.stacked(banks, num_frames).tobytes(),
            "face_times_s": clip.frame_times_s.tolist(),
            "face_score": track.scores.tolist(),
            "face_box": track.boxes.tolist(),
            **{name: getattr(clip, name) for name in MEASURED_COLUMNS},
            **{name: getattr(clip.facts, name) for name in FACT_COLUMNS},
            "num_faces": track.num_faces,
            "face_choice": track.choice,
        }

    def _find_face(self, clip: ClipWindow) -> tuple[Track, float]:
        """The face to follow, in pixels of the picture as it is shown, and its crops' margin.

        Raises RejectedError: no_face.
        """
        config, images = self.config, clip.images
        if self._detector is None:
            box = faces.centre_box(clip.facts.height, clip.facts.width)
            return Track(np.stack([box] * len(images)), np.zeros(len(images), np.float32), 0, "none"), 0.0
        found: list[Faces] = []
        for first in range(0, len(images), _FRAMES_AT_ONCE):
            found += self._detector(np.stack(images[first : first + _FRAMES_AT_ONCE]))
        track = faces.follow_face(found, min_score=config.min_face_score, frames=images)
        num_shown = int(np.count_nonzero(track.scores))
        if not num_shown or num_shown < config.min_face_share * len(images):
            detail = (
                f"the face that was followed is in {num_shown} of {len(images)} frames, "
                f"under {config.min_face_share:.0%}"
            )
            raise RejectedError(RejectReason.NO_FACE, detail)
        height, width = images[0].shape[:2]
        scale = np.array([clip.facts.width / width, clip.facts.height / height] * 2, np.float32)
        return Track(track.boxes * scale, track.scores, track.num_faces, track.choice), config.face_margin

    def _crops(
        self, files: tuple[str, str | None], clip: ClipWindow, track: Track, margin: float, plan: Plan, num_frames: int
    ) -> np.ndarray:
        """uint8 [num_frames, 3, 112, 112]: the followed face in every frame."""
        interval_s = plan.speed / FRAMES_PER_S
        # Where no face is looked for, every box is the same.
        known = track.scores > 0 if track.scores.any() else np.full(len(track.boxes), True)
        moments = clip.start_s + (np.arange(num_frames) + 0.5) * interval_s
        edges = [np.interp(moments, clip.frame_times_s[known], edge) for edge in track.boxes[known].T]
        return self._decoder.read_crops(
            *files,
            start_s=clip.trimmed_leading_s + clip.start_s,
            length_s=plan.window_s * plan.speed,
            interval_s=interval_s,
            boxes=np.stack(edges, axis=1).tolist(),
            margin=margin,
            size=FRAME_SIZE,
            video_filter=plan.video_filter,
        )
