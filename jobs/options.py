"""Turns a configuration dataclass into command-line options and back.

Every field of a configuration is an option of its command: `window_s: float = 3.0` becomes `--window-s`, and the key
`window_s` of a `--config` file. A field whose type is a dataclass (see `group`) contributes that dataclass's fields, so
that the settings of `data_prep`, `stgs` and `cluster` become options without naming them a second time. Their help is
the string that stands below the field in the source, or what the dataclass's docstring says after "field name: ".

Types that a field may have: str, int, float, bool, `Literal` of strings, a number or a word of a `Literal`, tuples of
any length of these, and each of them `| None`.

A field that is a mapping is no option. It names, under "axes" in its metadata, options of the groups beside it that may
be given several values: on the command line one after another (lists and switches by repeating the option), in a file
as a list. The mapping then holds all values by the option's name, and the option's own field the first.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import fnmatch
import functools
import inspect
import itertools
import math
import os
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")

_HELP, _CHOICES, _POSITIONAL, _METAVAR, _PREFIX = "help", "choices", "positional", "metavar", "prefix"
_AXES = "axes"
_TYPE_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


class UsageError(ValueError):
    """Wrong use of a command: one sentence that names the option, the value, and the way out."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002, RUF100 - the name argparse and click use, too
    choices: Iterable[Any] | None = None,
    positional: bool = False,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that carries what its option needs.

    default: the field is required without one. help: one line for `--help`. choices: the values allowed (of each item,
    for a tuple). positional: given by place, not by name. metavar: how `--help` names the value.
    """
    metadata = {_HELP: help, _CHOICES: choices, _POSITIONAL: positional, _METAVAR: metavar}
    return dataclasses.field(default=default, metadata=metadata)


def group(config_class: type, *, prefix: str = "", **defaults: Any) -> Any:
    """A dataclass field that holds another configuration, whose fields become options of the command, too.

    prefix: stands before the names of its options, for a configuration whose field names are taken already. defaults:
    values that differ here from that configuration's own defaults.
    """
    return dataclasses.field(default_factory=lambda: config_class(**defaults), metadata={_PREFIX: prefix})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a command meets Ray.

    address: Ray cluster to join, `auto` for the one that runs here (default: RAY_ADDRESS if set, else a private one
    for this command). num_cpus: CPUs of the private cluster (default: all of this machine). verbose: show Ray's own
    messages.
    """

    address: str | None = None
    num_cpus: int | None = None
    verbose: bool = False

    def connect_arguments(self, out: str | None) -> dict[str, Any]:
        """The arguments of `cluster.session.connect` for a command that writes to `out`: its log goes below it.

        None: the command writes nothing.
        """
        log_dir = None if out is None or "://" in out else os.path.join(out, "logs")
        return {**dataclasses.asdict(self), "log_dir": log_dir}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a command: a leaf of a configuration's tree."""

    name: str  # the field's name and the key in a --config file
    path: tuple[str, ...]  # names of the fields that lead to it, its own last
    kind: type  # str, int, float or bool; of the items for a tuple
    many: bool
    optional: bool
    choices: tuple[Any, ...] | None
    positional: bool
    metavar: str | None
    help: str
    default: Any  # dataclasses.MISSING if the option is required
    words: tuple[str, ...] = ()  # text that may stand in the place of a number
    axes: tuple[str, ...] | None = None  # path of the mapping that takes several values; None: one value alone

    @property
    def flag(self) -> str:
        """The option's name on the command line, or how `--help` shows it if it is given by place."""
        dashed = self.name.replace("_", "-")
        return (self.metavar or dashed.upper()) if self.positional else f"--{dashed}"

    def parse(self, value: Any, where: str) -> Any:
        """Check `value`, text from the command line or a value read from YAML, and return it as the field's type.

        where: names the value's origin in the error, such as "--seed". Raises UsageError.
        """
        if value is None:
            if self.optional:
                return None
            raise UsageError(f"{where} is empty, but it must be {self._expected()}.")
        if not self.many:
            return self._parse_item(value, where)
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise UsageError(f"{where} is {value!r}, but it must be a list, each item {self._expected()}.")
        return tuple(self._parse_item(item, where) for item in value)

    def parse_several(self, value: Any, where: str) -> tuple[Any, ...]:
        """Like `parse`, but of an option that may have several values, in a list; returns all of them."""
        if not self._holds_several(value):
            return (self.parse(value, where),)
        values = tuple(self.parse(item, where) for item in value)
        if not values or len(set(values)) < len(values):
            raise UsageError(f"{where} is {list(values)}; give at least one value, each once.")
        return values

    def _holds_several(self, value: Any) -> bool:
        if not isinstance(value, list | tuple):
            return False
        return not self.many or (len(value) > 0 and all(isinstance(item, list | tuple) for item in value))

    def arguments(self, value: Any) -> list[str]:
        """The words of a command line that give the option `value`, or each of its values, as `flatten` says them."""
        values = value if self.axes is not None and self._holds_several(value) else [value]
        if self.kind is bool:
            return [self.flag if item else self.flag.replace("--", "--no-", 1) for item in values]
        if self.many:
            return [word for item in values for word in (self.flag, *map(str, item))]
        return [self.flag, *map(str, values)]

    def _parse_item(self, value: Any, where: str) -> Any:
        if value in self.words:
            return value
        parsed = _convert(value, self.kind)
        if parsed is None:
            raise UsageError(f"{where} is {value!r}, but it must be {self._expected()}.")
        if self.choices is not None and parsed not in self.choices:
            raise UsageError(f"{where} is {value!r}; choose from {', '.join(map(str, self.choices))}.")
        return parsed

    def _expected(self) -> str:
        return " or ".join([*self.words, _TYPE_NAMES[self.kind]])


def _convert(value: Any, kind: type) -> Any:
    """`value` as `kind`, or None where it is none: text is parsed, a whole number is a number, nothing else changes;
    numbers are finite."""
    if kind is float:
        return _finite(value) if isinstance(value, str | float | int) and not isinstance(value, bool) else None
    if type(value) is kind:
        return value
    # YAML reads 1e-3 as text, hence numbers are also parsed where they come from a file.
    if kind is int and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return None


def _finite(value: str | float) -> float | None:
    """`value` as a number, or None where it is none, or too large for one."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def options_of(config_class: type) -> list[Option]:
    """All options of a configuration, those of its groups in the place of the group's field.

    Raises TypeError if a field has a type that no option can have, or if two fields have one name: both are mistakes
    in the program, not of its user.
    """
    found: list[Option] = []
    _collect(config_class, (), "", None, found)
    names = [item.name for item in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TypeError(f"{config_class.__name__} has more than one field named {', '.join(twice)}")
    return found


def _collect(config_class: type, path: tuple[str, ...], prefix: str, defaults: Any, found: list[Option]) -> None:
    """Append the options of `config_class`, reached by `path`; `defaults` is an instance of it, or None."""
    hints = typing.get_type_hints(config_class)
    documented = _documented(config_class)
    first = len(found)
    for field in dataclasses.fields(config_class):
        default = _default(field) if defaults is None else getattr(defaults, field.name)
        hint = hints[field.name]
        if _AXES in field.metadata:
            continue
        if dataclasses.is_dataclass(hint):
            inner = None if default is dataclasses.MISSING else default
            _collect(
                typing.cast(type, hint), (*path, field.name), prefix + field.metadata.get(_PREFIX, ""), inner, found
            )
            continue
        kind, many, optional, choices, words = _read_type(config_class, field, hint)
        found.append(
            Option(
                name=prefix + field.name,
                path=(*path, field.name),
                kind=kind,
                many=many,
                optional=optional,
                choices=choices,
                positional=bool(field.metadata.get(_POSITIONAL)),
                metavar=field.metadata.get(_METAVAR),
                help=field.metadata.get(_HELP) or documented.get(field.name, ""),
                default=default,
                words=words,
            )
        )
    for field in dataclasses.fields(config_class):
        names = field.metadata.get(_AXES, ())
        for index, item in enumerate(found[first:], start=first):
            if item.path[-1] in names and len(item.path) > len(path) + 1:
                found[index] = dataclasses.replace(item, axes=(*path, field.name))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _documented(config_class: type) -> dict[str, str]:
    """Field name -> its text: the string below the field, or what the class's docstring says after "name: "."""
    names = [field.name for field in dataclasses.fields(config_class)]
    found: dict[str, str] = {}
    for paragraph in (inspect.getdoc(config_class) or "").split("\n\n"):
        # "first, second: text." and "*_path: text." speak of several fields.
        pieces = re.split(r"(?:^|(?<=\. ))([\w*]+(?:, [\w*]+)*): ", " ".join(paragraph.split()))
        for patterns, text in zip(pieces[1::2], pieces[2::2], strict=True):
            found |= {name: text for pattern in patterns.split(", ") for name in fnmatch.filter(names, pattern)}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return {name: text.strip().rstrip(".") for name, text in found.items()}


def _read_type(
    owner: type, field: dataclasses.Field[Any], hint: Any
) -> tuple[type, bool, bool, tuple[Any, ...] | None, tuple[str, ...]]:
    """A field's type as (kind of one value, many, optional, choices, words that may stand in the value's place)."""
    optional = many = False
    words: tuple[str, ...] = ()
    choices = field.metadata.get(_CHOICES)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = typing.get_args(hint)
        optional = type(None) in parts
        inner = [item for item in parts if item is not type(None)]
        if len(inner) == 2 and typing.get_origin(inner[1]) is typing.Literal:
            words = typing.get_args(inner.pop())
        hint = inner[0] if len(inner) == 1 else hint
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,):
        many, hint = True, typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        choices, hint = typing.get_args(hint), str
    if hint not in _TYPE_NAMES:
        raise TypeError(f"{owner.__name__}.{field.name} has the type {field.type}, which no option can have")
    return hint, many, optional, None if choices is None else tuple(choices), words


class _Repeated(argparse.BooleanOptionalAction):
    """A switch that may be given more than once, each time with another value."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add what this occurrence says to the values."""
        given = [*getattr(namespace, self.dest, []), not str(option_string).startswith("--no-")]
        setattr(namespace, self.dest, given)


def add_arguments(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add every option to `parser`. Values stay text: they are checked when the configuration is built."""
    for item in options:
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help_text(item)}
        if item.kind is bool:
            action = argparse.BooleanOptionalAction if item.axes is None else _Repeated
            parser.add_argument(item.flag, action=action, **settings)
            continue
        settings["metavar"] = item.flag if item.positional else item.metavar or _metavar(item)
        if item.positional:
            # None of them is required here: its value may also stand in the --config file.
            parser.add_argument(item.name, nargs="*" if item.many else "?", **settings)
        elif item.many and item.axes is not None:
            parser.add_argument(item.flag, nargs="+", action="append", **settings)
        else:
            parser.add_argument(item.flag, nargs="+" if item.many or item.axes is not None else None, **settings)


def _metavar(item: Option) -> str:
    if item.choices is not None:
        return "|".join(map(str, item.choices))
    return "|".join([*item.words, {str: "TEXT", int: "N", float: "X"}[item.kind]])


def _help_text(item: Option) -> str:
    text = item.help
    if item.choices is not None and item.positional:
        text += f" ({' | '.join(map(str, item.choices))})"
    if item.default is dataclasses.MISSING:
        text += "" if item.positional else " (required)"
    elif item.default is None:
        pass  # the text says what that means
    elif item.default != () and item.kind is not bool:
        shown = " ".join(map(str, item.default)) if item.many else str(item.default)
        text += f" (default: {shown})"
    elif item.kind is bool:
        text += f" (default: {'yes' if item.default else 'no'})"
    return text.replace("%", "%%").strip()


def build(config_class: type[Config], values: Mapping[str, Any], where: Mapping[str, str] | None = None) -> Config:
    """The configuration that `values` (option name -> value, text or typed) describe; the rest keeps its defaults.

    where: how to name a value's origin in an error; the option's flag if it is not given. Raises UsageError when a name
    is unknown, a value has the wrong type, or a required option is missing.
    """
    options = {item.name: item for item in options_of(config_class)}
    origins = where or {}
    for name in values:
        if name not in options:
            raise UsageError(f"{origins.get(name, name)} is no option here; the options are {', '.join(options)}.")
    parsed: dict[tuple[str, ...], Any] = {}
    for name, item in options.items():
        if item.axes is not None:
            parsed.setdefault(item.axes, {})
        if name in values and item.axes is not None:
            several = item.parse_several(values[name], origins.get(name, item.flag))
            parsed[item.path] = several[0]
            if len(several) > 1:
                parsed[item.axes][item.path[-1]] = several
        elif name in values:
            parsed[item.path] = item.parse(values[name], origins.get(name, item.flag))
        elif item.default is dataclasses.MISSING:
            # An option of several values takes every word that follows it, so that a place is best filled first.
            place = "first on the command line, before the options," if item.positional else "on the command line"
            raise UsageError(f"{item.flag} is missing; give it {place} or as {name} in a --config file.")
        else:
            parsed[item.path] = item.default
    return _assemble(config_class, (), parsed)


def _assemble(config_class: Any, path: tuple[str, ...], parsed: Mapping[tuple[str, ...], Any]) -> Any:
    hints = typing.get_type_hints(config_class)
    arguments = {}
    for field in dataclasses.fields(config_class):
        inner, here = hints[field.name], (*path, field.name)
        arguments[field.name] = _assemble(inner, here, parsed) if dataclasses.is_dataclass(inner) else parsed[here]
    return config_class(**arguments)


def flatten(config: Any) -> dict[str, Any]:
    """Option name -> value, tuples as lists: what a `--config` file of this configuration holds."""
    flat: dict[str, Any] = {}
    for item in options_of(type(config)):
        axes = {} if item.axes is None else _at(config, item.axes)
        flat[item.name] = _lists(axes.get(item.path[-1], _at(config, item.path)))
    return flat


def _at(config: Any, path: Iterable[str]) -> Any:
    return functools.reduce(getattr, path, config)


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
