"""What the forecast of a search expects, beside what the search takes on this machine.

    python -m tests.bench.bench_forecast [--members 1 16] [--batch 64] [--threads N]

Memory on a CPU is the peak of the resident set, each row in a process of its own, with MALLOC_MMAP_THRESHOLD_=131072
(blocks that are freed go back to the system) and with the allocator as it is; on a GPU it is torch's own peak. Time is
that of an epoch of 6 training and 3 dev batches, the second of two.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from stgs.config import SearchConfig
from stgs.forecast import forecast_search, measure_updates, noise_clips, second_epoch_seconds
from stgs.population import PopulationSearch
from stgs.search_space import RELEASED_FEATURES, SearchSpace, search_space
from stgs.supernet import Member

TRAIN_BATCHES, DEV_BATCHES = 6, 3


def status(field: str) -> int:
    """A memory field of this process, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def build(space: SearchSpace, members: int, batch: int, device: str) -> PopulationSearch:
    """A search on noise."""
    train, dev = (noise_clips(space, members, count * batch, device) for count in (TRAIN_BATCHES, DEV_BATCHES))
    population = [Member(10.0, 15, seed) for seed in range(members)]
    config = SearchConfig(batch_size=batch, epochs=2)
    return PopulationSearch(space, population, estimator="stgs", config=config, train=train, dev=dev, device=device)


def measure(members: int, batch: int, threads: int, device: str) -> dict[str, float]:
    """Expected and measured bytes and seconds of one search, in this process."""
    torch.set_num_threads(threads)
    space = search_space("default", RELEASED_FEATURES)
    small = SearchSpace(features={"visual.a": 8, "audio.a": 8}, channels=8)
    second_epoch_seconds(build(small, 1, 4, device), device)
    clips = {"train_clips": TRAIN_BATCHES * batch, "dev_clips": DEV_BATCHES * batch}
    config = SearchConfig(batch_size=batch)
    expected = forecast_search(space, config, members=members, **clips).device_bytes
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = second_epoch_seconds(build(space, members, batch, device), device)
    taken = torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM") - before
    updates = measure_updates(space, config, members=members, estimator="stgs", num_samples=15, device=device)
    return {
        "expected_bytes": expected,
        "bytes": taken,
        "expected_seconds": updates.epoch(config, **clips),
        "seconds": seconds,
    }


def main() -> None:
    """Print a row a population."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if given.one:
        print(json.dumps(measure(given.members[0], given.batch, given.threads, device)))
        return
    for members in given.members:
        for allocator in ({"MALLOC_MMAP_THRESHOLD_": "131072"}, {}) if device == "cpu" else ({},):
            command = [sys.executable, __file__, "--one", "--members", str(members), "--batch", str(given.batch)]
            command += ["--threads", str(given.threads)]
            environment = {**os.environ, "PYTHONPATH": os.getcwd(), **allocator}
            row = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
            print(
                f"{members:4d} members, batch {given.batch}, {device}{', freed at once' if allocator else ''}: memory "
                f"expected {row['expected_bytes'] / 1e6:,.0f} MB, taken {row['bytes'] / 1e6:,.0f} MB (x "
                f"{row['bytes'] / row['expected_bytes']:.2f}); an epoch expected {row['expected_seconds']:.2f} s, took "
                f"{row['seconds']:.2f} s (x {row['seconds'] / row['expected_seconds']:.2f})"
            )


if __name__ == "__main__":
    main()
