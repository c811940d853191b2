"""Media files: opening, the time their streams cover, and decoding several streams in one pass.

Files come as descriptors: what decodes them need not know their paths. Times are seconds on the file's own clock,
which picture and sound share: a stream may begin later than another.
"""

import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream

from data_prep.rejects import RejectedError, RejectReason, unreadable

_Stream = TypeVar("_Stream", bound=Stream)

_NO_PROTOCOL = {"protocol_whitelist": "none"}
"""The file is handed over open. A playlist disguised as a clip must not make FFmpeg open others, or the network."""
_MOST_HELD_BYTES = 64 << 20
"""Packets that wait for a key frame; where a file has more of them than this they are decoded."""


class Sink(Protocol):
    """Takes the decoded frames of one stream, in order of presentation, until it is `done`."""

    @property
    def done(self) -> bool: ...

    def add(self, frame: Any) -> None: ...


@contextmanager
def open_media(descriptor: int) -> Iterator[InputContainer]:
    """The media file behind an open descriptor, from its beginning, open for decoding on one thread.

    A file may be open several times; nobody else's place in it is moved. Raises RejectedError: unreadable, also for
    damage that shows inside the `with` block. Raises MemoryError if FFmpeg gets no memory.
    """
    with (
        damage_rejected(),
        io.BufferedReader(_File(descriptor)) as file,
        av.open(file, "r", options=_NO_PROTOCOL, metadata_errors="ignore") as container,
    ):
        yield container


@contextmanager
def damage_rejected() -> Iterator[None]:
    """Turns FFmpeg's errors into RejectedError: unreadable; but want of memory stays MemoryError."""
    try:
        yield
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise unreadable(f"decoding failed: {error.strerror}") from error


class _File(io.RawIOBase):
    """Reads a regular file from its beginning, with a place of its own; closing it leaves the descriptor open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._descriptor, len(buffer), self._place)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        if base + offset < 0:
            raise OSError(f"no place {base + offset} in a file")
        self._place = base + offset
        return self._place


def video_stream(container: InputContainer) -> Stream:
    """The stream with the picture, not a sound file's cover. Raises RejectedError: no_video, unreadable."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise RejectedError(RejectReason.NO_VIDEO, "the file has no video stream")
    return _decodable(stream)


def audio_stream(container: InputContainer, related: Stream | None = None) -> AudioStream:
    """The stream with the sound (that goes with `related`). Raises RejectedError: no_audio, unreadable."""
    stream = container.streams.best("audio", related=related)
    if not isinstance(stream, AudioStream):
        raise RejectedError(RejectReason.NO_AUDIO, "the file has no audio stream")
    return _decodable(stream)


def _decodable(stream: _Stream) -> _Stream:
    if stream.codec_context is None:
        raise unreadable(f"FFmpeg has no decoder for its {stream.type}")
    return stream


def stream_spans(descriptor: int, *streams: Stream) -> list[tuple[float, float]]:
    """(start, end) in seconds of each of `streams`, all of the open file `descriptor`.

    The ends are the container's word, or, where it has none (Matroska, streams that were saved), those of the packets.
    """
    starts = [_seconds(stream.start_time, stream) for stream in streams]
    if all(stream.duration for stream in streams):
        ends = [_seconds((stream.start_time or 0) + (stream.duration or 0), stream) for stream in streams]
    else:
        with open_media(descriptor) as container:
            ends = _packet_ends(container, [stream.index for stream in streams])
    return list(zip(starts, ends, strict=True))


def _seconds(time: int | None, stream: Stream) -> float:
    return float(time * stream.time_base) if time is not None and stream.time_base is not None else 0.0


def _packet_ends(container: InputContainer, indices: list[int]) -> list[float]:
    """The end, in seconds, of the last packet of each stream; 0 if it has none."""
    ends = dict.fromkeys(indices, 0.0)
    for packet in container.demux(*(container.streams[index] for index in indices)):
        if packet.pts is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            ends[packet.stream_index] = max(ends[packet.stream_index], end)
    return [ends[index] for index in indices]


class Skipper:
    """Leaves out the packets of a picture stream that nothing from the time `needed_from_s` on depends on.

    Those are the packets before the last key frame that is not shown later. They are demuxed, since the sound
    stands between them, and wait undecoded until the next key frame shows that they are not needed, or a packet
    beyond `needed_from_s` that they are; so no index of the file has to be there, or to be believed. Where time stamps
    are missing or run backwards, nothing is left out. One Skipper serves one pass.
    """

    def __init__(self, needed_from_s: float) -> None:
        self.num_skipped = 0
        """Packets left out so far."""
        self._needed_from_s = needed_from_s
        self._held: list[Packet] = []
        self._held_bytes = 0
        self._latest_s = -math.inf  # The latest moment at which a packet so far is shown.
        self._entry_s: float | None = None  # When the key frame is shown with which decoding begins.
        self._is_past = False

    def ready(self, packet: Packet) -> list[Packet]:
        """The packets to decode now that `packet` has come."""
        if self._is_past:
            return [packet]
        shown_s = math.inf if packet.pts is None else float(packet.pts * packet.time_base)
        # What is coded before a key frame is shown before it, or its time stamps are wrong.
        if packet.is_keyframe and not packet.is_discard and self._latest_s < shown_s <= self._needed_from_s:
            self.num_skipped += len(self._held)
            self._held.clear()
            self._held_bytes = 0
            self._entry_s = shown_s
        self._latest_s = max(self._latest_s, shown_s)
        self._held.append(packet)
        self._held_bytes += packet.size
        # No frame is decoded after it is shown: beyond the needed moment, no key frame can be early enough.
        decoded_s = shown_s if packet.dts is None else float(packet.dts * packet.time_base)
        if decoded_s <= self._needed_from_s and self._held_bytes <= _MOST_HELD_BYTES:
            return []
        self._is_past = True
        held, self._held = self._held, []
        return held

    def check(self, frame: Any) -> None:
        """Takes each decoded frame. Raises RejectedError: unreadable, if decoding began with what is no key frame.

        Some files mark every packet as a key frame; the decoder knows better.
        """
        if not self.num_skipped or self._entry_s is None or frame.time is None or frame.time < self._entry_s:
            return  # What is shown before the key frame, but coded after it, may be broken: it is not needed.
        if frame.time > self._entry_s or not frame.key_frame:
            raise unreadable(f"the picture at {self._entry_s:.2f} s is no key frame")
        self._entry_s = None


def decode(container: InputContainer, sinks: Mapping[int, Sink], skippers: Mapping[int, Skipper] | None = None) -> None:
    """Decodes, in one pass, the streams whose indices are the keys of `sinks`, each until its sink is done.

    skippers: of picture streams of which only a later part is needed, by index. Raises av.error.FFmpegError (which
    `open_media` turns into RejectedError) if a packet on the way cannot be decoded.
    """
    for _ in decode_stepwise(container, sinks, skippers):
        pass


def decode_stepwise(
    container: InputContainer, sinks: Mapping[int, Sink], skippers: Mapping[int, Skipper] | None = None
) -> Iterator[None]:
    """What `decode` does, with a pause after each packet, to look at the sinks."""
    for stream in container.streams:
        if stream.index in sinks:
            stream.codec_context.thread_count = 1
        else:
            stream.discard = Discard.all
    waiting = dict(sinks)
    skippers = skippers or {}
    for packet in container.demux(*(container.streams[index] for index in sinks)):
        sink = waiting.get(packet.stream_index)
        if sink is None:
            continue
        skipper = skippers.get(packet.stream_index)
        for ready in [packet] if skipper is None else skipper.ready(packet):
            for frame in ready.decode():
                if skipper is not None:
                    skipper.check(frame)
                sink.add(frame)
        if sink.done:
            del waiting[packet.stream_index]
            packet.stream.discard = Discard.all
            if not waiting:
                return
        yield
