"""Names of a baseline's run and of its parts; loads neither torch nor Ray, so that `stgs status` can ask for them."""

from __future__ import annotations

from collections.abc import Iterable

KIND = "baseline"
"""What config.yaml and metrics.json of such a run are called."""
WHOLE = "all"
"""The part of a run whose clips are split as their manifest says."""
_SHUFFLED = "shuffle-"


def shuffled_part(seed: int) -> str:
    """The part whose labels `seed` has shuffled, a control."""
    return f"{_SHUFFLED}{seed}"


def is_shuffled_part(part: str) -> bool:
    """Whether a part is such a control."""
    return part.startswith(_SHUFFLED)


def planned_parts(parts: Iterable[str], shuffles: int) -> list[str]:
    """The parts that a run is to have, those with shuffled labels last.

    parts: of its protocol; none where its manifest, or the run itself, splits the clips. shuffles: their number.
    """
    return [*(parts or (WHOLE,)), *map(shuffled_part, range(shuffles))]
