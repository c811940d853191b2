"""Objects by URI, on a local disk or on S3: every one appears whole or not at all.

A URI is a local path or `s3://bucket/key`. Local objects are written to a temporary file in the same folder, synced,
and moved (`write`) or hard-linked (`create`) into place; on S3 one PUT does the same, with If-None-Match for `create`.
Nothing is ever renamed on S3, and no listing is cached: another process may write at any time.

Endpoint and credentials of S3 come from the environment (AWS_*) and appear in no message. Every function raises
InputError where they are missing or refused, or where there is no such bucket, and UnreachableError where S3 does not
answer after some seconds of attempts, or breaks off.
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
_BAD_CREDENTIALS = (
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
)
"""S3's error codes that say that the credentials themselves are wrong, whatever they are used for."""
_OVERLOADED = ("InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "500", "503")
"""S3's error codes that say that it cannot answer now, after all attempts."""
_CREATE_ATTEMPTS = 10


class InputError(ValueError):
    """Wrong input from a user: one sentence naming the file or field, the value, and the way out."""


class UnreachableError(RuntimeError):
    """S3 does not answer, or not now; the same call may succeed later."""


class NoSpaceError(RuntimeError):
    """The disk, or a quota, is full: one sentence with the way out."""


def join(uri: str, *parts: str) -> str:
    """The URI of an object below `uri`, e.g. `join("s3://b/run", "points", "0") == "s3://b/run/points/0"`."""
    return "/".join([uri.rstrip("/") if uri else ".", *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """`uri` that means the same in every working directory: local paths absolute, S3 URIs as they are."""
    return uri if _is_s3(uri) else os.path.abspath(os.path.expanduser(uri))


def read(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError."""
    if _is_s3(uri):
        with _s3(uri, key=True) as system:
            # In one request: several would fetch parts of different objects where one is being replaced.
            data: bytes = system.cat_file(uri, max_concurrency=1)
            return data
    with open(uri, "rb") as file:
        return file.read()


@contextlib.contextmanager
def reader(uri: str) -> Iterator[BinaryIO]:
    """The object as a file that reads no more than is asked for. Raises FileNotFoundError."""
    if not _is_s3(uri):
        with open(uri, "rb") as file:
            yield file
        return
    with _s3(uri, key=True) as system, system.open(uri, "rb", cache_type="readahead") as file:
        yield file


def exists(uri: str) -> bool:
    """Whether an object, or anything below `uri`, is there."""
    if _is_s3(uri):
        with _s3(uri) as system:
            return bool(system.exists(uri))
    return os.path.exists(uri)


def list(uri: str) -> builtins.list[str]:
    """Sorted paths, relative to `uri`, of all objects below it; empty if there are none.

    Temporary files of writes in progress are left out. A local symbolic link to a folder counts as one object and is
    not followed (it could lead out of `uri`, or back into itself).
    """
    if _is_s3(uri):
        prefix = uri.removeprefix(_S3).rstrip("/") + "/"
        with _s3(uri) as system:
            keys = system.find(uri)
        # A key that ends with a slash is the empty object that some tools leave for a folder.
        return sorted(key.removeprefix(prefix) for key in keys if key.startswith(prefix) and not key.endswith("/"))
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
        with _s3(uri, key=True) as system:
            system.pipe_file(uri, data)
    else:
        with _temporary_file(uri, data) as temporary:
            os.replace(temporary, uri)
    return hashlib.sha256(data).hexdigest()


def create(uri: str, data: bytes) -> str:
    """Like `write`, but raises FileExistsError, changing nothing, if `uri` exists: of racing creators one wins."""
    if _is_s3(uri):
        with _s3(uri, key=True) as system:
            _create_object(system, uri, data)
    else:
        with _temporary_file(uri, data) as temporary:
            os.link(temporary, uri)
    return hashlib.sha256(data).hexdigest()


def delete(uri: str) -> None:
    """Removes one object; a missing one is no error."""
    with contextlib.suppress(FileNotFoundError):
        if _is_s3(uri):
            with _s3(uri, key=True) as system:
                system.rm_file(uri)
        else:
            os.unlink(uri)


def _is_s3(uri: str) -> bool:
    if "://" in uri and not uri.startswith(_S3):
        raise InputError(f"{uri!r} has an unknown scheme; give a local path or s3://bucket/key.")
    return uri.startswith(_S3)


@contextlib.contextmanager
def _s3(uri: str, *, key: bool = False) -> Iterator[Any]:
    """fsspec's file system of this process, whose errors come in our words; key: `uri` has to name an object."""
    bucket, _, name = uri.removeprefix(_S3).rstrip("/").partition("/")
    if not bucket or (key and not name):
        raise InputError(f"{uri!r} names no object of a bucket; give s3://bucket/key.")
    # s3fs, which takes a second to load, loads them too: local paths need not wait for it.
    import aiohttp
    from botocore import exceptions

    try:
        yield fsspec.filesystem("s3", use_listings_cache=False)
    except (exceptions.ConnectionError, exceptions.HTTPClientError, aiohttp.ClientError):
        raise UnreachableError(f"{uri}: S3 does not answer; check the network and AWS_ENDPOINT_URL.") from None
    except exceptions.ParamValidationError:
        raise InputError(f"{uri!r} is no name that S3 allows; give s3://bucket/key.") from None
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.ProfileNotFound,
    ) as error:
        raise InputError(
            f"{uri} cannot be used without credentials ({type(error).__name__}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        ) from None
    except ValueError as error:
        if not str(error).startswith("Invalid endpoint"):
            raise
        raise InputError(f"{uri} cannot be reached: AWS_ENDPOINT_URL is no address; correct or unset it.") from None
    except OSError as error:
        told = _told(uri, _code(error), isinstance(error, PermissionError))
        if told is None:
            raise
        raise told from None


def _told(uri: str, code: str, is_forbidden: bool) -> InputError | UnreachableError | None:
    """The error for S3's answer `code`, if it is not one about the object itself."""
    if code == "NoSuchBucket":
        bucket = uri.removeprefix(_S3).partition("/")[0]
        return InputError(f"{uri}: there is no bucket {bucket!r}; make it, or correct the name or AWS_ENDPOINT_URL.")
    if code in _BAD_CREDENTIALS:
        return InputError(f"{uri}: S3 refuses the credentials ({code}); correct the AWS_* environment variables.")
    if code and is_forbidden:
        return InputError(f"{uri}: S3 does not allow it ({code}); give these credentials the right, or use others.")
    if code in _OVERLOADED:
        return UnreachableError(f"{uri}: S3 cannot answer now ({code}); try again later.")
    return None


def _code(error: OSError) -> str:
    """S3's error code behind an error of s3fs; empty if there is none."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _create_object(system: Any, uri: str, data: bytes) -> None:
    """Of creators at the same moment, S3 may refuse all but ask them to try again."""
    for attempt in range(_CREATE_ATTEMPTS):
        try:
            system.pipe_file(uri, data, mode="create")
            return
        except OSError as error:
            if _code(error) != "ConditionalRequestConflict" or attempt == _CREATE_ATTEMPTS - 1:
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
