"""H.264 and AAC for the demo corpus, such that a file's size, loudness and peak do not tell what is in it.

A codec leaks: a vocoded voice is coded a little more tersely than a natural one, and its peaks come out a little lower.
So the caller says with what loudness, crest and rate a sound shall ARRIVE, and the encoder is run until it does.
Video is coded at a constant rate with a short buffer, which the camera's grain always uses up (else filler does). One
thread and no encoder tags: the same input gives the same bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from PIL import Image

from data_prep.synthetic_voices import SAMPLE_RATE, limit

_AAC_FRAME = 1024  # samples
_ROUNDS = 2  # corrections before the last encoding; more change nothing that can be measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """What a sound is when it has been decoded again."""

    rms: float
    """Root mean square, 1 is full scale."""
    crest: float
    """Peak divided by the root mean square."""
    audio_bit_rate: float
    """Bits per second of the coded sound."""
    video_bit_rate: float
    """Bits per second of the coded picture."""


def encode(frames: Sequence[Image.Image], sound: np.ndarray, levels: Levels, *, fps: int) -> bytes:
    """An mp4 file of RGB `frames` and a mono `sound` (float [samples] at SAMPLE_RATE, any level) that has `levels`."""
    aimed = _aim(sound, levels)
    file = io.BytesIO()
    with _open_mp4(file) as container:
        video = container.add_stream("libx264", rate=fps, options=_video_options(levels.video_bit_rate))
        video.width, video.height = frames[0].size
        video.pix_fmt = "yuv420p"
        video.bit_rate = round(levels.video_bit_rate)
        audio = _add_audio(container, aimed.audio_bit_rate)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        container.mux(_audio_packets(audio, limit(sound, rms=aimed.rms, crest=aimed.crest)))
    return file.getvalue()


def _aim(sound: np.ndarray, wanted: Levels) -> Levels:
    """The levels to encode with so that the wanted ones arrive."""
    aimed = wanted
    for _ in range(_ROUNDS):
        arrived = _arrived(sound, aimed)
        aimed = replace(
            aimed,
            rms=aimed.rms * wanted.rms / arrived.rms,
            crest=aimed.crest * wanted.crest / arrived.crest,
            audio_bit_rate=aimed.audio_bit_rate * wanted.audio_bit_rate / arrived.audio_bit_rate,
        )
    return aimed


def _arrived(sound: np.ndarray, aimed: Levels) -> Levels:
    """What comes out if `sound` is encoded with the aimed levels; of the video's rate, nothing new."""
    file = io.BytesIO()
    with _open_mp4(file) as container:
        packets = _audio_packets(
            _add_audio(container, aimed.audio_bit_rate), limit(sound, rms=aimed.rms, crest=aimed.crest)
        )
        size = sum(packet.size for packet in packets)
        container.mux(packets)
    file.seek(0)
    with av.open(file, "r") as container:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])[: len(sound)]
    rms = float(np.sqrt((decoded.astype(np.float64) ** 2).mean()))
    audio_bit_rate = size * 8 * SAMPLE_RATE / len(sound)
    return replace(aimed, rms=rms, crest=float(np.abs(decoded).max()) / rms, audio_bit_rate=audio_bit_rate)


def _open_mp4(file: io.BytesIO) -> OutputContainer:
    return av.open(file, "w", format="mp4", options={"fflags": "+bitexact"})


def _video_options(bit_rate: float) -> dict[str, str]:
    return {
        "preset": "superfast",
        "x264-params": "threads=1:nal-hrd=cbr",
        "maxrate": str(round(bit_rate)),
        "bufsize": str(round(bit_rate / 8)),
        "flags": "+bitexact",
    }


def _add_audio(container: OutputContainer, bit_rate: float) -> AudioStream:
    options = {"aac_coder": "fast", "flags": "+bitexact"}
    stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options=options)
    stream.bit_rate = round(bit_rate)
    return stream


def _audio_packets(stream: AudioStream, sound: np.ndarray) -> list[Packet]:
    packets = []
    for start in range(0, len(sound), _AAC_FRAME):
        frame = av.AudioFrame.from_ndarray(sound[None, start : start + _AAC_FRAME].copy(), format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts, frame.time_base = start, Fraction(1, SAMPLE_RATE)
        packets += stream.encode(frame)
    return packets + stream.encode()
