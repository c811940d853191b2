"""TensorBoard event files, read back by an own reader of the TFRecord framing."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import pytest
from tensorboardX.proto.event_pb2 import Event

from cluster.tensorboard import event_file

START = 1_800_000_000.5


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum bit by bit, from its reversed polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(data: bytes) -> Iterator[bytes]:
    while data:
        length, length_crc = struct.unpack("<QI", data[:12])
        content, (content_crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        assert length_crc == masked(data[:8])
        assert content_crc == masked(content)
        yield content
        data = data[16 + length :]


def test_checksum_of_the_standard() -> None:
    # RFC 3720 names this value for the nine digits.
    assert crc32c(b"123456789") == 0xE3069283


def test_events_hold_the_rows() -> None:
    rows = [
        {
            "epoch": 1,
            "member": 3,
            "train_loss": 0.75,
            "architecture_loss": math.nan,
            "dev_auc": 0.5,
            "temperature": 10.0,
        },
        {"epoch": 2, "member": 3, "train_loss": 0.5, "architecture_loss": 0.625, "dev_auc": 0.875, "temperature": 5.0},
    ]
    rows[1] |= {"entropy_alpha": 1.5, "gradient_norm_gamma": 0.25, "learning_rate": 0.0625, "alpha/cell1/sum": 0.5}
    first, *events = [Event.FromString(record) for record in records(event_file(rows, start_time=START))]
    assert (first.file_version, first.wall_time) == ("brain.Event:2", START)
    assert [event.step for event in events] == [1, 2]
    assert [event.wall_time for event in events] == [START + 1, START + 2]
    told = [{value.tag: value.simple_value for value in event.summary.value} for event in events]
    assert told == [
        {"loss/train": 0.75, "auc/dev": 0.5, "temperature": 10.0},
        {
            "loss/train": 0.5,
            "loss/architecture": 0.625,
            "auc/dev": 0.875,
            "temperature": 5.0,
            "entropy/alpha": 1.5,
            "gradient_norm/gamma": 0.25,
            "learning_rate": 0.0625,
        },
    ]


def test_a_search_that_has_no_epoch_yet_is_an_event_file_already() -> None:
    assert len(list(records(event_file([], start_time=START)))) == 1


@pytest.mark.parametrize("place", [0, 8, 20, -1])
def test_the_reader_sees_damage(place: int) -> None:
    data = bytearray(event_file([], start_time=START))
    data[place] ^= 1
    with pytest.raises((AssertionError, struct.error)):
        list(records(bytes(data)))
