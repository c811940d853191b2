"""What a run searches: the points of its grid, and the packs in which they are searched side by side.

Light to import: `stgs status` reads packs and needs neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

# File systems end names at 255 bytes, and files add an ending to an id.
_LONGEST_ID = 200
_DIGEST_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the grid.

    shuffle_seed: permutes the labels of train and dev (a control), None: as they are. options: name and value of the
    search's settings in which the points of the grid differ (`cluster.settings.settings_of` applies them).
    """

    temperature: float
    num_samples: int
    estimator: str
    seed: int
    shuffle_seed: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        # A file gives lists for the tuples that were written.
        pairs = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in self.options)
        object.__setattr__(self, "options", pairs)

    @property
    def id(self) -> str:
        """Name of the point in the run directory: its settings, cut short and ended by a digest where they are many."""
        name = f"temperature-{self.temperature:g}_samples-{self.num_samples}_{self.estimator}_seed-{self.seed}"
        if self.shuffle_seed is not None:
            name += f"_shuffle-{self.shuffle_seed}"
        # No file is called after a pattern such as visual.*.
        name += "".join(f"_{key}-{re.sub(r'[^a-zA-Z0-9.+-]', '', _shown(value))}" for key, value in self.options)
        if len(name) <= _LONGEST_ID:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_DIGITS]
        return f"{name[: _LONGEST_ID - _DIGEST_DIGITS - 1]}_{digest}"

    @property
    def label(self) -> str:
        """The options in words, such as `dropout=0.1, tail=concat`; empty where there are none."""
        return ", ".join(f"{key}={_shown(value)}" for key, value in self.options)

    def facts(self) -> dict[str, Any]:
        """What result files say of the point, a column each: its fields, with `label` for the options."""
        return {**asdict(self), "options": self.label}


def _shown(value: Any) -> str:
    """An option's value as text: numbers short, lists joined by '+'."""
    if isinstance(value, tuple):
        return "+".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool | None) else str(value)


@dataclass(frozen=True, slots=True)
class Pack:
    """Points that are searched as one population, in one program.

    parent: name of the pack that this one was split off, whose states it can continue; None: of none.
    """

    name: str
    points: tuple[Point, ...]
    parent: str | None = None

    def to_json(self) -> bytes:
        """The content of pack.json."""
        content = {"name": self.name, "parent": self.parent, "points": [asdict(point) for point in self.points]}
        return json.dumps(content, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Pack:
        """The pack that a pack.json describes."""
        fields = json.loads(content)
        return cls(fields["name"], tuple(Point(**point) for point in fields["points"]), fields["parent"])
