"""A clip's file, opened by its URI: all that touches paths, buckets and credentials, so that decoding need not."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from data_prep import storage
from data_prep.rejects import RejectedError, RejectReason

_CHUNK_BYTES = 1 << 20


@contextmanager
def open_descriptor(uri: str) -> Iterator[int]:
    """A descriptor of the file at a local path or s3:// URI, for reading at any place; closed on leaving.

    An object of a bucket is copied into memory first. Raises RejectedError: missing, or unreadable if it may not be
    read or is no regular file. A bucket that does not answer is no fault of the clip: its error is left as it is.
    """
    is_object = uri.startswith("s3://")
    with _memory_file() if is_object else _opened(uri) as file:
        if is_object:
            _copy(uri, file)
        yield file.fileno()


def _opened(path: str) -> BinaryIO:
    try:
        # A pipe would wait for a writer for ever; O_NONBLOCK opens it at once, and changes nothing for a file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise _missing() from error
    except OSError as error:
        raise _not_opened(error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RejectedError(RejectReason.UNREADABLE, "it is no regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def _copy(uri: str, file: BinaryIO) -> None:
    try:
        with storage.reader(uri) as reader:
            shutil.copyfileobj(reader, file, _CHUNK_BYTES)
    except FileNotFoundError as error:
        raise _missing() from error
    except PermissionError as error:
        raise _not_opened(error) from error


def _memory_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("clip"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _missing() -> RejectedError:
    return RejectedError(RejectReason.MISSING, "the file does not exist")


def _not_opened(error: OSError) -> RejectedError:
    return RejectedError(RejectReason.UNREADABLE, f"opening failed: {error.strerror or error}")
