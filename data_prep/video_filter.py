"""What augmentations do to a clip's decoded frames: code them again, or drop some.

It runs where clips are decoded, between decoder and collector, one frame at a time: memory does not grow with the
clip, nothing but PyAV and numpy is loaded, and the same frames give the same frames on every machine (one thread).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter

from data_prep.container import Sink

_CODER_CLOCK = Fraction(1, 25)
"""Ticks of the coder, one per frame. The true time stamps wait outside, so a coder cannot round or refuse them."""
_PIXEL_FORMAT = "yuv420p"
_X264_OPTIONS = {"preset": "veryfast", "x264-params": "cpu-independent=1"}
"""What x264 does otherwise on some processors it leaves: on those with AVX-512 it reads memory that nobody wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFilter:
    """What is done to the frames: plain numbers and words, as JSON can hold them."""

    codec: Literal["h264", "mpeg4"] | None = None
    """Coder and decoder that every frame passes, if any."""
    quality: int = 0
    """Of h264 the constant rate factor, 0 to 51; of mpeg4 the quantiser, 1 to 31; larger is worse."""
    drop_share: float = 0.0
    """Probability of a frame to be dropped, so that the one before it stays; 0 to below 1."""
    seed: int = 0
    """Of the draws which frames are dropped."""


class FilteredSink:
    """A sink that hands the frames on to another one, filtered; `finish` brings what is still on its way."""

    def __init__(self, sink: Sink, video_filter: VideoFilter, *, first_s: float, last_s: float) -> None:
        self._sink = sink
        self._first_s, self._last_s = first_s, last_s
        self._dropper = _Dropper(video_filter.drop_share, video_filter.seed)
        self._recoder = None if video_filter.codec is None else _Recoder(video_filter.codec, video_filter.quality)
        self._earlier: av.VideoFrame | None = None
        self._begun = self._ended = False

    @property
    def done(self) -> bool:
        """Whether no further frame is needed; those on their way still are, see `finish`."""
        return self._ended or self._sink.done

    def add(self, frame: av.VideoFrame) -> None:
        """Takes the next decoded frame. Raises what the inner sink's `add` raises, and av.error.FFmpegError."""
        if self._ended:
            return
        time = frame.time
        if not self._begun:
            if time is not None and time <= self._first_s:
                self._earlier = frame
                return
            self._begin()
        # One frame beyond the end shows the collector that the one before it stayed until then.
        self._ended = time is not None and time > self._last_s
        self._pass(self._dropper.add(frame, keep=self._ended))

    def finish(self) -> None:
        """Hands on the frames that are still held back; call once, after decoding. Raises like `add`."""
        self._begin()
        self._pass(self._dropper.finish())
        if self._recoder is not None:
            self._hand_on(self._recoder.finish())

    def _begin(self) -> None:
        if not self._begun and self._earlier is not None:
            self._pass(self._dropper.add(self._earlier, keep=True))
        self._begun, self._earlier = True, None

    def _pass(self, frames: Iterable[av.VideoFrame]) -> None:
        for frame in frames:
            self._hand_on([frame] if self._recoder is None else self._recoder.add(frame))

    def _hand_on(self, frames: Iterable[av.VideoFrame]) -> None:
        for frame in frames:
            if not self._sink.done:
                self._sink.add(frame)


def filtered(sink: Sink, video_filter: VideoFilter, *, first_s: float, last_s: float) -> FilteredSink:
    """A sink in front of `sink`, for which `finish` has to be called after decoding.

    first_s, last_s: the moments between which `sink` wants frames, in seconds on the file's clock. What is not shown
    then is left out: frames before the one shown at first_s, and those after the first one beyond last_s. The others
    keep their time stamps, sizes and colour spaces; the first and the last one are never dropped. Frames that passed
    a coder have no rotation any more: take it from the file. A damaged frame is handed on as it came, still marked.
    """
    return FilteredSink(sink, video_filter, first_s=first_s, last_s=last_s)


class _Dropper:
    """Leaves out a share of the frames, each on its own, but neither the first nor the last."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._generator = np.random.default_rng(seed)
        self._begun = False
        self._dropped: av.VideoFrame | None = None

    def add(self, frame: av.VideoFrame, *, keep: bool) -> list[av.VideoFrame]:
        drawn = self._generator.random()
        if self._begun and not keep and drawn < self._share:
            self._dropped = frame
            return []
        self._begun, self._dropped = True, None
        return [frame]

    def finish(self) -> list[av.VideoFrame]:
        return [] if self._dropped is None else [self._dropped]


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a coder does not carry along with a frame."""

    frame: av.VideoFrame | None
    """The frame as it came, if it is damaged."""
    pts: int | None
    time_base: Fraction | None
    duration: int
    colorspace: int
    color_range: int


class _Recoder:
    """Codes frames and decodes them again. All get the size of the first one, as in the collector."""

    def __init__(self, codec: Literal["h264", "mpeg4"], quality: int) -> None:
        self._codec = codec
        self._quality = quality
        self._encoder: VideoCodecContext | None = None
        self._decoder: VideoCodecContext | None = None
        self._size = (0, 0)
        self._reformatter = VideoReformatter()
        self._count = 0
        self._origins: dict[int, _Origin] = {}

    def add(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        if self._encoder is None:
            self._open(frame.width, frame.height)
        picture = self._planar(frame)
        self._origins[self._count] = _Origin(
            frame=frame if frame.is_corrupt else None,
            pts=frame.pts,
            time_base=frame.time_base,
            duration=frame.duration,
            colorspace=int(picture.colorspace),
            color_range=int(picture.color_range),
        )
        padded = _copied(picture, *_even(*self._size))
        padded.pts, padded.time_base = self._count, _CODER_CLOCK
        self._count += 1
        return self._recode(padded)

    def finish(self) -> list[av.VideoFrame]:
        if self._encoder is None or self._decoder is None:
            return []
        return self._recode(None) + [self._restored(frame) for frame in self._decoder.decode(None)]

    def _open(self, width: int, height: int) -> None:
        self._size = width, height
        if self._codec == "h264":
            name, options = "libx264", {"crf": str(self._quality)} | _X264_OPTIONS
        else:
            name, options = "mpeg4", {"qmin": str(self._quality), "qmax": str(self._quality)}
        encoder, decoder = av.CodecContext.create(name, "w"), av.CodecContext.create(self._codec, "r")
        assert isinstance(encoder, VideoCodecContext)
        assert isinstance(decoder, VideoCodecContext)
        encoder.width, encoder.height = _even(width, height)
        encoder.pix_fmt = _PIXEL_FORMAT
        encoder.time_base, encoder.framerate = _CODER_CLOCK, 1 / _CODER_CLOCK
        encoder.options = options
        encoder.thread_count = decoder.thread_count = 1
        self._encoder, self._decoder = encoder, decoder

    def _planar(self, frame: av.VideoFrame) -> av.VideoFrame:
        if frame.format.name == _PIXEL_FORMAT and (frame.width, frame.height) == self._size:
            return frame
        width, height = self._size
        return self._reformatter.reformat(frame, width=width, height=height, format=_PIXEL_FORMAT, threads=1)

    def _recode(self, frame: av.VideoFrame | None) -> list[av.VideoFrame]:
        assert self._encoder is not None
        assert self._decoder is not None
        packets = self._encoder.encode(frame)
        return [self._restored(decoded) for packet in packets for decoded in self._decoder.decode(packet)]

    def _restored(self, frame: av.VideoFrame) -> av.VideoFrame:
        assert frame.pts is not None
        origin = self._origins.pop(frame.pts)
        if origin.frame is not None:
            return origin.frame
        if (frame.width, frame.height) != self._size:
            frame = _copied(frame, *self._size)
        frame.pts, frame.time_base, frame.duration = origin.pts, origin.time_base, origin.duration
        frame.colorspace, frame.color_range = origin.colorspace, origin.color_range
        return frame


def _even(width: int, height: int) -> tuple[int, int]:
    """The next even sides: chroma planes have half of them."""
    return width + width % 2, height + height % 2


def _copied(frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
    """A new yuv420p frame of this size, the border repeated or cut off.

    It has nothing but the pixels: of a frame as it was decoded a coder would obey the picture type, too.
    """
    copy = av.VideoFrame(width, height, _PIXEL_FORMAT)
    for source, target in zip(frame.planes, copy.planes, strict=True):
        pixels = _pixels(source)[: target.height, : target.width]
        missing = [(0, target.height - pixels.shape[0]), (0, target.width - pixels.shape[1])]
        _pixels(target)[:] = np.pad(pixels, missing, mode="edge")
    return copy


def _pixels(plane: VideoPlane) -> np.ndarray:
    """uint8 [height, width]: a view of the plane."""
    # The stubs do not know that a plane is a buffer.
    values = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
    return values.reshape(-1, plane.line_size)[: plane.height, : plane.width]
