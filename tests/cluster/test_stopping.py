"""The stop mechanism: how often checks are asked, whose answer counts, and the flag of a node."""

import json
import os
import tempfile
import uuid
from pathlib import Path

import pytest

from cluster.stopping import Stop, StopWatch, never, node_flag_path, node_stop, raise_node_flag


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Check:
    """A check that counts how often it was asked."""

    def __init__(self, answer: Stop | None = None) -> None:
        self.answer, self.asked = answer, 0

    def __call__(self) -> Stop | None:
        self.asked += 1
        return self.answer


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A node's name whose flag lies in a folder of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return uuid.uuid4().hex


def test_checks_are_asked_at_most_once_a_second() -> None:
    clock, check = Clock(), Check()
    watch = StopWatch([check], clock=clock)
    for _ in range(5):
        assert watch() is None
    assert check.asked == 1  # the first question is passed on at once
    clock.now += 0.9
    watch()
    assert check.asked == 1
    clock.now += 0.1
    watch()
    assert check.asked == 2


def test_the_first_check_that_says_stop_wins_and_stands() -> None:
    clock = Clock()
    first, second = Check(), Check(Stop("node", "a spot notice"))
    third = Check(Stop("run", "SIGTERM"))
    watch = StopWatch([first, second, third], every_s=2, clock=clock)
    assert watch() == Stop("node", "a spot notice")
    assert third.asked == 0
    first.answer, second.answer = Stop("run", "the deadline has passed"), None
    clock.now += 10
    assert watch() == Stop("node", "a spot notice")
    assert (first.asked, second.asked) == (1, 1)


def test_without_an_answer_nothing_stops() -> None:
    assert never() is None
    assert StopWatch([])() is None
    assert StopWatch([never, never], every_s=0)() is None


def test_a_node_flag_counts_until_it_expires(node: str) -> None:
    assert node_stop(node) is None
    raise_node_flag(node, "the node gets a spot notice", expires=1_000.0)
    assert node_stop(node, now=lambda: 999.0) == Stop("node", "the node gets a spot notice")
    assert node_stop(node, now=lambda: 1_000.0) is None
    assert node_stop(uuid.uuid4().hex, now=lambda: 999.0) is None  # other nodes stay


def test_a_node_flag_is_replaced_whole(node: str, tmp_path: Path) -> None:
    raise_node_flag(node, "first", expires=1.0)
    raise_node_flag(node, "second", expires=10.0)
    assert node_stop(node, now=lambda: 5.0) == Stop("node", "second")
    assert list(tmp_path.iterdir()) == [node_flag_path(node)]  # nothing half-written is left


def test_a_flag_that_another_user_has_made_is_none(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_node_flag(node, "the node gets a spot notice", expires=1_000.0)
    made = node_flag_path(node).stat()
    assert made.st_mode & 0o022 == 0
    if made.st_uid == 0:  # whose flags count for everybody
        os.chown(node_flag_path(node), 4242, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 4343)
    assert node_stop(node, now=lambda: 999.0) is None


def test_a_flag_that_is_no_plain_file_is_none(node: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(json.dumps({"reason": "a link", "expires": 1_000.0}))
    path = node_flag_path(node)
    for make in (lambda: path.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(path), path.mkdir):
        make()
        assert node_stop(node, now=lambda: 999.0) is None
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"reason": "a", "expires": "soon"}', '{"expires": 1e9}', "\xff"]
)
def test_a_damaged_flag_is_none(node: str, content: str) -> None:
    node_flag_path(node).write_text(content, encoding="latin-1")
    assert node_stop(node, now=lambda: 999.0) is None
