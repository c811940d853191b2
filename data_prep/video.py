"""Pictures of a clip by time stamp: which frame a player would show at given moments."""

from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from data_prep.rejects import RejectedError, RejectReason

_CLOCK_TOLERANCE_S = 1e-5
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


class FrameCollector:
    """A sink that keeps, for each of `times_s` (ascending, on the file's clock), the frame shown at that moment.

    That is the last frame whose time stamp is not later. Only the frames kept are converted to RGB, all to the size
    of the first one. `fps` is the stream's nominal rate, for frames without time stamp or duration.
    """

    def __init__(self, times_s: Sequence[float], *, fps: float) -> None:
        self._times = times_s
        self._interval = 1 / fps
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
        if self._shown is None:
            first = self._times[0]
            if first < time - _GAP_TOLERANCE_S:
                raise _unreadable(f"the picture begins at {time:.2f} s, after {first:.2f} s")
            self._shown = time, frame
        elif time < self._shown[0]:
            return  # Out of order: no player would show it.
        while not self.done and self._times[len(self._pictures)] < time - _CLOCK_TOLERANCE_S:
            self._keep_shown()
        self._shown = time, frame

    def pictures(self) -> list[Picture]:
        """One picture per time, in order; call after decoding.

        Raises RejectedError: unreadable, if the stream ended before the last of `times_s`.
        """
        if self._shown is None:
            raise _unreadable("no picture can be decoded")
        time, frame = self._shown
        held = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else self._interval
        end = time + max(held, self._interval)
        while not self.done:
            wanted = self._times[len(self._pictures)]
            if wanted > end + _GAP_TOLERANCE_S:
                raise _unreadable(f"the picture breaks off at {end:.2f} s, before {wanted:.2f} s")
            self._keep_shown()
        return self._pictures

    def _keep_shown(self) -> None:
        assert self._shown is not None
        time, frame = self._shown
        if self._pictures and self._pictures[-1].time_s == time:
            self._pictures.append(self._pictures[-1])
            return
        if frame.is_corrupt:
            raise _unreadable(f"the picture at {time:.2f} s is damaged")
        height, width = self._pictures[0].image.shape[:2] if self._pictures else (frame.height, frame.width)
        converted = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        self._pictures.append(Picture(time, converted.to_ndarray()))


def _unreadable(detail: str) -> RejectedError:
    return RejectedError(RejectReason.UNREADABLE, detail)
