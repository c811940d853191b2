"""The arms that a run's scores are held against: what each searches and trains, and on what budget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.controls import (
    AUDIO,
    CONCAT_LINEAR,
    CONTROL_SEARCHES,
    CONTROLS,
    GRID,
    RANDOM,
    SHUFFLED,
    SOFTMAX,
    UNIFORM,
    VISUAL,
    arm_uri,
    budgets,
    control_grids,
    control_jobs,
    random_jobs,
)
from cluster.features import FeatureSource, open_features
from cluster.network_files import NetworkJob
from cluster.settings import CANDIDATES, GridConfig, SearchSettings, settings_of
from data_prep import storage
from data_prep.storage import InputError
from stgs.candidates import random_genotypes
from stgs.config import SearchConfig
from stgs.genotype import count_parameters, genotype_from_json
from tests.jobs.reports import search
from tests.planted import LENGTH, make_features

GRID_CONFIG = GridConfig(settings=SearchSettings(channels=8, search=SearchConfig(candidates=CANDIDATES)))
SMALL = GridConfig(
    temperatures=(5.0,),
    num_samples=(1,),
    seeds=(3, 4),
    settings=SearchSettings(
        channels=4, device="cpu", search=SearchConfig(epochs=2, batch_size=48, candidates=3, data_seed=5)
    ),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


def test_control_grids_differ_in_nothing_but_the_control(source: FeatureSource) -> None:
    grids = control_grids("run", GRID_CONFIG, CONTROLS, source, shuffles=20)
    searched = (VISUAL, AUDIO, SOFTMAX, UNIFORM, SHUFFLED)
    assert list(grids) == [f"run/parts/{arm}" for arm in searched]
    for sense in (VISUAL, AUDIO):
        control = grids[f"run/parts/{sense}"]
        assert control.settings.sense == sense
        assert replace(control, settings=GRID_CONFIG.settings) == GRID_CONFIG
    for arm in searched:
        own = replace(grids[f"run/parts/{arm}"].settings.search, candidates=0)
        assert own == replace(GRID_CONFIG.settings.search, candidates=0), "the same budget of every search"
    shuffled = grids["run/parts/shuffled"].points()
    assert [point.shuffle_seed for point in shuffled] == list(range(20))
    assert len({point.id for point in shuffled}) == 20


@pytest.mark.parametrize(("arm", "candidates"), [(SOFTMAX, 0), (UNIFORM, CANDIDATES)])
def test_searches_without_temperature_differ_in_the_seed(source: FeatureSource, arm: str, candidates: int) -> None:
    config = replace(GRID_CONFIG, seeds=(7, 1), temperatures=(5.0, 10.0), num_samples=(1, 2))
    (grid,) = control_grids("run", config, (arm,), source, shuffles=2).values()
    points = grid.points()
    assert len(points) == len(config.points()) == 8, "as many searches as the grid has points"
    assert [point.seed for point in points] == [7, 1, 0, 2, 3, 4, 5, 6], "the grid's own seeds first"
    assert {(point.estimator, point.temperature, point.num_samples) for point in points} == {(arm, 5.0, 1)}
    assert grid.settings.search.candidates == candidates
    (few,) = control_grids("run", config, (arm,), source, shuffles=2, searches=3).values()
    assert [point.seed for point in few.points()] == [7, 1, 0]
    large = replace(config, seeds=tuple(range(9)))
    (capped,) = control_grids("run", large, (arm,), source, shuffles=2).values()
    assert len(capped.points()) == CONTROL_SEARCHES < len(large.points())
    with pytest.raises(InputError, match="control_searches is 0"):
        control_grids("run", config, (arm,), source, shuffles=2, searches=0)


@pytest.mark.parametrize("count", [0, -1])
def test_an_arm_of_nothing_is_refused(source: FeatureSource, count: int) -> None:
    with pytest.raises(InputError, match=rf"shuffles is {count}, .* at least 1; leave shuffled out of --controls"):
        control_grids("run", GRID_CONFIG, CONTROLS, source, shuffles=count)
    assert list(control_grids("run", GRID_CONFIG, (VISUAL,), source, shuffles=count)) == ["run/parts/visual"]
    with pytest.raises(InputError, match=rf"random_genotypes is {count}, .* leave random out of --controls"):
        random_jobs("run", GRID_CONFIG, source, count=count)


def test_controls_of_a_grid_that_is_itself_uniform_keep_their_candidates(source: FeatureSource) -> None:
    config = replace(GRID_CONFIG, estimators=("uniform",))
    grids = control_grids("run", config, CONTROLS, source, shuffles=2)
    assert all(grid.settings.search.candidates for name, grid in grids.items() if not name.endswith(SOFTMAX))


def test_controls_of_a_grid_with_more_axes(source: FeatureSource) -> None:
    config = replace(GRID_CONFIG, axes={"sense": ("visual", "both"), "dropout": (0.1, 0.2), "channels": (8, 16)})
    grids = control_grids("run", config, CONTROLS, source, shuffles=3)
    audio = grids["run/parts/audio"]
    assert audio.axes == {"dropout": (0.1, 0.2), "channels": (8, 16)}
    assert {settings_of(audio.settings, options).sense for options in audio.options()} == {"audio"}
    for arm, count in ((SHUFFLED, 3), (SOFTMAX, CONTROL_SEARCHES), (UNIFORM, CONTROL_SEARCHES)):
        grid = grids[f"run/parts/{arm}"]
        assert len(grid.points()) == count
        assert (grid.settings.channels, grid.settings.search.dropout) == (8, 0.1), "the first of each axis"


def test_controls_of_one_sense_have_that_sense_s_choices_of_features(source: FeatureSource) -> None:
    choices = (("visual.*",), ("audio.*",), ("visual.*", "audio.layer2"), ("*.layer?",))
    config = replace(GRID_CONFIG, axes={"feature_names": choices})
    grids = control_grids("run", config, CONTROLS, source, shuffles=3)
    assert grids["run/parts/visual"].axes == {"feature_names": (choices[0], choices[2], choices[3])}
    assert grids["run/parts/audio"].axes == {"feature_names": (choices[1], choices[3])}
    for sense in (VISUAL, AUDIO):
        control = grids[f"run/parts/{sense}"]
        for options in control.options():
            assert len(settings_of(control.settings, options).space(source).features) >= 2
    few = replace(GRID_CONFIG, axes={"feature_names": choices[::2]})
    assert list(control_grids("run", few, (VISUAL,), source, shuffles=3)) == ["run/parts/visual"]
    with pytest.raises(InputError, match=r"hold fewer than 2 of audio, .*; name the other --controls"):
        control_grids("run", few, CONTROLS, source, shuffles=3)


def test_random_genotypes_keep_the_limit_of_the_search(source: FeatureSource) -> None:
    settings = replace(GRID_CONFIG.settings, search=SearchConfig(max_parameters=1200))
    jobs = random_jobs("run", replace(GRID_CONFIG, settings=settings), source, count=6)
    counts = [count_parameters(genotype_from_json(str(job.genotype))) for job in jobs]
    assert len(counts) == 6
    assert max(counts) <= 1200
    free = random_jobs("run", GRID_CONFIG, source, count=6)
    assert max(count_parameters(genotype_from_json(str(job.genotype))) for job in free) > 1200


def test_random_genotypes_differ_and_obey_the_space(source: FeatureSource) -> None:
    space = GRID_CONFIG.settings.space(source)
    found = random_genotypes(space, 8, seed=3)
    assert len(set(found)) == 8
    assert found == random_genotypes(space, 8, seed=3)
    assert found != random_genotypes(space, 8, seed=4)
    parsed: list[Any] = [genotype_from_json(text) for text in found]
    assert all(one.channels == 8 and one.length == LENGTH for one in parsed)


def test_uniform_needs_candidates() -> None:
    settings = replace(GRID_CONFIG.settings, search=SearchConfig())
    with pytest.raises(InputError, match="candidates is 0, but the estimator 'uniform' chooses among them"):
        GridConfig(estimators=("uniform",), settings=settings)
    with pytest.raises(InputError, match="axes names 'candidates'"):
        replace(GRID_CONFIG, axes={"candidates": (1, 2)})


def test_a_run_with_its_searched_controls(tmp_path: Path, source: FeatureSource) -> None:
    run = str(tmp_path / "run")
    rows = {GRID: search(run, SMALL, source)}
    for uri, grid in control_grids(run, SMALL, (SOFTMAX, UNIFORM), source, shuffles=2).items():
        rows[uri.rsplit("/", 1)[-1]] = search(uri, grid, source)

    # The candidates of the grid's points are the genotypes of the random arm.
    jobs = control_jobs(run, SMALL, source, rows, CONTROLS, random_count=5)
    drawn = [json.loads(str(job.genotype)) for job in jobs if f"/parts/{RANDOM}/" in job.uri]
    for row in rows[GRID]:
        scored = json.loads(row["candidates"])
        assert [one["genotype"] for one in scored] == drawn[:3]
        assert all(0.0 <= one["dev_auc"] <= 1.0 for one in scored)
    assert len({row["candidates"] for row in rows[GRID]}) == 2, "the supernets differ"
    assert [row["candidates"] for row in rows[SOFTMAX]] == ["[]", "[]"]

    # Uniform's genotypes are the best of their own candidates, and nothing warns that its architecture stands still.
    for row in rows[UNIFORM]:
        scored = json.loads(row["candidates"])
        best = max(scored, key=lambda one: one["dev_auc"])
        assert (json.loads(row["genotype"]), row["dev_auc"]) == (best["genotype"], best["dev_auc"])
        assert (row["hardly_moved"], row["gradient_lost"], row["entropy_unmoved"]) == (False, "", "")
    first, second = ({json.dumps(one["genotype"]) for one in json.loads(row["candidates"])} for row in rows[UNIFORM])
    assert not first & second
    # Each network says what its search's supernet reached, by which those that are fitted on dev are chosen.
    assert [job.search_dev_auc for job in jobs[:2]] == [row["dev_auc"] for row in rows[GRID]]
    assert {job.search_dev_auc for job in jobs if f"/parts/{RANDOM}/" in job.uri} == {None}

    assert [job.uri.removeprefix(f"{run}/").split("/networks/")[0] for job in jobs] == [
        *(["networks/" + f"{row['id']}.safetensors" for row in rows[GRID]]),
        *["parts/softmax"] * 2,
        *["parts/uniform"] * 2,
        *["parts/random"] * 5,
        *["parts/concat_linear"] * 2,
    ]
    expected = NetworkJob(
        f"{run}/parts/concat_linear/networks/seed-4.safetensors",
        None,
        4,
        kind=CONCAT_LINEAR,
        features=tuple(source.features),
    )
    assert jobs[-1] == expected

    storage.write(f"{arm_uri(run, RANDOM)}/networks/random-0.safetensors", b"")
    told = budgets(run)
    assert list(told) == [GRID, SOFTMAX, UNIFORM, RANDOM]
    for arm in (GRID, SOFTMAX, UNIFORM):
        assert (told[arm]["searches"], told[arm]["epochs"]) == (2, 4), "every arm was given the grid's budget"
        assert told[arm]["device_seconds"] == pytest.approx(sum(row["device_seconds"] for row in rows[arm]))
    assert [told[arm]["candidates"] for arm in told] == [0, 0, 2 * CANDIDATES, 0]
    assert [told[arm]["networks"] for arm in told] == [0, 0, 0, 1]
