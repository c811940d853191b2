"""Every frame of a stretch of a clip, cut to a face whose place is known: few full pictures are in memory at a time."""

from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from data_prep import container
from data_prep.container import Sink
from data_prep.opened_clip import opened_clip, shape_of
from data_prep.video import FirstFrame, FrameCollector

if TYPE_CHECKING:
    from data_prep.video_filter import VideoFilter


class CropSettings(TypedDict):
    """What is wanted of a clip."""

    start_s: float
    """Where the stretch begins, in seconds since the clip's beginning."""
    length_s: float
    """Of the stretch, in seconds, above 0."""
    interval_s: float
    """From one crop to the next: crop i is of the frame shown at start_s + (i + 0.5) * interval_s."""
    boxes: list[list[float]]
    """The face in each crop's frame: left, top, right, bottom in pixels of the frame as it is shown."""
    margin: float
    """See `faces.crop_square`."""
    size: int
    """Side of a crop, in pixels."""
    video_filter: NotRequired["VideoFilter | None"]
    """What every frame of the stretch passes before one is chosen; nothing unless it is said."""


def read_crops(
    video: int,
    audio_file: int | None,
    *,
    start_s: float,
    length_s: float,
    interval_s: float,
    boxes: list[list[float]],
    margin: float,
    size: int,
    video_filter: "VideoFilter | None" = None,
) -> np.ndarray:
    """uint8 [boxes, 3, size, size], RGB: of each moment the face, cut at twice the size and halved.

    So a face of 2 * size pixels is halved as it is, by means over 2 x 2 pixels, and others are first what the corpus
    would hold. video, audio_file: open descriptors, see `window.read_window`; no sound is decoded.

    Raises RejectedError: unreadable, no_video, no_audio. Raises MemoryError.
    """
    # It brings Pillow, which who wants other answers of this process does without.
    from data_prep import faces

    def cut(index: int, image: np.ndarray) -> np.ndarray:
        box = np.array(boxes[index], np.float32)
        return _halved(faces.crop(shape_of(first).shown(image), box, margin=margin, size=2 * size))

    with opened_clip(video, audio_file) as clip:
        first_s = clip.picture_start_s + start_s
        times = (first_s + (np.arange(len(boxes)) + 0.5) * interval_s).tolist()
        collector = FrameCollector(times, fps=clip.fps, keep=cut)
        sink: Sink = collector
        filtered_sink = None
        if video_filter is not None:
            # Only augmented clips need it.
            from data_prep.video_filter import filtered

            sink = filtered_sink = filtered(sink, video_filter, first_s=first_s, last_s=first_s + length_s)
        first = FirstFrame(sink)
        container.decode(clip.picture_media, {clip.picture_stream.index: first})
        if filtered_sink is not None:
            filtered_sink.finish()
        return np.stack([picture.image for picture in collector.pictures()])


def _halved(image: np.ndarray) -> np.ndarray:
    """uint8 [3, size, size] of uint8 [3, 2 size, 2 size]: rounded means over 2 x 2 pixels."""
    pairs = image[:, ::2].astype(np.uint16) + image[:, 1::2]
    return ((pairs[:, :, ::2] + pairs[:, :, 1::2] + 2) >> 2).astype(np.uint8)
