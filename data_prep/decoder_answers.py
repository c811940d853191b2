"""What was decoded of a clip, as a message and back: the receiver believes nothing that it has not checked."""

import math
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from data_prep.decoder_messages import Message, MessageError
from data_prep.file_facts import FileFacts
from data_prep.rejects import RejectedError, RejectReason
from data_prep.window import ClipWindow

_NUMBERS = tuple(field.name for field in fields(ClipWindow) if field.type is float)
_MOST = {"file_bytes": 2**63 - 1}
"""The largest whole numbers that the corpus has room for; 2**31 - 1 where none is named."""
_DETAIL_CHARACTERS = 200


def pack_window(clip: ClipWindow) -> Message:
    """Each picture once, and where it stands; times and sound."""
    distinct = {id(image): image for image in clip.images}
    order = list(distinct)
    header = {
        "answer": "window",
        "images": [order.index(id(image)) for image in clip.images],
        "numbers": {name: float(getattr(clip, name)) for name in _NUMBERS},
        "facts": asdict(clip.facts),
    }
    return Message(header=header, arrays=[clip.frame_times_s, clip.sound, *distinct.values()])


def unpack_window(message: Message, *, num_frames: int, num_samples: int) -> ClipWindow:
    """The inverse of `pack_window`, for a window of so many frames and samples.

    Raises MessageError, or what `raise_rejection` raises.
    """
    raise_rejection(message)
    numbers, positions = message.header.get("numbers"), message.header.get("images")
    if not isinstance(numbers, dict) or not isinstance(positions, list) or len(message.arrays) < 3:
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
    return ClipWindow(
        images=[images[position] for position in positions],
        frame_times_s=times,
        sound=sound,
        facts=_facts(message.header.get("facts")),
        **{name: _number(numbers.get(name), name) for name in _NUMBERS},
    )


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
    if message.header.get("answer") != "rejected":
        return
    reason, detail = message.header.get("reason"), message.header.get("detail")
    if not isinstance(reason, str) or reason not in set(RejectReason) or not isinstance(detail, str):
        raise MessageError("the answer is no rejection")
    raise RejectedError(RejectReason(reason), printable(detail))


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
