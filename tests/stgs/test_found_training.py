"""Training of found networks: the best epoch is kept, members are independent, weights come back from a file."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stgs.bilevel import Batch
from stgs.clips import ClipSet
from stgs.config import FoundConfig, InputError, WeightSchedule, released_found_config
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
    def build(seeds: list[int], epochs: int = 6, genotype: Genotype = GENOTYPE, **settings: Any) -> FoundTraining:
        train, dev = (planted(seed, 192, NAMES, ["visual.f1", "audio.f0"]) for seed in (1, 2))
        return FoundTraining(
            genotype,
            seeds,
            config=FoundConfig(
                epochs=epochs, batch_size=32, weights=WeightSchedule(learning_rate_max=1e-2), **settings
            ),
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


def scripted(run: FoundTraining, monkeypatch: pytest.MonkeyPatch, columns: list[list[float]]) -> None:
    """Make the AUC on dev follow `columns`, one list an epoch with one value a network."""
    scores = iter(columns)

    def told(network: object) -> np.ndarray:
        return np.repeat(np.array(next(scores))[:, None], len(run.dev), axis=1)

    monkeypatch.setattr(run, "scores", told)
    monkeypatch.setattr("stgs.found_training.auc", lambda row, labels: float(row[0]))


def test_patience_ends_each_network_by_its_own_scores(
    training: Callable[..., FoundTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training([0, 1], epochs=20, patience=2)
    # The second network ties its best, which is no improvement: it is done after epoch 3, before its 0.9.
    scripted(run, monkeypatch, [[0.5, 0.7], [0.4, 0.7], [0.6, 0.7], [0.6, 0.9], [0.5, 0.9], [0.9, 0.9]])
    kept = []
    while not run.finished:
        run.run_epoch()
        kept.append({name: tensor[1].clone() for name, tensor in run.network.state_dict().items()})
    assert run.epoch == 5, "the last network waited for 2 epochs since its best in epoch 3"
    assert run.best_epoch == [4, 3], "ties go to the later epoch"
    assert run.best_auc == [0.6, 0.7]
    best = run.best_network().state_dict()
    assert all(torch.equal(tensor[1], kept[2][name]) for name, tensor in best.items())


def test_a_network_whose_scores_are_not_finite_fails_alone(
    training: Callable[..., FoundTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, left = training([0, 1], epochs=3), training([0, 1], epochs=3)
    run.run_epoch()
    left.run_epoch()
    with torch.no_grad():
        run.network.head.classifier.bias[0] = torch.nan
    while not run.finished:
        aucs, expected = run.run_epoch(), left.run_epoch()
        assert np.isnan(aucs[0])
        assert aucs[1] == expected[1]
    assert run.failures[0] == (
        "the scores of the network of seed 0 ceased to be finite in epoch 2; lower its learning rate."
    )
    assert run.failures[1] is None
    assert run.best_auc[1] == left.best_auc[1]
    assert np.isnan(run.thresholds()[0])
    assert run.thresholds()[1] == left.thresholds()[1]


def test_fitting_on_train_and_dev_chooses_nothing(
    training: Callable[..., FoundTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training([0], epochs=3, fit_on="train+dev")
    scripted(run, monkeypatch, [[0.9], [0.8], [0.7]])
    seen: list[int] = []
    update = run._update

    def counted(batch: Batch) -> None:
        seen.append(batch.labels.shape[1])
        update(batch)

    monkeypatch.setattr(run, "_update", counted)
    while not run.finished:
        run.run_epoch()
    assert sum(seen) == 3 * (192 + 192)
    assert (run.best_epoch, run.best_auc, run.thresholds()) == ([3], [0.7], [0.5])
    current = run.network.state_dict()
    assert all(torch.equal(tensor, current[name]) for name, tensor in run.best_network().state_dict().items())


def test_joined_clips_are_those_of_both_with_the_weights_of_both(planted: Callable) -> None:
    (columns, labels), (others, other_labels) = (planted(seed, 40, NAMES, ["visual.f1"]) for seed in (1, 2))
    chosen = np.flatnonzero(other_labels)[:9]  # fakes alone, so that the balance is another one
    few = {name: column[chosen] for name, column in others.items()}
    first = ClipSet(columns, labels, members=2)
    second = ClipSet(few, other_labels[chosen], members=2, balance=first.class_weights)
    both = first.joined(second)
    whole = {name: np.concatenate([column, few[name]]) for name, column in columns.items()}
    expected = ClipSet(whole, np.concatenate([labels, other_labels[chosen]]), members=2)
    index = np.arange(len(both))[::-1].copy()
    ours, theirs = both.batch(index), expected.batch(index)
    assert len(both) == 49
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.class_weights, theirs.class_weights)
    assert all(torch.equal(x, theirs.features[name]) for name, x in ours.features.items())
    with pytest.raises(InputError, match=r"one split holds visual\.f0, .*, the other audio\.f0; give both the same"):
        first.joined(ClipSet({"audio.f0": few["audio.f0"]}, other_labels[chosen], members=2, balance=torch.ones(2, 2)))


@pytest.mark.parametrize("fit_on", ["train", "train+dev"])
def test_a_training_goes_on_to_the_same_bits_after_any_epoch(
    training: Callable[..., FoundTraining], fit_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Networks that learn have their best epoch early then, before some of the states.
    monkeypatch.setattr("stgs.found_training.auc", lambda row, labels: 1.0 - auc(row, labels))
    whole = training([3, 5], epochs=4, fit_on=fit_on)
    states = []
    while not whole.finished:
        buffer = io.BytesIO()
        torch.save(whole.state_dict(), buffer)
        states.append(buffer.getvalue())
        whole.run_epoch()
    assert (max(whole.best_epoch) < 3) == (fit_on == "train")
    for epoch, state in enumerate(states):
        resumed = training([3, 5], epochs=4, fit_on=fit_on)
        resumed.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        assert resumed.epoch == epoch
        while not resumed.finished:
            resumed.run_epoch()
        assert resumed.best_epoch == whole.best_epoch
        assert resumed.best_auc == whole.best_auc
        for kind in ("network", "best"):
            ours, theirs = resumed.state_dict()[kind], whole.state_dict()[kind]
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        assert resumed.thresholds() == whole.thresholds()


def test_states_of_other_trainings_are_refused(training: Callable[..., FoundTraining]) -> None:
    state = training([0]).state_dict()
    for changed, match in (({"version": 0}, "version 0"), ({"seeds": [1]}, r"seeds \[1\]"), ({}, "architecture")):
        genotype = GENOTYPE if changed else genotype_from_dict({**GENOTYPE.to_dict(), "channels": 4})
        with pytest.raises(InputError, match=match):
            training([0], genotype=genotype).load_state_dict({**state, **changed})


def test_released_settings_and_contradictions() -> None:
    config = released_found_config(epochs=7)
    assert (config.epochs, config.fitted_on, config.patience) == (7, ("train", "dev"), 0)
    assert (config.weights.learning_rate_max, config.weights.restart_epochs) == (3e-4, 5)
    assert config.weights.weight_decay == 1e-4
    assert FoundConfig().fitted_on == ("train",)
    with pytest.raises(InputError, match="has no dev clips to stop on"):
        FoundConfig(fit_on="train+dev", patience=3)
    with pytest.raises(InputError, match="fit_on is 'test'"):
        FoundConfig(fit_on="test")  # type: ignore[arg-type]
