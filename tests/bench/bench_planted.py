"""Is what was planted found? Estimator x temperature x M, ten seeds each; then each operation apart.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_planted [--quick] [--estimators NAME ...] [--seeds N]

Features: two of eight carry independent additive evidence (C 16, 512 train and 512 dev clips, batch 64, architecture
learning rate 3e-3, 20 epochs). All temperatures, M and seeds of an estimator are searched as one population. `pair`:
seeds whose first cell reads exactly the planted two (by chance 1 of 28). `union`: seeds whose two cells read both
between them (by chance about 1 of 5). Seconds are those of the setting's share of its population.

Operations: one step, no residual, no tail, and a teacher made of one operation. The figure is the number of seeds that
find it; the last column asks for ConcatFC without LinearGLU, which imitates it.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import torch

from stgs import ESTIMATORS, Member, PopulationSearch, SearchConfig, search_space
from stgs.clips import ClipSet
from stgs.genotype import Genotype
from tests.planted_clips import planted_clips
from tests.planted_operations import TEACHERS, WITHOUT_GLU, find_operations

NAMES = [f"{sense}.f{number}" for sense in ("visual", "audio") for number in range(4)]
INFORMATIVE = {"visual.f1", "audio.f2"}
CHANNELS, LENGTH, CLIPS = 16, 4, 512
TEMPERATURES, NUM_SAMPLES = (1.0, 10.0, 20.0), (1, 5, 15)
OPERATION_SETTINGS = ((1.0, 1), (10.0, 15))


@dataclass(frozen=True)
class Population:
    """Searches that run side by side: one estimator under several (temperature, M)."""

    estimator: str
    settings: tuple[tuple[float, int], ...]
    epochs: int
    learning_rate: float = 3e-3


def populations(estimators: list[str], epochs: int, quick: bool) -> list[Population]:
    """What is searched. `softmax` has neither temperature nor M, but also the reference's slower setting."""
    temperatures, counts = ((10.0,), (1, 15)) if quick else (TEMPERATURES, NUM_SAMPLES)
    grid = tuple((temperature, count) for temperature in temperatures for count in counts)
    found = []
    for estimator in estimators:
        if estimator == "softmax":
            found += [Population(estimator, ((1.0, 1),), epochs), Population(estimator, ((1.0, 1),), 8, 3e-4)]
        else:
            found.append(Population(estimator, grid, epochs))
    return found


def search(population: Population, seeds: int, strength: float) -> tuple[list[Genotype], float]:
    """Genotypes, setting by setting and seed by seed, and seconds."""
    train, dev = (planted_clips(seed, CLIPS, NAMES, sorted(INFORMATIVE), strength=strength) for seed in (1, 2))
    members = [Member(*setting, seed) for setting in population.settings for seed in range(seeds)]
    start = time.perf_counter()
    running = PopulationSearch(
        search_space("default", dict.fromkeys(NAMES, 16), channels=CHANNELS, length=LENGTH),
        members,
        estimator=population.estimator,
        config=SearchConfig(
            epochs=population.epochs, batch_size=64, architecture_learning_rate=population.learning_rate
        ),
        train=ClipSet(*train, members=len(members)),
        dev=ClipSet(*dev, members=len(members)),
    )
    while not running.finished:
        running.run_epoch()
        report(f"{population.estimator}, {len(members)} members: epoch {running.epoch} of {population.epochs}")
    return [result.genotype for result in running.results()], time.perf_counter() - start


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def print_features(found: list[Population], seeds: int, strength: float) -> None:
    """The table of planted features."""
    print(f"Planted features, of {seeds} seeds")
    print(f"{'estimator':12}{'temperature':>12}{'M':>5}{'epochs':>8}{'rate':>8}{'pair':>7}{'union':>7}{'seconds':>9}")
    for population in found:
        genotypes, seconds = search(population, seeds, strength)
        for index, (temperature, count) in enumerate(population.settings):
            own = genotypes[index * seeds : (index + 1) * seeds]
            read = [[set(cell.inputs) for cell in genotype.cells] for genotype in own]
            pair = sum(cells[0] == INFORMATIVE for cells in read)
            union = sum(set.union(*cells) >= INFORMATIVE for cells in read)
            what = ("-", "-") if population.estimator == "softmax" else (f"{temperature:g}", count)
            print(
                f"{population.estimator:12}{what[0]:>12}{what[1]:>5}{population.epochs:>8}"
                f"{population.learning_rate:>8g}{pair:>7}{union:>7}{seconds / len(population.settings):>9.1f}",
                flush=True,
            )


def print_operations(estimators: list[str], seeds: int, epochs: int) -> None:
    """The table of operations."""
    questions = [(teacher, {}) for teacher in TEACHERS] + [("concat_fc", {"candidates": WITHOUT_GLU})]
    print(f"\nOperations apart, of {seeds} seeds")
    header = "".join(f"{name:>12}" for name in [*TEACHERS, "without GLU"])
    print(f"{'estimator':12}{'temperature':>12}{'M':>5}{header}{'seconds':>9}")
    for estimator in estimators:
        for temperature, count in OPERATION_SETTINGS[: 1 if estimator == "softmax" else None]:
            members = [Member(temperature, count, seed) for seed in range(seeds)]
            start = time.perf_counter()
            right = []
            for teacher, options in questions:
                right.append(find_operations(teacher, members, estimator, epochs=epochs, **options).count(teacher))
                report(f"{estimator}, temperature {temperature:g}, M {count}: {teacher} {right[-1]}")
            what = ("-", "-") if estimator == "softmax" else (f"{temperature:g}", count)
            row = "".join(f"{number:>12}" for number in right)
            print(f"{estimator:12}{what[0]:>12}{what[1]:>5}{row}{time.perf_counter() - start:>9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 seeds, 8 epochs and 2 settings an estimator")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--seeds", type=int, help="seeds a setting, default 10, or 4 with --quick")
    parser.add_argument("--strength", type=float, default=1.0, help="shift of a planted feature in standard deviations")
    arguments = parser.parse_args()
    seeds = arguments.seeds or (4 if arguments.quick else 10)
    epochs = 8 if arguments.quick else 20
    torch.set_num_threads(1)
    print_features(populations(arguments.estimators, epochs, arguments.quick), seeds, arguments.strength)
    print_operations(arguments.estimators, seeds, epochs // 2)


if __name__ == "__main__":
    main()
