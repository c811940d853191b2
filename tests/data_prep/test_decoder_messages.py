import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_prep.decoder_answers import (
    pack_crops,
    pack_facts,
    pack_rejection,
    pack_window,
    unpack_crops,
    unpack_facts,
    unpack_window,
)
from data_prep.decoder_messages import Message, MessageError, _fill, receive, send
from data_prep.file_facts import FileFacts
from data_prep.rejects import RejectedError, RejectReason
from data_prep.window import ClipWindow

FACTS = FileFacts(
    duration_s=3.0,
    video_start_s=0.0,
    audio_start_s=0.02,
    width=4,
    height=6,
    fps=25.0,
    bit_rate=8e5,
    file_bytes=300_000,
    sample_rate=44_100,
    channels=2,
    video_codec="h264",
    audio_codec="aac",
    rotation=90,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def clip_window() -> ClipWindow:
    random = np.random.default_rng(0)
    one, two = random.integers(0, 256, (2, 6, 4, 3), dtype=np.uint8)
    return ClipWindow(
        images=[one, two, one],
        frame_times_s=np.array([0.1, 1 / 3, 0.1]),
        sound=random.standard_normal(100).astype(np.float32),
        start_s=0.1,
        duration_s=2.9,
        leading_silence_s=0.0,
        trailing_silence_s=1 / 3,
        loudness_dbfs=-np.inf,
        trimmed_leading_s=0.0,
        trimmed_trailing_s=0.0,
        fps=30_000 / 1001,
        facts=FACTS,
    )


def unpack(message: Message) -> ClipWindow:
    return unpack_window(message, num_frames=3, window_s=100 / 16_000)


def changed(message: Message, path: str, value: Any) -> Message:
    """A copy with one value of the header replaced."""
    header = json.loads(json.dumps(message.header))
    *parents, name = path.split(".")
    place = header
    for parent in parents:
        place = place[parent]
    place[name] = value
    return replace(message, header=header)


def test_a_message_arrives_as_it_was_sent(ends: Any) -> None:
    arrays = [np.arange(24, dtype=np.uint8).reshape(2, 4, 3), np.linspace(0, 1, 7), np.zeros(1, np.float32)]
    with open("/dev/null", "rb") as file:
        header = {"text": "ä\n", "number": 1 / 3, "level": float("-inf"), "nothing": None}
        send(ends[0], Message(header=header, arrays=arrays, descriptors=[file.fileno()]))
        received = receive(ends[1], most_bytes=24 + 56 + 4, most_descriptors=1)
        assert received is not None
        assert received.header == header
        assert os.fstat(received.descriptors[0]).st_rdev == os.fstat(file.fileno()).st_rdev
        os.close(received.descriptors[0])
    for array, sent in zip(received.arrays, arrays, strict=True):
        assert array.dtype == sent.dtype
        np.testing.assert_array_equal(array, sent)
    ends[0].close()
    assert receive(ends[1]) is None


def framed(header: Any) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95" + 100 * b"pickle",
        b"\x00\x00",
        framed({"arrays": []})[:-1],
        framed(b"{]"),
        framed(b"\xff\xfe"),
        framed(b"[" * 100_000),
        framed([]),
        framed({}),
        framed({"arrays": 7}),
        framed({"arrays": [["uint8", [4]]]}) + b"123",
        framed({"arrays": [["uint8", [101]]]}),
        framed({"arrays": [["uint8", [60]], ["float64", [6]]]}),
        framed({"arrays": [["uint8", [1 << 60, 1 << 60]]]}),
        framed({"arrays": [["object", [1]]]}),
        framed({"arrays": [["uint8", [-1, -1]]]}),
        framed({"arrays": [["uint8", [0, 5]]]}),
        framed({"arrays": [["uint8", [True]]]}),
        framed({"arrays": [["uint8", [1, 1, 1, 1]]]}),
        framed({"arrays": [["uint8", 4]]}),
        framed({"arrays": ["uint8"]}),
    ],
)
def test_what_is_no_message_is_refused(ends: Any, data: bytes) -> None:
    ends[0].sendall(data)
    ends[0].close()
    with pytest.raises(MessageError):
        receive(ends[1], most_bytes=100)


def test_nobody_waits_beyond_the_deadline(ends: Any) -> None:
    ends[0].sendall(framed({"arrays": [["uint8", [4]]]}) + b"123")
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        receive(ends[1], most_bytes=100, deadline=begin + 0.05)
    with pytest.raises(TimeoutError):
        receive(ends[1], deadline=begin)
    assert time.monotonic() - begin < 5


def test_a_drop_at_a_time_does_not_move_the_deadline(ends: Any) -> None:
    stop = threading.Event()

    def drip() -> None:
        for byte in framed({"arrays": [["uint8", [90]]]}) + bytes(90):
            if stop.wait(0.02):
                return
            ends[0].sendall(bytes([byte]))

    sender = threading.Thread(target=drip)
    sender.start()
    try:
        # All of it takes 2.5 s; no drop comes later than the time limit after the one before it.
        ends[1].settimeout(0.5)
        with pytest.raises(MessageError):  # Not even the length comes in one piece, as `send` sends it.
            receive(ends[1], most_bytes=100, deadline=time.monotonic() + 0.5)
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            _fill(ends[1], memoryview(bytearray(200)), begin + 0.3)
        assert time.monotonic() - begin < 1.5
    finally:
        stop.set()
        sender.join()


def test_descriptors_that_nobody_asked_for_are_not_taken(ends: Any) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open("/dev/null", "rb") as file:
        send(ends[0], Message(header={}, descriptors=[file.fileno()]))
        assert receive(ends[1]) == Message(header={})
    with open("/dev/null", "rb") as file:
        socket.send_fds(ends[0], [b"\x00\x00\x00\x02[]"], [file.fileno()])
        with pytest.raises(MessageError):
            receive(ends[1], most_descriptors=1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_window_arrives_whole_and_each_picture_once(ends: Any) -> None:
    sent = clip_window()
    message = pack_window(sent)
    assert sum(array.nbytes for array in message.arrays) == 2 * 6 * 4 * 3 + 3 * 8 + 100 * 4
    send(ends[0], message)
    received = receive(ends[1], most_bytes=10_000)
    assert received is not None
    made = unpack(received)
    assert made.images[0] is made.images[2]
    np.testing.assert_equal(
        [getattr(made, name) for name in ClipWindow.__slots__], [getattr(sent, name) for name in ClipWindow.__slots__]
    )
    assert unpack_facts(pack_facts(FACTS)) == FACTS


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("images", [0, 1, 2]),
        ("images", [0, 1, -1]),
        ("images", [0, 1]),
        ("images", [0, 1, True]),
        ("images", "010"),
        ("numbers", None),
        ("numbers.fps", "25"),
        ("numbers.fps", float("nan")),
        ("numbers.duration_s", float("-inf")),
        ("numbers.loudness_dbfs", float("inf")),
        ("facts", []),
        ("facts.width", 4.0),
        ("facts.width", None),
        ("facts.video_codec", 264),
        ("facts.video_codec", "h\x1b264"),
        ("facts.video_codec", "\ud800"),
        ("facts.audio_codec", 1000 * "a"),
        ("facts.width", -1),
        ("facts.height", 2**31),
        ("facts.sample_rate", 10**4000),
        ("facts.file_bytes", 2**63),
        ("facts.bit_rate", 10**4000),
        ("numbers.start_s", 10**400),
        ("numbers.start_s", -(10**400)),
        ("numbers.fps", True),
        ("numbers.fps", {}),
        ("answer", "rejected"),
    ],
)
def test_a_window_that_is_none_is_refused(path: str, value: Any) -> None:
    with pytest.raises(MessageError):
        unpack(changed(pack_window(clip_window()), path, value))


@pytest.mark.parametrize(
    ("index", "array"),
    [
        (0, np.zeros(2)),
        (0, np.zeros(3, np.float32)),
        (0, np.array([0, 1, np.nan])),
        (1, np.zeros((10, 10), np.float32)),
        (1, np.zeros(99, np.float32)),
        (1, np.zeros(101, np.float32)),
        (1, np.full(100, np.inf, np.float32)),
        (2, np.zeros((6, 4, 3), np.float32)),
        (2, np.zeros((6, 4, 4), np.uint8)),
        (2, np.zeros(72, np.uint8)),
        (3, np.zeros((6, 5, 3), np.uint8)),
    ],
)
def test_arrays_that_are_no_window_are_refused(index: int, array: np.ndarray) -> None:
    message = pack_window(clip_window())
    message.arrays[index] = array
    with pytest.raises(MessageError):
        unpack(message)


@pytest.mark.parametrize("num_frames", [2, 4])
def test_more_or_fewer_frames_than_were_asked_for_are_refused(num_frames: int) -> None:
    with pytest.raises(MessageError):
        unpack_window(pack_window(clip_window()), num_frames=num_frames, window_s=100 / 16_000)


def test_a_window_that_is_not_repeated_is_as_long_as_its_clip() -> None:
    # A clip of 100 samples, in a window of 400 with twelve frames, has room for three of them.
    window = replace(clip_window(), duration_s=100 / 16_000)
    message = pack_window(window)
    unpacked = unpack_window(message, num_frames=12, window_s=400 / 16_000, repeat=False)
    np.testing.assert_array_equal(unpacked.sound, window.sound)
    for duration_s in (0.0, -1.0, 1e-300, 101 / 16_000, 120 / 16_000, 1e300, None, "1"):
        lying = changed(message, "numbers.duration_s", duration_s)
        with pytest.raises(MessageError):
            unpack_window(lying, num_frames=12, window_s=400 / 16_000, repeat=False)


def test_crops_come_back_if_they_are_as_many_and_as_large_as_was_asked() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    message = pack_crops(crops)
    np.testing.assert_array_equal(unpack_crops(message, num_frames=5, size=8), crops)
    flat = message.arrays[0]
    for frames, size, arrays in [
        (4, 8, [flat]),
        (5, 4, [flat]),
        (5, 8, []),
        (5, 8, [flat, flat]),
        (5, 8, [crops]),
        (5, 8, [flat.astype(np.float32)]),
    ]:
        with pytest.raises(MessageError):
            unpack_crops(replace(message, arrays=arrays), num_frames=frames, size=size)
    with pytest.raises(RejectedError):
        unpack_crops(pack_rejection(RejectedError(RejectReason.UNREADABLE, "")), num_frames=5, size=8)


def test_the_largest_file_there_can_be_is_told() -> None:
    facts = replace(FACTS, file_bytes=2**63 - 1, width=2**31 - 1)
    assert unpack_facts(pack_facts(facts)) == facts


@pytest.mark.parametrize("text", ["\x1b[31mred\n" + 1000 * "x", "\ud800 \u202e" + 1000 * "y", 1000 * "\r\n\t"])
def test_what_a_file_may_have_dictated_is_printable_and_short(text: str) -> None:
    rejection = pack_rejection(RejectedError(RejectReason.UNREADABLE, ""))
    with pytest.raises(RejectedError) as rejected:
        unpack_facts(changed(rejection, "detail", text))
    with pytest.raises(MessageError) as nonsense:
        unpack_facts(changed(pack_facts(FACTS), "facts.width", text))
    for told in (rejected.value.detail, str(nonsense.value)):
        assert told.isprintable()
        assert len(told) < 250


def test_rejections_travel_with_reasons_that_there_are() -> None:
    message = pack_rejection(RejectedError(RejectReason.TOO_SHORT, "0.1 s"))
    for unpacked in (unpack, unpack_facts):
        with pytest.raises(RejectedError) as info:
            unpacked(message)
        assert (info.value.reason, info.value.detail) == (RejectReason.TOO_SHORT, "0.1 s")
        for path, value in (("reason", "boredom"), ("reason", ["missing"]), ("detail", 7)):
            with pytest.raises(MessageError):
                unpacked(changed(message, path, value))
