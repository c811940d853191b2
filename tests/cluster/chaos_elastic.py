"""A search with `--workers 1:2` that is shrunk and grown, against the same search by one worker that stays.

python -m tests.cluster.chaos_elastic [--epochs 150]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.attempts import read_result
from cluster.features import open_features
from cluster.settings import GridConfig, SearchSettings
from data_prep import boxes, storage
from stgs.config import SearchConfig
from tests.cluster.chaos import EVENT_TIMEOUT_S, Driver, nodes, search_undisturbed
from tests.planted import make_features

# Sums of float32 in another order, carried through some thousand updates with noise.
TOLERANCE = {"dev_auc": 0.01, "dev_loss": 0.02}
CLIPS = {"train": 1000, "dev": 500, "test": 4}  # subjects, four clips each
BATCH = 1024
RESIZE_TIMEOUT_S = 4 * EVENT_TIMEOUT_S


def latest_beat(run: Path) -> dict[str, Any]:
    """The heartbeat of the newest attempt, empty before there is one."""
    beats = sorted(run.glob("packs/*/attempts/*/heartbeat.json"), key=lambda path: int(path.parent.name))
    return json.loads(beats[-1].read_text()) if beats else {}


def outcome(run: Path, point_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A point's result, and the last row of its curves."""
    result = read_result(str(run), point_id)
    assert result is not None
    return result, boxes.read_table(storage.join(str(run), result["curves"]["path"])).to_pylist()[-1]


def wait_for_world(search: Driver, world: int) -> int:
    """Wait until `world` workers have finished an epoch together, and return its number."""
    deadline = time.monotonic() + RESIZE_TIMEOUT_S
    while True:
        beat = latest_beat(search.run)
        if beat.get("world") == world and beat["epoch"] > beat["first_epoch"]:
            return int(beat["epoch"])
        if search.process.poll() is not None:
            raise AssertionError(f"the search ended before it had {world} workers; give more --epochs: {search.log()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {world} workers in {RESIZE_TIMEOUT_S:.0f} s: {search.log()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            search.process.wait(timeout=0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=150)
    epochs = parser.parse_args().epochs
    config = GridConfig(
        temperatures=(10.0,),
        num_samples=(5,),
        pack=1,
        settings=SearchSettings(channels=64, device="cpu", search=SearchConfig(epochs=epochs, batch_size=BATCH)),
    )
    (point,) = config.points()
    options = ["--temperature", "10", "--num-samples", "5", "--channels", "64", "--device", "cpu"]
    options += ["--epochs", str(epochs), "--batch-size", str(BATCH), "--workers", "1:2", "--resize-seconds", "5"]
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="elastic-") as folder:
        root = Path(folder)
        source = open_features(*make_features(root / "planted", subjects=CLIPS, strength=0.8))
        search_undisturbed(root / "quiet", config, source)
        say("one worker, undisturbed: done")
        search = Driver("search", source, root / "elastic", options)
        with nodes() as cluster:
            try:
                search.start(cluster.address, resume=False)
                say(f"2 workers after epoch {wait_for_world(search, 2)}")
                cluster.remove(0)
                say(f"a node is gone; 1 worker after epoch {wait_for_world(search, 1)}")
                cluster.add()
                say(f"a node has come; 2 workers after epoch {wait_for_world(search, 2)}")
                code = search.wait(RESIZE_TIMEOUT_S)
            finally:
                search.end()
        if code != 0:
            say(f"the search ended with exit code {code}: {search.log()}")
            return 1
        (one, last), (two, other_last) = (outcome(root / name, point.id) for name in ("quiet", "elastic"))
    wrong = [] if one["genotype"] == two["genotype"] else ["the genotype differs"]
    for name, tolerance in TOLERANCE.items():
        difference = abs(last[name] - other_last[name])
        say(f"last {name}: {last[name]:.5f} undisturbed, {other_last[name]:.5f} with workers that come and go")
        wrong += [f"{name} differs by {difference:.5f}"] if difference > tolerance else []
    say("; ".join(wrong) if wrong else "the same genotype, and metrics within tolerance")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
