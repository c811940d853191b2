"""Processes that make windows side by side (`scoring_windows`), and hand them over as they get done.

A process waits until its windows are taken, so that none of them runs ahead of who scores them.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from cluster.scoring_windows import PreparedWindow, WindowMaker, WindowSettings, WindowTask
from data_prep.decoder import DecoderStartError
from data_prep.storage import InputError, UnreachableError
from stgs.config import InputError as SettingError

Step = tuple[WindowTask, PreparedWindow | None]
"""A window of a task, or None: the task has no more."""
_SENTENCES: dict[str, type[Exception]] = {
    f"{kind.__module__}.{kind.__name__}": kind
    for kind in (InputError, SettingError, UnreachableError, DecoderStartError)
}
_ENDING_S = 10.0


class ProcessDiedError(RuntimeError):
    """A process ended in the midst of its work: one sentence, how."""


def windows_of(tasks: Iterator[WindowTask], settings: WindowSettings, processes: int) -> Iterator[Step]:
    """The windows of all tasks. Those of one task are in order; tasks are begun in order, as many at once as processes.

    One process is this one, otherwise they are started. tasks: asked for the next one when a process is free. Raises
    ProcessDiedError, and what `ClipPreparer` raises.
    """
    if processes == 1:
        with closing(WindowMaker(settings)) as maker:
            for task in tasks:
                for window in maker(task):
                    yield task, window
                yield task, None
        return
    with _started(settings, processes) as workers:
        yield from _dealt(tasks, workers)


class _Worker:
    """A process, seen from this one."""

    def __init__(self, settings: WindowSettings) -> None:
        # Not forked: torch's and PyAV's threads and locks would come along halfway.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()
        self.task: WindowTask | None = None

    def begin(self, task: WindowTask | None) -> None:
        self.task = task
        if task is not None:
            try:
                self.connection.send(task)
            except ConnectionError as error:
                raise self._death() from error

    def answer(self) -> PreparedWindow | None:
        """The next window of the task, or None. Raises what ended the process."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._death() from error
        if kind == "window":
            window: PreparedWindow | None = content
            return window
        name, text = content
        raise _SENTENCES.get(name, RuntimeError)(text)

    def _death(self) -> ProcessDiedError:
        self.process.join(_ENDING_S)
        return ProcessDiedError(
            f"a process that prepares clips ended with exit code {self.process.exitcode}; if the machine ran out of "
            "memory, give fewer --processes."
        )

    def end(self) -> None:
        self.process.terminate()
        self.process.join(_ENDING_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.process.close()
        self.connection.close()


@contextmanager
def _started(settings: WindowSettings, processes: int) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        workers += (_Worker(settings) for _ in range(processes))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def _dealt(tasks: Iterator[WindowTask], workers: list[_Worker]) -> Iterator[Step]:
    for worker in workers:
        worker.begin(next(tasks, None))
    while busy := {worker.connection: worker for worker in workers if worker.task is not None}:
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index]
            task, window = worker.task, worker.answer()
            assert task is not None
            yield task, window
            if window is None:
                worker.begin(next(tasks, None))


def _work(connection: Connection[Any, Any], settings: WindowSettings) -> None:
    """The other side: tasks in, windows out, until the connection is closed."""
    # An interrupt from the terminal is for the parent, who then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with closing(WindowMaker(settings)) as maker:
            while True:
                for window in maker(connection.recv()):
                    connection.send(("window", window))
                connection.send(("window", None))
    except (EOFError, BrokenPipeError):
        sys.exit()
    except Exception as error:
        # Whatever it is, it has to be told where it can be shown; known kinds are a sentence.
        name = f"{type(error).__module__}.{type(error).__name__}"
        connection.send(("error", (name, str(error) if name in _SENTENCES else traceback.format_exc())))
