"""How points are cut into packs, and how a run is given more of them. Without Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import grid, packing
from cluster.attempts import Pack, read_pack, read_packs
from cluster.features import FeatureSource, open_features
from cluster.runs import read_config
from cluster.settings import GridConfig, SearchSettings, config_from_dict
from data_prep.storage import InputError
from stgs.config import SearchConfig
from stgs.search_space import SearchSpace
from tests.planted import make_features

SETTINGS = SearchSettings(channels=8, search=SearchConfig(epochs=3, batch_size=32))
CONFIG = GridConfig(temperatures=(5.0, 10.0), num_samples=(5, 10), pack=2, settings=SETTINGS)
FEWER = replace(CONFIG, temperatures=(5.0,))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture
def cluster_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int | None], list[SearchSpace]]:
    """Gives the planner a cluster of so many devices, each with memory for so many points of 8 channels, and returns
    the list of the spaces whose memory is then forecast.
    """
    forecasts: list[SearchSpace] = []

    def give(devices: int, points: int | None) -> list[SearchSpace]:
        def largest(space: SearchSpace, config: SearchConfig, *, most: int, **facts: Any) -> int:
            # The box's own vectors, not those that some naming suggests.
            assert facts.pop("vectors") == {"visual.pooled", "audio.pooled"}
            assert facts == {"train_clips": 96, "dev_clips": 48, "memory_bytes": 1000, "device": "cpu"}
            forecasts.append(space)
            # A point's memory is taken to grow with its channels.
            return min(most, int(points or 0) * 8 // space.channels)

        monkeypatch.setattr(packing, "planned_devices", lambda kind, threads: devices)
        monkeypatch.setattr(packing, "device_memory", lambda kind, threads: None if points is None else 1000)
        monkeypatch.setattr(packing, "largest_population", largest)
        return forecasts

    return give


def sizes(config: GridConfig, source: FeatureSource) -> list[int]:
    packs = grid.plan_packs(config, replace(config.settings, device="cpu"), source)
    assert [pack.name for pack in packs] == [f"pack-{index:04d}" for index in range(len(packs))]
    assert [point for pack in packs for point in pack.points] == sorted(
        config.points(), key=lambda point: (config.options().index(point.options), point.estimator != "stgs")
    )
    return [len(pack.points) for pack in packs]


def test_packs_hold_points_of_one_estimator_and_one_set_of_options(source: FeatureSource) -> None:
    several = replace(CONFIG, estimators=("stgs", "softmax"), axes={"dropout": (0.1, 0.2)}, pack=3)
    assert sizes(several, source) == [3, 1] * 4
    for pack in grid.plan_packs(several, SETTINGS, source):
        assert len({(point.estimator, point.options) for point in pack.points}) == 1


def test_packs_are_planned_for_devices_and_their_memory(
    source: FeatureSource, cluster_of: Callable[[int, int | None], list[SearchSpace]]
) -> None:
    automatic = replace(CONFIG, pack="auto")
    forecasts = cluster_of(1, None)
    assert sizes(automatic, source) == [4]
    assert sizes(replace(automatic, devices=3), source) == [2, 2], "ceil(4 / 3) points a pack"
    cluster_of(2, None)
    assert sizes(automatic, source) == [2, 2]
    assert sizes(replace(automatic, devices=1), source) == [4], "--devices stands above what the cluster has"
    cluster_of(1, 3)
    assert sizes(automatic, source) == [3, 1]
    cluster_of(8, 3)
    assert sizes(automatic, source) == [1, 1, 1, 1]
    cluster_of(1, 4)
    assert sizes(replace(automatic, axes={"channels": (8, 16)}), source) == [4, 2, 2], "each pack's own space counts"
    before = len(forecasts)
    sizes(replace(automatic, axes={"channels": (8, 16), "learning_rate_max": (1e-3, 3e-3)}), source)
    assert len(forecasts) - before == 2, "what needs the same memory is forecast once"


def test_a_resume_with_more_devices_splits_automatic_packs(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch, cluster_of: Callable[[int, None], Any]
) -> None:
    monkeypatch.setattr(grid, "chosen_device", lambda wanted: "cpu")
    cluster_of(1, None)
    for pack, expected in (("auto", [2, 2]), (4, [4])):
        run, config = str(tmp_path / str(pack)), replace(CONFIG, pack=pack)
        first = grid._begin(run, config, source, resume=False)
        assert [len(pack.points) for pack in first.packs] == [4]
        # The number of devices is no part of what the run was begun with.
        again = grid._begin(run, replace(config, devices=2), source, resume=True)
        trials = again.trials()
        assert [len(pack.points) for _, pack in trials] == expected
        assert [point for _, pack in trials for point in pack.points] == config.points()


def test_a_pack_is_searched_with_its_points_options(source: FeatureSource) -> None:
    config = replace(CONFIG, axes={"channels": (8, 16), "learning_rate_max": (1e-3, 3e-3)})
    packs = grid.plan_packs(config, SETTINGS, source)
    jobs = [grid.pack_job("run", replace(SETTINGS, device="cpu"), source, pack) for pack in packs]
    found = [(job.space.channels, job.config.weights.learning_rate_max) for job in jobs]
    assert found == [(8, 1e-3), (8, 1e-3), (8, 3e-3), (8, 3e-3), (16, 1e-3), (16, 1e-3), (16, 3e-3), (16, 3e-3)]


def test_points_are_added_behind_those_that_a_run_has(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "chosen_device", lambda wanted: "cpu")
    run = str(tmp_path / "run")
    base = replace(FEWER, axes={"dropout": (0.1, 0.2)})
    first = grid._begin(run, base, source, resume=False)
    # Named with a new value first, and one that changes what the settings hold.
    more = replace(base, temperatures=(20.0, 5.0), axes={"dropout": (0.3, 0.1, 0.2)})
    grown = grid._begin(run, more, source, resume=True)
    assert grown.packs[: len(first.packs)] == first.packs
    assert [pack.name for pack in grown.packs] == [f"pack-{number:04d}" for number in range(len(grown.packs))]
    assert {point.id for pack in grown.packs for point in pack.points} == {point.id for point in more.points()}
    config = config_from_dict(read_config(run))
    assert (config.temperatures, config.axes) == ((5.0, 20.0), {"dropout": (0.1, 0.2, 0.3)})
    assert config.settings.search.dropout == 0.1

    for changes, sentence in (
        ({"temperatures": (20.0,)}, r"with temperatures \[5.0, 20.0\], not \[20.0\], which lacks 5.0; name all values"),
        ({"axes": {}}, r"with dropout \[0.1, 0.2, 0.3\], not \[0.3\], which lacks 0.1; name"),
        ({"axes": {**more.axes, "channels": (8, 16)}}, r"with one channels \(8\), so its points are named without it"),
        ({"pack": 1}, "was begun with pack 2, not 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            grid._begin(run, replace(more, **changes), source, resume=True)
    assert read_packs(run) == grown.packs


def test_a_pack_keeps_its_number_when_it_was_split(source: FeatureSource) -> None:
    standing = [Pack("pack-0003.1", tuple(FEWER.points())), Pack("pack-0001", ())]
    (pack,) = packing.plan_packs(CONFIG, SETTINGS, source, standing=standing)
    assert (pack.name, pack.points) == ("pack-0004", tuple(CONFIG.points()[2:]))


def test_two_ways_to_split_a_pack_do_not_mix(tmp_path: Path) -> None:
    run, points = str(tmp_path), CONFIG.points()
    (pack,) = packing.add_packs(run, [], [Pack("pack-0000", tuple(points))])
    assert packing.split_packs(run, [pack], 1, set()) == [pack]
    two, again = (packing.split_packs(run, [pack], 2, set()) for _ in range(2))
    assert two == again, "the same cut has the same names"
    # A driver that began a little later has seen a result, and counts more devices.
    late = packing.split_packs(run, [pack], 3, {points[1].id})
    assert [[points.index(point) for point in part.points] for part in late] == [[0], [2], [3], [1]]
    assert [part.name.rpartition("-")[0] for part in late] == [f"pack-0000.{part}" for part in ("0", "1", "2", "done")]
    assert {part.parent for part in late} == {"pack-0000"}
    assert not {part.name for part in two} & {part.name for part in late}
    assert read_packs(run) == late, "the last index counts"
    for part in (*two, *late):
        assert read_pack(run, part.name) == part


def test_many_requests_are_made_side_by_side_and_answered_in_order() -> None:
    meeting = threading.Barrier(8)

    def work(number: int) -> int:
        if number < 8:
            meeting.wait(timeout=20)
        return 2 * number

    assert packing.side_by_side(work, range(40)) == list(range(0, 80, 2))
