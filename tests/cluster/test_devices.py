"""How many devices a search may count on, and what memory they have, in clusters that are described and not started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import devices
from cluster.devices import (
    chosen_device,
    device_memory,
    free_resources,
    planned_devices,
    require_processes,
    startable_devices,
    startable_types,
)
from data_prep.storage import InputError

GIBIBYTE = 2**30
HEAD = {"CPU": 8.0, "memory": 32.0 * GIBIBYTE, "node:__internal_head__": 1.0}
GPU_NODE = {"CPU": 64.0, "GPU": 8.0, "memory": 256.0 * GIBIBYTE}
# As Ray's launcher writes it on the head node, where the resources of every node type are filled in.
LAUNCHER = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 8}, "max_workers": 0},
        "small": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 10},
        "large": {"resources": {"CPU": 64, "GPU": 8}, "max_workers": 2},
    },
}


def fake_cluster(
    monkeypatch: pytest.MonkeyPatch,
    alive: list[dict[str, float]],
    *,
    dead: tuple[dict[str, float], ...] = (),
    reported: dict[str, int] | None = None,
    launcher: dict[str, Any] | None = None,
) -> None:
    nodes = [{"NodeID": str(i), "Alive": True, "Resources": resources} for i, resources in enumerate(alive)]
    nodes += [{"NodeID": "dead", "Alive": False, "Resources": resources} for resources in dead]
    monkeypatch.setattr(devices.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(devices.state, "get_max_resources_from_cluster_config", lambda: reported)
    monkeypatch.setattr(devices, "_launcher_config", lambda head_id: launcher)


def test_devices_that_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cluster(monkeypatch, [HEAD, GPU_NODE], dead=(GPU_NODE,))
    assert planned_devices("cuda", threads=4) == 8
    assert planned_devices("cpu", threads=1) == 72
    assert planned_devices("cpu", threads=48) == 1, "CPUs of two nodes make no process"
    fake_cluster(monkeypatch, [HEAD])
    assert planned_devices("cuda", threads=1) == 1, "a search is planned although no device is there yet"


def test_devices_that_the_autoscaler_may_still_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cluster(monkeypatch, [HEAD], reported={"CPU": 136, "GPU": 16})
    assert (planned_devices("cuda", 1), planned_devices("cpu", 4)) == (16, 34)
    fake_cluster(monkeypatch, [HEAD, GPU_NODE], launcher=LAUNCHER)
    # Three workers at most: two large nodes (one of them alive), one small.
    assert planned_devices("cuda", 1) == 17
    assert planned_devices("cpu", 8) == (8 + 2 * 64) // 8, "4 CPUs of a small node make no process of 8 threads"
    assert startable_devices({}, "GPU", 1) == 0


def test_node_types_that_hold_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cluster(monkeypatch, [HEAD], launcher=LAUNCHER)
    assert startable_types({"CPU": 1, "GPU": 1}) == ["small", "large"]
    assert startable_types({"CPU": 5}) == ["large"]
    fake_cluster(monkeypatch, [HEAD])
    assert startable_types({"CPU": 1}) == []


def test_gpus_that_may_be_started_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cluster(monkeypatch, [HEAD], reported={"CPU": 136, "GPU": 16})
    assert [chosen_device(wanted) for wanted in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    require_processes("cuda", threads=1, count=16)
    with pytest.raises(InputError, match="needs 17 GPU, but the cluster has 16; ask for fewer workers"):
        require_processes("cuda", threads=1, count=17)
    fake_cluster(monkeypatch, [HEAD])
    assert chosen_device("auto") == "cpu"
    with pytest.raises(InputError, match="the cluster has no GPU; give --device cpu"):
        chosen_device("cuda")


def test_processes_find_room_on_single_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cluster(monkeypatch, [HEAD, HEAD])
    require_processes("cpu", threads=8, count=2)
    with pytest.raises(
        InputError, match="needs 9 CPU on one node for each of 1 processes, but the cluster has room fo"
    ):
        require_processes("cpu", threads=9)
    with pytest.raises(InputError, match="needs 24 CPU, but the cluster has 16"):
        require_processes("cpu", threads=8, count=3)


def test_the_launchers_file_is_that_of_this_cluster(tmp_path: Path) -> None:
    config = tmp_path / "bootstrap.yaml"
    config.write_text("max_workers: 2\n")
    words = [f"--gcs-address=10.0.0.1:{tmp_path.name}", f"--autoscaling-config={config}"]
    command = [sys.executable, "-c", "print(flush=True); input()", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as monitor:
        try:
            assert monitor.stdout is not None
            monitor.stdout.readline()  # from here on it is known by its own words
            assert devices._read_launcher_config(f"10.0.0.1:{tmp_path.name}") == {"max_workers": 2}
            assert devices._read_launcher_config("10.0.0.2:6379") is None
        finally:
            monitor.kill()


def test_memory_of_a_process_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cluster(monkeypatch, [HEAD, GPU_NODE])
    overhead = devices._PROCESS_BYTES
    assert device_memory("cpu", threads=4) == 16 * GIBIBYTE - overhead
    # With 16 threads only the large node holds a process.
    assert device_memory("cpu", threads=16) == 64 * GIBIBYTE - overhead
    assert device_memory("cpu", threads=65) is None


def test_memory_of_the_smallest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([80 * GIBIBYTE, 16 * GIBIBYTE, None])
    fake_cluster(monkeypatch, [HEAD, GPU_NODE, GPU_NODE, GPU_NODE])
    monkeypatch.setattr(devices, "_on_node", lambda node_id, function: next(answers))
    monkeypatch.setattr(devices.ray, "wait", lambda references, **_: (references, []))
    monkeypatch.setattr(devices.ray, "get", list)
    assert device_memory("cuda") == 16 * GIBIBYTE - devices._CUDA_CONTEXT_BYTES
    fake_cluster(monkeypatch, [HEAD])
    assert device_memory("cuda") is None


@pytest.mark.ray
def test_a_private_cluster(ray_session: None) -> None:
    assert planned_devices("cpu", threads=1) == 2
    memory = device_memory("cpu", threads=1)
    assert memory is not None
    assert 0 < 2 * memory < 2**45
    (free,) = free_resources().values()
    assert free["memory"] > 0
