"""Searches of a pack whose storage, device or tasks fail, without Ray: what ends, what goes on, and what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import WorkerCrashedError

from cluster import running, search_loop
from cluster.features import FeatureSource, open_features
from cluster.search_loop import DeviceLostError
from cluster.stopping import Stop
from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError
from stgs.population import PopulationSearch
from tests.cluster.pack_runs import AN_EPOCH, DEADLINE, UPDATES, Runs, after, failing
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


SILENT = UnreachableError("S3 does not answer.")
OF_STORAGE = [
    SILENT,
    NoSpaceError("The disk is full."),
    InputError("S3 refuses the credentials (ExpiredToken)."),
    PermissionError("no"),
]


@pytest.mark.parametrize("error", OF_STORAGE)
def test_what_only_watchers_read_is_left_out_where_storage_fails(
    runs: Runs, undisturbed: list[Any], error: Exception
) -> None:
    with failing(error, "heartbeat.json", "log.txt", "tensorboard"):
        assert runs.search() is None
    assert runs.outcome() == undisturbed
    assert not runs.path(0, "heartbeat.json").exists()


@pytest.mark.parametrize(
    ("operation", "word"),
    [("write", "state-"), ("create", "result.json"), ("write", "curves.parquet"), ("create", "claim.json")],
)
@pytest.mark.parametrize("error", OF_STORAGE)
def test_a_search_that_cannot_save_stops_in_one_sentence(
    runs: Runs, undisturbed: list[Any], operation: str, word: str, error: Exception
) -> None:
    # What falls silent after it has taken a state may be this machine's way to it.
    scope = "node" if error is SILENT and word in ("result.json", "curves.parquet") else "run"
    with failing(error, word, operation=operation):
        assert runs.search() == Stop(scope, str(error))
    if word != "claim.json":
        ended = "drained" if scope == "node" else "stopped"
        assert (runs.beat()["ended"], runs.beat()["reason"]) == (ended, str(error))
    assert runs.failures() == [None, None]
    assert runs.search() is None
    assert runs.outcome() == undisturbed


def test_a_state_that_cannot_be_had_now_is_not_lost(runs: Runs) -> None:
    runs.search(after(AN_EPOCH + 1, DEADLINE))
    with failing(UnreachableError("S3 does not answer."), "state-", operation="read"):
        assert runs.search() == Stop("run", "S3 does not answer.")
    assert runs.search() is None
    assert f"continues at epoch 1, update {UPDATES + 1}" in runs.log(2)


def test_a_machine_that_is_cut_off_is_left_once_and_the_run_ends_if_that_does_not_help(
    runs: Runs, undisturbed: list[Any]
) -> None:
    second = f"state-{2 * UPDATES}.pt"
    with failing(SILENT, second):
        assert runs.search() == Stop("node", str(SILENT)), "it has saved a state"
        assert runs.search() == Stop("run", str(SILENT)), "it has not"
    with failing(SILENT, "packs", operation="list"):
        assert runs.search() == Stop("run", str(SILENT)), "it has not even begun"
    assert runs.failures() == [None, None]
    assert runs.search() is None
    assert runs.outcome() == undisturbed


def test_a_run_that_is_to_end_goes_on_nowhere(runs: Runs) -> None:
    with failing(SILENT, f"state-{UPDATES + 1}.pt"):
        assert runs.search(after(AN_EPOCH + 1, DEADLINE)) == Stop("run", str(SILENT))
        assert runs.search(after(AN_EPOCH + 1, Stop("node", "it leaves"))).scope == "node"


def test_the_last_words_of_a_search_wait_half_a_minute_in_all(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    patient, now, begun = storage.patient, 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def by_our_clock(seconds: float = 300.0, **options: Any) -> Any:
        return patient(seconds, **{**options, "clock": lambda: now, "sleep": sleep, "say": len})

    def silent(operation: str, uri: str, moment: str) -> None:
        if begun:
            raise SILENT

    def stop() -> Stop | None:
        begun.append(runs.states())  # from the first question on
        return DEADLINE if len(begun) == 2 else None

    monkeypatch.setattr(storage, "patient", by_our_clock)
    with storage.observed(silent):
        assert runs.search(stop, patience_s=100.0) == Stop("run", str(SILENT))
    assert now == pytest.approx(130), "after a state that could not be saved"


def test_the_log_is_never_behind_the_states(runs: Runs) -> None:
    """Whoever counts the epochs that were run after a death finds at least those that need not be run again."""
    seen = []

    def look(operation: str, uri: str, moment: str) -> None:
        if (operation, moment) == ("write", "before") and "/state-" in uri:
            seen.append(runs.log(0).count(" epoch "))

    with storage.observed(look):
        runs.search()
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(("between", "rows"), [(900.0, [2, 6]), (1100.0, [2, 6]), (2100.0, [2, 4, 6])])
def test_event_files_take_a_twentieth_of_the_time_at_most(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, between: float, rows: list[int]
) -> None:
    """Of 100 s each time, with `between` seconds from state to state."""
    now, written = 0.0, []

    def move(operation: str, uri: str, moment: str) -> None:
        nonlocal now
        now += between if (operation, moment) == ("write", "before") and "/state-" in uri else 0.0

    def write(attempt: Any, points: Any, shown: list[Any], start: float) -> None:
        nonlocal now
        now += 100.0
        written.append(len(shown))

    monkeypatch.setattr(running.time, "monotonic", lambda: now)
    monkeypatch.setattr(running, "write_event_files", write)
    with storage.observed(move):
        runs.search()
    assert written == rows


DEVICE_ERRORS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand more"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("No CUDA GPUs are available"),
]


@pytest.mark.parametrize("error", DEVICE_ERRORS)
def test_a_device_that_fails_ends_the_process_and_no_point(
    runs: Runs, undisturbed: list[Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(PopulationSearch, "_dev_batch", fail)
        with pytest.raises(DeviceLostError, match="the device failed"):
            runs.search()
    assert runs.failures() == [None, None]
    assert runs.beat()["ended"] is None
    assert "Traceback" in runs.log(0)
    assert str(error) in runs.log(0)
    assert runs.search() is None
    assert runs.outcome() == undisturbed


def test_a_device_that_fails_in_three_processes_fails_the_points(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise DEVICE_ERRORS[0]

    monkeypatch.setattr(search_loop, "_build", fail)
    for _ in range(3):
        with pytest.raises(DeviceLostError):
            runs.search()
    assert runs.search() is None
    assert runs.failures()[0] == (
        "3 attempts in a row ended without finishing an epoch; see packs/pack-0000/attempts/2/log.txt"
    )


def test_too_little_memory_is_the_searchs_own(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. (CUDA error words)")

    monkeypatch.setattr(search_loop, "_build", fail)
    assert runs.search() is None
    assert str(runs.failures()[0]).startswith("OutOfMemoryError: CUDA out of memory.")


def test_a_search_that_cannot_read_its_clips_stops(
    runs: Runs, undisturbed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: Any) -> Any:
        raise UnreachableError("S3 does not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(PopulationSearch, "_dev_batch", unreadable)
        assert runs.search() == Stop("run", "S3 does not answer.")
    assert runs.beat()["ended"] == "stopped"
    assert runs.search() is None
    assert runs.outcome() == undisturbed


def test_a_lost_task_is_no_failure_of_the_search(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> Any:
        raise WorkerCrashedError

    monkeypatch.setattr(PopulationSearch, "_dev_batch", lost)
    for _ in range(3):
        with pytest.raises(WorkerCrashedError):
            runs.search()
    assert runs.failures() == [None, None]
    assert runs.beat()["ended"] is None
    assert "WorkerCrashedError" in runs.log(0)
    assert runs.search() is None
    assert "3 attempts in a row" in str(runs.failures()[0])
