"""The forecast of a search: its memory against what updates really take, and what follows from it."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch

from stgs import forecast
from stgs.config import InputError, SearchConfig
from stgs.forecast import (
    StorageCount,
    UpdateSeconds,
    clip_bytes,
    forecast_search,
    largest_population,
    measure_updates,
    solve_updates,
)
from stgs.population import PopulationSearch
from stgs.search_space import SearchSpace
from stgs.supernet import Member, Supernet
from tests.peak_memory import peak_bytes

FEATURES = {"visual.layer2": 16, "visual.pooled": 32, "audio.layer2": 16, "audio.pooled": 32}
SPACE = SearchSpace(features=FEATURES, num_cells=1, channels=16, length=4)
CONFIG = SearchConfig(batch_size=32)
CLIPS = {"train_clips": 200, "dev_clips": 100}


def search(members: int, batch: int, channels: int, device: str) -> PopulationSearch:
    """After two epochs of one update of each kind."""
    space = replace(SPACE, channels=channels, length=8)
    train, dev = (forecast.noise_clips(space, members, batch, device) for _ in range(2))
    found = PopulationSearch(
        space,
        [Member(10.0, 5, seed) for seed in range(members)],
        estimator="stgs",
        config=replace(CONFIG, batch_size=batch),
        train=train,
        dev=dev,
        device=device,
    )
    found.run_epoch()
    found.run_epoch()
    return found


def expected(members: int, batch: int, channels: int) -> int:
    space, config = replace(SPACE, channels=channels, length=8), replace(CONFIG, batch_size=batch)
    return forecast_search(space, config, members=members, train_clips=batch, dev_clips=batch).device_bytes


def test_storages_are_counted_while_they_live() -> None:
    with StorageCount() as count:
        x = torch.zeros(1000, requires_grad=True)
        y = x.exp()  # kept by autograd for the backward pass
        loss = (y * 2.0).sum()
        del y
        assert (count.now, count.peak) == (8004, 12004)
        view = x.detach().view(10, 100)
        assert count.now == 8004
        loss.backward()
        del loss, view
        assert count.now == 8000, "x and its gradient"


def test_state_is_what_a_real_search_holds() -> None:
    net = Supernet(SPACE, [Member(1.0, 1, seed) for seed in range(3)])
    trained = sum(p.numel() for p in net.parameters())
    buffers = sum(buffer.nbytes for buffer in net.buffers())
    steps = 4 * len(list(net.parameters()))  # Adam counts its steps in a float of each parameter
    fixed = forecast_search(SPACE, CONFIG, members=3, **CLIPS).state_bytes
    assert fixed == pytest.approx(3 * 4 * trained + buffers + steps, rel=0.01)
    # float16 values of a clip, and one byte of label a member.
    assert clip_bytes(SPACE, 3, 300) == 300 * (2 * (4 * 16 + 32 + 4 * 16 + 32) + 3)


def test_vectors_are_those_named_whatever_their_names() -> None:
    vectors = ["visual.layer2", "visual.pooled"]
    assert clip_bytes(SPACE, 3, 300, vectors) == 300 * (2 * (16 + 32 + 4 * 16 + 4 * 32) + 3)
    columns = forecast.noise_clips(SPACE, 1, 5, "cpu", vectors).features
    assert {name: x.shape[1:] for name, x in columns.items()} == {
        "visual.layer2": (16,), "visual.pooled": (32,), "audio.layer2": (4, 16), "audio.pooled": (4, 32),
    }  # fmt: skip
    few, many = (forecast_search(SPACE, CONFIG, members=1, **CLIPS, vectors=v) for v in (list(FEATURES), vectors))
    assert few.update_bytes < many.update_bytes
    assert few.clip_bytes == 300 * (2 * 96 + 1)


def test_forecast_grows_with_members_and_batch_and_computes_nothing() -> None:
    one, two, many = (forecast_search(SPACE, CONFIG, members=members, **CLIPS) for members in (1, 2, 1000))
    assert two.update_bytes - one.update_bytes == pytest.approx((many.update_bytes - two.update_bytes) / 998, rel=0.05)
    assert many.device_bytes > 100 * one.device_bytes
    large = forecast_search(SPACE, replace(CONFIG, batch_size=100), members=2, **CLIPS)
    assert 2 * two.update_bytes < large.update_bytes < 4 * two.update_bytes
    with pytest.raises(InputError, match="members is 0"):
        forecast_search(SPACE, CONFIG, members=0, **CLIPS)


def test_forecast_is_what_a_search_takes_on_a_cpu() -> None:
    measured = peak_bytes(lambda: search(8, 48, 32, "cpu"))
    # 3 % by the noise of a sampled update, which is drawn in float64.
    assert expected(8, 48, 32) == pytest.approx(measured, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("members", [1, 16])
def test_forecast_is_what_a_search_takes_on_a_gpu(members: int) -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    search(members, 64, 128, "cuda")
    measured = torch.cuda.max_memory_allocated() - before
    # cuBLAS keeps some megabytes.
    assert 0.8 * expected(members, 64, 128) < measured < 1.2 * expected(members, 64, 128) + 32e6


def test_largest_population_fits_and_one_more_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # A forecast takes tenths of a second, and the same ones are asked for again and again here.
    known = functools.cache(lambda members: forecast_search(SPACE, CONFIG, members=members, **CLIPS))
    monkeypatch.setattr(forecast, "forecast_search", lambda space, config, *, members, **sizes: known(members))
    needs = {n: known(n).device_bytes for n in (1, 7, 8, 40)}

    def largest(memory: float, most: int = 40) -> int:
        sizes = {"train_clips": 200, "dev_clips": 100, "memory_bytes": int(memory / forecast.USABLE_SHARE["cuda"]) + 1}
        return largest_population(SPACE, CONFIG, most=most, **sizes)

    assert largest(needs[40]) == 40
    assert largest(needs[40] * 9) == 40
    assert largest(needs[7], most=1) == 1
    # Never too many; one fewer than would fit at worst, for the need bends at the first members.
    assert largest(needs[7]) in (6, 7)
    assert largest(needs[8]) in (7, 8)
    assert largest(needs[1]) == 1
    with pytest.raises(InputError, match=r"one search needs .* MB of memory, but a cuda device can give 0\.0 MB"):
        largest(1000)


def test_seconds_of_updates_are_told_apart() -> None:
    weights, architecture = 0.3, 0.7
    found = solve_updates(lambda updates: updates[0] * weights + updates[1] * architecture)
    assert (found.weights, found.architecture) == pytest.approx((weights, architecture))
    # 33 clips in batches of 32 are two updates.
    assert UpdateSeconds(1.0, 10.0).epoch(CONFIG, 64, 33) == pytest.approx(2 * 1.0 + 2 * 10.0)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_updates_are_measured(monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    def seconds(search: PopulationSearch, device: str) -> float:
        weights, architecture = (math.ceil(len(clips) / batch_size) for clips in (search.train, search.dev))
        assert (search.config.warmup_epochs, search.config.epochs, len(search.active)) == (0, 2, 3)
        return 0.3 * weights + 0.7 * architecture

    monkeypatch.setattr(forecast, "second_epoch_seconds", seconds)
    config = replace(CONFIG, batch_size=batch_size)
    found = measure_updates(SPACE, config, members=3, estimator="stgs", num_samples=5, device="cpu")
    assert (found.weights, found.architecture) == pytest.approx((0.3, 0.7))


def test_the_second_epoch_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        now = 0.0

        def run_epoch(self) -> None:
            self.now += 5.0 if self.now == 0.0 else 2.0

    slow = Slow()
    monkeypatch.setattr("time.perf_counter", lambda: slow.now)
    assert forecast.second_epoch_seconds(slow, "cpu") == 2.0


def test_noise_of_the_clock_leaves_no_update_without_seconds() -> None:
    # 2 and 1 s solve to 0 and 1 s.
    found = solve_updates(lambda updates: {(1, 2): 2.0, (2, 1): 1.0}[updates])
    assert (found.weights, found.architecture) == pytest.approx((0.05, 1.0))
