"""The arms of a run: the grid itself, and the controls that its scores are held against (design.md section 4).

Every arm but the grid is a run of its own under parts/<arm>, on the same features, splits and budget.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.attempts import read_packs
from cluster.features import FeatureSource
from cluster.gathering import GRID_NAME, read_grid
from cluster.network_files import CONCAT_LINEAR as CONCAT_LINEAR
from cluster.network_files import NetworkJob
from cluster.settings import AUTO, CANDIDATES, GridConfig, chosen_features
from data_prep import storage
from data_prep.storage import InputError
from stgs.candidates import random_genotypes
from stgs.estimators import UNIFORM as UNIFORM

GRID = "grid"
# One sense alone: the same grid, restricted to that sense's features.
VISUAL, AUDIO = "visual", "audio"
# The estimator of BM-NAS, the probabilities themselves, in as many searches as the grid has points.
SOFTMAX = "softmax"
# UNIFORM, the arm of the estimator of that name, is as many searches, too: random search with weight sharing (Li and
# Talwalkar 2019). The supernets train on architectures drawn by chance, and each keeps the best on dev of random
# genotypes of its own.
# Genotypes drawn by chance from the grid's space.
RANDOM = "random"
# CONCAT_LINEAR is no search: all features joined, and one linear layer.
# The whole procedure with labels permuted within train and within dev; its test AUC must be at chance.
SHUFFLED = "shuffled"
CONTROLS = (VISUAL, AUDIO, SOFTMAX, UNIFORM, RANDOM, CONCAT_LINEAR, SHUFFLED)
# The setting of the shuffled searches: the one that the paper's text picks, and of the other axes the first value.
SHUFFLED_TEMPERATURE, SHUFFLED_SAMPLES = 10.0, 15
# Searches of the softmax and of the uniform arm, at most; fewer where the grid has fewer points.
CONTROL_SEARCHES = 16


def arm_uri(run: str, arm: str) -> str:
    """Directory of an arm: the run itself, or its part."""
    return run if arm == GRID else storage.join(run, "parts", arm)


def network_uri(run: str, arm: str, network_id: str) -> str:
    """File of an arm's network."""
    return storage.join(arm_uri(run, arm), "networks", f"{network_id}.safetensors")


def control_grids(
    run: str,
    config: GridConfig,
    controls: Sequence[str],
    source: FeatureSource,
    *,
    shuffles: int,
    searches: int = CONTROL_SEARCHES,
) -> dict[str, GridConfig]:
    """The searches that controls need: directory -> settings.

    shuffles: number of shuffled searches. searches: most searches of the softmax and of the uniform arm, which have as
    many as the grid has points otherwise. Raises InputError where the grid has fewer than 2 features of a sense that
    is a control, or where `searches`, or `shuffles` of a run with that arm, is below 1.
    """
    if searches < 1:
        raise InputError(f"control_searches is {searches}, but it must be at least 1; leave an arm out of --controls.")
    if SHUFFLED in controls:
        # Without a shuffle the arm would be one search, with the labels as they are.
        _require_some(SHUFFLED, "shuffles", shuffles)
    # Only a choice among them needs candidates; nothing else of an arm does.
    plain = config if UNIFORM in config.estimators else _with_candidates(config, 0)
    grids = {sense: _one_sense(plain, sense, source) for sense in (VISUAL, AUDIO) if sense in controls}
    count = min(len(config.points()), searches)
    if SOFTMAX in controls:
        grids[SOFTMAX] = _seeded(plain, SOFTMAX, count)
    if UNIFORM in controls:
        grids[UNIFORM] = _seeded(_with_candidates(config, CANDIDATES), UNIFORM, count)
    if SHUFFLED in controls:
        # The estimator of the grid's first point, and of the other axes the first value.
        single = _single(plain, plain.estimators[0], plain.seeds[:1])
        grids[SHUFFLED] = replace(
            single, temperatures=(SHUFFLED_TEMPERATURE,), num_samples=(SHUFFLED_SAMPLES,), shuffles=shuffles
        )
    return {arm_uri(run, arm): grid for arm, grid in grids.items()}


def _require_some(arm: str, option: str, count: int) -> None:
    if count < 1:
        raise InputError(f"{option} is {count}, but it must be at least 1; leave {arm} out of --controls.")


def _with_candidates(config: GridConfig, count: int) -> GridConfig:
    settings = config.settings
    return replace(config, settings=replace(settings, search=replace(settings.search, candidates=count)))


def _single(config: GridConfig, estimator: str, seeds: Sequence[int]) -> GridConfig:
    """The grid's first setting alone, with an estimator, for each of `seeds`."""
    return replace(
        config,
        temperatures=config.temperatures[:1],
        num_samples=config.num_samples[:1],
        estimators=(estimator,),
        seeds=tuple(seeds),
        axes={},
        pack=AUTO,
    )


def _seeded(config: GridConfig, estimator: str, count: int) -> GridConfig:
    """`count` searches with an estimator to which temperature and num_samples mean nothing: they differ in the seed.

    The grid's seeds come first, then the smallest others.
    """
    others = (seed for seed in itertools.count() if seed not in config.seeds)
    return _single(config, estimator, list(itertools.islice(itertools.chain(config.seeds, others), count)))


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


def control_jobs(
    run: str,
    config: GridConfig,
    source: FeatureSource,
    rows_by_arm: Mapping[str, Sequence[dict[str, Any]]],
    controls: Sequence[str],
    *,
    random_count: int = CANDIDATES,
) -> list[NetworkJob]:
    """The networks of a run and of its controls, the grid's first.

    rows_by_arm: what the searches found, of the grid and of the arms that are searched (rows of grid.parquet).
    random_count: genotypes of the random arm. The concat + linear arm has one network for each of the grid's seeds, of
    the features of its first options.
    """
    jobs = [job for arm, rows in rows_by_arm.items() for job in grid_jobs(run, arm, rows)]
    if RANDOM in controls:
        jobs += random_jobs(run, config, source, count=random_count)
    if CONCAT_LINEAR in controls:
        features = tuple(config.settings.space(source).features)
        jobs += [
            NetworkJob(
                network_uri(run, CONCAT_LINEAR, f"seed-{seed}"), None, seed, kind=CONCAT_LINEAR, features=features
            )
            for seed in config.seeds
        ]
    return jobs


def random_jobs(run: str, config: GridConfig, source: FeatureSource, *, count: int) -> list[NetworkJob]:
    """The networks of the random arm, from the space of the grid's first options.

    Their genotypes are the candidates that the grid's supernets scored, as many as there were: one function draws both.
    Raises InputError where `count` is below 1.
    """
    _require_some(RANDOM, "random_genotypes", count)
    settings = config.settings
    search = settings.search
    genotypes = random_genotypes(settings.space(source), count, search.data_seed, search.max_parameters)
    return [
        NetworkJob(network_uri(run, RANDOM, f"random-{index}"), genotype, config.seeds[0])
        for index, genotype in enumerate(genotypes)
    ]


def grid_jobs(run: str, arm: str, rows: Sequence[dict[str, Any]]) -> list[NetworkJob]:
    """The networks of the points that an arm's search found."""
    points = {point.id: point for pack in read_packs(arm_uri(run, arm)) for point in pack.points}
    return [
        NetworkJob(
            network_uri(run, arm, row["id"]),
            row["genotype"],
            row["seed"],
            points[row["id"]],
            search_dev_auc=row["dev_auc"],
        )
        for row in rows
    ]


def budgets(run: str) -> dict[str, dict[str, Any]]:
    """What each arm that has been begun was given, by its name: searches, and their epochs and device seconds in all;
    candidates, the genotypes whose scores in a supernet chose what was found; networks, trained from scratch.
    """
    found = {}
    for arm in (GRID, *CONTROLS):
        uri = arm_uri(run, arm)
        rows = read_grid(uri) if storage.exists(storage.join(uri, GRID_NAME)) else []
        networks = sum(path.endswith(".safetensors") for path in storage.list(storage.join(uri, "networks")))
        if rows or networks:
            found[arm] = {
                "searches": len(rows),
                "epochs": sum(row["epochs"] for row in rows),
                "device_seconds": sum(row["device_seconds"] for row in rows),
                "candidates": sum(len(json.loads(row["candidates"])) for row in rows if row["estimator"] == UNIFORM),
                "networks": networks,
            }
    return found
