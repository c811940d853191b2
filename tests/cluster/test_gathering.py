"""grid.parquet, which is made anew from the points whenever a search ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.evaluation import _add_to_grid
from cluster.gathering import gather, read_grid
from cluster.points import Pack, Point
from data_prep import storage
from tests.cluster.planted_runs import points, put


def finish(run: str, point: Point, seconds: float) -> None:
    curves = {"path": "curves.parquet", "member": 0}
    counts = {"parameters": 7, "macs": 9, "seconds": seconds, "device_seconds": seconds}
    put(
        run, f"points/{point.id}/result.json", {"genotype": {}, "metrics": {"dev_auc": 0.9}, "curves": curves, **counts}
    )


def test_a_later_search_keeps_what_the_evaluation_added(tmp_path: Path) -> None:
    run, packs = str(tmp_path / "run"), [Pack(f"pack-{index}", (point,)) for index, point in enumerate(points(2))]
    (first,), (second,) = (pack.points for pack in packs)
    finish(run, first, 1.0)
    gather(run, packs, {})
    network: dict[str, Any] = {"dev_auc": 0.8, "auc": {"value": 0.7, "low": 0.6, "high": 0.75}}
    _add_to_grid(run, {"planted": {"networks": {f"grid/{first.id}": network}}})
    finish(run, first, 2.0)
    finish(run, second, 3.0)
    rows = gather(run, packs, {}).rows
    assert rows == read_grid(run)
    told = {row["id"]: (row["network_dev_auc"], row["test_auc_low.planted"], row["seconds"]) for row in rows}
    assert told == {first.id: (0.8, 0.6, 2.0), second.id: (None, None, 3.0)}, "what a search says is read anew"


@pytest.mark.parametrize("content", [b"", b"PAR1 no table"])
def test_a_damaged_table_is_made_anew(tmp_path: Path, content: bytes) -> None:
    run, (point,) = str(tmp_path / "run"), points(1)
    finish(run, point, 1.0)
    storage.write(storage.join(run, "grid.parquet"), content)
    (row,) = gather(run, [Pack("pack-0", (point,))], {}).rows
    assert read_grid(run) == [row]
