"""Searches of a pack that are stopped, killed, or fail, without Ray: what they leave, and how they go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import running, search_loop
from cluster.attempts import read_result
from cluster.features import FeatureSource, open_features
from cluster.stopping import Stop
from data_prep.storage import InputError, NoSpaceError
from tests.cluster.pack_runs import AN_EPOCH, DEADLINE, EPOCHS, PACK, UPDATES, Death, Runs, after, failing
from tests.planted import make_features


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> list[Any]:
    runs = Runs(tmp_path_factory.mktemp("undisturbed"), source)
    assert runs.search() is None
    return runs.outcome()


@pytest.fixture
def runs(tmp_path: Path, source: FeatureSource) -> Runs:
    return Runs(tmp_path / "run", source)


def test_a_search_that_is_stopped_again_and_again_ends_as_an_undisturbed_one(
    runs: Runs, undisturbed: list[Any]
) -> None:
    stops, seconds = 0, 0.0
    while stop := runs.search(after(2, DEADLINE)):
        assert stop == DEADLINE
        beat = runs.beat()
        assert (beat["ended"], beat["reason"]) == ("stopped", DEADLINE.reason)
        assert f"stopped at update {beat['update']} after {beat['epoch']} epochs: {DEADLINE.reason}" in runs.log(stops)
        stops, seconds = stops + 1, seconds + beat["device_seconds"]
    assert stops == (EPOCHS * AN_EPOCH - 1) // 2
    assert runs.outcome() == undisturbed
    beat = runs.beat()
    assert (beat["ended"], beat["epoch"], beat["epochs"]) == ("complete", EPOCHS, EPOCHS)
    results = [read_result(str(runs.run), point.id) or {} for point in PACK.points]
    assert sum(result["device_seconds"] for result in results) == pytest.approx(seconds + beat["device_seconds"])
    assert runs.states() == []


def test_a_node_that_leaves_drains_the_search(runs: Runs) -> None:
    notice = Stop("node", "the node gets a spot notice")
    assert runs.search(after(AN_EPOCH + 1, notice)) == notice
    assert (runs.beat()["ended"], runs.beat()["reason"]) == ("drained", notice.reason)
    assert f"0/state-{UPDATES + 1}.pt" in runs.states()


def test_a_stop_before_the_first_update_leaves_nothing_to_go_on_from(runs: Runs, undisturbed: list[Any]) -> None:
    assert runs.search(lambda: DEADLINE) == DEADLINE
    assert runs.states() == []
    assert runs.beat()["dev_auc"] is None
    assert runs.search() is None
    assert runs.outcome() == undisturbed


def test_states_inside_an_epoch_are_what_a_killed_search_goes_on_from(runs: Runs, undisturbed: list[Any]) -> None:
    for questions in (3, 3):
        with pytest.raises(Death):
            runs.search(after(questions, Death()), checkpoint_minutes=0.0)
    # Each attempt dies after an update whose state it could not save any more.
    assert runs.states() == ["1/state-3.pt", "1/state-4.pt"]
    assert "continues at epoch 0, update 2" in runs.log(1)
    assert runs.search() is None
    assert "continues at epoch 0, update 4" in runs.log(2)
    assert runs.outcome() == undisturbed


def test_a_heartbeat_says_how_far_each_point_is(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "HEARTBEAT_SECONDS", 0.0)
    beats: list[dict[str, Any]] = []

    def watch() -> Stop | None:
        beats.append(runs.beat())
        return None

    assert runs.search(watch, session="tuesday") is None
    first, inside, later = beats[0], beats[2], beats[AN_EPOCH + 1]
    assert (first["epoch"], first["update"], first["dev_auc"], first["epoch_seconds"]) == (0, 0, None, None)
    assert first["points"] == {
        point.id: {"epoch": 0, **dict.fromkeys([name for name in running_columns() if name != "epoch"])}
        for point in PACK.points
    }
    assert (inside["epoch"], inside["update"]) == (0, 1), "written inside an epoch, too"
    assert 0 < inside["device_seconds"] < later["device_seconds"]
    assert later["epoch"] == 1
    assert later["dev_auc"] == max(facts["dev_auc"] for facts in later["points"].values())
    assert 0 < later["epoch_seconds"] < later["device_seconds"]
    same = {name: later[name] for name in ("session", "epochs", "first_epoch", "world", "device", "ended", "reason")}
    assert same == {
        "session": "tuesday", "epochs": EPOCHS, "first_epoch": 0, "world": 1, "device": "cpu", "ended": None,
        "reason": None,
    }  # fmt: skip
    facts = later["points"][PACK.points[1].id]
    assert facts["epoch"] == 1
    assert 0 < facts["normalised_entropy_gamma"] <= 1
    assert facts["entropy_gamma"] > facts["normalised_entropy_gamma"]


def running_columns() -> list[str]:
    entropies = [f"{kind}_{name}" for kind in ("entropy", "normalised_entropy") for name in ("alpha", "beta", "gamma")]
    return ["epoch", "dev_auc", *entropies]


def test_the_log_names_points_and_event_files_lie_by_point(runs: Runs) -> None:
    told: list[dict[str, Any]] = []
    runs.search(report=told.append)
    log = runs.log(0)
    for epoch in range(1, EPOCHS + 1):
        assert f" epoch {epoch} of {EPOCHS}: {PACK.points[0].id}: dev AUC 0." in log
    assert log.strip().endswith(f"complete at update {EPOCHS * UPDATES} after {EPOCHS} epochs")
    assert [(row["epoch"], row["epochs"]) for row in told] == [(epoch, EPOCHS) for epoch in range(1, EPOCHS + 1)]
    assert told[-1]["device_seconds"] > told[0]["device_seconds"] > 0
    for point in PACK.points:
        (file,) = runs.path(0, "tensorboard", point.id).iterdir()
        assert file.name.startswith("events.out.tfevents.")
        assert file.stat().st_size > 500


def broken(*_: Any) -> Any:
    raise ZeroDivisionError("a defect\nwith details")


def test_an_error_of_the_search_fails_its_points_for_the_session(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    original = search_loop._build
    monkeypatch.setattr(search_loop, "_build", broken)
    assert runs.search(session="one") is None
    sentence = "ZeroDivisionError: a defect; see packs/pack-0000/attempts/0/log.txt"
    assert runs.failures() == [sentence] * 2
    assert "Traceback" in runs.log(0)
    assert "with details" in runs.log(0)
    assert runs.search(session="one") is None
    assert not runs.path(1).exists(), "the session does not try again"
    monkeypatch.setattr(search_loop, "_build", original)
    assert runs.search(session="two") is None
    assert all(read_result(str(runs.run), point.id) for point in PACK.points)


def test_wrong_input_is_told_in_its_own_sentence(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise InputError("length is 7, but it must be 4.")

    monkeypatch.setattr(search_loop, "_continue", refuse)
    assert runs.search() is None
    assert runs.failures() == ["length is 7, but it must be 4."] * 2


def test_an_error_inside_the_search_ends_its_heartbeat(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_loop, "_commit", broken)
    assert runs.search() is None
    assert runs.beat()["ended"] == "failed"
    assert str(runs.beat()["reason"]).startswith("ZeroDivisionError")


@pytest.mark.parametrize("where", ["stop", "report"])
def test_errors_of_the_engine_are_not_the_search_s(runs: Runs, where: str) -> None:
    with pytest.raises(ZeroDivisionError):
        runs.search(**{where: broken})
    assert runs.failures() == [None, None]
    assert "the engine failed (ZeroDivisionError" in runs.log(0)


def die(runs: Runs, questions: int, **job: Any) -> None:
    with pytest.raises(Death):
        runs.search(after(questions, Death()), **job)


def test_three_attempts_without_a_new_epoch_fail_their_points(runs: Runs) -> None:
    die(runs, AN_EPOCH + 1)  # it has finished an epoch
    for _ in range(2):
        die(runs, 2)
    assert runs.search(lambda: DEADLINE) == DEADLINE  # it has ended orderly
    for _ in range(2):
        die(runs, 2)
    die(runs, 2, session="another")
    for _ in range(3):
        die(runs, 2)
    assert runs.search() is None
    sentence = "3 attempts in a row ended without finishing an epoch; see packs/pack-0000/attempts/9/log.txt"
    assert runs.failures() == [sentence] * 2
    assert not runs.path(10).exists()
    assert runs.search(session="a third") is None
    assert all(read_result(str(runs.run), point.id) for point in PACK.points)


def test_an_epoch_that_is_never_saved_is_new_only_once(runs: Runs) -> None:
    for _ in range(4):
        die(runs, AN_EPOCH + 1, checkpoint_epochs=2)
    assert runs.search() is None
    assert "attempts/3/log.txt" in str(runs.failures()[0])


def test_a_failure_that_cannot_be_told_stops_the_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_loop, "_build", broken)
    with failing(NoSpaceError("The disk is full."), "failed.json"):
        stop = runs.search()
    assert stop is not None
    assert stop.scope == "run"
    assert "a defect" in stop.reason
    assert "The disk is full." in stop.reason


def test_a_stop_while_a_node_leaves_keeps_its_state_readable(runs: Runs) -> None:
    runs.search(after(1, Stop("node", "it leaves")))
    state = torch.load(runs.path(0, "state-1.pt"), weights_only=True)
    assert state["points"] == [point.id for point in PACK.points]
    assert state["search"]["sums"]["done"] == {"weights": 1, "architecture": 0}
