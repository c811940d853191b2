"""A clip's file, opened by its URI: all that touches paths, buckets and credentials, so that decoding need not."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from data_prep import storage
from data_prep.rejects import RejectedError, RejectReason, unreadable

_CHUNK_BYTES = 1 << 20
_MOST_IN_MEMORY = 1 << 30
"""A larger object goes to a temporary file on disk: as many of them may be open as there are processes."""
_OF_THE_PATH = (errno.EACCES, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO, errno.EPERM)
"""Errors by which a path itself cannot be opened. Others, such as too many open files, are the machine's."""


@contextmanager
def open_descriptor(uri: str) -> Iterator[int]:
    """A descriptor of the file at a local path or s3:// URI, for reading at any place; closed on leaving.

    An object of a bucket is copied first. Raises RejectedError: missing, or unreadable if the path may not be read or
    is no regular file. A machine or bucket that fails is no fault of the clip: OSError and the errors of `storage`.
    """
    with _copied(uri) if uri.startswith("s3://") else _opened(uri) as file:
        yield file.fileno()


def _opened(path: str) -> BinaryIO:
    try:
        # A pipe would wait for a writer for ever; O_NONBLOCK opens it at once, and changes nothing for a file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing() from error
    except OSError as error:
        if error.errno not in _OF_THE_PATH:
            raise
        raise unreadable(f"opening failed: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise unreadable("it is no regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


@contextmanager
def _copied(uri: str) -> Iterator[BinaryIO]:
    try:
        with storage.reader(uri) as reader:
            size = reader.seek(0, os.SEEK_END)
            reader.seek(0)
            file = _empty_file(size)
            try:
                shutil.copyfileobj(reader, file, _CHUNK_BYTES)
                file.flush()
            except BaseException:
                file.close()
                raise
    except FileNotFoundError as error:
        raise _missing() from error
    with file:
        yield file


def _empty_file(size: int) -> BinaryIO:
    """For `size` bytes: in memory, or, if they are many, on disk, without a name."""
    if size > _MOST_IN_MEMORY:
        return tempfile.TemporaryFile()
    return os.fdopen(os.memfd_create("clip"), "w+b")


def _missing() -> RejectedError:
    return RejectedError(RejectReason.MISSING, "the file does not exist")
