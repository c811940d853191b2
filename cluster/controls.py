"""The arms of a run: the grid itself, and the controls that its scores are held against (design.md section 4).

Every arm but the grid is a run of its own under parts/<arm>, on the same features, splits and budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.attempts import read_packs
from cluster.features import FeatureSource
from cluster.found_loop import NetworkJob
from cluster.settings import AUTO, GridConfig, chosen_features
from data_prep import storage
from data_prep.storage import InputError
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
# The setting of the shuffled searches: the one that the paper's text picks, and of the other axes the first value.
SHUFFLED_TEMPERATURE, SHUFFLED_SAMPLES = 10.0, 15


def arm_uri(run: str, arm: str) -> str:
    """Directory of an arm: the run itself, or its part."""
    return run if arm == GRID else storage.join(run, "parts", arm)


def network_uri(run: str, arm: str, network_id: str) -> str:
    """File of an arm's network."""
    return storage.join(arm_uri(run, arm), "networks", f"{network_id}.safetensors")


def control_grids(
    run: str, config: GridConfig, controls: Sequence[str], source: FeatureSource, *, shuffles: int
) -> dict[str, GridConfig]:
    """The searches that controls need: directory -> settings. shuffles: number of shuffled searches.

    Raises InputError where the grid has fewer than 2 features of a sense that is a control.
    """
    senses = [sense for sense in (VISUAL, AUDIO) if sense in controls]
    grids = {arm_uri(run, sense): _one_sense(config, sense, source) for sense in senses}
    if SHUFFLED in controls:
        grids[arm_uri(run, SHUFFLED)] = replace(
            config,
            temperatures=(SHUFFLED_TEMPERATURE,),
            num_samples=(SHUFFLED_SAMPLES,),
            estimators=config.estimators[:1],
            seeds=config.seeds[:1],
            axes={},
            shuffles=shuffles,
            pack=AUTO,
        )
    return grids


def _one_sense(config: GridConfig, sense: str, source: FeatureSource) -> GridConfig:
    """The same grid on one sense's features, without the choices of features that have too few of them."""
    # A control of one sense has that one, where the grid has several, too.
    axes = {name: values for name, values in config.axes.items() if name != "sense"}
    kept = tuple(
        patterns
        for patterns in axes.get("feature_names", (config.settings.feature_names,))
        if sum(name.startswith(f"{sense}.") for name in chosen_features(source, patterns)) >= 2
    )
    if not kept:
        raise InputError(
            f"the features that the grid searches hold fewer than 2 of {sense}, so that it has no {sense} control; "
            "name the other --controls."
        )
    if "feature_names" in axes:
        axes["feature_names"] = kept
    return replace(config, axes=axes, settings=replace(config.settings, sense=sense))


def random_genotypes(space: SearchSpace, count: int, seed: int, max_parameters: int = 0) -> list[str]:
    """`count` different genotypes (JSON): decoded from logits that are drawn, so by the rules that a search obeys.

    max_parameters: of each, 0 for no limit.
    """
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    # A small space may hold fewer genotypes than asked for; after this many draws it has shown them.
    for _ in range(100 * count):
        if len(found) == count:
            break
        logits = {name: random.standard_normal(shape) for name, shape in space.shapes().items()}
        found[decode(logits, space, max_parameters).to_json()] = None
    return list(found)


def random_jobs(run: str, config: GridConfig, source: FeatureSource, *, count: int) -> list[NetworkJob]:
    """The networks of the random arm, from the space of the grid's first options."""
    settings = config.settings
    genotypes = random_genotypes(settings.space(source), count, config.seeds[0], settings.search.max_parameters)
    return [
        NetworkJob(network_uri(run, RANDOM, f"random-{index}"), genotype, config.seeds[0])
        for index, genotype in enumerate(genotypes)
    ]


def grid_jobs(run: str, arm: str, rows: Sequence[dict[str, Any]]) -> list[NetworkJob]:
    """The networks of the points that an arm's search found."""
    points = {point.id: point for pack in read_packs(arm_uri(run, arm)) for point in pack.points}
    return [
        NetworkJob(network_uri(run, arm, row["id"]), row["genotype"], row["seed"], points[row["id"]]) for row in rows
    ]
