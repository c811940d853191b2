"""What goes wrong with storage, in our words: the errors of `data_prep.storage`, which is where to import them from."""

import contextlib
import errno
from collections.abc import Iterator

S3 = "s3://"
_BAD_CREDENTIALS = (
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
)
"""S3's error codes that say that the credentials themselves are wrong, whatever they are used for."""
_PASSING = ("ExpiredToken", "RequestTimeTooSkewed", "TokenRefreshRequired")
"""Those of them that temporary credentials and clocks get over: new ones are on their way."""
_OVERLOADED = (
    "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
    "ThrottlingException", "TooManyRequests", "429", "500", "502", "503", "504",
)  # fmt: skip
"""S3's error codes that say that it cannot answer now, after all attempts."""
_FULL = (
    "InsufficientCapacity", "InsufficientStorage", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull", "507",
)  # fmt: skip
"""Error codes of S3, and of servers that speak its language, that say that there is no room."""
_NO_SPACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_NO_ANSWER = (
    errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET,
    errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
)  # fmt: skip
"""What a disk that is mounted over the network says while its server is away, and a broken one for good."""


class InputError(ValueError):
    """Wrong input from a user: one sentence naming the file or field, the value, and the way out."""


class CredentialsError(InputError):
    """Credentials that are missing or expired now: wrong input, unless it has worked before and comes back soon."""


class UnreachableError(RuntimeError):
    """Storage does not answer, or not now; the same call may succeed later."""


class NoSpaceError(RuntimeError):
    """The disk, or a quota, is full: one sentence with the way out."""


@contextlib.contextmanager
def local_errors(uri: str) -> Iterator[None]:
    """Errors of a disk that is full or does not answer, in our words; others stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpaceError(
                f"{uri} cannot be written, {_NO_SPACE[error.errno]}; free some space, then run it again with --resume."
            ) from None
        if error.errno in _NO_ANSWER:
            raise UnreachableError(
                f"{uri}: the disk does not answer ({error.strerror}); check that it is mounted and whole."
            ) from None
        raise


def raise_if_silent(error: OSError) -> None:
    """Raise `error` if it says that a local disk does not answer, and so tells nothing about the object."""
    if error.errno in _NO_ANSWER:
        raise error


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Errors of s3fs and what is below it, in our words; those about the object itself stay what they are."""
    # s3fs, which takes a second to load, loads them too: local paths need not wait for it.
    import aiohttp
    from botocore import exceptions, parsers

    try:
        yield
    except (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        parsers.ResponseParserError,
        aiohttp.ClientError,
        ConnectionError,
    ):
        raise _silent(uri) from None
    except exceptions.ParamValidationError:
        raise InputError(f"{uri!r} is no name that S3 allows; give s3://bucket/key.") from None
    except (exceptions.NoCredentialsError, exceptions.CredentialRetrievalError) as error:
        # From a machine's own service, which may fail for a moment.
        raise CredentialsError(_without_credentials(uri, error)) from None
    except (exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
        raise InputError(_without_credentials(uri, error)) from None
    except ValueError as error:
        if not str(error).startswith("Invalid endpoint"):
            raise
        raise InputError(f"{uri} cannot be reached: AWS_ENDPOINT_URL is no address; correct or unset it.") from None
    except OSError as error:
        told = _told(uri, error)
        if told is None:
            raise
        raise told from None


def s3_code(error: OSError) -> str:
    """S3's error code behind an error of s3fs; empty if there is none."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _without_credentials(uri: str, error: Exception) -> str:
    return (
        f"{uri} cannot be used without credentials ({type(error).__name__}); set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    )


def _silent(uri: str) -> UnreachableError:
    return UnreachableError(f"{uri}: S3 does not answer; check the network and AWS_ENDPOINT_URL.")


def _told(uri: str, error: OSError) -> InputError | UnreachableError | NoSpaceError | None:
    """The error in our words, if it is not one about the object itself."""
    code = s3_code(error)
    if code == "NoSuchBucket":
        bucket = uri.removeprefix(S3).partition("/")[0]
        return InputError(f"{uri}: there is no bucket {bucket!r}; make it, or correct the name or AWS_ENDPOINT_URL.")
    if code in _BAD_CREDENTIALS:
        kind = CredentialsError if code in _PASSING else InputError
        return kind(f"{uri}: S3 refuses the credentials ({code}); correct the AWS_* environment variables.")
    if code in _FULL:
        return NoSpaceError(
            f"{uri} cannot be written, the storage is full ({code}); free some space or raise the quota, then run it "
            "again with --resume."
        )
    if code and isinstance(error, PermissionError):
        return InputError(f"{uri}: S3 does not allow it ({code}); give these credentials the right, or use others.")
    if code in _OVERLOADED:
        return UnreachableError(f"{uri}: S3 cannot answer now ({code}); try again later.")
    # Without an answer of S3 behind it: s3fs's own time-out.
    return _silent(uri) if isinstance(error, TimeoutError) else None
