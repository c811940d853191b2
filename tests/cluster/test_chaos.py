"""A grid that loses a worker process, a node and its driver ends as an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.features import open_features
from tests.cluster.chaos import Driver, Kill, chaos_config, differences, disturb, nodes, search_undisturbed
from tests.planted import make_features


@pytest.mark.timeout(240)
def test_kills_of_worker_node_and_driver_change_nothing(tmp_path: Path) -> None:
    source = open_features(*make_features(tmp_path / "planted"))
    config, options = chaos_config(points=4, pack=2, epochs=10)
    search_undisturbed(tmp_path / "quiet", config, source)
    grid = Driver("grid", source, tmp_path / "disturbed", options)
    with nodes() as cluster:
        try:
            done = disturb(grid, cluster, [Kill(2, "worker"), Kill(3, "node"), Kill(3, "driver")], lambda line: None)
        finally:
            grid.end()
    assert done == ["worker", "node", "driver"], "every kill met a running grid"
    assert differences(tmp_path / "disturbed", tmp_path / "quiet", config, done) == []
