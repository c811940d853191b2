"""A driver in place of `jobs.grid`: waits for two nodes, runs a task on each, and does what its first argument says.

finish: exits with 0. wait: waits for SIGTERM, and exits with 3, as a driver does that has saved. Other words: that exit
code. What it saw goes as JSON to the file of the second argument, with the arguments after it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=1)
def where() -> str:
    return ray.get_runtime_context().get_node_id()


def main(what: str, seen: Path, *rest: str) -> int:
    asked = threading.Event()
    ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    ends = time.monotonic() + 60
    while len(nodes := [node["NodeID"] for node in ray.nodes() if node["Alive"]]) < 2:
        assert time.monotonic() < ends
        time.sleep(0.1)
    on = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    ran = ray.get([where.options(scheduling_strategy=strategy).remote() for strategy in on])
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    facts = {
        "nodes": sorted(nodes),
        "ran": sorted(ran),
        "token_mode": oct(token.stat().st_mode & 0o777),
        "token_length": len(token.read_text()),
        "token": str(token),
        "rest": rest,
    }
    seen.with_suffix(".part").write_text(json.dumps(facts))
    seen.with_suffix(".part").rename(seen)
    if what == "wait":
        while not asked.wait(0.1):
            pass
        return 3
    return 0 if what == "finish" else int(what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
