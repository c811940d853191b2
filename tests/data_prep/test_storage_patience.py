"""Storage that does not answer for a while: what is tried again, for how long, and what is said. On a fake clock."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep import storage, storage_patience
from data_prep.storage import CredentialsError, NoSpaceError, UnreachableError


class Time:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.lines: list[str] = []

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.pauses.append(seconds)
        self.now += seconds

    def patient(self, seconds: float, **options: bool) -> Any:
        """`storage.patient` by this clock."""
        return storage.patient(seconds, clock=lambda: self.now, sleep=self.sleep, say=self.lines.append, **options)


@pytest.fixture
def time() -> Time:
    return Time()


def silent_until(time: Time, end: float, moment: str = "before") -> Callable[[str, str, str], None]:
    """A hook: storage does not answer until the clock shows `end`."""

    def hook(operation: str, uri: str, when: str) -> None:
        if when == moment and time.now < end:
            raise UnreachableError("it does not answer.")

    return hook


def uses(folder: Path) -> dict[str, Callable[[], object]]:
    """Each use of an object, and what it leads to."""
    uri = str(folder / "object")

    def open_and_read() -> bytes:
        with storage.reader(uri) as file:
            return file.read()

    return {
        "write": lambda: storage.write(uri, b"x"),
        "read": lambda: storage.read(uri),
        "reader": open_and_read,
        "exists": lambda: storage.exists(uri),
        "list": lambda: storage.list(str(folder)),
        "create": lambda: storage.create(uri + "2", b"x"),
        "delete": lambda: storage.delete(uri),
    }


@pytest.mark.parametrize("moment", ["before", "after"])
def test_every_operation_outlasts_an_outage(tmp_path: Path, time: Time, moment: str) -> None:
    """Whether the request or its answer is lost; each ends as it would have without the outage."""
    plain = {name: use() for name, use in uses(tmp_path / "plain").items()}
    assert plain["list"] == ["object"]
    for name, use in uses(tmp_path / "torn").items():
        with time.patient(300), storage.observed(silent_until(time, time.now + 60, moment)):
            assert use() == plain[name], name
    assert storage.list(str(tmp_path / "torn")) == storage.list(str(tmp_path / "plain")) == ["object2"]


def test_one_line_when_it_falls_silent_and_one_when_it_answers(tmp_path: Path, time: Time) -> None:
    end = time.now + 60
    with time.patient(300), storage.observed(silent_until(time, end)):
        storage.write(str(tmp_path / "object"), b"x")
        storage.read(str(tmp_path / "object"))
    assert time.lines[0] == "storage does not answer; trying again for up to 300 s"
    assert len(time.lines) == 2
    assert time.lines[1] == f"storage answers again after {time.now - end + 60:.0f} s"
    assert end <= time.now < end + 15


def test_the_lines_go_to_standard_error(tmp_path: Path, time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        storage.patient(10, clock=lambda: time.now, sleep=time.sleep),
        storage.observed(silent_until(time, time.now + 5)),
    ):
        storage.write(str(tmp_path / "object"), b"x")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == "storage does not answer; trying again for up to 10 s"


@pytest.mark.parametrize("seconds", [0, 1, 60, 300])
def test_patience_ends_on_time_with_growing_pauses(tmp_path: Path, time: Time, seconds: float) -> None:
    begin, state = time.now, random.getstate()
    with (
        time.patient(seconds),
        storage.observed(silent_until(time, float("inf"))),
        pytest.raises(UnreachableError, match="it does not answer"),
    ):
        storage.read(str(tmp_path / "object"))
    assert time.now - begin == pytest.approx(seconds)
    # Each is at least as long as half of its nominal length, which doubles up to 15 s; the last one is cut.
    for number, pause in enumerate(time.pauses[:-1]):
        assert min(0.25 * 2**number, 15) / 2 <= pause <= min(0.25 * 2**number, 15)
    assert len(time.pauses) < 10 + seconds / 7.5
    assert random.getstate() == state, "nobody's random numbers depend on the network"


def test_a_process_without_patience_tries_for_two_seconds(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    (brief,) = storage_patience._patiences
    monkeypatch.setattr(brief, "clock", lambda: time.now)
    monkeypatch.setattr(brief, "sleep", time.sleep)
    begin = time.now
    with storage.observed(silent_until(time, float("inf"))), pytest.raises(UnreachableError):
        storage.read(str(tmp_path / "object"))
    assert time.now - begin == pytest.approx(2)
    with storage.observed(silent_until(time, time.now + 1)):
        storage.write(str(tmp_path / "object"), b"x")


def test_the_innermost_patience_counts_and_ends_with_its_block(tmp_path: Path, time: Time) -> None:
    def wait() -> float:
        begin = time.now
        with pytest.raises(UnreachableError):
            storage.read(str(tmp_path / "object"))
        return time.now - begin

    with storage.observed(silent_until(time, float("inf"))), time.patient(300):
        with time.patient(7):
            assert wait() == pytest.approx(7)
        assert wait() == pytest.approx(300)


def test_a_patience_of_one_thread_leaves_the_others_theirs(tmp_path: Path, time: Time) -> None:
    waited = []

    def wait() -> None:
        begin = time.now
        with pytest.raises(UnreachableError):
            storage.read(str(tmp_path / "object"))
        waited.append(time.now - begin)

    other = threading.Thread(target=wait, daemon=True)
    with storage.observed(silent_until(time, float("inf"))), time.patient(7, here=True), time.patient(300):
        other.start()
        other.join(30)
        wait()
    assert waited == [pytest.approx(300), pytest.approx(7)]


def test_a_patience_for_all_operations_together_is_used_up_once(tmp_path: Path, time: Time) -> None:
    end = time.now + 20
    tried = []

    def hook(operation: str, uri: str, moment: str) -> None:
        if operation == "read":
            tried.append(time.now)
            raise UnreachableError("it does not answer.")

    with storage.observed(hook), time.patient(20, together=True):
        time.now += 4
        storage.exists(str(tmp_path))
        for _ in range(3):
            with pytest.raises(UnreachableError, match="it does not answer"):
                storage.read(str(tmp_path / "object"))
            assert time.now == pytest.approx(end)
    assert tried.count(tried[-1]) == 1, "what comes after is not even tried"


def test_credentials_that_may_come_back_are_waited_for_with_patience_only(tmp_path: Path, time: Time) -> None:
    end, uri = time.now + 60, str(tmp_path / "object")
    tried = []

    def hook(operation: str, uri: str, moment: str) -> None:
        tried.append(moment)
        if time.now < end:
            raise CredentialsError("they have expired.")

    with storage.observed(hook):
        with pytest.raises(CredentialsError):
            storage.write(uri, b"x")
        assert tried == ["before"], "at once"
        with time.patient(300):
            storage.write(uri, b"x")
        time.now = end - 60
        with time.patient(10), pytest.raises(CredentialsError, match="they have expired"):
            storage.write(uri, b"x")
    assert time.lines[0] == "storage refuses the credentials; trying again for up to 300 s"


def test_all_threads_share_it_and_the_outage_is_told_once(tmp_path: Path) -> None:
    """Four threads fall into one outage, that ends when all of them have waited."""
    lines: list[str] = []
    waiting = threading.Barrier(4, timeout=30)
    over = threading.Event()

    def sleep(_: float) -> None:
        if not over.is_set():
            waiting.wait()
            over.set()

    def hook(operation: str, uri: str, moment: str) -> None:
        if moment == "before" and not over.is_set():
            raise UnreachableError("it does not answer.")

    threads = [
        threading.Thread(target=storage.write, args=(str(tmp_path / str(number)), b"x"), daemon=True)
        for number in range(4)
    ]
    with storage.patient(300, clock=lambda: 0.0, sleep=sleep, say=lines.append), storage.observed(hook):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert storage.list(str(tmp_path)) == ["0", "1", "2", "3"]
    assert [line.split(";")[0] for line in lines] == [
        "storage does not answer",
        "storage answers again after 0 s",
    ]


@pytest.mark.parametrize("error", [NoSpaceError("full."), KeyboardInterrupt(), FileNotFoundError()])
def test_nothing_else_is_tried_again(tmp_path: Path, time: Time, error: BaseException) -> None:
    calls = []

    def hook(operation: str, uri: str, moment: str) -> None:
        calls.append((operation, moment))
        raise error

    with time.patient(300), storage.observed(hook), pytest.raises(type(error)):
        storage.read(str(tmp_path / "object"))
    assert calls == [("read", "before")]
    assert not time.pauses


def test_a_creation_whose_answer_was_lost_has_succeeded(tmp_path: Path, time: Time) -> None:
    uri = str(tmp_path / "claim")
    with time.patient(300), storage.observed(silent_until(time, time.now + 60, "after")):
        storage.create(uri, b"mine")
    assert storage.read(uri) == b"mine"


def test_bytes_that_stood_before_are_not_created(tmp_path: Path, time: Time) -> None:
    """Not on a first attempt, were they the same; and after an outage only if they are the same."""
    uri = str(tmp_path / "claim")
    storage.create(uri, b"mine")
    with time.patient(300), pytest.raises(FileExistsError):
        storage.create(uri, b"mine")
    with (
        time.patient(300),
        storage.observed(silent_until(time, time.now + 60)),
        pytest.raises(FileExistsError),
    ):
        storage.create(uri, b"other")
    assert storage.read(uri) == b"mine"


def test_only_opening_a_reader_is_tried_again(tmp_path: Path, time: Time) -> None:
    storage.write(str(tmp_path / "object"), b"x")
    seen = []

    def hook(operation: str, uri: str, moment: str) -> None:
        seen.append(moment)

    def read() -> None:
        with storage.reader(str(tmp_path / "object")):
            raise UnreachableError("while it is read.")

    with time.patient(300), storage.observed(hook), pytest.raises(UnreachableError, match="while it is read"):
        read()
    assert seen == ["before", "after"]


def test_hooks_see_each_attempt_with_its_uri(tmp_path: Path, time: Time) -> None:
    seen: list[tuple[str, str, str]] = []
    failures = iter([True, False])
    uri = str(tmp_path / "object")

    def hook(operation: str, name: str, moment: str) -> None:
        seen.append((operation, name, moment))
        if operation == "write" and moment == "before" and next(failures):
            raise UnreachableError("it does not answer.")

    with time.patient(300), storage.observed(hook):
        for use in uses(tmp_path).values():
            use()
    assert seen[:3] == [("write", uri, "before"), ("write", uri, "before"), ("write", uri, "after")]
    operations = ["read", "read", "exists", "list", "create", "delete"]
    assert [(operation, moment) for operation, _, moment in seen[3:]] == [
        (operation, moment) for operation in operations for moment in ("before", "after")
    ]
    storage.read(str(tmp_path / "object2"))
    assert len(seen) == 15
