"""Log filter banks of a sound, as AV-HuBERT and MRDF take them: 26 of them every 10 ms, four stacked beside each frame.

The released code gets them of python_speech_features, which is no longer kept; librosa's mel filters have corners
between two bins of the spectrum, while these have them on bins, so that the numbers would differ.
"""

import functools
import math

import numpy as np

from data_prep.audio import HOP_SAMPLES, N_FFT, SAMPLE_RATE, WINDOW_SAMPLES

NUM_BANKS = 26
STACKED = 4
"""Banks of so many moments stand beside one frame of 25 a second."""
STACKED_BANKS = NUM_BANKS * STACKED
_PRE_EMPHASIS = 0.97
_FULL_SCALE = 32_768
_BLOCK = 4_096
"""Windows whose spectra are in memory at a time: a sound of any length takes no more than 40 s of it."""


def log_filter_banks(samples: np.ndarray) -> np.ndarray:
    """float32 [1 + ceil((samples - 400) / 160), 26], at least one row: natural logarithms of mel energies.

    samples: [samples] at 16 kHz, in units of 16-bit integers, unscaled (see `as_int16`). Pre-emphasis 0.97; windows of
    25 ms every 10 ms, rectangular, the last one filled with zeros; power spectrum of 512 points over 512; triangles on
    the mel scale from 0 to 8 kHz; an energy of 0 counts as the least float64 beside 1. Raises ValueError without a
    sample.
    """
    if not len(samples):
        raise ValueError("a sound without a sample has no filter banks")
    emphasised = np.array(samples, np.float64)
    emphasised[1:] -= _PRE_EMPHASIS * np.asarray(samples[:-1], np.float64)
    windows = 1 + max(0, math.ceil((len(emphasised) - WINDOW_SAMPLES) / HOP_SAMPLES))
    padded = np.pad(emphasised, (0, (windows - 1) * HOP_SAMPLES + WINDOW_SAMPLES - len(emphasised)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    energies = [_energies(frames[first : first + _BLOCK]) for first in range(0, windows, _BLOCK)]
    return np.log(np.concatenate(energies)).astype(np.float32)


def as_int16(sound: np.ndarray) -> np.ndarray:
    """int16 like `sound`, float with full scale 1: what a 16-bit file of it holds; peaks beyond are clipped."""
    return np.clip(np.round(sound * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def stacked(banks: np.ndarray, frames: int) -> np.ndarray:
    """float32 [frames, 104]: four rows of `banks` (float32 [rows, 26], 100 a second) beside each frame of 25 a second.

    Rows are filled with zeros to a multiple of four, then to `frames`, or cut, as the released code does it.
    """
    most = frames * STACKED
    banks = np.pad(banks[:most], ((0, max(0, most - len(banks))), (0, 0)))
    return np.ascontiguousarray(banks.reshape(frames, STACKED_BANKS), np.float32)


def _energies(windows: np.ndarray) -> np.ndarray:
    """float64 [windows, 26] of windows float64 [windows, 400]; above 0."""
    power = np.abs(np.fft.rfft(windows, N_FFT)) ** 2 / N_FFT
    energies = power @ _filters().T
    energies[energies == 0] = np.finfo(np.float64).eps
    return energies


@functools.cache
def _filters() -> np.ndarray:
    """float64 [26, 257]: triangles over the bins of the spectrum, whose corners lie evenly on the (HTK) mel scale."""
    mels = np.linspace(0.0, 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700), NUM_BANKS + 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    corners = np.floor((N_FFT + 1) * hertz / SAMPLE_RATE)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = np.arange(N_FFT // 2 + 1)
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    inside = (bins >= left) & (bins < right)
    return np.where(inside, np.where(bins < middle, rising, falling), 0.0)
