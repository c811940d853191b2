"""How a command connects to Ray and leaves nothing behind; each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 100

CONNECT = """
import os, signal, sys
from pathlib import Path
from cluster.session import connect

def environment():
    # Settings of the cluster; Ray also sets RAY_CLIENT_MODE and PYTHONBREAKPOINT, for this process alone.
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_") and "CLIENT" not in name}

home, log_dir = sys.argv[1:]
before = environment(), signal.getsignal(signal.SIGTERM), sys.stderr
with connect(num_cpus=1, log_dir=log_dir):
    import ray
    assert ray.cluster_resources()["CPU"] == 1
    assert ray.data.DataContext.get_current().use_datasource_v2 is False
    assert signal.getsignal(signal.SIGTERM) == before[1], "Ray took the signal"
    os.write(2, b"written by C++\\n")
    print("progress", file=sys.stderr)
    with connect():
        pass
    assert ray.get(ray.put(1)) == 1, "the inner connection ended the outer one"
assert not ray.is_initialized()
assert environment() == before[0], environment()
assert (signal.getsignal(signal.SIGTERM), sys.stderr) == before[1:]
assert list(Path(home).iterdir()) == [], "Ray left something in the home directory"
os.write(2, b"afterwards\\n")
"""

# Nothing listens on port 1. (What `auto` finds depends on who else uses this machine.)
REFUSED = """
from cluster.session import connect
from data_prep.storage import InputError

CLIENT = {"address": "ray://127.0.0.1:1"}
for settings in ({"address": "127.0.0.1:1"}, {"address": "127.0.0.1:1", "num_cpus": 2}, CLIENT):
    try:
        with connect(**settings):
            raise AssertionError("connected")
    except InputError as error:
        print(error)
"""

# A head that refuses a token breaks off; the client itself refuses to start without one. Ray is not started here.
JOINED = """
import os, socket
import ray
from ray.exceptions import AuthenticationError
from cluster.session import connect
from data_prep.storage import InputError

def init(address, **settings):
    print(address, sorted(name for name in os.environ if "AUTH_TOKEN" in name))
    if address in errors:
        raise errors[address]

server = socket.create_server(("127.0.0.1", 0))
head = "127.0.0.1:%d" % server.getsockname()[1]
errors = {"auto": ConnectionError("none"), head: ConnectionError("Timed out")}
ray.init, ray.shutdown = init, lambda: None
with connect():
    pass
for address, error in (("auto", None), (head, None), (head, AuthenticationError("long text"))):
    if error is not None:
        errors[address] = error
    try:
        with connect(address=address):
            raise AssertionError("connected")
    except InputError as told:
        print(str(told).replace(head, "HEAD"))
"""


def run_script(repository: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        "env",
        "-u",
        "RAY_AUTH_MODE",
        "-u",
        "RAY_AUTH_TOKEN",
        *(f"{name}={value}" for name, value in environment.items()),
    ]
    command += [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.mark.ray
def test_private_cluster_is_quiet_and_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    home, log_dir = tmp_path / "home", tmp_path / "logs"
    home.mkdir()
    result = run_script(repository, CONNECT, str(home), str(log_dir), HOME=str(home))
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == "progress\nafterwards\n"
    log = (log_dir / "ray.log").read_text()
    assert "written by C++" in log
    assert "Started a local Ray instance" in log


@pytest.mark.ray
def test_missing_cluster_and_foreign_cpus_are_refused(repository: Path) -> None:
    result = run_script(repository, REFUSED)
    assert result.returncode == 0, result.stderr
    missing, foreign, client = result.stdout.splitlines()
    assert missing.startswith("there is no Ray cluster at the address 127.0.0.1:1;")
    assert foreign.startswith("num_cpus is 2, but the cluster at 127.0.0.1:1 has its own number of CPUs;")
    assert client.startswith("the address ray://127.0.0.1:1 is one of Ray's client, which cannot drive a search;")


def test_a_cluster_is_joined_with_the_users_token_and_its_refusal_is_told(repository: Path) -> None:
    result = run_script(repository, JOINED, RAY_ADDRESS="auto-joined", RAY_AUTH_TOKEN_PATH="/token")
    assert result.returncode == 0, result.stderr
    joined, tried, missing, _, refused, _, without = result.stdout.splitlines()
    # A private cluster's own token would stand above the user's.
    assert joined == "auto-joined ['RAY_AUTH_TOKEN_PATH']"
    assert tried == "auto ['RAY_AUTH_TOKEN_PATH']"
    assert missing.startswith("there is no Ray cluster at the address auto;")
    assert refused.startswith("the cluster at HEAD does not let this program in; set RAY_AUTH_MODE=token,")
    assert without == refused
