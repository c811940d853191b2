"""Messages between a Decoder and its child process: JSON, arrays as raw bytes, open files.

A message is the length of its header (4 bytes, the highest first), the header (a JSON object), and the bytes of the
arrays whose types and shapes the header tells. Nothing in it can name a class or code, as a pickle could: an
untrusted file may have taken over the one who sends.
"""

import json
import math
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LENGTH_BYTES = 4
_MOST_HEADER_BYTES = 1 << 20
_MOST_DIMENSIONS = 3
_DTYPES = {"uint8": np.uint8, "float32": np.float32, "float64": np.float64}


class MessageError(Exception):
    """What came is no message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What one side tells the other."""

    header: dict[str, Any]
    arrays: list[np.ndarray] = field(default_factory=list)
    """uint8, float32 or float64, of at most three dimensions."""
    descriptors: list[int] = field(default_factory=list)
    """Open files. Who receives them closes them."""


def send(connection: socket.socket, message: Message) -> None:
    """Sends a message; its descriptors stay open here. Raises OSError: the other side is gone, or TimeoutError."""
    arrays = [[array.dtype.name, array.shape] for array in message.arrays]
    header = json.dumps(message.header | {"arrays": arrays}).encode()
    length = len(header).to_bytes(_LENGTH_BYTES, "big")
    # Descriptors travel with a message's first bytes, and so few bytes are never torn.
    socket.send_fds(connection, [length], message.descriptors)
    connection.sendall(header)
    for array in message.arrays:
        connection.sendall(_bytes_of(np.ascontiguousarray(array)))


def receive(
    connection: socket.socket, *, most_bytes: int = 0, most_descriptors: int = 0, deadline: float = math.inf
) -> Message | None:
    """The next message, or None where the other side has closed between two of them.

    most_bytes: of all arrays together. deadline: as time.monotonic() tells it. Raises TimeoutError; MessageError, if
    what comes is no message, is too large or breaks off; OSError.
    """
    _set_timeout(connection, deadline)
    length, descriptors, _, _ = socket.recv_fds(connection, _LENGTH_BYTES, most_descriptors)
    try:
        if not length:
            return None
        size = int.from_bytes(length, "big")
        if len(length) < _LENGTH_BYTES or size > _MOST_HEADER_BYTES:
            raise MessageError(f"a header of {size} bytes is announced in {len(length)} bytes")
        data = bytearray(size)
        _fill(connection, memoryview(data), deadline)
        header = _object(data)
        arrays = _announced(header.pop("arrays", None), most_bytes)
        for array in arrays:
            _fill(connection, _bytes_of(array), deadline)
    except (MessageError, OSError):
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return Message(header=header, arrays=arrays, descriptors=list(descriptors))


def _object(data: bytearray) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MessageError("the header is no JSON") from error
    if not isinstance(header, dict):
        raise MessageError("the header is no JSON object")
    return header


def _announced(specifications: Any, most_bytes: int) -> list[np.ndarray]:
    """Arrays to fill, after a look at their sizes: they are the other side's word."""
    if not isinstance(specifications, list):
        raise MessageError("the header does not tell the arrays")
    arrays = []
    for specification in specifications:
        match specification:
            case [str(name), list(shape)] if name in _DTYPES and _is_shape(shape):
                dtype = np.dtype(_DTYPES[name])
            case _:
                raise MessageError("an array is announced that none can be")
        most_bytes -= math.prod(shape) * dtype.itemsize
        if most_bytes < 0:
            raise MessageError("the arrays are larger than they may be")
        arrays.append(np.empty(shape, dtype))
    return arrays


def _is_shape(shape: list[Any]) -> bool:
    return len(shape) <= _MOST_DIMENSIONS and all(type(size) is int and size > 0 for size in shape)


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _fill(connection: socket.socket, buffer: memoryview, deadline: float) -> None:
    while buffer:
        _set_timeout(connection, deadline)
        count = connection.recv_into(buffer)
        if not count:
            raise MessageError("the message breaks off")
        buffer = buffer[count:]


def _set_timeout(connection: socket.socket, deadline: float) -> None:
    if deadline < math.inf:
        # 0 would mean not to wait at all, and raise another error.
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
