"""Commands of this program as the report prints them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.options import options_of

_COMMAND_COLUMNS = 110


def command_line(name: str, config_class: type, values: Mapping[str, Any]) -> str:
    """The command that gives an option each of `values` that differs from its default; other names are ignored."""
    places: list[str] = []
    flags: list[str] = []
    for item in options_of(config_class):
        value = values.get(item.name, item.default)
        value = tuple(value) if isinstance(value, list) else value
        if item.positional:
            places += map(str, value) if item.many else [str(value)]
        elif value == item.default or value is None or value == ():
            continue
        else:
            flags.append(shlex.join(item.arguments(value)))
    return _in_lines([shlex.join(["stgs", name, *places]), *flags])


def _in_lines(parts: Sequence[str]) -> str:
    """Parts of a command, on lines that fit a screen; the shell reads them as one."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) < _COMMAND_COLUMNS:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)
