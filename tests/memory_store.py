"""A storage in memory for tests that try thousands of ways to go wrong: quick, and put back to any earlier moment."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest

from data_prep import storage

ROOT = "/memory"


class MemoryStore:
    """Objects below `ROOT`, as `data_prep.storage` keeps them on a disk; `objects` is all there is."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Meanwhile, URIs below `ROOT` lead here; those elsewhere to where they always do."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("read", "open", "exists", "list_files", "write", "create", "delete"):
                self._replace(patch, f"_{name}", getattr(self, name))
            yield

    def _replace(self, patch: pytest.MonkeyPatch, name: str, own: Any) -> None:
        usual = getattr(storage, name)

        def choose(uri: str, *arguments: Any) -> Any:
            return (own if uri.startswith(ROOT) else usual)(uri, *arguments)

        patch.setattr(storage, name, choose)

    def read(self, uri: str) -> bytes:
        if uri not in self.objects:
            raise FileNotFoundError(uri)
        return self.objects[uri]

    def open(self, uri: str) -> BinaryIO:
        return io.BytesIO(self.read(uri))

    def exists(self, uri: str) -> bool:
        return uri in self.objects or bool(self.list_files(uri))

    def list_files(self, uri: str) -> list[str]:
        prefix = uri.rstrip("/") + "/"
        return sorted(name.removeprefix(prefix) for name in self.objects if name.startswith(prefix))

    def write(self, uri: str, data: bytes) -> None:
        self.objects[uri] = data

    def create(self, uri: str, data: bytes, again: bool) -> None:
        if uri in self.objects and not (again and self.objects[uri] == data):
            raise FileExistsError(uri)
        self.objects[uri] = data

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)
