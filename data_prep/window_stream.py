"""All windows of a clip, one after another, decoded in one pass over its file.

Each window is what `window.read_window` would give of the same beginning. Only the windows under way are in memory. All
times are seconds since the clip's beginning (see `opened_clip`).
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import av
import numpy as np

from data_prep import audio, container
from data_prep.audio import SoundStream
from data_prep.container import Sink, Skipper
from data_prep.opened_clip import OpenedClip, opened_clip, shape_of, usable_part
from data_prep.rejects import RejectedError, RejectReason
from data_prep.video import CLOCK_TOLERANCE_S, FirstFrame, FrameCollector
from data_prep.window import frame_moments, shown_images

_SHORTEST_HOP = 0.1
"""The last window begins at least so many hops after the one before it; otherwise it takes the place of that one."""


class StreamSettings(TypedDict):
    """What is wanted of a clip; see `window.WindowSettings` for what is not described here."""

    window_s: float
    hop_s: float
    """From the beginning of a window to that of the next, above 0; the last window ends where the clip ends."""
    num_frames: int
    min_duration_s: float
    leading_silence_db: float
    trim_silence: NotRequired[bool]
    first: NotRequired[int]
    """Windows before this one are left out; 0 unless it is said."""
    count: NotRequired[int | None]
    """So many windows at most; all unless it is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedWindow:
    """One window of a clip: images, frame_times_s, sound and start_s as of `window.ClipWindow`."""

    images: list[np.ndarray]
    frame_times_s: np.ndarray
    sound: np.ndarray
    start_s: float
    end_s: float
    """Where the window ends, or the clip, if that is shorter."""
    duration_s: float
    """Length of the clip (of what is left of it, if silence is trimmed)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedWindow:
    """A window that cannot be used, or all from start_s to end_s, where the file breaks off."""

    start_s: float
    end_s: float
    duration_s: float
    """As of `StreamedWindow`."""
    reason: RejectReason
    detail: str


def window_count(duration_s: float, window_s: float, hop_s: float) -> int:
    """How many windows a clip has: one each hop_s, and one that ends where the clip ends."""
    return max(0, math.ceil((duration_s - window_s) / hop_s - _SHORTEST_HOP)) + 1


def window_start(index: int, duration_s: float, window_s: float, hop_s: float) -> float:
    """Where window `index` of `window_count` begins, in seconds."""
    last = max(0.0, duration_s - window_s)
    return min(index * hop_s, last) if index + 1 < window_count(duration_s, window_s, hop_s) else last


def end_of(first: int, count: int | None, duration_s: float, window_s: float, hop_s: float) -> float:
    """Where the last of these windows ends, in seconds."""
    total = window_count(duration_s, window_s, hop_s)
    last = total if count is None else min(total, first + count)
    return window_start(last - 1, duration_s, window_s, hop_s) + min(window_s, duration_s)


def stream_windows(
    video: int,
    *,
    window_s: float,
    hop_s: float,
    num_frames: int,
    min_duration_s: float,
    leading_silence_db: float,
    trim_silence: bool = False,
    first: int = 0,
    count: int | None = None,
) -> Iterator[StreamedWindow | RefusedWindow]:
    """The windows of the clip in the open file `video`, sound and picture, in order.

    The sound is decoded from its beginning on, because a decoder remembers; the picture from the key frame before the
    first window that is wanted. Where decoding fails, what is left is refused in one piece.

    Raises RejectedError, before the first window: unreadable, no_video, no_audio, too_short, silent (trim_silence
    only). Raises MemoryError.
    """

    given = 0
    for may_skip in (True, False):
        with opened_clip(video, None) as clip:
            clip = usable_part(
                clip, min_duration_s=min_duration_s, silence_db=leading_silence_db, trim_silence=trim_silence
            )
            plans = _plans(clip, window_s, hop_s, num_frames, first, count)
            if not plans:
                return
            starts, end_s = [plan.start_s for plan in plans], plans[-1].end_s
            skipper = Skipper(plans[0].times[0]) if may_skip else None
            steps = _Pass(clip, plans, round(window_s * audio.SAMPLE_RATE))
            del plans  # each is dropped when its window has been made, with its pictures
            try:
                with container.damage_rejected():
                    for window in steps.windows(skipper):
                        yield window
                        given += 1
                return
            except RejectedError as rejected:
                if given or skipper is None or not skipper.num_skipped:
                    span = {"start_s": starts[given], "end_s": end_s, "duration_s": clip.duration_s}
                    yield RefusedWindow(**span, reason=rejected.reason, detail=rejected.detail)
                    return
        # As in `read_window`: what begins with a key frame does not always need nothing before it.


class _Plan:
    """One window to come: where it lies, and what takes its frames."""

    def __init__(self, clip: OpenedClip, start_s: float, window_s: float, num_frames: int) -> None:
        self.start_s = start_s
        self.taken_s = min(window_s, clip.duration_s)
        self.end_s = start_s + self.taken_s
        self.num_taken = round(self.taken_s * audio.SAMPLE_RATE)
        distinct, self.position = frame_moments(num_frames, window_s, self.num_taken)
        self.times: list[float] = (clip.picture_start_s + start_s + distinct).tolist()
        self.collector = FrameCollector(self.times, fps=clip.fps)
        self.rejected: RejectedError | None = None

    @property
    def has_pictures(self) -> bool:
        """Whether nothing is waited for, be it that the window is refused."""
        return self.rejected is not None or self.collector.done

    def show(self, time: float, frame: av.VideoFrame) -> None:
        """Takes the next frame of the window, or the last before it."""
        try:
            self.collector.show(time, frame)
        except RejectedError as rejected:
            self.rejected = rejected


def _plans(
    clip: OpenedClip, window_s: float, hop_s: float, num_frames: int, first: int, count: int | None
) -> list[_Plan]:
    total = window_count(clip.duration_s, window_s, hop_s)
    indices = range(first, total if count is None else min(total, first + count))
    return [
        _Plan(clip, window_start(index, clip.duration_s, window_s, hop_s), window_s, num_frames) for index in indices
    ]


class _Pictures:
    """A sink that deals the frames of one stream out to the windows that need them."""

    def __init__(self, plans: list[_Plan], fps: float) -> None:
        self._waiting = deque(plans)
        self._open: list[_Plan] = []
        self._interval = 1 / fps
        self._shown: tuple[float, av.VideoFrame] | None = None

    @property
    def done(self) -> bool:
        return not self._waiting and not self._open

    def add(self, frame: av.VideoFrame) -> None:
        """Takes the next decoded frame; times are as in `FrameCollector.add`."""
        time = frame.time
        if time is None:
            time = self._shown[0] + self._interval if self._shown else 0.0
        if self._shown is not None and time < self._shown[0]:
            return
        # The first moment of these windows has passed: the frame before this one was shown then.
        while self._waiting and self._waiting[0].times[0] < time - CLOCK_TOLERANCE_S:
            self._begin(self._waiting.popleft())
        for plan in self._open:
            plan.show(time, frame)
        self._open = [plan for plan in self._open if not plan.has_pictures]
        self._shown = time, frame

    def finish(self) -> None:
        """No frame comes any more: the last one stays."""
        while self._waiting:
            self._begin(self._waiting.popleft())

    def _begin(self, plan: _Plan) -> None:
        if self._shown is not None:
            plan.show(*self._shown)
        self._open.append(plan)


class _Pass:
    """One pass over an opened clip."""

    def __init__(self, clip: OpenedClip, plans: list[_Plan], num_samples: int) -> None:
        self._clip = clip
        self._plans = deque(plans)
        self._num_samples = num_samples
        self._pictures = _Pictures(plans, clip.fps)
        self._first_frame = FirstFrame(self._pictures)
        self._sound = SoundStream(
            start_s=clip.sound_start_s, duration_s=clip.duration_s, needed_to_s=max(plan.end_s for plan in plans)
        )
        self._sound.forget(plans[0].start_s)

    def windows(self, skipper: Skipper | None) -> Iterator[StreamedWindow | RefusedWindow]:
        """Raises RejectedError, or av.error.FFmpegError, where decoding fails or a stream breaks off."""
        picture, sound = self._clip.picture_stream.index, self._clip.sound_stream.index
        sinks: dict[int, Sink] = {picture: self._first_frame, sound: self._sound}
        skippers = {} if skipper is None else {picture: skipper}
        for _ in container.decode_stepwise(self._clip.picture_media, sinks, skippers):
            while self._plans and self._plans[0].has_pictures and self._sound.has(*self._span(self._plans[0])):
                yield self._next()
        self._pictures.finish()
        while self._plans:
            yield self._next()

    def _span(self, plan: _Plan) -> tuple[float, float]:
        return plan.start_s, plan.taken_s

    def _next(self) -> StreamedWindow | RefusedWindow:
        plan = self._plans[0]
        window = self._refused(plan, plan.rejected) if plan.rejected is not None else self._made(plan)
        self._plans.popleft()
        if self._plans:
            self._sound.forget(self._plans[0].start_s)
        return window

    def _refused(self, plan: _Plan, rejected: RejectedError) -> RefusedWindow:
        return RefusedWindow(**self._where(plan), reason=rejected.reason, detail=rejected.detail)

    def _where(self, plan: _Plan) -> dict[str, float]:
        return {"start_s": plan.start_s, "end_s": plan.end_s, "duration_s": self._clip.duration_s}

    def _made(self, plan: _Plan) -> StreamedWindow:
        pictures = plan.collector.pictures()
        images = shown_images(pictures, shape_of(self._first_frame))
        times = np.array([picture.time_s for picture in pictures])
        samples, rate = self._sound.cut(*self._span(plan))
        return StreamedWindow(
            images=[images[index] for index in plan.position],
            frame_times_s=times[plan.position] - self._clip.picture_start_s,
            # np.resize repeats.
            sound=np.resize(audio.resample(samples, rate, plan.num_taken), self._num_samples),
            **self._where(plan),
        )
