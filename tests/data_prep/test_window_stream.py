"""Many windows in one pass: each is what `read_window` gives, wherever the pass begins and whatever breaks."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import decoder as decoder_module
from data_prep import window
from data_prep.decoder import Decoder
from data_prep.decoder_answers import pack_end, pack_streamed
from data_prep.decoder_messages import Message
from data_prep.media_file import open_descriptor
from data_prep.rejects import RejectedError, RejectReason
from data_prep.window_stream import RefusedWindow, StreamedWindow, stream_windows, window_count, window_start

RATE = 16_000
SETTINGS: dict[str, Any] = {"window_s": 3.0, "num_frames": 8, "min_duration_s": 0.5, "leading_silence_db": -40.0}

REFUSED = RefusedWindow(start_s=0.0, end_s=3.0, duration_s=10.0, reason=RejectReason.UNREADABLE, detail="it is damaged")


def streamed(path: Path, **changes: Any) -> list[StreamedWindow | RefusedWindow]:
    with open_descriptor(str(path)) as video:
        return list(stream_windows(video, **{**SETTINGS, "hop_s": 3.0, **changes}))


def alone(path: Path, start_s: float, duration_s: float) -> window.ClipWindow:
    """The window that begins at `start_s`, read by itself."""
    room = max(0.0, duration_s - 3.0)
    near = start_s / room if room else 0.0
    place = next(p for p in (near, math.nextafter(near, 0), math.nextafter(near, 2)) if p * room == start_s)
    with open_descriptor(str(path)) as video:
        return window.read_window(video, None, place=place, **SETTINGS)


def assert_same(made: StreamedWindow | RefusedWindow, expected: window.ClipWindow) -> None:
    assert isinstance(made, StreamedWindow)
    np.testing.assert_array_equal(made.images, expected.images)
    np.testing.assert_array_equal(made.frame_times_s, expected.frame_times_s)
    np.testing.assert_array_equal(made.sound, expected.sound)
    assert (made.start_s, made.duration_s) == (expected.start_s, expected.duration_s)


@pytest.fixture(scope="module")
def clip(clips: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s with B-frames, a key frame every 12 frames, sound in AAC."""
    path: Path = clips.write(
        tmp_path_factory.mktemp("stream") / "clip.mp4",
        frame_times=np.arange(250) / 25,
        sound=clips.rising_tones(10),
        coder={"preset": "medium", "g": "12", "bf": "2"},
    )
    return path


@pytest.mark.parametrize("hop_s", [3.0, 1.25, 4.5])
def test_every_window_is_that_of_read_window(clip: Path, hop_s: float) -> None:
    windows = streamed(clip, hop_s=hop_s)
    assert len(windows) == {3.0: 4, 1.25: 7, 4.5: 3}[hop_s]
    for index, made in enumerate(windows):
        assert_same(made, alone(clip, made.start_s, made.duration_s))
        # The same where the pass begins there, behind packets that are not decoded.
        (again,) = streamed(clip, hop_s=hop_s, first=index, count=1)
        assert_same(again, alone(clip, made.start_s, made.duration_s))
    assert windows[-1].end_s == windows[-1].duration_s


def test_a_shorter_clip_is_one_window_and_repeats(clips: Any, tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mkv", frame_times=np.arange(50) / 25, sound=clips.rising_tones(2))
    (made,) = streamed(path)
    assert_same(made, alone(path, 0.0, made.duration_s))
    assert made.end_s == made.duration_s < 3


def test_trimmed_silence_moves_the_windows(clips: Any, tmp_path: Path) -> None:
    sound = np.concatenate([np.zeros(RATE, np.float32), clips.rising_tones(4), np.zeros(RATE, np.float32)])
    path = clips.write(tmp_path / "clip.mkv", frame_times=np.arange(150) / 25, sound=sound, audio_codec="pcm_s16le")
    first, last = streamed(path, trim_silence=True)
    with open_descriptor(str(path)) as video:
        for made, place in ((first, 0.0), (last, 1.0)):
            assert_same(made, window.read_window(video, None, place=place, trim_silence=True, **SETTINGS))


def test_the_file_is_read_once_for_all_windows(clip: Path, measured: list[int]) -> None:
    streamed(clip)
    once = sum(measured)
    assert 9.5 * RATE < once < 10.5 * RATE
    measured.clear()
    assert len(streamed(clip, hop_s=0.5)) == 15
    assert sum(measured) == once


@pytest.mark.parametrize(
    ("duration_s", "hop_s", "starts"),
    [
        (0.7, 3.0, [0.0]),
        (3.0, 3.0, [0.0]),
        (3.2, 3.0, [0.2]),
        (3.5, 3.0, [0.0, 0.5]),
        (9.0, 3.0, [0.0, 3.0, 6.0]),
        (9.2, 3.0, [0.0, 3.0, 6.2]),
        (10.0, 2.0, [0.0, 2.0, 4.0, 6.0, 7.0]),
    ],
)
def test_windows_cover_the_clip_and_the_last_ends_with_it(duration_s: float, hop_s: float, starts: list[float]) -> None:
    count = window_count(duration_s, 3.0, hop_s)
    assert [window_start(index, duration_s, 3.0, hop_s) for index in range(count)] == pytest.approx(starts)


def test_what_lies_behind_the_end_of_a_cut_file_is_refused_in_one_piece(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    data = clip.read_bytes()
    assert data.index(b"moov") > data.index(b"mdat")
    half = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2
    cut.write_bytes(data[:half] + bytes(data.index(b"moov") - half) + data[data.index(b"moov") :])
    *given, rest = streamed(cut)
    assert isinstance(rest, RefusedWindow)
    assert rest.reason is RejectReason.UNREADABLE
    assert 1 <= len(given) <= 2
    for made in given:
        assert_same(made, alone(clip, made.start_s, made.duration_s))
    assert (rest.start_s, rest.end_s) == (given[-1].end_s, given[-1].duration_s)


def test_what_is_no_clip_is_refused_before_the_first_window(clip: Path, decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="too_short"):
        streamed(clip, min_duration_s=11.0)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no clip")
    for path, reason in ((broken, "unreadable"), (tmp_path / "none.mp4", "missing")):
        with pytest.raises(RejectedError, match=reason):
            next(decoder.stream_windows(str(path), hop_s=3.0, **SETTINGS))


def test_the_child_streams_and_survives_its_death(clip: Path, decoder: Decoder) -> None:
    expected = streamed(clip, hop_s=1.25)
    windows = decoder.stream_windows(str(clip), hop_s=1.25, **SETTINGS)
    given = [next(windows), next(windows)]
    assert decoder.child_pid is not None
    os.kill(decoder.child_pid, signal.SIGKILL)
    given += windows
    assert len(given) == len(expected)
    for made, same in zip(given, expected, strict=True):
        assert isinstance(made, StreamedWindow)
        assert isinstance(same, StreamedWindow)
        np.testing.assert_array_equal(made.images, same.images)
        np.testing.assert_array_equal(made.sound, same.sound)
        assert (made.start_s, made.end_s) == (same.start_s, same.end_s)


def test_the_first_window_may_take_longer_the_more_sound_lies_before_it(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    class Answering:
        """A child that has one window to refuse."""

        is_busy = False

        def __init__(self, memory_bytes: int) -> None:
            self.answers = iter([pack_streamed(REFUSED), pack_end()])

        def ask(self, message: Message | None, timeout_s: float, most_bytes: int) -> Message:
            given.append(timeout_s)
            return next(self.answers)

        def end(self) -> None:
            pass

    monkeypatch.setattr(decoder_module, "_Child", Answering)
    for first in (0, 1000, 10**9):
        with Decoder(timeout_s=5.0) as decoder:
            assert len(list(decoder.stream_windows(str(clip), hop_s=3.0, first=first, **SETTINGS))) == 1
    # 3000 s of sound; and no file's word is believed without end.
    assert given == [5.0, 5.0, 155.0, 5.0, 3605.0, 5.0]


def test_a_stream_that_is_left_halfway_disturbs_no_other_clip(clip: Path, decoder: Decoder) -> None:
    windows = decoder.stream_windows(str(clip), hop_s=1.25, **SETTINGS)
    next(windows)
    windows.close()
    assert next(decoder.stream_windows(str(clip), hop_s=1.25, **SETTINGS)).start_s == 0.0


def test_a_child_that_dies_again_leaves_the_rest_refused(clip: Path, decoder: Decoder) -> None:
    windows = decoder.stream_windows(str(clip), hop_s=3.0, **SETTINGS)
    next(windows)
    for _ in range(2):
        assert decoder.child_pid is not None
        os.kill(decoder.child_pid, signal.SIGKILL)
        made = next(windows)
    assert isinstance(made, RefusedWindow)
    assert (made.reason, made.end_s) == (RejectReason.DECODER_CRASHED, made.duration_s)
    assert list(windows) == []
