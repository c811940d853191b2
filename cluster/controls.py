"""The arms of a run: the grid itself, and the controls that its scores are held against (design.md section 4).

Every arm but the grid is a run of its own under parts/<arm>, on the same features, splits and budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from cluster.attempts import Point
from cluster.features import FeatureSource
from cluster.found_loop import NetworkJob
from cluster.grid import GridConfig
from data_prep import storage
from stgs.decoding import decode
from stgs.search_space import SearchSpace

GRID = "grid"
# One sense alone: the same grid, restricted to that sense's features.
VISUAL, AUDIO = "visual", "audio"
# Genotypes drawn by chance from the grid's space.
RANDOM = "random"
# The whole procedure with labels permuted within train and within dev; its test AUC must be at chance.
SHUFFLED = "shuffled"
CONTROLS = (VISUAL, AUDIO, RANDOM, SHUFFLED)
# The setting of the shuffled searches: the one that the paper's text picks.
SHUFFLED_TEMPERATURE, SHUFFLED_SAMPLES = 10.0, 15


def arm_uri(run: str, arm: str) -> str:
    """Directory of an arm: the run itself, or its part."""
    return run if arm == GRID else storage.join(run, "parts", arm)


def network_uri(run: str, arm: str, network_id: str) -> str:
    """File of an arm's network."""
    return storage.join(arm_uri(run, arm), "networks", f"{network_id}.safetensors")


def control_grids(run: str, config: GridConfig, controls: Sequence[str], *, shuffles: int) -> dict[str, GridConfig]:
    """The searches that controls need: directory -> settings. shuffles: number of shuffled searches."""
    grids = {
        arm_uri(run, sense): replace(config, settings=replace(config.settings, sense=sense))
        for sense in (VISUAL, AUDIO)
        if sense in controls
    }
    if SHUFFLED in controls:
        grids[arm_uri(run, SHUFFLED)] = replace(
            config,
            temperatures=(SHUFFLED_TEMPERATURE,),
            num_samples=(SHUFFLED_SAMPLES,),
            estimators=config.estimators[:1],
            seeds=config.seeds[:1],
            shuffles=shuffles,
            pack=shuffles,
        )
    return grids


def random_genotypes(space: SearchSpace, count: int, seed: int) -> list[str]:
    """`count` different genotypes (JSON): decoded from logits that are drawn, so by the rules that a search obeys."""
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    # A small space may hold fewer genotypes than asked for; after this many draws it has shown them.
    for _ in range(100 * count):
        if len(found) == count:
            break
        logits = {name: random.standard_normal(shape) for name, shape in space.shapes().items()}
        found[decode(logits, space).to_json()] = None
    return list(found)


def random_jobs(run: str, config: GridConfig, source: FeatureSource, *, count: int) -> list[NetworkJob]:
    """The networks of the random arm."""
    genotypes = random_genotypes(config.settings.space(source), count, config.seeds[0])
    return [
        NetworkJob(network_uri(run, RANDOM, f"random-{index}"), genotype, config.seeds[0])
        for index, genotype in enumerate(genotypes)
    ]


def grid_jobs(run: str, arm: str, rows: Sequence[dict[str, Any]]) -> list[NetworkJob]:
    """The networks of the points that an arm's search found."""
    return [
        NetworkJob(
            network_uri(run, arm, row["id"]),
            row["genotype"],
            row["seed"],
            Point(*(row[field.name] for field in fields(Point))),
        )
        for row in rows
    ]
