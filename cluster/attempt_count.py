"""Counts the attempts at a training that end neither orderly nor with anything new, in a file beside its state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from data_prep import storage


@dataclass(frozen=True, slots=True)
class AttemptCount:
    """uri: of the file. session: the driver's, of which attempts are counted."""

    uri: str
    session: str

    def add(self, **place: Any) -> int:
        """Attempts of this session in a row that have begun at the same place, this one with them.

        place: where the training goes on, such as its epoch (JSON types).
        """
        last = self._last()
        own = {"session": self.session, **place}
        is_same = all(last.get(name) == value for name, value in own.items())
        count = last["count"] + 1 if is_same else 1
        storage.write(self.uri, json.dumps({**own, "count": count}).encode())
        return count

    def forget(self) -> None:
        """An orderly end is none of those that are counted."""
        if storage.exists(self.uri):
            storage.delete(self.uri)

    def _last(self) -> dict[str, Any]:
        """What the file says. A damaged one is taken for none: the count is not worth a training."""
        try:
            data = storage.read(self.uri)
        except FileNotFoundError:
            return {}
        try:
            content = json.loads(data)
            return {**content, "count": int(content["count"])}
        except (ValueError, TypeError, KeyError):
            return {}
