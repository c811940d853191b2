"""Watches for the notice that EC2 gives two minutes before it takes a spot machine back; started beside each raylet.

At the notice it raises the node's flag, so that searches here save at their next update and go on elsewhere, and drains
the node, so that Ray starts nothing new on it. The metadata service is asked every 5 seconds, as the EC2 User Guide
('Spot Instance interruption notices') advises, by its second version (IMDSv2): a session token first, then the reads.
A rebalance recommendation is only logged: such a machine often runs on for hours.

    python -m cluster.spot_watch                      until the raylet ends
    python -m cluster.spot_watch --leave-now REASON   the same steps at once, where something else gives the notice

Only the standard library, and Ray's own program for draining: it runs on every machine for as long as that stands.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cluster.stopping import raise_node_flag

ENDPOINT = "http://169.254.169.254"
NOTICE_S = 120.0
"""How long before the end EC2 gives notice: assumed where a notice names no time."""

_TOKEN_LIFE_S = 21600
_REQUEST_S = 2.0
_DRAIN_S = 30.0
_NOTICE_PATH, _REBALANCE_PATH = "spot/instance-action", "events/recommendations/rebalance"
# A flag outlives its node by this much: harmless, since a node's id is never used again.
_FLAG_KEPT_S = 600.0


class MetadataError(Exception):
    """The metadata service does not answer, or not as one."""


class MetadataService:
    """Instance metadata by IMDSv2.

    Args:
        endpoint: base address, without a slash at its end.
        clock: seconds that never go back.
    """

    def __init__(self, endpoint: str = ENDPOINT, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._endpoint, self._clock = endpoint, clock
        self._token, self._token_ends = "", -1.0
        # The address is the machine's own: a proxy of the environment would ask for another machine, or nobody.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def read(self, path: str) -> str | None:
        """The text at a path below `meta-data`, None where there is none (such as a notice that was not given).

        Raises MetadataError.
        """
        if self._clock() >= self._token_ends:
            self._renew_token()
        status, text = self._get(path)
        if status == 401:  # the token is no longer accepted, as after the machine was stopped and started again
            self._renew_token()
            status, text = self._get(path)
        if status == 404:
            return None
        if status != 200:
            raise MetadataError(f"{self._endpoint} answers {status} for {path}")
        return text

    def _get(self, path: str) -> tuple[int, str]:
        """The status and the text of an answer."""
        try:
            return 200, self._send("GET", f"meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            return error.code, ""

    def _renew_token(self) -> None:
        header = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
        try:
            self._token = self._send("PUT", "api/token", header)
        except urllib.error.HTTPError as error:
            raise MetadataError(f"{self._endpoint} answers {error.code} for a session token") from error
        self._token_ends = self._clock() + _TOKEN_LIFE_S / 2

    def _send(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._endpoint}/latest/{path}", method=method, headers=headers)
        try:
            with self._opener.open(request, timeout=_REQUEST_S) as answer:
                return str(answer.read().decode("utf-8", "replace"))
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise MetadataError(f"{self._endpoint} does not answer: {error}") from error


@dataclass(frozen=True, slots=True)
class Notice:
    """action: what happens to the machine (`terminate`, `stop` or `hibernate`). ends: unix second."""

    action: str
    ends: float


def read_notice(service: MetadataService, now: float) -> Notice | None:
    """The notice that this machine was given; None without one.

    A notice that cannot be read is one all the same, and takes effect in NOTICE_S. Raises MetadataError.
    """
    text = service.read(_NOTICE_PATH)
    if text is None:
        return None
    try:
        content = json.loads(text)
        return Notice(str(content["action"]), datetime.fromisoformat(content["time"]).timestamp())
    except (ValueError, KeyError, TypeError):
        return Notice("terminate", now + NOTICE_S)


@dataclass(frozen=True, slots=True)
class Raylet:
    """Ray's process on this machine. gcs_address: HOST:PORT of the cluster's head."""

    pid: int
    node_id: str
    gcs_address: str


def find_raylets(proc: Path = Path("/proc")) -> list[Raylet]:
    """The raylets of this user that run on this machine (or in this container), by their command lines."""
    return [raylet for entry in sorted(proc.glob("[0-9]*")) if (raylet := _read_raylet(entry)) is not None]


def _read_raylet(entry: Path) -> Raylet | None:
    try:
        if entry.stat().st_uid != os.getuid():
            return None
        words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:  # it has just ended
        return None
    if Path(words[0]).name != "raylet":
        return None
    options = dict(word[2:].split("=", 1) for word in words[1:] if word.startswith("--") and "=" in word)
    node_id, address = options.get("node_id"), options.get("gcs-address")
    return Raylet(int(entry.name), node_id, address) if node_id and address else None


def is_running(raylet: Raylet, proc: Path = Path("/proc")) -> bool:
    """Whether it has not ended (a dead process that nobody has waited for has ended, too)."""
    return _read_raylet(proc / str(raylet.pid)) == raylet


class NoRayletError(Exception):
    """There is no raylet to watch for, or it is unclear which."""


def own_raylet(node_id: str | None, wait_s: float) -> Raylet:
    """The raylet of this machine, or that of the given node, waited for up to `wait_s`. Raises NoRayletError."""
    ends = time.monotonic() + wait_s
    while True:
        found = [raylet for raylet in find_raylets() if node_id in (None, raylet.node_id)]
        if len(found) == 1:
            return found[0]
        if found:
            nodes = ", ".join(raylet.node_id for raylet in found)
            raise NoRayletError(f"{len(found)} raylets run on this machine; choose one with --node-id: {nodes}.")
        if time.monotonic() >= ends:
            wanted = "no raylet" if node_id is None else f"no raylet of the node {node_id}"
            raise NoRayletError(f"{wanted} runs on this machine; start it with 'ray start --address=HOST:PORT'.")
        time.sleep(0.5)


def leave(raylet: Raylet, reason: str, ends: float, ray: Sequence[str]) -> bool:
    """Raise the node's flag, then drain the node; returns whether the flag stands and Ray accepted the drain.

    Where the flag cannot be written, as on a full disk, the node is drained all the same. reason: words for a user.
    ends: unix second at which the machine is gone. ray: Ray's program.
    """
    raised = _raise_flag(raylet, reason, ends)
    drained = _drain(raylet, reason, ends, ray)
    # Draining takes a second or more: the disk may have room by now.
    return (raised or _raise_flag(raylet, reason, ends)) and drained


def _raise_flag(raylet: Raylet, reason: str, ends: float) -> bool:
    try:
        raise_node_flag(raylet.node_id, reason, ends + _FLAG_KEPT_S)
    except OSError as error:
        log(f"the node's flag cannot be raised, so that work here does not save by itself: {error}")
        return False
    return True


def _drain(raylet: Raylet, reason: str, ends: float, ray: Sequence[str]) -> bool:
    left = max(0, round(ends - time.time()))
    command = [*ray, "drain-node", "--address", raylet.gcs_address, "--node-id", raylet.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", reason]
    command += ["--deadline-remaining-seconds", str(left)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRAIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log(f"draining failed: {error}")
        return False
    if done.returncode != 0:
        log(f"draining failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.returncode == 0


def watch(
    service: MetadataService,
    raylet: Raylet,
    ray: Sequence[str],
    *,
    every_s: float = 5.0,
    patience_s: float = 60.0,
    alive: Callable[[Raylet], bool] = is_running,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait for a notice, leave at it, and return when the raylet has ended.

    every_s: between two questions. patience_s: how long a service that has never answered is asked. Returns False if it
    never answered in that time (this is no EC2 machine), True once the raylet has ended.
    """
    begun, answered, silent, advised, left = time.monotonic(), False, False, False, False
    notice: Notice | None = None
    while alive(raylet):
        try:
            if notice is None and (notice := read_notice(service, time.time())) is not None:
                log(f"notice: {notice.action} in {notice.ends - time.time():.0f} s; node {raylet.node_id} leaves")
            if notice is None and not advised and (text := service.read(_REBALANCE_PATH)) is not None:
                advised = True
                log(f"rebalance recommendation (nothing is done about it): {text.strip()}")
            answered, silent = True, False
        except MetadataError as error:
            if not answered and time.monotonic() - begun >= patience_s:
                log(f"{error}; this is no EC2 machine, or its metadata are off: no notices are watched for")
                return False
            if answered and not silent:
                silent = True
                log(f"{error}; asking on")
        if notice is not None and not left:
            left = leave(raylet, f"the machine gets a spot notice ({notice.action})", notice.ends, ray)
        sleep(every_s)
    log(f"the raylet of node {raylet.node_id} has ended")
    return True


def log(line: str) -> None:
    """One line with the time (UTC) on standard output, at once."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} spot_watch: {line}", flush=True)


def ray_program() -> list[str]:
    """Ray's program: the one beside this Python if there is one, else the first on PATH."""
    beside = Path(sys.executable).parent / "ray"
    return [str(beside) if beside.is_file() else shutil.which("ray") or "ray"]


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m cluster.spot_watch`; 0: the raylet has ended, or this is no EC2 machine; 1: it could not leave."""
    parser = argparse.ArgumentParser(prog="spot_watch", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--endpoint", default=ENDPOINT, help="of the metadata service (default: %(default)s)")
    parser.add_argument("--node-id", help="of the raylet, where several run on this machine")
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two questions (5)")
    parser.add_argument("--patience", type=float, default=60.0, metavar="S", help="for the first answer (60)")
    parser.add_argument("--ray", help="Ray's program (default: the one beside this Python)")
    parser.add_argument("--leave-now", metavar="REASON", help="ask nobody: leave at once")
    parser.add_argument("--within", type=float, default=NOTICE_S, metavar="S", help="with --leave-now: by then (120)")
    options = parser.parse_args(argv)
    ray = [options.ray] if options.ray else ray_program()
    try:
        raylet = own_raylet(options.node_id, options.patience)
    except NoRayletError as error:
        print(f"spot_watch: {error}", file=sys.stderr)
        return 1
    if options.leave_now is None:
        log(f"watching for node {raylet.node_id}")
        watch(MetadataService(options.endpoint), raylet, ray, every_s=options.every, patience_s=options.patience)
        return 0
    ends = time.time() + options.within
    left = leave(raylet, options.leave_now, ends, ray)
    while is_running(raylet) and time.time() < ends:
        time.sleep(0.5)
    return 0 if left else 1


if __name__ == "__main__":
    sys.exit(main())
