"""Members of a population: against searches of their own, resumed, stopped, failed, and taken apart."""

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch

from stgs import progress
from stgs.config import InputError
from stgs.population import PopulationSearch
from stgs.search_state import slice_state
from stgs.supernet import Member
from tests.populations import LOSSES, MEMBERS, Build, assert_same_course, build_search, run, through_a_file


@pytest.fixture
def build() -> Build:
    return build_search


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
    assert (changes > progress.STILL_ENTROPY).all()
    assert not search.results()[0].metrics["stopped_early"]


def test_undecided_and_changing_members_are_said_to_have_hardly_moved(build: Build) -> None:
    (undecided,) = run(build(MEMBERS[:1])).results()
    assert undecided.metrics["hardly_moved"]
    (decided,) = run(build(MEMBERS[:1], initial_logit_scale=3.0)).results()
    assert not decided.metrics["hardly_moved"]


def test_a_member_that_stopped_costs_nothing_and_leaves_the_others_as_they_are(build: Build) -> None:
    still = {"architecture_learning_rate": 1e-9, "architecture_weight_decay": 0.0, "initial_logit_scale": 3.0}

    def search(members: list[Member], undecided: list[int]) -> PopulationSearch:
        found = build(members, epochs=5, patience=1, **still)
        with torch.no_grad():
            for logits in found.supernet.architecture_parameters().values():
                logits[undecided] *= 1e-3
        return found

    pack = search(MEMBERS[:3], [0, 2])
    run(pack, 2)
    assert pack.active == [0, 2]
    tensors = [*pack.supernet.state_dict().values(), pack.train.labels, pack.supernet.temperature, pack.supernet.seeds]
    for optimizer in (pack.weight_optimizer, pack.architecture_optimizer):
        tensors += [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    assert {len(tensor) for tensor in tensors} == {2}
    # Resumed from here, it is the same to the bit.
    resumed = search(MEMBERS[:3], [0, 2])
    resumed.load_state_dict(through_a_file(pack.state_dict()))
    run(pack)
    run(resumed)
    assert resumed.rows == pack.rows
    assert [result.metrics["epochs"] for result in pack.results()] == [5, 2, 5]
    # And the others never knew.
    alone = run(search([MEMBERS[2]], [0]))
    assert_same_course(pack, 2, alone, 0)


def test_a_member_whose_numbers_are_not_finite_fails_alone(build: Build) -> None:
    def search() -> PopulationSearch:
        found = run(build(MEMBERS[:3]), 1)
        with torch.no_grad():
            found.supernet.head.classifier.bias[1] = math.nan
        return found

    pack = run(search())
    good, bad, other = pack.results()
    assert bad.genotype is None
    assert "ceased to be finite in epoch 2; lower the learning rates" in str(bad.failure)
    assert (good.failure, other.failure) == (None, None)
    assert pack.active == [0, 2]
    whole = run(build(MEMBERS[:3]))
    for member in (0, 2):
        assert_same_course(pack, member, whole, member)
    # A state that holds the failed one is read again.
    again = build(MEMBERS[:3])
    again.load_state_dict(through_a_file(pack.state_dict()))
    assert again.results() == pack.results()
    # Where all have failed there is nothing left to do.
    for parameter in pack.supernet.parameters():
        parameter.data.fill_(math.nan)
    pack.epoch -= 1
    pack.run_epoch()
    assert pack.finished


@pytest.mark.parametrize("members", [[2, 0], [1]])
def test_a_part_of_a_state_is_the_state_of_the_part(build: Build, members: list[int]) -> None:
    whole = run(build(MEMBERS, epochs=4, patience=2), 2)
    part = build([MEMBERS[number] for number in members], epochs=4, patience=2)
    part.load_state_dict(through_a_file(slice_state(whole.state_dict(), members)))
    run(whole)
    run(part)
    for number, member in enumerate(members):
        assert_same_course(part, number, whole, member)


@pytest.mark.parametrize("killed_at", [1, 2, 5, 6, 9])
def test_an_epoch_that_was_killed_at_any_update_is_replayed_to_the_same_bits(build: Build, killed_at: int) -> None:
    """Six updates an epoch; the state is that of the last epoch's end, whatever has been done since."""
    whole = run(build(MEMBERS[:2], epochs=2))
    torn = build(MEMBERS[:2], epochs=2)
    state = through_a_file(torn.state_dict())
    original = torn.supernet.candidate_weights

    def killed(update: int | None, *rest: Any) -> dict:
        if update == killed_at:
            raise KeyboardInterrupt
        return original(update, *rest)

    torn.supernet.candidate_weights = killed
    with contextlib.suppress(KeyboardInterrupt):
        while not torn.finished:
            torn.run_epoch()
            state = through_a_file(torn.state_dict())
    assert not torn.finished
    resumed = build(MEMBERS[:2], epochs=2)
    resumed.load_state_dict(state)
    assert resumed.update <= killed_at
    run(resumed)
    assert resumed.rows == whole.rows
    assert resumed.results() == whole.results()
