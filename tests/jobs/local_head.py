"""A Ray head of a test's own, with token authentication, as `ray start --head` makes it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_S, END_S = 60.0, 3.0


@dataclass(frozen=True)
class Head:
    """address: of its dashboard. folder: its session's files, logs among them. token: what it asks for, which stands in
    the file token_path."""

    address: str
    folder: Path
    token: str
    token_path: Path

    def get(self, path: str) -> str:
        """What the dashboard answers."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def programs() -> str:
    """PATH on which `python` and `ray` are those of this environment."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@contextlib.contextmanager
def running_head(scratch: Path, *, num_cpus: int = 2) -> Iterator[Head]:
    """A head that runs meanwhile. scratch: for its token and its home; the session's path has to be short."""
    token, token_path = secrets.token_hex(32), scratch / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(token)
    folder = Path(tempfile.mkdtemp(prefix="stgs-", dir="/tmp"))
    port, dashboard, client, agent = free_ports(4)
    command = ["ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    command += ["--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--num-cpus={num_cpus}", f"--temp-dir={folder}"]
    command += ["--object-store-memory=150000000", "--include-log-monitor=false", "--disable-usage-stats"]
    environment = {
        "PATH": programs(),
        "HOME": str(scratch),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
    }
    with (scratch / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=scratch, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    head = Head(f"http://127.0.0.1:{dashboard}", folder, token, token_path)
    try:
        _wait_until_it_answers(head, process, scratch / "head.log")
        yield head
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_answers(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            head.get("/api/version")
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head's process group: asked first, which Ray would take half a minute to follow."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_S)
