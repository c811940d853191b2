"""From a configuration dataclass to options and back."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from jobs.options import Option, UsageError, add_arguments, build, flatten, group, option, options_of


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


@dataclass(frozen=True, kw_only=True)
class Part:
    rate: float = 0.1
    names: tuple[str, ...] | None = None
    both: bool | None = None
    tail: str | None = None
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Swept:
    """size: how large. part: what is swept."""

    size: int | Literal["auto", "all"] = "auto"
    axes: Mapping[str, tuple[Any, ...]] = field(
        default_factory=dict, metadata={"axes": ("rate", "names", "both", "tail")}
    )
    part: Part = group(Part)


@dataclass(frozen=True, kw_only=True)
class Outer:
    swept: Swept = group(Swept)


def given(config_class: type, words: list[str]) -> Any:
    """The configuration that a command line gives."""
    parser = argparse.ArgumentParser()
    add_arguments(parser, options_of(config_class))
    return build(config_class, vars(parser.parse_args(words)))


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
        ("rate", "inf", "--rate is 'inf', but it must be a finite number."),
        ("rate", "1e400", "--rate is '1e400', but it must be a finite number."),
        ("rate", float("nan"), "--rate is nan, but it must be a finite number."),
        ("rate", True, "--rate is True, but it must be a finite number."),
        ("steps", 2.5, "--steps is 2.5, but it must be a whole number."),
        ("steps", True, "--steps is True, but it must be a whole number."),
        ("loud", "yes", "--loud is 'yes', but it must be true or false."),
        ("mode", "medium", "--mode is 'medium'; choose from fast, slow."),
        ("later_order", "left", "--later-order is 'left'; choose from up, down."),
        ("sizes", 3, "--sizes is 3, but it must be a list, each item a whole number."),
        ("sizes", "12", "--sizes is '12', but it must be a list, each item a whole number."),
        ("rate", None, "--rate is empty, but it must be a finite number."),
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


@pytest.mark.parametrize("value", ["auto", "all", 3, "3"])
def test_a_word_may_stand_in_the_place_of_a_number(value: object) -> None:
    size = build(Swept, {"size": value}).size
    assert size == (3 if value in (3, "3") else value)
    assert given(Swept, ["--size", str(value)]).size == size


def test_other_words_than_those_are_refused() -> None:
    with pytest.raises(UsageError, match="--size is 'none', but it must be auto or all or a whole number"):
        build(Swept, {"size": "none"})


# Name -> words that give its first value, words that give the second one, too, and both values.
SWEPT: dict[str, tuple[list[str], list[str], list[Any]]] = {
    "rate": (["--rate", "0.1"], ["0.001"], [0.1, 1e-3]),
    "names": (["--names", "a", "b"], ["--names", "c"], [["a", "b"], ["c"]]),
    "both": (["--both"], ["--no-both"], [True, False]),
    "tail": (["--tail", "x"], ["y"], ["x", "y"]),
}


def option_of(name: str) -> Option:
    return next(item for item in options_of(Outer) if item.name == name)


@pytest.mark.parametrize("name", SWEPT)
def test_several_values_are_an_axis_and_the_first_is_the_setting(name: str) -> None:
    first, second, listed = SWEPT[name]
    expected = tuple(tuple(value) if isinstance(value, list) else value for value in listed)
    for config in (given(Outer, first + second), build(Outer, {name: listed})):
        assert config.swept.axes == {name: expected}
        assert getattr(config.swept.part, name) == expected[0]
        assert flatten(config)[name] == listed
        assert build(Outer, flatten(config)) == config
    assert option_of(name).arguments(listed) == first + second


@pytest.mark.parametrize("name", SWEPT)
def test_one_value_is_a_setting_and_no_axis(name: str) -> None:
    first, _, (value, _) = SWEPT[name]
    for config in (given(Outer, first), build(Outer, {name: value}), build(Outer, {name: [value]})):
        assert config.swept.axes == {}
        assert getattr(config.swept.part, name) == (tuple(value) if isinstance(value, list) else value)
    assert option_of(name).arguments(value) == first


def test_what_is_no_axis_takes_one_value() -> None:
    with pytest.raises(UsageError, match="--threads is \\[1, 2\\], but it must be a whole number"):
        build(Outer, {"threads": [1, 2]})
    assert given(Outer, ["--threads", "2"]).swept.part.threads == 2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rate": []}, "--rate is []; give at least one value, each once."),
        ({"rate": [0.1, "fast"]}, "--rate is 'fast', but it must be a finite number."),
        ({"rate": [0.1, "0.1"]}, "--rate is [0.1, 0.1]; give at least one value, each once."),
        ({"names": [["a"], "b"]}, "--names is ['a'], but it must be text."),
        ({"both": [True, "maybe"]}, "--both is 'maybe', but it must be true or false."),
    ],
)
def test_wrong_values_of_an_axis_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        build(Outer, values)
    assert str(refused.value) == sentence


def test_axes_are_no_option_and_json_holds_the_rest() -> None:
    assert [item.name for item in options_of(Swept)] == ["size", "rate", "names", "both", "tail", "threads"]
    assert json.loads(json.dumps(flatten(Swept())))["names"] is None
