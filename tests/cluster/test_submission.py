"""Jobs of a cluster, with a stand-in for Ray's client: ids, environment, refusals, endings, results."""

import io
import json
import os
import shlex
import socket
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.liveness import DRIVER_NAME
from cluster.shipping import archive
from cluster.submission import (
    STOP_WAIT_S,
    Cluster,
    Submission,
    connect,
    default_address,
    describe_end,
    job_environment,
    next_number,
    told,
)
from data_prep.storage import InputError, UnreachableError

ADDRESS = "http://head:8265"
SLOW_STOP_S = 40.0


class Client:
    """What `Cluster` uses of Ray's client; a job that is told to stop takes a while."""

    def __init__(self) -> None:
        self.details: list[JobDetails] = []
        self.submitted: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.taken: set[str] = set()  # ids that another client takes at this moment
        self.stop_at: float | None = None
        self.now = 0.0

    def add(self, job_id: str | None, status: str, **facts: Any) -> None:
        facts = {"entrypoint": "python -m jobs.grid F", "metadata": {}, "start_time": 1000 * len(self.details), **facts}
        kind = JobType.SUBMISSION if job_id else JobType.DRIVER
        self.details.append(JobDetails(type=kind, submission_id=job_id, status=JobStatus(status), **facts))

    def list_jobs(self) -> list[JobDetails]:
        return self.details

    def get_job_info(self, job_id: str) -> JobDetails:
        for item in self.details:
            if item.submission_id == job_id:
                if self.stop_at is not None and self.now >= self.stop_at:
                    item.status = JobStatus.STOPPED
                return item
        raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")

    def submit_job(self, **job: Any) -> None:
        if job["submission_id"] in self.taken:
            raise RuntimeError("Request failed with status code 500: ValueError: Job with this id already exists.")
        self.submitted.append(job)
        self.names += zipfile.ZipFile(job["runtime_env"]["working_dir"]).namelist()
        self.add(job["submission_id"], "PENDING", entrypoint=job["entrypoint"], metadata=job["metadata"])

    def stop_job(self, job_id: str) -> None:
        self.stop_at = self.now + SLOW_STOP_S

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def cluster(client: Client) -> Cluster:
    return Cluster(client, ADDRESS)  # type: ignore[arg-type]


def submission(run: Path, **changes: Any) -> Submission:
    facts = {"words": ["F", "--out", str(run), "--temperatures", "5"], "environment": {"RUST_LOG": "info"}, **changes}
    return Submission(command="grid", run=str(run), name="ablation", archive=archive(), **facts)


def test_a_submission_takes_the_next_id_and_brings_nothing_of_this_shell(
    client: Client, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "dummy-value-of-a-secret")
    for job_id in ("ablation-2", "ablation-10", "ablation-x", "other-99", None):
        client.add(job_id, "SUCCEEDED")
    client.taken = {"ablation-11", "ablation-12"}
    job = cluster.submit(submission(tmp_path / "a run", words=["F", "--out", "a run; rm"]))
    assert (job.id, job.command, job.run, job.status) == ("ablation-13", "grid", str(tmp_path / "a run"), "waiting")
    (sent,) = client.submitted
    assert shlex.split(sent["entrypoint"]) == ["python", "-m", "jobs.grid", "F", "--out", "a run; rm"]
    assert sent["metadata"] == {"run": str(tmp_path / "a run"), "name": "ablation", "command": "grid"}
    assert sent["runtime_env"]["env_vars"] == {
        "RUST_LOG": "info",
        "STGS_SUBMISSION": "ablation-13",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
    }
    assert "jobs/grid.py" in client.names
    assert not os.path.exists(sent["runtime_env"]["working_dir"])
    assert "dummy-value-of-a-secret" not in repr(sent)


def test_numbers_count_on_from_the_highest() -> None:
    assert next_number("a.b", []) == 1
    assert next_number("a.b", ["a.b-9", "a.b-10", "aXb-77", "a.b-3-80", "a.b-"]) == 11


def test_a_run_that_is_worked_on_needs_takeover(client: Client, cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    client.add("earlier-1", "RUNNING", metadata={"run": str(run)})
    with pytest.raises(InputError, match=r"is being worked on by the job earlier-1; .* --takeover"):
        cluster.submit(submission(run))
    assert client.submitted == []
    client.details[0].status = JobStatus.FAILED
    run.mkdir()
    # A driver that no job of this cluster knows: a live one of another machine.
    sign = {"time": time.time(), "host": "elsewhere", "pid": 1, "session": "s", "ended": None}
    (run / DRIVER_NAME).write_text(json.dumps(sign))
    with pytest.raises(InputError, match="by process 1 of elsewhere"):
        cluster.submit(submission(run))
    assert cluster.submit(submission(run), takeover=True).id == "ablation-1"
    client.details[-1].status = JobStatus.STOPPED
    (run / DRIVER_NAME).write_text(json.dumps({**sign, "ended": "stopped"}))
    assert cluster.submit(submission(run)).id == "ablation-2"


def test_a_run_that_this_machine_cannot_read_is_left_to_the_job(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(uri: str) -> bytes:
        raise InputError(f"{uri} cannot be used without credentials; set AWS_PROFILE.")

    monkeypatch.setattr("data_prep.storage.read", unreadable)
    assert cluster.submit(submission(tmp_path)).id == "ablation-1"


@pytest.mark.parametrize(
    "name",
    ["AWS_PROFILE", "AWS_ACCESS_KEY_ID", "MY_SECRET", "github_token", "RAY_AUTH_TOKEN_PATH", "DB_PASSWORD", "API_KEY"],
)
def test_secrets_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="instance profile") as told_error:
        job_environment([f"{name}=hidden-value"])
    assert "hidden-value" not in str(told_error.value)


def test_the_environment_is_what_is_named() -> None:
    assert job_environment(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for word in ("HOME", "=1", "A B=1", "STGS_SUBMISSION=x-1"):
        with pytest.raises(InputError, match="--env"):
            job_environment([word])


def failed(code: int) -> dict[str, Any]:
    message = f"Job entrypoint command failed with exit code {code}, last available logs: ..."
    return {"driver_exit_code": code, "message": message}


@pytest.mark.parametrize(
    ("status", "facts", "expected", "exit_code", "sentence"),
    [
        ("SUCCEEDED", {"driver_exit_code": 0}, "complete", 0, "complete."),
        ("FAILED", failed(1), "failed", 1, "failed with exit code 1; its log says why."),
        ("FAILED", failed(2), "failed", 2, "failed with exit code 2;"),
        ("FAILED", failed(3), "stopped", 3, "stopped; to go on, submit the command again"),
        ("FAILED", failed(4), "partly", 4, "complete, but a part failed"),
        ("FAILED", failed(-9), "failed", 1, "its driver died (signal 9); to go on, submit the command again"),
        ("FAILED", failed(137), "failed", 1, "its driver died (signal 9);"),
        ("FAILED", failed(127), "failed", 1, "its driver died (exit code 127);"),
        ("FAILED", {"message": "Job supervisor actor died:\n node lost"}, "failed", 1, "actor died: node lost); to go"),
        ("STOPPED", {"message": "Job was intentionally stopped."}, "stopped", 3, "stopped;"),
    ],
)
def test_how_a_job_ended(
    client: Client, cluster: Cluster, status: str, facts: dict[str, Any], expected: str, exit_code: int, sentence: str
) -> None:
    client.add("a-1", status, start_time=1000, end_time=61000, **facts)
    job = cluster.job("a-1")
    assert (job.status, job.exit_code, job.has_ended, job.seconds(now=1e9)) == (expected, exit_code, True, 60.0)
    assert sentence in describe_end(job)
    assert describe_end(job).count("\n") == 0


def test_jobs_are_listed_in_order_also_those_of_others(client: Client, cluster: Cluster) -> None:
    client.add("raysubmit_1", "RUNNING", start_time=9000, entrypoint="python -m jobs.train /run")
    client.add(None, "RUNNING")
    client.add("script", "PENDING", start_time=5000, entrypoint="bash x.sh", metadata=None)
    assert [(job.id, job.command, job.run, job.status, job.exit_code) for job in cluster.jobs()] == [
        ("script", "bash", None, "waiting", None),
        ("raysubmit_1", "train", None, "running", None),
    ]
    with pytest.raises(InputError, match="knows no job lost-1; 'stgs jobs' lists those"):
        cluster.job("lost-1")


def test_a_stop_waits_until_the_driver_has_saved(client: Client, cluster: Cluster) -> None:
    client.add("a-1", "RUNNING")
    job = cluster.stop("a-1", clock=lambda: client.now, sleep=client.sleep)
    assert job.status == "stopped"
    assert SLOW_STOP_S <= client.now < STOP_WAIT_S
    client.stop_at = None
    assert cluster.stop("a-1", sleep=client.sleep) == job
    assert client.stop_at is None, "a job that has ended is left alone"


@pytest.mark.parametrize(
    ("error", "expected", "sentence"),
    [
        (AuthenticationError("long text"), InputError, "refuses the token; set RAY_AUTH_MODE=token"),
        (requests.ConnectionError("refused"), UnreachableError, "does not answer"),
        (requests.ReadTimeout("slow"), UnreachableError, "does not answer"),
        (RuntimeError("WebSocket connection closed unexpectedly"), UnreachableError, "does not answer"),
        (
            RuntimeError("Request failed with status code 500: Trace\nE: no agent."),
            UnreachableError,
            "now: E: no agent.",
        ),
        (RuntimeError("Request failed with status code 400: Trace\nbad."), InputError, "refuses: bad."),
    ],
)
def test_what_ray_raises_is_told(error: Exception, expected: type[Exception], sentence: str) -> None:
    with pytest.raises(expected) as told_error, told(ADDRESS):
        raise error
    assert sentence in str(told_error.value)
    assert ADDRESS in str(told_error.value)


def test_no_cluster_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=f"there is no cluster at http://127.0.0.1:{port} "):
        connect(f"127.0.0.1:{port}")
    for address in ("ftp://head", "http://head:port"):
        with pytest.raises(InputError, match="--address is"):
            connect(address)


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert default_address() == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ADDRESS)
    assert default_address() == ADDRESS


def test_the_archive_reaches_ray_as_it_is(client: Client, cluster: Cluster, tmp_path: Path) -> None:
    cluster.submit(submission(tmp_path))
    assert client.names == zipfile.ZipFile(io.BytesIO(archive())).namelist()
