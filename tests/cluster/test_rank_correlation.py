"""Rank correlation of supernet and stand-alone scores, against scipy on planted numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from scipy import stats

from cluster.network_files import METADATA_KEY
from cluster.rank_correlation import correlate, rank_correlation
from data_prep import boxes, storage
from stgs.candidates import random_genotypes
from stgs.search_space import search_space

SPACE = search_space("default", dict.fromkeys("abcde", 4), channels=4, length=2)
GENOTYPES = random_genotypes(SPACE, 20, 0)


def planted(count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Two scores that rank alike, more or less, with ties in both."""
    random = np.random.default_rng(1)
    first = random.uniform(0.5, 1.0, count)
    return first.round(1), (first + 0.1 * random.standard_normal(count)).round(1)


def pairs(first: np.ndarray, second: np.ndarray) -> list[tuple[float, float, str]]:
    return [(float(a), float(b), f"random/random-{i}") for i, (a, b) in enumerate(zip(first, second, strict=True))]


def test_correlations_and_interval_with_ties() -> None:
    first, second = planted()
    assert len(set(first)) < len(first), "there are ties"
    told = correlate(pairs(first, second), seed=3)
    assert told["spearman"] == pytest.approx(
        np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1], abs=1e-12
    )
    concordance = np.sign(np.subtract.outer(first, first)) * np.sign(np.subtract.outer(second, second))
    untied = [(np.sign(np.subtract.outer(x, x)) ** 2).sum() for x in (first, second)]
    assert told["kendall"] == pytest.approx(concordance.sum() / np.sqrt(untied[0] * untied[1]), abs=1e-12), "tau b"
    drawn = np.random.default_rng(9).integers(0, 20, (4000, 20))
    resampled = [stats.spearmanr(first[index], second[index]).statistic for index in drawn[:1500]]
    low, high = np.percentile(resampled, (2.5, 97.5))
    assert (told["low"], told["high"]) == pytest.approx((low, high), abs=0.05)
    assert told["low"] < told["spearman"] < told["high"]
    assert (told["count"], told["sentence"]) == (20, None)


def test_resamples_of_one_score_alone_are_left_out() -> None:
    first = np.array([0.6] * 15 + [0.9])
    told = correlate(pairs(first, first))
    assert (told["spearman"], told["low"], told["high"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("count", "constant", "sentence"),
    [
        (0, None, "no genotypes have both scores, but a rank correlation is told of 16 and more."),
        (1, None, "1 genotype has both scores, but a rank correlation is told of 16 and more."),
        (15, None, "15 genotypes have both scores, but a rank correlation is told of 16 and more."),
        (16, 0, "the supernet scores of all 16 genotypes are equal, so they rank nothing."),
        (16, 1, "the stand-alone scores of all 16 genotypes are equal, so they rank nothing."),
    ],
)
def test_what_cannot_be_told_is_a_sentence(count: int, constant: int | None, sentence: str) -> None:
    scores = list(planted(count))
    if constant is not None:
        scores[constant] = np.full(count, 0.5)
    told = correlate(pairs(scores[0], scores[1]))
    assert told["sentence"] == sentence
    assert [told[name] for name in ("spearman", "kendall", "low", "high")] == [None] * 4
    assert len(told["pairs"]) == told["count"] == count


def plant_run(run: Path, candidates: dict[str, list[float | None]], networks: dict[str, Any]) -> None:
    """grid.parquet with the points' candidates, and files of the random arm: name -> (genotype, AUC, fitted on)."""
    rows = [
        {
            "id": point,
            "candidates": json.dumps(
                [
                    {"genotype": json.loads(text), "dev_auc": value}
                    for text, value in zip(GENOTYPES, values, strict=False)
                ]
            ),
        }
        for point, values in candidates.items()
    ]
    storage.write(str(run / "grid.parquet"), boxes.table_bytes(pa.Table.from_pylist(rows)))
    for name, (text, value, fitted_on) in networks.items():
        facts = {"genotype": json.loads(text), "metrics": {"dev_auc": value, "fitted_on": fitted_on}}
        content = safetensors.torch.save({"x": torch.zeros(1)}, {METADATA_KEY: json.dumps(facts)})
        storage.write(str(run / "parts" / "random" / "networks" / f"{name}.safetensors"), content)


def test_a_run_is_told_point_by_point_and_in_the_mean(tmp_path: Path) -> None:
    first, second = planted()
    networks = {f"random-{i}": (text, float(second[i]), ["train"]) for i, text in enumerate(GENOTYPES)}
    # A further training of a genotype counts together with the first.
    networks["random-0"] = (GENOTYPES[0], float(second[0]) - 0.1, ["train"])
    networks["random-0_repeat-1"] = (GENOTYPES[0], float(second[0]) + 0.1, ["train"])
    candidates = {
        "a": [float(value) for value in first],
        "b": [float(value) for value in -first],
        "none": [],
        "not finite": [None] * 5 + [float(value) for value in first[5:]],
    }
    plant_run(tmp_path, candidates, networks)
    told = rank_correlation(str(tmp_path))
    assert told is not None
    points = {point["id"]: point for point in told["points"]}
    expected = stats.spearmanr(first, second).statistic
    assert points["a"]["spearman"] == pytest.approx(expected, abs=1e-12)
    assert points["b"]["spearman"] == pytest.approx(-expected, abs=1e-12)
    assert sorted(name for _, _, name in points["a"]["pairs"]) == sorted(f"random/random-{i}" for i in range(20))
    assert (points["none"]["count"], points["not finite"]["count"]) == (0, 15)
    assert told["mean"] == {"spearman": pytest.approx(0.0, abs=1e-12), "kendall": pytest.approx(0.0), "points": 2}


def test_runs_without_both_scores(tmp_path: Path) -> None:
    first, second = planted()
    values: list[float | None] = [float(value) for value in first]
    networks = {f"random-{i}": (text, float(second[i]), ["train"]) for i, text in enumerate(GENOTYPES)}
    plant_run(tmp_path / "no-random", {"a": values}, {})
    plant_run(tmp_path / "no-candidates", {"a": []}, networks)
    assert rank_correlation(str(tmp_path / "no-grid")) is None
    assert rank_correlation(str(tmp_path / "no-random")) is None
    assert rank_correlation(str(tmp_path / "no-candidates")) is None
    fitted = {name: (text, value, ["train", "dev"]) for name, (text, value, _) in networks.items()}
    plant_run(tmp_path / "fitted", {"a": values}, fitted)
    told = rank_correlation(str(tmp_path / "fitted"))
    assert told is not None
    assert told["points"][0]["count"] == 0, "an AUC on clips that were fitted is no score"
    assert told["mean"] == {"spearman": None, "kendall": None, "points": 0}
