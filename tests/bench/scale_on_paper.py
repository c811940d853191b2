"""The tables of docs/scale.md: time, memory and storage requests for corpora, grids and clusters of any size.

    python -m tests.bench.scale_on_paper [--rounds N]

Measured in this run, on one core of this machine: an update, the forward pass of the backbones, the bytes of a state.
Measured by other commands, and given here as constants with their names: what they print on 2 quiet cores. Counted:
bytes of rows, requests. Assumed, since no V100 was at hand: what share of its peak the arithmetic reaches. Every column
that rests on an assumption has a star.
"""

import argparse
import math
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from stgs import SearchConfig, search_space
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.forecast import UpdateSeconds, clip_bytes, forecast_search, measure_updates

# One core, with faces (make bench: bench_prepare).
PREPARE_SECONDS = 1 / 3.6
# A trial more on 20 nodes of 2 cores together; until the first epoch of a grid on machines that run (make scale).
RAY_SECONDS_A_TRIAL = 0.06
RAY_START_SECONDS = 20.0
# Requests of one pack with its file, of a point, of an epoch (python -m tests.bench.bench_storage); a GET and a PUT
# of each point are the driver's, when it gathers.
REQUESTS_A_PACK = {"PUT": 7, "GET": 0, "LIST": 4, "DELETE": 2}
REQUESTS_A_POINT = {"PUT": 4, "GET": 3, "LIST": 0, "DELETE": 0}
REQUESTS_AN_EPOCH = {"PUT": 3, "GET": 0, "LIST": 1, "DELETE": 1}

# A row of a corpus before compression: eight face crops and a spectrogram.
CORPUS_BYTES = 8 * 3 * 224 * 224 + 300 * 257 * 4
SHARD_CLIPS = 64
# Assumed: a V100's peaks are 15.7 TFLOP/s in float32 and 112 TFLOP/s in half precision; the shares of them are guesses.
V100_SEARCH_FLOPS = 0.15 * 15.7e12
V100_EXTRACT_FLOPS = 0.2 * 112e12
V100_BYTES = 16 * 10**9
EPOCHS, BATCH, PACK = 30, 64, 16
CLIPS = (10_000, 100_000, 1_000_000, 10_000_000)
POINTS = (16, 100, 1_000, 10_000)
GPUS = (1, 8, 64, 512)
FEATURES = {
    f"{sense}.{tap}": size
    for sense in ("visual", "audio")
    for tap, size in (("layer2", 128), ("layer3", 256), ("layer4", 512), ("pooled", 512))
}


@dataclass(frozen=True)
class Constants:
    """What was measured here. updates: of a population of `PACK`, on one core. flops: of a weight and an architecture
    update a clip and point, and of the backbones a clip.
    """

    updates: UpdateSeconds
    extract_seconds: float
    update_flops: float
    extract_flops: float


def measure(rounds: int) -> Constants:
    """Measure on one core of this machine."""
    torch.set_num_threads(1)
    space, config = search_space("default", FEATURES, length=8), SearchConfig(batch_size=BATCH)
    facts = {"estimator": "stgs", "num_samples": 15, "device": "cpu"}
    tries = [measure_updates(space, config, members=PACK, **facts) for _ in range(rounds)]
    with FlopCounterMode(display=False) as updates:
        measure_updates(space, config, members=1, **facts)
    pairs_counted = 6  # two epochs each of (1, 2) and (2, 1) updates, evaluations aside
    extractor = FeatureExtractor(BackboneConfig(visual_weights="random:0", audio_weights="random:0")).eval()
    frames, spectrogram = torch.zeros(4, 8, 3, 224, 224, dtype=torch.uint8), torch.rand(4, 300, 257)
    with FlopCounterMode(display=False) as extraction:
        extractor(frames, spectrogram)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        extractor(frames, spectrogram)
        seconds.append((time.perf_counter() - start) / len(frames))
    best = min(tries, key=lambda found: found.weights + found.architecture)
    return Constants(
        best,
        min(seconds),
        updates.get_total_flops() / (pairs_counted * BATCH),
        extraction.get_total_flops() / len(frames),
    )


def table(heads: list[str], rows: list[list[str]]) -> None:
    """Print as Markdown."""
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    print("\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")


def duration(seconds: float) -> str:
    """Two digits, in the unit that suits."""
    for size, unit in ((365 * 86_400, "years"), (86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 99 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 99 else f"{seconds:.0f} s"


def size(count: float) -> str:
    """Two digits, in the unit that suits."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.2g} {name}" if count < 100 * unit else f"{count / unit:.0f} {name}"
    return f"{count / 1e3:.0f} kB"


def corpus_table(found: Constants) -> None:
    """Preparation and features by the number of clips."""
    space = search_space("default", FEATURES, length=8)
    each = clip_bytes(space, 1, 1)
    rows = []
    for clips in CLIPS:
        cores = (PREPARE_SECONDS * clips, found.extract_seconds * clips)
        gpu = found.extract_flops * clips / V100_EXTRACT_FLOPS
        shards = math.ceil(clips / SHARD_CLIPS)
        rows.append(
            [
                f"{clips:,}",
                size(CORPUS_BYTES * clips),
                size(each * clips),
                *(duration(seconds / 64) for seconds in cores),
                duration(gpu),
                f"{4 * shards:,}",
                f"{each * clips / V100_BYTES:.2f}",
            ]
        )
    heads = ["clips", "corpus, at most", "features", "prepare, 64 cores", "extract, 64 cores", "extract, one V100 *"]
    table([*heads, "objects written", "of a V100's memory"], rows)


def grid_table(found: Constants) -> None:
    """Wall time of grids by points, clips and GPUs; a dagger where the features do not fit a V100."""
    space = search_space("default", FEATURES, length=8)
    config = SearchConfig(batch_size=BATCH)
    rows = []
    for points in POINTS:
        for clips in CLIPS:
            train, dev = round(0.8 * clips), round(0.2 * clips)
            epoch = found.updates.epoch(config, train_clips=train, dev_clips=dev)
            core = EPOCHS * epoch * points / PACK
            gpu = EPOCHS * clips * points * found.update_flops / V100_SEARCH_FLOPS
            ray = RAY_START_SECONDS + RAY_SECONDS_A_TRIAL * math.ceil(points / PACK)
            walls = [duration(gpu / min(gpus, points) + ray) for gpus in GPUS]
            mark = " †" if clips * clip_bytes(space, 1, 1) > V100_BYTES else ""
            rows.append([f"{points:,}", f"{clips:,}{mark}", duration(core), duration(gpu), duration(ray), *walls])
    heads = ["points", "clips", "one core", "device time, V100 *", "Ray's part"]
    table([*heads, *(f"wall, {gpus} GPU{'s' * (gpus > 1)} *" for gpus in GPUS)], rows)


def request_table() -> None:
    """Storage requests of grids of one state an epoch."""
    rows = []
    for points in POINTS:
        packs = math.ceil(points / PACK)
        counts = [
            packs * (REQUESTS_A_PACK[kind] + EPOCHS * REQUESTS_AN_EPOCH[kind]) + points * REQUESTS_A_POINT[kind]
            for kind in REQUESTS_A_PACK
        ]
        rows.append([f"{points:,}", f"{packs:,}", *(f"{count:,}" for count in counts)])
    table(["points", "packs", *REQUESTS_A_PACK], rows)


def memory_table() -> None:
    """Memory of one search on a device."""
    space = search_space("default", FEATURES, length=8)
    rows = []
    for members in (1, 4, 16, 64):
        facts = forecast_search(space, SearchConfig(batch_size=BATCH), members=members, train_clips=1, dev_clips=1)
        update = forecast_search(
            space, SearchConfig(batch_size=BATCH), members=members, train_clips=BATCH, dev_clips=BATCH
        )
        left = 0.9 * V100_BYTES - facts.state_bytes - update.update_bytes
        clips = left / clip_bytes(space, members, 1)
        rows.append([f"{members}", size(facts.state_bytes), size(update.update_bytes), f"{max(clips, 0):,.0f}"])
    table(
        ["points in a pack", "weights and optimisers", "an update", "clips that fit a 16 GB device beside them"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of these counts (default: 3)")
    found = measure(parser.parse_args().rounds)
    print(
        f"measured: a pair of updates of {PACK} points at batch {BATCH} "
        f"{found.updates.weights + found.updates.architecture:.2f} s, backbones {found.extract_seconds:.2f} s a clip "
        f"(one core); {found.update_flops / 1e6:.0f} MFLOP a clip and point, {found.extract_flops / 1e9:.0f} GFLOP a "
        "clip for its features\n"
    )
    corpus_table(found)
    memory_table()
    grid_table(found)
    request_table()


if __name__ == "__main__":
    main()
