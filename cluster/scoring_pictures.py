"""Which windows are shown where only some of all can be: spread evenly over clips, and over each of them."""

from __future__ import annotations

from typing import Any


class KeptPictures:
    """Keeps the pictures of at most `most` windows; the others are emptied as more come.

    No place is free while a window that came is not shown; the clips with the most pictures have to give them up, the
    later ones first, and of two moments that lie close together one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._kept: dict[int, list[tuple[float, dict[str, Any]]]] = {}

    def add(self, clip: int, start_s: float, picture: dict[str, Any]) -> None:
        """Takes the picture of the window of a clip, by its number, that begins at start_s."""
        own = self._kept.setdefault(clip, [])
        own.append((start_s, picture))
        own.sort(key=lambda window: window[0])
        self._total += 1
        if self._total > self._most:
            self._drop_one()

    def _drop_one(self) -> None:
        largest = max(self._kept, key=lambda clip: (len(self._kept[clip]), clip))
        own = self._kept[largest]
        starts = [start_s for start_s, _ in own]
        # The first and the last stay as long as there are others.
        between = range(1, len(own) - 1) or range(len(own) - 1, len(own))
        dropped = min(between, key=lambda index: starts[min(index + 1, len(own) - 1)] - starts[index - 1])
        own.pop(dropped)[1].clear()
        self._total -= 1
        if not own:
            del self._kept[largest]
