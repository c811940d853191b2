import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from data_prep import storage
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


def test_a_bucket_that_fails_is_no_fault_of_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {"s3://b/forbidden": PermissionError("Access Denied"), "s3://b/down": ConnectionError("no route")}
    monkeypatch.setattr(storage, "reader", Bucket(objects).reader)
    error = rejected("s3://b/forbidden")
    assert (error.reason, error.detail) == (RejectReason.UNREADABLE, "opening failed: Access Denied")
    with pytest.raises(ConnectionError), open_descriptor("s3://b/down"):
        pass


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in ("/dev/zero", str(tmp_path), str(tmp_path / "pipe.mp4")):
        error = rejected(path)
        assert (error.reason, error.detail) == (RejectReason.UNREADABLE, "it is no regular file")
    assert rejected(str(tmp_path / "no.mp4")).reason is RejectReason.MISSING
    (tmp_path / "file").touch()
    assert rejected(str(tmp_path / "file" / "clip.mp4")).detail == "opening failed: Not a directory"
