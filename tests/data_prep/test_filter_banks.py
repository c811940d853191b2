import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from data_prep.filter_banks import as_int16, log_filter_banks, stacked


def by_loops(samples: np.ndarray) -> np.ndarray:
    """The definition, one number after another, with a discrete Fourier transform written out."""
    emphasised = [float(samples[0])]
    emphasised += [float(now) - 0.97 * float(before) for before, now in itertools.pairwise(samples)]
    # Windows of 400 begin every 160 samples, until all samples are in one.
    windows = 1
    while (windows - 1) * 160 + 400 < len(samples):
        windows += 1
    emphasised += [0.0] * 400
    highest = 2595 * math.log10(1 + 8000 / 700)
    corners = [math.floor(513 * 700 * (10 ** (highest * point / 27 / 2595) - 1) / 16_000) for point in range(28)]
    waves = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    banks = np.zeros((windows, 26))
    for window in range(windows):
        power = np.abs(waves @ np.array((emphasised + [0.0] * 400)[window * 160 :][:400])) ** 2 / 512
        for bank, (left, middle, right) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
            energy = sum(power[place] * (place - left) / (middle - left) for place in range(left, middle))
            energy += sum(power[place] * (right - place) / (right - middle) for place in range(middle, right))
            banks[window, bank] = math.log(energy or np.finfo(float).eps)
    return banks


def test_the_released_numbers(shared: Path) -> None:
    golden = np.load(shared / "golden" / "mrdf" / "audio_features.npz")
    banks = log_filter_banks(golden["wav"])
    assert (banks.dtype, banks.shape) == (np.float32, (99, 26))
    np.testing.assert_allclose(banks, golden["logfbank"], atol=1e-3)


@pytest.mark.parametrize("length", [1, 399, 400, 401, 560, 561, 1999])
def test_any_length_as_the_definition_says(length: int) -> None:
    samples = np.random.default_rng(length).integers(-20_000, 20_000, length).astype(np.int16)
    np.testing.assert_allclose(log_filter_banks(samples), by_loops(samples), rtol=1e-5, atol=1e-4)


def test_a_long_sound_is_that_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 5000).astype(np.int16)
    whole = log_filter_banks(samples)
    monkeypatch.setattr("data_prep.filter_banks._BLOCK", 7)
    np.testing.assert_array_equal(log_filter_banks(samples), whole)


def test_silence_has_the_least_energy_and_no_sample_none() -> None:
    np.testing.assert_allclose(log_filter_banks(np.zeros(800, np.int16)), math.log(2.0**-52), rtol=1e-6)
    with pytest.raises(ValueError, match="without a sample"):
        log_filter_banks(np.zeros(0, np.int16))


def test_sound_becomes_what_a_file_of_16_bits_holds() -> None:
    numbers = np.array([-32_768, -1, 0, 1, 32_767], np.int16)
    np.testing.assert_array_equal(as_int16(numbers / np.float32(32_768)), numbers)
    np.testing.assert_array_equal(as_int16(np.array([-7.0, 1.5], np.float32)), [-32_768, 32_767])


def test_four_moments_stand_beside_a_frame() -> None:
    banks = np.arange(10 * 26, dtype=np.float32).reshape(10, 26)
    rows = stacked(banks, 2)
    assert (rows.dtype, rows.shape) == (np.float32, (2, 104))
    np.testing.assert_array_equal(rows.reshape(8, 26), banks[:8])
    longer = stacked(banks, 4).reshape(16, 26)
    np.testing.assert_array_equal(longer[:10], banks)
    assert not longer[10:].any()
