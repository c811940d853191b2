"""Synthesised voices for the demo corpus: who speaks, what is said, the sound of it, and its forgery by a vocoder.

An `Utterance` says when and how loudly each syllable is spoken; a `Voice` is the speaker. `speak` renders one with the
other: a glottal wave with jitter and shimmer and some breath, filtered by formants that glide from vowel to vowel. The
mouth follows `Utterance.openness`. `vocode` is the forgery; `gate` and `limit` are the last treatment of every sound,
real or fake.
"""

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
_FRAME, _HOP = 512, 128  # of the formants' filter, samples
_MEL_BANDS = 80  # of the vocoder at its worst: fewer blur more harmonics
# Formants F1 to F4 in Hz of a, e, i, o, u for a vocal tract of ordinary length.
_FORMANTS = np.array(
    [
        [760, 1240, 2550, 3500],
        [510, 1850, 2500, 3500],
        [290, 2250, 3000, 3600],
        [480, 900, 2450, 3400],
        [320, 780, 2300, 3300],
    ]
)
_BANDWIDTHS = np.array([80.0, 100.0, 150.0, 220.0])
# How far the mouth opens and spreads at these vowels, 0 to 1.
_OPENNESS = np.array([1.0, 0.7, 0.45, 0.75, 0.4])
_SPREAD = np.array([0.5, 0.8, 1.0, 0.15, 0.0])


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker."""

    pitch: float  # Hz
    tract: float  # formants are multiplied by this: above 1 a shorter vocal tract
    tilt: float  # the k-th harmonic of the glottal wave has amplitude k ** -tilt
    breath: float  # noise relative to the glottal wave
    jitter: float  # relative deviation of a period
    shimmer: float  # relative deviation of a period's amplitude
    melody: float  # relative depth of the pitch contour
    hiss: float  # level of s-like consonants
    room: float  # level of the room's noise


def draw_voice(rng: np.random.Generator) -> Voice:
    """One subject's voice."""
    high = rng.random()  # larger people speak lower AND have longer vocal tracts
    return Voice(
        pitch=95 * 2 ** (1.25 * high + rng.uniform(-0.1, 0.1)),
        tract=0.90 + 0.22 * high + rng.uniform(-0.04, 0.04),
        tilt=rng.uniform(1.0, 1.35),
        breath=rng.uniform(0.02, 0.06),
        jitter=rng.uniform(0.004, 0.012),
        shimmer=rng.uniform(0.02, 0.08),
        melody=rng.uniform(0.06, 0.16),
        hiss=rng.uniform(0.10, 0.30),
        room=rng.uniform(0.0008, 0.0016),
    )


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is said and when; arrays have one entry per syllable, times in seconds."""

    duration: float
    start: np.ndarray
    length: np.ndarray
    stress: np.ndarray  # 0.5..1
    vowel: np.ndarray  # index into the vowel table
    fricative: np.ndarray  # seconds of hiss at the syllable's start, 0 for none

    def loudness(self, times: np.ndarray) -> np.ndarray:
        """Loudness, 0..1, at `times` (seconds): what the mouth follows."""
        rise = np.clip((times[:, None] - self.start - 0.5 * self.fricative) / 0.04, 0, 1)
        fall = np.clip((self.start + self.length - times[:, None]) / 0.06, 0, 1)
        shape = np.sin(0.5 * np.pi * rise) ** 2 * np.sin(0.5 * np.pi * fall) ** 2
        return (shape * self.stress).max(axis=1)

    def at(self, times: np.ndarray, table: np.ndarray) -> np.ndarray:
        """Values of a per-vowel table ([5] or [5, K]) at `times`, gliding between the middles of syllables."""
        middle = self.start + 0.5 * self.length
        values = table[self.vowel].reshape(len(middle), -1)
        glide = np.stack([np.interp(times, middle, column) for column in values.T], axis=1)
        return glide if table.ndim > 1 else glide[:, 0]

    def openness(self, times: np.ndarray) -> np.ndarray:
        """How far the mouth is open, 0..1, at `times` (seconds)."""
        return self.loudness(times) * self.at(times, _OPENNESS)

    def spread(self, times: np.ndarray) -> np.ndarray:
        """How far the lips are spread, 0 (rounded) .. 1, at `times` (seconds)."""
        return self.at(times, _SPREAD)


def draw_utterance(rng: np.random.Generator, duration: float) -> Utterance:
    """Syllables with pauses over `duration` seconds."""
    rows: list[tuple[float, ...]] = []
    now = rng.uniform(0.08, 0.28)
    while now < duration - 0.22:
        length = min(rng.uniform(0.15, 0.29), duration - 0.06 - now)
        fricative = rng.uniform(0.04, 0.08) if rng.random() < 0.35 and rows else 0.0
        rows.append((now, length, rng.uniform(0.5, 1.0), float(rng.integers(len(_FORMANTS))), fricative))
        now += length + (rng.uniform(0.14, 0.34) if rng.random() < 0.2 else rng.uniform(0.0, 0.04))
    starts, lengths, stresses, vowels, fricatives = np.array(rows).T
    return Utterance(duration, starts, lengths, stresses, vowels.astype(int), fricatives)


def speak(voice: Voice, utterance: Utterance, rng: np.random.Generator) -> np.ndarray:
    """The utterance in this voice: float64 [duration * SAMPLE_RATE], without a set level."""
    samples = round(utterance.duration * SAMPLE_RATE)
    times = np.arange(samples) / SAMPLE_RATE
    knots = np.arange(0, utterance.duration + 0.005, 0.005)
    envelope = np.interp(times, knots, utterance.loudness(knots))
    source = _glottal_wave(voice, utterance, rng, samples) + voice.breath * rng.standard_normal(samples)
    return _through_formants(source * envelope, voice, utterance) + _hiss(voice, utterance, rng, samples)


def _glottal_wave(voice: Voice, utterance: Utterance, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Harmonics k**-tilt up to 7.4 kHz on a wandering pitch, by a table: no aliasing, one interpolation per sample."""
    knots = np.linspace(0, utterance.duration, 31)
    phrase = 1 - 0.12 * knots / utterance.duration  # pitch falls along a phrase
    contour = np.interp(np.arange(samples) / SAMPLE_RATE, knots, phrase + voice.melody * _smooth_noise(rng, 31))
    periods = round(utterance.duration * voice.pitch * 1.5)
    clock = np.linspace(0, 1, periods)
    wobble = np.interp(np.linspace(0, 1, samples), clock, rng.standard_normal(periods))
    swell = np.interp(np.linspace(0, 1, samples), clock, rng.standard_normal(periods))
    pitch = voice.pitch * contour * (1 + voice.jitter * wobble)
    cycles = np.cumsum(pitch) / SAMPLE_RATE
    harmonics = np.arange(1, int(7400 / pitch.max()) + 1)
    grid = np.arange(2049) / 2048
    table = (harmonics**-voice.tilt * np.sin(2 * np.pi * grid[:, None] * harmonics)).sum(axis=1)
    return (1 + voice.shimmer * swell) * np.interp(cycles % 1.0, grid, table)


def _smooth_noise(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.convolve(rng.standard_normal(count + 4), np.ones(5) / 5**0.5, mode="valid")


def _through_formants(source: np.ndarray, voice: Voice, utterance: Utterance) -> np.ndarray:
    """Filter by the all-pole response of the gliding formants, frame by frame."""
    spectrum = stft(source, _FRAME, _HOP)
    times = np.arange(spectrum.shape[0]) * _HOP / SAMPLE_RATE
    formants = utterance.at(times, _FORMANTS) * voice.tract
    angle = 2 * np.pi * np.arange(_FRAME // 2 + 1) / _FRAME
    delay = np.exp(-1j * angle)
    for formant, bandwidth in zip(formants.T, _BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
        cosine = np.cos(2 * np.pi * formant / SAMPLE_RATE)[:, None]
        gain = 1 - 2 * radius * cosine + radius**2
        spectrum *= gain / (1 - 2 * radius * cosine * delay + radius**2 * delay**2)
    return istft(spectrum, _FRAME, _HOP, len(source))


def _hiss(voice: Voice, utterance: Utterance, rng: np.random.Generator, samples: int) -> np.ndarray:
    """s-like consonants: noise above 3 kHz in short bursts."""
    times = np.arange(samples) / SAMPLE_RATE
    level = np.zeros(samples)
    for start, length, stress in zip(utterance.start, utterance.fricative, utterance.stress, strict=True):
        if length:
            level = np.maximum(level, stress * np.clip(1 - np.abs(times - start - 0.5 * length) / (0.6 * length), 0, 1))
    spectrum = stft(rng.standard_normal(samples) * level, _FRAME, _HOP)
    frequency = np.arange(_FRAME // 2 + 1) * SAMPLE_RATE / _FRAME
    return voice.hiss * istft(spectrum / (1 + np.exp((3200 - frequency) / 300)), _FRAME, _HOP, samples)


def stft(wave: np.ndarray, frame: int, hop: int) -> np.ndarray:
    """Centred STFT with a periodic Hann window: complex [1 + len(wave) // hop, frame // 2 + 1]."""
    padded = np.pad(wave, (frame // 2, frame // 2 + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame)[: len(wave) + 1 : hop]
    return np.fft.rfft(frames * _hann(frame), axis=1)


def istft(spectrum: np.ndarray, frame: int, hop: int, samples: int) -> np.ndarray:
    """Least-squares inverse of `stft`; `frame` must be a multiple of `hop`."""
    window = _hann(frame)
    frames = np.fft.irfft(spectrum, frame, axis=1) * window
    parts = frame // hop
    blocks = np.zeros((len(frames) + parts - 1, hop))
    weight = np.zeros_like(blocks)
    for part in range(parts):
        piece = slice(part * hop, (part + 1) * hop)
        blocks[part : part + len(frames)] += frames[:, piece]
        weight[part : part + len(frames)] += window[piece] ** 2
    wave = blocks.ravel()[frame // 2 : frame // 2 + samples]
    wave = wave / np.maximum(weight.ravel()[frame // 2 : frame // 2 + samples], 1e-3)
    return np.pad(wave, (0, samples - len(wave)))


def _hann(frame: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)


def vocode(wave: np.ndarray, rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """The voice through a cheap vocoder: magnitudes at the resolution of mel bands, phases mostly invented.

    At `strength` 1 there are _MEL_BANDS bands, and each phase is off by up to half a turn (nothing is left of it); at
    half the strength, twice the bands and half the error. Two rounds of Griffin-Lim then make the phases agree a
    little. What is heard: smeared glottal pulses, blurred harmonics, a hollow and rough voice.
    """
    frame, hop = 1024, 256
    spectrum = stft(wave, frame, hop)
    magnitude = _mel_smoothed(np.abs(spectrum), round(_MEL_BANDS / max(strength, 0.05)))
    phase = np.angle(spectrum) + strength * rng.uniform(-np.pi, np.pi, spectrum.shape)
    for _ in range(2):
        phase = np.angle(stft(istft(magnitude * np.exp(1j * phase), frame, hop, len(wave)), frame, hop))
    return istft(magnitude * np.exp(1j * phase), frame, hop, len(wave))


def _mel_smoothed(magnitude: np.ndarray, bands: int) -> np.ndarray:
    """Project on triangular mel bands and back (each bin gets its bands' mean energy)."""
    frequency = np.linspace(0, SAMPLE_RATE / 2, magnitude.shape[1])
    mel = 2595 * np.log10(1 + frequency / 700)
    centre = np.linspace(0, mel[-1], bands)
    weight = np.clip(1 - np.abs(mel[None] - centre[:, None]) / (centre[1] - centre[0]), 0, 1)  # sums to 1 at every bin
    energy = (magnitude**2) @ (weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)).T
    return np.sqrt(energy @ weight)


def gate(wave: np.ndarray, voice: Voice, utterance: Utterance, rng: np.random.Generator) -> np.ndarray:
    """Every sound, real or fake, in its room: float64 [samples] with root mean square about 1.

    Silent before the first syllable and after the last one but for the room's noise, so that leading and trailing
    silence are the utterance's and not the vocoder's, which begins too early and ends too late.
    """
    times = np.arange(len(wave)) / SAMPLE_RATE
    # Open and shut where a voice is to be heard, so that it is the gate that begins and ends them all.
    begin, end = utterance.start[0] + 0.012, (utterance.start + utterance.length).max() - 0.012
    opening = np.clip((times - begin) / 0.002, 0, 1)
    closing = np.clip((end - times) / 0.002, 0, 1)
    gated = wave * opening * closing
    return gated / np.sqrt((gated**2).mean()) + voice.room * rng.standard_normal(len(wave))


def limit(wave: np.ndarray, *, rms: float, crest: float) -> np.ndarray:
    """`wave` with this root mean square, its peaks flattened until the highest is `crest` times that: float32."""
    scale = np.sqrt((wave**2).mean())
    low, high = 0.5 * scale, 30.0 * scale
    for _ in range(14):  # bisection: a lower threshold flattens more
        threshold = np.sqrt(low * high)
        limited = threshold * np.tanh(wave / threshold)
        if np.abs(limited).max() > crest * np.sqrt((limited**2).mean()):
            high = threshold
        else:
            low = threshold
    limited *= rms / np.sqrt((limited**2).mean())
    return limited.astype(np.float32)
