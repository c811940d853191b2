"""One window of a clip, decoded: pictures and sound of the same moments, from one file or from two.

The clip begins where picture and sound have both begun, and ends where the first of them ends. All times below are
seconds since that beginning, unless they are said to be on a file's own clock.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from av.stream import Stream

from data_prep import audio, container
from data_prep.audio import SoundCollector
from data_prep.rejects import RejectedError, RejectReason
from data_prep.video import FrameCollector

_FALLBACK_FPS = 25.0
"""Taken where a file does not tell its rate; only frames without a time stamp depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipWindow:
    """What was decoded of a clip."""

    images: list[np.ndarray]
    """One uint8 [height, width, 3], RGB, per frame time; all of one size."""
    frame_times_s: np.ndarray
    """float64 [frames]: the time stamps of these images."""
    sound: np.ndarray
    """float32 [window_s * 16,000], mono, at the level of the file."""
    start_s: float
    duration_s: float
    """Length of the clip, as its file declares it."""
    leading_silence_s: float
    fps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Timeline:
    """Where the clip begins on the clocks of its streams' files, and how long it is."""

    picture_start_s: float
    sound_start_s: float
    duration_s: float


def read_window(
    video_uri: str,
    audio_uri: str | None,
    *,
    window_s: float,
    place: float,
    num_frames: int,
    min_duration_s: float,
    leading_silence_db: float,
) -> ClipWindow:
    """Decodes `window_s` seconds of a clip, each file once, up to the last moment that is needed.

    place: 0 to 1, from a window at the clip's beginning to one at its end. Frame i is the one shown at
    start_s + (i + 0.5) * window_s / num_frames; a clip shorter than the window is repeated, picture and sound alike.
    audio_uri: null if the sound is in the video's file; two files are taken to begin together.

    Raises RejectedError: missing, unreadable, no_video, no_audio, too_short.
    """
    with ExitStack() as stack:
        picture_media = stack.enter_context(container.open_media(video_uri))
        picture_stream = container.video_stream(picture_media)
        if audio_uri is None:
            sound_media = picture_media
            sound_stream = container.audio_stream(sound_media, picture_stream)
        else:
            sound_media = stack.enter_context(container.open_media(audio_uri))
            sound_stream = container.audio_stream(sound_media)
        timeline = _timeline(video_uri, audio_uri, picture_stream, sound_stream)
        duration = timeline.duration_s
        if duration < min_duration_s:
            detail = f"picture and sound run together for {max(0.0, duration):.2f} s, under {min_duration_s:g} s"
            raise RejectedError(RejectReason.TOO_SHORT, detail)

        taken_s = min(window_s, duration)
        start = place * (duration - taken_s)
        num_samples = round(taken_s * audio.SAMPLE_RATE)
        # The picture repeats with the period of the sound, which is a whole number of samples.
        moments = (np.arange(num_frames) + 0.5) * window_s / num_frames % (num_samples / audio.SAMPLE_RATE)
        distinct, position = np.unique(moments, return_inverse=True)
        fps = float(picture_stream.average_rate or _FALLBACK_FPS)
        frames = FrameCollector((timeline.picture_start_s + start + distinct).tolist(), fps=fps)
        sound = SoundCollector(
            start_s=timeline.sound_start_s, duration_s=duration, window_start_s=start, window_s=taken_s
        )
        if sound_media is picture_media:
            container.decode(picture_media, {picture_stream.index: frames, sound_stream.index: sound})
        else:
            container.decode(picture_media, {picture_stream.index: frames})
            container.decode(sound_media, {sound_stream.index: sound})

    pictures = [frames.pictures()[index] for index in position]
    return ClipWindow(
        images=[picture.image for picture in pictures],
        frame_times_s=np.array([picture.time_s for picture in pictures]) - timeline.picture_start_s,
        # np.resize repeats.
        sound=np.resize(audio.resample(*sound.window(), num_samples), round(window_s * audio.SAMPLE_RATE)),
        start_s=start,
        duration_s=duration,
        leading_silence_s=sound.leading_silence_s(leading_silence_db),
        fps=fps,
    )


def _timeline(video_uri: str, audio_uri: str | None, picture_stream: Stream, sound_stream: Stream) -> _Timeline:
    if audio_uri is None:
        picture, sound = container.stream_spans(video_uri, picture_stream, sound_stream)
        start = max(picture[0], sound[0])
        return _Timeline(picture_start_s=start, sound_start_s=start, duration_s=min(picture[1], sound[1]) - start)
    (picture,) = container.stream_spans(video_uri, picture_stream)
    (sound,) = container.stream_spans(audio_uri, sound_stream)
    duration = min(picture[1] - picture[0], sound[1] - sound[0])
    return _Timeline(picture_start_s=picture[0], sound_start_s=sound[0], duration_s=duration)
