"""Whether a storage does what runs rely on: whole objects, exclusive creation, listings and clocks that agree."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator

import fsspec

from cluster.doctor import MOST_SKEW_S, Check
from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError

_FIRST, _SECOND = b"first", b"second"
_SHARED = "shared"
_TELLING = (InputError, NoSpaceError, UnreachableError, OSError)


class _WrongError(Exception):
    """The storage answers, but otherwise than it must: what it does, and the way out."""


@contextlib.contextmanager
def probe_root(uri: str) -> Iterator[str]:
    """A place below `uri` for the probes of one look, gone afterwards with all that any machine has written there.

    Raises InputError where `uri` cannot be one of a storage.
    """
    root = storage.join(storage.absolute(uri), f".stgs-doctor-{uuid.uuid4().hex}")
    with _folders_removed(root):
        try:
            yield root
        finally:
            # What cannot be deleted was told by the check of deletion.
            with contextlib.suppress(*_TELLING):
                for path in storage.list(root):
                    storage.delete(storage.join(root, path))


@contextlib.contextmanager
def _folders_removed(root: str) -> Iterator[None]:
    """Remove the local folders on the way to `root` that do not stand yet, in the end."""
    made = []
    folder = root
    while "://" not in root and not os.path.exists(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    try:
        yield
    finally:
        for folder in made:
            # Missing: nothing was written. Not empty: somebody else uses it meanwhile.
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def share(root: str) -> None:
    """Leave an object that `check_storage` looks for on other machines. Raises what storage.write raises."""
    storage.write(storage.join(root, _SHARED), _FIRST)


def check_storage(root: str, place: str, *, shared: bool) -> list[Check]:
    """Try the storage from this machine; deletes what it writes.

    root: of `probe_root`. place: names storage and machine in the checks. shared: look for what another machine has
    left by `share`.
    """
    checks = []
    with _folders_removed(root):
        uris = [storage.join(root, uuid.uuid4().hex) for _ in range(2)]
        tries: list[tuple[str, Callable[[], str]]] = [
            ("write", lambda: _write(uris[0])),
            ("read", lambda: _read(uris[0])),
            ("exclusive create", lambda: _create(uris[1])),
            ("list", lambda: _list(root, uris[0])),
            ("clock", lambda: _clock(uris[0])),
            ("delete", lambda: _delete(root, uris)),
        ]
        if shared:
            tries.insert(0, ("shared", lambda: _see_shared(root)))
        try:
            for subject, attempt in tries:
                checks.append(_tried(place, subject, attempt))
                if checks[-1].level == "FAIL" and subject == "write":
                    break  # the others would say the same again
        finally:
            for uri in uris:
                with contextlib.suppress(*_TELLING):
                    storage.delete(uri)
    return checks


def _tried(place: str, subject: str, attempt: Callable[[], str]) -> Check:
    start = time.perf_counter()
    try:
        detail = attempt()
    except _WrongError as error:
        detail, way_out = error.args
        return Check("FAIL", place, subject, detail, way_out)
    except _TELLING as error:
        sentence = (
            str(error) if not isinstance(error, OSError) else f"{type(error).__name__}: {error.strerror or error}"
        )
        return Check("FAIL", place, subject, sentence.rstrip("."), "mend that first")
    return Check("ok", place, subject, detail or f"{(time.perf_counter() - start) * 1000:,.0f} ms")


def _write(uri: str) -> str:
    storage.write(uri, _SECOND)
    storage.write(uri, _FIRST)
    return ""


def _read(uri: str) -> str:
    if storage.read(uri) != _FIRST:
        raise _WrongError("an object that was written twice reads as before", "use a storage that is consistent")
    return ""


def _create(uri: str) -> str:
    storage.create(uri, _FIRST)
    try:
        storage.create(uri, _SECOND)
    except FileExistsError:
        if storage.read(uri) == _FIRST:
            return ""
        raise _WrongError("a refused create changed the object", "use a storage that honours If-None-Match") from None
    raise _WrongError(
        "a second create of one object is accepted, so that a point could be committed twice",
        "use a storage that honours If-None-Match (S3 itself does), or a file system with hard links",
    )


def _list(root: str, uri: str) -> str:
    if uri.rsplit("/", 1)[1] not in storage.list(root):
        raise _WrongError("an object that stands is not listed", "use a storage that is consistent")
    return ""


def _clock(uri: str) -> str:
    """The time that the storage gives an object, against this machine's; S3 gives whole seconds."""
    before = time.time()
    storage.write(uri, _FIRST)
    after, modified = time.time(), _modified(uri)
    skew = min(modified - before, 0.0) if modified < before else max(modified - after, 0.0)
    if abs(skew) > MOST_SKEW_S:
        raise _WrongError(f"{skew:+.1f} s against this machine", "set this machine's clock by NTP (chrony)")
    return f"{skew:+.1f} s against this machine"


def _modified(uri: str) -> float:
    """Unix seconds at which the storage says that the object was written."""
    if "://" not in uri:
        return os.stat(uri).st_mtime
    return float(fsspec.filesystem("s3", use_listings_cache=False).info(uri)["LastModified"].timestamp())


def _delete(root: str, uris: list[str]) -> str:
    for uri in uris:
        storage.delete(uri)
    left = {uri.rsplit("/", 1)[1] for uri in uris} & set(storage.list(root))
    if left:
        raise _WrongError(f"{len(left)} deleted objects are still listed", "use a storage that is consistent")
    return ""


def _see_shared(root: str) -> str:
    try:
        storage.read(storage.join(root, _SHARED))
    except FileNotFoundError:
        way_out = "give an s3:// URI, or a file system that all nodes mount at this path"
        raise _WrongError("does not see what another machine wrote", way_out) from None
    return ""
