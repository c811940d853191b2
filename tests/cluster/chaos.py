"""A grid whose workers, nodes, drivers and head are killed at counted events, and what must hold in the end.

    python -m tests.cluster.chaos [--kills 50] [--seed 0]

An event is a state that appears in the run directory: kills come after so many of them, so that they hit a search in
its middle on a fast machine and on a slow one. The cluster is a head without CPUs and two raylets of one CPU each on
this machine; drivers are started and resumed as a user would, with `python -m jobs.grid`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from ray.cluster_utils import Cluster

from cluster.attempts import read_packs, read_result
from cluster.features import FeatureSource, open_features
from cluster.grid import pack_job, plan_packs
from cluster.packing import add_packs
from cluster.search_loop import search_pack
from cluster.settings import GridConfig, SearchSettings
from data_prep import boxes, storage
from stgs.config import SearchConfig
from tests.planted import make_features

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ("worker", "node", "driver", "head")
# A dead node is noticed after a second here, after half a minute by default; a driver gives a lost head up as soon.
FAST_DETECTION = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "200",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
EVENT_TIMEOUT_S = 120.0
_EPOCH = re.compile(r" epoch (\d+) of ")
_VOLATILE = ("curves", "seconds", "device_seconds", "attempt")


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill. events: states that appear before it, counted from the kill before. kind: one of `KINDS`."""

    events: int
    kind: str


class Nodes:
    """The cluster of this machine: a head without CPUs, and two nodes of one CPU each."""

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.start()

    def start(self) -> None:
        """Start the head and its nodes."""
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.workers = [self.cluster.add_node(num_cpus=1) for _ in range(self.count)]

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self.cluster.address)

    def remove(self, number: int) -> None:
        """A node is gone from one moment to the next, with all its processes."""
        self.cluster.remove_node(self.workers.pop(number), allow_graceful=False)

    def add(self) -> None:
        """A new node of one CPU."""
        self.workers.append(self.cluster.add_node(num_cpus=1))

    def end(self) -> None:
        """Kill everything that `start` started."""
        for worker in list(self.cluster.worker_nodes):
            self.cluster.remove_node(worker, allow_graceful=False)
        if self.cluster.head_node is not None:
            self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)


@contextlib.contextmanager
def nodes(count: int = 2) -> Iterator[Nodes]:
    """`Nodes` that notice a loss fast, ended on leaving."""
    before = {name: os.environ.get(name) for name in FAST_DETECTION}
    os.environ.update(FAST_DETECTION)
    found = Nodes(count)
    try:
        yield found
    finally:
        found.end()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


class Driver:
    """The processes of `python -m jobs.<job>`, one after the other, that work on a run."""

    def __init__(self, job: str, source: FeatureSource, run: Path, options: Sequence[str]) -> None:
        self.run, self.log_path = run, run.parent / f"{run.name}.log"
        self._words = [sys.executable, "-m", f"jobs.{job}", source.uri, "--manifest", source.manifest_uri]
        self._words += ["--out", str(run), *options]
        self._log: IO[bytes] = self.log_path.open("ab")
        self._seen: set[Path] = set()

    def start(self, address: str, *, resume: bool) -> None:
        """Begin the run, or continue it."""
        words = [*self._words, "--address", address, *(["--resume"] if resume else [])]
        self.process = subprocess.Popen(
            words, cwd=REPOSITORY, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def kill(self) -> None:
        """The driver alone dies, as in a machine that stays."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds: float = EVENT_TIMEOUT_S) -> int:
        """The exit code. Raises TimeoutExpired."""
        return self.process.wait(seconds)

    def wait_for_states(self, count: int) -> bool:
        """Wait until `count` states have appeared since the last call; False if the driver has ended before."""
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        first = len(self._seen)
        while len(self._seen) < first + count:
            self._seen.update(self.run.glob("packs/*/attempts/*/state-*.pt"))
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {count} states in {EVENT_TIMEOUT_S:.0f} s: {self.log()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.02)
        return True

    def wait_for_workers(self) -> list[int]:
        """Processes that search a pack, once there are some; none if the driver has ended before."""
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        while not (pids := _working_pids(self.run)) and self.process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing was searched for {EVENT_TIMEOUT_S:.0f} s: {self.log()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.02)
        return pids

    def log(self) -> str:
        """What the drivers have printed, the end of it."""
        return self.log_path.read_text()[-4000:]

    def end(self) -> None:
        """Kill what still runs."""
        if self.process.poll() is None:
            self.kill()
        self._log.close()


def _working_pids(run: Path) -> list[int]:
    """The processes that search a pack of the run right now."""
    found = []
    for path in sorted(run.glob("packs/*/attempts/*/heartbeat.json")):
        beat = json.loads(path.read_text())
        if beat["ended"] is None and Path(f"/proc/{beat['pid']}").exists():
            found.append(int(beat["pid"]))
    return found


def disturb(grid: Driver, cluster: Nodes, kills: Sequence[Kill], say: Callable[[str], None]) -> list[str]:
    """Start a grid, kill as planned, and see it to its end. Returns the kinds of the kills that met a running grid."""
    choice = random.Random(0)
    grid.start(cluster.address, resume=False)
    done: list[str] = []
    for kill in kills:
        if not grid.wait_for_states(kill.events):
            break
        if kill.kind == "worker":
            if not (pids := grid.wait_for_workers()):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(choice.choice(pids), signal.SIGKILL)
        elif kill.kind == "node":
            cluster.remove(choice.randrange(len(cluster.workers)))
            cluster.add()
        elif kill.kind == "driver":
            grid.kill()
            grid.start(cluster.address, resume=True)
        else:
            cluster.end()
            # The driver notices, and ends by itself; whatever its exit code, the run can be resumed.
            grid.wait()
            cluster.start()
            grid.start(cluster.address, resume=True)
        done.append(kill.kind)
        say(f"kill {len(done)}: {kill.kind}")
    code = grid.wait(20 * EVENT_TIMEOUT_S)
    if code != 0:
        raise AssertionError(f"the last driver ended with exit code {code}: {grid.log()}")
    return done


def search_undisturbed(run: Path, config: GridConfig, source: FeatureSource) -> None:
    """The same grid in this process, without Ray."""
    torch.set_num_threads(config.settings.threads)
    splits = source.load_splits(("train", "dev"))
    for pack in add_packs(str(run), [], plan_packs(config, config.settings, source)):
        job = pack_job(str(run), config.settings, source, pack)
        search_pack(job, pack, splits["train"], splits["dev"], lambda row: None)


def differences(disturbed: Path, quiet: Path, config: GridConfig, kinds: Sequence[str]) -> list[str]:
    """What does not hold: results missing, results or curves that differ, more epochs than the kills explain."""
    found = []
    for point in config.points():
        one, two = (read_result(str(run), point.id) for run in (disturbed, quiet))
        if one is None or two is None:
            found.append(f"{point.id} has no result")
            continue
        if _stable(one) != _stable(two):
            found.append(f"{point.id} differs: {_stable(one)} and {_stable(two)}")
        if _curves(disturbed, one) != _curves(quiet, two):
            found.append(f"the curves of {point.id} differ")
    packs = read_packs(str(disturbed))
    largest, together = max(len(pack.points) for pack in packs), len(config.points())
    needed = config.settings.search.epochs * together
    allowed = needed + sum(largest if kind in ("worker", "node") else together for kind in kinds)
    run = _epochs_run(disturbed, {pack.name: len(pack.points) for pack in packs})
    if not needed <= run <= allowed:
        found.append(f"{run} epochs of points were run; {needed} are needed, {allowed} may be after {len(kinds)} kills")
    return found


def _stable(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in _VOLATILE}


def _curves(run: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = boxes.read_table(storage.join(str(run), result["curves"]["path"])).to_pylist()
    own = [row for row in rows if row["member"] == result["curves"]["member"]]
    return [{name: value for name, value in row.items() if name != "member"} for row in own]


def _epochs_run(run: Path, points: dict[str, int]) -> int:
    """Epochs of points that the attempts' logs tell of."""
    total = 0
    for path in run.glob("packs/*/attempts/*/log.txt"):
        epochs = {int(match[1]) for match in _EPOCH.finditer(path.read_text())}
        total += len(epochs) * points[path.parts[-4]]
    return total


def chaos_config(points: int, pack: int, epochs: int) -> tuple[GridConfig, list[str]]:
    """A grid of `points` points, an even number, in packs of `pack`, and the options of `stgs grid` that ask for it."""
    samples = tuple(range(1, points // 2 + 1))
    search = SearchConfig(epochs=epochs, batch_size=4)
    config = GridConfig(
        temperatures=(5.0, 10.0),
        num_samples=samples,
        pack=pack,
        settings=SearchSettings(channels=8, device="cpu", search=search),
    )
    options = ["--temperatures", "5", "10", "--num-samples", *map(str, samples), "--pack", str(pack)]
    options += ["--channels", "8", "--device", "cpu", "--epochs", str(epochs), "--batch-size", "4"]
    options += ["--candidates", "0"]
    return config, options


def random_kills(count: int, seed: int) -> list[Kill]:
    """A plan: mostly workers and nodes, some drivers, now and then the head."""
    choice = random.Random(seed)
    kinds = choice.choices(KINDS, weights=(5, 3, 2, 1), k=count)
    return [Kill(choice.randint(1, 4), kind) for kind in kinds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        root = Path(folder)
        source = open_features(*make_features(root / "planted"))
        config, options = chaos_config(points=16, pack=2, epochs=max(arguments.kills // 2, 8))
        search_undisturbed(root / "quiet", config, source)
        print(f"undisturbed: {time.monotonic() - start:.0f} s", flush=True)
        grid = Driver("grid", source, root / "disturbed", options)
        with nodes() as cluster:
            try:
                done = disturb(
                    grid,
                    cluster,
                    random_kills(arguments.kills, arguments.seed),
                    lambda line: print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True),
                )
            finally:
                grid.end()
        wrong = differences(root / "disturbed", root / "quiet", config, done)
        if len(done) < arguments.kills:
            wrong.append(f"only {len(done)} of {arguments.kills} kills met a running grid")
    counts = ", ".join(f"{done.count(kind)} {kind}s" for kind in KINDS)
    print(f"{len(done)} kills ({counts}) in {time.monotonic() - start:.0f} s")
    print("\n".join(wrong) if wrong else "every result and curve equals the undisturbed grid's; no point lost or twice")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
