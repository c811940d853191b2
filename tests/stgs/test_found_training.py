"""Training of found networks: the best epoch is kept, members are independent, weights come back from a file."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stgs.clips import ClipSet
from stgs.config import FoundConfig, InputError, WeightSchedule
from stgs.found_training import FoundTraining, load_found_network, member_weights, predict
from stgs.genotype import Genotype, genotype_from_dict
from stgs.metrics import auc, best_threshold

NAMES = [f"visual.f{i}" for i in range(3)] + ["audio.f0"]
GENOTYPE = genotype_from_dict(
    {
        "version": 1,
        "features": dict.fromkeys(NAMES, 16),
        "channels": 8,
        "length": 4,
        "cells": [
            {
                "inputs": ["visual.f1", "audio.f0"],
                "steps": [
                    {"operation": "concat_fc", "inputs": ["in1", "in2"]},
                    {"operation": "attention", "inputs": ["step1", "in2"]},
                ],
            }
        ],
    }
)


@pytest.fixture
def training(planted: Callable) -> Callable[..., FoundTraining]:
    def build(seeds: list[int], epochs: int = 6, genotype: Genotype = GENOTYPE) -> FoundTraining:
        train, dev = (planted(seed, 192, NAMES, ["visual.f1", "audio.f0"]) for seed in (1, 2))
        return FoundTraining(
            genotype,
            seeds,
            config=FoundConfig(epochs=epochs, batch_size=32, weights=WeightSchedule(learning_rate_max=1e-2)),
            train=ClipSet(*train, members=len(seeds)),
            dev=ClipSet(*dev, members=len(seeds)),
        )

    return build


def test_best_epoch_and_threshold_come_from_dev(training: Callable[..., FoundTraining]) -> None:
    run = training([0, 1])
    aucs = []
    while not run.finished:
        aucs.append(run.run_epoch())
    columns = list(zip(*aucs, strict=True))
    labels = run.dev.labels[0].numpy()
    scores = predict(run.best_network(), run.dev)
    assert scores.shape == (2, 192)
    assert 0.0 <= scores.min() < scores.max() <= 1.0
    thresholds = run.thresholds()
    for member, column in enumerate(columns):
        assert run.best_auc[member] == max(column) > 0.75
        assert run.best_epoch[member] == 6 - column[::-1].index(max(column))
        assert auc(scores[member], labels) == max(column)
        assert thresholds[member] == best_threshold(scores[member], labels)


def test_reading_the_best_network_does_not_disturb_the_training(
    training: Callable[..., FoundTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed, left = training([0]), training([0])
    # The first epoch stays the best one, so that best and current weights differ.
    monkeypatch.setattr("stgs.found_training.auc", lambda *_: 0.5 if disturbed.epoch <= 1 else 0.4)
    for _ in range(3):
        disturbed.run_epoch()
        disturbed.thresholds()
        left.run_epoch()
    assert disturbed.best_epoch == [1]
    assert all(
        torch.equal(a, b) for a, b in zip(disturbed.network.parameters(), left.network.parameters(), strict=True)
    )


def test_ties_go_to_the_later_epoch(training: Callable[..., FoundTraining], monkeypatch: pytest.MonkeyPatch) -> None:
    run = training([0], epochs=3)
    monkeypatch.setattr("stgs.found_training.auc", lambda *_: 0.5)
    while not run.finished:
        run.run_epoch()
    assert run.best_epoch == [3]
    current = run.network.state_dict()
    assert all(torch.equal(tensor, current[name]) for name, tensor in run.best_network().state_dict().items())


def test_network_alone_equals_network_beside_others(training: Callable[..., FoundTraining]) -> None:
    together, alone = training([7, 3], epochs=3), training([3], epochs=3)
    while not together.finished:
        assert together.run_epoch()[1] == pytest.approx(alone.run_epoch()[0], abs=2e-4)
    one, two = predict(together.network, together.dev)[1], predict(alone.network, alone.dev)[0]
    assert np.allclose(one, two, atol=1e-4)


def test_weights_come_back_from_a_file(training: Callable[..., FoundTraining], tmp_path: object) -> None:
    run = training([0, 1], epochs=2)
    while not run.finished:
        run.run_epoch()
    network = run.best_network()
    expected = predict(network, run.dev)
    for member in range(2):
        save_file(member_weights(network, member), tmp_path / "network.safetensors")
        again = load_found_network(GENOTYPE, load_file(tmp_path / "network.safetensors"))
        assert np.allclose(predict(again, run.dev)[0], expected[member], atol=1e-6)


def test_scores_do_not_depend_on_the_other_clips(training: Callable[..., FoundTraining], planted: Callable) -> None:
    run = training([0], epochs=1)
    run.run_epoch()
    columns, labels = planted(2, 192, NAMES, ["visual.f1", "audio.f0"])
    few = ClipSet({name: column[:5] for name, column in columns.items()}, labels[:5], members=1)
    assert np.allclose(predict(run.network, few), predict(run.network, run.dev)[:, :5], atol=1e-6)


def test_wrong_use_is_refused(training: Callable[..., FoundTraining]) -> None:
    run = training([0])
    with pytest.raises(InputError, match="no epoch"):
        run.best_network()
    other = genotype_from_dict({**GENOTYPE.to_dict(), "channels": 4})
    with pytest.raises(InputError, match="do not fit the genotype"):
        load_found_network(other, member_weights(run.network))
    with pytest.raises(InputError, match=r"'visual\.f1'"):
        training([0], genotype=genotype_from_dict({**GENOTYPE.to_dict(), "features": dict.fromkeys(NAMES, 15)}))
