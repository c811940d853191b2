"""Who works on a run: signs of life, refusals, and two drivers of one run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import liveness
from cluster.liveness import DriverSign, is_live, read_driver, require_idle
from data_prep import storage
from data_prep.storage import InputError, UnreachableError

ELSEWHERE = {"time": 1000.0, "host": "elsewhere", "pid": 7, "session": "a", "generation": 1, "ended": None}
PATIENCE_S = 20


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, which comes soon."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_driver_is_live_while_its_sign_is_fresh_and_its_process_is_there() -> None:
    assert is_live(ELSEWHERE, now=1059.0)
    assert not is_live(ELSEWHERE, now=1060.0)
    assert not is_live({**ELSEWHERE, "ended": "stopped"}, now=1000.0)
    here = {**ELSEWHERE, "host": socket.gethostname(), "pid": os.getpid()}
    assert is_live(here, now=1001.0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not is_live({**here, "pid": gone.pid}, now=1001.0), "killed on this machine, it cannot come back"


def test_a_run_that_is_worked_on_is_refused(tmp_path: Path) -> None:
    run = str(tmp_path)
    require_idle(run, takeover=False)
    (tmp_path / "driver.json").write_text(json.dumps(ELSEWHERE))
    with pytest.raises(InputError) as refused:
        require_idle(run, takeover=False, now=1012.0)
    assert str(refused.value) == (
        f"{run} is being worked on by process 7 of elsewhere (last sign 12 s ago); wait, stop it, or take over with "
        "--takeover."
    )
    require_idle(run, takeover=True, now=1012.0)
    require_idle(run, takeover=False, now=1100.0)
    (tmp_path / "driver.json").write_text("{")
    assert read_driver(run) is None


FOREIGN: list[dict[str, Any]] = [
    {},
    {"time": "now", "host": socket.gethostname(), "pid": "7"},
    {"time": None, "pid": None, "generation": "first"},
    {"time": 1000.0, "host": socket.gethostname(), "pid": 0},
    {"time": 1000.0, "host": socket.gethostname(), "pid": 2**70},
]


@pytest.mark.parametrize("facts", FOREIGN)
def test_a_file_that_no_driver_wrote_keeps_nobody_out(tmp_path: Path, facts: dict[str, Any]) -> None:
    run = str(tmp_path)
    (tmp_path / "driver.json").write_text(json.dumps(facts))
    assert not is_live(facts, now=1001.0)
    require_idle(run, takeover=False, now=1001.0)
    with sign(tmp_path, "a", []).shown(done):
        assert (read_driver(run) or {})["generation"] == 1
    (tmp_path / "driver.json").write_text(json.dumps({"time": 1000.0}))
    with pytest.raises(InputError, match="is being worked on by process None of None"):
        require_idle(run, takeover=False, now=1001.0)


def sign(run: Path, session: str, taken: list[Any]) -> DriverSign:
    return DriverSign([str(run)], session, taken.append, progress=lambda: {str(run): 2.5}, device_hours=3.0)


def done(error: BaseException | None) -> tuple[str, str | None]:
    return ("complete", None) if error is None else ("failed", str(error))


def test_the_later_of_two_drivers_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.01)
    monkeypatch.setenv("STGS_SUBMISSION", "grid-3")
    first: list[Any] = []
    second: list[Any] = []
    # The name of a session decides nothing here.
    with sign(tmp_path, "z", first).shown(done):
        facts = read_driver(str(tmp_path))
        assert facts is not None
        assert facts["submission"] == "grid-3"
        assert (facts["device_seconds"], facts["device_hours"], facts["ended"]) == (2.5, 3.0, None)
        with sign(tmp_path, "b", second).shown(done):
            until(lambda: first)
            assert (first[0]["session"], first[0]["pid"]) == ("b", os.getpid())
    ended = read_driver(str(tmp_path))
    assert ended is not None
    # The first one, which ended last, left the file of the second as it was.
    assert (ended["session"], ended["ended"], len(first), second) == ("b", "complete", 1, [])


def test_of_two_that_begin_at_once_one_stays(tmp_path: Path) -> None:
    taken: dict[str, list[Any]] = {"a": [], "b": []}
    signs = {name: sign(tmp_path, name, taken[name]) for name in taken}
    for one in signs.values():
        one._generations[str(tmp_path)] = 1
        one._write(str(tmp_path))
    for name in ("a", "b", "a", "b"):
        signs[name]._renew(str(tmp_path))
    assert (len(taken["a"]), len(taken["b"])) == (1, 0)


@pytest.mark.parametrize(
    "error", [UnreachableError("no answer"), InputError("the credentials have expired"), PermissionError("no")]
)
def test_a_storage_that_takes_no_sign_stops_no_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.01)
    silent = threading.Event()
    refused = []
    write = storage.write

    def maybe(uri: str, data: bytes) -> str:
        if silent.is_set():
            refused.append(uri)
            raise error
        return write(uri, data)

    monkeypatch.setattr(storage, "write", maybe)

    def work() -> None:
        with sign(tmp_path, "a", []).shown(done):
            silent.set()
            until(lambda: len(refused) > 1)
            silent.clear()
            raise ValueError("the work's own")

    with pytest.raises(ValueError, match="the work's own"):
        work()
    facts = read_driver(str(tmp_path))
    assert facts is not None
    assert (facts["ended"], facts["reason"]) == ("failed", "the work's own")
    told = f"the sign of life of this driver cannot be renewed: {error}\n"
    assert capsys.readouterr().err == told, "once for the whole outage"


def test_storage_that_gives_no_answer_at_all_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(liveness, "_END_SECONDS", 0.1)
    hanging, over = threading.Event(), threading.Event()

    def hang(operation: str, uri: str, moment: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            hanging.set()
            over.wait(PATIENCE_S)
            over.set()

    def work() -> None:
        with storage.observed(hang), sign(tmp_path, "a", []).shown(done):
            assert hanging.wait(PATIENCE_S)
            raise ValueError("the work's own")

    begin = time.monotonic()
    with pytest.raises(ValueError, match="the work's own"):
        work()
    assert time.monotonic() - begin < PATIENCE_S / 2
    over.set()


def test_signs_of_an_outage_are_not_waited_for_longer_than_they_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the patience of the process, within which the driver does all else."""
    one = sign(tmp_path, "a", [])
    begun, now = False, 0.0
    patient = storage.patient

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def by_our_clock(seconds: float = 300.0, **options: Any) -> Any:
        return patient(seconds, **{**options, "clock": lambda: now, "sleep": sleep})

    def silent(operation: str, uri: str, moment: str) -> None:
        if begun:
            raise UnreachableError("no answer")

    monkeypatch.setattr(storage, "patient", by_our_clock)
    with storage.patient(), storage.observed(silent), one.shown(done):
        begun = True
    assert now == pytest.approx(liveness._LAST_SIGN_PATIENCE_S)
