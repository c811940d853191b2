import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from data_prep import media_file, storage
from data_prep.media_file import open_descriptor
from data_prep.rejects import RejectedError, RejectReason


def rejected(uri: str) -> RejectedError:
    with pytest.raises(RejectedError) as info, open_descriptor(uri):
        pass
    return info.value


class Bucket:
    """Stands for storage.reader: objects by URI, or the error that reading them raises."""

    def __init__(self, objects: dict[str, bytes | Exception]) -> None:
        self.objects = objects
        self.most_read = 0

    @contextlib.contextmanager
    def reader(self, uri: str) -> Iterator[BinaryIO]:
        if uri not in self.objects:
            raise FileNotFoundError(uri)
        if isinstance(data := self.objects[uri], Exception):
            raise data
        file = io.BytesIO(data)
        read = file.read

        def watched(size: int = -1) -> bytes:
            part = read(size)
            self.most_read = max(self.most_read, len(part))
            return part

        file.read = watched  # type: ignore[method-assign]
        yield file


def test_a_local_file_is_open_for_reading_only_and_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"0123456789")
    with open_descriptor(str(path)) as descriptor:
        assert os.pread(descriptor, 4, 3) == b"3456"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_an_object_is_copied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 20_000
    bucket = Bucket({"s3://bucket/clip.mp4": data})
    monkeypatch.setattr(storage, "reader", bucket.reader)
    with open_descriptor("s3://bucket/clip.mp4") as descriptor:
        assert os.fstat(descriptor).st_size == len(data)
        assert os.pread(descriptor, len(data), 0) == data
    assert bucket.most_read <= 1 << 20
    assert rejected("s3://bucket/other.mp4").reason is RejectReason.MISSING


def test_a_large_object_goes_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 8
    monkeypatch.setattr(storage, "reader", Bucket({"s3://b/small": data[:-1], "s3://b/large": data}).reader)
    monkeypatch.setattr(media_file, "_MOST_IN_MEMORY", len(data) - 1)
    for name, is_in_memory in (("small", True), ("large", False)):
        with open_descriptor(f"s3://b/{name}") as descriptor:
            assert os.pread(descriptor, 1 << 20, 0) == data[: len(data) - is_in_memory]
            assert os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:") == is_in_memory


def test_a_bucket_or_machine_that_fails_is_no_fault_of_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [storage.InputError("not allowed"), storage.UnreachableError("down"), OSError(errno.ENOSPC, "full")]
    monkeypatch.setattr(storage, "reader", Bucket({f"s3://b/{type(item)}": item for item in errors}).reader)
    for error in errors:
        with pytest.raises(type(error), match=str(error.args[-1])), open_descriptor(f"s3://b/{type(error)}"):
            pass


def opening(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Lets every opening fail with this errno."""

    def fail(path: str, _: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN])
def test_what_the_machine_lacks_is_not_said_of_the_clip(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with monkeypatch.context() as patch:
        opening(patch, number)
        with pytest.raises(OSError, match=os.strerror(number)), open_descriptor("/clips/clip.mp4"):
            pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO])
def test_a_path_that_may_not_be_opened_is_unreadable(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with monkeypatch.context() as patch:
        opening(patch, number)
        error = rejected("/clips/clip.mp4")
    assert (error.reason, error.detail) == (RejectReason.UNREADABLE, f"opening failed: {os.strerror(number)}")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in ("/dev/zero", str(tmp_path), str(tmp_path / "pipe.mp4")):
        error = rejected(path)
        assert (error.reason, error.detail) == (RejectReason.UNREADABLE, "it is no regular file")
    (tmp_path / "file").touch()
    for name in ("no.mp4", "file/clip.mp4"):
        assert rejected(str(tmp_path / name)).reason is RejectReason.MISSING
