"""Logits of stored networks, and what each sense brings into them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from cluster.features import Split
from cluster.network_files import read_network
from cluster.network_scores import NetworkScorer, p_fake
from tests.scored_network import SOUND, random_clips, write_scored_network

CLIPS = random_clips(30)


def value(scorer: NetworkScorer, neutral: dict[str, np.ndarray], heard: set[str]) -> np.ndarray:
    """The logit where only some senses are heard, with the others' features put in by hand."""
    columns = {}
    for name, column in CLIPS.columns.items():
        silenced = np.stack([neutral.get(name, column[0])] * len(column))
        columns[name] = column if name.partition(".")[0] in heard else silenced
    return scorer.logits(columns)


def test_a_clip_has_the_same_bits_in_every_company(tmp_path: Path) -> None:
    # In single precision few of so wide a network's logits would be the same.
    stored = read_network(write_scored_network(tmp_path / "both.safetensors", channels=128))
    scorer = NetworkScorer(stored)
    together = scorer.logits(CLIPS.columns)
    alone = [scorer.logits({name: column[[i]] for name, column in CLIPS.columns.items()})[0] for i in range(30)]
    assert together.tolist() == alone
    assert np.ptp(together) > 0
    np.testing.assert_allclose(p_fake(together), 1 / (1 + np.exp(-together)), rtol=1e-12)


def test_shapley_values_are_the_mean_over_the_orders_in_which_the_senses_come(tmp_path: Path) -> None:
    stored = read_network(write_scored_network(tmp_path / "both.safetensors"))
    scorer, neutral = NetworkScorer(stored), {name: tensor.numpy() for name, tensor in stored.neutral.items()}
    effects = scorer.sense_effects(CLIPS.columns)
    shares = {"visual": np.zeros(30), "audio": np.zeros(30)}
    for order in itertools.permutations(shares):
        for place, sense in enumerate(order):
            before = value(scorer, neutral, set(order[:place]))
            shares[sense] += (value(scorer, neutral, set(order[: place + 1])) - before) / 2
    for sense, share in shares.items():
        np.testing.assert_allclose(effects[f"{sense}_shapley"], share, atol=1e-12)
        alone = value(scorer, neutral, {sense}) - value(scorer, neutral, set())
        np.testing.assert_allclose(effects[sense], alone, atol=1e-12)
    assert np.abs(effects["together"]).max() > 1e-4
    parts = sum(effects[name] for name in ("baseline", "visual", "audio", "together"))
    np.testing.assert_allclose(parts, scorer.logits(CLIPS.columns), atol=1e-12)


def test_a_network_of_one_sense_tells_of_that_sense(tmp_path: Path) -> None:
    scorer = NetworkScorer(read_network(write_scored_network(tmp_path / "audio.safetensors", SOUND)))
    effects = scorer.sense_effects(CLIPS.columns)
    assert set(effects) == {"baseline", "audio"}
    np.testing.assert_allclose(effects["baseline"] + effects["audio"], scorer.logits(CLIPS.columns), atol=1e-12)


def test_a_file_without_neutral_values_tells_no_sense(tmp_path: Path) -> None:
    scorer = NetworkScorer(read_network(write_scored_network(tmp_path / "old.safetensors", with_neutral=False)))
    assert not scorer.tells_senses


@pytest.mark.parametrize("length", [8, 16])
def test_features_of_more_positions_are_pooled_as_in_training(tmp_path: Path, length: int) -> None:
    scorer = NetworkScorer(read_network(write_scored_network(tmp_path / "both.safetensors")))
    longer = {n: c if c.ndim == 2 else np.repeat(c, length // 8, axis=2) for n, c in CLIPS.columns.items()}
    pooled = Split(longer, CLIPS.labels, {}).only(tuple(longer), 8).columns
    assert (scorer.logits(longer) == scorer.logits(pooled)).all()
