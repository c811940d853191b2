"""From a configuration dataclass to options and back."""

from dataclasses import dataclass
from typing import Literal

import pytest

from jobs.options import UsageError, build, flatten, group, option, options_of


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """rate, *_decay: how fast. Unrelated sentence.

    steps: how many steps.
    """

    rate: float = 0.1
    weight_decay: float = 0.0
    steps: int = 3
    order: Literal["up", "down"] = "up"
    """Which way to go."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    source: str = option(help="where from", positional=True, metavar="SOURCE")
    sizes: tuple[int, ...] = option((1, 2), help="some sizes")
    limit: float | None = option(None, help="a limit")
    loud: bool = option(False, help="noise")
    mode: str = option("fast", help="how", choices=("fast", "slow"))
    schedule: Schedule = group(Schedule, steps=7)
    later: Schedule = group(Schedule, prefix="later_")


def test_every_field_of_every_group_is_an_option() -> None:
    names = [item.name for item in options_of(Toy)]
    inner = ["rate", "weight_decay", "steps", "order"]
    assert names == ["source", "sizes", "limit", "loud", "mode", *inner, *(f"later_{name}" for name in inner)]


def test_defaults_of_a_group_may_differ() -> None:
    toy = build(Toy, {"source": "x"})
    assert (toy.schedule.steps, toy.later.steps) == (7, 3)


def test_help_comes_from_option_docstring_or_string_below_the_field() -> None:
    texts = {item.name: item.help for item in options_of(Toy)}
    assert texts["mode"] == "how"
    assert texts["rate"] == texts["weight_decay"] == "how fast. Unrelated sentence"
    assert texts["later_steps"] == "how many steps"
    assert texts["order"] == "Which way to go"


def test_build_undoes_flatten() -> None:
    toy = Toy(source="x", sizes=(4,), limit=2.5, loud=True, mode="slow", schedule=Schedule(order="down", rate=1.0))
    assert build(Toy, flatten(toy)) == toy


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("rate", "1e-3", 1e-3),
        ("rate", 2, 2.0),
        ("limit", None, None),
        ("limit", "7", 7.0),
        ("sizes", ["3", 4], (3, 4)),
        ("loud", True, True),
    ],
)
def test_text_and_typed_values_become_the_fields_type(name: str, given: object, expected: object) -> None:
    toy = build(Toy, {"source": "x", name: given})
    value = getattr(toy if hasattr(toy, name) else toy.schedule, name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("steps", "many", "--steps is 'many', but it must be a whole number."),
        ("steps", 2.5, "--steps is 2.5, but it must be a whole number."),
        ("steps", True, "--steps is True, but it must be a whole number."),
        ("loud", "yes", "--loud is 'yes', but it must be true or false."),
        ("mode", "medium", "--mode is 'medium'; choose from fast, slow."),
        ("later_order", "left", "--later-order is 'left'; choose from up, down."),
        ("sizes", 3, "--sizes is 3, but it must be a list, each item a whole number."),
        ("sizes", "12", "--sizes is '12', but it must be a list, each item a whole number."),
        ("rate", None, "--rate is empty, but it must be a number."),
    ],
)
def test_wrong_value_is_refused_by_name(name: str, given: object, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        build(Toy, {"source": "x", name: given})
    assert str(refused.value) == sentence


def test_missing_and_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="SOURCE is missing"):
        build(Toy, {})
    with pytest.raises(UsageError, match="colour is no option"):
        build(Toy, {"source": "x", "colour": "red"})


def test_two_fields_of_one_name_are_a_mistake_in_the_program() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Clash:
        first: Schedule = group(Schedule)
        second: Schedule = group(Schedule)

    with pytest.raises(TypeError, match="more than one field named"):
        options_of(Clash)
