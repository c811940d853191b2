"""A submitted job's log on the user's terminal: followed through broken connections, its progress bar in one line.

Ray hands a log out as text whose carriage returns have become line ends, so that every state of a progress bar is a
line. `LogView` finds these lines and shows the latest one only.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TextIO

from data_prep.storage import UnreachableError

# A broken connection is tried again so long; a head that is replaced needs minutes.
PATIENCE_S = 600.0
_PAUSE_S = 2.0
# A log that is silent for so long may mean that the head is gone without a word: then it is asked.
_SILENT_S = 60.0
# An ended job whose log cannot be read in so many attempts has lost it.
_LAST_ATTEMPTS = 3
_LINE_S = 10.0
_BAR = re.compile(r"(?P<bar>(?:[^|]{1,80}: )?\s*\d{1,3}%\|[^|]*\|[^|\[]*\[[^\]]*\])(?P<rest>.*)", re.DOTALL)


class LogView:
    """Shows a log that comes in pieces.

    stream: where to. live: whether it is a terminal, where the progress is one line that changes; elsewhere it is a
    line at most every `every_s` seconds, and at the end. clock: seconds.
    """

    def __init__(
        self, stream: TextIO, *, live: bool, every_s: float = _LINE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._live = live
        self._every_s = every_s
        self._clock = clock
        self._rest = ""  # the last line, as far as it has come
        self._blank = 0  # empty lines held back: those before a bar are its carriage return
        self._bar = ""  # the latest progress
        self._drawn = ""  # the progress that was shown last
        self._drawn_at = -float("inf")

    def feed(self, text: str) -> None:
        """Show the next piece of the log; it may end anywhere in a line."""
        *lines, self._rest = re.split(r"\r\n|\n|\r", self._rest + text)
        for line in lines:
            self._line(line)
        # A bar ends its line only when it moves on.
        if (found := _BAR.fullmatch(self._rest)) and not found["rest"].strip():
            self._progress(found["bar"])
        self._stream.flush()

    def close(self) -> None:
        """Show what was held back."""
        rest, self._rest = self._rest, ""
        if rest.strip():
            self._line(rest)
        if self._bar != self._drawn:
            self._draw()
        if self._live and self._bar:
            self._stream.write("\n")
        self._bar = self._drawn = ""
        self._stream.flush()

    def note(self, sentence: str) -> None:
        """Show a line that is not the log's."""
        self._write(sentence)
        self._stream.flush()

    def _line(self, line: str) -> None:
        found = _BAR.fullmatch(line)
        if found is not None:
            self._blank = 0
            self._progress(found["bar"])
            if not found["rest"].strip():
                return
            line = found["rest"]  # written while the bar stood in the line
        if not line.strip():
            self._blank += 1
            return
        if self._bar != self._drawn and "100%|" in self._bar:
            self._draw()  # what comes now speaks of the finished work
        for _ in range(self._blank):
            self._write("")
        self._blank = 0
        self._write(line)

    def _write(self, line: str) -> None:
        """A line of text, above the progress where that stands on a terminal."""
        if self._live and self._bar:
            self._stream.write(f"\r\x1b[K{line}\n{self._cut(self._bar)}")
        else:
            self._stream.write(line + "\n")

    def _progress(self, bar: str) -> None:
        self._bar = bar.strip()
        if self._bar == self._drawn:
            return
        if self._live or self._clock() - self._drawn_at >= self._every_s:
            self._draw()

    def _draw(self) -> None:
        self._stream.write(f"\r\x1b[K{self._cut(self._bar)}" if self._live else self._bar + "\n")
        self._drawn, self._drawn_at = self._bar, self._clock()

    def _cut(self, line: str) -> str:
        return line[: shutil.get_terminal_size().columns - 1]


class Followed(Protocol):
    """A job whose log can be followed."""

    def log(self) -> AsyncIterator[str]:
        """The log from its beginning, in pieces, until the job ends. Raises UnreachableError when it breaks off."""

    def has_ended(self) -> bool:
        """Whether the job has ended. Raises UnreachableError if the cluster does not answer."""


def follow(
    job: Followed,
    view: LogView,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Show the job's log until the job ends, however often the connection breaks; nothing is shown twice.

    Raises UnreachableError when the cluster has not answered for `PATIENCE_S` seconds, and what `job` raises when the
    cluster answers that it knows no such job.
    """
    asyncio.run(_follow(job, view, clock, sleep))


async def _follow(
    job: Followed, view: LogView, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
) -> None:
    shown = 0  # characters
    answered, told, attempts = clock(), False, 0
    while True:
        lost: UnreachableError | None = None
        ended = False
        try:
            seen = 0
            async for text in _pieces(job):
                fresh = text[max(shown - seen, 0) :]
                seen += len(text)
                answered = clock()
                if fresh:
                    shown, told = seen, False
                    view.feed(fresh)
        except UnreachableError as error:
            lost = error
        try:
            ended = await asyncio.to_thread(job.has_ended)
            answered = clock()
        except UnreachableError as error:
            lost = error
        attempts += ended
        if ended and (lost is None or attempts == _LAST_ATTEMPTS):
            return
        if not told:
            told = True
            view.note("(the connection to the cluster broke; trying again, the job goes on meanwhile)")
        if lost is not None and clock() - answered >= PATIENCE_S:
            raise lost
        await sleep(_PAUSE_S)


async def _pieces(job: Followed) -> AsyncIterator[str]:
    """The pieces of the log; where none comes for long, the cluster is asked whether it is still there."""
    stream = job.log()
    pending = asyncio.ensure_future(anext(stream, None))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=_SILENT_S)
            if not done:
                await asyncio.to_thread(job.has_ended)
                continue
            piece = pending.result()
            if piece is None:
                return
            yield piece
            pending = asyncio.ensure_future(anext(stream, None))
    finally:
        pending.cancel()
        with contextlib.suppress(asyncio.CancelledError, UnreachableError):
            await pending
