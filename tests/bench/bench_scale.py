"""What Ray and our engine cost a grid of many points on many nodes: milliseconds a point, memory of the driver.

    python -m tests.bench.bench_scale [--nodes 20] [--points 250 500 1000]

The nodes are raylets of this machine, one CPU each, under a head without CPUs. Every point is a pack of its own and has
its result already, so a trial does all that a trial does but the search: it is placed, reads its pack, looks for its
result, and returns. Drivers are processes of their own, one after the other, so each starts with a fresh memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster.attempts import Pack, Point, point_uri
from cluster.driving import driving
from cluster.engines import search_with_tune
from cluster.features import open_features
from cluster.packing import add_packs
from cluster.search_loop import PackJob
from cluster.session import connect
from cluster.settings import SearchSettings
from data_prep import storage
from stgs.config import SearchConfig
from tests.cluster.chaos import nodes
from tests.planted import make_features

ROOT = Path(__file__).resolve().parents[2]


def drive(address: str, folder: Path, points: int) -> dict[str, float]:
    """Run `points` trials on the cluster at `address`: seconds, and the peak memory of this process in MiB."""
    source = open_features(*make_features(folder / "planted"))
    run = str(folder / "run")
    packs = [Pack(f"pack-{number:05d}", (Point(10.0, number + 1, "stgs", 0),)) for number in range(points)]
    for pack in add_packs(run, [], packs):
        storage.create(point_uri(run, pack.points[0].id, "result.json"), b"{}")
    settings = SearchSettings(channels=8, device="cpu")
    job = PackJob(run=run, space=settings.space(source), config=SearchConfig(epochs=1), device="cpu", threads=1)
    with connect(address=address), driving() as driver:
        before = peak_mebibytes()
        start = time.perf_counter()
        splits = source.load_splits(("train", "dev"))
        failed = search_with_tune(
            [(job, pack) for pack in packs], {job.run: splits}, driver, title="scale", progress=False
        )
        seconds = time.perf_counter() - start
        assert not failed, failed
        return {"seconds": seconds, "before": before, "after": peak_mebibytes()}


def peak_mebibytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--points", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--drive", metavar="HOST:PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            print(json.dumps(drive(arguments.drive, Path(folder), arguments.points[0])))
        return
    start = time.perf_counter()
    with nodes(arguments.nodes) as cluster:
        print(f"{arguments.nodes} nodes started in {time.perf_counter() - start:.0f} s", flush=True)
        found = {}
        # The first driver's trials also start the nodes' worker processes, which the others find there or start anew.
        for points in arguments.points:
            command = [sys.executable, "-m", "tests.bench.bench_scale", "--drive", cluster.address]
            command += ["--points", str(points)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found[points] = facts = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{points:6,} points: {facts['seconds']:7.1f} s, {1e3 * facts['seconds'] / points:6.0f} ms a point; "
                f"driver {facts['before']:.0f} MiB before, {facts['after']:.0f} MiB after",
                flush=True,
            )
    few, many = min(found), max(found)
    if few < many:
        steady = (found[many]["seconds"] - found[few]["seconds"]) / (many - few)
        print(f"a further point: {1e3 * steady:.0f} ms")


if __name__ == "__main__":
    main()
