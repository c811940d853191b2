"""The batch script for Slurm, run for real with stand-ins for srun and scontrol: two raylets on this machine."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.spot_watch import find_raylets

SMALL = "--object-store-memory=80000000 --disable-usage-stats"


class Allocation:
    """What Slurm would give the script, and what it left behind."""

    def __init__(self, repository: Path, folder: Path) -> None:
        # The job's number decides port and folder; a fresh one each time.
        self.job, self.folder, self.seen = str(random.SystemRandom().randrange(10**6, 10**7)), folder, folder / "seen"
        self.script = repository / "cluster" / "slurm.sbatch"
        driver = repository / "tests" / "cluster" / "two_node_driver.py"
        self.environment = {
            **os.environ,
            "PATH": f"{repository / 'tests' / 'cluster' / 'slurm_stand_ins'}:{os.environ['PATH']}",
            "STAND_IN_LOG": str(folder / "log"),
            "HOME": str(folder / "home"),
            "SLURM_JOB_ID": self.job,
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_SUBMIT_DIR": str(folder),
            "STGS_PYTHON": sys.executable,
            "STGS_DRIVER": f"{sys.executable} {driver}",
            "STGS_HEAD_OPTIONS": f"{SMALL} --include-dashboard=false",
            "STGS_WORKER_OPTIONS": SMALL,
        }
        self.started: list[subprocess.Popen[str]] = []

    def start(self, what: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", str(self.script), what, str(self.seen)],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Nothing that a failed test started runs on: all of it is in the session of the script."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def said(self, name: str) -> list[str]:
        path = self.folder / f"log.{name}"
        return path.read_text().splitlines() if path.exists() else []

    def is_clean(self) -> bool:
        """No raylet of ours runs on, and neither the token nor Ray's folder is left."""
        left = [raylet for raylet in find_raylets() if f"stgs-{self.job}" in _command_line(raylet.pid)]
        return not (left or list(self.vault.iterdir()) or list(Path("/tmp").glob(f"stgs-{self.job}*")))

    @property
    def vault(self) -> Path:
        """Where the token is kept."""
        return self.folder / "home" / ".stgs" / "slurm-tokens"


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture
def allocation(repository: Path, tmp_path: Path) -> Iterator[Allocation]:
    made = Allocation(repository, tmp_path)
    yield made
    made.end()


def test_its_directives(repository: Path) -> None:
    script = repository / "cluster" / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    directives = set(re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE))
    assert {"--signal=B:TERM@120", "--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= directives
    # Slurm reads directives up to the first command only.
    assert text.index("set -euo pipefail") > text.rindex("#SBATCH")
    assert os.access(script, os.R_OK)


def test_a_driver_that_ends_ends_the_job(allocation: Allocation) -> None:
    process = allocation.start("finish")
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 0, said
    assert said.count("received SIGTERM") == 2  # Ray's word for an orderly end, of both raylets
    seen = json.loads(allocation.seen.read_text())
    assert len(seen["nodes"]) == 2
    assert seen["ran"] == seen["nodes"]
    assert (seen["token_mode"], seen["token_length"], seen["rest"]) == ("0o600", 64, ["--resume"])
    calls = allocation.said("srun")
    assert sum("ray start --head --block" in call and "--nodelist=node-1" in call for call in calls) == 1
    assert sum("ray start --block" in call and "--exclude=node-1" in call for call in calls) == 1
    assert all("--dashboard-host=127.0.0.1" in call for call in calls if "--head" in call)
    starts = [call for call in calls if "ray start" in call]
    # srun does not take it from the job's own directives.
    assert all(call.startswith("1 CPUs: ") and "--num-cpus=1" in call for call in starts)
    assert Path(seen["token"]).parent.parent == allocation.vault
    assert allocation.said("requeued") == []
    assert allocation.is_clean()


def test_sigterm_saves_and_queues_the_job_again(allocation: Allocation) -> None:
    process = allocation.start("wait", SLURM_RESTART_COUNT="2")
    ends = time.monotonic() + 60
    while not allocation.seen.exists():
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=50)[0]
    assert process.returncode == 3, said
    assert allocation.said("requeued") == [allocation.job]
    assert "restart 2" in said
    assert json.loads(allocation.seen.read_text())["rest"] == ["--resume", "--takeover"]
    assert allocation.is_clean()


@pytest.fixture
def fake_ray(allocation: Allocation, tmp_path: Path) -> Allocation:
    """The same with a Python and a Ray that only hold the port, for what is about exit codes alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    listen = "import re, signal, socket, sys; from pathlib import Path; words = ' '.join(sys.argv); "
    listen += "where = re.search(r'--node-ip-address=(\\S+) --port=(\\d+)', words); "
    listen += "held = socket.create_server((where[1], int(where[2]))) if where else None; signal.pause()"
    (folder / "ray").write_text(f"#!{sys.executable}\n{listen}\n")
    (folder / "ray").chmod(0o755)
    allocation.environment.update(STGS_PYTHON=str(folder / "python"), STGS_HEAD_IP="127.0.0.1")
    return allocation


PORTS = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")


def test_two_jobs_on_one_machine_share_no_port(fake_ray: Allocation) -> None:
    ports = []
    # A driver that ends at once may end the job before its other step has noted how it was called.
    driver = fake_ray.folder / "driver"
    driver.write_text(
        'until [ "$(grep -c "ray start --block" "$STAND_IN_LOG.srun")" -ge "$WORKER_STEPS" ]; do sleep 0.05; done\n'
    )
    for steps, job in enumerate(("4711", "4712"), start=1):
        process = fake_ray.start("a", SLURM_JOB_ID=job, STGS_DRIVER=f"sh {driver}", WORKER_STEPS=str(steps))
        assert process.wait(timeout=30) == 0
        starts = [call for call in fake_ray.said("srun") if "ray start" in call and f"stgs-{job}-" in call]
        ports += [int(found) for name in PORTS for found in re.findall(rf"--{name}=(\d+)", starts[0])]
    workers = [call for call in fake_ray.said("srun") if "ray start --block" in call]
    ports += [int(found) for call in workers for found in re.findall(rf"--{PORTS[-1]}=(\d+)", call)]
    assert len(set(ports)) == len(ports) == 2 * 5
    # Ray gives those below to its processes, Linux those above to anybody.
    assert min(ports) >= 20000
    assert max(ports) < 32768


def test_a_checkout_whose_path_has_a_space(fake_ray: Allocation, tmp_path: Path) -> None:
    root = tmp_path / "my checkout"
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "ray").symlink_to(tmp_path / "bin" / "ray")
    (programs / "python").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{fake_ray.seen}\n')
    (programs / "python").chmod(0o755)
    for name in ("STGS_PYTHON", "STGS_DRIVER"):
        del fake_ray.environment[name]
    process = fake_ray.start("a b", SLURM_SUBMIT_DIR=str(root))
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 0, said
    assert fake_ray.seen.read_text().splitlines() == ["-m", "jobs.grid", "a b", str(fake_ray.seen), "--resume"]


def test_a_python_that_is_not_there_is_told(fake_ray: Allocation) -> None:
    process = fake_ray.start("a", STGS_PYTHON="no-such-python")
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 1
    assert "there is no program no-such-python; install the lock" in said


def test_what_is_written_is_as_open_as_elsewhere_but_the_token(fake_ray: Allocation) -> None:
    left = [fake_ray.vault / name for name in (f"{fake_ray.job}-dead", "1-old", "2-new")]
    for folder in left:
        folder.mkdir(parents=True)
    month = time.time() - 40 * 86400
    os.utime(left[1], (month, month))
    driver = fake_ray.folder / "driver"
    driver.write_text(
        f'#!/bin/sh\numask >{fake_ray.seen}\nstat -c %a "$RAY_AUTH_TOKEN_PATH" {fake_ray.vault} >>{fake_ray.seen}\n'
    )
    driver.chmod(0o755)
    process = fake_ray.start("a", STGS_DRIVER=str(driver))
    before = os.umask(0o022)
    os.umask(before)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 0, said
    mask, token, vault = fake_ray.seen.read_text().split()
    assert (int(mask, 8), token, vault) == (before, "600", "700")
    assert list(fake_ray.vault.iterdir()) == [left[2]]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_without_a_signal_the_code_is_the_drivers(fake_ray: Allocation, code: int) -> None:
    # 3 without SIGTERM: a deadline or a budget of the run has passed, and queueing again would never end.
    driver = fake_ray.folder / "driver"
    driver.write_text(f"#!/bin/sh\ntest $# -eq 3 || exit 99\nexit {code}\n")
    driver.chmod(0o755)
    process = fake_ray.start("a", STGS_DRIVER=str(driver))
    said = process.communicate(timeout=30)[0]
    assert process.returncode == code, said
    assert fake_ray.said("requeued") == []


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (3, True)])
def test_after_sigterm_only_what_was_saved_is_queued_again(fake_ray: Allocation, code: int, requeued: bool) -> None:
    driver = fake_ray.folder / "driver"
    # It takes its time to save: the script must wait for it, not for the signal.
    driver.write_text(
        f"#!/bin/sh\ntrap 'sleep 0.3; exit {code}' TERM\ntouch {fake_ray.seen}\nwhile :; do sleep 0.05; done\n"
    )
    driver.chmod(0o755)
    process = fake_ray.start("a", STGS_DRIVER=str(driver))
    ends = time.monotonic() + 20
    while not fake_ray.seen.exists():
        assert time.monotonic() < ends
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == code, said
    assert fake_ray.said("requeued") == ([fake_ray.job] if requeued else [])


def test_a_head_that_does_not_start_ends_the_job(fake_ray: Allocation) -> None:
    ray = Path(fake_ray.environment["STGS_PYTHON"]).parent / "ray"
    ray.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    process = fake_ray.start("a", STGS_DRIVER="false")
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 1
    assert "no memory" in said
    assert "the head ended before it listened" in said
    assert fake_ray.is_clean()
