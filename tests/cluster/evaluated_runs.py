"""Small runs with trained networks, made in this process without Ray, for tests of their evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster import found_loop
from cluster.attempts import Point
from cluster.controls import AUDIO, CONCAT_LINEAR, GRID, RANDOM, SHUFFLED, VISUAL, network_uri
from cluster.features import FeatureSource
from cluster.found_loop import NetworkJob
from cluster.gathering import GRID_NAME
from cluster.network_files import provenance
from cluster.runs import open_run
from cluster.settings import GridConfig, SearchSettings
from data_prep import boxes, storage
from stgs.config import FoundConfig
from stgs.genotype import CellGene, Genotype, StepGene
from tests.planted import FEATURES, LENGTH

POINTS = (Point(5.0, 5, "stgs", 0), Point(10.0, 5, "stgs", 1))
FOUND = FoundConfig(epochs=7, batch_size=32)
CONFIG = GridConfig(settings=SearchSettings(channels=8, device="cpu"))
STEPS = (StepGene("concat_fc", ("in1", "in2")), StepGene("sum", ("in1", "step1")))


def genotype(*pair: str) -> str:
    """A genotype of one cell that reads two features."""
    cell = CellGene((pair[0], pair[1]), STEPS)
    return Genotype(features=FEATURES, channels=8, length=LENGTH, cells=(cell,)).to_json()


BOTH = genotype("visual.layer3", "audio.layer2")
ARM_GENOTYPES = {
    VISUAL: genotype("visual.layer3", "visual.layer2"),
    AUDIO: genotype("audio.layer2", "audio.pooled"),
    RANDOM: genotype("visual.pooled", "audio.layer3"),
}


def make_run(folder: Path, source: FeatureSource, *, controls: bool = True, **settings: Any) -> str:
    """A run with two networks of its grid and, with controls, those of five arms; returns its directory.

    settings: what else its config.yaml says.
    """
    run = str(folder / "run")
    digests = {
        "features_digest": source.meta.digest,
        "manifest_digest": source.manifest.meta.digest,
        "split_digest": source.split_digest(),
    }
    open_run(
        run,
        {**asdict(CONFIG), **digests, **settings},
        resume=False,
        hints={"features": source.uri, "manifest": source.manifest_uri},
    )
    jobs = [NetworkJob(network_uri(run, GRID, point.id), BOTH, point.seed, point) for point in POINTS]
    if controls:
        jobs += [
            NetworkJob(network_uri(run, arm, POINTS[0].id), genotype, 0, None if arm == RANDOM else POINTS[0])
            for arm, genotype in ARM_GENOTYPES.items()
        ]
        jobs.append(NetworkJob(network_uri(run, CONCAT_LINEAR, "seed-0"), None, 0, kind=CONCAT_LINEAR))
        shuffled = [Point(10.0, 15, "stgs", 0, seed) for seed in range(2)]
        jobs += [NetworkJob(network_uri(run, SHUFFLED, point.id), BOTH, 0, point) for point in shuffled]
    train(jobs, source)
    rows = [{"id": point.id, **asdict(point), "device_seconds": 1.5} for point in POINTS]
    storage.write(storage.join(run, GRID_NAME), boxes.table_bytes(pa.Table.from_pylist(rows)))
    return run


def train(jobs: Sequence[NetworkJob], source: FeatureSource) -> None:
    """Train networks in this process."""
    splits = source.load_splits(("train", "dev"))
    for group in found_loop.waiting_groups(jobs):
        # The body of the Ray task.
        assert found_loop._fit(group, FOUND, provenance(source), splits, "cpu", 1) == {}
