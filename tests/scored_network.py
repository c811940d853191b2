"""An untrained network in a file, for tests of scoring: its clips are those of `tests.cluster.clip_files`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from cluster.features import Split
from cluster.network_files import NetworkJob, neutral_values, write_network
from stgs.backbones import BackboneConfig
from stgs.config import FoundConfig
from stgs.found_training import build_network, member_weights
from stgs.genotype import CellGene, Genotype, StepGene
from tests.cluster.clip_files import CONFIG

BACKBONES = BackboneConfig(
    visual="resnet18",
    audio="resnet18",
    visual_weights="random:0",
    audio_weights="random:1",
    taps=("layer2", "pooled"),
)
BOTH = (("visual.pooled", "audio.layer2"), ("visual.layer2", "audio.pooled"))
SOUND = (("audio.pooled", "audio.layer2"),)
THRESHOLD = 0.5


def random_clips(count: int, seed: int = 0) -> Split:
    """Features of as many clips, drawn by chance."""
    random = np.random.default_rng(seed)
    columns = {
        name: random.random((count, size) if name.endswith("pooled") else (count, size, 8)).astype(np.float16)
        for name, size in BACKBONES.features.items()
    }
    return Split(columns, np.zeros(count, np.int8), {})


def write_scored_network(
    path: Path, pairs: tuple[tuple[str, str], ...] = BOTH, *, with_neutral: bool = True, channels: int = 8
) -> str:
    """Write a network whose cells read `pairs`; returns its path."""
    steps = (StepGene("linear_glu", ("in1", "in2")), StepGene("concat_fc", ("in1", "step1")))
    cells = tuple(CellGene(pair, steps) for pair in pairs)
    genotype = Genotype(features=BACKBONES.features, channels=channels, length=8, cells=cells)
    names = genotype.used_features
    write_network(
        NetworkJob(str(path), genotype.to_json(), 0),
        genotype,
        member_weights(build_network(genotype, [3])),
        config=FoundConfig(),
        metrics={"dev_auc": 0.75, "best_epoch": 1, "threshold": THRESHOLD},
        neutral=neutral_values(random_clips(5, seed=1), names) if with_neutral else {},
        seconds=1.0,
        provenance={
            "backbones": asdict(BACKBONES),
            "weights": {"visual": "random:0", "audio": "random:1"},
            "corpus": asdict(CONFIG),
        },
    )
    return str(path)
