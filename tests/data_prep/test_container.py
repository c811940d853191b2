import os
from pathlib import Path
from typing import Any

import av
import pytest

from data_prep import container
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
    with pytest.raises(RejectedError) as info, container.open_media(uri) as media:
        container.decode(media, {container.video_stream(media).index: Counter()})
    return info.value


def spans(uri: str) -> list[tuple[float, float]]:
    with container.open_media(uri) as media:
        return container.stream_spans(uri, container.video_stream(media), container.audio_stream(media))


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
    with container.open_media(str(path)) as media:
        assert media.duration is None
    picture, heard = spans(str(path))
    assert picture == pytest.approx((0.0, 3.0))
    assert heard == pytest.approx((0.0, 2.5), abs=0.064)  # AAC comes in frames of 64 ms.


def test_decoding_stops_when_its_sinks_are_done(clips: Any, tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", sound=clips.tone(440, 3.0, 16_000))
    with container.open_media(str(path)) as media:
        picture, sound = Counter(limit=10), Counter()
        container.decode(media, {media.streams.video[0].index: picture, media.streams.audio[0].index: sound})
    assert picture.count == 10
    assert 45 <= sound.count <= 50  # 48,000 samples in frames of 1,024: the picture's end is not the sound's.
    with container.open_media(str(path)) as media:
        sound = Counter()
        container.decode(media, {media.streams.audio[0].index: sound})
    assert 45 <= sound.count <= 50


def test_files_that_are_no_media_are_rejected_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is no film. " * 50)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
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
    with container.open_media(str(mute)) as media, pytest.raises(RejectedError) as info:
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


def test_a_bucket_is_read_through_storage(clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips.write(tmp_path / "clip.mp4", sound=clips.tone(440, 3.0, 16_000))
    objects = {"s3://bucket/clip.mp4": path.read_bytes()}

    def read(uri: str) -> bytes:
        if uri not in objects:
            raise FileNotFoundError(uri)
        return objects[uri]

    monkeypatch.setattr(container.storage, "read", read)
    assert spans("s3://bucket/clip.mp4") == spans(str(path))
    assert rejected("s3://bucket/other.mp4").reason is RejectReason.MISSING
