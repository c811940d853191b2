"""From a clip's file to the features of its windows: what each process of `scoring_pool` does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data_prep.clip import ClipPreparer, PrepareConfig, Reject
from data_prep.rejects import RejectedError, RejectReason
from data_prep.window_stream import RefusedWindow, end_of, window_start
from stgs.backbones import BackboneConfig, FeatureExtractor

# What a picture of the faces needs of a row.
_PICTURE_COLUMNS = ("frames", "spectrogram", "face_score", "face_box", "width", "height")
_LABEL_COLUMNS = ("label", "category", "dataset", "subject", "target", "method", "augmentation")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSettings:
    """How windows are made.

    prepare, backbones: as for the network's corpus. hop_s: from window to window; None: the one window that a corpus
    would have of the clip. features: whether features are extracted here, on the CPU, or frames and spectrograms handed
    on. threads: of the extraction; the features' last bits depend on it. pictures: whether they are wanted.
    """

    prepare: PrepareConfig
    backbones: BackboneConfig
    hop_s: float | None
    features: bool
    threads: int
    pictures: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowTask:
    """Windows of one clip to make: `count` from `first` on, or all.

    clip: its number. part, parts: which of the tasks of this clip it is, and of how many. announced: how many windows
    it was said to have. duration_s: of the clip, where it has several parts.
    """

    clip: int
    uri: str
    part: int = 0
    parts: int = 1
    first: int = 0
    count: int | None = None
    announced: int = 1
    duration_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedWindow:
    """One window, or why there is none.

    inputs: features, name -> float16 [1, C, L] or [1, C]; or, where they are extracted elsewhere, `frames` uint8
    [1, T, 3, H, W] and `spectrogram` float32 [1, S, F]. picture: columns of the row, if they are wanted; empty where
    others take its place. reason, detail: set if the window, or the clip from start_s to end_s, is refused; both are
    NaN where the clip has one part, and nothing of it could be read.
    """

    start_s: float
    end_s: float
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    face: dict[str, Any] = field(default_factory=dict)
    picture: dict[str, Any] | None = None
    reason: RejectReason | None = None
    detail: str = ""
    seconds: float = 0.0
    """That were spent on it in this process, and not waiting for who takes it."""


class WindowMaker:
    """Makes windows; holds a decoder, a face detector and the backbones. Construction takes seconds."""

    def __init__(self, settings: WindowSettings) -> None:
        self._settings = settings
        # As prepare's actors have it: the last bits of boxes depend on the number of threads.
        torch.set_num_threads(1)
        self._preparer = ClipPreparer(settings.prepare)
        self._extractor = FeatureExtractor(settings.backbones) if settings.features else None

    def close(self) -> None:
        """Ends the decoder's process."""
        self._preparer.close()

    def __call__(self, task: WindowTask) -> Iterator[PreparedWindow]:
        """The windows of a task, in order."""
        rows = self._corpus_row(task) if self._settings.hop_s is None else self._rows(task)
        begun = time.perf_counter()
        for row in rows:
            if isinstance(row, RefusedWindow):
                seconds = time.perf_counter() - begun
                yield PreparedWindow(
                    start_s=row.start_s, end_s=row.end_s, reason=row.reason, detail=row.detail, seconds=seconds
                )
            else:
                yield self._made(row, begun)
            begun = time.perf_counter()

    def _rows(self, task: WindowTask) -> Iterator[dict[str, Any] | RefusedWindow]:
        hop_s = self._settings.hop_s
        assert hop_s is not None
        try:
            yield from self._preparer.windows(task.uri, hop_s=hop_s, first=task.first, count=task.count)
        except RejectedError as rejected:
            yield self._refused_part(task, rejected) if task.parts > 1 else _refused(rejected.reason, rejected.detail)

    def _refused_part(self, task: WindowTask, rejected: RejectedError) -> RefusedWindow:
        window_s, hop_s, duration_s = self._settings.prepare.window_s, self._settings.hop_s, task.duration_s
        assert hop_s is not None
        assert duration_s is not None
        return RefusedWindow(
            start_s=window_start(task.first, duration_s, window_s, hop_s),
            end_s=end_of(task.first, task.count, duration_s, window_s, hop_s),
            duration_s=duration_s,
            reason=rejected.reason,
            detail=rejected.detail,
        )

    def _corpus_row(self, task: WindowTask) -> Iterator[dict[str, Any] | RefusedWindow]:
        # A clip root may not be left by a symbolic link; the path that was given may be one.
        uri = task.uri if "://" in task.uri else os.path.realpath(task.uri)
        folder, name = os.path.split(uri)
        labels = dict.fromkeys(_LABEL_COLUMNS)
        clip = {"clip_id": task.uri, "video_path": f"clip/{name}", "audio_path": None, **labels}
        row = self._preparer(clip, {"clip": folder})
        if isinstance(row, Reject):
            yield _refused(row.reason, row.detail)
        else:
            length_s = min(self._settings.prepare.window_s, row["duration_s"])
            yield row | {"window_end_s": row["window_start_s"] + length_s}

    def _made(self, row: dict[str, Any], begun: float) -> PreparedWindow:
        inputs = {name: row[name][None] for name in ("frames", "spectrogram")}
        if self._extractor is not None:
            inputs = extracted(self._extractor, inputs, self._settings.threads)
        picture = {name: row[name] for name in _PICTURE_COLUMNS} | {"augmentation": None}
        return PreparedWindow(
            start_s=row["window_start_s"],
            end_s=row["window_end_s"],
            inputs=inputs,
            face={
                "face_score": float(np.mean(row["face_score"])),
                "frames_with_face": int(np.count_nonzero(row["face_score"])),
                "num_faces": int(row["num_faces"]),
                "face_choice": str(row["face_choice"]),
            },
            picture=picture if self._settings.pictures else None,
            seconds=time.perf_counter() - begun,
        )


def extracted(extractor: FeatureExtractor, inputs: dict[str, np.ndarray], threads: int = 1) -> dict[str, np.ndarray]:
    """Features, name -> float16 [N, C, L] or [N, C], of `frames` and `spectrogram`, where the extractor is."""
    device = extractor.image_mean.device
    torch.set_num_threads(threads)
    try:
        tensors = (torch.from_numpy(inputs[name]).to(device) for name in ("frames", "spectrogram"))
        return {name: values.cpu().numpy() for name, values in extractor(*tensors).items()}
    finally:
        torch.set_num_threads(1)


def _refused(reason: RejectReason, detail: str) -> RefusedWindow:
    nothing = float("nan")
    return RefusedWindow(start_s=nothing, end_s=nothing, duration_s=nothing, reason=reason, detail=detail)
