"""Prints the storage requests of a pack, by kind: what its start, an epoch and a committed point cost.

    python -m tests.bench.bench_storage [--points 4] [--epochs 3]

Counted with `storage.observed` on a search of the planted features in a temporary folder; each operation is one request
on S3 (a listing: one for every 1,000 objects). An epoch here is shorter than the 15 s between two heartbeats.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.attempts import Pack, Point
from cluster.features import open_features
from cluster.packing import add_packs, pack_job
from cluster.search_loop import search_pack
from cluster.settings import SearchSettings
from data_prep import storage
from stgs.config import SearchConfig
from tests.planted import make_features

KINDS = {"write": "PUT", "create": "PUT", "read": "GET", "exists": "HEAD", "list": "LIST", "delete": "DELETE"}


def count(points: int, epochs: int) -> list[Counter[str]]:
    """Requests from the start to the end of each epoch's report, and then to the end: [epochs + 1]."""
    requests: list[Counter[str]] = [Counter()]

    def note(operation: str, uri: str, moment: str) -> None:
        if moment == "before":
            requests[-1][KINDS[operation]] += 1

    def report(row: dict[str, Any]) -> None:
        requests.append(Counter())

    with tempfile.TemporaryDirectory() as folder:
        source = open_features(*make_features(Path(folder)))
        splits = source.load_splits(("train", "dev"))
        settings = SearchSettings(device="cpu", channels=4, search=SearchConfig(epochs=epochs))
        pack = Pack("pack-0000", tuple(Point(10.0, 2, "stgs", seed) for seed in range(points)))
        run = storage.join(folder, "run")
        add_packs(run, [], [pack])
        with storage.observed(note):
            search_pack(pack_job(run, settings, source, pack), pack, splits["train"], splits["dev"], report)
    return requests


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    requests, more = (count(points, arguments.epochs) for points in (arguments.points, arguments.points + 1))
    a_point = sum(more, Counter())
    a_point.subtract(sum(requests, Counter()))
    rows = {
        "start and first epoch": requests[0],
        **{f"epoch {number}": found for number, found in enumerate(requests[1:-1], 2)},
        "end, with the commits": requests[-1],
        "one point more": a_point,
    }
    kinds = ("PUT", "GET", "HEAD", "LIST", "DELETE")
    print(f"{arguments.points} points as one pack, {arguments.epochs} epochs")
    print(f"{'':24}" + "".join(f"{kind:>8}" for kind in kinds))
    for name, found in rows.items():
        print(f"{name:24}" + "".join(f"{found[kind]:8}" for kind in kinds))


if __name__ == "__main__":
    main()
