"""One window of a clip, decoded: pictures and sound of the same moments, from one file or from two.

The clip begins where picture and sound have both begun, and ends where the first of them ends. All times below are
seconds since that beginning, unless they are said to be on a file's own clock. Files are open descriptors.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from data_prep import audio, container
from data_prep.audio import SoundCollector
from data_prep.container import Sink, Skipper
from data_prep.file_facts import FileFacts
from data_prep.opened_clip import OpenedClip, facts_of, opened_clip, shape_of, usable_part
from data_prep.rejects import RejectedError
from data_prep.video import FirstFrame, FrameCollector, FrameShape, Picture

if TYPE_CHECKING:
    from data_prep.video_filter import VideoFilter


class WindowSettings(TypedDict):
    """What is wanted of a clip."""

    window_s: float
    """Length of the window, in seconds; a shorter clip is repeated, picture and sound alike."""
    place: float
    """0 to 1, from a window at the clip's beginning to one at its end."""
    num_frames: int
    """Frames, shown in the middles of as many equal parts of the window."""
    min_duration_s: float
    """A shorter clip is refused."""
    leading_silence_db: float
    """Silence, at both ends, is where the RMS of 10 ms does not exceed this level relative to the clip's peak."""
    trim_silence: NotRequired[bool]
    """Whether the clip is only what lies between its first and its last sound; not unless it is said."""
    speed: NotRequired[float]
    """The window covers window_s * speed seconds of the clip, above 0; 1 unless it is said. The sound comes back as
    long as that, for the caller to stretch."""
    video_filter: NotRequired["VideoFilter | None"]
    """What every frame of the window passes before one is chosen; nothing unless it is said."""
    sound_offset_s: NotRequired[float]
    """Seconds by which the sound comes late (early, if negative), see `ShiftedSound`; in step unless it is said."""
    repeat: NotRequired[bool]
    """Whether a shorter clip is repeated, which it is unless it is said. Otherwise the window is as long as the clip,
    with fewer frames, see `shortened`."""
    longest_side: NotRequired[int | None]
    """Images with a longer side, in pixels, are shrunk to it, as they are decoded; none unless it is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipWindow:
    """What was decoded of a clip."""

    images: list[np.ndarray]
    """One uint8 [height, width, 3], RGB, per frame time, as a player shows it; all of one size."""
    frame_times_s: np.ndarray
    """float64 [frames]: the time stamps of these images."""
    sound: np.ndarray
    """float32 [window_s * speed * 16,000], mono, at the level of the file."""
    start_s: float
    duration_s: float
    """Length of the clip, as its file declares it; of what is left of it, if silence is trimmed."""
    leading_silence_s: float
    """Of the trimmed clip, if silence is trimmed: then about 0."""
    trailing_silence_s: float
    """Likewise."""
    loudness_dbfs: float
    """RMS level of the whole clip's sound, in dB relative to 1.0; minus infinity for silence."""
    trimmed_leading_s: float
    """Seconds cut off as silence; 0 unless silence is trimmed."""
    trimmed_trailing_s: float
    """Likewise."""
    fps: float
    facts: FileFacts
    """Of the files as they are, not trimmed."""


def read_window(
    video: int,
    audio_file: int | None,
    *,
    window_s: float,
    place: float,
    num_frames: int,
    min_duration_s: float,
    leading_silence_db: float,
    trim_silence: bool = False,
    speed: float = 1.0,
    video_filter: "VideoFilter | None" = None,
    sound_offset_s: float = 0.0,
    repeat: bool = True,
    longest_side: int | None = None,
) -> ClipWindow:
    """Decodes a window of a clip, each file once, only the moments that are needed; see `WindowSettings`.

    video, audio_file: open descriptors; audio_file is None if the sound is in the video's file. Two files are taken to
    begin together. Frame i is the one shown at start_s + (i + 0.5) * window_s * speed / num_frames. Of the sound, all
    before the window is decoded too, and all after it, for the silence at the clip's ends; trim_silence decodes the
    sound twice.

    Raises RejectedError: unreadable, no_video, no_audio, too_short, silent (trim_silence only). Raises MemoryError.
    """
    with opened_clip(video, audio_file) as clip:
        clip = usable_part(
            clip, min_duration_s=min_duration_s, silence_db=leading_silence_db, trim_silence=trim_silence
        )
        length_s = window_s * speed
        if not repeat:
            length_s, num_frames = shortened(length_s, num_frames, clip.duration_s)
        window_of = functools.partial(
            _Window,
            window_s=length_s,
            place=place,
            num_frames=num_frames,
            video_filter=video_filter,
            sound_offset_s=sound_offset_s,
            longest_side=longest_side,
        )
        window = window_of(clip)
        skipper = Skipper(window.needed_from_s)
        try:
            with container.damage_rejected():
                window.decode(skipper)
        except RejectedError:
            if not skipper.num_skipped:
                raise
        else:
            return window.result(leading_silence_db)
    # What begins with a key frame does not always need nothing before it. Whether the clip is damaged, all of it tells.
    with opened_clip(video, audio_file) as again:
        clip = replace(
            clip,
            picture_media=again.picture_media,
            sound_media=again.sound_media,
            picture_stream=again.picture_stream,
            sound_stream=again.sound_stream,
        )
        window = window_of(clip)
        window.decode(None)
        return window.result(leading_silence_db)


def probe(video: int, audio_file: int | None) -> FileFacts:
    """The facts of a clip's open files; decodes no more than the first frame.

    Raises RejectedError: unreadable, no_video, no_audio. Raises MemoryError.
    """
    with opened_clip(video, audio_file) as clip:
        first = FirstFrame()
        container.decode(clip.picture_media, {clip.picture_stream.index: first})
        return facts_of(clip, shape_of(first))


class _Window:
    """One window of an opened clip: where it lies, and what takes its frames and samples."""

    def __init__(
        self,
        clip: OpenedClip,
        *,
        window_s: float,
        place: float,
        num_frames: int,
        video_filter: "VideoFilter | None",
        sound_offset_s: float,
        longest_side: int | None,
    ) -> None:
        taken_s = min(window_s, clip.duration_s)
        self._clip = clip
        self._start_s = place * (clip.duration_s - taken_s)
        self._num_taken = round(taken_s * audio.SAMPLE_RATE)
        self._num_samples = round(window_s * audio.SAMPLE_RATE)
        distinct, self._position = frame_moments(num_frames, window_s, self._num_taken)
        first_s = clip.picture_start_s + self._start_s
        times = (first_s + distinct).tolist()
        self._frames = FrameCollector(times, fps=clip.fps, keep=_shrinking(longest_side))
        self.needed_from_s = times[0]
        self._filtered = None
        sink: Sink = self._frames
        if video_filter is not None:
            # Only augmented clips need it.
            from data_prep.video_filter import filtered

            self.needed_from_s = first_s
            sink = self._filtered = filtered(sink, video_filter, first_s=first_s, last_s=first_s + taken_s)
        self._first_frame = FirstFrame(sink)
        self._sound = _sound_collector(clip, self._start_s, taken_s, sound_offset_s)

    def decode(self, skipper: Skipper | None) -> None:
        """Decodes what is needed; without `skipper` also all before. Raises RejectedError: unreadable; FFmpegError."""
        picture, sound = self._clip.picture_stream.index, self._clip.sound_stream.index
        skippers = {} if skipper is None else {picture: skipper}
        if self._clip.sound_media is self._clip.picture_media:
            container.decode(self._clip.picture_media, {picture: self._first_frame, sound: self._sound}, skippers)
        else:
            container.decode(self._clip.picture_media, {picture: self._first_frame}, skippers)
            container.decode(self._clip.sound_media, {sound: self._sound})
        if self._filtered is not None:
            self._filtered.finish()
        # Both raise where their stream breaks off.
        self._frames.pictures()
        self._sound.window()

    def result(self, silence_db: float) -> ClipWindow:
        """What was decoded."""
        shape = shape_of(self._first_frame)
        images = shown_images(self._frames.pictures(), shape)
        times = np.array([picture.time_s for picture in self._frames.pictures()])
        return ClipWindow(
            images=[images[index] for index in self._position],
            frame_times_s=times[self._position] - self._clip.picture_start_s,
            # np.resize repeats.
            sound=np.resize(audio.resample(*self._sound.window(), self._num_taken), self._num_samples),
            start_s=self._start_s,
            duration_s=self._clip.duration_s,
            leading_silence_s=self._sound.leading_silence_s(silence_db),
            trailing_silence_s=self._sound.trailing_silence_s(silence_db),
            loudness_dbfs=self._sound.loudness_dbfs(),
            trimmed_leading_s=self._clip.trimmed_leading_s,
            trimmed_trailing_s=self._clip.trimmed_trailing_s,
            fps=self._clip.fps,
            facts=facts_of(self._clip, shape),
        )


def _sound_collector(clip: OpenedClip, window_start_s: float, window_s: float, offset_s: float) -> SoundCollector:
    if not offset_s:
        return SoundCollector(
            start_s=clip.sound_start_s,
            duration_s=clip.duration_s,
            window_start_s=window_start_s,
            window_s=window_s,
        )
    # Only damaged clips need it.
    from data_prep.shifted_sound import ShiftedSound

    return ShiftedSound(
        start_s=clip.sound_start_s,
        duration_s=clip.duration_s,
        window_start_s=window_start_s,
        window_s=window_s,
        offset_s=offset_s,
    )


def shortened(window_s: float, num_frames: int, duration_s: float) -> tuple[float, int]:
    """(seconds, frames) of a window that is no longer than the clip, with as many frames a second, at least one."""
    taken_s = min(window_s, duration_s)
    return taken_s, max(1, round(num_frames * taken_s / window_s))


def _shrinking(longest_side: int | None) -> Callable[[int, np.ndarray], np.ndarray] | None:
    """What `FrameCollector` keeps of an image, if it is not the image."""
    if longest_side is None:
        return None
    # It brings Pillow, which a window of full images does without.
    from data_prep.faces import shrunk

    return lambda index, image: shrunk(image, longest_side)


def frame_moments(num_frames: int, window_s: float, num_taken: int) -> tuple[np.ndarray, np.ndarray]:
    """(seconds after a window's beginning, ascending and distinct, float64; of each frame the index among these).

    num_taken: samples that the clip has for the window; where they are fewer than window_s has, both senses repeat.
    """
    # The picture repeats with the period of the sound, which is a whole number of samples.
    moments = (np.arange(num_frames) + 0.5) * window_s / num_frames % (num_taken / audio.SAMPLE_RATE)
    distinct, position = np.unique(moments, return_inverse=True)
    return distinct, position


def shown_images(pictures: list[Picture], shape: FrameShape) -> list[np.ndarray]:
    """The images as they are shown; the same object for the same picture."""
    images = {id(picture): shape.shown(picture.image) for picture in pictures}
    return [images[id(picture)] for picture in pictures]
