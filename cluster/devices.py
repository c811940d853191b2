"""Devices of the cluster: how many a search may count on, and what memory each has.

Needs `cluster.session.connect`. A device is a GPU, or as many CPUs as a process has threads.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.state import available_resources_per_node, state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_prep.storage import InputError

_RESOURCES = {"cpu": "CPU", "cuda": "GPU"}
_MEBIBYTE = 2**20
# What a CUDA context with its matrix libraries takes of a device before the first tensor.
_CUDA_CONTEXT_BYTES = 768 * _MEBIBYTE
# A worker process on a CPU with torch and Ray loaded, before its first tensor.
_PROCESS_BYTES = 512 * _MEBIBYTE
_ANSWER_S = 60.0


def chosen_device(wanted: str) -> str:
    """`cpu` or `cuda` for a setting that may be `auto`: GPUs, where the cluster has some or may start some.

    Raises InputError where GPUs are wanted and there are none.
    """
    if wanted == "cpu":
        return wanted
    gpus = _most("GPU", 1)
    if wanted == "cuda" and not gpus:
        raise InputError("device is 'cuda', but the cluster has no GPU; give --device cpu.")
    return "cuda" if gpus else "cpu"


def process_resources(kind: str, threads: int) -> dict[str, float]:
    """What a process of a search reserves. kind: `cpu` or `cuda`. threads: CPUs of a process on CPUs."""
    return {"GPU": 1, "CPU": 1} if kind == "cuda" else {"CPU": threads}


def require_processes(kind: str, threads: int, count: int = 1) -> None:
    """Raise InputError unless `count` processes find room side by side, on what is alive or may still be started.

    kind, threads: as of `process_resources`.
    """
    for resource, each in process_resources(kind, threads).items():
        room = _most(resource, int(each))
        if room >= count:
            continue
        there, way_out = _most(resource, 1), "threads" if count == 1 else "workers or threads"
        if there < count * each:
            raise InputError(
                f"a search needs {count * each:g} {resource}, but the cluster has {there}; ask for fewer {way_out}."
            )
        raise InputError(
            f"a search needs {each:g} {resource} on one node for each of {count} processes, but the cluster has room "
            f"for {room}; ask for fewer {way_out}."
        )


def planned_devices(kind: str, threads: int) -> int:
    """Devices that are alive, plus those that the autoscaler's configuration may still start; at least 1.

    kind: `cpu` or `cuda`. threads: CPUs of a process, at least 1.
    """
    return max(_most(_RESOURCES[kind], threads if kind == "cpu" else 1), 1)


def _most(resource: str, size: int) -> int:
    """Devices of `size` CPUs or GPUs that the cluster has, or has once its autoscaler has started all that it may.

    Ray itself knows the autoscaler's configuration where KubeRay reports it; a cluster of Ray's launcher keeps it in a
    file on its head node.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    alive = sum(int(node["Resources"].get(resource, 0) // size) for node in nodes)
    reported = (state.get_max_resources_from_cluster_config() or {}).get(resource, 0) // size
    launched = 0
    if (head := _head(nodes)) is not None and (config := _launcher_config(head["NodeID"])):
        launched = int(head["Resources"].get(resource, 0) // size) + startable_devices(config, resource, size)
    return max(alive, int(reported), launched)


def _head(nodes: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((node for node in nodes if "node:__internal_head__" in node["Resources"]), None)


def startable_types(resources: Mapping[str, float]) -> list[str]:
    """Names of the node types, of a launcher's configuration, whose workers hold a process of these resources."""
    head = _head([node for node in ray.nodes() if node["Alive"]])
    config = (_launcher_config(head["NodeID"]) if head is not None else None) or {}
    return [
        name
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type")
        and kind.get("max_workers", 1) > 0
        and all(kind.get("resources", {}).get(resource, 0) >= size for resource, size in resources.items())
    ]


def free_resources() -> dict[str, dict[str, float]]:
    """What each node that is alive has free now: address -> resources; this node first, the others by address."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"], node["NodeID"]))
    free = available_resources_per_node()
    # Several nodes of one machine, as in a test, have one address and are told apart by the id's beginning.
    addresses = [node["NodeManagerAddress"] for node in nodes]
    return {
        address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:6]})": dict(
            free.get(node["NodeID"], {})
        )
        for address, node in zip(addresses, nodes, strict=True)
    }


def startable_devices(config: Mapping[str, Any], resource: str, size: int) -> int:
    """Most devices that the workers of a launcher's configuration have together; `size` CPUs or GPUs make one.

    The limit on all workers is spent on the largest node types first.
    """
    left = int(config.get("max_workers", 0))
    kinds = []
    for name, node_type in config.get("available_node_types", {}).items():
        if name != config.get("head_node_type"):
            each = int(node_type.get("resources", {}).get(resource, 0) // size)
            kinds.append((each, int(node_type.get("max_workers", left))))
    devices = 0
    for each, limit in sorted(kinds, reverse=True):
        count = min(limit, left)
        devices, left = devices + count * each, left - count
    return devices


def device_memory(kind: str, threads: int = 1) -> int | None:
    """Bytes for the tensors of one process, on the smallest device; None where nothing tells (no such device yet).

    kind, threads: as for `planned_devices`. CUDA: a device's memory without the context. CPU: the memory that Ray
    counts on a node, shared by the processes that fit there side by side.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(_RESOURCES[kind], 0)]
    if kind == "cuda":
        asked = [_on_node(node["NodeID"], _cuda_bytes) for node in nodes]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        totals = [total for total in ray.get(ready) if total is not None]
        return min(totals) - _CUDA_CONTEXT_BYTES if totals else None
    shares = []
    for node in nodes:
        processes = int(node["Resources"]["CPU"] // threads)
        if processes and (memory := node["Resources"].get("memory")):
            shares.append(int(memory // processes) - _PROCESS_BYTES)
    return max(min(shares), 0) if shares else None


def _on_node(node_id: str, function: Any) -> Any:
    """A reference to what `function()` returns on a node; it takes no CPU or GPU, so it never waits for a search."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0)(function).options(scheduling_strategy=where).remote()


def _cuda_bytes() -> int | None:
    """Total memory of this machine's smallest GPU, None if the driver's tool does not answer.

    Not asked of torch: Ray hides the GPUs from a task that reserves none.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [int(line) for line in answer.split() if line.isdigit()]
    return min(sizes) * _MEBIBYTE if sizes else None


def _launcher_config(head_id: str) -> dict[str, Any] | None:
    """The configuration file of the autoscaler that runs on the head node, None if it has none."""
    context = ray.get_runtime_context()
    if context.get_node_id() == head_id:
        return _read_launcher_config(context.gcs_address)
    address = context.gcs_address
    reference = _on_node(head_id, lambda: _read_launcher_config(address))
    ready, _ = ray.wait([reference], timeout=_ANSWER_S)
    return ray.get(ready[0]) if ready else None


def _read_launcher_config(gcs_address: str) -> dict[str, Any] | None:
    """The file that the autoscaler's process of this cluster, on this machine, was started with."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has ended, or belongs to somebody else
            continue
        given = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
        path = given.get("--autoscaling-config")
        if path and given.get("--gcs-address") == gcs_address:
            try:
                content = yaml.safe_load(Path(path).expanduser().read_text())
            except (OSError, yaml.YAMLError):
                return None
            return content if isinstance(content, dict) else None
    return None
