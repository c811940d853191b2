"""What the augmentations of the sound do, against theory."""

import math

import numpy as np
import pytest

from data_prep.augmentations import plan

RATE = 16_000
COUNT = 3 * RATE
CLIPS = ("one", "two", "three")


def tone(hertz: float, count: int = COUNT, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(count) / RATE)).astype(np.float32)


def noise(amplitude: float = 0.1) -> np.ndarray:
    return (amplitude * np.random.default_rng(7).standard_normal(COUNT)).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.mean(samples.astype(float) ** 2))


def decibels(ratio: float) -> float:
    return 10 * math.log10(ratio)


def band_power(samples: np.ndarray, low: float, high: float) -> float:
    """Power of `samples` between two frequencies, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples.astype(float))) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)
    return float(spectrum[(frequencies >= low) & (frequencies < high)].sum()) * 2 / len(samples) ** 2


def response_db(name: str, clip_id: str, hertz: float) -> float:
    """Gain of a filter at a frequency, away from the window's ends."""
    middle = slice(COUNT // 4, 3 * COUNT // 4)
    return decibels(power(plan(name, clip_id).sound(tone(hertz))[middle]) / power(tone(hertz)[middle]))


@pytest.fixture(params=CLIPS)
def clip_id(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", ["white_noise_20db", "white_noise_10db", "pink_noise"])
def test_noise_lies_as_far_below_the_sound_as_it_should(name: str, clip_id: str) -> None:
    made, sound = plan(name, clip_id), tone(440)
    added = made.sound(sound) - sound
    # The power of n drawn samples has a relative error of sqrt(2 / n): 5 of them are 0.14 dB.
    assert decibels(power(sound) / power(added)) == pytest.approx(made.parameters["snr"], abs=0.15)
    expected = {"white_noise_20db": 20, "white_noise_10db": 10}.get(name)
    assert expected in (None, made.parameters["snr"])


@pytest.mark.parametrize(("name", "step"), [("white_noise_20db", 3.01), ("pink_noise", 0.0)])
def test_noise_has_its_colour(name: str, step: float) -> None:
    sound = tone(30)
    added = plan(name, "clip").sound(sound) - sound
    octaves = [decibels(band_power(added, low, 2 * low)) for low in (125, 250, 500, 1000, 2000)]
    # An octave of white noise has twice the power of the one below, of pink noise as much. The lowest octave here has
    # 375 independent values: 5 standard errors of a step are 5 * 4.34 * sqrt(1 / 375 + 1 / 750) dB.
    assert np.allclose(np.diff(octaves), step, atol=1.4)


def test_gain_is_exact(clip_id: str) -> None:
    made = plan("gain", clip_id)
    np.testing.assert_allclose(made.sound(noise()), noise() * 10 ** (made.parameters["decibels"] / 20), rtol=1e-5)
    assert 3 <= abs(made.parameters["decibels"]) <= 9


def test_low_pass_attenuates_above_its_cut(clip_id: str) -> None:
    cut = plan("low_pass", clip_id).parameters["hertz"]
    # A Butterworth filter of second order passed twice: |H|**2 = (1 + (f / cut)**4)**-2, steeper near half the rate.
    assert response_db("low_pass", clip_id, cut) == pytest.approx(-6.02, abs=0.1)
    assert response_db("low_pass", clip_id, cut / 4) > -0.1
    assert response_db("low_pass", clip_id, 1.8 * cut) < -20 * math.log10(1 + 1.8**4)


def test_high_pass_attenuates_below_its_cut(clip_id: str) -> None:
    cut = plan("high_pass", clip_id).parameters["hertz"]
    assert response_db("high_pass", clip_id, cut) == pytest.approx(-6.02, abs=0.1)
    assert response_db("high_pass", clip_id, 4 * cut) > -0.1
    assert response_db("high_pass", clip_id, cut / 2) == pytest.approx(-20 * math.log10(1 + 2**4), abs=0.5)


def test_band_pass_attenuates_outside_its_band(clip_id: str) -> None:
    made = plan("band_pass", clip_id).parameters
    for edge in (made["low"], made["high"]):
        assert response_db("band_pass", clip_id, edge) == pytest.approx(-6.02, abs=0.1)
    assert response_db("band_pass", clip_id, math.sqrt(made["low"] * made["high"])) > -0.1
    for outside in (made["low"] / 3, 2 * made["high"]):
        assert response_db("band_pass", clip_id, outside) < -24


def test_telephone_has_nothing_above_4_khz_and_little_noise_below() -> None:
    made = plan("telephone_8k", "clip")
    through = made.sound(noise())
    assert decibels(band_power(through, 4100, 8000) / band_power(through, 0, 4000)) < -50
    assert decibels(band_power(through, 300, 3400) / band_power(noise(), 300, 3400)) == pytest.approx(0, abs=0.1)
    sound = tone(1013)  # It meets all levels; one that divides the rate meets a few.
    # mu-law codes samples with 8 bits on a logarithmic scale: a signal-to-noise ratio of about 38 dB.
    assert 34 < decibels(power(sound) / power(made.sound(sound) - sound)) < 42


@pytest.mark.parametrize(("name", "decibels_at_least"), [("aac_32k", 15), ("mp3_32k", 15), ("opus_16k", 8)])
def test_codecs_keep_a_voice_and_lose_something(name: str, decibels_at_least: float) -> None:
    sound = np.sum([tone(110 * number, amplitude=0.2 / number) for number in range(1, 20)], axis=0)
    sound = (sound * np.abs(np.sin(np.arange(COUNT) / 3000))).astype(np.float32)
    lost = plan(name, "clip").sound(sound) - sound
    assert decibels_at_least < decibels(power(sound) / power(lost)) < 60


def test_clipping_flattens_its_share_and_nothing_else(clip_id: str) -> None:
    made, sound = plan("clipping", clip_id), noise()
    clipped = made.sound(sound)
    changed = clipped != sound
    # Whole percents above and below, rounded from what was drawn.
    assert 100 * changed.mean() == pytest.approx(made.parameters["percent"], abs=1.1)
    assert set(np.unique(clipped[changed])) == {clipped.min(), clipped.max()}


@pytest.mark.parametrize("name", ["reverb_small", "reverb_large"])
def test_a_room_rings_as_long_as_it_should(name: str, clip_id: str) -> None:
    made = plan(name, clip_id)
    click = np.zeros(COUNT, np.float32)
    click[RATE // 2] = 1
    answer = made.sound(click).astype(float)
    assert np.abs(answer[: RATE // 2]).max() < 1e-6
    assert np.argmax(np.abs(answer)) == RATE // 2
    assert power(answer) == pytest.approx(power(click), rel=1e-4)
    # Schroeder: the energy still to come falls by 60 dB in the reverberation time; from -5 to -25 dB by a third of it.
    rest = np.cumsum(answer[::-1] ** 2)[::-1]
    level = 10 * np.log10(np.maximum(rest / rest[0], 1e-12))
    seconds = (np.argmax(level < -25) - np.argmax(level < -5)) / RATE * 3
    # Sabine's formula, by which the walls are chosen, assumes a diffuse field; a box rings a little longer.
    assert 0.8 < seconds / made.parameters["rt60"] < 1.5


def test_pitch_moves_a_tone_by_its_semitones(clip_id: str) -> None:
    made = plan("pitch", clip_id)
    assert loudest_hertz(made.sound(tone(440))) == pytest.approx(
        440 * 2 ** (made.parameters["semitones"] / 12), rel=0.01
    )


def test_tempo_keeps_a_tone_and_shortens_the_way_to_an_event(clip_id: str) -> None:
    made = plan("tempo", clip_id)
    count = round(3 * made.speed * RATE)
    assert loudest_hertz(made.sound(tone(440, count))) == pytest.approx(440, rel=0.01)
    sound = np.zeros(count, np.float32)
    moment = 2.0
    sound[round(moment * RATE) :][:160] = tone(800, 160)
    energy = np.cumsum(made.sound(sound).astype(float) ** 2)
    middle = np.searchsorted(energy, energy[-1] / 2) / RATE
    assert middle == pytest.approx((moment + 0.005) / made.speed, abs=0.005)
    assert len(energy) == COUNT


def loudest_hertz(samples: np.ndarray) -> float:
    windowed = samples * np.hanning(len(samples))
    return float(np.argmax(np.abs(np.fft.rfft(windowed)))) * RATE / len(samples)
