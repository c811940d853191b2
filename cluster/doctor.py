"""What a machine needs to be a node of this project's cluster: the facts of one, and what they say.

`judge` is a pure function of facts, so that it can be asked about machines that are not here. Loads neither torch nor
Ray: a machine whose torch is broken is one to be told about.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_GIBIBYTE = 2**30
# NVIDIA's tool answers in seconds, or, where the driver hangs, never.
_DRIVER_S = 15.0
# What a node keeps of the seconds that it has for its answer while torch is asked, which may wait for the same driver.
_KEPT_S = 20.0
# For a killed process to end: one that waits inside a driver does not end before the driver answers.
_KILL_S = 2.0
# Ray writes no more to a file system that is fuller than this (its local_fs_capacity_threshold).
_FULL_SHARE = 0.95
_LEAST_FREE_BYTES = 5 * _GIBIBYTE
# Of a machine without a cluster: the least that `cluster.session.connect` gives a private one's object store.
_LEAST_SHARED_BYTES = 150 * 2**20
# Ray's own limit below which it warns that connections may fail.
_LEAST_OPEN_FILES = 4096
# A search's process with torch and Ray loaded takes 0.9 GB before its first tensor.
_LEAST_MEMORY_BYTES = 2 * _GIBIBYTE
# Heartbeats are judged by their time: at 60 s a live search counts as lost.
MOST_SKEW_S = 10.0
# CUDA's major version -> the oldest driver branch for its programs (NVIDIA, "CUDA Compatibility", minor versions).
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# The last driver branch for GPUs older than Turing, 7.5 (NVIDIA, Unix graphics feature deprecation schedule).
_TURING, _LAST_BEFORE_TURING = (7, 5), 580
# NVIDIA on the PCI bus, and the classes of its devices that compute: display and 3D controllers.
_NVIDIA, _GPU_CLASSES = "0x10de", ("0x0300", "0x0302")
_HANGS = "the driver hangs: look for Xid in dmesg, and restart the machine"
_TORCH_SCRIPT = (
    "import json, torch; print(json.dumps([torch.version.cuda, torch.cuda.get_arch_list(), torch.cuda.device_count()]))"
)

Level = Literal["ok", "FAIL"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor. place: the node, or a storage as seen from one. way_out: where it failed."""

    level: Level
    place: str
    subject: str
    detail: str
    way_out: str = ""

    @property
    def line(self) -> str:
        """The check in words."""
        return (
            f"{self.level:<4}  {self.place}  {self.subject}  {self.detail}{f'; {self.way_out}' if self.way_out else ''}"
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver's tool names it. capability: such as (7, 0); None where an old driver does not tell."""

    name: str
    capability: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a machine says of itself. Sizes in bytes; None: unknown, or not there.

    python, ray, torch: versions. driver: of NVIDIA. bus_gpus: NVIDIA's devices on the PCI bus, with or without a
    driver. torch_cuda: CUDA's version that torch was built with. architectures: torch.cuda.get_arch_list().
    torch_gpus: devices that torch counts; the last three are asked only where there are GPUs. silent: who was asked
    (`nvidia-smi`, `torch`) and gave no answer in time. disk: where Ray's session lies, and what it spills. shm: of
    /dev/shm.
    """

    python: str
    ray: str | None
    torch: str | None
    driver: str | None
    gpus: tuple[Gpu, ...]
    bus_gpus: int
    torch_cuda: str | None
    architectures: tuple[str, ...]
    torch_gpus: int | None
    silent: tuple[str, ...] = ()
    disk: str
    disk_free: int
    disk_total: int
    shm: int | None
    cpus: int
    memory: int
    open_files: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """How a node stands in its cluster. name: its address. store: bytes of Ray's object store there; None: no Ray.

    ray_gpus: GPUs that Ray counts there. skew: seconds by which its clock is ahead of this machine's, uncertainty: by
    which that may be wrong; None where it was not measured.
    """

    name: str
    store: int | None = None
    ray_gpus: int = 0
    skew: float | None = None
    uncertainty: float = 0.0


def judge(facts: Facts, place: Place, reference: Facts) -> list[Check]:
    """What the facts of a machine say. reference: those of the cluster's head, whose versions all nodes must have."""
    checks = [*_versions(facts, reference), *_gpu_checks(facts, place), *_room(facts, place)]
    if place.skew is not None:
        wrong = max(abs(place.skew) - place.uncertainty, 0.0) > MOST_SKEW_S
        detail = f"{place.skew:+.1f} s against this machine"
        checks.append(("clock", detail, "set both by NTP (chrony)" if wrong else ""))
    return [
        Check("FAIL" if way_out else "ok", f"node {place.name}", subject, detail, way_out)
        for subject, detail, way_out in checks
    ]


_Finding = tuple[str, str, str]  # subject, detail, way out (empty: all is well)


def _versions(facts: Facts, reference: Facts) -> Iterator[_Finding]:
    for name in ("python", "ray", "torch"):
        own, wanted = getattr(facts, name), getattr(reference, name)
        subject = name.capitalize() if name != "torch" else name
        if own is None:
            yield subject, "not installed", "install requirements.lock there"
        elif own != wanted:
            yield subject, f"{own}, but the head has {wanted}", "run the same container image on every node"
        else:
            yield subject, own, ""


def _gpu_checks(facts: Facts, place: Place) -> Iterator[_Finding]:
    if "nvidia-smi" in facts.silent:
        yield "driver", "nvidia-smi gives no answer", _HANGS
        return
    if not facts.gpus:
        wanted = max(place.ray_gpus, facts.bus_gpus)
        if wanted:
            way_out = "install a driver (580 is the last for a V100), or start the container with its GPUs"
            yield "GPU", f"{_devices(wanted)} there, but nvidia-smi shows none", way_out
        else:
            yield "GPU", "none", ""
        return
    yield "driver", *_driver(facts)
    for name, capability in dict.fromkeys((gpu.name, gpu.capability) for gpu in facts.gpus):
        yield "GPU", *_capability(sum(gpu.name == name for gpu in facts.gpus), name, capability, facts)
    if "torch" in facts.silent:
        yield "CUDA", "torch gives no answer", _HANGS
    elif facts.torch_gpus is None:
        yield "CUDA", "torch does not load", "install requirements.lock there, and look at: python -c 'import torch'"
    elif facts.torch_gpus < len(facts.gpus):
        way_out = "start the machine or its container anew, with a driver that is as new as its libraries"
        yield "CUDA", f"torch counts {_devices(facts.torch_gpus)}, nvidia-smi {len(facts.gpus)}", way_out
    if place.ray_gpus > len(facts.gpus):
        way_out = "start the node without --num-gpus"
        yield "Ray's GPUs", f"Ray counts {place.ray_gpus}, nvidia-smi {len(facts.gpus)}", way_out


def _driver(facts: Facts) -> tuple[str, str]:
    """Detail and way out of the driver's version, for this torch and these GPUs."""
    if facts.driver is None or not (digits := re.match(r"\d+", facts.driver)):
        return "of unknown version", "install NVIDIA's driver of branch 580"
    branch = int(digits[0])
    oldest = _OLDEST_DRIVER.get(int((facts.torch_cuda or "0").split(".")[0]), 0)
    if branch < oldest:
        return f"{facts.driver}, but CUDA {facts.torch_cuda} of torch needs {oldest} or newer", "install branch 580"
    old = [gpu.name for gpu in facts.gpus if gpu.capability is not None and gpu.capability < _TURING]
    if old and branch > _LAST_BEFORE_TURING:
        return f"{facts.driver}, but {_LAST_BEFORE_TURING} is the last branch for {old[0]}", "install branch 580"
    return facts.driver, ""


def _capability(count: int, name: str, capability: tuple[int, int] | None, facts: Facts) -> tuple[str, str]:
    what = f"{count} x {name}"
    if capability is None:
        return f"{what}, of unknown compute capability", "install a driver of branch 570 or 580"
    shown = f"{what}, compute capability {capability[0]}.{capability[1]}"
    if facts.torch_gpus is not None and not facts.architectures:
        return f"{shown}, but this torch has no GPU code", "install the torch of requirements.lock, which has CUDA"
    if facts.architectures and not runs_on(capability, facts.architectures):
        had = " ".join(facts.architectures)
        return f"{shown}, but torch is built for {had}", "use the torch of requirements.lock, or other GPUs"
    return shown, ""


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a torch built for these runs on a GPU of that compute capability.

    Machine code (sm_86) runs on GPUs of the same major version and at least the same minor one, intermediate code
    (compute_90) on all that are at least as new; a letter (sm_90a) binds both to the one architecture.
    """
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if match is None:
            continue
        built = (int(match[2]), int(match[3]))
        if match[4]:
            fits = built == capability
        elif match[1] == "sm":
            fits = built[0] == capability[0] and built[1] <= capability[1]
        else:
            fits = built <= capability
        if fits:
            return True
    return False


def _room(facts: Facts, place: Place) -> Iterator[_Finding]:
    used = 1 - facts.disk_free / facts.disk_total
    full = used >= _FULL_SHARE or facts.disk_free < _LEAST_FREE_BYTES
    detail = f"{_size(facts.disk_free)} of {_size(facts.disk_total)} free in {facts.disk}"
    yield "disk", detail, "Ray stops spilling at 95 %; free some, or give ray start --temp-dir" if full else ""
    needed = _LEAST_SHARED_BYTES if place.store is None else place.store
    small = facts.shm is not None and facts.shm < needed
    store = (
        f"an object store takes {_size(needed)} or more" if place.store is None else f"the object store {_size(needed)}"
    )
    shm = "none" if facts.shm is None else f"{_size(facts.shm)}, {store}"
    yield "/dev/shm", shm, "start the container with a larger --shm-size" if small else ""
    way_out = "use a larger machine" if facts.memory < _LEAST_MEMORY_BYTES else ""
    yield "machine", f"{facts.cpus} CPUs, {_size(facts.memory)} memory", way_out
    way_out = "raise it with ulimit -n 65536 before ray start" if facts.open_files < _LEAST_OPEN_FILES else ""
    yield "open files", f"at most {facts.open_files:,}", way_out


def _devices(count: int) -> str:
    return f"{count} GPU{'s' * (count != 1)}"


def _size(count: int) -> str:
    return f"{count / _GIBIBYTE:,.1f} GiB"


def collect(folder: str, *, on_node: bool = False, timeout_s: float = 60.0) -> Facts:
    """The facts of this machine.

    folder: on the disk that Ray's session uses. on_node: this is a process of a Ray node; else one that may start Ray,
    which raises the limit on open files as far as it may. timeout_s: for all; who does not answer is told in time.
    """
    driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    silent: tuple[str, ...] = ()
    torch_told: tuple[str | None, tuple[str, ...], int | None] = (None, (), None)
    asked = "nvidia-smi"
    try:
        driver, gpus = nvidia(min(_DRIVER_S, timeout_s / 4))
        asked = "torch"
        if gpus:
            torch_told = _ask_torch(max(timeout_s - _KEPT_S, timeout_s / 2))
    except subprocess.TimeoutExpired:
        silent = (asked,)
    cuda, architectures, torch_gpus = torch_told
    disk = shutil.disk_usage(folder)
    return Facts(
        python=platform.python_version(),
        ray=_installed("ray"),
        torch=_installed("torch"),
        driver=driver,
        gpus=gpus,
        bus_gpus=_bus_gpus(),
        torch_cuda=cuda,
        architectures=architectures,
        torch_gpus=torch_gpus,
        silent=silent,
        disk=folder,
        disk_free=disk.free,
        disk_total=disk.total,
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0 if on_node else 1],
    )


def this_machine() -> Place:
    """Where this process runs, without a cluster."""
    return Place(name=socket.gethostname())


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def nvidia(timeout_s: float = _DRIVER_S) -> tuple[str | None, tuple[Gpu, ...]]:
    """Version of the driver and the GPUs that its tool lists; None and () where there is no tool, or it finds none.

    Raises subprocess.TimeoutExpired where it gives no answer.
    """
    # Drivers before branch 510 refuse to tell the compute capability.
    for fields in ("name,driver_version,compute_cap", "name,driver_version"):
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            answer = _answer(command, timeout_s)
        except subprocess.CalledProcessError:
            continue
        except OSError:
            break
        rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if "," in line]
        gpus = tuple(Gpu(row[0], _version_pair(row[2]) if len(row) > 2 else None) for row in rows)
        return (rows[0][1] if rows else None), gpus
    return None, ()


def _answer(command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None) -> str:
    """What a program prints. Raises OSError, CalledProcessError and TimeoutExpired of subprocess.

    Unlike subprocess.run it does not wait for a killed process that cannot end, as inside a driver that hangs.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        answer, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_S)
        process.stdout.close()
        raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return answer


def _version_pair(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    return None if match is None else (int(match[1]), int(match[2]))


def _ask_torch(timeout_s: float) -> tuple[str | None, tuple[str, ...], int | None]:
    """CUDA of torch, its architectures, the GPUs that it counts: from a process of its own, which sees all GPUs.

    Ray hides them from a task that reserves none. Raises subprocess.TimeoutExpired where it gives no answer.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _TORCH_SCRIPT]
    try:
        answer = _answer(command, timeout_s, environment)
    except (OSError, subprocess.CalledProcessError):
        return None, (), None
    cuda, architectures, count = json.loads(answer.splitlines()[-1])
    return cuda, tuple(architectures), count


def _bus_gpus() -> int:
    """NVIDIA's GPUs on the PCI bus of this machine."""
    found = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:  # gone meanwhile, or not to be read: not a device to count on
            continue
        found += vendor == _NVIDIA and kind.startswith(_GPU_CLASSES)
    return found
