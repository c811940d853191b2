"""Why a clip is not in the corpus. Every manifest row ends as a corpus row or as one of these."""

from dataclasses import dataclass
from enum import StrEnum

MOST_TIMEOUT_S = 86_400
"""A day: the longest that a clip may be given, after which it is rejected: timeout. No timer overflows with it."""


class RejectReason(StrEnum):
    """What is wrong with a clip; thresholds are fields of `clip.PrepareConfig`."""

    MISSING = "missing"
    """There is no file."""
    UNREADABLE = "unreadable"
    """It is no media file, or damaged where it is needed."""
    NO_VIDEO = "no_video"
    """It has no picture."""
    NO_AUDIO = "no_audio"
    """It has no sound track."""
    SILENT = "silent"
    """Its sound track holds (almost) nothing."""
    NO_FACE = "no_face"
    """Too few of its frames show a face."""
    TOO_SHORT = "too_short"
    """Picture and sound run together for too short a time."""
    DECODER_CRASHED = "decoder_crashed"
    """The process that decoded it died: the file broke the decoder, or needed more memory than it may have."""
    TIMEOUT = "timeout"
    """Decoding took longer than it may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """One refused clip: a row of `clip.REJECT_SCHEMA`.

    `path` is the manifest's, `detail` one sentence without line breaks.
    """

    clip_id: str
    path: str
    reason: RejectReason
    detail: str


class RejectedError(Exception):
    """Raised while a clip is prepared; becomes a `Reject`."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = " ".join(detail.split())


def unreadable(detail: str) -> RejectedError:
    """The error for a file that is damaged where it is needed."""
    return RejectedError(RejectReason.UNREADABLE, detail)
