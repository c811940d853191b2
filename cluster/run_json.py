"""What the small JSON files of a run say, whatever stands in them: a file may be cut short, or of another version."""

from __future__ import annotations

import json
from typing import Any

from data_prep import storage

Json = dict[str, Any]


def read_object(uri: str) -> Json:
    """An object of JSON; empty where it is gone, or damaged: then it says nothing."""
    try:
        return parse_object(storage.read(uri))
    except FileNotFoundError:
        return {}


def parse_object(content: bytes) -> Json:
    """An object of JSON; empty where it is none, as after a damage to the disk."""
    try:
        found = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def number_of(facts: Json, name: str) -> Any:
    """A number of an object; None where it has none of that name, or something else."""
    value = facts.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def text_of(facts: Json, name: str) -> str | None:
    """A text of an object; None where it has none of that name, or something else."""
    value = facts.get(name)
    return value if isinstance(value, str) else None
