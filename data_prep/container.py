"""Media files: opening, the time their streams cover, and decoding several streams in one pass.

Times are seconds on the file's own clock, which picture and sound share: a stream may begin later than another.
"""

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

import av
import av.error
from av.container import InputContainer
from av.stream import Discard, Disposition, Stream

from data_prep import storage
from data_prep.rejects import RejectedError, RejectReason

_NO_PROTOCOL = {"protocol_whitelist": "none"}
"""The file is handed over open. A playlist disguised as a clip must not make FFmpeg open others, or the network."""


class Sink(Protocol):
    """Takes the decoded frames of one stream, in order of presentation, until it is `done`."""

    @property
    def done(self) -> bool: ...

    def add(self, frame: Any) -> None: ...


@contextmanager
def open_media(uri: str) -> Iterator[InputContainer]:
    """The media file at a local path or s3:// URI, open for decoding on one thread.

    Raises RejectedError: missing, or unreadable, also for damage that shows inside the `with` block.
    """
    try:
        with _open_bytes(uri) as file, av.open(file, "r", options=_NO_PROTOCOL, metadata_errors="ignore") as container:
            yield container
    except av.error.FFmpegError as error:
        raise RejectedError(RejectReason.UNREADABLE, f"decoding failed: {error.strerror}") from error


def _open_bytes(uri: str) -> BinaryIO:
    try:
        if uri.startswith("s3://"):
            return io.BytesIO(storage.read(uri))
        # A pipe would wait for a writer for ever; O_NONBLOCK opens it at once, and changes nothing for a file.
        file = os.fdopen(os.open(uri, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except FileNotFoundError as error:
        raise RejectedError(RejectReason.MISSING, "the file does not exist") from error
    except OSError as error:
        raise RejectedError(RejectReason.UNREADABLE, f"opening failed: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise RejectedError(RejectReason.UNREADABLE, "it is no regular file")
    return file


def video_stream(container: InputContainer) -> Stream:
    """The stream with the picture, not a sound file's cover. Raises RejectedError: no_video, unreadable."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise RejectedError(RejectReason.NO_VIDEO, "the file has no video stream")
    return _decodable(stream)


def audio_stream(container: InputContainer, related: Stream | None = None) -> Stream:
    """The stream with the sound (that goes with `related`). Raises RejectedError: no_audio, unreadable."""
    stream = container.streams.best("audio", related=related)
    if stream is None:
        raise RejectedError(RejectReason.NO_AUDIO, "the file has no audio stream")
    return _decodable(stream)


def _decodable(stream: Stream) -> Stream:
    if stream.codec_context is None:
        raise RejectedError(RejectReason.UNREADABLE, f"FFmpeg has no decoder for its {stream.type}")
    return stream


def stream_spans(uri: str, *streams: Stream) -> list[tuple[float, float]]:
    """(start, end) in seconds of each of `streams`, all of the open file `uri`.

    The ends are the container's word, or, where it has none (Matroska, streams that were saved), those of the packets.
    """
    starts = [_seconds(stream.start_time, stream) for stream in streams]
    if all(stream.duration for stream in streams):
        ends = [_seconds((stream.start_time or 0) + (stream.duration or 0), stream) for stream in streams]
    else:
        with open_media(uri) as container:
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


def decode(container: InputContainer, sinks: Mapping[int, Sink]) -> None:
    """Decodes, in one pass, the streams whose indices are the keys of `sinks`, each until its sink is done.

    Raises av.error.FFmpegError (which `open_media` turns into RejectedError) if a packet on the way cannot be decoded.
    """
    for stream in container.streams:
        if stream.index in sinks:
            stream.codec_context.thread_count = 1
        else:
            stream.discard = Discard.all
    waiting = dict(sinks)
    for packet in container.demux(*(container.streams[index] for index in sinks)):
        sink = waiting.get(packet.stream_index)
        if sink is None:
            continue
        for frame in packet.decode():
            sink.add(frame)
        if sink.done:
            del waiting[packet.stream_index]
            packet.stream.discard = Discard.all
            if not waiting:
                return
