"""How far a run of a baseline is, as `stgs status` tells it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.baseline_watching import open_watcher
from cluster.watching import Watcher
from data_prep import boxes, storage
from jobs.status import main, text
from tests.cluster.planted_baselines import clips, drawn_scores, plant_baseline, plant_part
from tests.cluster.planted_runs import NOW, drive, plant


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Five parts of 4 epochs: one is done, one at work, one has failed, two (a shuffled one) wait."""
    out = plant_baseline(str(tmp_path / "run"), parts=[f"fold-{fold}" for fold in range(4)], shuffles=1)
    rows = clips(3)
    plant_part(out, "fold-0", rows, drawn_scores(rows, strength=1))
    curves = [{"epoch": epoch, "dev_auc": auc, "seconds": 5.0} for epoch, auc in ((1, 0.8), (2, 0.7))]
    storage.write(f"{out}/parts/fold-1/curves.parquet", boxes.table_bytes(pa.Table.from_pylist(curves)))
    storage.write(f"{out}/parts/fold-2/failed.json", b'{"reason": "Traceback\\nValueError: no"}')
    drive(out, age=4.0)
    return out


def test_every_part_is_told(run: str) -> None:
    status = open_watcher(run).look(clock=lambda: NOW)
    # 2 epochs of 5 s at fold-1; then fold-3 and the shuffled part, 4 epochs each, one after the other.
    assert status.seconds_left == 2 * 5 + 2 * 4 * 5
    assert not status.over
    assert text(status).splitlines()[4:] == [
        "5 parts: 1 running, 1 failed, 2 waiting, 1 done; about 50 s left",
        "",
        "state    part       epoch  dev AUC  left  device s",
        "running  fold-1       2/4    0.800  10 s         -",
        "failed   fold-2       -/4        -     -         -",
        "waiting  fold-3       -/4        -     -         -",
        "waiting  shuffle-0    -/4        -     -         -",
        "done     fold-0       4/4    0.910     -      90.0",
        "failed: fold-2: ValueError: no",
    ]


@pytest.mark.parametrize(("age", "ended", "state"), [(300.0, None, "lost"), (4.0, "stopped", "waiting")])
def test_a_part_that_nobody_trains_any_more(run: str, age: float, ended: str | None, state: str) -> None:
    drive(run, age=age, ended=ended)
    status = open_watcher(run).look(most=2, clock=lambda: NOW)
    assert {point.state for point in status.points if point.id == "fold-1"} <= {state}
    assert (status.counts["running"], status.counts["lost"]) == (0, int(state == "lost"))
    assert len(status.points) == 2
    assert status.over == (ended is not None)
    assert "... and 3 more; --all shows them" in text(status)


def test_the_command_shows_a_run_with_damaged_files(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fold-0/metrics.json", "fold-1/curves.parquet", "fold-2/failed.json"):
        storage.write(f"{run}/parts/{name}", b"{")
    assert main([run]) == 0
    shown = capsys.readouterr().out
    assert "damaged: fold-0: its metrics.json is damaged" in shown
    assert "failed: fold-2: no reason was written" in shown


def test_a_search_is_watched_as_ever(tmp_path: Path) -> None:
    assert isinstance(open_watcher(plant(str(tmp_path), [])), Watcher)
