"""Objects by URI, on a local disk or on S3: every one appears whole or not at all.

A URI is a local path or `s3://bucket/key`. Local objects are written to a temporary file in the same folder, synced,
and moved (`write`) or hard-linked (`create`) into place; on S3 one PUT does the same, with If-None-Match for `create`.
Nothing is ever renamed on S3, and no listing is cached: another process may write at any time.

Endpoint and credentials of S3 come from the environment (AWS_*) and appear in no message. Every function raises
InputError where they are missing or refused (CredentialsError, one of its kind, where that may pass), or where there is
no such bucket; UnreachableError where S3, or a disk, does not answer after some seconds of attempts (`patient` makes
more of them), or breaks off; and NoSpaceError where there is no room for what is written.
"""

import builtins
import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec

from data_prep.storage_errors import S3, local_errors, raise_if_silent, s3_code, s3_errors
from data_prep.storage_errors import CredentialsError as CredentialsError
from data_prep.storage_errors import InputError as InputError
from data_prep.storage_errors import NoSpaceError as NoSpaceError
from data_prep.storage_errors import UnreachableError as UnreachableError
from data_prep.storage_patience import observed as observed
from data_prep.storage_patience import patient as patient
from data_prep.storage_patience import patiently

_TEMPORARY_SUFFIX = ".tmp"
_CREATE_ATTEMPTS = 10
_S3_REQUESTS = 2
_S3_RETRIES = 3
"""A request is sent so often, each time by s3fs with so many of its own: 15 s each where S3 takes it and falls silent,
after which `patient` gets its turn."""


def join(uri: str, *parts: str) -> str:
    """The URI of an object below `uri`, e.g. `join("s3://b/run", "points", "0") == "s3://b/run/points/0"`."""
    return "/".join([uri.rstrip("/") if uri else ".", *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """`uri` that means the same in every working directory: local paths absolute, S3 URIs as they are."""
    return uri if _is_s3(uri) else os.path.abspath(os.path.expanduser(uri))


def read(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError."""
    return patiently("read", uri, lambda _: _read(uri))


@contextlib.contextmanager
def reader(uri: str) -> Iterator[BinaryIO]:
    """The object as a file that reads no more than is asked for. Raises FileNotFoundError.

    Only opening it is tried again where storage does not answer.
    """
    with contextlib.ExitStack() as opened:
        file = patiently("read", uri, lambda _: opened.enter_context(_open(uri)))
        with s3_errors(uri) if _is_s3(uri) else local_errors(uri):
            yield file


def exists(uri: str) -> bool:
    """Whether an object, or anything below `uri`, is there."""
    return patiently("exists", uri, lambda _: _exists(uri))


def list(uri: str) -> builtins.list[str]:
    """Sorted paths, relative to `uri`, of all objects below it; empty if there are none.

    Temporary files of writes in progress are left out. A local symbolic link to a folder counts as one object and is
    not followed (it could lead out of `uri`, or back into itself).
    """
    return patiently("list", uri, lambda _: _list_objects(uri) if _is_s3(uri) else _list_files(uri))


def write(uri: str, data: bytes) -> str:
    """Writes `data` to `uri`, replacing what stands there; returns the sha256 of `data` in hexadecimal.

    Readers see the old object or the new one, never a part. Parent folders are made.
    """
    patiently("write", uri, lambda _: _write(uri, data))
    return hashlib.sha256(data).hexdigest()


def create(uri: str, data: bytes) -> str:
    """Like `write`, but raises FileExistsError, changing nothing, if `uri` exists: of racing creators one wins.

    Where an answer was lost and the request was sent again, `data` that stands there counts as created: give bytes
    that nobody else would write.
    """
    patiently("create", uri, lambda again: _create(uri, data, again))
    return hashlib.sha256(data).hexdigest()


def delete(uri: str) -> None:
    """Removes one object; a missing one is no error."""
    patiently("delete", uri, lambda _: _delete(uri))


def _is_s3(uri: str) -> bool:
    if "://" in uri and not uri.startswith(S3):
        raise InputError(f"{uri!r} has an unknown scheme; give a local path or s3://bucket/key.")
    return uri.startswith(S3)


@contextlib.contextmanager
def _s3(uri: str, *, key: bool = False, once: bool = False) -> Iterator[Any]:
    """A file system of this process, whose errors come in our words.

    key: `uri` has to name an object. once: no request is sent twice without our knowing.
    """
    bucket, _, name = uri.removeprefix(S3).rstrip("/").partition("/")
    if not bucket or (key and not name):
        raise InputError(f"{uri!r} names no object of a bucket; give s3://bucket/key.")
    try:
        with s3_errors(uri):
            yield _file_system(once)
    except CredentialsError:
        # A connection keeps what it was made with: the next use makes a new one.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        raise


def _file_system(once: bool = False) -> Any:
    """fsspec keeps one of each kind, with its connections."""
    requests = {"mode": "standard", "total_max_attempts": 1 if once else _S3_REQUESTS}
    config = {"retries": requests} if once or "AWS_MAX_ATTEMPTS" not in os.environ else {}
    system = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=config)
    system.retries = 1 if once else _S3_RETRIES
    return system


def _read(uri: str) -> bytes:
    if _is_s3(uri):
        with _s3(uri, key=True) as system:
            # In one request: several would fetch parts of different objects where one is being replaced.
            data: bytes = system.cat_file(uri, max_concurrency=1)
            return data
    with local_errors(uri), open(uri, "rb") as file:
        return file.read()


def _open(uri: str) -> BinaryIO:
    if _is_s3(uri):
        with _s3(uri, key=True) as system:
            file: BinaryIO = system.open(uri, "rb", cache_type="readahead")
            return file
    with local_errors(uri):
        return open(uri, "rb")


def _exists(uri: str) -> bool:
    if _is_s3(uri):
        with _s3(uri) as system:
            return bool(system.exists(uri))
    with local_errors(uri):
        try:
            os.stat(uri)
        except OSError as error:
            raise_if_silent(error)
            return False
    return True


def _list_objects(uri: str) -> builtins.list[str]:
    prefix = uri.removeprefix(S3).rstrip("/") + "/"
    with _s3(uri) as system:
        keys = system.find(uri)
    # A key that ends with a slash is the empty object that some tools leave for a folder.
    return sorted(key.removeprefix(prefix) for key in keys if key.startswith(prefix) and not key.endswith("/"))


def _list_files(uri: str) -> builtins.list[str]:
    found = []
    with local_errors(uri):
        for folder, subfolders, files in os.walk(uri, onerror=raise_if_silent):
            links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
            relative = os.path.relpath(folder, uri)
            for name in files + links:
                if not _is_temporary(name):
                    found.append(name if relative == "." else f"{relative}/{name}")
    return sorted(found)


def _write(uri: str, data: bytes) -> None:
    if _is_s3(uri):
        with _s3(uri, key=True) as system:
            system.pipe_file(uri, data)
    else:
        with local_errors(uri), _temporary_file(uri, data) as temporary:
            os.replace(temporary, uri)


def _create(uri: str, data: bytes, again: bool) -> None:
    """again: an earlier attempt may have created it already."""
    try:
        if _is_s3(uri):
            with _s3(uri, key=True, once=True) as system:
                _create_object(system, uri, data)
        else:
            with local_errors(uri), _temporary_file(uri, data) as temporary:
                os.link(temporary, uri)
    except FileExistsError:
        if not again or _read(uri) != data:
            raise


def _delete(uri: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if _is_s3(uri):
            with _s3(uri, key=True) as system:
                system.rm_file(uri)
        else:
            with local_errors(uri):
                os.unlink(uri)


def _create_object(system: Any, uri: str, data: bytes) -> None:
    """Of creators at the same moment, S3 may refuse all but ask them to try again."""
    for attempt in range(_CREATE_ATTEMPTS):
        try:
            system.pipe_file(uri, data, mode="create")
            return
        except OSError as error:
            code = s3_code(error)
            if code in ("PreconditionFailed", "412") and not isinstance(error, FileExistsError):
                # As servers other than AWS say it.
                raise FileExistsError(uri) from error.__cause__
            if code != "ConditionalRequestConflict" or attempt == _CREATE_ATTEMPTS - 1:
                raise


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX)


@contextlib.contextmanager
def _temporary_file(uri: str, data: bytes) -> Iterator[str]:
    """A synced file with `data` beside `uri`, removed on leaving (unless it was moved away meanwhile)."""
    folder, name = os.path.split(os.path.abspath(uri))
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(folder)  # A disk that does not answer says so here: makedirs took it for a file.
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
