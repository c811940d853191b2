"""What is S3's own: pages of listings, folders that other tools leave, one sentence for what the user set wrongly."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import pytest
from botocore.exceptions import ClientError

from data_prep import storage
from data_prep.storage import InputError, NoSpaceError, UnreachableError
from tests.s3 import BUCKET, KEY, SECRET, Proxy, fresh_connections, proxied, s3_bucket, set_credentials


@pytest.fixture(autouse=True)
def _once() -> Iterator[None]:
    """What does not answer is asked once: the tests of patience are elsewhere."""
    with storage.patient(0):
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_bucket() as uri:
        yield uri


@pytest.fixture
def bucket(server: str) -> str:
    for name in storage.list(server):
        storage.delete(storage.join(server, name))
    return server


def calls(uri: str) -> dict[str, Callable[[], object]]:
    """Every use that can be made of an object."""

    def read_some() -> bytes:
        with storage.reader(uri) as file:
            return file.read(1)

    return {
        "read": lambda: storage.read(uri),
        "reader": read_some,
        "list": lambda: storage.list(uri),
        "write": lambda: storage.write(uri, b"x"),
        "create": lambda: storage.create(uri, b"x"),
        "delete": lambda: storage.delete(uri),
    }


def sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message, which is one sentence, and names neither credentials nor the endpoint."""
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    for hidden in (SECRET, KEY, os.environ["AWS_ENDPOINT_URL"]):
        assert hidden not in message
    # Nor does what Python would print with it.
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__
    return message


def test_listings_are_whole_though_s3_gives_them_in_pages(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # S3 gives 1,000 at a time.
    names = [f"{number % 3}/{number:02}" for number in range(35)]
    for name in names:
        storage.write(storage.join(bucket, name), b"")
    answer = boto3.client("s3").list_objects_v2(Bucket=BUCKET)
    assert (answer["KeyCount"], answer["IsTruncated"]) == (10, True)
    assert storage.list(bucket) == sorted(names)
    assert storage.list(storage.join(bucket, "1")) == sorted(name[2:] for name in names if name[0] == "1")


def test_objects_that_stand_for_folders_are_no_objects(bucket: str) -> None:
    client = boto3.client("s3")
    for key in ("data/", "data/A/", "data/A/clip.mp4"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")
    assert storage.list(storage.join(bucket, "data")) == ["A/clip.mp4"]
    assert storage.list(bucket) == ["data/A/clip.mp4"]


def test_what_others_write_is_seen_at_once(bucket: str) -> None:
    client, uri = boto3.client("s3"), storage.join(bucket, "run", "object")
    assert not storage.exists(uri)
    assert storage.list(bucket) == []
    client.put_object(Bucket=BUCKET, Key="run/object", Body=b"theirs")
    assert storage.exists(uri)
    assert storage.list(bucket) == ["run/object"]
    assert storage.read(uri) == b"theirs"
    client.put_object(Bucket=BUCKET, Key="run/object", Body=b"newer")
    with storage.reader(uri) as file:
        assert file.read() == b"newer"


def test_a_large_object_is_read_as_it_was_at_one_moment(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # s3fs would fetch an object larger than a block in several requests, here 20 of them.
    monkeypatch.setattr(storage._file_system(), "default_block_size", 1000)
    uri, done = storage.join(bucket, "object"), threading.Event()
    contents = [bytes([number]) * 20_000 for number in range(4)]
    storage.write(uri, contents[0])

    def replace() -> None:
        for content in itertools.cycle(contents):
            if done.is_set():
                return
            storage.write(uri, content)

    writer = threading.Thread(target=replace)
    writer.start()
    seen = {storage.read(uri) for _ in range(30)}
    done.set()
    writer.join()
    assert seen <= set(contents)


def test_creation_is_tried_again_where_s3_asks_for_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As S3 answers a conditional write that meets another one of the same object.
    answers = ["ConditionalRequestConflict", "ConditionalRequestConflict"]
    system = storage._file_system(once=True)
    put = system.pipe_file

    def busy(*arguments: Any, **options: Any) -> Any:
        if answers:
            cause = ClientError({"Error": {"Code": answers.pop(), "Message": "busy"}}, "PutObject")
            raise OSError("busy") from cause
        return put(*arguments, **options)

    monkeypatch.setattr(system, "pipe_file", busy)
    storage.create(storage.join(bucket, "claim"), b"mine")
    assert answers == []
    with pytest.raises(FileExistsError):
        storage.create(storage.join(bucket, "claim"), b"other")
    answers.append("InternalError")
    with pytest.raises(UnreachableError, match=r"S3 cannot answer now \(InternalError\)"):
        storage.create(storage.join(bucket, "claim2"), b"mine")
    assert storage.list(bucket) == ["claim"]


@pytest.mark.parametrize("use", calls(""))
def test_a_bucket_that_is_not_there_is_named(bucket: str, use: str) -> None:
    with pytest.raises(InputError, match=r"^s3://nowhere/a: there is no bucket 'nowhere'; make it") as error:
        calls("s3://nowhere/a")[use]()
    sentence(error)
    assert not storage.exists("s3://nowhere/a")


def test_missing_credentials_are_said_in_one_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch, os.environ["AWS_ENDPOINT_URL"], key=None)
    uri = storage.join(bucket, "a")
    with fresh_connections():
        for use in [*calls(uri).values(), lambda: storage.exists(uri)]:
            with pytest.raises(InputError, match=r"credentials .*; set AWS_ACCESS_KEY_ID and") as error:
                use()
            sentence(error)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_credentials_that_are_refused_are_no_fault_of_the_object(
    bucket: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        cause = ClientError({"Error": {"Code": code, "Message": f"not {KEY}"}}, "GetObject")
        raise PermissionError(f"not {KEY}") from cause

    monkeypatch.setattr(storage._file_system(), "cat_file", refuse)
    with pytest.raises(InputError, match=rf"S3 refuses the credentials \({code}\); correct the AWS_\*") as error:
        storage.read(storage.join(bucket, "a"))
    sentence(error)


@pytest.mark.parametrize(
    ("raised", "code", "kind", "words"),
    [
        (PermissionError("no"), "AccessDenied", InputError, r"S3 does not allow it \(AccessDenied\); give these"),
        (PermissionError("no"), "403", InputError, r"S3 does not allow it \(403\); give these"),
        (OSError("no"), "SlowDown", UnreachableError, r"S3 cannot answer now \(SlowDown\); try again later"),
        (OSError("no"), "503", UnreachableError, r"S3 cannot answer now \(503\); try again later"),
        (OSError("no"), "504", UnreachableError, r"S3 cannot answer now \(504\); try again later"),
        (PermissionError("no"), "QuotaExceeded", NoSpaceError, r"the storage is full \(QuotaExceeded\); free some"),
        (OSError("no"), "XMinioStorageFull", NoSpaceError, r"the storage is full \(XMinioStorageFull\); free some"),
        (TimeoutError("no"), "", UnreachableError, "S3 does not answer; check the network"),
        (ConnectionResetError("no"), "", UnreachableError, "S3 does not answer; check the network"),
        (aiohttp.ClientPayloadError("cut"), "", UnreachableError, "S3 does not answer; check the network"),
    ],
)
def test_answers_that_are_not_about_the_object(
    bucket: str, monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str, kind: type[Exception], words: str
) -> None:
    def answer(*_: Any, **__: Any) -> Any:
        raise raised from ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject")

    system = storage._file_system()
    monkeypatch.setattr(system, "cat_file", answer)
    monkeypatch.setattr(system, "open", answer)
    for use in ("read", "reader"):
        with pytest.raises(kind, match=words) as error:
            calls(storage.join(bucket, "a"))[use]()
        sentence(error)


def test_half_credentials_unknown_profile_and_a_wrong_endpoint(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(bucket, "a")
    for name, value, words in (
        ("AWS_PROFILE", "nobody", "without credentials"),
        ("AWS_SECRET_ACCESS_KEY", None, "without credentials"),
        ("AWS_ENDPOINT_URL", "a-secret-place", "AWS_ENDPOINT_URL is no address; correct or unset it"),
    ):
        with monkeypatch.context() as patch:
            patch.delenv(name) if value is None else patch.setenv(name, value)
            with fresh_connections(), pytest.raises(InputError, match=words) as error:
                storage.read(uri)
            sentence(error)


def test_an_endpoint_that_does_not_answer_is_no_wrong_input(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # It would go on for seconds.
    set_credentials(monkeypatch, "http://localhost:1")  # Nothing listens on port 1.
    with fresh_connections(), pytest.raises(UnreachableError, match=r"S3 does not answer") as error:
        storage.read(storage.join(bucket, "a"))
    sentence(error)


def test_credentials_that_come_back_are_used(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a machine whose own service hiccups, or of a file that is written anew."""
    uri = storage.join(bucket, "a")
    storage.write(uri, b"x")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def come_back(_: float) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    with fresh_connections(), storage.patient(300, clock=lambda: 0.0, sleep=come_back, say=lambda _: None):
        assert storage.read(uri) == b"x"


class OutageClock:
    """A clock that moves only while somebody sleeps; the wire is cut until it shows 60 s."""

    def __init__(self, proxy: Proxy) -> None:
        self.now, self._proxy = 0.0, proxy
        proxy.refuse()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if self.now < 60 <= self.now + seconds:
            self._proxy.accept()
        self.now += seconds


def test_an_outage_of_a_minute_is_waited_for(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that stand are cut, new ones refused; each use ends as on a quiet day."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # The clock is a fake, but botocore's pauses are not.
    lines: list[str] = []
    with proxied() as proxy:
        storage.write(storage.join(bucket, "a"), b"x")
        for use in ("read", "reader", "list", "write", "delete", "create"):
            clock = OutageClock(proxy)
            with storage.patient(300, clock=clock, sleep=clock.sleep, say=lines.append):
                calls(storage.join(bucket, "a"))[use]()
            assert 60 <= clock.now < 75
    assert storage.read(storage.join(bucket, "a")) == b"x"
    assert len(lines) == 12


def test_a_creation_whose_answer_was_lost_has_succeeded(bucket: str) -> None:
    """The request arrives, its answer does not: what was created is the creator's, and nobody else's."""
    uri = storage.join(bucket, "claim")
    with proxied() as proxy:
        for number in range(3):
            proxy.lose_answers(1)
            with storage.patient(300, clock=lambda: 0.0, sleep=lambda _: None, say=lambda _: None):
                if number == 0:
                    storage.create(uri, b"mine")
                else:
                    with pytest.raises(FileExistsError):
                        storage.create(uri, b"other")
            with pytest.raises(FileExistsError):
                storage.create(uri, b"mine")
    assert storage.read(uri) == b"mine"


@pytest.mark.parametrize("uri", ["s3://", f"s3://{BUCKET}", f"s3://{BUCKET}/"])
def test_a_bucket_is_no_object(bucket: str, uri: str) -> None:
    for use in ("read", "reader", "write", "create", "delete"):
        with pytest.raises(InputError, match=r"names no object of a bucket; give s3://bucket/key"):
            calls(uri)[use]()


def test_names_that_s3_does_not_allow(bucket: str) -> None:
    with pytest.raises(InputError, match=r"is no name that S3 allows") as error:
        storage.write("s3://no bucket!/a", b"")
    sentence(error)


def test_local_paths_do_not_load_what_s3_needs(repository: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from data_prep import storage; uri = sys.argv[1]; storage.write(uri, b''); storage.read(uri);"
        "storage.list(uri); sys.exit(bool({'s3fs', 'botocore', 'aiohttp'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "object")]
    assert subprocess.run(command, cwd=repository, timeout=60).returncode == 0
