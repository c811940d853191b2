"""What was decoded of a clip, as a message and back: the receiver believes nothing that it has not checked."""

import math
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from data_prep.audio import SAMPLE_RATE
from data_prep.decoder_messages import Message, MessageError
from data_prep.file_facts import FileFacts
from data_prep.rejects import RejectedError, RejectReason
from data_prep.window import ClipWindow, shortened
from data_prep.window_stream import RefusedWindow, StreamedWindow

_NUMBERS = tuple(field.name for field in fields(ClipWindow) if field.type is float)
_SPAN = ("start_s", "end_s", "duration_s")
_MOST = {"file_bytes": 2**63 - 1}
"""The largest whole numbers that the corpus has room for; 2**31 - 1 where none is named."""
_DETAIL_CHARACTERS = 200


def pack_window(clip: ClipWindow) -> Message:
    """Each picture once, and where it stands; times and sound."""
    numbers = {name: float(getattr(clip, name)) for name in _NUMBERS}
    return _packed(clip, {"answer": "window", "numbers": numbers, "facts": asdict(clip.facts)})


def _packed(window: ClipWindow | StreamedWindow, header: dict[str, Any]) -> Message:
    distinct = {id(image): image for image in window.images}
    order = list(distinct)
    header["images"] = [order.index(id(image)) for image in window.images]
    return Message(header=header, arrays=[window.frame_times_s, window.sound, *distinct.values()])


def unpack_window(message: Message, *, num_frames: int, window_s: float, repeat: bool = True) -> ClipWindow:
    """The inverse of `pack_window`, for a window of so many frames and seconds; repeat: see `window.WindowSettings`.

    Raises MessageError, or what `raise_rejection` raises.
    """
    raise_rejection(message)
    numbers = _numbers_of(message)
    if not repeat:
        window_s, num_frames = shortened(window_s, num_frames, _number(numbers.get("duration_s"), "duration_s"))
    images, times, sound = _checked_arrays(message, num_frames, round(window_s * SAMPLE_RATE))
    return ClipWindow(
        images=images,
        frame_times_s=times,
        sound=sound,
        facts=_facts(message.header.get("facts")),
        **{name: _number(numbers.get(name), name) for name in _NUMBERS},
    )


def _numbers_of(message: Message) -> dict[str, Any]:
    numbers = message.header.get("numbers")
    if not isinstance(numbers, dict):
        raise MessageError("the answer is no window")
    return numbers


def _checked_arrays(
    message: Message, num_frames: int, num_samples: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """One image per frame, their times, and the sound."""
    positions = message.header.get("images")
    if not isinstance(positions, list) or len(message.arrays) < 3:
        raise MessageError("the answer is no window")
    times, sound, *images = message.arrays
    if (
        len(positions) != num_frames
        or (times.dtype, times.shape) != (np.float64, (num_frames,))
        or (sound.dtype, sound.shape) != (np.float32, (num_samples,))
        or any(image.dtype != np.uint8 or image.shape != (*images[0].shape[:2], 3) for image in images)
        or not all(type(position) is int and 0 <= position < len(images) for position in positions)
        or not (np.isfinite(times).all() and np.isfinite(sound).all())
    ):
        raise MessageError("the answer's arrays are no window")
    return [images[position] for position in positions], times, sound


def pack_streamed(window: StreamedWindow | RefusedWindow) -> Message:
    """One window of many."""
    header: dict[str, Any] = {"numbers": {name: getattr(window, name) for name in _SPAN}}
    if isinstance(window, RefusedWindow):
        return Message(header=header | {"answer": "refused", "reason": str(window.reason), "detail": window.detail})
    return _packed(window, header | {"answer": "streamed"})


def has_successor(message: Message) -> bool:
    """Whether the answer is one of many, and not the last."""
    return message.header.get("answer") in ("streamed", "refused")


def pack_end() -> Message:
    """No window follows."""
    return Message(header={"answer": "end"})


def unpack_streamed(message: Message, *, num_frames: int, num_samples: int) -> StreamedWindow | RefusedWindow | None:
    """The inverse of `pack_streamed`, for a window of so many frames and samples; None is the end.

    Raises MessageError, or what `raise_rejection` raises.
    """
    raise_rejection(message)
    answer = message.header.get("answer")
    if answer == "end":
        return None
    numbers = _numbers_of(message)
    span = {name: _number(numbers.get(name), name) for name in _SPAN}
    if answer == "refused":
        reason, detail = _rejection(message)
        return RefusedWindow(**span, reason=reason, detail=detail)
    images, times, sound = _checked_arrays(message, num_frames, num_samples)
    return StreamedWindow(images=images, frame_times_s=times, sound=sound, **span)


def pack_crops(crops: np.ndarray) -> Message:
    """Crops uint8 [frames, 3, size, size], whose message has no room for a fourth dimension."""
    return Message(header={"answer": "crops"}, arrays=[crops.reshape(-1, *crops.shape[2:])])


def unpack_crops(message: Message, *, num_frames: int, size: int) -> np.ndarray:
    """The inverse of `pack_crops`, for so many frames. Raises MessageError, or what `raise_rejection` raises."""
    raise_rejection(message)
    expected = [(np.uint8, (3 * num_frames, size, size))]
    if [(array.dtype, array.shape) for array in message.arrays] != expected:
        raise MessageError("the answer's arrays are no crops")
    return message.arrays[0].reshape(num_frames, 3, size, size)


def pack_facts(facts: FileFacts) -> Message:
    """The facts of a clip's files."""
    return Message(header={"answer": "facts", "facts": asdict(facts)})


def unpack_facts(message: Message) -> FileFacts:
    """The inverse of `pack_facts`. Raises MessageError, or what `raise_rejection` raises."""
    raise_rejection(message)
    return _facts(message.header.get("facts"))


def pack_rejection(rejected: RejectedError) -> Message:
    """Why nothing was decoded."""
    return Message(header={"answer": "rejected", "reason": str(rejected.reason), "detail": rejected.detail})


def raise_rejection(message: Message) -> None:
    """Raises RejectedError if `message` is one; MessageError if it is a malformed one."""
    if message.header.get("answer") == "rejected":
        raise RejectedError(*_rejection(message))


def _rejection(message: Message) -> tuple[RejectReason, str]:
    reason, detail = message.header.get("reason"), message.header.get("detail")
    if not isinstance(reason, str) or reason not in set(RejectReason) or not isinstance(detail, str):
        raise MessageError("the answer is no rejection")
    return RejectReason(reason), printable(detail)


def printable(text: str) -> str:
    """What an untrusted file may have dictated, for people: printable characters only, and not many."""
    return "".join(filter(str.isprintable, " ".join(text.split())))[:_DETAIL_CHARACTERS]


def _facts(facts: Any) -> FileFacts:
    if not isinstance(facts, dict):
        raise MessageError("the answer holds no facts")
    values: dict[str, Any] = {}
    for field in fields(FileFacts):
        value = facts.get(field.name)
        if field.type is float:
            value = _number(value, field.name)
        elif type(value) is not field.type or not _is_fact(value, field.name):
            raise MessageError(f"{field.name} is {_shown(value)}")
        values[field.name] = value
    return FileFacts(**values)


def _is_fact(value: Any, name: str) -> bool:
    return printable(value) == value if isinstance(value, str) else 0 <= value <= _MOST.get(name, 2**31 - 1)


def _number(value: Any, name: str) -> float:
    # A whole number may have any number of digits, and no float holds them all.
    is_number = type(value) is float or (type(value) is int and abs(value) <= 2**63)
    if not is_number or not (math.isfinite(value) or (name == "loudness_dbfs" and value < 0)):
        raise MessageError(f"{name} is {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    return printable(str(value)) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
