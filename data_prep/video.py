"""Pictures of a clip by time stamp: which frame a player would show at given moments, and which way up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.reformatter import VideoReformatter

from data_prep.container import Sink
from data_prep.rejects import unreadable

CLOCK_TOLERANCE_S = 1e-5
"""Time stamps are multiples of the container's clock, rounded: a frame due at t may be stamped a little after it."""
_GAP_TOLERANCE_S = 0.1
"""How far the picture may fall short of a moment at either end of its stream before the file counts as damaged."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded frame."""

    time_s: float
    """Its time stamp, on the file's clock."""
    image: np.ndarray
    """uint8 [height, width, 3], RGB."""


@dataclass(frozen=True, slots=True)
class FrameShape:
    """How a stream's frames are stored, and how they are turned to be shown: phones film lying on their side."""

    width: int
    """Pixels of a stored frame."""
    height: int
    """Pixels of a stored frame."""
    rotation: int
    """Degrees counter-clockwise, 0 to 359; pictures are turned by the nearest multiple of 90."""
    axes: tuple[int, int, int, int] = (1, 0, 0, 1)
    """(a, b, c, d): a stored frame's step to the right is shown as (a, b), its step down as (c, d), down being +."""

    @property
    def is_turned(self) -> bool:
        """Whether rows become columns."""
        return abs(self.axes[1]) > abs(self.axes[0])

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) of the picture as it is shown."""
        return (self.height, self.width) if self.is_turned else (self.width, self.height)

    def shown(self, image: np.ndarray) -> np.ndarray:
        """A stored image [height, width, ...] as it is shown, also mirrored where the file says so."""
        to_right, to_down = self.axes[0], self.axes[3]
        if self.is_turned:
            image = image.swapaxes(0, 1)
            to_right, to_down = self.axes[2], self.axes[1]
        return np.ascontiguousarray(image[:: -1 if to_down < 0 else 1, :: -1 if to_right < 0 else 1])


def frame_shape(frame: av.VideoFrame) -> FrameShape:
    """The shape of a decoded frame, with the display matrix that its file gives."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return FrameShape(frame.width, frame.height, 0)
    # Nine numbers a b u, c d v, x y w: a pixel (p, q) is shown at (a p + c q + x, b p + d q + y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if not (a or b) or not (c or d):
        return FrameShape(frame.width, frame.height, 0)  # No picture would be left: the matrix is damaged.
    return FrameShape(frame.width, frame.height, frame.rotation % 360, (a, b, c, d))


class FirstFrame:
    """A sink that notes the first frame's shape and hands all frames on, if there is another sink to take them."""

    def __init__(self, sink: Sink | None = None) -> None:
        self.shape: FrameShape | None = None
        self._sink = sink

    @property
    def done(self) -> bool:
        return self.shape is not None if self._sink is None else self._sink.done

    def add(self, frame: av.VideoFrame) -> None:
        """Takes the next decoded frame. Raises what the other sink's `add` raises."""
        if self.shape is None:
            self.shape = frame_shape(frame)
        if self._sink is not None:
            self._sink.add(frame)


class FrameCollector:
    """A sink that keeps, for each of `times_s` (ascending, on the file's clock), the frame shown at that moment.

    That is the last frame whose time stamp is not later. Only the frames kept are converted to RGB, all to the size
    of the first one. `fps` is the stream's nominal rate, for frames without time stamp or duration. `keep`: makes of
    (index among `times_s`, image as it is stored) the image to keep, so that less has to be in memory.
    """

    def __init__(
        self, times_s: Sequence[float], *, fps: float, keep: Callable[[int, np.ndarray], np.ndarray] | None = None
    ) -> None:
        self._times = times_s
        self._interval = 1 / fps
        self._keep = keep
        self._converted: Picture | None = None
        self._pictures: list[Picture] = []
        self._shown: tuple[float, av.VideoFrame] | None = None
        self._reformatter = VideoReformatter()

    @property
    def done(self) -> bool:
        return len(self._pictures) == len(self._times)

    def add(self, frame: av.VideoFrame) -> None:
        """Takes the next decoded frame. Raises RejectedError: unreadable, if a frame that is needed is damaged."""
        time = frame.time
        if time is None:
            time = self._shown[0] + self._interval if self._shown else 0.0
        self.show(time, frame)

    def show(self, time: float, frame: av.VideoFrame) -> None:
        """Takes the next decoded frame, which is shown from `time` on; raises as `add` does."""
        if self._shown is None:
            first = self._times[0]
            if first < time - _GAP_TOLERANCE_S:
                raise unreadable(f"the picture begins at {time:.2f} s, after {first:.2f} s")
            self._shown = time, frame
        elif time < self._shown[0]:
            return  # Out of order: no player would show it.
        while not self.done and self._times[len(self._pictures)] < time - CLOCK_TOLERANCE_S:
            self._keep_shown()
        self._shown = time, frame

    def pictures(self) -> list[Picture]:
        """One picture per time, in order; call after decoding.

        Raises RejectedError: unreadable, if the stream ended before the last of `times_s`.
        """
        if self._shown is None:
            raise unreadable("no picture can be decoded")
        time, frame = self._shown
        held = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else self._interval
        end = time + max(held, self._interval)
        while not self.done:
            wanted = self._times[len(self._pictures)]
            if wanted > end + _GAP_TOLERANCE_S:
                raise unreadable(f"the picture breaks off at {end:.2f} s, before {wanted:.2f} s")
            self._keep_shown()
        return self._pictures

    def _keep_shown(self) -> None:
        assert self._shown is not None
        time, frame = self._shown
        if self._converted is None or self._converted.time_s != time:
            self._converted = self._picture(time, frame)
        picture = self._converted
        if self._keep is not None:
            picture = Picture(time, self._keep(len(self._pictures), picture.image))
        self._pictures.append(picture)

    def _picture(self, time: float, frame: av.VideoFrame) -> Picture:
        if frame.is_corrupt:
            raise unreadable(f"the picture at {time:.2f} s is damaged")
        height, width = (frame.height, frame.width) if self._converted is None else self._converted.image.shape[:2]
        converted = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        return Picture(time, converted.to_ndarray())
