from typing import Any

import numpy as np
import pytest

from data_prep import audio
from data_prep.audio import SoundCollector
from data_prep.rejects import RejectedError, RejectReason

RATE = 8000


def collect(frames: list[Any], **changes: float) -> SoundCollector:
    settings = {"start_s": 0.0, "duration_s": 1.0, "window_start_s": 0.0, "window_s": 1.0} | changes
    collector = SoundCollector(**settings)
    for frame in frames:
        collector.add(frame)
    return collector


def in_frames(clips: Any, samples: np.ndarray, start: float | None = 0.0, length: int = 300) -> list[Any]:
    """`samples` cut into frames with time stamps from `start` on, or without."""
    return [
        clips.audio_frame(samples[first : first + length], RATE, None if start is None else start + first / RATE)
        for first in range(0, len(samples), length)
    ]


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, count).astype(np.float32)


@pytest.mark.parametrize("start", [0.0, 0.0101, None])
def test_the_window_is_cut_by_time_stamp(clips: Any, start: float | None) -> None:
    samples = noise(2 * RATE)
    collector = collect(in_frames(clips, samples, start), duration_s=2.0, window_start_s=0.5)
    window, rate = collector.window()
    begin = 4000 - round((start or 0.0) * RATE)
    assert rate == RATE
    np.testing.assert_array_equal(window, samples[begin : begin + RATE])


@pytest.mark.parametrize("before", [2000, 13])
def test_sound_before_the_clip_begins_and_after_it_ends_is_dropped(clips: Any, before: int) -> None:
    samples = noise(2 * RATE)
    samples[:before] = 0.9  # Before the clip: neither heard nor the clip's peak.
    samples[before + RATE :] = 0.9
    collector = collect(in_frames(clips, samples, start=10.0 - before / RATE), start_s=10.0)
    window, _ = collector.window()
    np.testing.assert_array_equal(window, samples[before : before + RATE])
    # The RMS of the noise is 4.8 dB under its own peak, 9.9 dB under that of the sound outside.
    assert collector.leading_silence_s(-7.0) == 0.0
    assert collector.done


def test_a_gap_is_silence_and_an_overlap_is_heard_once(clips: Any) -> None:
    samples = noise(RATE)
    frames = in_frames(clips, samples[:2000]) + in_frames(clips, samples[3000:], start=3000 / RATE)
    expected = samples.copy()
    expected[2000:3000] = 0
    np.testing.assert_array_equal(collect(frames).window()[0], expected)
    again = in_frames(clips, samples[:2000]) + in_frames(clips, samples[1000:], start=1000 / RATE)
    np.testing.assert_array_equal(collect(again).window()[0], samples)


def test_a_wrong_time_stamp_far_ahead_costs_no_memory(clips: Any) -> None:
    collector = collect([*in_frames(clips, noise(RATE)), clips.audio_frame(noise(300), RATE, 1e9)], duration_s=10.0)
    assert collector.done
    assert len(collector.window()[0]) == RATE


def test_rounded_time_stamps_do_not_tear_the_sound(clips: Any) -> None:
    samples = noise(RATE)
    frames = in_frames(clips, samples)
    for index, frame in enumerate(frames):
        frame.pts += (index % 3) * 8  # A container's milliseconds.
    np.testing.assert_array_equal(collect(frames).window()[0], samples)


def test_sound_that_breaks_off_is_unreadable(clips: Any) -> None:
    frames = in_frames(clips, noise(RATE // 2))
    with pytest.raises(RejectedError, match=r"the sound breaks off at 0\.50 s, before 1\.00 s") as info:
        collect(frames).window()
    assert info.value.reason is RejectReason.UNREADABLE
    with pytest.raises(RejectedError, match="no sound can be decoded"):
        collect([]).window()
    assert not collect(frames).done


def test_sound_of_no_numbers_or_of_two_rates_is_unreadable(clips: Any) -> None:
    samples = noise(RATE)
    samples[5000] = np.nan
    with pytest.raises(RejectedError, match="no finite numbers"):
        collect(in_frames(clips, samples)).window()
    samples[5000] = 3e38  # Resampling it would overflow.
    with pytest.raises(RejectedError, match=r"values up to 3e\+38, where 1 is full scale"):
        collect(in_frames(clips, samples)).window()
    samples[5000] = 32_768
    assert collect(in_frames(clips, samples)).window()[0].max() == 32_768
    with pytest.raises(RejectedError, match="changes from 8000 to 16000 Hz"):
        collect([*in_frames(clips, noise(800)), clips.audio_frame(noise(800), 16_000, 0.1)])


@pytest.mark.parametrize("silence", [0, 800, 1240])
def test_leading_silence_ends_with_the_first_loud_10_ms(clips: Any, silence: int) -> None:
    samples = clips.tone(400, 1.0, RATE, amplitude=0.5)
    samples[:silence] *= 0.004  # 48 dB down.
    collector = collect(in_frames(clips, samples))
    # Relative to the peak, the tone's RMS is -3 dB and the silence's -51 dB. Blocks are 80 samples long, and one that
    # is half loud is loud.
    assert collector.leading_silence_s(-40.0) == silence // 80 / 100
    assert collector.leading_silence_s(-60.0) == 0.0
    assert collector.leading_silence_s(0.0) == 1.0  # No 10 ms of a tone have the RMS of its peak.


def test_the_threshold_follows_the_peak_of_the_whole_clip(clips: Any) -> None:
    samples = clips.tone(400, 2.0, RATE, amplitude=0.004)
    samples[12_000:] = clips.tone(400, 0.5, RATE, amplitude=0.9)
    collector = collect(in_frames(clips, samples), duration_s=2.0, window_s=1.0)
    assert collector.leading_silence_s(-40.0) == 1.5


@pytest.mark.parametrize(
    ("samples", "planar", "channels", "expected"),
    [
        (np.array([[-32768, 0, 16384]], np.int16), True, 1, [-1.0, 0.0, 0.5]),
        (np.array([[0, 128, 192]], np.uint8), True, 1, [-1.0, 0.0, 0.5]),
        (np.array([[-(2**31), 2**30]], np.int32), True, 1, [-1.0, 0.5]),
        (np.array([[0.25, -0.5]], np.float64), True, 1, [0.25, -0.5]),
        (np.array([[0.25, 0.5], [0.75, -0.5]], np.float32), True, 2, [0.5, 0.0]),
        (np.array([[0.25, 0.75, 0.5, -0.5]], np.float32), False, 2, [0.5, 0.0]),
    ],
)
def test_mono_of_every_sample_format(samples: np.ndarray, planar: bool, channels: int, expected: list[float]) -> None:
    result = audio.mono(samples, planar, channels)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.array(expected, np.float32))


def test_dbfs_and_volume(clips: Any) -> None:
    assert audio.dbfs(np.full(100, 0.1)) == pytest.approx(-20.0)
    assert audio.dbfs(np.zeros(100)) == -np.inf
    quiet, loud = clips.tone(440, 1.0, 16_000, 0.001), clips.tone(440, 1.0, 16_000, 0.5)
    assert audio.dbfs(audio.raise_volume(quiet, -30.0)) == pytest.approx(-30.0, abs=1e-3)
    np.testing.assert_array_equal(audio.raise_volume(loud, -30.0), loud)
    np.testing.assert_array_equal(audio.raise_volume(np.zeros(9, np.float32), -30.0), np.zeros(9))


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100, 48_000])
def test_resampling_keeps_a_tone(clips: Any, rate: int) -> None:
    sound = audio.resample(clips.tone(1000, 1.0, rate), rate, 16_000)
    assert sound.dtype == np.float32
    # The ends hold the filter's own echo.
    np.testing.assert_allclose(sound[1000:-1000], clips.tone(1000, 1.0, 16_000)[1000:-1000], atol=2e-3)


def test_spectrogram_equals_a_transform_written_out() -> None:
    samples = np.random.default_rng(1).standard_normal(48_000)
    result = audio.magnitude_spectrogram(samples.astype(np.float32), 300)
    assert result.shape == (300, 257)
    assert result.dtype == np.float32
    # A periodic Hann window of 400 samples in the middle of 512, around sample 160 i.
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    padded = np.pad(samples, 256)
    expected = np.stack([np.abs(np.fft.rfft(window * padded[160 * i : 160 * i + 512])) for i in range(300)])
    np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("frequency", [250, 1000, 3125, 7000])
def test_a_tone_lands_in_its_bin_with_its_amplitude(clips: Any, frequency: int) -> None:
    spectrogram = audio.magnitude_spectrogram(clips.tone(frequency, 3.0, 16_000, amplitude=0.5), 300)
    inner = spectrogram[2:-2]
    assert (inner.argmax(axis=1) == frequency / 31.25).all()
    # Half the amplitude times the window's sum, which is 200.
    np.testing.assert_allclose(inner.max(axis=1), 50.0, rtol=1e-3)


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100])
@pytest.mark.parametrize("silence", [0.0, 0.5, 0.237])
def test_trailing_silence_begins_after_the_last_loud_10_ms(clips: Any, rate: int, silence: float) -> None:
    samples = clips.tone(400, 1.0, rate, amplitude=0.5)
    loud = round((1 - silence) * rate)
    samples[loud:] *= 0.004  # 48 dB down.
    frames = [clips.audio_frame(samples[first : first + 300], rate, first / rate) for first in range(0, rate, 300)]
    collector = collect(frames)
    assert silence - 0.01 - 1e-9 <= collector.trailing_silence_s(-40.0) <= silence + 1e-9
    assert collector.trailing_silence_s(-60.0) == pytest.approx(0.0, abs=1e-9)
    assert collector.trailing_silence_s(0.0) == 1.0
    assert collector.leading_silence_s(-40.0) == 0.0


def test_the_end_that_is_cut_short_is_heard(clips: Any) -> None:
    samples = np.zeros(RATE, np.float32)
    samples[:80] = 0.5
    samples[-10:] = 0.5
    collector = collect(in_frames(clips, samples), duration_s=1.0)
    assert collector.trailing_silence_s(-40.0) == 0.0
    collector = collect(in_frames(clips, samples), duration_s=(RATE - 45) / RATE)
    assert collector.trailing_silence_s(-40.0) == pytest.approx(0.99 - 45 / RATE)
    collector = collect(in_frames(clips, samples[40:]), duration_s=(RATE - 40) / RATE)  # Its last block is half a one.
    assert collector.trailing_silence_s(-40.0) == 0.0


def test_silence_of_noise_in_one_piece_and_in_many_is_that_of_all_its_blocks(clips: Any) -> None:
    """Against all blocks at once, which the collector does not keep."""
    random = np.random.default_rng(5)
    levels = np.repeat(10 ** random.uniform(-3, 0, 60), RATE // 20)  # 3 s, a new level every 50 ms.
    samples = (levels * random.uniform(-1, 1, 3 * RATE)).astype(np.float32)
    frames = in_frames(clips, samples[:9000]) + in_frames(clips, samples[11_000:], start=11_000 / RATE)
    heard = samples.copy()
    heard[9000:11_000] = 0
    rms = np.sqrt(np.square(heard.reshape(-1, 80), dtype=np.float64).mean(axis=1))
    collector = collect(frames, duration_s=3.0)
    for threshold in np.linspace(-70, -1, 70):
        loud = np.flatnonzero(rms > np.abs(heard).max() * 10 ** (threshold / 20))
        first, last = (loud[0], loud[-1]) if len(loud) else (300, -1)
        assert collector.leading_silence_s(threshold) == pytest.approx(first / 100)
        assert collector.trailing_silence_s(threshold) == pytest.approx((299 - last) / 100)
    assert collector.loudness_dbfs() == pytest.approx(10 * np.log10(np.square(heard, dtype=np.float64).mean()))


def test_loudness_is_that_of_the_clip_alone(clips: Any) -> None:
    samples = np.concatenate([np.full(RATE, 0.9), np.full(RATE, 0.1), np.full(RATE, 0.9)]).astype(np.float32)
    collector = collect(in_frames(clips, samples, start=-1.0), duration_s=1.0)
    assert collector.loudness_dbfs() == pytest.approx(-20.0, abs=1e-3)
    assert collect(in_frames(clips, np.zeros(RATE, np.float32))).loudness_dbfs() == -np.inf


def test_a_gap_is_counted_not_made_and_a_minute_at_most(clips: Any) -> None:
    def with_gap(seconds: float) -> SoundCollector:
        frames = [*in_frames(clips, noise(RATE)), *in_frames(clips, noise(RATE), start=1 + seconds)]
        return collect(frames, duration_s=1e6)

    collector = with_gap(59.0)
    assert collector.trailing_silence_s(-40.0) == pytest.approx(1e6 - 61.0)
    level = 10 * np.log10(np.square(noise(RATE), dtype=np.float64).mean() * 2 / 61)
    assert collector.loudness_dbfs() == pytest.approx(level)
    for seconds in (61.0, 43_200.0, 9e5):
        with pytest.raises(RejectedError, match=f"the sound is interrupted for {seconds:.0f} s"):
            with_gap(seconds)


def test_a_gap_in_the_middle_of_a_block(clips: Any) -> None:
    frames = [*in_frames(clips, noise(8040)), *in_frames(clips, noise(240), start=3.0)]
    frames[-1] = clips.audio_frame(np.zeros(240, np.float32), RATE, 3.0)
    collector = collect(frames, duration_s=4.0)
    assert collector.trailing_silence_s(-40.0) == pytest.approx(4.0 - 1.01)


@pytest.mark.parametrize("rate", [1, 50, 999, 800_000, 2**31 - 1])
def test_rates_that_no_sound_has_are_unreadable(clips: Any, rate: int) -> None:
    with pytest.raises(RejectedError, match=f"the sound claims a rate of {rate} Hz"):
        collect([clips.audio_frame(noise(300), rate, 0.0)])
