"""The watcher of spot notices, against a metadata service of our own that insists on the token protocol."""

from __future__ import annotations

import errno
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import spot_watch
from cluster.spot_watch import MetadataError, MetadataService, Notice, Raylet, read_notice
from cluster.stopping import node_flag_path, node_stop

IN_TWO_MINUTES = {"action": "terminate", "time": "2026-11-21T12:02:00Z"}
NODE = "ab" * 28


class FakeMetadata:
    """What it serves below meta-data, which session tokens it accepts, and what it was asked."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.asked: list[str] = []
        self.failing = 0  # a status that every request is answered with
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                life = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                if served.failing or self.path != "/latest/api/token":
                    self.send_error(served.failing or 404)
                elif not (life.isdigit() and 1 <= int(life) <= 21600):
                    self.send_error(400)
                else:
                    token = f"token-{len(served.asked)}"
                    served.tokens.add(token)
                    self._answer("PUT token", token)

            def do_GET(self) -> None:
                path = self.path.removeprefix("/latest/meta-data/")
                if served.failing:
                    self.send_error(served.failing)
                elif self.headers.get("X-aws-ec2-metadata-token") not in served.tokens:
                    served.asked.append("refused")
                    self.send_error(401)
                elif path not in served.texts:
                    served.asked.append(f"no {path}")
                    self.send_error(404)
                else:
                    self._answer(path, served.texts[path])

            def _answer(self, what: str, text: str) -> None:
                served.asked.append(what)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMetadata]:
    # A proxy must not be asked for this machine's own metadata; this one does not exist.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    fake = FakeMetadata()
    yield fake
    fake.close()


def write_fake_ray(tmp_path: Path, script: str) -> Path:
    program = tmp_path / "ray"
    program.write_text(f'#!/bin/sh\n{{ printf "%s\\n" "$@"; echo --; }} >> {tmp_path}/calls\n{script}\n')
    program.chmod(0o755)
    return program


def read_calls(tmp_path: Path) -> list[list[str]]:
    text = (tmp_path / "calls").read_text()
    return [call.splitlines() for call in text.split("--\n") if call and not call.startswith("\n")] if text else []


def test_a_token_is_fetched_once_and_again_when_it_is_refused(metadata: FakeMetadata) -> None:
    service = MetadataService(metadata.endpoint)
    metadata.texts["instance-id"] = "i-1"
    assert [service.read("instance-id"), service.read("instance-id"), service.read("nothing")] == ["i-1", "i-1", None]
    assert metadata.asked == ["PUT token", "instance-id", "instance-id", "no nothing"]
    metadata.tokens.clear()
    assert service.read("instance-id") == "i-1"
    assert metadata.asked[4:] == ["refused", "PUT token", "instance-id"]


def test_a_token_is_renewed_before_it_ends(metadata: FakeMetadata) -> None:
    now = 0.0
    service = MetadataService(metadata.endpoint, clock=lambda: now)
    metadata.texts["instance-id"] = "i-1"
    service.read("instance-id")
    now = 21599.0
    service.read("instance-id")
    assert metadata.asked.count("PUT token") == 2


@pytest.mark.parametrize("status", [403, 500])
def test_a_service_that_fails_is_told_from_one_without_a_notice(metadata: FakeMetadata, status: int) -> None:
    metadata.failing = status
    with pytest.raises(MetadataError, match=f"answers {status}"):
        MetadataService(metadata.endpoint).read("spot/instance-action")


def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(MetadataError, match="does not answer"):
        MetadataService(f"http://127.0.0.1:{port}").read("instance-id")


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        (json.dumps(IN_TWO_MINUTES), Notice("terminate", 1795262520.0)),
        (json.dumps({"action": "stop", "time": "2026-11-21T12:02:00Z"}), Notice("stop", 1795262520.0)),
        ("{half", Notice("terminate", 1120.0)),
        ("[]", Notice("terminate", 1120.0)),
        (json.dumps({"action": "terminate", "time": "soon"}), Notice("terminate", 1120.0)),
        (json.dumps({"action": "terminate", "time": 5}), Notice("terminate", 1120.0)),
    ],
)
def test_a_notice_is_read_and_one_that_cannot_be_read_counts(metadata: FakeMetadata, text: str, notice: Notice) -> None:
    service = MetadataService(metadata.endpoint)
    assert read_notice(service, 1000.0) is None
    metadata.texts["spot/instance-action"] = text
    assert read_notice(service, 1000.0) == notice


class Steps:
    """Stands for the pause between two questions: does the next thing of a list, and ends the raylet after the last."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        self.left, self.alive = list(actions), True

    def sleep(self, seconds: float) -> None:
        assert seconds == 5.0
        self.alive = bool(self.left)
        if self.left:
            self.left.pop(0)()

    def is_alive(self, raylet: Raylet) -> bool:
        return self.alive


def watch(metadata: FakeMetadata, ray: Path, steps: Steps, **settings: float) -> bool:
    raylet = Raylet(os.getpid(), NODE, "10.0.0.1:6379")
    service = MetadataService(metadata.endpoint)
    return spot_watch.watch(service, raylet, [str(ray)], alive=steps.is_alive, sleep=steps.sleep, **settings)


@pytest.fixture
def flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return node_flag_path(NODE)


def test_a_notice_raises_the_flag_and_drains_once(metadata: FakeMetadata, flag: Path, tmp_path: Path) -> None:
    # The flag stands before Ray is asked, so that work stops even where Ray does not answer.
    ray = write_fake_ray(tmp_path, f"test -f {flag}")

    def give_notice() -> None:
        assert not flag.exists()
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 110))
        metadata.texts["spot/instance-action"] = json.dumps({"action": "terminate", "time": ends})

    steps = Steps(lambda: None, give_notice, lambda: None, lambda: None)
    assert watch(metadata, ray, steps)
    (call,) = read_calls(tmp_path)
    assert call[:5] == ["drain-node", "--address", "10.0.0.1:6379", "--node-id", NODE]
    assert call[5:9] == ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", call[8]]
    assert call[9] == "--deadline-remaining-seconds"
    assert 100 <= int(call[10]) <= 110
    stop = node_stop(NODE)
    assert stop is not None
    assert (stop.scope, stop.reason) == ("node", "the machine gets a spot notice (terminate)")


def test_a_drain_that_fails_is_tried_again(metadata: FakeMetadata, flag: Path, tmp_path: Path) -> None:
    ray = write_fake_ray(
        tmp_path, f"test $(grep -c drain-node {tmp_path}/calls) -ge 3 || {{ echo no head >&2; exit 1; }}"
    )
    metadata.texts["spot/instance-action"] = json.dumps(IN_TWO_MINUTES)
    assert watch(metadata, ray, Steps(*[lambda: None] * 5))
    assert len(read_calls(tmp_path)) == 3


def test_a_full_disk_stops_neither_the_drain_nor_the_watch(
    metadata: FakeMetadata,
    flag: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails = [OSError(errno.ENOSPC, "No space left on device")] * 3
    whole = spot_watch.raise_node_flag

    def raise_flag(node_id: str, reason: str, expires: float) -> None:
        if fails:
            raise fails.pop()
        whole(node_id, reason, expires)

    monkeypatch.setattr(spot_watch, "raise_node_flag", raise_flag)
    metadata.texts["spot/instance-action"] = json.dumps(
        {"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 110))}
    )
    assert watch(metadata, write_fake_ray(tmp_path, ""), Steps(*[lambda: None] * 4))
    # Twice with each drain: the first time in vain, the second time with success after the drain.
    assert len(read_calls(tmp_path)) == 2
    assert node_stop(NODE) is not None
    assert capsys.readouterr().out.count("flag cannot be raised") == 3


def test_a_rebalance_recommendation_is_only_logged(
    metadata: FakeMetadata, flag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata.texts["events/recommendations/rebalance"] = '{"noticeTime": "2026-11-21T12:00:00Z"}'
    assert watch(metadata, write_fake_ray(tmp_path, ""), Steps(lambda: None, lambda: None))
    assert capsys.readouterr().out.count("rebalance recommendation") == 1
    assert not flag.exists()
    assert not (tmp_path / "calls").exists()


def test_an_outage_of_the_service_does_not_end_the_watch(
    metadata: FakeMetadata, flag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(status: int) -> Callable[[], None]:
        return lambda: setattr(metadata, "failing", status)

    def give_notice() -> None:
        metadata.failing = 0
        metadata.texts["spot/instance-action"] = json.dumps(IN_TWO_MINUTES)

    ray = write_fake_ray(tmp_path, "")
    assert watch(metadata, ray, Steps(fail(500), fail(503), give_notice, lambda: None), patience_s=0.0)
    assert len(read_calls(tmp_path)) == 1
    assert capsys.readouterr().out.count("asking on") == 1


def test_without_a_metadata_service_it_says_so_once_and_ends(
    metadata: FakeMetadata, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata.failing = 404
    assert not watch(metadata, write_fake_ray(tmp_path, ""), Steps(lambda: None), patience_s=0.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert "no notices are watched for" in line


def fake_process(proc: Path, pid: int, *words: str) -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cmdline").write_bytes("\0".join(words).encode() + b"\0")


def test_raylets_are_found_by_their_command_lines(tmp_path: Path) -> None:
    options = ("--node_id=aa", "--labels={}", "--gcs-address=10.0.0.1:6379")
    fake_process(tmp_path, 11, "/site-packages/ray/core/src/ray/raylet/raylet", *options)
    fake_process(tmp_path, 12, "python", "raylet", *options)
    fake_process(tmp_path, 13, "/usr/bin/raylet", "--node_id=bb")
    (tmp_path / "14").mkdir()  # it ended while /proc was read
    found = spot_watch.find_raylets(tmp_path)
    assert found == [Raylet(11, "aa", "10.0.0.1:6379")]
    assert spot_watch.is_running(found[0], tmp_path)
    (tmp_path / "11" / "cmdline").write_bytes(b"")  # a dead process that nobody has waited for
    assert not spot_watch.is_running(found[0], tmp_path)


def test_which_raylet_is_told_or_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here = [Raylet(11, "aa", "h:1"), Raylet(12, "bb", "h:1")]
    monkeypatch.setattr(spot_watch, "find_raylets", lambda: here)
    assert spot_watch.own_raylet("bb", 0.0) == here[1]
    assert spot_watch.main(["--patience", "0"]) == 1
    assert "choose one with --node-id: aa, bb." in capsys.readouterr().err
    assert spot_watch.main(["--patience", "0", "--node-id", "cc"]) == 1
    assert "no raylet of the node cc runs on this machine" in capsys.readouterr().err


def test_it_is_light(repository: Path) -> None:
    code = "import cluster.spot_watch, sys; sys.exit(bool({'ray', 'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0


def test_a_real_node_is_drained_and_tasks_go_elsewhere(metadata: FakeMetadata, repository: Path) -> None:
    command = [sys.executable, "-m", "tests.cluster.drained_node", metadata.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 100))
        metadata.texts["spot/instance-action"] = json.dumps({"action": "terminate", "time": ends})
        said = process.communicate(timeout=90)[0]
    assert process.returncode == 0
    # Both nodes had a task before; after the notice only the one that stays gets any.
    assert json.loads(said) == {"before": ["leaves", "stays"], "after": ["stays"], "flag": "node", "ended": 0}
