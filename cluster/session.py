"""How a command meets Ray: `connect` is the only place that starts or joins a cluster.

Ray talks a lot, from Python and from C++, on standard error. `connect` sends all of that to a file, so that a user
sees progress bars and errors only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import ray
import ray.data
from ray._private.log import PlainRayHandler
from ray.exceptions import AuthenticationError

from data_prep.storage import InputError

LOG_NAME = "ray.log"
_CLIENT = "ray://"
_MEBIBYTE = 2**20
_REACHABLE_S = 10.0
_SMALLEST_STORE, _LARGEST_STORE = 150 * _MEBIBYTE, 8192 * _MEBIBYTE

# One token for all private clusters of this process: Ray caches the first one it reads.
_PRIVATE_TOKEN = secrets.token_hex(32)


@contextlib.contextmanager
def connect(
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    log_dir: str | None = None,
    verbose: bool = False,
) -> Iterator[None]:
    """A context in which Ray is connected; leaving it disconnects, and ends a cluster that it started.

    address: cluster to join; `auto` is the one that runs on this machine. None: RAY_ADDRESS if that is set (as in a
    submitted job), else a private cluster of this machine. num_cpus: of the private cluster; None: those this process
    may use. log_dir: local folder whose file ray.log receives Ray's messages; None: they are dropped (Ray keeps its own
    under its session directory). verbose: they go to standard error instead.

    Where Ray is connected already, by an enclosing `connect` or by a test, that connection is used and left alone.
    Raises InputError if `address` is one of Ray's client (ray://), if there is no cluster there, if it refuses this
    program's token (RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN), or if `num_cpus` is given for a cluster that runs already.
    """
    if ray.is_initialized():
        set_data_defaults()
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(_CLIENT):
        # Tune and Train would run in a process of the head, which hears of no stop that this one is asked for.
        raise InputError(
            f"the address {address} is one of Ray's client, which cannot drive a search; run this on a node of the "
            "cluster (by 'stgs submit', or with --address auto)."
        )
    if address != "local" and num_cpus is not None:
        raise InputError(
            f"num_cpus is {num_cpus}, but the cluster at {address} has its own number of CPUs; leave num_cpus out."
        )
    _check_reachable(address)
    with _environment(address), contextlib.nullcontext() if verbose else _quiet(log_dir):
        try:
            _initialise(address, num_cpus, verbose)
            set_data_defaults()
            yield
        finally:
            ray.shutdown()


def _initialise(address: str, num_cpus: int | None, verbose: bool) -> None:
    settings: dict[str, Any] = {"address": address, "log_to_driver": verbose}
    if address == "local":
        settings.update(
            num_cpus=num_cpus or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            object_store_memory=_object_store_bytes(),
        )
    with keep_signal_handlers(signal.SIGTERM):
        try:
            ray.init(**settings)
        except AuthenticationError as error:
            raise _refused(address) from error
        except ConnectionError as error:
            # Somebody listens at HOST:PORT; a head that refuses a token does not say so.
            raise (_refused(address) if ":" in address else _no_cluster(address)) from error


def _check_reachable(address: str) -> None:
    """Raise InputError if nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_REACHABLE_S).close()
        except OSError as error:
            raise _no_cluster(address) from error


def _no_cluster(address: str) -> InputError:
    return InputError(
        f"there is no Ray cluster at the address {address}; start one with 'ray start --head', "
        "or leave the address (and RAY_ADDRESS) out for a private one."
    )


def _refused(address: str) -> InputError:
    return InputError(
        f"the cluster at {address} does not let this program in; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (or "
        "RAY_AUTH_TOKEN) to its token, and check that the port is its head's (6379 by default)."
    )


def _object_store_bytes() -> int:
    """A fifth of the memory that is available, within what /dev/shm can hold, so that small machines keep theirs."""
    limits = [_available_memory_bytes() // 5, _LARGEST_STORE]
    if Path("/dev/shm").is_dir():
        limits.append(shutil.disk_usage("/dev/shm").free * 9 // 10)
    return max(_SMALLEST_STORE, min(limits))


def _available_memory_bytes() -> int:
    """Memory that this machine, or the container this runs in, can still give."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo, cgroup = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(int(fields["MemAvailable"].removesuffix("kB")) * 1024)
    if cgroup.is_file() and (limit := cgroup.read_text().strip()).isdigit():
        found.append(int(limit))
    return min(found)


def set_data_defaults() -> None:
    """Settings of Ray Data, which every Dataset copies when it is made."""
    context = ray.data.DataContext.get_current()
    # The second reader starts up to 32 actors per execution: 7 to 50 s to the first batch of every epoch.
    context.use_datasource_v2 = False
    # Ours are in clips and points, and go to standard error once.
    context.enable_progress_bars = False


@contextlib.contextmanager
def _environment(address: str) -> Iterator[None]:
    """Environment variables that Ray's processes read; what the user has set stands, all is restored afterwards."""
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's coming default: a task without GPUs keeps CUDA_VISIBLE_DEVICES; the old way warns at every start.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if address == "local":
        # A private cluster asks for a token. Without one given here, Ray would leave it in the home directory, and
        # later clusters of this user would ask for it, too.
        wanted["RAY_AUTH_TOKEN"] = _PRIVATE_TOKEN
    before = {name: os.environ.get(name) for name in (*wanted, "RAY_AUTH_MODE")}  # ray.init sets the last one
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet(log_dir: str | None) -> Iterator[None]:
    """Meanwhile, Ray's messages go to the log, also those that C++ and child processes write to descriptor 2.

    `sys.stderr` leads to where descriptor 2 led before, for progress bars and errors.
    """
    sys.stderr.flush()
    before = sys.stderr
    with _open_log(log_dir) as log, os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace") as terminal:
        os.dup2(log.fileno(), 2)
        if _leads_to(before, 2):
            sys.stderr = terminal
        try:
            with _python_messages_to(log):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal.fileno(), 2)
            sys.stderr = before


def _open_log(log_dir: str | None) -> TextIO:
    if log_dir is None:
        return open(os.devnull, "a", encoding="utf-8")
    Path(log_dir).mkdir(parents=True, exist_ok=True)
    return open(Path(log_dir) / LOG_NAME, "a", encoding="utf-8")


def _leads_to(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):  # a test's or a notebook's stream has no descriptor, or a closed one
        return False


@contextlib.contextmanager
def _python_messages_to(log: TextIO) -> Iterator[None]:
    """Replace the console handlers of Ray's Python loggers, which write to `sys.stderr`, meanwhile."""
    ours = logging.StreamHandler(log)
    ours.setLevel(logging.INFO)
    ours.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    moved: list[tuple[logging.Logger, logging.Handler]] = []
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if (name == "ray" or name.startswith("ray.")) and isinstance(logger, logging.Logger):
            moved += [(logger, handler) for handler in logger.handlers if type(handler) is PlainRayHandler]
    for logger, handler in moved:
        logger.removeHandler(handler)
        logger.addHandler(ours)
    try:
        yield
    finally:
        for logger, handler in moved:
            logger.removeHandler(ours)
            logger.addHandler(handler)


@contextlib.contextmanager
def keep_signal_handlers(*signums: int) -> Iterator[None]:
    """Put our handlers of these signals back afterwards: Ray installs its own and leaves them.

    After `ray.init` SIGTERM would exit with a code that means 'failed', after Tune or Train SIGINT would do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in signums}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
