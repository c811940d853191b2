"""What Ray and the run directory cost a search: an epoch of a Tune trial against an epoch of the bare loop.

    python -m tests.bench.bench_ray [--subjects N] [--epochs N] [--points N] [--rounds N]

Both sides search the same points on the same clips, once for some epochs and once for twice as many; the difference is
what steady epochs cost, with heartbeats and states, without start-up. Start-up is printed apart.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch

from cluster.features import FeatureSource, open_features
from cluster.grid import run_grids
from cluster.session import connect
from cluster.settings import GridConfig, SearchSettings
from stgs.clips import ClipSet
from stgs.config import SearchConfig
from stgs.population import PopulationSearch
from stgs.supernet import Member
from tests.planted import make_features

SAMPLES = (5, 10, 15, 20)


def grid(points: int, epochs: int) -> GridConfig:
    """A grid that is one pack."""
    settings = SearchSettings(threads=1, search=SearchConfig(epochs=epochs))
    return GridConfig(temperatures=(10.0,), num_samples=SAMPLES[:points], pack=points, settings=settings)


def bare(source: FeatureSource, points: int, epochs: int) -> float:
    """Seconds of a search in this process, reading of the features included."""
    start = time.perf_counter()
    config = grid(points, epochs)
    splits = source.load_splits(("train", "dev"))
    clips = {name: ClipSet(split.columns, split.labels, members=points) for name, split in splits.items()}
    members = [Member(10.0, samples, 0) for samples in SAMPLES[:points]]
    search = PopulationSearch(
        config.settings.space(source), members, estimator="stgs", config=config.settings.search, **clips
    )
    while not search.finished:
        search.run_epoch()
    return time.perf_counter() - start


def on_ray(source: FeatureSource, folder: Path, points: int, epochs: int) -> float:
    """Seconds of the same search as a Tune trial."""
    start = time.perf_counter()
    run_grids({str(folder): grid(points, epochs)}, source, resume=False, progress=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subjects", type=int, default=512, help="four clips each, half of them for training")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--points", type=int, default=4, choices=range(1, 5), metavar="1..4")
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of these counts (default: 3)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    points, epochs = arguments.points, arguments.epochs
    seconds = {(side, n): math.inf for side in ("bare", "Ray") for n in (epochs, 2 * epochs)}
    with tempfile.TemporaryDirectory() as scratch, connect(num_cpus=1):
        share = arguments.subjects // 4
        sizes = {"train": 2 * share, "dev": share, "test": share}
        source = open_features(*make_features(Path(scratch), subjects=sizes))
        for number in range(arguments.rounds):
            for n in (epochs, 2 * epochs):
                folder = Path(scratch) / f"run-{number}-{n}"
                seconds["bare", n] = min(seconds["bare", n], bare(source, points, n))
                seconds["Ray", n] = min(seconds["Ray", n], on_ray(source, folder, points, n))
    epoch = {side: (seconds[side, 2 * epochs] - seconds[side, epochs]) / epochs for side in ("bare", "Ray")}
    start = {side: seconds[side, epochs] - epochs * epoch[side] for side in ("bare", "Ray")}
    print(
        f"{points} points, {8 * share} training clips, {epochs} and {2 * epochs} epochs, fastest of {arguments.rounds}"
    )
    print(f"a steady epoch: bare {1e3 * epoch['bare']:.0f} ms, on Ray {1e3 * epoch['Ray']:.0f} ms")
    print(f"ratio {epoch['Ray'] / epoch['bare']:.3f} (aim: under 1.05)")
    print(f"start-up and end: bare {start['bare']:.1f} s, on Ray {start['Ray']:.1f} s (Ray itself running)")


if __name__ == "__main__":
    main()
