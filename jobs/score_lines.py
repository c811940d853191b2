"""Where `stgs score --json-lines` writes: a line a clip; a file that stands there is continued."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

from data_prep import storage
from data_prep.storage import InputError

STANDARD_OUTPUT = "-"
# What every line begins with.
_BEGINNING = b'{"clip": "'


def line_of(clip: Mapping[str, Any]) -> str:
    """The line of a clip, without its end. Raises ValueError for a number that is none."""
    return json.dumps(clip, allow_nan=False)


@contextlib.contextmanager
def opened_lines(
    target: str | None, making: Mapping[str, Any]
) -> Iterator[tuple[list[dict[str, Any]], IO[str] | None]]:
    """The clips whose lines stand in the file `target`, and where lines are added; or none and None.

    making: the fields in which a file's lines must agree with those to come. A last line that was not written to its
    end is cut off. Raises InputError if lines cannot go there, or if others stand there.
    """
    if target is None:
        yield [], None
    elif target == STANDARD_OUTPUT:
        if sys.stdout is sys.stderr:
            raise InputError("--json-lines - and --json both want standard output; give --json-lines a file.")
        try:
            yield [], sys.stdout
        except BrokenPipeError:
            # What Python writes when it ends must not meet the broken pipe, either.
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise InputError("whoever read standard output left before all clips were scored.") from None
    elif "://" in target:
        raise InputError(f"json_lines is {target}, but lines are added one by one to a local file only; give one.")
    else:
        path = storage.absolute(target)
        try:
            clips = _standing(path, target, making)
            file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise InputError(f"json_lines is {target}, which cannot be written: {error.strerror}.") from None
        with file:
            yield clips, file


def _standing(path: str, target: str, making: Mapping[str, Any]) -> list[dict[str, Any]]:
    # A pipe, or a device, has nothing to go on from.
    if not os.path.isfile(path):
        return []
    with open(path, "rb") as file:
        *lines, rest = file.read().split(b"\n")
    clips = [_clip(line, f"line {number} of {target}", making) for number, line in enumerate(lines, 1)]
    if not (rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)):
        raise _other(f"the last line of {target}")
    if rest:
        os.truncate(path, os.path.getsize(path) - len(rest))
    return clips


def _clip(line: bytes, where: str, making: Mapping[str, Any]) -> dict[str, Any]:
    try:
        clip = json.loads(line) if line.startswith(_BEGINNING) else None
    except ValueError:
        clip = None
    if not isinstance(clip, dict):
        raise _other(where)
    for name, value in making.items():
        if name not in clip or clip[name] != value:
            raise InputError(
                f"{where} has {clip.get(name)} as its {name}, and here it is {value}; give --json-lines another file, "
                "or score as for that one."
            )
    return clip


def _other(where: str) -> InputError:
    return InputError(f"{where} is none that 'stgs score' wrote; give --json-lines another file.")
