"""Small clips on disk, without faces, and a manifest of them: for the tests of `prepare`."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data_prep.clip import PrepareConfig

FPS, SIDE, RATE = 25, 64, 16000
CONFIG = PrepareConfig(faces="none", window_s=1.0, frame_size=32, spectrogram_frames=100)
"""Fits `write_clip`: no faces, and as many spectrogram frames as a second has."""


def write_clip(
    path: Path, seed: int, *, seconds: float = 1.2, sound: bool = True, silent_after: float = math.inf
) -> None:
    """An H.264 clip of moving noise with a chord in AAC, which ends at `silent_after` seconds."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for index in range(round(seconds * FPS)):
            picture = av.VideoFrame.from_ndarray(np.roll(texture, index, axis=1), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if audio is not None:
            times = np.arange(round(seconds * RATE)) / RATE
            wave = sum(np.sin(2 * np.pi * pitch * times) for pitch in generator.uniform(200, 4000, 3)) / 10
            wave = wave * (times < silent_after)
            frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
