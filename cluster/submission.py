"""Jobs on a running cluster, by Ray's job interface: submit, list, stop, and how they ended.

A job is one command of `stgs`, run on the head as `python -m jobs.<command>`; its driver joins the cluster. Of the
user's environment a job gets nothing but what is named (`job_environment`), because Ray keeps a job's environment in
plain text.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import logging
import os
import re
import shlex
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.liveness import SUBMISSION_VARIABLE, read_driver, require_idle
from data_prep.storage import InputError, UnreachableError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# How a job stands; the last four have ended.
WAITING, RUNNING, COMPLETE, STOPPED, PARTLY, FAILED = "waiting", "running", "complete", "stopped", "partly", "failed"
ENDED = (COMPLETE, STOPPED, PARTLY, FAILED)
# How a run goes on whose job has ended.
SUBMIT_AGAIN = "submit the command again (baseline, grid and search: with --resume)"
# What the exit codes of `stgs` mean (design.md section 5).
_BY_EXIT_CODE = {0: COMPLETE, 1: FAILED, 2: FAILED, 3: STOPPED, 4: PARTLY}
_STOPPED_CODE = 3

# A stopped driver saves its searches first, for which Ray's 3 s are too few. Ray reads this variable where the job's
# own environment is set.
STOP_WAIT_S = 120
_STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
# Ray's client lets these stand above the address that it is given.
_OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_SECRETS = ("*SECRET*", "*TOKEN*", "*PASSWORD*", "*PASSWD*", "*CREDENTIAL*", "*KEY*", "AWS_*")
_REQUEST_S, _REACHABLE_S = 30.0, 10.0
_ID_ATTEMPTS = 20
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Submission:
    """A command to run on a cluster.

    words: the command's arguments. run: URI of the directory that it works on, if it has one. name: of the job, without
    its number. environment: what `job_environment` allows. archive: of the program (`cluster.shipping`).
    """

    command: str
    words: Sequence[str]
    run: str | None
    name: str
    environment: dict[str, str]
    archive: bytes


@dataclass(frozen=True, slots=True)
class Job:
    """A job that the cluster knows.

    status: one of the constants above. exit_code: of its driver, or the one that `stgs` gives to such an end; None
    until it has ended. started, ended: Unix seconds. message: why it failed, where Ray says so.
    """

    id: str
    command: str
    run: str | None
    status: str
    exit_code: int | None
    started: float | None
    ended: float | None
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in ENDED

    def seconds(self, now: float) -> float:
        """How long it has run, or ran. now: Unix seconds."""
        return (self.ended or now) - self.started if self.started else 0.0


def default_address() -> str:
    """Address of the cluster's dashboard: from the environment, else this machine's."""
    return next((os.environ[name] for name in _ADDRESS_VARIABLES if os.environ.get(name)), DEFAULT_ADDRESS)


def job_environment(pairs: Iterable[str]) -> dict[str, str]:
    """The environment of a job, from words NAME=VALUE.

    Raises InputError for a word of another form, and for names that a secret would have.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(f"--env {name} is not NAME=VALUE; values of this shell are not forwarded by name.")
        if any(fnmatch.fnmatchcase(name.upper(), pattern) for pattern in _SECRETS):
            raise InputError(
                f"--env {name} looks like a secret, and Ray keeps a job's environment in plain text; give the machines "
                "an instance profile with the rights that the job needs."
            )
        if name == SUBMISSION_VARIABLE:
            raise InputError(f"--env {name} is set by 'stgs submit' itself; leave it out.")
        found[name] = value
    return found


def job_name(name: str) -> str:
    """`name`, where it can begin a submission id. Raises InputError."""
    if not _ID.fullmatch(name):
        raise InputError(f"--name is {name!r}, but it needs 1 to 64 letters, digits, '.', '_' or '-'.")
    return name


def connect(address: str) -> Cluster:
    """The cluster whose dashboard is at `address` (http://HOST:PORT, or HOST:PORT).

    Raises InputError if nothing listens there, or if the cluster refuses the token of RAY_AUTH_TOKEN_PATH or
    RAY_AUTH_TOKEN.
    """
    address = (address if "://" in address else f"http://{address}").rstrip("/")
    _check_reachable(address)
    # Half a second, which a wrong address need not wait for.
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    with _without(_OVERRIDING), told(address):
        client = JobSubmissionClient(address)
    # Without a limit a request to a machine that has gone would hang for minutes.
    client._do_request = functools.partial(client._do_request, timeout=_REQUEST_S)  # type: ignore[method-assign]
    return Cluster(client, address)


def _check_reachable(address: str) -> None:
    """Raise InputError if nothing listens at http://HOST:PORT."""
    parts = urlsplit(address)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname or "", port), timeout=_REACHABLE_S).close()
    except (KeyError, ValueError):
        raise InputError(f"--address is {address!r}, but it must be like {DEFAULT_ADDRESS}.") from None
    except OSError as error:
        raise InputError(
            f"there is no cluster at {address} ({error.strerror or error}); give the address of its dashboard with "
            "--address, or open the tunnel to it."
        ) from None


@contextlib.contextmanager
def _without(names: Iterable[str]) -> Iterator[None]:
    """Meanwhile, the environment has no such variables."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextlib.contextmanager
def told(address: str) -> Iterator[None]:
    """What Ray's client raises, as a sentence: InputError, or UnreachableError where a later attempt may succeed."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    gone = f"the cluster at {address} does not answer."
    try:
        yield
    except AuthenticationError:
        raise _refused(address) from None
    except aiohttp.WSServerHandshakeError as error:
        if error.status in (401, 403):
            raise _refused(address) from None
        raise UnreachableError(gone) from None
    except (requests.RequestException, aiohttp.ClientError, OSError):
        raise UnreachableError(gone) from None
    except RuntimeError as error:
        code = re.search(r"status code (\d+)", str(error))
        if code is None:
            raise UnreachableError(gone) from None
        # The last line of what may be a traceback of the head.
        reason = str(error).strip().splitlines()[-1][:300].rstrip(".")
        if code[1].startswith("5"):
            raise UnreachableError(f"the cluster at {address} cannot do that now: {reason}.") from None
        raise InputError(f"the cluster at {address} refuses: {reason}.") from None


def _refused(address: str) -> InputError:
    return InputError(
        f"the cluster at {address} refuses the token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (or "
        "RAY_AUTH_TOKEN) to the token that its head was started with."
    )


class Cluster:
    """The jobs of a cluster. Every method raises what `told` says."""

    def __init__(self, client: JobSubmissionClient, address: str) -> None:
        self._client = client
        self.address = address

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        with told(self.address):
            details = self._client.list_jobs()
        # Programs that joined the cluster by themselves are listed, too; they have no submission.
        found = [_job(item) for item in details if item.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0)

    def job(self, job_id: str) -> Job:
        """One job. Raises InputError also where the cluster does not know it."""
        with told(self.address):
            try:
                return _job(self._client.get_job_info(job_id))
            except RuntimeError as error:
                if "404" not in str(error):
                    raise
        raise InputError(f"the cluster at {self.address} knows no job {job_id}; 'stgs jobs' lists those that it knows.")

    def submit(self, submission: Submission, *, takeover: bool = False) -> Job:
        """Start a job under the next free id `<name>-<k>`.

        takeover: although a live driver, or another job, works on its run. Raises InputError where one does.
        """
        jobs = self.jobs()
        if submission.run is not None and not takeover:
            _require_free(submission.run, jobs)
        number = next_number(submission.name, (job.id for job in jobs))
        for k in range(number, number + _ID_ATTEMPTS):
            job_id = f"{submission.name}-{k}"
            if self._submit(submission, job_id):
                return self.job(job_id)
        raise UnreachableError(f"{_ID_ATTEMPTS} ids from {submission.name}-{number} were all taken; try again.")

    def _submit(self, submission: Submission, job_id: str) -> bool:
        """Whether the id was free, and the job started."""
        words = ["python", "-m", f"jobs.{submission.command}", *submission.words]
        environment = {_STOP_WAIT_VARIABLE: str(STOP_WAIT_S), **submission.environment, SUBMISSION_VARIABLE: job_id}
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "stgs.zip"
            archive.write_bytes(submission.archive)
            with told(self.address):
                try:
                    self._client.submit_job(
                        entrypoint=shlex.join(words),
                        submission_id=job_id,
                        runtime_env={"working_dir": str(archive), "env_vars": environment},
                        metadata={"run": submission.run or "", "name": submission.name, "command": submission.command},
                    )
                except RuntimeError as error:
                    if "already exists" not in str(error):
                        raise
                    return False
        return True

    def log(self, job_id: str) -> FollowedJob:
        """The job's log, for `cluster.job_log.follow`."""
        return FollowedJob(self, self._client, job_id)

    def stop(
        self, job_id: str, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> Job:
        """Ask a job to stop, and wait until it has: it saves first. A job that has ended stays as it is."""
        job = self.job(job_id)
        if not job.has_ended:
            with told(self.address):
                self._client.stop_job(job_id)
        # Ray kills it after STOP_WAIT_S.
        deadline = clock() + STOP_WAIT_S + _REQUEST_S
        while not job.has_ended and clock() < deadline:
            sleep(1.0)
            job = self.job(job_id)
        return job


@dataclass(frozen=True, slots=True)
class FollowedJob:
    """A job as `cluster.job_log.follow` reads it."""

    cluster: Cluster
    client: JobSubmissionClient
    job_id: str

    async def log(self) -> AsyncIterator[str]:
        """The log from its beginning, in pieces, until the job ends."""
        with told(self.cluster.address):
            async for text in self.client.tail_job_logs(self.job_id):
                yield text

    def has_ended(self) -> bool:
        """Whether the job has ended."""
        return self.cluster.job(self.job_id).has_ended


def next_number(name: str, ids: Iterable[str]) -> int:
    """The number after the highest k of the ids `<name>-<k>`; 1 if there is none."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    return 1 + max((int(found[1]) for item in ids if (found := pattern.fullmatch(item))), default=0)


def _require_free(run: str, jobs: Iterable[Job]) -> None:
    """Refuse a run on which a job of this cluster, or a live driver anywhere, works."""
    for job in jobs:
        if job.run == run and not job.has_ended:
            raise InputError(
                f"{run} is being worked on by the job {job.id}; wait, stop it with 'stgs stop {job.id}', or take over "
                "with --takeover."
            )
    try:
        read_driver(run)
    except (InputError, UnreachableError):
        return  # this machine cannot read the run's storage; the job's driver, which can, asks the same
    require_idle(run, takeover=False)


def _job(details: JobDetails) -> Job:
    metadata: dict[str, Any] = details.metadata or {}
    status, exit_code = _ending(str(details.status.value), details.driver_exit_code)
    return Job(
        id=details.submission_id or "",
        command=metadata.get("command") or _command(details.entrypoint),
        run=metadata.get("run") or None,
        status=status,
        exit_code=exit_code,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=details.message or "",
    )


def _ending(status: str, driver_exit_code: int | None) -> tuple[str, int | None]:
    """How a job stands, from Ray's status and its driver's exit code; the exit code of `stgs` for it."""
    if status == "PENDING":
        return WAITING, None
    if status == "RUNNING":
        return RUNNING, None
    if status == "STOPPED":
        return STOPPED, _STOPPED_CODE
    if status == "SUCCEEDED":
        return COMPLETE, 0
    # Another code than ours comes from a signal, from the shell, or from nobody.
    code = driver_exit_code if driver_exit_code in _BY_EXIT_CODE else 1
    return _BY_EXIT_CODE[code], code


def _command(entrypoint: str) -> str:
    """The command of a job that was submitted without `stgs submit`: `grid` of `python -m jobs.grid ...`."""
    found = re.search(r"-m jobs\.(\w+)", entrypoint)
    return found[1] if found else entrypoint.split(" ")[0]


def describe_end(job: Job) -> str:
    """What to say of a job that has ended, in a sentence or two."""
    if job.status == COMPLETE:
        return f"{job.id}: complete."
    if job.status == PARTLY:
        return f"{job.id}: complete, but a part failed; its log says which."
    if job.status == STOPPED:
        return f"{job.id}: stopped; to go on, {SUBMIT_AGAIN}."
    if job.message.startswith("Job entrypoint command failed") and (found := re.search(r"code (-?\d+)", job.message)):
        code = int(found[1])
        if code in _BY_EXIT_CODE:
            return f"{job.id}: failed with exit code {code}; its log says why."
        signal = -code if code < 0 else code - 128
        died = f"signal {signal}" if 0 < signal < 65 else f"exit code {code}"
        return f"{job.id}: its driver died ({died}); to go on, {SUBMIT_AGAIN}."
    reason = " ".join(job.message.split())[:300].rstrip(".")
    return f"{job.id}: failed without a word of its driver ({reason or 'no reason given'}); to go on, {SUBMIT_AGAIN}."
