"""What trials tell the board and are told; limits; the driver's flag. Without Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import driving
from cluster.board import BOARD_LOST, SILENT_DEATHS, BoardLink, Limits, RunBoard, way_on
from cluster.driving import Driver, spent_seconds
from cluster.limits import RunLimits, worker_range
from cluster.stopping import Stop
from data_prep.storage import InputError

ONE, TWO = ("run", "pack-0000"), ("other", "pack-0000")
HOUR = 3600.0


def beat(seconds: float, epoch: int | None = None, auc: float | None = None, points: int = 2) -> dict[str, Any]:
    facts: dict[str, Any] = {"points": points, "device_seconds": seconds}
    return facts if epoch is None else {**facts, "epoch": epoch, "dev_auc": auc}


def test_the_board_adds_up_what_trials_tell() -> None:
    board = RunBoard(Limits())
    board.add_run("run", 100.0)
    assert board.begin(ONE) is None
    assert board.beat(ONE, beat(1.0)) is None
    assert board.facts().dev_auc is None
    board.beat(ONE, beat(5.0, 3, 0.7))
    board.begin(TWO)
    board.beat(TWO, beat(2.0, 1, 0.8, points=4))
    # The process died, and the next one starts counting its own seconds.
    board.begin(ONE)
    board.beat(ONE, beat(1.5, 3, 0.7))
    facts = board.facts()
    assert facts.device_seconds == {"run": 106.5, "other": 2.0}
    assert (facts.epochs, facts.dev_auc, facts.running) == (2 * 3 + 4 * 1, 0.8, {ONE, TWO})
    board.end(ONE, "no luck")
    assert board.facts().running == {TWO}
    assert board.facts().failures == {ONE: "no luck"}


def test_a_pack_is_given_up_whose_processes_die_before_they_search() -> None:
    board = RunBoard(Limits())
    for _ in range(SILENT_DEATHS - 1):
        assert board.begin(ONE) is None
        assert not board.died(ONE, "killed")
    assert board.facts().running == frozenset(), "what is dead is not waited for"
    board.begin(ONE)
    board.beat(ONE, beat(1.0))
    assert not board.died(ONE, "killed"), "it was heard of: its attempts are counted in the run directory"
    board.end(ONE)
    assert not board.died(ONE, "its node leaves"), "an orderly end is no death"
    for number in range(SILENT_DEATHS):  # before they can say anything at all
        assert board.died(ONE, "no memory\n left") == (number == SILENT_DEATHS - 1)
    sentence = "4 processes in a row ended before their search began; the last one: no memory left"
    assert board.facts().failures == {ONE: sentence}
    assert board.begin(ONE) == sentence


def test_everybody_is_told_to_stop_and_the_first_reason_stays() -> None:
    board = RunBoard(Limits())
    board.begin(ONE)
    assert board.facts(Stop("run", "SIGTERM")).stop == Stop("run", "SIGTERM")
    board.stop(Stop("run", "later"))
    assert board.beat(ONE, beat(1.0)) == Stop("run", "SIGTERM")
    assert board.begin(TWO) == Stop("run", "SIGTERM"), "nothing begins any more"


def test_one_trial_is_recalled_and_begins_again() -> None:
    board, resize = RunBoard(Limits()), Stop("node", "resized")
    assert not board.recall(ONE, resize), "it has not begun"
    board.begin(ONE)
    board.begin(TWO)
    assert board.recall(ONE, resize)
    assert (board.beat(ONE, beat(1.0)), board.beat(TWO, beat(1.0))) == (resize, None)
    board.end(ONE)
    assert not board.recall(ONE, resize)
    assert board.begin(ONE) is None


def test_limits_are_reached() -> None:
    now = [1_800_000_000.0]
    board = RunBoard(Limits(deadline=now[0] + 10), lambda: now[0])
    board.begin(ONE)
    assert board.beat(ONE, beat(1.0)) is None
    now[0] += 10
    assert board.beat(ONE, beat(1.0)) == Stop("run", "the deadline 2027-01-15 08:00 UTC has passed")
    # Of the whole run: what earlier commands spent, and all trials of this one.
    budget = RunBoard(Limits(device_hours=2))
    budget.add_run("run", HOUR)
    assert budget.beat(ONE, beat(0.5 * HOUR)) is None
    spent = Stop("run", "the budget of 2 device hours is spent")
    assert budget.beat(TWO, beat(0.5 * HOUR)) == spent
    assert way_on(spent) == "--resume and a larger --device-hours"
    assert way_on(Stop("run", "SIGTERM")) == "--resume"


def test_what_attempts_have_spent_is_read_from_their_heartbeats(tmp_path: Path) -> None:
    for name, content in (("0", {"device_seconds": 2.5}), ("1", {"device_seconds": 1.0}), ("2", {})):
        (tmp_path / "packs" / "pack-0000" / "attempts" / name).mkdir(parents=True)
        (tmp_path / "packs" / "pack-0000" / "attempts" / name / "heartbeat.json").write_text(json.dumps(content))
    assert (spent_seconds(str(tmp_path)), spent_seconds(str(tmp_path / "new"))) == (3.5, 0.0)
    (tmp_path / "driver.json").write_text(json.dumps({"device_seconds": 4.5}))
    assert spent_seconds(str(tmp_path)) == 4.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", 1000 + 90 * 60),
        ("1.5h", 1000 + 90 * 60),
        ("2d", 1000 + 2 * 86400),
        ("1970-01-01T02:00+01:00", 3600),
        ("1970-01-01T02:00Z", 7200),
        (None, None),
    ],
)
def test_a_deadline_is_a_duration_or_a_time(text: str | None, expected: float | None) -> None:
    assert RunLimits(deadline=text).deadline_at(1000.0) == expected


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"deadline": "soon"}, "deadline is 'soon', but it must be a duration such as 90m, 8h or 2d, or a time"),
        ({"deadline": "2026-11-21T18:00"}, "which names no zone; write 2026-11-21T18:00Z for UTC"),
        ({"device_hours": 0.0}, "device_hours is 0, but a budget must be above 0"),
    ],
)
def test_limits_that_are_none_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        RunLimits(**values)


def test_workers_are_a_number_or_a_range() -> None:
    assert [worker_range(text) for text in ("1", "3", "1:4", "2:2")] == [(1, 1), (3, 3), (1, 4), (2, 2)]
    for text in ("0", "4:1", "0:2", "2:", "many", "1:2:3", "-1"):
        with pytest.raises(InputError, match=f"workers is '{text}', but it must be a number from 1 on, or MIN:MAX"):
            worker_range(text)


class Answers:
    """A board's handle that answers at once."""

    def __init__(self, board: RunBoard) -> None:
        self.facts = self
        self.remote = board.facts


def test_the_driver_is_over_when_no_trial_is_left_or_its_grace_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(driving.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(driving.ray, "get", lambda facts, timeout: facts)
    board = RunBoard(Limits())
    driver = Driver(Answers(board))
    board.begin(ONE)
    driver.look()
    driver.request(Stop("run", "SIGTERM"))
    driver.look()
    assert board.beat(ONE, beat(1.0)) == Stop("run", "SIGTERM")
    assert not driver.over, "a trial saves its state"
    clock[0] = driving.GRACE_SECONDS
    driver.look()
    assert driver.over, "it has not returned in time"
    other = Driver(Answers(board))
    board.end(ONE)
    other.look()
    assert (other.stop, other.over) == (Stop("run", "SIGTERM"), True), "the flag was raised by a trial or a limit"


class Handle:
    """A board's handle that is asked in vain."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *_: Any) -> None:
        """No answer."""


def test_a_lost_board_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(*_: Any, **__: Any) -> Any:
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray, "get", get)
    driver, link = Driver(Handle()), BoardLink(Handle(), ("run", "pack-0000"), 0)
    driver.look()
    assert driver.stop == BOARD_LOST
    assert link.begin() == BOARD_LOST, "and so do its trials"


def test_of_two_drivers_the_later_one_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "start_board", lambda limits: Handle())
    monkeypatch.setattr(ray, "get", lambda *_, **__: None)
    monkeypatch.setattr(ray, "kill", lambda *_: None)
    monkeypatch.setattr(Driver, "look", lambda self: None)
    run = str(tmp_path / "run")
    with driving.driving() as first, driving.driving() as second:
        first.work_on(run, takeover=False)
        first.confirm(run)
        assert first.stop is None
        with pytest.raises(InputError, match="is being worked on by process"):
            second.work_on(run, takeover=False)
        second.work_on(run, takeover=True)
        first.confirm(run)
        second.confirm(run)
        assert first.stop == Stop("run", f"taken over by process {os.getpid()} of {socket.gethostname()}")
        assert second.stop is None
        second.complete = True
    driver = json.loads((tmp_path / "run" / "driver.json").read_text())
    assert (driver["session"], driver["generation"], driver["ended"]) == (second.session, 2, "complete")


def test_the_first_signal_raises_the_flag_and_a_second_one_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(driving.time, "monotonic", lambda: clock[0])
    driver = Driver(None)
    before = signal.getsignal(signal.SIGTERM)
    with driver.signals_taken():
        for _ in range(2):  # to the process and to its group: one wish
            os.kill(os.getpid(), signal.SIGTERM)
        assert driver.stop == Stop("run", "SIGTERM")
        clock[0] = 2.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert driver.ending(KeyboardInterrupt()) == ("stopped", "interrupted")
    assert driver.ending(None) == ("stopped", "SIGTERM")
    assert driver.ending(ValueError("no")) == ("failed", "no")
    driver.complete = True
    assert driver.ending(None) == ("complete", None)
