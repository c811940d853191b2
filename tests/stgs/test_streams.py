"""Counter-based random numbers: an independent implementation, uniformity, and streams that do not meet."""

import itertools
import math
import zlib

import numpy as np
import pytest
import torch

from stgs.estimators import gumbel_noise
from stgs.streams import dropout_levels, dropout_masks, keep_scale, normal, random_words, seed_tensor, uniform

SIGMAS = 4.5
COUNT = 1 << 16
STREAMS = [(0, 0, "a"), (1, 0, "a"), (2, 0, "a"), (0, 1, "a"), (0, 2, "a"), (0, 0, "b"), (0, 0, "c"), (1, 1, "a")]


def words(seed: int, update: int, name: str, count: int = COUNT) -> np.ndarray:
    return random_words(seed_tensor([seed]), update, name, count)[0].numpy().view(np.uint32)


def plain_word(seed: int, update: int, name: str, counter: int) -> int:
    """The generator of the module's description, with Python's unbounded integers."""
    mask64, mask32, golden = (1 << 64) - 1, (1 << 32) - 1, 0x9E3779B97F4A7C15

    def splitmix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask64
        return x ^ (x >> 31)

    def lowbias(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D & mask32
        x = (x ^ (x >> 15)) * 0x846CA68B & mask32
        return x ^ (x >> 16)

    stream = ((update + 1) * golden ^ (zlib.crc32(name.encode()) << 32)) & mask64
    key = splitmix(splitmix((seed + golden) & mask64) ^ stream)
    return lowbias((lowbias(counter ^ (key & mask32)) + (key >> 32)) & mask32)


@pytest.mark.parametrize(("seed", "update", "name"), [(0, 0, "a"), (12345, 67890, "gumbel/alpha"), (-3, 1 << 33, "x")])
def test_words_equal_an_independent_implementation(seed: int, update: int, name: str) -> None:
    expected = [plain_word(seed % (1 << 64), update, name, counter) for counter in range(500)]
    assert words(seed, update, name, 500).tolist() == expected


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("stream", STREAMS[:4], ids=str)
def test_bytes_are_uniform(stream: tuple[int, int, str], shift: int) -> None:
    counts = np.bincount(words(*stream) >> shift & 255, minlength=256)
    chi_square = float(((counts - COUNT / 256) ** 2 / (COUNT / 256)).sum())
    # 255 degrees of freedom: mean 255, variance 510. Far too even is wrong as well.
    assert abs(chi_square - 255) < SIGMAS * math.sqrt(510)


def test_neighbouring_numbers_of_a_stream_are_uncorrelated() -> None:
    x = words(3, 4, "a") / 2**32 - 0.5
    for lag in (1, 2, 3, 4, 8, 128, 1024):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < SIGMAS / math.sqrt(COUNT - lag)


@pytest.mark.parametrize("pair", list(itertools.combinations(STREAMS, 2)), ids=str)
def test_neighbouring_streams_are_uncorrelated(pair: tuple[tuple[int, int, str], ...]) -> None:
    first, second = (words(*stream) for stream in pair)
    assert abs(np.corrcoef(first.astype(float), second.astype(float))[0, 1]) < SIGMAS / math.sqrt(COUNT)
    # Every bit of one agrees with the same bit of the other half of the time.
    bits = np.unpackbits((first ^ second).view(np.uint8).reshape(COUNT, 4), axis=1).mean(axis=0)
    assert np.abs(bits - 0.5).max() < SIGMAS * 0.5 / math.sqrt(COUNT)


def test_streams_share_no_words_but_by_chance() -> None:
    drawn = [words(*stream) for stream in STREAMS]
    for stream in drawn:
        # One stream is a one-to-one image of its counters.
        assert len(np.unique(stream)) == COUNT
    shared = sum(len(np.intersect1d(a, b)) for a, b in itertools.combinations(drawn, 2))
    # COUNT^2 pairs of words, each equal with chance 2^-32: Poisson with this mean over all pairs of streams.
    mean = math.comb(len(STREAMS), 2) * COUNT**2 / 2**32
    assert abs(shared - mean) < SIGMAS * math.sqrt(mean)


def test_numbers_do_not_depend_on_the_pack_or_the_count() -> None:
    pack = random_words(seed_tensor([7, 8, 9]), 5, "a", 1000)
    assert torch.equal(pack[1], random_words(seed_tensor([8]), 5, "a", 1000)[0])
    assert torch.equal(pack[:, :10], random_words(seed_tensor([7, 8, 9]), 5, "a", 10))


def test_uniform_is_inside_the_open_interval() -> None:
    x = uniform(seed_tensor(range(4)), 0, "a", (100, 50))
    assert x.shape == (4, 100, 50)
    assert x.dtype == torch.float64
    assert float(x.min()) > 0.0
    assert float(x.max()) < 1.0
    assert abs(float(x.mean()) - 0.5) < SIGMAS / math.sqrt(12 * x.numel())


def test_the_ends_of_the_words_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[[-(1 << 31), (1 << 31) - 1]]], dtype=torch.int32)
    monkeypatch.setattr("stgs.streams._words", lambda *_: ends)
    low, high = uniform(seed_tensor([0]), 0, "a", (2,))[0].tolist()
    assert 0.0 < low == 1.0 - high
    assert torch.isfinite(gumbel_noise([0], 0, "a", 1, (2,))).all()
    assert torch.isfinite(normal(seed_tensor([0]), 0, "a", (2,))).all()


def test_normal_has_the_moments_of_a_normal() -> None:
    x = normal(seed_tensor(range(4)), 0, "a", (20_000,)).double().flatten()
    n = len(x)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - moment) < SIGMAS * math.sqrt(variance / n)


def dropout_mask(
    seeds: list[int], update: int, shape: tuple[int, ...], probability: float, **rows: int
) -> torch.Tensor:
    return dropout_masks(seed_tensor(seeds), update, {"a": probability}, shape, **rows)["a"]


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.2, 0.5, 0.9, 0.999])
def test_dropout_mask_has_the_rate_and_the_mean(probability: float) -> None:
    mask = dropout_mask([1, 2], 3, (60, 8, 101), probability)
    assert mask.shape == (2, 60, 8, 101)
    assert set(mask.unique().tolist()) <= {0, 1}
    rate = dropout_levels(probability) / 256
    assert rate == min(round(probability * 256), 255) / 256
    assert abs(rate - probability) <= 1 / 256
    error = math.sqrt(rate * (1 - rate) / mask.numel())
    assert abs(float((mask == 0).float().mean()) - rate) <= SIGMAS * error
    # Scaled, its expectation is exactly 1.
    assert keep_scale(probability) == pytest.approx(1 / (1 - rate), rel=1e-12)


def test_dropout_positions_are_independent() -> None:
    # Four positions share a word, so neighbours at lags 1 to 4 are looked at, and the rate of each byte of the word.
    dropped = (dropout_mask([5], 0, (1, 1 << 17), 0.2)[0, 0] == 0).numpy().astype(float)
    for lag in (1, 2, 3, 4, 8, 512):
        assert abs(np.corrcoef(dropped[:-lag], dropped[lag:])[0, 1]) < SIGMAS / math.sqrt(len(dropped))
    rate = 51 / 256
    lanes = dropped.reshape(-1, 4).mean(axis=0)
    assert np.abs(lanes - rate).max() < SIGMAS * math.sqrt(rate * (1 - rate) / (len(dropped) / 4))


def test_dropout_masks_are_the_bytes_of_their_streams() -> None:
    """Alone or beside other layers, drawn in one go or in several."""
    rows, shape = 300, (300, 3, 5)
    names = {f"layer{index}": 0.1 * index for index in range(1, 9)}
    many = dropout_masks(seed_tensor([7, 8]), 5, names, shape)
    for index, (name, probability) in enumerate(names.items()):
        # A row of 15 positions takes 4 words.
        drawn = random_words(seed_tensor([7, 8]), 5, name, rows * 4).view(torch.uint8).view(2, rows, 16)[..., :15]
        assert torch.equal(many[name].flatten(2), (drawn >= round(0.1 * (index + 1) * 256)).to(torch.uint8))
        assert torch.equal(many[name], dropout_masks(seed_tensor([7, 8]), 5, {name: probability}, shape)[name])


def test_dropout_masks_drawn_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"layer{index}": 0.3 for index in range(5)}
    whole = dropout_masks(seed_tensor([7, 8]), 5, names, (3, 4))
    monkeypatch.setattr("stgs.streams._WORDS_IN_CACHE", 2 * 3 * 2)
    parts = dropout_masks(seed_tensor([7, 8]), 5, names, (3, 4))
    assert list(parts) == list(whole)
    assert all(torch.equal(parts[name], whole[name]) for name in names)


def test_dropout_mask_of_a_member_does_not_depend_on_its_pack() -> None:
    pack = dropout_mask([4, 5, 6], 2, (10, 3), 0.3)
    assert torch.equal(pack[2:], dropout_mask([6], 2, (10, 3), 0.3))
    assert not torch.equal(pack[0], pack[1])
    assert not torch.equal(pack, dropout_mask([4, 5, 6], 3, (10, 3), 0.3))


@pytest.mark.parametrize("positions", [(4, 6), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("world", [2, 3])
def test_dropout_masks_of_workers_are_rows_of_the_whole(world: int, positions: tuple[int, ...]) -> None:
    whole = dropout_mask([4, 5], 2, (7, *positions), 0.3)
    for rank in range(world):
        rows = whole[:, rank::world]
        assert torch.equal(dropout_mask([4, 5], 2, tuple(rows.shape[1:]), 0.3, first=rank, stride=world), rows)
