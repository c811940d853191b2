"""Whether a supernet ranks genotypes as their own training from scratch does, which is what a search relies on.

The random arm trains the candidates that the grid's supernets scored; both scores are AUCs on dev, so test stays shut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cluster.controls import RANDOM, arm_uri
from cluster.gathering import GRID_NAME, read_grid
from cluster.network_files import network_facts
from cluster.settings import CANDIDATES
from data_prep import storage

RESAMPLES = 2000
# Of the percentile interval, in percent.
_LOW, _HIGH = 2.5, 97.5

Floats = NDArray[np.float64]
Pair = tuple[float, float, str]


def rank_correlation(run: str, *, seed: int = 0) -> dict[str, Any] | None:
    """Rank correlations of the supernets' and the stand-alone dev AUC, over the genotypes that have both.

    Networks that were fitted on dev, too, have no score there. seed: of the bootstrap over genotypes. Returns None
    where the run has no grid.parquet, no candidates or no random arm. Otherwise points: one for each of the grid's,
    with its id, count (genotypes), spearman, kendall (tau b), low and high (95 % percentile interval of spearman),
    pairs ([supernet's AUC, stand-alone AUC, the network's name]), and sentence, which says why the numbers are null:
    fewer than 16 genotypes, or scores that are all equal. mean: spearman and kendall over the points that have them,
    and their count. resamples: of the bootstrap.
    """
    if not storage.exists(storage.join(run, GRID_NAME)):  # a run of given genotypes, or nothing found yet
        return None
    rows = [(row["id"], json.loads(row.get("candidates") or "[]")) for row in read_grid(run)]
    networks = _random_networks(run)
    if not networks or not any(candidates for _, candidates in rows):
        return None
    alone = _stand_alone(networks)
    points = []
    for point, candidates in rows:
        scores = {_key(one["genotype"]): one["dev_auc"] for one in candidates if one["dev_auc"] is not None}
        pairs = [(scores[key], value, name) for key, (value, name) in alone.items() if key in scores]
        points.append({"id": point, **correlate(pairs, seed=seed)})
    told = [point for point in points if point["spearman"] is not None]
    mean = {name: float(np.mean([point[name] for point in told])) if told else None for name in ("spearman", "kendall")}
    return {"points": points, "mean": {**mean, "points": len(told)}, "resamples": RESAMPLES}


def correlate(pairs: Sequence[Pair], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """What `rank_correlation` says of one point. pairs: supernet's AUC, stand-alone AUC, name."""
    told: dict[str, Any] = {"count": len(pairs), "spearman": None, "kendall": None, "low": None, "high": None}
    told |= {"pairs": [list(pair) for pair in pairs], "sentence": None}
    if len(pairs) < CANDIDATES:
        counted = "1 genotype has" if len(pairs) == 1 else f"{len(pairs) or 'no'} genotypes have"
        told["sentence"] = f"{counted} both scores, but a rank correlation is told of {CANDIDATES} and more."
        return told
    supernet, alone = (np.array([pair[at] for pair in pairs], np.float64) for at in (0, 1))
    for name, values in (("supernet", supernet), ("stand-alone", alone)):
        if (values == values[0]).all():
            told["sentence"] = f"the {name} scores of all {len(pairs)} genotypes are equal, so they rank nothing."
            return told
    told["spearman"] = float(stats.spearmanr(supernet, alone).statistic)
    told["kendall"] = float(stats.kendalltau(supernet, alone).statistic)
    told["low"], told["high"] = _interval(supernet, alone, seed, resamples)
    return told


def _interval(supernet: Floats, alone: Floats, seed: int, resamples: int) -> tuple[float, float]:
    """Percentile interval of Spearman's correlation, over genotypes drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(0, len(alone), (resamples, len(alone)))
    first, second = (_centred_ranks(values[drawn]) for values in (supernet, alone))
    norms = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    # A resample of one score alone ranks nothing.
    some = norms > 0.0
    low, high = np.percentile((first * second).sum(axis=1)[some] / norms[some], (_LOW, _HIGH))
    return float(low), float(high)


def _centred_ranks(values: Floats) -> Floats:
    """Ranks of each row, ties at their mean, less the row's mean rank."""
    ranks: Floats = stats.rankdata(values, axis=1)
    return ranks - ranks.mean(axis=1, keepdims=True)


def _random_networks(run: str) -> dict[str, dict[str, Any]]:
    """Name -> facts of the random arm's networks."""
    folder = storage.join(arm_uri(run, RANDOM), "networks")
    files = [file for file in sorted(storage.list(folder)) if file.endswith(".safetensors")]
    return {
        f"{RANDOM}/{file.removesuffix('.safetensors')}": network_facts(storage.read(storage.join(folder, file)))
        for file in files
    }


def _stand_alone(networks: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, str]]:
    """Genotype -> dev AUC, the mean over repeated trainings, and name of the (first) network."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name, facts in networks.items():
        metrics = facts["metrics"]
        if "dev" not in metrics.get("fitted_on", ()):
            found.setdefault(_key(facts["genotype"]), []).append((metrics["dev_auc"], name))
    return {key: (float(np.mean([value for value, _ in group])), group[0][1]) for key, group in found.items()}


def _key(genotype: Mapping[str, Any]) -> str:
    """The same for equal genotypes. The order of the features counts: it is that of the architecture's edges."""
    return json.dumps(genotype)
