"""Objects by URI, on a local disk or on S3: every one appears whole or not at all.

A URI is a local path or `s3://bucket/key`. Local objects are written to a temporary file in the same folder, synced,
and moved (`write`) or hard-linked (`create`) into place; on S3 one PUT does the same, with If-None-Match for `create`.
Nothing is ever renamed on S3, and no listing is cached: another process may write at any time.
"""

import builtins
import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec

_S3 = "s3://"
_TEMPORARY_SUFFIX = ".tmp"


class InputError(ValueError):
    """Wrong input from a user: one sentence naming the file or field, the value, and the way out."""


def join(uri: str, *parts: str) -> str:
    """The URI of an object below `uri`, e.g. `join("s3://b/run", "points", "0") == "s3://b/run/points/0"`."""
    return "/".join([uri.rstrip("/") if uri else ".", *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """`uri` that means the same in every working directory: local paths absolute, S3 URIs as they are."""
    return uri if _is_s3(uri) else os.path.abspath(os.path.expanduser(uri))


def read(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError."""
    if _is_s3(uri):
        data: bytes = _s3().cat_file(uri)
        return data
    with open(uri, "rb") as file:
        return file.read()


@contextlib.contextmanager
def reader(uri: str) -> Iterator[BinaryIO]:
    """The object as a file that reads no more than is asked for. Raises FileNotFoundError."""
    with _s3().open(uri, "rb", cache_type="readahead") if _is_s3(uri) else open(uri, "rb") as file:
        yield file


def exists(uri: str) -> bool:
    """Whether an object, or anything below `uri`, is there."""
    if _is_s3(uri):
        return bool(_s3().exists(uri))
    return os.path.exists(uri)


def list(uri: str) -> builtins.list[str]:
    """Sorted paths, relative to `uri`, of all objects below it; empty if there are none.

    Temporary files of writes in progress are left out. A local symbolic link to a folder counts as one object and is
    not followed (it could lead out of `uri`, or back into itself).
    """
    if _is_s3(uri):
        prefix = uri.removeprefix(_S3).rstrip("/") + "/"
        return sorted(key.removeprefix(prefix) for key in _s3().find(uri) if key != prefix.rstrip("/"))
    found = []
    for folder, subfolders, files in os.walk(uri):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        relative = os.path.relpath(folder, uri)
        for name in files + links:
            if not _is_temporary(name):
                found.append(name if relative == "." else f"{relative}/{name}")
    return sorted(found)


def write(uri: str, data: bytes) -> str:
    """Writes `data` to `uri`, replacing what stands there; returns the sha256 of `data` in hexadecimal.

    Readers see the old object or the new one, never a part. Parent folders are made.
    """
    if _is_s3(uri):
        _s3().pipe_file(uri, data)
    else:
        with _temporary_file(uri, data) as temporary:
            os.replace(temporary, uri)
    return hashlib.sha256(data).hexdigest()


def create(uri: str, data: bytes) -> str:
    """Like `write`, but raises FileExistsError, changing nothing, if `uri` exists: of racing creators one wins."""
    if _is_s3(uri):
        _s3().pipe_file(uri, data, mode="create")
    else:
        with _temporary_file(uri, data) as temporary:
            os.link(temporary, uri)
    return hashlib.sha256(data).hexdigest()


def delete(uri: str) -> None:
    """Removes one object; a missing one is no error."""
    with contextlib.suppress(FileNotFoundError):
        if _is_s3(uri):
            _s3().rm_file(uri)
        else:
            os.unlink(uri)


def _is_s3(uri: str) -> bool:
    if "://" in uri and not uri.startswith(_S3):
        raise InputError(f"{uri!r} has an unknown scheme; give a local path or s3://bucket/key.")
    return uri.startswith(_S3)


def _s3() -> Any:
    """fsspec's file system of this process; endpoint and credentials come from the AWS_* environment variables."""
    return fsspec.filesystem("s3", use_listings_cache=False)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX)


@contextlib.contextmanager
def _temporary_file(uri: str, data: bytes) -> Iterator[str]:
    """A synced file with `data` beside `uri`, removed on leaving (unless it was moved away meanwhile)."""
    folder, name = os.path.split(os.path.abspath(uri))
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} cannot be a directory, a file stands in its way; give another path.") from None
    # The name is cut so that a name near the file system's limit of 255 bytes still gets its temporary file.
    temporary = os.path.join(folder, f".{name[:40]}.{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
