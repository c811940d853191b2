"""Decoding of untrusted files in a child process, which may crash, hang or ask for any memory without harm to this one.

The process speaks a small protocol of its own (decoder_messages.py). A process pool, such as pebble's, would not do:
its children inherit the environment with its credentials, they are given paths, and their answers are pickles, which
run code in whoever reads them. Here the environment is an allow list, the child gets open files, and its answers are
numbers and raw arrays whose sizes are checked before they are believed.

It is no sandbox: a decoder that a file takes over still runs as the same user, with that user's files and network.
"""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import IO, Any, TypeVar, Unpack

import numpy as np

from data_prep.audio import SAMPLE_RATE
from data_prep.decoder_answers import (
    has_successor,
    printable,
    unpack_crops,
    unpack_facts,
    unpack_streamed,
    unpack_window,
)
from data_prep.decoder_messages import Message, MessageError, receive, send
from data_prep.file_facts import FileFacts
from data_prep.media_file import open_descriptor
from data_prep.rejects import RejectedError, RejectReason
from data_prep.window import ClipWindow, WindowSettings
from data_prep.window_crops import CropSettings
from data_prep.window_stream import RefusedWindow, StreamedWindow, StreamSettings, end_of

DEFAULT_MEMORY_BYTES = 4 << 30
"""Addresses that the child may use. Frames of 1080 x 1920 take a tenth of it, 8K with 10 bits the half."""

_CHILD_MODULE = "data_prep.decoder_child"
_START = "import importlib, json, sys; a = json.loads(sys.argv[1]); sys.path[:] = a['path']; \
importlib.import_module(a['module']).main(a['connection'], a['memory_bytes'])"
_START_TIMEOUT_S = 60.0
_INHERITED = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
"""What the child's environment keeps of this one's: how to find libraries, and nothing that could be a secret."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""Where data_prep is found."""
_DYING_S = 2.0
"""How long a child that fell silent may take to be gone."""
_LAST_BYTES = 1000
"""Of what a child wrote, in which its last line is looked for."""

_SOUND_SPEED = 20.0
"""A decoder that takes longer than a second for so many seconds of sound hangs."""
_MOST_SOUND_S = 3600.0
"""That decoding the sound before a window may take: how much there is of it is the file's word."""
_MOST_CRASHES = 2
"""A clip on which so many children died is given up."""
_MOST_WINDOWS = 1 << 20

Answer = TypeVar("Answer")


class DecoderStartError(RuntimeError):
    """No child can be started: one sentence, why."""


class Decoder:
    """Decodes clips in a child process of its own, which is started at the first call and after each of its deaths.

    timeout_s: seconds that decoding a clip may take (getting it from a bucket not counted). memory_bytes: limit of the
    child's address space. A clip whose child dies gets a second try in a new one, so that its outcome depends neither
    on what came before it nor on a child that somebody killed. One thread at a time may use a Decoder. The child ends
    with `close`, with the Decoder, and with this process, however that ends.
    """

    def __init__(self, *, timeout_s: float = 60.0, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def child_pid(self) -> int | None:
        """Process id of the child, if there is one."""
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """Ends the child, if there is one. A later call starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def read_window(self, video_uri: str, audio_uri: str | None, **settings: Unpack[WindowSettings]) -> ClipWindow:
        """What `window.read_window` decodes of the clip at a local path or s3:// URI, with its sound there or apart.

        Raises RejectedError: those of `window.read_window`, missing, decoder_crashed (also where decoding needs more
        memory than it may have), timeout. Raises DecoderStartError.
        """
        request: dict[str, Any] = {"call": "window", "settings": dict(settings)}
        if (video_filter := settings.get("video_filter")) is not None:
            request["settings"]["video_filter"] = asdict(video_filter)
        unpack = functools.partial(
            unpack_window,
            num_frames=settings["num_frames"],
            window_s=settings["window_s"] * settings.get("speed", 1.0),
            repeat=settings.get("repeat", True),
        )
        return self._ask(request, video_uri, audio_uri, unpack)

    def read_crops(self, video_uri: str, audio_uri: str | None, **settings: Unpack[CropSettings]) -> np.ndarray:
        """What `window_crops.read_crops` decodes of the clip, see `read_window`, whose errors it raises, too."""
        request: dict[str, Any] = {"call": "crops", "settings": dict(settings)}
        if (video_filter := settings.get("video_filter")) is not None:
            request["settings"]["video_filter"] = asdict(video_filter)
        unpack = functools.partial(unpack_crops, num_frames=len(settings["boxes"]), size=settings["size"])
        return self._ask(request, video_uri, audio_uri, unpack)

    def stream_windows(
        self, video_uri: str, **settings: Unpack[StreamSettings]
    ) -> Iterator[StreamedWindow | RefusedWindow]:
        """What `window_stream.stream_windows` decodes of the clip at a local path or s3:// URI.

        The time that decoding may take is that of one window, and for the first also that of all sound before it, of
        which every `_SOUND_SPEED` seconds may take one more. A child that dies in the midst gets a successor that
        goes on from there; where that one dies, too, all that is left is refused. Until the last window was taken, no
        other clip may be decoded. Raises like `read_window`, before the first window only.
        """
        first, count = settings.get("first", 0), settings.get("count")
        given, crashes, window = 0, 0, None
        with open_descriptor(video_uri) as descriptor:
            while True:
                rest: StreamSettings = {**settings, "first": first + given}
                rest["count"] = None if count is None else count - given
                try:
                    for window in self._stream(descriptor, rest):
                        yield window
                        given += 1
                    return
                except RejectedError as rejected:
                    crashes += rejected.reason is RejectReason.DECODER_CRASHED
                    if rejected.reason is RejectReason.DECODER_CRASHED and crashes < _MOST_CRASHES:
                        continue
                    if window is None:
                        raise
                    end_s = end_of(first, count, window.duration_s, settings["window_s"], settings["hop_s"])
                    span = {"start_s": window.end_s, "end_s": end_s, "duration_s": window.duration_s}
                    yield RefusedWindow(**span, reason=rejected.reason, detail=rejected.detail)
                    return

    def _stream(self, descriptor: int, settings: StreamSettings) -> Iterator[StreamedWindow | RefusedWindow]:
        """The windows that one child gives; what a hostile one gives must end, too."""
        num_samples = round(settings["window_s"] * SAMPLE_RATE)
        unpack = functools.partial(unpack_streamed, num_frames=settings["num_frames"], num_samples=num_samples)
        sound_s = settings.get("first", 0) * settings["hop_s"] / _SOUND_SPEED
        timeout_s = self._timeout_s + min(sound_s, _MOST_SOUND_S)
        header = {"call": "stream", "settings": dict(settings), "timeout_s": timeout_s}
        window = self._ask_child(Message(header=header, descriptors=[descriptor]), unpack, timeout_s)
        for _ in range(_MOST_WINDOWS):
            if window is None:
                return
            yield window
            window = self._ask_child(None, unpack)
        raise RejectedError(RejectReason.UNREADABLE, "it has more windows than any clip has")

    def probe(self, video_uri: str, audio_uri: str | None) -> FileFacts:
        """The facts of a clip's files; decodes no more than a frame. Raises like `read_window`."""
        return self._ask({"call": "probe"}, video_uri, audio_uri, unpack_facts)

    def _ask(
        self, request: dict[str, Any], video_uri: str, audio_uri: str | None, unpack: Callable[[Message], Answer]
    ) -> Answer:
        with ExitStack() as stack:
            uris = [video_uri] if audio_uri is None else [video_uri, audio_uri]
            descriptors = [stack.enter_context(open_descriptor(uri)) for uri in uris]
            message = Message(header=request | {"timeout_s": self._timeout_s}, descriptors=descriptors)
            try:
                return self._ask_child(message, unpack)
            except RejectedError as rejected:
                if rejected.reason is not RejectReason.DECODER_CRASHED:
                    raise
            return self._ask_child(message, unpack)

    def _ask_child(
        self, message: Message | None, unpack: Callable[[Message], Answer], timeout_s: float | None = None
    ) -> Answer:
        """The answer of the child, which is ended where it crashed or took too long; None asks for its next one."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if message is not None and self._child is not None and self._child.is_busy:
            self.close()  # An interrupt came between its question and its answer, which would be taken for the next.
        if self._child is None:
            self._child = _Child(self._memory_bytes)
        try:
            return unpack(self._child.ask(message, timeout_s, self._memory_bytes))
        except RejectedError as rejected:
            if rejected.reason is RejectReason.DECODER_CRASHED:  # It says so itself: it found no memory.
                self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise RejectedError(RejectReason.TIMEOUT, f"decoding took over {timeout_s:g} s") from error
        except (MessageError, OSError) as error:
            how = self._child.death() or f"the decoder answers nonsense: {error}"
            self.close()
            raise RejectedError(RejectReason.DECODER_CRASHED, how) from error


class _Child:
    """A running `decoder_child`. Raises DecoderStartError."""

    def __init__(self, memory_bytes: int) -> None:
        self.is_busy = False
        """Whether it owes an answer, or another one."""
        self._connection, theirs = socket.socketpair()
        # A file, not a pipe: nobody has to read while it is written, and the child's limits bound it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        facts = {
            "path": [os.path.abspath(folder) for folder in (_PACKAGES, *sys.path)],
            "module": _CHILD_MODULE,
            "connection": theirs.fileno(),
            "memory_bytes": memory_bytes,
        }
        with theirs:
            self._process = self._started(facts, theirs.fileno())
        # Runs when this object goes or the program ends, whichever is first.
        self._finalizer = weakref.finalize(self, _end, self._process, self._connection, self._errors)
        self._await_start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _started(self, facts: dict[str, Any], connection: int) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                # Isolated: neither the working directory nor PYTHON* variables decide what is imported.
                [sys.executable, "-I", "-c", _START, json.dumps(facts)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[connection],
                cwd="/",
                env={name: os.environ[name] for name in _INHERITED if name in os.environ} | _ONE_THREAD,
                start_new_session=True,  # An interrupt from the terminal is for us, who then end it.
            )
        except OSError as error:
            self._connection.close()
            self._errors.close()
            raise DecoderStartError(f"the decoding process does not start: {error.strerror or error}.") from error

    def _await_start(self) -> None:
        try:
            is_ready = receive(self._connection, deadline=time.monotonic() + _START_TIMEOUT_S) is not None
        except (MessageError, OSError):
            is_ready = False
        if not is_ready:
            how = self.death() or "it does not answer"
            self.end()
            raise DecoderStartError(f"the decoding process does not start: {how}.")

    def ask(self, message: Message | None, timeout_s: float, most_bytes: int) -> Message:
        """The answer to a request, or (None) the next answer to the last one.

        Raises TimeoutError; MessageError or OSError if the child is gone.
        """
        deadline = time.monotonic() + timeout_s
        self.is_busy = True
        self._connection.settimeout(timeout_s)
        if message is not None:
            send(self._connection, message)
        answer = receive(self._connection, most_bytes=most_bytes, deadline=deadline)
        if answer is None:
            raise MessageError("it closed the connection")
        self.is_busy = has_successor(answer)
        return answer

    def death(self) -> str:
        """How the process ended; empty if it is still there after a moment."""
        try:
            # It closes its connection a moment before it is gone.
            status = self._process.wait(timeout=_DYING_S)
        except subprocess.TimeoutExpired:
            return ""
        if status < 0:
            return f"the decoder died of signal {-status} ({signal.strsignal(-status)})"
        last_words = _last_line(self._errors)
        return f"the decoder ended with exit code {status}" + (f": {last_words}" if last_words else "")

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._finalizer()


def _end(process: subprocess.Popen[bytes], connection: socket.socket, errors: IO[bytes]) -> None:
    connection.close()
    process.kill()
    process.wait()
    errors.close()


def _last_line(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LAST_BYTES))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else ""
