"""What holds for objects wherever they are (`place` is a local folder and a prefix on S3), and for local files."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError
from tests.s3 import s3_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as uri:
        yield uri


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty folder of the test's own."""
    return str(tmp_path) if request.param == "local" else storage.join(request.getfixturevalue("bucket"), tmp_path.name)


def test_write_read_and_digest(place: str) -> None:
    uri = storage.join(place, "a", "b.bin")
    assert storage.write(uri, b"content") == hashlib.sha256(b"content").hexdigest()
    assert storage.read(uri) == b"content"
    assert storage.write(uri, b"") == hashlib.sha256(b"").hexdigest()
    assert storage.read(uri) == b""


def test_a_missing_object_is_not_found(place: str) -> None:
    storage.write(storage.join(place, "other"), b"x")
    for uri in (storage.join(place, "oth"), storage.join(place, "other2"), storage.join(place, "a", "b")):
        assert not storage.exists(uri)
        with pytest.raises(FileNotFoundError):
            storage.read(uri)
        with pytest.raises(FileNotFoundError), storage.reader(uri):
            pass


def test_exists_is_true_of_an_object_and_of_all_above_it(place: str) -> None:
    storage.write(storage.join(place, "a", "b", "c"), b"x")
    assert all(storage.exists(storage.join(place, *parts)) for parts in ((), ("a",), ("a", "b"), ("a", "b", "c")))
    assert not storage.exists(storage.join(place, "a", "b", "c", "d"))


def test_reader_reads_at_any_place(place: str) -> None:
    uri = storage.join(place, "object")
    content = bytes(range(256)) * 4000
    storage.write(uri, content)
    with storage.reader(uri) as file:
        assert file.read(3) == content[:3]
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]
        file.seek(500_000)
        assert file.read(1000) == content[500_000:501_000]


def test_errors_of_who_reads_from_a_reader_stay_what_they_are(place: str) -> None:
    uri = storage.join(place, "object")
    storage.write(uri, b"x")
    for error in (ValueError("of the caller"), InputError("of the caller."), FileNotFoundError("of the caller")):
        with pytest.raises(type(error), match="of the caller"), storage.reader(uri):
            raise error


def test_create_leaves_a_standing_object_as_it_is(place: str) -> None:
    uri = storage.join(place, "claim")
    assert storage.create(uri, b"first") == hashlib.sha256(b"first").hexdigest()
    with pytest.raises(FileExistsError):
        storage.create(uri, b"second")
    assert storage.read(uri) == b"first"
    assert storage.list(place) == ["claim"]


def test_of_racing_creators_exactly_one_wins_with_its_whole_object(place: str) -> None:
    num_threads, num_rounds = 8, 8
    barrier = threading.Barrier(num_threads)
    winners: list[tuple[int, int]] = []

    def race(thread: int) -> None:
        for number in range(num_rounds):
            barrier.wait()
            try:
                storage.create(storage.join(place, str(number)), bytes([thread]) * 100_000)
            except FileExistsError:
                continue
            winners.append((number, thread))

    threads = [threading.Thread(target=race, args=(index,)) for index in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in winners) == list(range(num_rounds))
    assert storage.list(place) == sorted(str(number) for number in range(num_rounds))
    for number, thread in winners:
        assert storage.read(storage.join(place, str(number))) == bytes([thread]) * 100_000


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_object_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    uri = str(tmp_path / "object")
    storage.write(uri, b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.write(uri, b"new")
    assert storage.read(uri) == b"old"
    assert os.listdir(tmp_path) == ["object"]


def test_a_reader_sees_only_whole_objects_while_they_are_replaced(place: str) -> None:
    uri = storage.join(place, "object")
    storage.write(uri, b"0" * 50_000)
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(storage.read(uri))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        storage.write(uri, str(number % 10).encode() * 50_000)
    done.set()
    reader.join()
    assert {content[:1] * 50_000 for content in seen} == seen


def test_list_is_sorted_relative_and_of_no_neighbour(place: str) -> None:
    names = ["b", "a/z", "a/.hidden", "a/c/d", "a b/ü ☃%20#?&+=;'.mp4", "A/1", "a-b"]
    for name in names:
        storage.write(storage.join(place, name), name.encode())
    storage.write(place.rstrip("/") + "-neighbour/object", b"")
    assert storage.list(place) == sorted(names)
    assert storage.list(storage.join(place, "a")) == [".hidden", "c/d", "z"]
    assert storage.list(place + "/") == sorted(names)
    assert storage.list(storage.join(place, "b")) == []
    assert storage.list(storage.join(place, "nowhere")) == []
    assert [storage.read(storage.join(place, name)).decode() for name in names] == names


def test_local_list_follows_no_link_and_is_without_writes_in_progress(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a/.hidden"):
        storage.write(str(tmp_path / name), b"")
    (tmp_path / "a" / ".b.0123.tmp").write_bytes(b"part")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert storage.list(str(tmp_path)) == ["a/.hidden", "a/z", "b", "loop"]


def test_delete(place: str) -> None:
    uri = storage.join(place, "object")
    storage.write(uri, b"x")
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_long_names_can_be_written(tmp_path: Path) -> None:
    uri = str(tmp_path / ("n" * 255))
    storage.write(uri, b"x")
    assert storage.list(str(tmp_path)) == ["n" * 255]


def test_unknown_scheme_and_file_in_the_way_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'gs://bucket/x' has an unknown scheme; give a local path or s3://"):
        storage.read("gs://bucket/x")
    storage.write(str(tmp_path / "file"), b"")
    with pytest.raises(InputError, match="a file stands in its way; give another path"):
        storage.write(str(tmp_path / "file" / "below"), b"")


def test_join_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.join("s3://bucket/run/", "points", "0") == "s3://bucket/run/points/0"
    assert storage.join("/", "a") == "/a"
    assert storage.absolute("s3://bucket/run") == "s3://bucket/run"
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("run/") == str(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["makedirs", "fsync", "replace", "link"])
def test_a_full_disk_is_told_and_keeps_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    uri = str(tmp_path / "object")
    use = storage.create if step == "link" else storage.write
    if step != "link":
        storage.write(uri, b"old")
    before = os.listdir(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(NoSpaceError, match=r"object cannot be written, the disk .*; free some space, then run it"):
            use(uri, b"new")
    assert os.listdir(tmp_path) == before
    use(uri, b"new")
    assert storage.read(uri) == b"new"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_does_not_answer_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    uri = str(tmp_path / "object")
    storage.write(uri, b"x")

    def silent(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for step in ("stat", "scandir", "fsync", "replace", "link", "unlink"):
        monkeypatch.setattr(os, step, silent)
    monkeypatch.setattr("builtins.open", silent)
    uses = [
        lambda: storage.read(uri),
        lambda: storage.reader(uri).__enter__(),
        lambda: storage.exists(uri),
        lambda: storage.list(str(tmp_path)),
        lambda: storage.write(uri, b"y"),
        lambda: storage.create(uri, b"y"),
        lambda: storage.delete(uri),
    ]
    with storage.patient(0):
        for use in uses:
            with pytest.raises(UnreachableError, match=r"the disk does not answer \(.*\); check that it is mounted"):
                use()


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        storage.read(str(tmp_path))
    assert not storage.exists(str(tmp_path / ("n" * 300)))
