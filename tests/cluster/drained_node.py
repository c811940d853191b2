"""Two nodes of 1 CPU, of which the second is watched over and gets a notice; started by test_spot_watch.py.

    python -m tests.cluster.drained_node METADATA_ENDPOINT

Prints `watching` once the watcher runs, waits until the notice has made Ray drain the node, and prints as JSON on which
nodes tasks ran before and after, the scope of the node's flag, and the watcher's exit code.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import ray
import ray._private.state
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.stopping import node_flag_path, node_stop

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@ray.remote(num_cpus=1, max_retries=0)
def where() -> str:
    return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=0)
class Search:
    """Keeps its node busy, as a search does until it has saved."""

    def ready(self) -> None:
        pass


def wait_until(ready: Callable[[], object]) -> None:
    ends = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < ends
        time.sleep(0.1)


def run(cluster: Cluster, endpoint: str) -> dict[str, object]:
    leaving = cluster.add_node(**SMALL)
    names = {cluster.head_node.node_id: "stays", leaving.node_id: "leaves"}
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    placed = [NodeAffinitySchedulingStrategy(node, soft=False) for node in names]
    search = Search.options(scheduling_strategy=placed[1]).remote()
    ray.get(search.ready.remote())
    before = ray.get([where.options(scheduling_strategy=place).remote() for place in placed])
    command = [sys.executable, "-m", "cluster.spot_watch", "--endpoint", endpoint, "--every", "0.1"]
    with subprocess.Popen(
        [*command, "--node-id", leaving.node_id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as watcher:
        assert watcher.stdout is not None
        assert "watching" in watcher.stdout.readline()
        print("watching", flush=True)
        wait_until(lambda: node_stop(leaving.node_id))
        wait_until(lambda: leaving.node_id in ray._private.state.state.get_draining_nodes())
        after = {names[ray.get(where.remote())] for _ in range(6)}
        flag = node_stop(leaving.node_id)
        # Once the search has gone, the raylet has nothing left to do and ends, and the watcher with it.
        ray.kill(search)
        ended = watcher.wait(20)
    node_flag_path(leaving.node_id).unlink()
    return {
        "before": sorted(names[node] for node in before),
        "after": sorted(after),
        "flag": flag and flag.scope,
        "ended": ended,
    }


def main(endpoint: str) -> None:
    # The paths of sockets are limited to 107 bytes, which a test's own folder would take up.
    temporary = tempfile.mkdtemp(prefix="sw", dir="/tmp")
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "temp_dir": temporary})
    try:
        result = run(cluster, endpoint)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
