"""A whole grid on features of the paper's size, and one point of it: minutes, peak memory, operations an update.

    python -m tests.bench.bench_grid [--clips N] [--epochs N] [--points N] [--device cpu|cuda] [--profile-updates N]

The features are noise of the released sizes (77 kB a clip): what is measured is the search, without Ray, disks or
backbones. The defaults are the paper's numbers and need a GPU; on a CPU give few clips and epochs.
"""

import argparse
import itertools
import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from stgs import Member, PopulationSearch, SearchConfig, search_space
from stgs.clips import ClipSet
from stgs.search_space import RELEASED_FEATURES

CLIPS, DEV_SHARE = 61_460, 10_718 / 61_460
LENGTH = 8
BLOCK = 1024
AXES = ((5.0, 10.0, 15.0, 20.0), (5, 10, 15, 20))
MATRIX_PRODUCTS = ("gemm", "bmm", "::mm", "addmm", "cutlass", "xmma")
TWO_GPU_DAYS_S = 2 * 86_400


@dataclass(frozen=True)
class Measurement:
    """Of one population: seconds of the search, peak bytes, operations (kernels on a GPU) of an update, and the share
    of their time in matrix products.
    """

    points: int
    updates: int
    seconds: float
    peak_bytes: int
    operations: float
    matrix_share: float


def noise_clips(count: int, members: int, device: str) -> ClipSet:
    """Clips of noise, half of them fake; a block of them is repeated, since drawing them all takes minutes."""
    random = np.random.default_rng(0)
    columns = {}
    for name, size in RELEASED_FEATURES.items():
        shape = (size,) if name.endswith("pooled") else (size, LENGTH)
        block = random.standard_normal((min(count, BLOCK), *shape), dtype=np.float32).astype(np.float16)
        columns[name] = np.resize(block, (count, *shape))
    return ClipSet(columns, (np.arange(count) % 2).astype(np.int8), members=members, device=device)


def build(points: int, clips: int, epochs: int, device: str) -> PopulationSearch:
    """A search of the first points of the paper's grid."""
    dev = max(2, round(clips * DEV_SHARE))
    members = [Member(temperature, samples, 0) for temperature, samples in itertools.product(*AXES)][:points]
    return PopulationSearch(
        search_space("default", RELEASED_FEATURES),
        members,
        estimator="stgs",
        config=SearchConfig(epochs=epochs),
        train=noise_clips(clips - dev, points, device),
        dev=noise_clips(dev, points, device),
        device=device,
    )


def operations(search: PopulationSearch) -> tuple[float, float]:
    """Operations of an update, and the share of their time in matrix products, over one epoch of `search`."""
    on_gpu = search.supernet.seeds.is_cuda
    before = search.update
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as profiler:
        search.run_epoch()
    kernels = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    kernels = [event for event in kernels if not event.key.startswith(("Memcpy", "Memset"))]
    calls = [event for event in profiler.key_averages() if event.key.startswith("aten::")]
    events = kernels if on_gpu else calls
    times = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    products = sum(spent for key, spent in times.items() if any(part in key for part in MATRIX_PRODUCTS))
    count = sum(event.count for event in events)
    return count / (search.update - before), products / sum(times.values())


def measure(points: int, arguments: argparse.Namespace) -> Measurement:
    """One search of `points` points, after a profiled epoch of another on a part of its clips."""
    few = min(arguments.clips, arguments.profile_updates * 64)
    count, share = operations(build(points, few, 1, arguments.device))
    search = build(points, arguments.clips, arguments.epochs, arguments.device)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    while not search.finished:
        row = search.run_epoch()[0]  # ends with the scores on the host, so the clock is right
        print(f"P = {points}: epoch {row['epoch']}, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    seconds = time.perf_counter() - start
    peak = (
        torch.cuda.max_memory_allocated()
        if arguments.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return Measurement(points, search.update, seconds, peak, count, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=CLIPS, help=f"train and dev together (default: {CLIPS})")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--points", type=int, default=16, choices=range(2, 17), metavar="2..16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU (default: 1)")
    parser.add_argument("--profile-updates", type=int, default=20, help="updates that are profiled (default: 20)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.clips} clips, {arguments.epochs} epochs, {arguments.device}, torch {torch.__version__}")
    print("points  updates  minutes  ms/update  peak GiB  ops/update  matrix %")
    results = [measure(points, arguments) for points in (1, arguments.points)]
    for m in results:
        print(
            f"{m.points:6d} {m.updates:8d} {m.seconds / 60:8.2f} {1e3 * m.seconds / m.updates:10.2f} "
            f"{m.peak_bytes / 2**30:9.2f} {m.operations:11.0f} {100 * m.matrix_share:9.1f}"
        )
    one, many = results
    ratio = many.seconds / one.seconds
    print(f"{many.points} points take {ratio:.2f} x the time of one (aim on a GPU: under 2 for 16 points)")
    print(f"one search of the paper took 2 GPU days (constant): {TWO_GPU_DAYS_S / many.seconds:,.0f} x the whole grid")


if __name__ == "__main__":
    main()
