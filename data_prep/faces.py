"""Faces: finding them in a clip's frames, following the speaker's, and cutting it out.

Where several faces are seen, the speaker is taken to be the one that is largest for longest. Lips are not compared with
the sound: the eight frames of a window are 375 ms apart, too far to see them move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image

_NEAR = 1.0
"""The same face is at most this many box sides away from where it was one frame before."""
_SIZE_RATIO = 2.0
"""The same face is at most this much smaller or larger (box side) than one frame before."""
_SAME_SHOT = 0.5
"""Pictures of one shot agree at least this much (correlation). Seen 375 ms apart: 0.57 and more within a shot, the
least with a camera that follows somebody; 0.49 and less across a cut, and in a talking head's shot over 0.7."""
_THUMBNAIL = 4
"""Side of the pictures that are compared, in pixels."""
_CLOSE = 0.8
"""The choice between two tracks is close if the smaller has at least this share of the larger's sum of sides."""


FaceChoice = Literal["none", "only", "largest_track", "close"]
"""Why a track was chosen: no face was seen (none), no other track was there (only), it is clearly the largest
(largest_track), or the largest by less than a fifth (close)."""


@dataclass(frozen=True, slots=True)
class Faces:
    """The faces found in one frame."""

    boxes: np.ndarray
    """float32 [faces, 4]: left, top, right, bottom in pixels; may reach beyond the frame."""
    scores: np.ndarray
    """float32 [faces]: the detector's probability, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Track:
    """One face through the frames of a clip."""

    boxes: np.ndarray
    """float32 [frames, 4] in pixels; where the face was not found, its box in the nearest frame; NaN without faces."""
    scores: np.ndarray
    """float32 [frames]: the detector's probability, 0 where the face was not found."""
    num_faces: int
    """Most faces seen in one frame."""
    choice: FaceChoice


class FaceDetector(Protocol):
    """Finds the faces in frames uint8 [frames, height, width, 3], RGB, of one clip."""

    def __call__(self, frames: np.ndarray) -> list[Faces]: ...


class MtcnnDetector:
    """MTCNN of facenet-pytorch, whose weights come with that package.

    Frames larger than `max_side` pixels are shrunk to it before detection. `min_face_size`: the smallest box side
    searched for, in pixels after shrinking. device: `cpu` or `cuda`; the last bits of boxes and scores depend on it.
    One call handles one clip: which other clips are prepared cannot change its result.
    """

    def __init__(self, *, max_side: int, min_face_size: int, device: str = "cpu") -> None:
        # Brings torch and torchvision, which take seconds to import: only for those who look for faces.
        from facenet_pytorch import MTCNN

        self._max_side = max_side
        self._min_face_size = min_face_size
        self._mtcnn = MTCNN(keep_all=True, min_face_size=min_face_size, device=device)

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        scale = min(1.0, self._max_side / max(frames.shape[1:3]))
        if scale < 1:
            frames = np.stack([shrunk(frame, self._max_side) for frame in frames])
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


def shrunk(image: np.ndarray, longest_side: int) -> np.ndarray:
    """uint8 [height, width, 3]: `image` with its longer side shrunk to `longest_side` pixels, itself if it is not."""
    height, width = image.shape[:2]
    scale = longest_side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


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


def follow_face(found: Sequence[Faces], *, min_score: float, frames: Sequence[np.ndarray] | None = None) -> Track:
    """The track that is largest for longest: the largest sum, over the frames of one clip, of its box sides.

    found: per frame, all frames of one size; only faces with a score of at least `min_score` count. frames: the
    pictures, uint8 [height, width, 3] each, by which a cut to another shot is seen. A track is a face that stays near,
    in place and size, from one frame in which it is seen to the next one that shows the same shot; so a cut starts a
    new track, and a cut back finds the old one. Equal sums: the track that begins first, then the one whose first box
    is larger, further left, higher. A frame without the chosen face takes the box of the nearest frame that has it,
    the earlier of two, and the score 0.
    """
    seen = [_counted(faces, min_score) for faces in found]
    same_shot = np.full((len(found), len(found)), True) if frames is None else _same_shot(frames)
    tracks = _tracks([faces.boxes for faces in seen], same_shot)
    boxes = np.full((len(found), 4), np.nan, np.float32)
    scores = np.zeros(len(found), np.float32)
    num_faces = max((len(faces.boxes) for faces in seen), default=0)
    if not tracks:
        return Track(boxes, scores, num_faces, "none")
    sums = [sum(float(_sides(seen[frame].boxes)[face]) for frame, face in track.items()) for track in tracks]
    best = int(np.argmax(sums))  # of equal sums the first, and tracks stand in the order of their beginnings
    present = np.array(sorted(tracks[best]))
    for frame in range(len(found)):
        nearest = int(present[np.argmin(np.abs(present - frame))])
        boxes[frame] = seen[nearest].boxes[tracks[best][nearest]]
        if nearest == frame:
            scores[frame] = seen[frame].scores[tracks[best][frame]]
    if len(tracks) == 1:
        return Track(boxes, scores, num_faces, "only")
    is_close = sorted(sums)[-2] >= _CLOSE * sums[best]
    return Track(boxes, scores, num_faces, "close" if is_close else "largest_track")


def _counted(faces: Faces, min_score: float) -> Faces:
    """The faces that score enough: the largest first, of equals the one further left, then the higher one."""
    boxes, scores = (values[faces.scores >= min_score] for values in (faces.boxes, faces.scores))
    order = np.lexsort((boxes[:, 1], boxes[:, 0], -_sides(boxes)))
    return Faces(boxes[order], scores[order])


def _same_shot(frames: Sequence[np.ndarray]) -> np.ndarray:
    """bool [frames, frames]: whether two pictures are alike, seen from so far that movements hardly count."""
    size = (_THUMBNAIL, _THUMBNAIL)
    small = [Image.fromarray(frame).resize(size, Image.Resampling.BOX, reducing_gap=2) for frame in frames]
    colours = np.stack([np.asarray(image, np.float64) for image in small])
    colours = (colours - colours.mean(axis=(1, 2), keepdims=True)).reshape(len(frames), -1)
    norms = np.linalg.norm(colours, axis=1)
    return np.asarray(colours @ colours.T >= _SAME_SHOT * np.outer(norms, norms))


def _tracks(frames: Sequence[np.ndarray], same_shot: np.ndarray) -> list[dict[int, int]]:
    """Boxes float32 [faces, 4] of each frame -> tracks, each frame -> face, in the order of their beginnings.

    In each frame the face and the track that are nearest to each other join first.
    """
    tracks: list[dict[int, int]] = []
    last = np.empty((0, 4), np.float32)  # the box in which each track was seen last
    for frame, boxes in enumerate(frames):
        distances = _distances(last, boxes)
        distances[[not same_shot[max(track), frame] for track in tracks]] = np.inf
        joined = np.full(len(boxes), -1)
        while (nearest := distances.min(initial=np.inf)) < np.inf:
            track, face = np.argwhere(distances == nearest)[0]
            joined[face] = track
            distances[track], distances[:, face] = np.inf, np.inf
        for face, known in enumerate(joined):
            if known < 0:
                known = len(tracks)
                tracks.append({})
                last = np.concatenate([last, boxes[face][None]])
            tracks[known][frame] = face
            last[known] = boxes[face]
    return tracks


def _distances(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float [tracks, faces]: how far a face moved, in its earlier box sides; infinite if it cannot be the same."""
    sides, later = _sides(before)[:, None], _sides(after)[None]
    moved = np.linalg.norm(_centres(before)[:, None] - _centres(after)[None], axis=2) / sides
    return np.where((moved <= _NEAR) & (np.maximum(sides / later, later / sides) <= _SIZE_RATIO), moved, np.inf)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _sides(boxes: np.ndarray) -> np.ndarray:
    return np.maximum((boxes[:, 2:] - boxes[:, :2]).max(axis=1), 1.0)


def centre_box(height: int, width: int) -> np.ndarray:
    """float32 [4]: the largest centred square of a frame."""
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return np.array([left, top, left + side, top + side], np.float32)


def crop_square(height: int, width: int, box: np.ndarray, *, margin: float) -> tuple[int, int, int]:
    """(left, top, side) in pixels: the square around the middle of `box`, (1 + margin) times its longer side.

    A square that reaches beyond the image is moved into it, one that is larger is cut to the image's shorter side.
    """
    side = min(height, width, max(1, round(float(_sides(box[None])[0]) * (1 + margin))))
    centre_x, centre_y = _centres(box[None])[0]
    left = min(max(0, round(float(centre_x - side / 2))), width - side)
    top = min(max(0, round(float(centre_y - side / 2))), height - side)
    return left, top, side


def crop(image: np.ndarray, box: np.ndarray, *, margin: float, size: int) -> np.ndarray:
    """uint8 [3, size, size]: `crop_square` of image uint8 [height, width, 3]; every pixel is the camera's own."""
    height, width = image.shape[:2]
    left, top, side = crop_square(height, width, box, margin=margin)
    square = image[top : top + side, left : left + side]
    if side != size:
        square = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(square.transpose(2, 0, 1))
