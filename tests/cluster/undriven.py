"""Searches that are driven without Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import grid
from cluster.driving import Driver


class Undriven(Driver):
    """A driver without a board, in tests without Ray."""

    def work_on(self, run: str, *, takeover: bool, is_whole: bool = False) -> None:
        """Nobody else does."""

    def confirm(self, run: str) -> None:
        """Nor later."""

    def look(self) -> None:
        """Nobody is asked."""


def drive_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `cluster.grid` drive its searches so."""

    @contextlib.contextmanager
    def driving(**limits: Any) -> Iterator[Driver]:
        yield Undriven(None)

    monkeypatch.setattr(grid, "driving", driving)
