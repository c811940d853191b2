"""Files of the fuzz test that are odd as a whole: what no decoder should open, and clips that no camera writes."""

import io
import os
import shutil
import socket
import struct
import wave
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.rejects import RejectReason
from tests.data_prep.fuzz_media import CODECS, RATE, Media, picture, tone, write

ROW = "row"
"""The outcome of a file that becomes a row of the corpus; the others are reasons."""
UNREADABLE, NO_AUDIO, NO_VIDEO = RejectReason.UNREADABLE, RejectReason.NO_AUDIO, RejectReason.NO_VIDEO
TOO_SHORT, SILENT, MISSING = RejectReason.TOO_SHORT, RejectReason.SILENT, RejectReason.MISSING
NO_MEMORY = "no memory"
"""The outcome of a file for which the decoder asks for more memory than it may have (a reason: decoder_crashed)."""
HALF_DAY_S = 12 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FuzzFile:
    """One file, and what may become of it."""

    name: str
    """Below the folder."""
    group: str
    """What was done to it."""
    outcomes: frozenset[str]
    """ROW, NO_MEMORY, and those of the reasons that are right."""
    same_as: str | None = None
    """The base whose bytes its row must hold."""
    audio: str | None = None
    """The file of its sound, where that is another one."""


@dataclass
class Bases:
    """The folder of the test with one whole clip of each container."""

    folder: Path
    names: dict[str, str] = field(default_factory=dict)
    """Container -> file name."""

    def __post_init__(self) -> None:
        for container, (video, audio) in CODECS.items():
            self.names[container] = f"base.{container}"
            options = (("movflags", "faststart"),) if container == "mov" else ()
            media = Media(video_codec=video, audio_codec=audio, options=options)
            write(self.folder / self.names[container], media)

    def path(self, container: str) -> Path:
        return self.folder / self.names[container]


def odd_files(bases: Bases) -> Iterator[FuzzFile]:
    """Every kind once or a few times; each is written just before it is yielded."""
    for kind in (_renamed, _no_media, _scripts, _no_regular_files, _sounds, _lone_streams, _short, _sizes):
        yield from kind(bases)
    for kind in (_time_stamps, _declared_lengths, _joined, _separate_sounds):
        yield from kind(bases)


def _file(group: str, name: str, *outcomes: str, same_as: str | None = None, audio: str | None = None) -> FuzzFile:
    return FuzzFile(name=name, group=group, outcomes=frozenset(outcomes), same_as=same_as, audio=audio)


def _renamed(bases: Bases) -> Iterator[FuzzFile]:
    suffixes = [*bases.names, "txt", "m3u8", "png", "ffconcat", "wav", ""]
    for number, container in enumerate(bases.names):
        for suffix in suffixes[number + 1 :: 3]:
            name = f"wrong_{container}.{suffix}"
            shutil.copy(bases.path(container), bases.folder / name)
            yield _file("wrong extension", name, ROW, same_as=container)
    names = [
        "-i",
        "a b.mp4",
        "concat:base.mp4|base.mkv",
        "http:x.mp4",
        "%03d.mp4",
        "naïve ☃.mp4",
        "*.mp4",
        "fd:",
        "pipe:0",
    ]
    names += ["a\nb.mp4", "'quoted\".mp4", "data:,x", "n" * 250 + ".mp4", "file.mp4 -f lavfi", "$(id).mp4"]
    for name, container in zip(names, list(bases.names) * 3, strict=False):
        shutil.copy(bases.path(container), bases.folder / name)
        yield _file("renamed", name, ROW, same_as=container)


def _no_media(bases: Bases) -> Iterator[FuzzFile]:
    for container in bases.names:
        (bases.folder / f"zero.{container}").write_bytes(b"")
        yield _file("zero bytes", f"zero.{container}", UNREADABLE)
        (bases.folder / f"zeros.{container}").write_bytes(bytes(bases.path(container).stat().st_size))
        yield _file("only zeros", f"zeros.{container}", UNREADABLE)
    contents = {
        "text": b"This is no clip.\n" * 200,
        "json": b'{"clip": [1, 2, 3]}',
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "script": b"#!/bin/sh\nexit 1\n",
        "one_byte": b"\0",
        "ftyp": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
        "riff": b"RIFF\xff\xff\xff\x7fAVI LIST",
        "ebml": b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 7,
        "pack": b"\0\0\1\xba" * 50,
        "git_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    }
    for name, content in contents.items():
        (bases.folder / f"{name}.mp4").write_bytes(content)
        # Some of them begin like a container, which then holds no stream at all.
        yield _file("no media", f"{name}.mp4", UNREADABLE, NO_VIDEO)
    with zipfile.ZipFile(bases.folder / "zip.mp4", "w") as archive:
        archive.write(bases.path("mp4"), "clip.mp4")
    yield _file("no media", "zip.mp4", UNREADABLE, NO_VIDEO)


def _scripts(bases: Bases) -> Iterator[FuzzFile]:
    """Text that tells a player to open a file, which stands there (a row would show that it did), or an address."""
    with socket.create_server(("localhost", 0)) as server:
        server.setblocking(False)
        host, port = server.getsockname()[:2]
        for number, (name, script) in enumerate(_script_texts(bases.path("mp4"), host, port).items()):
            for suffix in ("mp4", ("ffconcat", "m3u8", "mpd", "sdp")[number % 4]):
                (bases.folder / f"{name}.{suffix}").write_text(script)
                yield _file("script", f"{name}.{suffix}", UNREADABLE, NO_VIDEO)
        try:
            server.accept()
        except BlockingIOError:
            return
        raise AssertionError("a script made the decoder open a connection")


def _script_texts(clip: Path, host: str, port: int) -> dict[str, str]:
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1.2,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "concat": f"ffconcat version 1.0\nfile {clip.name}\n",
        "concat_absolute": f"ffconcat version 1.0\nfile '{clip}'\n",
        "hls": playlist.format(clip.name),
        "hls_file": playlist.format(f"file://{clip}"),
        "hls_address": playlist.format(f"http://{host}:{port}/x.ts"),
        "pls": f"[playlist]\nFile1={clip}\nNumberOfEntries=1\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 {host}\ns=x\nc=IN IP4 {host}\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        f'<Representation id="1"><BaseURL>{clip}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nHello\n\n2\n00:00:01,000 --> 00:00:02,000\nworld\n",
    }


def _no_regular_files(bases: Bases) -> Iterator[FuzzFile]:
    folder = bases.folder
    (folder / "folder.mp4").mkdir()
    yield _file("directory", "folder.mp4", UNREADABLE)
    (folder / "folder.link.mp4").symlink_to("folder.mp4")
    yield _file("directory", "folder.link.mp4", UNREADABLE)
    os.mkfifo(folder / "pipe.mp4")
    yield _file("pipe", "pipe.mp4", UNREADABLE)
    (folder / "pipe.link.mp4").symlink_to("pipe.mp4")
    yield _file("pipe", "pipe.link.mp4", UNREADABLE)
    with socket.socket(socket.AF_UNIX) as server:
        descriptor = os.open(folder, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{descriptor}/socket.mp4")  # The folder's own name may be too long for a socket.
        os.close(descriptor)
        yield _file("socket", "socket.mp4", UNREADABLE)
    for container, name in bases.names.items():
        (folder / f"link.{container}").symlink_to(name)
        yield _file("symbolic link", f"link.{container}", ROW, same_as=container)
    for name, target in {"out": "/dev/zero", "up": "../outside.mp4", "null": "/dev/null"}.items():
        (folder / f"{name}.mp4").symlink_to(target)
        yield _file("link out of its root", f"{name}.mp4", UNREADABLE)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    yield _file("link loop", "loop.mp4", UNREADABLE)
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    yield _file("missing", "dangling.mp4", MISSING)
    yield _file("missing", "nowhere/at_all.mp4", MISSING)
    yield _file("below a file", "base.mp4/below.mp4", MISSING, UNREADABLE)


def _sounds(bases: Bases) -> Iterator[FuzzFile]:
    whole = tone()
    one_bad = whole.copy()
    one_bad[len(whole) // 7] = np.nan
    float_sounds: dict[str, tuple[np.ndarray, set[str]]] = {
        "nan": (np.full_like(whole, np.nan), {UNREADABLE}),
        "one_nan": (one_bad, {UNREADABLE}),
        "infinite": (np.where(whole > 0, np.inf, whole), {UNREADABLE}),
        # Finite, but no sound: its square, or already a sum of two, is beyond float32.
        "enormous": (whole * 1e30, {ROW, UNREADABLE}),
        "largest": (np.sign(whole) * np.finfo(np.float32).max, {ROW, UNREADABLE}),
        "smallest": (np.full_like(whole, 1e-45), {SILENT}),
    }
    for name, (sound, outcomes) in float_sounds.items():
        for container in ("mkv", "avi"):
            media = Media(audio_codec="pcm_f32le", sound=sound)
            write(bases.folder / f"{name}.{container}", media)
            yield _file("no number" if outcomes == {UNREADABLE} else "level", f"{name}.{container}", *outcomes)
    for container, (video, audio) in CODECS.items():
        for name, amplitude in {"digital": 0.0, "faint": 1e-4}.items():  # The latter is -83 dBFS.
            media = Media(video_codec=video, audio_codec=audio, sound=tone(amplitude))
            write(bases.folder / f"{name}_silence.{container}", media)
            yield _file("silent sound", f"{name}_silence.{container}", SILENT)


def _lone_streams(bases: Bases) -> Iterator[FuzzFile]:
    for container, (video, audio) in CODECS.items():
        write(bases.folder / f"picture_only.{container}", Media(video_codec=video, audio_codec=None))
        yield _file("picture only", f"picture_only.{container}", NO_AUDIO)
        write(bases.folder / f"sound_only.{container}", Media(video_codec=None, audio_codec=audio))
        yield _file("sound only", f"sound_only.{container}", NO_VIDEO)
    for suffix, codec in {"wav": "pcm_s16le", "mp3": "libmp3lame", "flac": "flac", "ogg": "libopus"}.items():
        write(bases.folder / f"sound.{suffix}", Media(video_codec=None, audio_codec=codec))
        os.rename(bases.folder / f"sound.{suffix}", bases.folder / f"{suffix}.mp4")
        yield _file("sound only", f"{suffix}.mp4", NO_VIDEO)


def _short(bases: Bases) -> Iterator[FuzzFile]:
    for container, (video, audio) in CODECS.items():
        for frames in (1, 2):
            name = f"frames_{frames}.{container}"
            write(bases.folder / name, Media(video_codec=video, audio_codec=audio, frames=frames))
            yield _file("1 or 2 frames", name, TOO_SHORT)
        name = f"short_sound.{container}"
        write(bases.folder / name, Media(video_codec=video, audio_codec=audio, sound=tone(seconds=0.1)))
        yield _file("0.1 s of sound", name, TOO_SHORT)
        name = f"no_frames.{container}"
        write(bases.folder / name, Media(video_codec=video, audio_codec=audio, frames=0))
        # A stream without a frame; whether the file names it at all is its container's affair.
        yield _file("0 frames", name, TOO_SHORT, NO_VIDEO, UNREADABLE)


def _sizes(bases: Bases) -> Iterator[FuzzFile]:
    cases = [
        ("mkv", "ffv1", "bgr0", 1, 1),
        ("mov", "rawvideo", "rgb24", 1, 1),
        ("avi", "rawvideo", "bgr24", 1, 1),
        ("mov", "png", "rgb24", 1, 1),
        ("mkv", "mjpeg", "yuvj444p", 1, 1),
        ("mp4", "libx264", "yuv444p", 1, 1),
        ("webm", "libvpx", "yuv420p", 1, 1),
        ("avi", "mpeg4", "yuv420p", 1, 1),
        ("mov", "png", "rgb24", 1, 64),
        ("mkv", "ffv1", "bgr0", 64, 1),
        ("mkv", "ffv1", "gray", 7, 3),
        ("mov", "png", "rgba", 33, 9),
        ("mp4", "libx264", "yuv420p", 4096, 2),
        ("mp4", "libx264", "yuv420p", 2, 4096),
        ("mkv", "ffv1", "yuv444p16le", 31, 17),
    ]
    for container, codec, pixels, width, height in cases:
        name = f"{codec}_{pixels}_{width}x{height}.{container}"
        audio = CODECS[container][1]
        media = Media(video_codec=codec, audio_codec=audio, width=width, height=height, pixels=pixels)
        write(bases.folder / name, media)
        yield _file("1 x 1" if width == height == 1 else "odd sizes", name, ROW)


def _time_stamps(bases: Bases) -> Iterator[FuzzFile]:
    half_day = HALF_DAY_S
    cases: dict[str, tuple[dict[str, float | tuple[float, float]], set[str]]] = {
        # Both begin at 12 h: an ordinary clip on a late clock. Not every muxer keeps it.
        "late_clock": ({"picture_start_s": half_day, "sound_start_s": half_day}, {ROW}),
        # They never run together.
        "late_picture": ({"picture_start_s": half_day}, {TOO_SHORT}),
        "late_sound": ({"sound_start_s": half_day}, {TOO_SHORT}),
        # The picture stands still for 12 h; the sound ends the clip.
        "last_frame": ({"last_frame_s": half_day}, {ROW}),
        # Both last 12 h, and in the middle of that nothing is to be heard.
        "long_gap": ({"last_frame_s": half_day, "sound_gap": (0.6, half_day)}, {SILENT, UNREADABLE}),
    }
    for name, (times, outcomes) in cases.items():
        for container in ("mkv", "mp4", "webm"):
            video, audio = CODECS[container]
            write(bases.folder / f"{name}.{container}", Media(video_codec=video, audio_codec=audio, **times))  # type: ignore[arg-type]
            yield _file("12-hour time stamps", f"{name}.{container}", *outcomes)


def _declared_lengths(bases: Bases) -> Iterator[FuzzFile]:
    """Headers that promise 12 h. The packets are all there, so who asks them gets a row."""
    patches: dict[str, Callable[[bytes], bytes]] = {
        "mkv": _long_matroska,
        "webm": _long_matroska,
        "mp4": _long_mp4,
        "mov": _long_mp4,
        "avi": _long_avi,
    }
    for container, patch in patches.items():
        name = f"declared_long.{container}"
        (bases.folder / name).write_bytes(patch(bases.path(container).read_bytes()))
        yield _file("12 h in the header", name, ROW, UNREADABLE)


def _long_matroska(data: bytes) -> bytes:
    """Its Duration, a float64 in milliseconds, set to 12 h."""
    place = data.index(b"\x44\x89\x88") + 3
    return data[:place] + struct.pack(">d", HALF_DAY_S * 1000) + data[place + 8 :]


def _long_mp4(data: bytes) -> bytes:
    """The length of every track, which follows its time scale in its 'mdhd' box, set to 12 h."""
    changed, place = bytearray(data), data.find(b"mdhd")
    while place >= 0:
        (scale,) = struct.unpack_from(">I", data, place + 16)
        struct.pack_into(">I", changed, place + 20, round(min(2**32 - 1, HALF_DAY_S * scale)))
        place = data.find(b"mdhd", place + 4)
    return bytes(changed)


def _long_avi(data: bytes) -> bytes:
    """The length of every stream, 32 bytes into its 'strh' chunk and in units of rate / scale, set to 12 h."""
    changed, place = bytearray(data), data.find(b"strh")
    while place >= 0:
        scale, rate = struct.unpack_from("<II", data, place + 28)
        struct.pack_into("<I", changed, place + 40, round(HALF_DAY_S * rate / max(1, scale)))
        place = data.find(b"strh", place + 4)
    return bytes(changed)


def _joined(bases: Bases) -> Iterator[FuzzFile]:
    whole = {container: bases.path(container).read_bytes() for container in bases.names}
    generator = np.random.default_rng(5)
    for container in ("mp4", "mov", "avi", "webm", "mkv"):
        name = f"junk_behind.{container}"
        (bases.folder / name).write_bytes(whole[container] + generator.bytes(5000))
        # These containers tell where they end, but a reader may look at what comes then.
        yield _file("junk behind", name, ROW, UNREADABLE)
    for first, second in (("mpg", "mpg"), ("mp4", "mp4"), ("mkv", "mkv"), ("mpg", "mp4"), ("mp4", "mpg")):
        name = f"joined_{second}.{first}"
        (bases.folder / name).write_bytes(whole[first] + whole[second])
        yield _file("two files in one", name, ROW, UNREADABLE)


def _separate_sounds(bases: Bases) -> Iterator[FuzzFile]:
    """The picture of a whole clip with a sound file of its own."""
    good = bases.folder / "sound.wav"
    _write_wav(good, tone())
    data = good.read_bytes()
    variants: dict[str, tuple[bytes, set[str]]] = {
        "whole": (data, {ROW}),
        "zero": (b"", {UNREADABLE}),
        "half": (data[: len(data) // 2], {ROW, UNREADABLE}),
        "header_only": (data[:44], {TOO_SHORT, UNREADABLE}),
        "endless": (data[:4] + b"\xff" * 4 + data[8:40] + b"\xff" * 4 + data[44:], {ROW, UNREADABLE}),
        "no_rate": (data[:24] + bytes(4) + data[28:], {UNREADABLE, NO_AUDIO}),
        "65535_channels": (data[:22] + b"\xff\xff" + data[24:], {UNREADABLE, NO_AUDIO, TOO_SHORT}),
        "text": (b"no sound", {UNREADABLE, NO_AUDIO}),
    }
    for name, (content, outcomes) in variants.items():
        (bases.folder / f"{name}.wav").write_bytes(content)
        yield _file("separate sound", bases.names["mp4"], *outcomes, audio=f"{name}.wav")
    yield _file("separate sound", bases.names["mp4"], NO_AUDIO, audio="picture_only.mp4")
    yield _file("separate sound", bases.names["mp4"], MISSING, audio="no_such.wav")
    yield _file("separate sound", "whole.wav", NO_VIDEO, audio="whole.wav")
    cover = bases.folder / "cover.png.mp4"
    cover.write_bytes(_png(picture(0, 8, 8)))
    # One picture is a video of one frame, as far as FFmpeg is concerned.
    yield _file("separate sound", cover.name, TOO_SHORT, UNREADABLE, audio="whole.wav")


def _write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
