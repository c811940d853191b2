"""Sound of a clip: one window of it at 16 kHz, its volume, its magnitude spectrogram, and the silence around it.

Spectrogram settings are those of STGS-BMNAS (arXiv 2406.13384): 16 kHz, n_fft 512, window 25 ms, hop 10 ms, volume
raised to -30 dBFS.
"""

import math

import av
import numpy as np
import soxr

from data_prep.rejects import unreadable

SAMPLE_RATE = 16_000
N_FFT = 512
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
NUM_BINS = N_FFT // 2 + 1

_JITTER_S = 0.005
"""Time stamps that are off by less follow from rounding in the container: the samples are contiguous."""
_GAP_TOLERANCE_S = 0.1
"""How far the sound may fall short of the window's end before the file counts as damaged."""
_LONGEST_GAP_S = 60.0
"""A longer gap between two packets is no pause in the talk: their time stamps are damaged."""
_HIGHEST_PEAK = 1e6
"""Floating-point samples may exceed full scale, 1; those of 16 or 20 bits by mistake reach this."""
_BLOCKS_PER_SECOND = 100
_RATES = (1_000, 768_000)
"""Lowest and highest sampling rate of a sound that is no damage, in Hz."""


class SoundCollector:
    """A sink that keeps one window of the sound, and measures the clip's level and the silence at its ends.

    start_s: the clip's beginning on the file's clock. duration_s: the clip's length. window_start_s, window_s: the
    window, relative to the clip's beginning. Only the window is kept, so memory does not grow with the clip.
    """

    def __init__(self, *, start_s: float, duration_s: float, window_start_s: float, window_s: float) -> None:
        self._start_s = start_s
        self._duration_s = duration_s
        self._window_start_s = window_start_s
        self._window_s = window_s
        self._rate = 0
        self._layout = (True, 1)  # Of the pending samples: planar or not, number of channels.
        self._pending: list[np.ndarray] = []  # Decoded, not yet measured: doing this frame by frame is slow.
        self._num_pending = 0
        self._position = 0  # Samples measured since the clip's beginning; negative before it.
        self._window = np.empty(0, np.float32)
        self._peak = 0.0
        self._square_sum = 0.0
        self._num_heard = 0
        self._blocks = _Blocks()
        self._rest = np.empty(0, np.float32)

    @property
    def done(self) -> bool:
        return self._rate > 0 and self._position + self._num_pending >= round(self._duration_s * self._rate)

    def add(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded frame.

        Raises RejectedError: unreadable, for a new rate, one that no sound has, an interruption of over a minute, or
        samples that are no finite numbers or far beyond all scales.
        """
        if not self._rate:
            self._begin(frame)
        elif frame.sample_rate != self._rate:
            raise unreadable(f"the sound changes from {self._rate} to {frame.sample_rate} Hz")
        samples, layout = frame.to_ndarray(), (frame.format.is_planar, frame.layout.nb_channels)
        gap = self._gap(frame)
        if gap or layout != self._layout:
            self._measure_pending()
        if gap > 0:
            self._append_silence(gap)
        elif gap < 0:  # This moment was heard already.
            samples, layout = mono(samples, *layout)[None, -gap:], (True, 1)
        self._layout = layout
        self._pending.append(samples)
        self._num_pending += samples.shape[1] // (1 if layout[0] else layout[1])
        if self._num_pending >= self._rate:
            self._measure_pending()

    def window(self) -> tuple[np.ndarray, int]:
        """(float32 [samples], sampling rate) of the window; call after decoding.

        Raises RejectedError: unreadable, if the sound ended before the window.
        """
        self.require(self._window_start_s + self._window_s)
        return self._window, self._rate

    def require(self, end_s: float) -> None:
        """Raises RejectedError: unreadable, if the sound ended before `end_s`; call after decoding."""
        if not self._rate:
            raise unreadable("no sound can be decoded")
        self._measure_pending()
        end = self._position / self._rate
        if end < end_s - _GAP_TOLERANCE_S:
            raise unreadable(f"the sound breaks off at {end:.2f} s, before {end_s:.2f} s")

    def leading_silence_s(self, threshold_db: float) -> float:
        """Seconds until the RMS of 10 ms exceeds `threshold_db` (negative) relative to the clip's peak."""
        first, _ = self._loud_blocks(threshold_db)
        return self._duration_s if first is None else first * self._block() / self._rate

    def trailing_silence_s(self, threshold_db: float) -> float:
        """Seconds to the clip's end after the last 10 ms whose RMS exceeds `threshold_db`, see `leading_silence_s`.

        The last 10 ms may be cut short by the clip's end.
        """
        _, last = self._loud_blocks(threshold_db)
        return (
            self._duration_s if last is None else max(0.0, self._duration_s - (last + 1) * self._block() / self._rate)
        )

    def loudness_dbfs(self) -> float:
        """RMS level of all that was heard of the clip, in dB relative to 1.0; minus infinity for silence."""
        self._measure_pending()
        return _decibels(self._square_sum / self._num_heard) if self._num_heard else -math.inf

    def _begin(self, frame: av.AudioFrame) -> None:
        if not _RATES[0] <= frame.sample_rate <= _RATES[1]:
            raise unreadable(f"the sound claims a rate of {frame.sample_rate} Hz")
        self._rate = frame.sample_rate
        self._window = np.zeros(round(self._window_s * self._rate), np.float32)
        if frame.time is not None:
            self._position = min(0, round((frame.time - self._start_s) * self._rate))

    def _gap(self, frame: av.AudioFrame) -> int:
        """Samples between the end of what came before and `frame`: negative if they overlap, 0 if contiguous."""
        if frame.time is None:
            return 0
        gap = round((frame.time - self._start_s) * self._rate) - self._position - self._num_pending
        return gap if abs(gap) > _JITTER_S * self._rate else 0

    def _append_silence(self, num_samples: int) -> None:
        """Nothing was sent, so nothing was to be heard: it is counted, not made."""
        end = min(self._position + num_samples, self._num_samples())
        silence = end - max(0, self._position)
        self._position = max(self._position, end)
        if silence <= 0:
            return
        if silence > _LONGEST_GAP_S * self._rate:
            raise unreadable(f"the sound is interrupted for {silence / self._rate:.0f} s")
        self._num_heard += silence
        begun = min(silence, -len(self._rest) % self._block())  # Completes the block that is begun.
        self._measure_blocks(np.zeros(begun, np.float32))
        self._blocks.add_silent((silence - begun) // self._block())
        self._measure_blocks(np.zeros((silence - begun) % self._block(), np.float32))

    def _measure_pending(self) -> None:
        if self._pending:
            self._append(mono(np.concatenate(self._pending, axis=1), *self._layout))
            self._pending.clear()
            self._num_pending = 0

    def _append(self, samples: np.ndarray) -> None:
        """Adds samples that follow right on those measured before; those outside the clip are dropped."""
        first = self._position
        self._position += len(samples)
        samples = samples[max(0, -first) : max(0, self._num_samples() - first)]
        first = max(0, first)
        if not len(samples):
            return
        self._keep(first, samples)
        peak = float(np.abs(samples).max())
        if not math.isfinite(peak):
            raise unreadable("the sound holds values that are no finite numbers")
        if peak > _HIGHEST_PEAK:
            raise unreadable(f"the sound holds values up to {peak:.0e}, where 1 is full scale")
        self._peak = max(self._peak, peak)
        self._square_sum += float(np.square(samples, dtype=np.float64).sum())
        self._num_heard += len(samples)
        self._measure_blocks(samples)

    def _keep(self, first: int, samples: np.ndarray) -> None:
        """Takes samples of the clip, float32, of which the first is sample number `first` of it."""
        copy_samples(self._window, round(self._window_start_s * self._rate), samples, first)

    def _measure_blocks(self, samples: np.ndarray) -> None:
        samples = np.concatenate([self._rest, samples])
        num_blocks = len(samples) // self._block()
        blocks = samples[: num_blocks * self._block()].reshape(num_blocks, self._block())
        self._blocks.add(_root_mean_squares(blocks))
        self._rest = samples[num_blocks * self._block() :]

    def _loud_blocks(self, threshold_db: float) -> tuple[int | None, int | None]:
        """Indices of the first and of the last block of the clip that is above the threshold."""
        self._measure_pending()
        threshold = self._peak * 10 ** (threshold_db / 20)
        first, last = self._blocks.first_above(threshold), self._blocks.last_above(threshold)
        # The block that the clip's end cuts short is too short to be a beginning, but it can be an end.
        if first is not None and len(self._rest) and _root_mean_squares(self._rest[None])[0] > threshold:
            last = self._blocks.count
        return first, last

    def _block(self) -> int:
        return round(self._rate / _BLOCKS_PER_SECOND)

    def _num_samples(self) -> int:
        return round(self._duration_s * self._rate)


class SoundStream(SoundCollector):
    """A sink that gives windows of the sound, in the order of their beginnings, while it takes more of it.

    start_s, duration_s: as of `SoundCollector`. needed_to_s: it is done there. Only what lies after the place last
    given to `forget` is kept.
    """

    def __init__(self, *, start_s: float, duration_s: float, needed_to_s: float) -> None:
        super().__init__(start_s=start_s, duration_s=duration_s, window_start_s=0.0, window_s=0.0)
        self._needed_to_s = needed_to_s
        self._kept: list[tuple[int, np.ndarray]] = []
        self._forgotten_s = 0.0

    @property
    def done(self) -> bool:
        return self.has(self._needed_to_s, 0.0)

    def has(self, start_s: float, length_s: float) -> bool:
        """Whether all of a window was heard already."""
        if not self._rate:
            return False
        needed = round(start_s * self._rate) + round(length_s * self._rate)
        return self._position + self._num_pending >= min(needed, self._num_samples())

    def cut(self, start_s: float, length_s: float) -> tuple[np.ndarray, int]:
        """As `SoundCollector.window`, for this window."""
        self.require(start_s + length_s)
        window = np.zeros(round(length_s * self._rate), np.float32)
        for first, samples in self._kept:
            copy_samples(window, round(start_s * self._rate), samples, first)
        return window, self._rate

    def forget(self, before_s: float) -> None:
        """No window that begins before `before_s` will be asked for."""
        self._forgotten_s = before_s
        self._drop_forgotten()

    def _keep(self, first: int, samples: np.ndarray) -> None:
        self._kept.append((first, samples))
        self._drop_forgotten()

    def _drop_forgotten(self) -> None:
        place = round(self._forgotten_s * self._rate)
        self._kept = [(first, samples) for first, samples in self._kept if first + len(samples) > place]


def copy_samples(window: np.ndarray, window_first: int, samples: np.ndarray, first: int) -> None:
    """Writes into `window`, which begins at sample number window_first, what it shares with `samples`, at `first`."""
    offset = first - window_first
    low, high = max(0, offset), min(len(window), offset + len(samples))
    if low < high:
        window[low:high] = samples[low - offset : high - offset]


class _Blocks:
    """RMS of blocks in order, of which only those are kept that can be the first or the last above a threshold.

    Those are the ones louder than all before them, and the ones louder than all after them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._loudest = 0.0
        self._first = _NO_BLOCKS
        self._last = _NO_BLOCKS

    def add(self, rms: np.ndarray) -> None:
        """rms: float64 [blocks]."""
        if not len(rms):
            return
        before = np.maximum.accumulate(np.concatenate([[self._loudest], rms]))
        louder = rms > before[:-1]
        self._loudest = before[-1]
        after = np.maximum.accumulate(rms[::-1])[::-1]
        lasting = np.concatenate([rms[:-1] > after[1:], [True]])
        indices = np.arange(self.count, self.count + len(rms))
        kept = self._last[1] > after[0]
        self._first = _joined(self._first, (indices[louder], rms[louder]))
        self._last = _joined((self._last[0][kept], self._last[1][kept]), (indices[lasting], rms[lasting]))
        self.count += len(rms)

    def add_silent(self, count: int) -> None:
        """No block of silence is above any threshold."""
        self.count += count

    def first_above(self, threshold: float) -> int | None:
        above = np.flatnonzero(self._first[1] > threshold)
        return int(self._first[0][above[0]]) if len(above) else None

    def last_above(self, threshold: float) -> int | None:
        above = np.flatnonzero(self._last[1] > threshold)
        return int(self._last[0][above[-1]]) if len(above) else None


_NO_BLOCKS = (np.empty(0, np.int64), np.empty(0))


def _joined(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _root_mean_squares(blocks: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(blocks, dtype=np.float64).mean(axis=1))


def mono(samples: np.ndarray, is_planar: bool, num_channels: int) -> np.ndarray:
    """float32 [samples], -1 to 1: the mean of the channels, whatever the sample format.

    samples: [channels, samples] if planar, else [1, samples * channels], as PyAV gives them.
    """
    if not is_planar:
        samples = samples.reshape(-1, num_channels).T
    scaled = samples.astype(np.float32)
    if samples.dtype.kind in "ui":
        full_scale = np.float32(2 ** (8 * samples.itemsize - 1))
        scaled = scaled / full_scale - (samples.dtype.kind == "u")  # Unsigned samples rest at their middle.
    return scaled[0] if num_channels == 1 else scaled.mean(axis=0)


def dbfs(samples: np.ndarray) -> float:
    """RMS level in dB relative to 1.0; minus infinity for silence."""
    return _decibels(float(np.mean(np.square(samples, dtype=np.float64))))


def _decibels(mean_square: float) -> float:
    return 10 * math.log10(mean_square) if mean_square > 0 else -math.inf


def raise_volume(samples: np.ndarray, target_dbfs: float) -> np.ndarray:
    """`samples` at an RMS level of at least `target_dbfs`: quieter ones are scaled up to it, none is scaled down."""
    change = target_dbfs - dbfs(samples)
    if change <= 0 or math.isinf(change):
        return samples
    return samples * np.float32(10 ** (change / 20))


def resample(samples: np.ndarray, rate: int, length: int) -> np.ndarray:
    """float32 [length] at 16 kHz, from samples at `rate` Hz that last about as long."""
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def magnitude_spectrogram(samples: np.ndarray, num_frames: int) -> np.ndarray:
    """float32 [num_frames, 257]: the first centred STFT frames; frame i lies at i x 10 ms, bin k at k x 31.25 Hz."""
    import librosa  # Slow to import, and those who decode have no use for it.

    transform = librosa.stft(samples, n_fft=N_FFT, hop_length=HOP_SAMPLES, win_length=WINDOW_SAMPLES, center=True)
    return np.ascontiguousarray(np.abs(transform).T[:num_frames], dtype=np.float32)
