"""`stgs submit`, `jobs`, `stop` and `results`: their words, and the whole way to a real head that asks for a token."""

import json
import re
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import yaml

from cluster.submission import Job, Submission
from data_prep import boxes
from data_prep.storage import InputError, UnreachableError
from jobs.cli import main
from jobs.jobs import table
from jobs.submit import split_command
from tests.jobs.local_head import Head, programs, running_head
from tests.planted import make_features

CLIENT_S = 120
DUMMY_SECRETS = {
    "AWS_ACCESS_KEY_ID": "dummy-id-3f1c",
    "AWS_SECRET_ACCESS_KEY": "dummy-secret-9a7e",
    "SOME_PASSWORD": "dummy-word-55d0",
}


def test_help_waits_for_nothing_heavy(repository: Path) -> None:
    script = """
import sys
from jobs.cli import main
for command in ("submit", "jobs", "stop", "results"):
    try:
        main([command, "--help"])
    except SystemExit:
        pass
print(sorted({"torch", "ray", "pandas", "pyarrow", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("grid F --json --env x", "-- grid F --json --env x"),
        ("--address URL grid --address X", "--address URL -- grid --address X"),
        ("--env A=1 --no-follow --env=B=2=3 grid F", "--no-follow --env A=1 B=2=3 -- grid F"),
        ("--name=n --json --takeover train RUN", "--name n --json --takeover -- train RUN"),
        ("--help", "--help"),
        ("--address", "--address"),
        ("", ""),
    ],
)
def test_our_options_stand_before_the_command(words: str, expected: str) -> None:
    assert split_command(words.split()) == expected.split()


def test_a_command_that_is_no_work_for_a_cluster_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["jobs"], ["demo", "--out", "x"], ["dance"]):
        assert main(["submit", *words]) == 2
        error = capsys.readouterr().err
        assert "manifest, augment, prepare, extract, search, grid" in error
        assert error.count("\n") == 1


class StandIn:
    """A cluster that takes one job, which never ends."""

    address = "http://head:8265"

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.submitted: list[tuple[Submission, bool]] = []

    def submit(self, submission: Submission, *, takeover: bool) -> Job:
        self.submitted.append((submission, takeover))
        return Job(f"{submission.name}-1", submission.command, submission.run, "waiting", None, None, None, "")

    def log(self, job_id: str) -> BaseException:
        return self.error


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> StandIn:
    def broken(job: BaseException, view: object) -> None:
        raise job

    cluster = StandIn(getattr(request, "param", KeyboardInterrupt()))
    monkeypatch.setattr("jobs.submit.connect", lambda address: cluster)
    monkeypatch.setattr("jobs.submit.follow", broken)
    return cluster


GRID = ["grid", "s3://b/f", "--manifest", "s3://b/m", "--out", "s3://b/run"]


def test_a_job_may_be_left_alone(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--no-follow", "--name", "n", "--takeover", "--env", "A=1", "--env", "B=2", *GRID]) == 0
    assert (
        capsys.readouterr().out
        == "n-1: submitted; see it with 'stgs jobs --follow n-1', stop it with 'stgs stop n-1'.\n"
    )
    (submission, takeover), *_ = stand_in.submitted
    assert (submission.words[-1], submission.environment, takeover) == ("--takeover", {"A": "1", "B": "2"}, True)
    assert main(["submit", "--no-follow", "--json", *GRID]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["id"], answer["run"], answer["exit_code"]) == ("run-1", "s3://b/run", None)
    assert stand_in.submitted[1][1] is False
    # Reports may be written while somebody searches.
    assert main(["submit", "--no-follow", "report", "s3://b/run"]) == 0
    assert stand_in.submitted[2][1] is True
    assert main(["submit", "--no-follow", "--name", "a/b", *GRID]) == 2


def test_an_interrupt_ends_the_showing_only(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *GRID]) == 3
    assert "run-1: goes on by itself; see it with 'stgs jobs --follow run-1'" in capsys.readouterr().out


@pytest.mark.parametrize("stand_in", [UnreachableError("no answer."), InputError("no such job.")], indirect=True)
def test_a_lost_head_is_a_failure_that_says_how_to_go_on(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *GRID]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stgs submit: run-1 can no longer be followed (no ")
    assert "submit the command again (baseline, grid and search: with --resume)" in last


def test_jobs_are_a_table() -> None:
    jobs = [
        Job("a-1", "grid", "s3://b/a", "partly", 4, 1000.0, 8323.0, ""),
        Job("long-name-2", "train", None, "running", None, 9000.0, None, ""),
        Job("c-1", "grid", None, "waiting", None, None, None, ""),
    ]
    header, *rows = table(jobs, now=9061.4).splitlines()
    assert header.split() == ["job", "command", "status", "exit", "code", "started", "time", "run"]
    assert [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE", row).split() for row in rows] == [
        ["a-1", "grid", "partly", "4", "DATE", "2:02:03", "s3://b/a"],
        ["long-name-2", "train", "running", "DATE", "0:01:01"],
        ["c-1", "grid", "waiting", "0:00:00"],
    ]
    assert table([], now=0.0) == "no jobs"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> typing.Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("head")) as started:
        yield started


def client(head: Head, repository: Path, *words: str, **changes: str) -> subprocess.Popen[str]:
    """`stgs` in a shell that has the token and secrets of other services."""
    environment = {
        "PATH": programs(),
        "HOME": str(head.token_path.parent),
        "PYTHONPATH": str(repository),
        "OMP_NUM_THREADS": "1",
        "RAY_API_SERVER_ADDRESS": head.address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(head.token_path),
        **DUMMY_SECRETS,
        **changes,
    }
    command = [sys.executable, "-m", "jobs.cli", *words]
    folder = head.token_path.parent
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=CLIENT_S)
    return process.returncode, out, error


def command_lines() -> str:
    """The words of all processes of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return "\n".join(found)


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_a_grid_on_a_head_with_a_token(head: Head, repository: Path, tmp_path: Path) -> None:
    features, manifest = make_features(tmp_path)
    settings = {"manifest": manifest, "channels": 8, "epochs": 2, "batch_size": 32, "num_samples": [5], "pack": 2}
    config, run = tmp_path / "grid.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(settings))
    long = ["--epochs", "4000", "--temperatures", "5"]
    words = ["grid", features, "--config", str(config), "--out"]
    grid = client(head, repository, "submit", "--env", "STGS_NOTE=1", *words, str(run), "--temperatures", "5", "10")
    nothing = ["manifest", "folder", str(tmp_path / "nothing"), "--out", str(tmp_path / "listed")]
    wrong = client(head, repository, "submit", "--json", *nothing)
    checked = client(head, repository, "submit", "doctor", "--storage", str(tmp_path / "store"))
    stopped = client(head, repository, "submit", "--name", "long", *words, str(tmp_path / "long"), *long)
    seen = [command_lines()]
    while grid.poll() is None:
        seen.append(command_lines())
        time.sleep(0.5)
    assert any("jobs.grid" in lines for lines in seen)

    code, out, error = ended(grid)
    assert code == 0, out + error
    assert "best on dev:" in out
    assert "grid: 100%" in out
    assert out.splitlines()[-1] == "run-1: complete. Its results: stgs results run-1 --out DIR"
    assert "is a local path: every machine of the cluster has to see the same files there" in error
    code, out, _ = ended(wrong)
    assert code == 2
    answer = json.loads(out)
    assert (answer["id"], answer["status"], answer["exit_code"]) == ("listed-1", "failed", 2)

    # The machine of a test need not be a good node, but its storage is in order, as seen from here and by a task.
    code, out, _ = ended(checked)
    assert code in (0, 1)
    assert "doctor-1: " in out.splitlines()[-1]
    assert sum(line.startswith("ok    here  storage ") for line in out.splitlines()) == 6
    assert sum(line.startswith("ok    node ") and "  storage " in line for line in out.splitlines()) == 7

    wait_for_a_state(tmp_path / "long")
    stopped.send_signal(signal.SIGINT)
    code, out, error = ended(stopped)
    assert code == 3, out + error
    assert out.endswith(
        "long-1: goes on by itself; see it with 'stgs jobs --follow long-1', stop it with 'stgs stop long-1'.\n"
    )
    stop = client(head, repository, "stop", "long-1")
    refused = client(head, repository, "jobs", RAY_AUTH_TOKEN="another-token")
    results = client(head, repository, "results", "run-1", "--out", str(tmp_path / "fetched"))
    assert ended(stop)[:2] == (
        0,
        "long-1: stopped; to go on, submit the command again (baseline, grid and search: with --resume).\n",
    )
    code, _, error = ended(refused)
    assert code == 2
    assert error.count("\n") == 1
    assert "refuses the token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH" in error
    assert ended(results)[0] == 0
    fetched = tmp_path / "fetched"
    rows = boxes.read_table(str(fetched / "grid.parquet")).to_pylist()
    assert [row["temperature"] for row in rows] == [5, 10]
    for row in rows:
        genotype = (fetched / "points" / row["id"] / "genotype.json").read_text()
        assert json.loads(genotype) == json.loads(row["genotype"])
    # The driver saved before it ended, for which Ray's own limit would leave it 3 s.
    supervisor = next(head.folder.glob("session_2*/logs/jobs/supervisor-long-1.log")).read_text()
    assert "terminated gracefully with SIGTERM" in supervisor
    require_no_secret(head, tmp_path, seen)


def wait_for_a_state(run: Path) -> None:
    deadline = time.monotonic() + CLIENT_S
    while not list(run.glob("packs/*/attempts/0/state-*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def require_no_secret(head: Head, runs: Path, command_lines_seen: list[str]) -> None:
    """Neither the token nor a secret of the client's shell stands in argv, job record, logs or files of the runs."""
    record = head.get("/api/jobs/")
    assert "long-1" in record
    places = {"argv": "\n".join(command_lines_seen), "job record": record}
    files = [path for folder in (head.folder, runs) for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "job-driver-run-1.log"} <= {path.name for path in files}
    places |= {str(path): path.read_text(errors="replace") for path in files}
    for place, text in places.items():
        for secret in (head.token, *DUMMY_SECRETS.values()):
            assert secret not in text, f"a secret stands in {place}"
