"""Faces: finding them in a clip's frames, following one of them, and cutting it out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

_NEAR = 1.0
"""The same face is at most this many box sides away from where it was one frame before."""
_SIZE_RATIO = 2.0
"""The same face is at most this much smaller or larger (box side) than one frame before."""


@dataclass(frozen=True, slots=True)
class Faces:
    """The faces found in one frame."""

    boxes: np.ndarray
    """float32 [faces, 4]: left, top, right, bottom in pixels; may reach beyond the frame."""
    scores: np.ndarray
    """float32 [faces]: the detector's probability, 0 to 1."""


class FaceDetector(Protocol):
    """Finds the faces in frames uint8 [frames, height, width, 3], RGB, of one clip."""

    def __call__(self, frames: np.ndarray) -> list[Faces]: ...


class MtcnnDetector:
    """MTCNN of facenet-pytorch, whose weights come with that package.

    Frames larger than `max_side` pixels are shrunk to it before detection. `min_face_size`: the smallest box side
    searched for, in pixels after shrinking. One call handles one clip: which other clips are prepared cannot change
    its result.
    """

    def __init__(self, *, max_side: int, min_face_size: int) -> None:
        # Brings torch and torchvision, which take seconds to import: only for those who look for faces.
        from facenet_pytorch import MTCNN

        self._max_side = max_side
        self._min_face_size = min_face_size
        self._mtcnn = MTCNN(keep_all=True, min_face_size=min_face_size)

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        height, width = frames.shape[1:3]
        scale = min(1.0, self._max_side / max(height, width))
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            shrunk = [Image.fromarray(frame).resize(size, Image.Resampling.BOX) for frame in frames]
            frames = np.stack([np.asarray(image) for image in shrunk])
        if min(frames.shape[1:3]) < self._min_face_size:
            return [_NO_FACES] * len(frames)  # MTCNN fails on frames smaller than the smallest face.
        return [Faces(faces.boxes * np.float32(1 / scale), faces.scores) for faces in self._detect(frames)]

    def _detect(self, frames: np.ndarray) -> list[Faces]:
        try:
            found = self._mtcnn.detect(frames)
        except (IndexError, RuntimeError) as error:
            if not _is_candidate_bug(error):
                raise
            if len(frames) == 1:
                return [_NO_FACES]
            return [faces for frame in frames for faces in self._detect(frame[None])]
        return [_faces(boxes, scores) for boxes, scores in zip(*found, strict=True)]


_NO_FACES = Faces(np.empty((0, 4), np.float32), np.empty(0, np.float32))


def _is_candidate_bug(error: Exception) -> bool:
    """facenet-pytorch 2.6 fails if a candidate box lies wholly outside the frame: it drops its pixels but not its row.

    One frame's candidate fails the whole batch, so the frames are tried one by one; the frame itself has no face.
    """
    text = str(error)
    return "non-empty list of Tensors" in text or "shape of the mask" in text


def _faces(boxes: np.ndarray | None, scores: np.ndarray) -> Faces:
    if boxes is None:
        return _NO_FACES
    return Faces(np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32).reshape(-1))


def follow_face(found: Sequence[Faces], *, min_score: float) -> tuple[np.ndarray, np.ndarray]:
    """One face through the frames: (boxes float32 [frames, 4], scores float32 [frames], 0 where it was not found).

    Only faces with a score of at least `min_score` count. The first is the largest; each later one is the nearest to
    the one before, if it can be the same by place and size, else (a cut to another shot) again the largest. A frame
    without takes the box of the nearest frame that has one, the earlier of two; with none at all, boxes are NaN.
    """
    boxes = np.full((len(found), 4), np.nan, np.float32)
    scores = np.zeros(len(found), np.float32)
    previous: np.ndarray | None = None
    for index, faces in enumerate(found):
        candidates = np.flatnonzero(faces.scores >= min_score)
        if not len(candidates):
            continue
        chosen = candidates[_same_or_largest(faces.boxes[candidates], previous)]
        previous = boxes[index] = faces.boxes[chosen]
        scores[index] = faces.scores[chosen]
    present = np.flatnonzero(scores)
    for missing in np.flatnonzero(scores == 0) if len(present) else []:
        boxes[missing] = boxes[present[np.argmin(np.abs(present - missing))]]
    return boxes, scores


def _same_or_largest(boxes: np.ndarray, previous: np.ndarray | None) -> int:
    sides = _sides(boxes)
    if previous is not None:
        side = float(_sides(previous[None])[0])
        distances = np.linalg.norm(_centres(boxes) - _centres(previous[None]), axis=1)
        ratios = np.maximum(sides / side, side / sides)
        same = (distances <= _NEAR * side) & (ratios <= _SIZE_RATIO)
        if same.any():
            return int(np.argmin(np.where(same, distances, np.inf)))
    return int(np.argmax(sides))


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _sides(boxes: np.ndarray) -> np.ndarray:
    return np.maximum((boxes[:, 2:] - boxes[:, :2]).max(axis=1), 1.0)


def centre_box(height: int, width: int) -> np.ndarray:
    """float32 [4]: the largest centred square of a frame."""
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return np.array([left, top, left + side, top + side], np.float32)


def crop(image: np.ndarray, box: np.ndarray, *, margin: float, size: int) -> np.ndarray:
    """uint8 [3, size, size]: the square around the middle of `box`, (1 + margin) times its longer side.

    image: uint8 [height, width, 3]. A square that reaches beyond the image is moved into it, one that is larger is
    cut to the image's shorter side: every pixel is the camera's own.
    """
    height, width = image.shape[:2]
    side = min(height, width, max(1, round(float(_sides(box[None])[0]) * (1 + margin))))
    centre_x, centre_y = _centres(box[None])[0]
    left = min(max(0, round(float(centre_x - side / 2))), width - side)
    top = min(max(0, round(float(centre_y - side / 2))), height - side)
    square = image[top : top + side, left : left + side]
    if side != size:
        square = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(square.transpose(2, 0, 1))
