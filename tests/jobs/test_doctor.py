"""`stgs doctor`: its lines, its JSON and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import doctor
from data_prep import storage
from jobs.doctor import main

SUBPROCESS_S = 60


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on the disk and the GPUs of whoever runs them."""
    monkeypatch.setattr(doctor, "_FULL_SHARE", 1.1)
    monkeypatch.setattr(doctor, "_LEAST_FREE_BYTES", 0)
    monkeypatch.setattr(doctor, "_LEAST_SHARED_BYTES", 0)
    monkeypatch.setattr(doctor, "_LEAST_OPEN_FILES", 0)
    monkeypatch.setattr(doctor, "nvidia", lambda timeout_s: (None, ()))
    monkeypatch.setattr(doctor, "_bus_gpus", lambda: 0)


def test_this_machine_and_a_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--storage", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 1} checks, 0 failed"
    assert all(line.startswith("ok    ") for line in lines[:-1])
    assert sum(f"here  storage {tmp_path}  " in line for line in lines) == 6


def test_a_failure_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "create", storage.write)
    assert main(["--storage", str(tmp_path), "--json"]) == 1
    told = json.loads(capfd.readouterr().out)
    assert told["ok"] is False
    (check,) = [check for check in told["checks"] if check["level"] == "FAIL"]
    assert check["subject"] == "exclusive create"
    assert check["way_out"].startswith("use a storage that honours If-None-Match")


def test_wrong_use_is_told_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--storage", "ftp://there"]) == 2
    assert "'ftp://there' has an unknown scheme" in capsys.readouterr().err
    assert main(["--timeout", "0"]) == 2
    assert "--timeout is 0, but a node needs some seconds to answer." in capsys.readouterr().err


def test_the_address_of_a_dashboard_gets_its_own_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "http://127.0.0.1:8265"
    way_out = f"give HOST:6379 of its head, or use 'stgs submit --address {address} doctor'.\n"
    assert main(["--address", address]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"stgs doctor: --address is {address}, a dashboard, but")
    assert said.endswith(way_out)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main([]) == 2
    assert "RAY_ADDRESS is http" in capsys.readouterr().err


def test_without_a_cluster_ray_is_not_loaded(repository: Path) -> None:
    script = "import sys; from jobs.doctor import main; main([]); print(sorted({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, timeout=SUBPROCESS_S
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.ray
def test_a_cluster_is_asked_node_by_node(ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--address", "auto", "--storage", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok    here  storage") for line in lines) == 6
    assert sum(line.startswith("ok    node") and "  storage " in line for line in lines) == 7
    assert list(tmp_path.iterdir()) == []
