import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest
from av.container import InputContainer

from data_prep import container
from data_prep.media_file import open_descriptor
from data_prep.rejects import RejectedError, RejectReason


class Counter:
    """A sink that counts frames, up to `limit`."""

    def __init__(self, limit: int = 10_000) -> None:
        self.limit = limit
        self.count = 0

    @property
    def done(self) -> bool:
        return self.count >= self.limit

    def add(self, frame: Any) -> None:
        self.count += 1


def rejected(uri: str) -> RejectedError:
    with (
        pytest.raises(RejectedError) as info,
        open_descriptor(uri) as descriptor,
        container.open_media(descriptor) as media,
    ):
        container.decode(media, {container.video_stream(media).index: Counter()})
    return info.value


def spans(uri: str) -> list[tuple[float, float]]:
    with open_descriptor(uri) as descriptor, container.open_media(descriptor) as media:
        return container.stream_spans(descriptor, container.video_stream(media), container.audio_stream(media))


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    with open_descriptor(str(path)) as descriptor, container.open_media(descriptor) as media:
        yield media


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts"])
def test_spans_of_picture_and_sound(clips: Any, tmp_path: Path, suffix: str) -> None:
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    sound = clips.tone(440, 2.5, 16_000)
    path = clips.write(tmp_path / f"clip{suffix}", sound=sound, video_codec=codec, audio_codec="mp2")
    picture, heard = spans(str(path))
    # MP2 comes in frames of 36 ms and its encoder adds some of its own; MPEG-TS begins its clock at 1.4 s.
    assert picture[1] - picture[0] == pytest.approx(3.0, abs=0.05)
    assert heard[1] - heard[0] == pytest.approx(2.5, abs=0.11)
    assert picture[0] == pytest.approx(heard[0], abs=0.1)


def test_a_file_that_does_not_tell_its_length_is_measured(clips: Any, tmp_path: Path) -> None:
    path = clips.write(tmp_path / "live.mkv", sound=clips.tone(440, 2.5, 16_000), options={"live": "1"})
    with opened(path) as media:
        assert media.duration is None
    picture, heard = spans(str(path))
    assert picture == pytest.approx((0.0, 3.0))
    assert heard == pytest.approx((0.0, 2.5), abs=0.064)  # AAC comes in frames of 64 ms.


def test_decoding_stops_when_its_sinks_are_done(clips: Any, tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", sound=clips.tone(440, 3.0, 16_000))
    with opened(path) as media:
        picture, sound = Counter(limit=10), Counter()
        container.decode(media, {media.streams.video[0].index: picture, media.streams.audio[0].index: sound})
    assert picture.count == 10
    assert 45 <= sound.count <= 50  # 48,000 samples in frames of 1,024: the picture's end is not the sound's.
    with opened(path) as media:
        sound = Counter()
        container.decode(media, {media.streams.audio[0].index: sound})
    assert 45 <= sound.count <= 50


def test_files_that_are_no_media_are_rejected_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is no film. " * 50)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")  # Nobody will ever write into it.
    reasons = {path.name: rejected(str(path)) for path in tmp_path.iterdir()}
    assert {name: error.reason for name, error in reasons.items()} == {
        "empty.mp4": RejectReason.UNREADABLE,
        "text.mp4": RejectReason.UNREADABLE,
        "folder.mp4": RejectReason.UNREADABLE,
        "nowhere.mp4": RejectReason.MISSING,
        "pipe.mp4": RejectReason.UNREADABLE,
    }
    assert reasons["pipe.mp4"].detail == "it is no regular file"
    assert reasons["text.mp4"].detail == "decoding failed: Invalid data found when processing input"
    assert rejected(str(tmp_path / "no.mp4")).reason is RejectReason.MISSING


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile 'segment.ts'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsegment.ts\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_cannot_make_the_decoder_open_other_files(
    clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, playlist: str
) -> None:
    clips.write(tmp_path / "segment.ts", sound=clips.tone(440, 3.0, 16_000))
    (tmp_path / "clip.mp4").write_text(playlist)
    monkeypatch.chdir(tmp_path)
    assert rejected(str(tmp_path / "clip.mp4")).reason is RejectReason.UNREADABLE


def test_streams_that_are_not_there_are_rejected(clips: Any, tmp_path: Path) -> None:
    mute = clips.write(tmp_path / "mute.mp4")
    blind = clips.write(tmp_path / "blind.mp4", frame_times=[], sound=clips.tone(440, 3.0, 16_000))
    assert rejected(str(blind)).reason is RejectReason.NO_VIDEO
    with opened(mute) as media, pytest.raises(RejectedError) as info:
        container.audio_stream(media)
    assert info.value.reason is RejectReason.NO_AUDIO


def test_a_cover_is_no_video(clips: Any, tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as media:
        cover = media.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = media.add_stream("aac", rate=16_000, layout="mono")
        frame = av.VideoFrame.from_ndarray(clips.image(3), format="rgb24").reformat(format="yuvj420p")
        frame.pts = 0
        media.mux(cover.encode(frame))
        media.mux(cover.encode(None))
        media.mux(sound.encode(clips.audio_frame(clips.tone(440, 1.0, 16_000)[:1024], 16_000, 0.0)))
        media.mux(sound.encode(None))
    assert rejected(str(path)).reason is RejectReason.NO_VIDEO


def test_a_file_may_be_open_twice(clips: Any, tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", sound=clips.tone(440, 3.0, 16_000))
    counts = []
    with open_descriptor(str(path)) as descriptor, container.open_media(descriptor) as first:
        for packet in first.demux(video=0):
            if packet.pts == 0:
                with container.open_media(descriptor) as second:
                    counts.append(sum(1 for _ in second.decode(video=0)))
            counts.append(len(packet.decode()))
        assert sum(counts[1:]) == counts[0] == 75
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0


def test_packets_wait_for_a_key_frame_in_bounds(clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(needed_from_s: float) -> tuple[int, int]:
        """Packets that were left out, and the most that waited."""
        with opened(path) as media:
            skipper = container.Skipper(needed_from_s)
            given, most, seen = 0, 0, 0
            for seen, packet in enumerate(media.demux(video=0), 1):
                given += len(skipper.ready(packet))
                most = max(most, seen - given - skipper.num_skipped)
            assert given + skipper.num_skipped == seen
        return skipper.num_skipped, most

    coder = {"g": "25", "bf": "2"}
    sound = clips.tone(440, 9.0, 16_000)
    path = clips.write(tmp_path / "clip.mp4", frame_times=[i / 25 for i in range(225)], sound=sound, coder=coder)
    # A key frame a second; with B frames, the packets of a second end a little after it.
    for needed, skipped in ((0.0, 0), (0.99, 0), (1.0, 25), (6.5, 150), (6.99, 150), (7.0, 175), (8.9, 200)):
        left_out, most = count(needed)
        assert left_out == skipped
        assert most <= 27
    with opened(path) as media:
        picture_bytes = sum(packet.size for packet in media.demux(video=0))
    monkeypatch.setattr(container, "_MOST_HELD_BYTES", picture_bytes // 4)
    assert count(6.5)[0] == 150
    monkeypatch.setattr(container, "_MOST_HELD_BYTES", picture_bytes // 100)
    assert count(6.5)[1] < 10


def test_nothing_is_left_out_where_clocks_are_missing_or_run_backwards() -> None:
    class Packet:
        time_base, size, is_keyframe, is_discard = 0.04, 100, True, False

        def __init__(self, pts: int | None, dts: int | None) -> None:
            self.pts, self.dts = pts, dts

    def skipped(*stamps: tuple[int | None, int | None]) -> int:
        skipper = container.Skipper(needed_from_s=1.0)
        for pts, dts in stamps:
            skipper.ready(Packet(pts, dts))
        return skipper.num_skipped

    assert skipped((0, 0), (1, 1), (2, 2), (30, 30)) == 2
    assert skipped((0, None), (1, 0), (2, 1), (30, 30)) == 2
    assert skipped((0, 0), (None, 1), (2, 2)) == 0
    assert skipped((5, 0), (4, 1), (3, 2)) == 0
    assert skipped((5, 0), (5, 1), (6, 2)) == 2
    assert skipped((0, 0), (30, 30), (1, 31)) == 0
