"""The process in which untrusted files are decoded: it answers the requests of one `decoder.Decoder`.

Started as `decoder` says, never by hand. It holds no secret: its environment is an allow list, and it gets open files
instead of paths. It imports PyAV, numpy and soxr only, so it starts fast. It ends when its parent closes the
connection, or when a request takes far longer than it may, should the parent be gone by then.
"""

import os
import resource
import signal
import socket
from collections.abc import Iterator
from typing import Any

import av.logging

from data_prep import window, window_crops, window_stream
from data_prep.decoder_answers import pack_crops, pack_end, pack_facts, pack_rejection, pack_streamed, pack_window
from data_prep.decoder_messages import Message, receive, send
from data_prep.rejects import RejectedError, RejectReason

_MOST_FILES = 2
_MOST_WRITTEN_BYTES = 1 << 20
"""Of any file this process writes, its messages to standard error included."""
_GRACE_S = 10.0
"""A request that takes this much longer than it may has lost its parent, who would have ended it."""


def main(connection_number: int, memory_bytes: int) -> None:
    """Answers requests on an inherited socket until the other side closes it, within `memory_bytes` of addresses."""
    av.logging.set_level(None)
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: _MOST_WRITTEN_BYTES,
    }
    for kind, wanted in limits.items():
        allowed = resource.getrlimit(kind)[1]
        limit = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
        resource.setrlimit(kind, (limit, limit))
    with socket.socket(fileno=connection_number) as connection:
        send(connection, Message(header={"answer": "ready"}))
        while (request := receive(connection, most_descriptors=_MOST_FILES)) is not None:
            for answer in _timed(_answers(request, memory_bytes), request.header["timeout_s"]):
                send(connection, answer)


def _timed(answers: Iterator[Message], timeout_s: float) -> Iterator[Message]:
    """The same, each within its time; that the other side takes its own to receive them does not count."""
    while True:
        # Its default action ends this process, whatever a library is busy with.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + _GRACE_S)
        answer = next(answers, None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if answer is None:
            return
        yield answer


def _answers(request: Message, memory_bytes: int) -> Iterator[Message]:
    """One answer, or, of many windows, one each and the end; its files are closed before the last."""
    video, *others = request.descriptors
    sound = others[0] if others else None
    try:
        if request.header["call"] == "probe":
            last = pack_facts(window.probe(video, sound))
        elif request.header["call"] == "stream":
            yield from map(pack_streamed, window_stream.stream_windows(video, **request.header["settings"]))
            last = pack_end()
        elif request.header["call"] == "crops":
            last = pack_crops(window_crops.read_crops(video, sound, **_settings(request.header["settings"])))
        else:
            last = pack_window(window.read_window(video, sound, **_settings(request.header["settings"])))
    except RejectedError as rejected:
        last = pack_rejection(rejected)
    except MemoryError:
        detail = f"decoding needs more memory than the {memory_bytes / 2**20:.0f} MiB that it may have"
        last = pack_rejection(RejectedError(RejectReason.DECODER_CRASHED, detail))
    for descriptor in request.descriptors:
        os.close(descriptor)
    yield last


def _settings(settings: dict[str, Any]) -> Any:
    if settings.get("video_filter") is not None:
        # Only augmented clips need it.
        from data_prep.video_filter import VideoFilter

        settings["video_filter"] = VideoFilter(**settings["video_filter"])
    return settings
