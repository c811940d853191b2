"""Small media files for the fuzz test: the whole ones that it damages, and odd ones that no camera writes."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 25
SECONDS = 1.2
RATE = 48_000  # The one rate that all of the codecs below know.

CODECS = {
    "mp4": ("libx264", "aac"),
    "mpg": ("mpeg1video", "mp2"),
    "avi": ("mpeg4", "mp2"),
    "webm": ("libvpx", "libopus"),
    "mkv": ("libx265", "flac"),
    "mov": ("libx264", "pcm_s16le"),
}
"""Codecs of picture and sound of each container."""

_ENCODER_OPTIONS = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """What a file holds; by default a whole clip."""

    video_codec: str | None = "libx264"
    audio_codec: str | None = "aac"
    frames: int = round(SECONDS * FPS)
    width: int = 64
    height: int = 64
    pixels: str = "yuv420p"
    picture_start_s: float = 0.0
    last_frame_s: float | None = None
    """Time stamp of the last frame, where that is not the next one's."""
    sound: np.ndarray | None = None
    """float [samples] at RATE; by default SECONDS of a tone that rises."""
    sound_gap: tuple[float, float] = (0.0, 0.0)
    """(moment, length) in seconds: all sound from that moment on comes later by that length."""
    sound_start_s: float = 0.0
    options: tuple[tuple[str, str], ...] = ()
    """Of the container."""


def tone(amplitude: float = 0.3, seconds: float = SECONDS) -> np.ndarray:
    """float64 [samples]: a tone that rises."""
    times = np.arange(round(seconds * RATE)) / RATE
    return amplitude * np.sin(2 * np.pi * (300 + 400 * times) * times)


def picture(index: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: a texture that moves by two pixels a frame."""
    rows, columns = np.mgrid[:height, :width]
    moved = columns + 2 * index
    return np.stack([(5 * moved) % 256, (7 * rows) % 256, (moved ^ rows) % 256], axis=-1).astype(np.uint8)


def write(path: Path, media: Media) -> None:
    """Writes `media` to `path`, whose suffix names the container."""
    sound = tone() if media.sound is None else media.sound
    with av.open(str(path), "w", options=dict(media.options)) as container:
        packets: list[tuple[float, av.Packet]] = []
        if media.video_codec:
            packets += _video_packets(container, media)
        if media.audio_codec:
            packets += _audio_packets(container, media, sound)
        # Interleaved by time, as every muxer expects it; the sort is stable, so each stream keeps its order.
        for _, packet in sorted(packets, key=lambda item: item[0]):
            container.mux(packet)


def _video_packets(container: av.container.OutputContainer, media: Media) -> list[tuple[float, av.Packet]]:
    assert media.video_codec
    stream = container.add_stream(media.video_codec, rate=FPS, options=_ENCODER_OPTIONS.get(media.video_codec, {}))
    stream.width, stream.height, stream.pix_fmt = media.width, media.height, media.pixels
    stream.codec_context.time_base = Fraction(1, FPS)
    packets = []
    for index in range(media.frames):
        time = media.picture_start_s + index / FPS
        if media.last_frame_s is not None and index == media.frames - 1:
            time = media.last_frame_s
        frame = av.VideoFrame.from_ndarray(picture(index, media.width, media.height), format="rgb24")
        frame.time_base, frame.pts = Fraction(1, FPS), round(time * FPS)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    return [(_decoding_s(packet), packet) for packet in packets]


def _audio_packets(
    container: av.container.OutputContainer, media: Media, sound: np.ndarray
) -> list[tuple[float, av.Packet]]:
    assert media.audio_codec
    stream = container.add_stream(media.audio_codec, rate=RATE, layout="mono")
    packets = []
    moment, gap = media.sound_gap
    for start in range(0, len(sound), 960):
        # Doubles hold every sample format's values; PyAV's resampler makes the encoder's own of them.
        frame = av.AudioFrame.from_ndarray(sound[None, start : start + 960].astype(np.float32), "fltp", "mono")
        time = media.sound_start_s + start / RATE + (gap if gap and start / RATE >= moment else 0)
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), round(time * RATE)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    return [(_decoding_s(packet), packet) for packet in packets]


def _decoding_s(packet: av.Packet) -> float:
    time = packet.dts if packet.dts is not None else packet.pts
    return float(time * packet.time_base) if time is not None and packet.time_base else 0.0


def payload(path: Path) -> list[tuple[int, int]]:
    """(first, last + 1) byte of every packet's payload in the file that stands there in one piece, in order.

    In an MPEG program stream most do not: its headers cut long payloads into pieces.
    """
    data, spans, position = path.read_bytes(), [], 0
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux() if packet.size]
    for packet in packets:
        found = data.find(packet, position) if len(packet) >= 8 else -1
        if found >= 0:
            spans.append((found, found + len(packet)))
            position = found
    return spans
