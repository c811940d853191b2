"""Following a submitted job's log: progress in one line, and nothing lost or repeated when the connection breaks."""

import io
import random
from collections.abc import AsyncIterator, Sequence

import pytest
from tqdm import tqdm

from cluster.job_log import PATIENCE_S, LogView, follow
from data_prep.storage import UnreachableError

WIDE = 100


class Clock:
    """Seconds that pass only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def driver_log() -> str:
    """What a driver writes on its standard error, as Ray hands it out: carriage returns have become line ends."""
    log = io.StringIO()
    log.write("Running entrypoint\n\nfirst\n")
    with tqdm(total=4, desc="grid", unit="epoch", file=log, mininterval=0, ncols=WIDE) as bar:
        for epoch in range(4):
            bar.update()
            if epoch == 1:
                log.write("a line that is written while the bar stands\n")
    log.write("the end, at 50% | of a table\n")
    return log.getvalue().replace("\r", "\n")


def shown(text: str, pieces: Sequence[int], *, live: bool, every_s: float = 10.0) -> str:
    """What the view shows of `text` that is cut at `pieces`, while no time passes."""
    stream = io.StringIO()
    view = LogView(stream, live=live, every_s=every_s, clock=Clock())
    for start, end in zip([0, *pieces], [*pieces, len(text)], strict=True):
        view.feed(text[start:end])
    view.close()
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDE + 1))


def test_a_file_gets_every_line_and_the_progress_now_and_then() -> None:
    lines = shown(driver_log(), [], live=False).splitlines()
    assert [line for line in lines if not line.startswith("grid:")] == [
        "Running entrypoint",
        "",
        "first",
        "a line that is written while the bar stands",
        "the end, at 50% | of a table",
    ]
    bars = [line.split("|")[0] for line in lines if line.startswith("grid:")]
    assert bars == ["grid:   0%", "grid: 100%"]
    assert lines.index("first") < lines.index(next(line for line in lines if line.startswith("grid: 100%")))
    assert lines[-1].startswith("the end")
    every = shown(driver_log(), [], live=False, every_s=0.0).splitlines()
    percent = [line.split("|")[0].split()[1] for line in every if line.startswith("grid:")]
    assert list(dict.fromkeys(percent)) == ["0%", "25%", "50%", "75%", "100%"]


def test_a_terminal_gets_one_progress_line_below_the_text() -> None:
    screen = [""]
    for character in shown(driver_log(), [], live=True).replace("\r\x1b[K", "\r"):
        if character == "\r":
            screen[-1] = ""
        elif character == "\n":
            screen.append("")
        else:
            screen[-1] += character
    bars = [line for line in screen if line.startswith("grid:")]
    assert len(bars) == 1
    assert bars[0].startswith("grid: 100%")
    assert len(bars[0]) <= WIDE
    assert [line for line in screen if line and line not in bars] == [
        "Running entrypoint",
        "first",
        "a line that is written while the bar stands",
        "the end, at 50% | of a table",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_where_the_log_is_cut_changes_nothing(seed: int) -> None:
    text = driver_log()
    pieces = sorted(random.Random(seed).sample(range(len(text)), 30))
    for every_s in (0.0, 10.0):
        assert shown(text, pieces, live=False, every_s=every_s) == shown(text, [], live=False, every_s=every_s)


class Job:
    """A job whose connection behaves as planned.

    sessions: for each connection, how many characters of the log it carries before it breaks (None: it ends properly).
    ended: whether the job has ended, asked after each connection; the last plan goes on for ever.
    """

    def __init__(self, log: str, sessions: Sequence[int | None], ended: Sequence[bool | None]) -> None:
        self.text, self.sessions, self.ended = log, list(sessions), list(ended)

    async def log(self) -> AsyncIterator[str]:
        carried = self.sessions.pop(0) if len(self.sessions) > 1 else self.sessions[0]
        text = self.text[:carried]
        for start in range(0, len(text), 7):
            yield text[start : start + 7]
        if carried is not None:
            raise UnreachableError("broken")

    def has_ended(self) -> bool:
        answer = self.ended.pop(0) if len(self.ended) > 1 else self.ended[0]
        if answer is None:
            raise UnreachableError("no answer")
        return answer


LOG = "".join(f"line {number}\n" for number in range(20))


def followed(job: Job, clock: Clock) -> str:
    stream = io.StringIO()
    follow(job, LogView(stream, live=False, clock=clock), clock=clock, sleep=clock.sleep)
    return stream.getvalue()


def test_nothing_is_lost_or_repeated_when_the_connection_breaks() -> None:
    clock = Clock()
    # Broken, refused for a while, behind the part that was shown, closed in order by a dashboard that ends, then whole.
    sessions = [25, 0, 0, 0, 12, 60, 70, None]
    text = followed(Job(LOG, sessions, [None, None, None, None, False, False, False, True]), clock)
    notes = [line for line in text.splitlines() if "connection" in line]
    assert text.replace(notes[0] + "\n", "") == LOG
    assert len(notes) == 3, "one note each time that it breaks, however often it is tried again"
    assert followed(Job(LOG, [None], [True]), Clock()) == LOG


def test_an_end_without_the_jobs_end_is_a_break() -> None:
    text = followed(Job(LOG, [None], [False, True]), Clock())
    assert text.count("line 3\n") == 1
    assert text.count("connection") == 1


def test_a_head_that_never_comes_back_ends_the_following() -> None:
    clock = Clock()
    with pytest.raises(UnreachableError):
        followed(Job(LOG, [25, 0], [None]), clock)
    assert PATIENCE_S <= clock.now < PATIENCE_S + 10


def test_an_ended_job_whose_log_is_lost_is_left_after_some_attempts() -> None:
    clock = Clock()
    text = followed(Job(LOG, [25, 0], [True]), clock)
    assert "line 2\n" in text
    assert clock.now < 60
