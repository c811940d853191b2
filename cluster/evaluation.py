"""The one reading of the test clips: scores of every trained network, and what they say.

Weights, epochs, thresholds, the found network and the best single sense are chosen before, from train and dev. The
result is committed by exclusive creation; a second evaluation of the same networks returns it, and one of other
networks is refused, because test is read once per run and data set.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cluster.controls import AUDIO, CONTROLS, GRID, RANDOM, SHUFFLED, VISUAL, arm_uri
from cluster.features import FeatureSource, Split
from cluster.found_loop import StoredNetwork, read_network
from cluster.grid import GRID_NAME, read_grid
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs import metrics
from stgs.clips import ClipSet
from stgs.found_training import predict

Floats = NDArray[np.float64]
Progress = Callable[[int], object]
HALF = 0.5
# The shuffled arm is at chance if its mean test AUC lies within this many standard errors of 0.5.
CHANCE_ERRORS = 3.0


def network_uris(run: str) -> dict[str, str]:
    """Name (`arm/id`) -> file of every trained network of a run. Raises InputError if there is none in the grid."""
    found = {}
    for arm in (GRID, *CONTROLS):
        folder = storage.join(arm_uri(run, arm), "networks")
        for file in storage.list(folder):
            found[f"{arm}/{file.removesuffix('.safetensors')}"] = storage.join(folder, file)
    if not any(name.startswith(f"{GRID}/") for name in found):
        raise InputError(f"{run} has no trained networks; run 'stgs train' on it first.")
    return found


def choose(facts: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> str | None:
    """The network of these arms with the best AUC on dev; of equal ones the one of the first point.

    facts: name (`arm/id`) -> what the network's file says (`StoredNetwork.facts`). None if the arms have no network.
    """
    names = [name for name in facts if name.split("/")[0] in arms]
    # Points in the grid's order: temperature, num_samples, estimator, seed.
    names.sort(key=lambda name: (name.split("/")[0], *list((facts[name]["point"] or {}).values())[:4]))
    return max(names, key=lambda name: facts[name]["metrics"]["dev_auc"]) if names else None


def evaluate_run(
    run: str, source: FeatureSource, *, resamples: int = 2000, seed: int = 0, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluate every network on the test clips of every data set.

    resamples, seed: of the bootstrap over subjects. progress: called with 1 after every network. Returns data set ->
    the content of evaluation/<data set>/metrics.json: networks (by name), found, best_single_sense, difference,
    random, shuffled, digests.

    Raises InputError where the networks were made from other features, or where test was read for other networks.
    """
    uris = network_uris(run)
    digests = {name: hashlib.sha256(storage.read(uri)).hexdigest() for name, uri in uris.items()}
    features, split = source.meta.digest, source.split_digest()
    made = {"networks": boxes.json_digest(digests), "features": features, "splits": split}
    test = source.load("test")
    names = sorted(set(test.clips["dataset"]))
    results = {name: _standing(run, name, made) for name in names}
    missing = [name for name in names if results[name] is None]
    if missing:
        expected = {"features_digest": features, "split_digest": split}
        networks = {name: _checked(read_network(uri), expected) for name, uri in uris.items()}
        for name in missing:
            chosen = [index for index, dataset in enumerate(test.clips["dataset"]) if dataset == name]
            part = _subset(test, chosen)
            scores = {}
            for network_name, stored in networks.items():
                scores[network_name] = score_clips(stored, part)
                if progress is not None:
                    progress(1)
            content = _metrics(networks, scores, part, resamples, seed)
            results[name] = _commit(run, name, {"dataset": name, "digests": made, **content}, scores, part)
    complete = {name: result for name, result in results.items() if result is not None}
    _add_to_grid(run, complete)
    return complete


def score_clips(stored: StoredNetwork, clips: Split) -> Floats:
    """P(fake) of clips, [N], with a stored network."""
    genotype = stored.network.genotype
    features = clips.only(genotype.used_features, genotype.length)
    # Evaluation uses no loss; the balance is given so that a split of one class can be scored, too.
    balance = torch.ones(1, 2)
    return predict(stored.network, ClipSet(features.columns, clips.labels, members=1, balance=balance))[0]


def _checked(stored: StoredNetwork, expected: Mapping[str, str]) -> StoredNetwork:
    for key in expected:
        if stored.facts["provenance"][key] != expected[key]:
            raise InputError(
                f"{stored.uri} was trained with {key} {stored.facts['provenance'][key]}, but these features have "
                f"{expected[key]}; give the --features and --manifest of its training."
            )
    return stored


def _subset(split: Split, index: Sequence[int]) -> Split:
    where = np.asarray(index)
    columns = {name: column[where] for name, column in split.columns.items()}
    clips = {name: [values[i] for i in index] for name, values in split.clips.items()}
    return Split(columns, split.labels[where], clips)


def _metrics(
    networks: Mapping[str, StoredNetwork], scores: Mapping[str, Floats], test: Split, resamples: int, seed: int
) -> dict[str, Any]:
    subjects, labels = test.clips["subject"], test.labels
    bootstrap = {"seed": seed, "resamples": resamples}

    def interval(statistic: Callable[[Floats], float]) -> dict[str, float]:
        found = metrics.bootstrap_interval(statistic, subjects, seed=seed, resamples=resamples)
        return {"value": found.value, "low": found.low, "high": found.high}

    table = {}
    for name, values in scores.items():
        facts = networks[name].facts
        table[name] = {
            "arm": name.split("/")[0],
            "auc": interval(lambda weights, values=values: metrics.weighted_auc(values, labels, weights)),  # type: ignore[misc]
            **_point_metrics(values, test, facts["metrics"]["threshold"]),
            **{key: facts[key] for key in ("parameters", "macs", "seconds", "genotype", "point")},
            **facts["metrics"],
        }
    facts = {name: stored.facts for name, stored in networks.items()}
    found, single = choose(facts, (GRID,)), choose(facts, (VISUAL, AUDIO))
    difference = None
    if found is not None and single is not None:
        ours, theirs = scores[found], scores[single]
        difference = interval(
            lambda weights: metrics.weighted_auc(ours, labels, weights) - metrics.weighted_auc(theirs, labels, weights)
        )
    return {
        "clips": len(labels),
        "fake": int(labels.sum()),
        "subjects": len(set(subjects)),
        "bootstrap": bootstrap,
        "found": found,
        "best_single_sense": single,
        "difference": difference,
        "random": _spread([row["auc"]["value"] for row in table.values() if row["arm"] == RANDOM]),
        "shuffled": _chance([row["auc"]["value"] for row in table.values() if row["arm"] == SHUFFLED]),
        "networks": table,
    }


def _point_metrics(scores: Floats, test: Split, threshold: float) -> dict[str, Any]:
    labels, categories = test.labels, np.asarray(test.clips["category"])
    false_positive, true_positive, _ = metrics.roc_curve(scores, labels)
    by_category = {}
    for category in "BCD":
        pair = np.isin(categories, ["A", category])
        if set(categories[pair]) == {"A", category}:
            by_category[category] = metrics.auc(scores[pair], labels[pair])
    return {
        "equal_error_rate": metrics.equal_error_rate(scores, labels),
        "accuracy": metrics.accuracy(scores, labels, HALF),
        "accuracy_dev_threshold": metrics.accuracy(scores, labels, threshold),
        "balanced_accuracy": metrics.balanced_accuracy(scores, labels, threshold),
        "auc_by_category": by_category,
        "roc": [false_positive.tolist(), true_positive.tolist()],
    }


def _spread(aucs: Sequence[float]) -> dict[str, Any] | None:
    if not aucs:
        return None
    return {"count": len(aucs), "mean": float(np.mean(aucs)), "low": min(aucs), "high": max(aucs)}


def _chance(aucs: Sequence[float]) -> dict[str, Any] | None:
    """Whether shuffled labels end at chance: the mean AUC within 3 standard errors of 0.5 (design.md section 4)."""
    if len(aucs) < 2:
        return None
    error = float(np.std(aucs, ddof=1) / math.sqrt(len(aucs)))
    mean = float(np.mean(aucs))
    at_chance = abs(mean - HALF) <= CHANCE_ERRORS * error
    return {"count": len(aucs), "mean": mean, "standard_error": error, "at_chance": at_chance}


def _uri(run: str, dataset: str, *parts: str) -> str:
    return storage.join(run, "evaluation", dataset, *parts)


def _standing(run: str, dataset: str, made: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(storage.read(_uri(run, dataset, "metrics.json")))
    except FileNotFoundError:
        return None
    if content["digests"] != dict(made):
        raise InputError(
            f"{run} has read the test clips of {dataset!r} already, for other networks, features or splits; train into "
            "a new run, since test is read once."
        )
    return content


def _add_to_grid(run: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the AUC of the points' trained networks on dev and test into grid.parquet; null where there is none."""
    rows = read_grid(run)
    for row in rows:
        for dataset, result in results.items():
            network = result["networks"].get(f"{GRID}/{row['id']}")
            row["network_dev_auc"] = network["dev_auc"] if network else None
            for bound in ("value", "low", "high"):
                row[f"test_auc_{bound}.{dataset}"] = network["auc"][bound] if network else None
    storage.write(storage.join(run, GRID_NAME), boxes.table_bytes(pa.Table.from_pylist(rows)))


def _commit(
    run: str, dataset: str, content: dict[str, Any], scores: Mapping[str, Floats], test: Split
) -> dict[str, Any]:
    columns: dict[str, Any] = {name: list(values) for name, values in test.clips.items()}
    table = pa.table({**columns, "label": test.labels, **scores})
    storage.write(_uri(run, dataset, "scores.parquet"), boxes.table_bytes(table))
    try:
        storage.create(_uri(run, dataset, "metrics.json"), json.dumps(content, indent=1).encode())
    except FileExistsError:  # another evaluation of the same networks was first
        return _standing(run, dataset, content["digests"]) or content
    return content
