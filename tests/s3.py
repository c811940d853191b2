"""An imitation of S3 on this machine, for tests: moto's server in a thread, with a bucket and dummy credentials."""

import contextlib
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "clips"
SECRET = "dummy-secret-of-the-tests"
KEY = "dummy-key-of-the-tests"


@contextlib.contextmanager
def s3_bucket() -> Iterator[str]:
    """Meanwhile, s3:// leads to an empty bucket of this machine, here and in processes started here; gives its URI.

    The server keeps everything in memory. The environment and fsspec's connections are put back afterwards.
    """
    import boto3  # These take a second, which only the tests of S3 should wait for.
    from moto.server import ThreadedMotoServer

    # It would write a line per request on standard error.
    logger = logging.getLogger("werkzeug")
    level = logger.level
    logger.setLevel(logging.ERROR)
    server = ThreadedMotoServer("localhost", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch, fresh_connections():
            set_credentials(patch, f"http://{host}:{port}")
            # All servers of a process share what they keep.
            urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield f"s3://{BUCKET}"
    finally:
        server.stop()
        logger.setLevel(level)


def set_credentials(patch: pytest.MonkeyPatch, endpoint: str, *, key: str | None = KEY) -> None:
    """The environment of someone who uses the server at `endpoint`; key None: without credentials of any kind."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(name, raising=False)
    if key is not None:
        patch.setenv("AWS_ACCESS_KEY_ID", key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # Nothing from the home directory of whoever runs the tests, and no question to a cloud machine's own service.
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        patch.setenv(name, str(Path("/dev/null")))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@contextlib.contextmanager
def fresh_connections() -> Iterator[None]:
    """fsspec keeps the connections of a process, with their endpoint and credentials: meanwhile, new ones are made."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_cache", {})
        yield


class Proxy:
    """A wire to the server at `address`, on a port of its own, that can be cut."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._listener = socket.create_server(("localhost", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = {self._listener}
        self._lost_answers = 0
        self._listen()

    def refuse(self) -> None:
        """From now on connections are refused; those that stand are cut."""
        for end in list(self._sockets):
            self._close(end)

    def accept(self) -> None:
        """Connections are accepted again."""
        self._listener = socket.create_server(("localhost", self.port))
        self._sockets.add(self._listener)
        self._listen()

    def lose_answers(self, number: int) -> None:
        """The next `number` answers are lost, with their connections: the requests have been carried out."""
        self._lost_answers = number

    def _listen(self) -> None:
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._address)
                self._sockets |= {near, far}
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # an end was closed
            while data := source.recv(65536):
                if source.getpeername()[1] == self._address[1] and self._lost_answers:
                    self._lost_answers -= 1
                    break
                target.sendall(data)
        self._close(source)
        self._close(target)

    def _close(self, end: socket.socket) -> None:
        self._sockets.discard(end)
        with contextlib.suppress(OSError):  # it may not be connected any more
            end.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
        end.close()


@contextlib.contextmanager
def proxied() -> Iterator[Proxy]:
    """Meanwhile, s3:// leads to the bucket of `s3_bucket` through a proxy."""
    address = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert address.hostname is not None
    assert address.port is not None
    proxy = Proxy((address.hostname, address.port))
    with pytest.MonkeyPatch.context() as patch, fresh_connections():
        patch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{proxy.port}")
        try:
            yield proxy
        finally:
            proxy.refuse()
