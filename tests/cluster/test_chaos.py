"""A grid that loses a worker process, a node and its driver ends as an undisturbed one.

The module is its own program: the nodes of a cluster belong to the process that starts them, and one that has a Ray of
its own, as that of the tests has, is ended by Ray a minute after these nodes are gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.features import open_features
from tests.cluster.chaos import Driver, Kill, chaos_config, differences, disturb, nodes, search_undisturbed
from tests.planted import make_features


@pytest.mark.timeout(240)
def test_kills_of_worker_node_and_driver_change_nothing(tmp_path: Path, repository: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.test_chaos", str(tmp_path)],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = program.communicate(timeout=220)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == 0, told


def main(folder: Path) -> None:
    """Three kills."""
    source = open_features(*make_features(folder / "planted"))
    config, options = chaos_config(points=4, pack=2, epochs=10)
    search_undisturbed(folder / "quiet", config, source)
    grid = Driver("grid", source, folder / "disturbed", options)
    with nodes() as cluster:
        try:
            done = disturb(grid, cluster, [Kill(2, "worker"), Kill(3, "node"), Kill(3, "driver")], lambda line: None)
        finally:
            grid.end()
    assert done == ["worker", "node", "driver"], "every kill met a running grid"
    assert differences(folder / "disturbed", folder / "quiet", config, done) == []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
