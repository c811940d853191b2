"""Augmentations of a window's sound, at 16 kHz: length and moments stay, to a few milliseconds.

What a library draws by itself it draws from the global generators of Python and numpy; they are seeded for it, and
put back afterwards: no other thread may draw from them meanwhile.
"""

import io
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction

import audiomentations
import av
import numpy as np
import pyroomacoustics
import soxr
from audiomentations.core.transforms_interface import BaseWaveformTransform
from av.audio.stream import AudioStream
from scipy.signal import fftconvolve

from data_prep.audio import SAMPLE_RATE, mono

_TELEPHONE_RATE = 8_000
_PINK_DB_PER_OCTAVE = -3.01
_ROLLOFF_DB = 24  # per octave; of a filter that runs forwards and backwards, so that it delays nothing

Parameters = Mapping[str, float]


def change(name: str, samples: np.ndarray, parameters: Parameters) -> np.ndarray:
    """float32: `samples` (float32, mono, 16 kHz) changed as the augmentation `name` says, of the same length.

    tempo alone gives another length, len(samples) / speed to within a sample. parameters: what `Augmentation.draw`
    drew. Raises nothing that depends on the samples, as long as they are finite.
    """
    return np.ascontiguousarray(CHANGES[name](samples, parameters), dtype=np.float32)


def _codec(encoder: str, sample_format: str) -> Callable[[np.ndarray, Parameters], np.ndarray]:
    def recode(samples: np.ndarray, parameters: Parameters) -> np.ndarray:
        bit_rate = round(parameters["kilobits"] * 1000)
        # Matroska says how much sound the encoder put before the first sample, and the decoder leaves as much out.
        return _recoded(samples, SAMPLE_RATE, "matroska", encoder, sample_format, bit_rate)

    return recode


def _telephone(samples: np.ndarray, parameters: Parameters) -> np.ndarray:
    narrow = soxr.resample(samples, SAMPLE_RATE, _TELEPHONE_RATE)
    narrow = _recoded(narrow, _TELEPHONE_RATE, "wav", "pcm_mulaw", "s16", None)
    return _fitted(soxr.resample(narrow, _TELEPHONE_RATE, SAMPLE_RATE), len(samples))


def _recoded(
    samples: np.ndarray, rate: int, file_format: str, encoder: str, sample_format: str, bit_rate: int | None
) -> np.ndarray:
    """float32 like `samples`, through an encoder, a file in memory, and the decoder."""
    file = io.BytesIO()
    with av.open(file, "w", format=file_format) as container:
        stream = container.add_stream(encoder, rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)
        stream.format = sample_format
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        stream.codec_context.thread_count = 1
        data = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16) if sample_format == "s16" else samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data)[None], format=sample_format, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as container:
        frames = list(container.decode(audio=0))
    decoded = np.concatenate([mono(frame.to_ndarray(), frame.format.is_planar, 1) for frame in frames])
    if frames[0].sample_rate != rate:
        decoded = soxr.resample(decoded, frames[0].sample_rate, rate)
    return _fitted(decoded, len(samples))


def _fitted(samples: np.ndarray, length: int) -> np.ndarray:
    return np.pad(samples, (0, max(0, length - len(samples))))[:length]


def _reverberation(
    smallest_m: tuple[float, float, float], largest_m: tuple[float, float, float], distance_m: float
) -> Callable[[np.ndarray, Parameters], np.ndarray]:
    """Of a box-shaped room between two sizes, with a microphone `distance_m` before the voice; the level stays."""

    def reverberate(samples: np.ndarray, parameters: Parameters) -> np.ndarray:
        size = np.array(smallest_m) + parameters["size"] * (np.array(largest_m) - np.array(smallest_m))
        return reverberated(samples, _room_response(size, parameters["rt60"], distance_m))

    return reverberate


def reverberated(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """`samples` as heard in a room of this impulse response, at their own level (RMS) and of their length."""
    heard = fftconvolve(samples, response)[: len(samples)]
    level = float(np.sqrt(np.mean(heard**2)))
    return heard * (float(np.sqrt(np.mean(samples**2))) / level) if level > 0 else heard


def _room_response(size_m: np.ndarray, rt60_s: float, distance_m: float) -> np.ndarray:
    """The room's impulse response from the moment of the direct sound on, which has amplitude 1.

    The way from voice to microphone is left out, so that the sound stays in step with the picture.
    """
    absorption, order = pyroomacoustics.inverse_sabine(rt60_s, size_m)
    voice = size_m * (0.3, 0.4, 0.55)
    microphone = voice + distance_m * np.array([0.8, 0.6, 0.0])
    with _one_thread():
        room = pyroomacoustics.ShoeBox(
            size_m, fs=SAMPLE_RATE, materials=pyroomacoustics.Material(absorption), max_order=order
        )
        room.add_source(voice)
        room.add_microphone(microphone)
        room.compute_rir()
    response = room.rir[0][0]
    # Every reflection is a pulse of this odd length, centred on its moment.
    centre = pyroomacoustics.constants.get("frac_delay_length") // 2
    direct = round(distance_m / pyroomacoustics.constants.get("c") * SAMPLE_RATE) + centre
    return response[direct:] / response[direct]


@contextmanager
def _one_thread() -> Iterator[None]:
    """The order in which reflections are summed up, and so the last bits, would depend on the number of processors."""
    before = pyroomacoustics.constants.get("num_threads")
    pyroomacoustics.constants.set("num_threads", 1)
    try:
        yield
    finally:
        pyroomacoustics.constants.set("num_threads", before)


def _transform(make: Callable[[Parameters], BaseWaveformTransform]) -> Callable[[np.ndarray, Parameters], np.ndarray]:
    def apply(samples: np.ndarray, parameters: Parameters) -> np.ndarray:
        with _seeded(int(parameters["seed"])):
            return make(parameters)(samples, SAMPLE_RATE)

    return apply


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of Python and numpy start from `seed` here, and go on afterwards as if nothing had been."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def _gain(parameters: Parameters) -> BaseWaveformTransform:
    decibels = parameters["decibels"]
    return audiomentations.Gain(min_gain_db=decibels, max_gain_db=decibels, p=1.0)


def _white_noise(parameters: Parameters) -> BaseWaveformTransform:
    return audiomentations.AddGaussianSNR(min_snr_db=parameters["snr"], max_snr_db=parameters["snr"], p=1.0)


def _pink_noise(parameters: Parameters) -> BaseWaveformTransform:
    return audiomentations.AddColorNoise(
        min_snr_db=parameters["snr"],
        max_snr_db=parameters["snr"],
        min_f_decay=_PINK_DB_PER_OCTAVE,
        max_f_decay=_PINK_DB_PER_OCTAVE,
        # The spectrum falls down to sample_rate / n_fft, here 16 Hz, below all speech.
        n_fft=1024,
        p=1.0,
    )


def _low_pass(parameters: Parameters) -> BaseWaveformTransform:
    return audiomentations.LowPassFilter(
        parameters["hertz"], parameters["hertz"], _ROLLOFF_DB, _ROLLOFF_DB, zero_phase=True, p=1.0
    )


def _high_pass(parameters: Parameters) -> BaseWaveformTransform:
    return audiomentations.HighPassFilter(
        parameters["hertz"], parameters["hertz"], _ROLLOFF_DB, _ROLLOFF_DB, zero_phase=True, p=1.0
    )


def _band_pass(parameters: Parameters) -> BaseWaveformTransform:
    centre = (parameters["low"] + parameters["high"]) / 2
    fraction = (parameters["high"] - parameters["low"]) / centre
    return audiomentations.BandPassFilter(
        centre, centre, fraction, fraction, _ROLLOFF_DB, _ROLLOFF_DB, zero_phase=True, p=1.0
    )


def _clipping(parameters: Parameters) -> BaseWaveformTransform:
    # It clips whole percents above and below, so an even number in all was drawn.
    percent = round(parameters["percent"])
    return audiomentations.ClippingDistortion(percent, percent, p=1.0)


def _pitch(parameters: Parameters) -> BaseWaveformTransform:
    return audiomentations.PitchShift(parameters["semitones"], parameters["semitones"], p=1.0)


def _tempo(parameters: Parameters) -> BaseWaveformTransform:
    return audiomentations.TimeStretch(parameters["speed"], parameters["speed"], leave_length_unchanged=False, p=1.0)


CHANGES: dict[str, Callable[[np.ndarray, Parameters], np.ndarray]] = {
    "aac_32k": _codec("aac", "fltp"),
    "opus_16k": _codec("libopus", "flt"),
    "mp3_32k": _codec("libmp3lame", "fltp"),
    "telephone_8k": _telephone,
    "gain": _transform(_gain),
    "white_noise_20db": _transform(_white_noise),
    "white_noise_10db": _transform(_white_noise),
    "pink_noise": _transform(_pink_noise),
    "reverb_small": _reverberation((2.5, 3.0, 2.3), (4.0, 4.5, 2.8), 0.8),
    "reverb_large": _reverberation((7.0, 8.0, 3.5), (9.0, 11.0, 4.5), 1.2),
    "low_pass": _transform(_low_pass),
    "high_pass": _transform(_high_pass),
    "band_pass": _transform(_band_pass),
    "clipping": _transform(_clipping),
    "pitch": _transform(_pitch),
    "tempo": _transform(_tempo),
}
"""Name of the augmentation -> its function of (samples float32 [samples], what was drawn)."""
