"""What the doctor says of machines, storage and nodes; most machines are planted facts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster import doctor, doctor_nodes, doctor_storage
from cluster.doctor import Check, Facts, Gpu, Place, collect, judge, runs_on, this_machine
from cluster.doctor_storage import check_storage, probe_root, share
from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError
from tests.s3 import s3_bucket

GIBIBYTE = 2**30
# What torch 2.10.0 of the registry, built for CUDA 12.8, lists.
ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
V100, H200 = Gpu("Tesla V100-SXM2-16GB", (7, 0)), Gpu("NVIDIA H200", (9, 0))
SUBJECTS = ["write", "read", "exclusive create", "list", "clock", "delete"]


def node(**other: Any) -> Facts:
    """A healthy node with 8 V100, but for `other`."""
    facts: dict[str, Any] = {
        "python": "3.11.7",
        "ray": "2.60.0",
        "torch": "2.10.0",
        "driver": "580.95.05",
        "gpus": (V100,) * 8,
        "bus_gpus": 8,
        "torch_cuda": "12.8",
        "architectures": ARCHITECTURES,
        "torch_gpus": 8,
        "disk": "/tmp/ray",
        "disk_free": 200 * GIBIBYTE,
        "disk_total": 250 * GIBIBYTE,
        "shm": 240 * GIBIBYTE,
        "cpus": 64,
        "memory": 480 * GIBIBYTE,
        "open_files": 65536,
    }
    return Facts(**facts | other)


PLACE = Place(name="10.0.0.3", store=140 * GIBIBYTE, ray_gpus=8, skew=0.2, uncertainty=0.1)


def failures(facts: Facts, place: Place = PLACE) -> list[str]:
    return [check.line for check in judge(facts, place, node()) if check.level == "FAIL"]


def test_a_healthy_node_has_a_line_for_each_check() -> None:
    lines = [check.line for check in judge(node(), PLACE, node())]
    assert lines == [
        "ok    node 10.0.0.3  Python  3.11.7",
        "ok    node 10.0.0.3  Ray  2.60.0",
        "ok    node 10.0.0.3  torch  2.10.0",
        "ok    node 10.0.0.3  driver  580.95.05",
        "ok    node 10.0.0.3  GPU  8 x Tesla V100-SXM2-16GB, compute capability 7.0",
        "ok    node 10.0.0.3  disk  200.0 GiB of 250.0 GiB free in /tmp/ray",
        "ok    node 10.0.0.3  /dev/shm  240.0 GiB, the object store 140.0 GiB",
        "ok    node 10.0.0.3  machine  64 CPUs, 480.0 GiB memory",
        "ok    node 10.0.0.3  open files  at most 65,536",
        "ok    node 10.0.0.3  clock  +0.2 s against this machine",
    ]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"python": "3.11.9"}, "Python  3.11.9, but the head has 3.11.7; run the same container image on every node"),
        ({"ray": "2.59.0"}, "Ray  2.59.0, but the head has 2.60.0; "),
        ({"torch": None}, "torch  not installed; install requirements.lock there"),
        ({"driver": "470.256.02"}, "driver  470.256.02, but CUDA 12.8 of torch needs 525 or newer; install branch 580"),
        ({"driver": "590.44.01"}, "driver  590.44.01, but 580 is the last branch for Tesla V100-SXM2-16GB; "),
        ({"gpus": (), "driver": None}, "GPU  8 GPUs there, but nvidia-smi shows none; install a driver (580 is the "),
        ({"architectures": ("sm_75", "sm_80")}, "compute capability 7.0, but torch is built for sm_75 sm_80; "),
        ({"architectures": (), "torch_cuda": None}, "compute capability 7.0, but this torch has no GPU code; "),
        ({"torch_gpus": 0}, "CUDA  torch counts 0 GPUs, nvidia-smi 8; "),
        ({"torch_gpus": None, "architectures": (), "torch_cuda": None}, "CUDA  torch does not load; "),
        ({"gpus": (V100,) * 7, "torch_gpus": 7}, "Ray's GPUs  Ray counts 8, nvidia-smi 7; "),
        ({"disk_free": 12 * GIBIBYTE}, "disk  12.0 GiB of 250.0 GiB free in /tmp/ray; Ray stops spilling at 95 %; "),
        ({"disk_free": 4 * GIBIBYTE, "disk_total": 20 * GIBIBYTE}, "disk  4.0 GiB of 20.0 GiB free in /tmp/ray; "),
        ({"shm": GIBIBYTE // 16}, "/dev/shm  0.1 GiB, the object store 140.0 GiB; start the container with a larger"),
        ({"memory": GIBIBYTE}, "machine  64 CPUs, 1.0 GiB memory; use a larger machine"),
        ({"open_files": 1024}, "open files  at most 1,024; raise it with ulimit -n 65536 before ray start"),
    ],
)
def test_one_fault_is_one_line_with_a_way_out(other: dict[str, Any], expected: str) -> None:
    (line,) = failures(node(**other))
    assert line.startswith("FAIL  node 10.0.0.3  ")
    assert expected in line


def test_newer_gpus_run_on_newer_drivers() -> None:
    assert failures(node(gpus=(H200,), driver="590.44.01", torch_gpus=1), dataclasses.replace(PLACE, ray_gpus=1)) == []


def test_a_node_without_gpus_needs_no_driver() -> None:
    head = node(gpus=(), bus_gpus=0, driver=None, torch_gpus=None, torch_cuda=None, architectures=())
    assert failures(head, dataclasses.replace(PLACE, ray_gpus=0)) == []
    # Without a cluster no object store is known.
    assert failures(dataclasses.replace(head, shm=2**26), Place(name="here"))[0].endswith("a larger --shm-size")


@pytest.mark.parametrize(("skew", "uncertainty", "wrong"), [(11, 0.5, 1), (-11, 0.5, 1), (11, 2, 0), (9, 0, 0)])
def test_a_clock_is_wrong_by_more_than_its_measurement_may_be(skew: float, uncertainty: float, wrong: int) -> None:
    lines = failures(node(), dataclasses.replace(PLACE, skew=skew, uncertainty=uncertainty))
    assert len(lines) == wrong
    assert all("s against this machine; set both by NTP" in line for line in lines)


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((7, 0), ARCHITECTURES, True),
        ((6, 1), ARCHITECTURES, False),
        ((8, 9), ARCHITECTURES, True),  # code for 8.6 runs on 8.9
        ((8, 0), ("sm_86",), False),  # but not on 8.0
        ((12, 1), ARCHITECTURES, True),
        ((11, 0), ARCHITECTURES, False),
        ((11, 0), ("sm_90", "compute_90"), True),  # intermediate code is translated for what is newer
        ((8, 6), ("compute_90",), False),
        ((9, 0), ("sm_90a",), True),
        ((10, 0), ("compute_90a",), False),  # the letter binds it to 9.0
    ],
)
def test_gpus_that_machine_code_runs_on(
    capability: tuple[int, int], architectures: tuple[str, ...], expected: bool
) -> None:
    assert runs_on(capability, architectures) is expected


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a tool of that name, with this script, in front of all others."""

    def put(script: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def test_facts_of_the_drivers_tool(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi("printf 'Tesla V100-SXM2-16GB, 580.95.05, 7.0\\nNVIDIA H200, 580.95.05, 9.0\\n'")
    assert doctor.nvidia() == ("580.95.05", (V100, H200))
    # Old drivers know no compute_cap.
    nvidia_smi('case "$*" in *compute_cap*) exit 2;; esac; echo "Tesla V100-SXM2-16GB, 470.57.02"')
    assert doctor.nvidia() == ("470.57.02", (Gpu("Tesla V100-SXM2-16GB", None),))
    nvidia_smi("echo No devices were found; exit 6")
    assert doctor.nvidia() == (None, ())


def test_this_machine_is_told_by_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "nvidia", lambda timeout_s: (None, ()))
    facts = collect(str(tmp_path))
    assert facts.cpus == len(os.sched_getaffinity(0))
    assert 0 < facts.disk_free < facts.disk_total
    assert (facts.ray, facts.torch) == ("2.60.0", "2.10.0")
    versions = [check for check in judge(facts, this_machine(), facts) if check.subject in ("Python", "Ray", "torch")]
    assert [check.level for check in versions] == ["ok"] * 3


def test_a_driver_that_hangs_is_told_as_the_driver(
    tmp_path: Path, nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_DRIVER_S", 0.3)
    nvidia_smi("exec sleep 60")
    begun = time.monotonic()
    facts = collect(str(tmp_path))
    assert time.monotonic() - begun < 20
    (check,) = [check for check in judge(facts, this_machine(), facts) if check.subject in ("driver", "GPU")]
    assert check.line.endswith(
        "driver  nvidia-smi gives no answer; the driver hangs: look for Xid in dmesg, and restart the machine"
    )

    # The tool answers, but torch waits for the same driver.
    nvidia_smi("printf 'Tesla V100-SXM2-16GB, 580.95.05, 7.0\\n'")
    monkeypatch.setattr(doctor, "_DRIVER_S", 15.0)
    monkeypatch.setattr(doctor, "_TORCH_SCRIPT", "import time; time.sleep(60)")
    facts = collect(str(tmp_path), timeout_s=4.0)
    (check,) = [check for check in judge(facts, this_machine(), facts) if check.subject == "CUDA"]
    assert (check.level, check.detail) == ("FAIL", "torch gives no answer")


def test_a_process_that_cannot_be_killed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    spared: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(doctor, "_KILL_S", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", lambda process: spared.append(process))
        with pytest.raises(subprocess.TimeoutExpired):
            doctor._answer(["sleep", "60"], 0.2)
    (process,) = spared
    assert process.poll() is None
    process.kill()
    process.wait()


def tried(uri: str) -> dict[str, Check]:
    with probe_root(uri) as root:
        share(root)
        return {check.subject: check for check in check_storage(root, "here", shared=True)}


def failed(checks: dict[str, Check]) -> list[str]:
    return [subject for subject, check in checks.items() if check.level == "FAIL"]


def test_a_local_folder_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    checks = tried(str(tmp_path / "new" / "store"))
    assert list(checks) == ["shared", *SUBJECTS]
    assert failed(checks) == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as uri:
        yield uri


def test_a_bucket_passes_and_is_left_as_it_was(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(tried(f"{bucket}/runs")) == []
    assert storage.list(bucket) == []
    late = datetime(2000, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(doctor_storage.time, "time", late.timestamp)
    checks = tried(bucket)
    assert failed(checks) == ["clock"]
    assert checks["clock"].way_out == "set this machine's clock by NTP (chrony)"


def test_a_storage_that_ignores_exclusive_creation_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "create", storage.write)
    checks = tried(str(tmp_path))
    assert failed(checks) == ["exclusive create"]
    assert "so that a point could be committed twice; use a storage that honours" in checks["exclusive create"].line
    assert list(tmp_path.iterdir()) == []


def test_a_listing_that_lags_behind_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = storage.list
    monkeypatch.setattr(storage, "list", lambda uri: [])
    with probe_root(str(tmp_path)) as root:
        checks = {check.subject: check for check in check_storage(root, "here", shared=False)}
        monkeypatch.setattr(storage, "list", whole)
    assert failed(checks) == ["list"]


def test_a_folder_that_is_not_shared_fails(tmp_path: Path) -> None:
    with probe_root(str(tmp_path)) as root:
        checks = {check.subject: check for check in check_storage(root, "node", shared=True)}
    assert failed(checks) == ["shared"]
    assert "give an s3:// URI, or a file system that all nodes mount" in checks["shared"].way_out


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("s3://b: S3 does not answer; check the network."),
        NoSpaceError("the disk of /runs is full; free some."),
        PermissionError(13, "Permission denied"),
    ],
)
def test_a_storage_that_takes_nothing_fails_once_and_in_a_sentence(tmp_path: Path, error: Exception) -> None:
    def refuse(operation: str, uri: str, moment: str) -> None:
        if operation in ("write", "create"):
            raise error

    with storage.patient(0), storage.observed(refuse), probe_root(str(tmp_path)) as root:
        (check,) = check_storage(root, "here", shared=False)
    assert (check.level, check.subject) == ("FAIL", "write")
    assert str(error).removeprefix("[Errno 13] ").rstrip(".") in check.detail


@pytest.mark.parametrize("operation", ["write", "create", "read", "list", "delete"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_stays_behind_whatever_fails_once(tmp_path: Path, operation: str, moment: str) -> None:
    fails = [UnreachableError("no answer")]

    def fail_once(doing: str, uri: str, when: str) -> None:
        if (doing, when) == (operation, moment) and fails:
            raise fails.pop()

    with storage.patient(0), storage.observed(fail_once), probe_root(str(tmp_path / "store")) as root:
        checks = check_storage(root, "here", shared=False)
    assert [check.level for check in checks].count("FAIL") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_node_removes_what_only_it_can_see(tmp_path: Path) -> None:
    fails = [UnreachableError("no answer")]

    def fail_once(doing: str, uri: str, when: str) -> None:
        if (doing, when) == ("delete", "before") and fails:
            raise fails.pop()

    with storage.patient(0), storage.observed(fail_once):
        check_storage(str(tmp_path / "disk of the node" / "probes"), "node", shared=True)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scheme_is_wrong_use() -> None:
    with pytest.raises(InputError, match="unknown scheme"), probe_root("ftp://there"):
        pass


@pytest.mark.ray
def test_nodes_answer_and_their_storage_is_tried(ray_session: None, tmp_path: Path) -> None:
    checks = doctor_nodes.check_nodes(timeout_s=60)
    subjects = [check.subject for check in checks]
    assert subjects[:3] == ["Python", "Ray", "torch"]
    assert subjects[-1] == "clock"
    assert [check.line for check in checks if check.level == "FAIL" and check.subject not in ("GPU", "disk")] == []
    with probe_root(str(tmp_path)) as root:
        share(root)
        checks = doctor_nodes.check_storage_on_nodes(root, "runs", timeout_s=60)
    assert [(check.level, check.subject) for check in checks] == [("ok", name) for name in ["shared", *SUBJECTS]]
    assert checks[0].place.endswith("storage runs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_node_that_does_not_answer_fails(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_nodes, "_node_facts", lambda folder, timeout_s: lambda: threading.Event().wait())
    (check,) = doctor_nodes.check_nodes(timeout_s=0.5)
    assert check.level == "FAIL"
    assert check.detail == "no answer within 0.5 s"

    def broken() -> None:
        raise ImportError("No module named 'cluster'")

    monkeypatch.setattr(doctor_nodes, "_node_facts", lambda folder, timeout_s: broken)
    (check,) = doctor_nodes.check_nodes(timeout_s=60)
    assert check.detail == "ImportError: No module named 'cluster'"
