import hashlib
import os
import threading
from pathlib import Path

import pytest

from data_prep import storage
from data_prep.storage import InputError


def test_write_read_and_digest(tmp_path: Path) -> None:
    uri = storage.join(str(tmp_path), "a", "b.bin")
    assert storage.write(uri, b"content") == hashlib.sha256(b"content").hexdigest()
    assert storage.read(uri) == b"content"
    assert storage.write(uri, b"") == hashlib.sha256(b"").hexdigest()
    assert storage.read(uri) == b""


def test_read_of_a_missing_object_raises(tmp_path: Path) -> None:
    assert not storage.exists(str(tmp_path / "no"))
    with pytest.raises(FileNotFoundError):
        storage.read(str(tmp_path / "no"))


def test_create_leaves_a_standing_object_as_it_is(tmp_path: Path) -> None:
    uri = str(tmp_path / "claim")
    assert storage.create(uri, b"first") == hashlib.sha256(b"first").hexdigest()
    with pytest.raises(FileExistsError):
        storage.create(uri, b"second")
    assert storage.read(uri) == b"first"
    assert os.listdir(tmp_path) == ["claim"]


def test_of_racing_creators_exactly_one_wins_with_its_whole_object(tmp_path: Path) -> None:
    num_threads, num_rounds = 8, 20
    barrier = threading.Barrier(num_threads)
    winners: list[tuple[int, int]] = []

    def race(thread: int) -> None:
        for number in range(num_rounds):
            barrier.wait()
            try:
                storage.create(str(tmp_path / str(number)), bytes([thread]) * 100_000)
            except FileExistsError:
                continue
            winners.append((number, thread))

    threads = [threading.Thread(target=race, args=(index,)) for index in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in winners) == list(range(num_rounds))
    assert storage.list(str(tmp_path)) == sorted(str(number) for number in range(num_rounds))
    for number, thread in winners:
        assert storage.read(str(tmp_path / str(number))) == bytes([thread]) * 100_000


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


def test_a_reader_sees_only_whole_objects_while_they_are_replaced(tmp_path: Path) -> None:
    uri = str(tmp_path / "object")
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


def test_list_is_sorted_relative_recursive_and_without_writes_in_progress(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a/.hidden", "a/c/d"):
        storage.write(str(tmp_path / name), b"")
    (tmp_path / "a" / ".b.0123.tmp").write_bytes(b"part")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert storage.list(str(tmp_path)) == ["a/.hidden", "a/c/d", "a/z", "b", "loop"]
    assert storage.list(str(tmp_path / "nowhere")) == []


def test_delete(tmp_path: Path) -> None:
    uri = str(tmp_path / "object")
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
