"""Searches of a population: members against searches of their own, resume, stopping, and planted features."""

import io
import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from stgs import population
from stgs.clips import ClipSet
from stgs.config import InputError, SearchConfig
from stgs.layers import ForwardContext
from stgs.metrics import auc
from stgs.population import PopulationSearch
from stgs.schedule import learning_rate
from stgs.search_space import search_space
from stgs.supernet import Member

NAMES = ["visual.f0", "visual.f1", "audio.f0", "audio.f1"]
INFORMATIVE = ["visual.f1", "audio.f0"]
MEMBERS = [Member(10.0, 15, 3), Member(0.5, 2, 8), Member(20.0, 5, 4), Member(5.0, 20, 12)]
TRAIN, DEV = 96, 80

Build = Callable[..., PopulationSearch]


@pytest.fixture
def build(planted: Callable) -> Build:
    """A small search with dropout; keyword arguments change the configuration."""

    def search(
        members: list[Member],
        *,
        preset: str = "default",
        estimator: str = "stgs",
        flip: list[int] | None = None,
        **config: Any,
    ) -> PopulationSearch:
        splits = []
        for seed, size in ((1, TRAIN), (2, DEV)):
            columns, labels = planted(seed, size, NAMES, INFORMATIVE)
            if flip is not None:  # members with labels of their own
                labels = np.stack([1 - labels if f else labels for f in flip])
            splits.append(ClipSet(columns, labels, members=len(members)))
        return PopulationSearch(
            search_space(preset, dict.fromkeys(NAMES, 16), channels=8, length=4),
            members,
            estimator=estimator,
            config=SearchConfig(**{"epochs": 4, "batch_size": 32, "dropout": 0.3, **config}),
            train=splits[0],
            dev=splits[1],
        )

    return search


def run(search: PopulationSearch, epochs: int | None = None) -> PopulationSearch:
    while not search.finished and (epochs is None or search.epoch < epochs):
        search.run_epoch()
    return search


LOSSES = ("train_loss", "architecture_loss", "dev_loss")


@pytest.mark.parametrize("preset", ["default", "released"])
@pytest.mark.parametrize("estimator", ["stgs", "softmax"])
def test_member_of_a_pack_equals_the_point_alone(build: Build, preset: str, estimator: str) -> None:
    pack = run(build(MEMBERS, preset=preset, estimator=estimator))
    for index, member in enumerate(MEMBERS):
        alone = run(build([member], preset=preset, estimator=estimator))
        assert alone.results()[0].genotype == pack.results()[index].genotype
        rows = [row for row in pack.rows if row["member"] == index]
        assert len(rows) == len(alone.rows) == 4
        for together, own in zip(rows, alone.rows, strict=True):
            for name in LOSSES:
                assert together[name] == pytest.approx(own[name], rel=1e-5), name
    # The members differ, so equality above is not that of a constant.
    assert len({row["train_loss"] for row in pack.rows}) == len(pack.rows)


def test_member_with_its_own_labels_equals_the_point_alone(build: Build) -> None:
    pack = run(build(MEMBERS[:2], flip=[0, 1], estimator="softmax"), 2)
    alone = run(build(MEMBERS[1:2], flip=[1], estimator="softmax"), 2)
    for together, own in zip([row for row in pack.rows if row["member"] == 1], alone.rows, strict=True):
        assert [together[name] for name in LOSSES] == pytest.approx([own[name] for name in LOSSES], rel=1e-5)


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_search_is_the_uninterrupted_one_bit_for_bit(build: Build, stop_after: int) -> None:
    kwargs = {"epochs": 5, "clip_norm": 1.0, "patience": 2}
    whole = run(build(MEMBERS, **kwargs))
    state = through_a_file(run(build(MEMBERS, **kwargs), stop_after).state_dict())
    resumed = build(MEMBERS, **kwargs)
    resumed.load_state_dict(state)
    assert resumed.epoch == stop_after
    run(resumed)
    assert resumed.rows == whole.rows
    assert resumed.results() == whole.results()
    for (name, a), (_, b) in zip(
        whole.supernet.state_dict().items(), resumed.supernet.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_same_search_twice_gives_the_same_bits(build: Build) -> None:
    one, two = (run(build(MEMBERS), 2) for _ in range(2))
    assert one.rows == two.rows
    other = run(build(MEMBERS, data_seed=1), 2)
    assert all(a["train_loss"] != b["train_loss"] for a, b in zip(one.rows, other.rows, strict=True))


def test_states_that_do_not_fit_are_refused(build: Build) -> None:
    state = build(MEMBERS).state_dict()
    for others in (MEMBERS[:2], MEMBERS[::-1]):
        with pytest.raises(InputError, match=r"the state holds the members .*, but the pack has"):
            build(others).load_state_dict(state)
    with pytest.raises(InputError, match="version 99"):
        build(MEMBERS).load_state_dict({**state, "version": 99})


def test_rows_say_what_happened(build: Build) -> None:
    search = build(MEMBERS)
    first = search.run_epoch()
    assert search.update == 3 + 3  # batches of 96 and 80 clips, 32 each
    assert [row["member"] for row in first] == [0, 1, 2, 3]
    scores, losses = search.dev_scores()
    labels = search.dev.labels[0].numpy()
    for index, row in enumerate(first):
        assert row["epoch"] == 1
        assert row["dev_auc"] == auc(scores[index], labels)
        # Mean over clips of the weighted cross-entropy of the dev clips; half of them are fake, so the weights are 1.
        probability = 1 / (1 + np.exp(-scores[index]))
        assert row["dev_loss"] == pytest.approx(
            -np.log(np.where(labels, probability, 1 - probability)).mean(), rel=1e-5
        )
        assert row["dev_loss"] == losses[index]
        assert row["learning_rate"] == pytest.approx(learning_rate(search.config.weights, 2 / 3))
        assert all(row[f"gradient_norm_{name}"] > 0 for name in ("alpha", "beta", "gamma"))
        assert all(0.9 < row[f"normalised_entropy_{name}"] <= 1 for name in ("alpha", "beta", "gamma"))
        assert row["entropy_gamma"] == pytest.approx(row["normalised_entropy_gamma"] * 4 * math.log(5))


def test_dev_scores_use_the_probabilities(build: Build) -> None:
    search = run(build(MEMBERS, initial_logit_scale=1.0), 1)
    net, clips = search.supernet, search.dev
    weights = {name: torch.softmax(logits, dim=-1) for name, logits in net.architecture_parameters().items()}
    context = ForwardContext(net.seeds, 0, training=False, track_statistics=False)
    with torch.no_grad():
        expected = net(clips.batch(np.arange(DEV)).features, weights, context)
    assert np.allclose(search.dev_scores()[0], expected.numpy(), atol=1e-6)


def test_an_epoch_reads_every_clip_once_in_two_orders(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    search = build(MEMBERS[:1])
    search.train = search.dev  # of one size, so that the orders could be the same
    read: list[list[int]] = []
    original = ClipSet.batch
    monkeypatch.setattr(ClipSet, "batch", lambda clips, index: read.append(index.tolist()) or original(clips, index))
    search.run_epoch()
    # Three weight and three architecture updates in turn, then the evaluation.
    orders = [[*chain(*read[start:6:2])] for start in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(DEV))] * 2
    assert orders[0] != orders[1]
    assert [*chain(*read[6:])] == list(range(DEV))


def test_dev_scores_do_not_depend_on_the_batch(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    search = run(build(MEMBERS), 1)
    scores, losses = search.dev_scores()
    monkeypatch.setattr(population, "EVALUATION_BATCH", 7)
    again, losses_again = search.dev_scores()
    assert np.allclose(scores, again, atol=1e-5)
    assert np.allclose(losses, losses_again, atol=1e-6)


def test_warm_up_leaves_the_architecture_alone(build: Build) -> None:
    search = build(MEMBERS, warmup_epochs=2, epochs=3)
    before = search.logits()
    for epoch in (1, 2):
        rows = search.run_epoch()
        assert all(math.isnan(row["architecture_loss"]) and math.isnan(row["gradient_norm_alpha"]) for row in rows)
        assert search.update == 3 * epoch
        assert all(np.array_equal(before[name], values) for name, values in search.logits().items())
    rows = search.run_epoch()
    assert all(row["architecture_loss"] > 0 for row in rows)
    assert all(not np.array_equal(before[name], values) for name, values in search.logits().items())


def test_best_epoch_decides_and_ties_go_to_the_later(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {1: 0.6, 2: 0.8, 3: 0.8, 4: 0.7}
    search = build(MEMBERS[:1], initial_logit_scale=0.5, architecture_learning_rate=0.5)
    monkeypatch.setattr(population, "auc", lambda *_: values[search.epoch])
    genotypes = {}
    while not search.finished:
        search.run_epoch()
        genotypes[search.epoch] = population.decode({n: v[0] for n, v in search.logits().items()}, search.space)
    (result,) = search.results()
    assert (result.metrics["best_epoch"], result.metrics["dev_auc"]) == (3, 0.8)
    assert result.genotype == genotypes[3] != genotypes[4]


def test_decided_members_stop_and_the_others_go_on(build: Build) -> None:
    # Logits of scale 3 are decided; a vanishing learning rate and no decay keep every architecture where it is.
    still = {"architecture_learning_rate": 1e-9, "architecture_weight_decay": 0.0, "initial_logit_scale": 3.0}
    search = build(MEMBERS[:2], epochs=8, patience=2, **still)
    with torch.no_grad():
        for logits in search.supernet.architecture_parameters().values():
            logits[1] *= 1e-3  # undecided
    run(search)
    first, second = search.results()
    # Epoch 1 has nothing before it, so epochs 2 and 3 are the first two without movement.
    assert (first.metrics["epochs"], first.metrics["stopped_early"]) == (3, True)
    assert (second.metrics["epochs"], second.metrics["stopped_early"]) == (8, False)
    assert [row["epoch"] for row in search.rows if row["member"] == 0] == [1, 2, 3]
    assert first.metrics["best_epoch"] <= 3
    alone = run(build(MEMBERS[:1], epochs=8, patience=2, **still))
    assert alone.epoch == 3
    assert alone.finished
    assert alone.results()[0].genotype == first.genotype


def test_moving_members_do_not_stop(build: Build) -> None:
    search = run(build(MEMBERS[:1], epochs=6, patience=1, architecture_learning_rate=0.1, initial_logit_scale=3.0))
    changes = np.abs(np.diff([row["normalised_entropy_alpha"] for row in search.rows]))
    assert (changes > population.STILL_ENTROPY).all()
    assert not search.results()[0].metrics["stopped_early"]


def test_undecided_and_changing_members_are_said_to_have_hardly_moved(build: Build) -> None:
    (undecided,) = run(build(MEMBERS[:1])).results()
    assert undecided.metrics["hardly_moved"]
    (decided,) = run(build(MEMBERS[:1], initial_logit_scale=3.0)).results()
    assert not decided.metrics["hardly_moved"]


def test_no_result_before_the_first_epoch(build: Build) -> None:
    with pytest.raises(InputError, match="no epoch"):
        build(MEMBERS).results()


def test_clips_that_do_not_fit_the_space_are_refused(build: Build) -> None:
    search = build(MEMBERS)
    for change, named in (
        ({"length": 5}, "'visual.f0'"),
        ({"features": {"visual.x": 16, "audio.f0": 16}}, "'visual.x'"),
    ):
        fields = {"features": dict.fromkeys(NAMES, 16), "channels": 8, "length": 4, **change}
        with pytest.raises(InputError, match=named):
            PopulationSearch(
                search_space("default", **fields),
                MEMBERS,
                estimator="stgs",
                config=search.config,
                train=search.train,
                dev=search.dev,
            )


def test_planted_features_are_found(planted: Callable) -> None:
    """Two of eight features carry evidence: ten seeds as one population read them in their first cell, all ten.

    Seen with these numbers: 10 of 10 from epoch 8 on; after 12 epochs P(Identity) of the planted two stands at least
    0.1 above that of any other feature in every member.
    """
    names = [f"visual.f{i}" for i in range(4)] + [f"audio.f{i}" for i in range(4)]
    informative = {"visual.f1", "audio.f2"}
    train, dev = (planted(seed, 512, names, informative, strength=1.0) for seed in (1, 2))
    search = PopulationSearch(
        search_space("default", dict.fromkeys(names, 16), channels=16, length=4),
        [Member(10.0, 15, seed) for seed in range(10)],
        estimator="stgs",
        config=SearchConfig(epochs=12, batch_size=64),
        train=ClipSet(*train, members=10),
        dev=ClipSet(*dev, members=10),
    )
    run(search)
    pairs = [set(result.genotype.cells[0].inputs) for result in search.results()]
    assert pairs == [informative] * 10
