"""A clip's files, opened: where the clip begins on their clocks, how long it is, and what the files say of themselves.

The clip begins where picture and sound have both begun, and ends where the first of them ends.
"""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Stream

from data_prep import container
from data_prep.audio import SoundCollector
from data_prep.file_facts import FileFacts
from data_prep.rejects import RejectedError, RejectReason, unreadable
from data_prep.video import FirstFrame, FrameShape

_FALLBACK_FPS = 25.0
"""Taken where a file does not tell its rate; only frames without a time stamp depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedClip:
    """A clip, opened: where it begins on the clocks of its streams' files, and how long it is."""

    video: int
    sound: int
    picture_media: InputContainer
    sound_media: InputContainer
    picture_stream: Stream
    sound_stream: AudioStream
    picture_start_s: float
    sound_start_s: float
    duration_s: float
    video_start_s: float
    audio_start_s: float
    trimmed_leading_s: float = 0.0
    trimmed_trailing_s: float = 0.0

    @property
    def fps(self) -> float:
        """Frames per second, nominally."""
        rate = self.picture_stream.average_rate
        return float(rate) if rate is not None and rate > 0 else _FALLBACK_FPS


@contextmanager
def opened_clip(video: int, audio_file: int | None) -> Iterator[OpenedClip]:
    """The clip behind open descriptors; audio_file is None if the sound is in the video's file.

    Two files are taken to begin together. Raises RejectedError: unreadable, no_video, no_audio. Raises MemoryError.
    """
    with ExitStack() as stack:
        picture_media = sound_media = stack.enter_context(container.open_media(video))
        picture_stream = container.video_stream(picture_media)
        if audio_file is None:
            sound_stream = container.audio_stream(sound_media, picture_stream)
            picture, sound = container.stream_spans(video, picture_stream, sound_stream)
            picture_start = sound_start = max(picture[0], sound[0])
            duration = min(picture[1], sound[1]) - picture_start
        else:
            sound_media = stack.enter_context(container.open_media(audio_file))
            sound_stream = container.audio_stream(sound_media)
            (picture,) = container.stream_spans(video, picture_stream)
            (sound,) = container.stream_spans(audio_file, sound_stream)
            picture_start, sound_start = picture[0], sound[0]
            duration = min(picture[1] - picture[0], sound[1] - sound[0])
        yield OpenedClip(
            video=video,
            sound=video if audio_file is None else audio_file,
            picture_media=picture_media,
            sound_media=sound_media,
            picture_stream=picture_stream,
            sound_stream=sound_stream,
            picture_start_s=picture_start,
            sound_start_s=sound_start,
            duration_s=duration,
            video_start_s=picture[0],
            audio_start_s=sound[0],
        )


def usable_part(clip: OpenedClip, *, min_duration_s: float, silence_db: float, trim_silence: bool) -> OpenedClip:
    """What windows are taken of: `clip`, or, with trim_silence, what lies between its first and its last sound.

    Raises RejectedError: too_short, if that is shorter than min_duration_s; unreadable, silent (trim_silence only).
    """
    _require_length(clip, min_duration_s, "picture and sound run together")
    if trim_silence:
        clip = _trimmed(clip, silence_db)
        _require_length(clip, min_duration_s, "it runs, without the silence at its ends,")
    return clip


def _require_length(clip: OpenedClip, min_duration_s: float, what: str) -> None:
    if not clip.duration_s >= min_duration_s:
        detail = f"{what} for {max(0.0, clip.duration_s):.2f} s, under {min_duration_s:g} s"
        raise RejectedError(RejectReason.TOO_SHORT, detail)


def _trimmed(clip: OpenedClip, silence_db: float) -> OpenedClip:
    """The stretch of `clip` between its first and its last sound, after a pass over its sound alone."""
    collector = SoundCollector(start_s=clip.sound_start_s, duration_s=clip.duration_s, window_start_s=0.0, window_s=0.0)
    with container.open_media(clip.sound) as media:
        container.decode(media, {clip.sound_stream.index: collector})
    collector.require(clip.duration_s)
    leading, trailing = collector.leading_silence_s(silence_db), collector.trailing_silence_s(silence_db)
    if leading >= clip.duration_s:
        raise RejectedError(RejectReason.SILENT, "nothing is left of it after its silence is trimmed")
    return replace(
        clip,
        picture_start_s=clip.picture_start_s + leading,
        sound_start_s=clip.sound_start_s + leading,
        duration_s=clip.duration_s - leading - trailing,
        trimmed_leading_s=leading,
        trimmed_trailing_s=trailing,
    )


def shape_of(first: FirstFrame) -> FrameShape:
    """The shape that was noted. Raises RejectedError: unreadable, if there was no frame."""
    if first.shape is None:
        raise unreadable("no picture can be decoded")
    return first.shape


def facts_of(clip: OpenedClip, shape: FrameShape) -> FileFacts:
    """The facts of the clip's files as they are, not trimmed."""
    file_bytes = sum(os.fstat(descriptor).st_size for descriptor in {clip.video, clip.sound})
    # The clip may have been trimmed; its file was not.
    duration = clip.trimmed_leading_s + clip.duration_s + clip.trimmed_trailing_s
    width, height = shape.shown_size
    sound = clip.sound_stream.codec_context
    return FileFacts(
        duration_s=duration,
        video_start_s=clip.video_start_s,
        audio_start_s=clip.audio_start_s,
        width=width,
        height=height,
        fps=clip.fps,
        bit_rate=8 * file_bytes / duration if duration > 0 and math.isfinite(duration) else 0.0,
        file_bytes=file_bytes,
        sample_rate=sound.sample_rate,
        channels=sound.layout.nb_channels,
        video_codec=clip.picture_stream.codec_context.name,
        audio_codec=sound.name,
        rotation=shape.rotation,
    )
