"""Searches that stop inside an epoch: they go on to the same bits, whole or in part."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch

from stgs.population import PopulationSearch
from stgs.search_state import slice_state
from tests.populations import MEMBERS, assert_same_course, build_search, run, through_a_file

SCHEDULED = {"temperature_schedule": "exponential", "final_temperature": 2.0}
# Batches of 96 and 80 clips, 32 each.
UPDATES = 6


def after(updates: int) -> Callable[[], bool]:
    """Asks to stop once so many updates have been made."""
    answers: Iterator[bool] = iter([False] * updates + [True])
    return lambda: next(answers)


def assert_same_bits(one: PopulationSearch, two: PopulationSearch) -> None:
    assert one.rows == two.rows
    assert one.results() == two.results()
    assert_equal(one.state_dict(), two.state_dict())


def assert_equal(one: object, two: object) -> None:
    """States hold dictionaries, lists, tensors and plain values."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            assert_equal(one[name], two[name])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    else:
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.parametrize("temperature", [{}, SCHEDULED], ids=["constant", "scheduled"])
@pytest.mark.parametrize("alternate", ["spread", "epoch"])
def test_a_search_that_stops_after_every_update_ends_with_the_same_bits(alternate: str, temperature: dict) -> None:
    kwargs = {"epochs": 2, "alternate": alternate, "warmup_epochs": 0, **temperature}
    whole = run(build_search(MEMBERS[:2], **kwargs))
    torn, stops = build_search(MEMBERS[:2], **kwargs), 0
    while not torn.finished:
        if torn.run_epoch(after(1)) is None:
            stops += 1
            assert torn.update == stops
        state = through_a_file(torn.state_dict())
        torn = build_search(MEMBERS[:2], **kwargs)
        torn.load_state_dict(state)
    assert stops == 2 * UPDATES
    assert_same_bits(torn, whole)


@pytest.mark.parametrize("updates", range(UPDATES + 1))
def test_a_search_goes_on_where_it_was_asked_to_stop(updates: int) -> None:
    whole, torn = run(build_search(MEMBERS[:2], epochs=1)), build_search(MEMBERS[:2], epochs=1)
    assert torn.run_epoch(after(updates)) is None
    assert (torn.epoch, torn.update, torn.rows, torn.inside_epoch) == (0, updates, [], True)
    assert torn.run_epoch() == whole.rows
    assert_same_bits(torn, whole)


def test_an_epoch_of_warm_up_can_stop_too() -> None:
    kwargs = {"epochs": 1, "warmup_epochs": 1}
    torn = build_search(MEMBERS[:1], **kwargs)
    torn.run_epoch(after(2))
    again = build_search(MEMBERS[:1], **kwargs)
    again.load_state_dict(through_a_file(torn.state_dict()))
    (row,), (expected,) = again.run_epoch(), build_search(MEMBERS[:1], **kwargs).run_epoch()
    assert {name: value for name, value in row.items() if not math.isnan(value)} == {
        name: value for name, value in expected.items() if not math.isnan(value)
    }
    assert math.isnan(row["architecture_loss"])


@pytest.mark.parametrize("members", [[3, 0], [2], [1]])
def test_a_part_of_a_state_from_inside_an_epoch_goes_on(members: list[int]) -> None:
    """Member 1 has been cut out before."""
    whole = run(build_search(MEMBERS, epochs=3), 1)
    with torch.no_grad():
        whole.supernet.head.classifier.bias[1] = math.nan
    whole.run_epoch()
    assert whole.active == [0, 2, 3]
    assert whole.run_epoch(after(4)) is None
    part = build_search([MEMBERS[number] for number in members], epochs=3)
    part.load_state_dict(through_a_file(slice_state(whole.state_dict(), members)))
    run(whole)
    run(part)
    for number, member in enumerate(members):
        if member == 1:
            assert part.results()[number].failure == whole.results()[member].failure is not None
        else:
            assert_same_course(part, number, whole, member)
