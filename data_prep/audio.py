"""Sound of a clip: one window of it at 16 kHz, its volume, its magnitude spectrogram, and the silence it begins with.

Spectrogram settings are those of STGS-BMNAS (arXiv 2406.13384): 16 kHz, n_fft 512, window 25 ms, hop 10 ms, volume
raised to -30 dBFS.
"""

import math

import av
import numpy as np

from data_prep.rejects import RejectedError, RejectReason

SAMPLE_RATE = 16_000
N_FFT = 512
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
NUM_BINS = N_FFT // 2 + 1

_JITTER_S = 0.005
"""Time stamps that are off by less follow from rounding in the container: the samples are contiguous."""
_GAP_TOLERANCE_S = 0.1
"""How far the sound may fall short of the window's end before the file counts as damaged."""
_BLOCKS_PER_SECOND = 100


class SoundCollector:
    """A sink that keeps one window of the sound, and measures the silence before the clip's first sound.

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
        self._block_rms: list[np.ndarray] = []
        self._rest = np.empty(0, np.float32)

    @property
    def done(self) -> bool:
        return self._rate > 0 and self._position + self._num_pending >= round(self._duration_s * self._rate)

    def add(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded frame. Raises RejectedError: unreadable, for a new rate or for no numbers."""
        if not self._rate:
            self._begin(frame)
        elif frame.sample_rate != self._rate:
            raise _unreadable(f"the sound changes from {self._rate} to {frame.sample_rate} Hz")
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
        if not self._rate:
            raise _unreadable("no sound can be decoded")
        self._measure_pending()
        end = self._position / self._rate
        window_end = self._window_start_s + self._window_s
        if end < window_end - _GAP_TOLERANCE_S:
            raise _unreadable(f"the sound breaks off at {end:.2f} s, before {window_end:.2f} s")
        return self._window, self._rate

    def leading_silence_s(self, threshold_db: float) -> float:
        """Seconds until the RMS of 10 ms exceeds `threshold_db` (negative) relative to the clip's peak."""
        self._measure_pending()
        rms = np.concatenate([np.empty(0), *self._block_rms])
        loud = rms > self._peak * 10 ** (threshold_db / 20)
        return float(np.argmax(loud)) / _BLOCKS_PER_SECOND if loud.any() else self._duration_s

    def _begin(self, frame: av.AudioFrame) -> None:
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
        """Nothing was sent, so nothing was to be heard. A second at a time: a wrong time stamp may ask for hours."""
        rest = min(num_samples, round(self._duration_s * self._rate) - self._position)
        while rest > 0:
            self._append(np.zeros(min(rest, self._rate), np.float32))
            rest -= self._rate

    def _measure_pending(self) -> None:
        if self._pending:
            self._append(mono(np.concatenate(self._pending, axis=1), *self._layout))
            self._pending.clear()
            self._num_pending = 0

    def _append(self, samples: np.ndarray) -> None:
        """Adds samples that follow right on those measured before; those outside the clip are dropped."""
        first = self._position
        self._position += len(samples)
        samples = samples[max(0, -first) : max(0, round(self._duration_s * self._rate) - first)]
        first = max(0, first)
        if not len(samples):
            return
        offset = first - round(self._window_start_s * self._rate)
        low, high = max(0, offset), min(len(self._window), offset + len(samples))
        if low < high:
            self._window[low:high] = samples[low - offset : high - offset]
        peak = float(np.abs(samples).max())
        if not math.isfinite(peak):
            raise _unreadable("the sound holds values that are no finite numbers")
        self._peak = max(self._peak, peak)
        self._measure_blocks(samples)

    def _measure_blocks(self, samples: np.ndarray) -> None:
        block = round(self._rate / _BLOCKS_PER_SECOND)
        samples = np.concatenate([self._rest, samples])
        num_blocks = len(samples) // block
        blocks = samples[: num_blocks * block].reshape(num_blocks, block)
        self._block_rms.append(np.sqrt(np.square(blocks, dtype=np.float64).mean(axis=1)))
        self._rest = samples[num_blocks * block :]


def _unreadable(detail: str) -> RejectedError:
    return RejectedError(RejectReason.UNREADABLE, detail)


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
    mean_square = float(np.mean(np.square(samples, dtype=np.float64)))
    return 10 * math.log10(mean_square) if mean_square > 0 else -math.inf


def raise_volume(samples: np.ndarray, target_dbfs: float) -> np.ndarray:
    """`samples` at an RMS level of at least `target_dbfs`: quieter ones are scaled up to it, none is scaled down."""
    change = target_dbfs - dbfs(samples)
    if change <= 0 or math.isinf(change):
        return samples
    return samples * np.float32(10 ** (change / 20))


def resample(samples: np.ndarray, rate: int, length: int) -> np.ndarray:
    """float32 [length] at 16 kHz, from samples at `rate` Hz that last about as long."""
    import librosa  # Slow to import, and only workers that decode sound need it.

    if rate != SAMPLE_RATE:
        samples = librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    return librosa.util.fix_length(samples, size=length)


def magnitude_spectrogram(samples: np.ndarray, num_frames: int) -> np.ndarray:
    """float32 [num_frames, 257]: the first centred STFT frames; frame i lies at i x 10 ms, bin k at k x 31.25 Hz."""
    import librosa  # See resample.

    transform = librosa.stft(samples, n_fft=N_FFT, hop_length=HOP_SAMPLES, win_length=WINDOW_SAMPLES, center=True)
    return np.ascontiguousarray(np.abs(transform).T[:num_frames], dtype=np.float32)
