"""An imitation of S3 on this machine, for tests: moto's server in a thread, with a bucket and dummy credentials."""

import contextlib
import logging
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
