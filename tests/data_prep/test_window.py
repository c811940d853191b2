import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_prep import container, window
from data_prep.media_file import open_descriptor
from data_prep.rejects import RejectedError, RejectReason
from data_prep.video_filter import VideoFilter
from data_prep.window import ClipWindow

RATE = 16_000
PCM = "pcm_s16le"


def read(path: Path, audio: Path | None = None, **changes: Any) -> ClipWindow:
    settings: Any = {
        "window_s": 3.0,
        "place": 0.5,
        "num_frames": 8,
        "min_duration_s": 0.5,
        "leading_silence_db": -40.0,
    }
    with open_descriptor(str(path)) as video:
        if audio is None:
            return window.read_window(video, None, **settings | changes)
        with open_descriptor(str(audio)) as sound:
            return window.read_window(video, sound, **settings | changes)


def rejected(path: Path, **changes: Any) -> tuple[RejectReason, str]:
    with pytest.raises(RejectedError) as info:
        read(path, **changes)
    return info.value.reason, info.value.detail


def numbers(clips: Any, clip: ClipWindow) -> list[int]:
    return [clips.number(image.transpose(2, 0, 1)) for image in clip.images]


def middles(clip: ClipWindow, seconds: float = 3.0) -> np.ndarray:
    """The moments that the eight frames stand for."""
    return clip.start_s + (np.arange(8) + 0.5) * seconds / 8


def pitch(sound: np.ndarray, second: float) -> int:
    """Which second of `rising_tones` sounds in the 100 ms after `second`."""
    part = sound[round(second * RATE) :][: RATE // 10]
    return round(np.abs(np.fft.rfft(part)).argmax() * 10 / 500) - 1


class TestTrimming:
    def write(self, clips: Any, path: Path) -> None:
        """5 s of picture; the sound is silent for 1.2 s, then rises for 3 s, and is silent to the end."""
        sound = np.concatenate([np.zeros(round(1.2 * RATE)), clips.rising_tones(3), np.zeros(round(0.8 * RATE))])
        clips.write(path, frame_times=np.arange(125) / 25, sound=sound, audio_codec=PCM)

    def test_silence_goes_from_the_sound_and_the_same_stretch_from_the_picture(
        self, clips: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "clip.mkv"
        self.write(clips, path)
        clip = read(path, trim_silence=True)
        assert (clip.trimmed_leading_s, clip.trimmed_trailing_s) == (1.2, pytest.approx(0.8))
        assert (clip.duration_s, clip.start_s) == (pytest.approx(3.0), pytest.approx(0.0))
        assert clip.leading_silence_s == 0
        assert clip.trailing_silence_s == pytest.approx(0, abs=0.01)
        assert numbers(clips, clip) == [int((1.2 + moment) * 25 + 1e-3) for moment in middles(clip)]
        assert [pitch(clip.sound, second) for second in (0.5, 1.5, 2.5)] == [0, 1, 2]
        np.testing.assert_allclose(clip.frame_times_s, np.array(numbers(clips, clip)) / 25 - 1.2, atol=1e-3)
        assert clip.facts.duration_s == pytest.approx(5.0)
        # Half as loud over 5 s as over 3 s.
        assert read(path).loudness_dbfs - clip.loudness_dbfs == pytest.approx(10 * np.log10(3 / 5), abs=0.02)

    def test_silence_stays_unless_it_is_to_go(self, clips: Any, tmp_path: Path) -> None:
        path = tmp_path / "clip.mkv"
        self.write(clips, path)
        clip = read(path)
        assert (clip.leading_silence_s, clip.trailing_silence_s) == (1.2, pytest.approx(0.8))
        assert (clip.duration_s, clip.trimmed_leading_s, clip.trimmed_trailing_s) == (pytest.approx(5.0), 0, 0)

    def test_sound_of_its_own_file_is_trimmed_too(self, clips: Any, tmp_path: Path) -> None:
        picture, voice = tmp_path / "picture.mkv", tmp_path / "voice.wav"
        clips.write(picture, frame_times=2 + np.arange(125) / 25)
        sound = np.concatenate([np.zeros(RATE), clips.rising_tones(3), np.zeros(RATE)])
        clips.write(voice, frame_times=[], sound=sound, audio_codec=PCM)
        clip = read(picture, voice, trim_silence=True)
        assert (clip.trimmed_leading_s, clip.trimmed_trailing_s) == (1.0, pytest.approx(1.0, abs=0.01))
        assert numbers(clips, clip) == [int((1 + moment) * 25 + 1e-3) for moment in middles(clip)]
        assert pitch(clip.sound, 0.0) == 0

    def test_what_is_left_must_be_long_enough(self, clips: Any, tmp_path: Path) -> None:
        sound = np.zeros(3 * RATE, np.float32)
        sound[RATE : RATE + 6400] = clips.tone(1000, 0.4, RATE)
        path = clips.write(tmp_path / "clip.mkv", sound=sound, audio_codec=PCM)
        expected = "it runs, without the silence at its ends, for 0.40 s, under 0.5 s"
        assert rejected(path, trim_silence=True) == (RejectReason.TOO_SHORT, expected)
        assert read(path).duration_s == pytest.approx(3.0)
        silent = clips.write(tmp_path / "silent.mkv", sound=0 * sound, audio_codec=PCM)
        assert rejected(silent, trim_silence=True)[0] is RejectReason.SILENT


def test_level_and_trailing_silence_of_the_whole_clip(clips: Any, tmp_path: Path) -> None:
    # A tone of amplitude 0.5 has the RMS 0.5 / sqrt(2); here it fills 4 s of 9, most of them outside the window.
    sound = np.zeros(9 * RATE, np.float32)
    sound[: 4 * RATE] = clips.tone(1000, 4.0, RATE, amplitude=0.5)
    path = clips.write(tmp_path / "clip.mkv", frame_times=np.arange(225) / 25, sound=sound, audio_codec=PCM)
    clip = read(path)
    assert clip.loudness_dbfs == pytest.approx(10 * np.log10(0.5**2 / 2 * 4 / 9), abs=0.01)
    assert clip.trailing_silence_s == pytest.approx(5.0)
    silent = clips.write(tmp_path / "silent.mkv", sound=np.zeros(3 * RATE), audio_codec=PCM)
    assert read(silent).loudness_dbfs == -np.inf
    assert read(silent).trailing_silence_s == read(silent).leading_silence_s == read(silent).duration_s


@pytest.mark.parametrize("speed", [1.25, 0.8])
def test_a_faster_clip_is_a_longer_window(clips: Any, tmp_path: Path, speed: float) -> None:
    path = clips.write(tmp_path / "clip.mp4", frame_times=np.arange(225) / 25, sound=clips.rising_tones(9))
    clip = read(path, speed=speed)
    assert clip.start_s == pytest.approx((9 - 3 * speed) / 2, abs=0.01)
    assert len(clip.sound) == round(3 * speed * RATE)
    assert numbers(clips, clip) == [int(moment * 25 + 1e-3) for moment in middles(clip, 3 * speed)]
    assert [pitch(clip.sound, second - clip.start_s) for second in (4.2, 5.2)] == [4, 5]


def test_a_faster_clip_that_is_too_short_is_repeated(clips: Any, tmp_path: Path) -> None:
    path = clips.write(
        tmp_path / "clip.mkv", frame_times=np.arange(50) / 25, sound=clips.rising_tones(2), audio_codec=PCM
    )
    clip = read(path, speed=1.25)
    assert len(clip.sound) == round(3.75 * RATE)
    assert [pitch(clip.sound, second) for second in (0.5, 1.5, 2.5, 3.5)] == [0, 1, 0, 1]
    assert numbers(clips, clip) == [int(moment % 2 * 25 + 1e-3) for moment in middles(clip, 3.75)]


def test_frames_pass_the_filter_before_they_are_chosen(clips: Any, tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", frame_times=np.arange(125) / 25, sound=clips.tone(1000, 5.0, RATE))
    plain, sparse = read(path), read(path, video_filter=VideoFilter(drop_share=0.9, seed=1))
    shown = np.array(numbers(clips, sparse))
    assert (shown <= numbers(clips, plain)).all()
    assert (shown < numbers(clips, plain)).any()
    np.testing.assert_allclose(sparse.frame_times_s, shown / 25, atol=1e-3)
    coarse = read(path, video_filter=VideoFilter(codec="mpeg4", quality=31))
    assert not np.array_equal(coarse.images[0], plain.images[0])
    np.testing.assert_array_equal(coarse.frame_times_s, plain.frame_times_s)


class TestRotation:
    @pytest.mark.parametrize("mirrored", [False, True])
    @pytest.mark.parametrize("rotation", [0, 90, 180, 270])
    def test_pictures_stand_as_a_player_shows_them(
        self, clips: Any, tmp_path: Path, rotation: int, mirrored: bool
    ) -> None:
        path, plain = tmp_path / "turned.mp4", tmp_path / "plain.mp4"
        clips.write(plain, sound=clips.tone(1000, 3.0, RATE))
        clips.write(path, sound=clips.tone(1000, 3.0, RATE), rotation=rotation, mirrored=mirrored)
        turned, stored = read(path), read(plain)
        for image, original in zip(turned.images, stored.images, strict=True):
            expected = np.rot90(original, rotation // 90)
            np.testing.assert_array_equal(image, expected[:, ::-1] if mirrored else expected)
        if not mirrored:
            assert turned.facts.rotation == rotation

    def test_width_and_height_are_those_of_the_shown_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "phone.mp4"
        with av.open(str(path), "w") as media:
            video = media.add_stream("libx264", rate=25, width=96, height=64, pix_fmt="yuv420p")
            video.set_display_rotation(-90)
            sound = media.add_stream("aac", rate=RATE, layout="mono")
            for index in range(25):
                frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 90, np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                media.mux(video.encode(frame))
            media.mux(video.encode(None))
            samples = av.AudioFrame.from_ndarray(np.full((1, RATE), 0.1, np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = RATE, 0
            media.mux(sound.encode(samples))
            media.mux(sound.encode(None))
        clip = read(path)
        assert clip.images[0].shape == (96, 64, 3)
        assert (clip.facts.width, clip.facts.height, clip.facts.rotation) == (64, 96, 270)
        with open_descriptor(str(path)) as descriptor:
            assert window.probe(descriptor, None) == clip.facts
        # A coder on the way knows nothing of the rotation, which is applied after it.
        assert read(path, video_filter=VideoFilter(codec="mpeg4", quality=5)).images[0].shape == (96, 64, 3)


@pytest.mark.parametrize(
    ("name", "video_codec", "audio_codec", "rate"),
    [
        ("clip.mp4", "libx264", "aac", RATE),
        ("clip.mp4", "libx265", "aac", 44_100),
        ("clip.webm", "libvpx-vp9", "libopus", 48_000),
        ("clip.avi", "mpeg4", "mp3", 44_100),
        ("clip.avi", "mjpeg", PCM, 8000),
        ("clip.mpg", "mpeg1video", "mp2", 44_100),
        ("clip.ts", "mpeg2video", "mp2", 48_000),
        ("clip.mkv", "libx265", "flac", RATE),
        ("clip.ts", "libx264", "aac", 48_000),
        ("clip.flv", "libx264", "aac", 44_100),
    ],
)
def test_pictures_and_facts_of_every_kind_of_file(
    clips: Any, tmp_path: Path, name: str, video_codec: str, audio_codec: str, rate: int
) -> None:
    path = clips.write(
        tmp_path / name,
        frame_times=np.arange(125) / 25,
        sound=clips.tone(1000, 5.0, rate),
        rate=rate,
        video_codec=video_codec,
        audio_codec=audio_codec,
    )
    clip = read(path)
    begun = clip.frame_times_s - np.array(numbers(clips, clip)) / 25  # 0, but for a stream that begins late.
    np.testing.assert_allclose(begun, begun[0], atol=2e-3)
    assert abs(begun[0]) < 0.1
    np.testing.assert_array_less(clip.frame_times_s, middles(clip) + 2e-3)
    np.testing.assert_array_less(middles(clip) - 0.042, clip.frame_times_s)
    assert pitch(clip.sound, 1.0) == 1
    facts = clip.facts
    assert (facts.width, facts.height, facts.rotation, facts.channels) == (64, 64, 0, 1)
    assert facts.sample_rate == rate
    assert facts.fps == pytest.approx(25, rel=0.01)
    assert facts.duration_s == pytest.approx(5.0, abs=0.12)
    assert facts.file_bytes == path.stat().st_size
    assert facts.bit_rate == pytest.approx(8 * path.stat().st_size / 5.0, rel=0.03)
    assert {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9"}.get(
        video_codec, video_codec
    ) == facts.video_codec
    assert facts.audio_codec.removesuffix("float") == audio_codec.removeprefix("lib")
    with open_descriptor(str(path)) as descriptor:
        assert window.probe(descriptor, None) == facts


def test_uneven_frames_are_shown_until_the_next_comes(clips: Any, tmp_path: Path) -> None:
    times = np.sort(np.random.default_rng(4).choice(np.arange(1, 900), 120, replace=False)) / 100
    times[0] = 0
    path = clips.write(tmp_path / "clip.mkv", frame_times=times, sound=clips.tone(1000, 9.0, RATE), audio_codec=PCM)
    for place in (0.0, 0.4, 1.0):
        clip = read(path, place=place)
        assert numbers(clips, clip) == [int(np.searchsorted(times, time, "right")) - 1 for time in middles(clip)]


class TestSkipping:
    """A clip of 9 s with a key frame every second; the window needs its frames from 6 s on."""

    def write(self, clips: Any, path: Path, **changes: Any) -> Path:
        settings = {"coder": {"g": "25", "bf": "2"}, "frame_times": np.arange(225) / 25} | changes
        return clips.write(path, sound=clips.tone(1000, 9.0, 48_000), rate=48_000, **settings)

    def both(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
    ) -> tuple[ClipWindow, ClipWindow, int, int]:
        """With and without skipping: what was decoded, and how many frames were."""
        seen: list[av.VideoFrame] = []
        add = window.FirstFrame.add

        def counted(sink: window.FirstFrame, frame: av.VideoFrame) -> None:
            seen.append(frame)
            add(sink, frame)

        monkeypatch.setattr(window.FirstFrame, "add", counted)
        skipped = read(path, place=0.98, **changes)
        num_skipped = len(seen)
        monkeypatch.setattr(container, "_MOST_HELD_BYTES", -1)
        whole = read(path, place=0.98, **changes)
        monkeypatch.undo()
        return skipped, whole, num_skipped, len(seen) - num_skipped

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("clip.mp4", {}),
            ("open.mp4", {"coder": {"g": "25", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"}}),
            ("clip.mkv", {}),
            ("clip.ts", {}),
            ("hevc.mp4", {"video_codec": "libx265", "coder": {"x265-params": "keyint=25:open-gop=1:log-level=none"}}),
            ("vp9.webm", {"video_codec": "libvpx-vp9", "audio_codec": "libopus"}),
            ("mpeg2.ts", {"video_codec": "mpeg2video", "audio_codec": "mp2"}),
            ("jpeg.mov", {"video_codec": "mjpeg", "audio_codec": PCM, "coder": {}}),
        ],
    )
    def test_pictures_are_the_same_and_fewer_are_decoded(
        self, clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]
    ) -> None:
        path = self.write(clips, tmp_path / name, **changes)
        skipped, whole, few, many = self.both(path, monkeypatch)
        np.testing.assert_array_equal(np.stack(skipped.images), np.stack(whole.images))
        np.testing.assert_array_equal(skipped.sound, whole.sound)
        np.testing.assert_array_equal(skipped.frame_times_s, whole.frame_times_s)
        assert skipped.leading_silence_s == whole.leading_silence_s
        assert numbers(clips, skipped)[0] > 140
        # Of the 225 frames, over 5 s lie before the key frame.
        assert many >= 210
        assert few <= many - 120

    def test_a_filter_gets_all_frames_of_the_window(
        self, clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.write(clips, tmp_path / "clip.mp4")
        coder = VideoFilter(codec="h264", quality=40, drop_share=0.3, seed=2)
        skipped, whole, few, many = self.both(path, monkeypatch, video_filter=coder)
        np.testing.assert_array_equal(np.stack(skipped.images), np.stack(whole.images))
        assert few < many

    def test_key_frames_that_are_none_are_found_out(
        self, clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        only_one = {"g": "500", "sc_threshold": "1000000000"}
        for name, codec in (("x.mkv", "libx264"), ("m.mkv", "mpeg4")):
            path = self.write(clips, tmp_path / name, video_codec=codec, coder=only_one)
            lying = tmp_path / f"lying_{name}"
            with av.open(str(path)) as source, av.open(str(lying), "w") as copy:
                streams = {stream.index: copy.add_stream_from_template(stream) for stream in source.streams}
                for packet in source.demux():
                    if packet.dts is not None:
                        packet.stream = streams[packet.stream_index]
                        packet.is_keyframe = True
                        copy.mux(packet)
            skipped, whole, few, many = self.both(lying, monkeypatch)
            np.testing.assert_array_equal(np.stack(skipped.images), np.stack(whole.images))
            assert few >= many  # All was decoded again.

    def damaged(self, clips: Any, path: Path, first_s: float, last_s: float) -> Path:
        """The clip with the picture's packets between two moments overwritten."""
        self.write(clips, path, coder={"g": "25", "bf": "0"})
        data = bytearray(path.read_bytes())
        with av.open(str(path)) as media:
            for packet in media.demux(video=0):
                if packet.pts is not None and first_s <= packet.time_base * packet.pts < last_s:
                    data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
        path.write_bytes(data)
        return path

    def test_damage_counts_where_a_frame_is_needed(self, clips: Any, tmp_path: Path) -> None:
        before = self.damaged(clips, tmp_path / "before.mp4", 1.0, 4.0)
        assert numbers(clips, read(before, place=1.0)) == [int((6 + (i + 0.5) * 0.375) * 25 + 1e-3) for i in range(8)]
        assert rejected(before, place=0.0)[0] is RejectReason.UNREADABLE
        within = self.damaged(clips, tmp_path / "within.mp4", 6.9, 7.5)
        assert rejected(within, place=1.0)[0] is RejectReason.UNREADABLE


class TestClocks:
    """Time stamps that are damaged, hours away or absurd."""

    def write(self, path: Path, clips: Any, *, shift: dict[int, float], copied: Path) -> Path:
        """Copies a clip of 3 s with the packets of stream 0 or 1 from 2 s on shifted by some seconds."""
        clips.write(copied, sound=clips.tone(1000, 3.0, RATE), audio_codec=PCM)
        with av.open(str(copied)) as source, av.open(str(path), "w") as copy:
            streams = {stream.index: copy.add_stream_from_template(stream) for stream in source.streams}
            for packet in source.demux():
                if packet.dts is None:
                    continue
                seconds = shift.get(packet.stream_index, 0.0)
                if seconds and packet.pts * packet.time_base >= 2:
                    packet.pts += round(seconds / packet.time_base)
                    packet.dts = packet.pts
                packet.stream = streams[packet.stream_index]
                copy.mux(packet)
        return path

    @pytest.mark.parametrize("hours", [12, 10_000])
    @pytest.mark.parametrize("suffix", [".mkv", ".mov"])
    @pytest.mark.parametrize("streams", [(0,), (1,), (0, 1)])
    def test_hours_that_are_not_there_cost_nothing(
        self, clips: Any, tmp_path: Path, measured: list[int], hours: int, suffix: str, streams: tuple[int, ...]
    ) -> None:
        shift = dict.fromkeys(streams, hours * 3600.0)
        path = self.write(tmp_path / f"clip{suffix}", clips, shift=shift, copied=tmp_path / f"plain{suffix}")
        try:
            clip = read(path)
        except RejectedError as error:
            outcome = f"{error.reason}: {error.detail}"
        else:
            # One stream ends in time, and so does the clip, or the container has dropped what is too far away.
            outcome = f"{clip.duration_s:.1f} s"
        # The 3 s there are, twice where the clip is decoded again; an hour of silence would be 57,600,000 samples.
        assert sum(measured) < 8 * RATE
        assert re.fullmatch(r"[23]\.0 s|unreadable: the sound is interrupted for .*", outcome)

    def test_a_clock_that_begins_far_from_zero(self, clips: Any, tmp_path: Path) -> None:
        for start in (-7.0, 43_200.0):
            times = start + np.arange(100) / 25
            path = tmp_path / "clip.mkv"
            clips.write(path, frame_times=times, sound=clips.rising_tones(4), sound_start=start, audio_codec=PCM)
            clip = read(path)
            assert clip.duration_s == pytest.approx(4.0, abs=0.1)
            assert numbers(clips, clip) == [int(moment * 25 + 1e-3) for moment in middles(clip)]
            assert [pitch(clip.sound, second - clip.start_s) for second in (1.2, 2.2)] == [1, 2]
