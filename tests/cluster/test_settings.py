"""Settings of searches: the space that they give, axes, and the file that they survive."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from cluster.features import FeatureSource, open_features
from cluster.settings import AXES, GridConfig, SearchSettings, config_from_dict, settings_of
from data_prep.storage import InputError
from stgs.config import SearchConfig, WeightSchedule
from stgs.search_space import OPERATIONS
from tests.planted import FEATURES, LENGTH, make_features

SETTINGS = SearchSettings(channels=8, search=SearchConfig(epochs=3, batch_size=32))
CONFIG = GridConfig(temperatures=(5.0, 10.0), num_samples=(5, 10), pack=2, settings=SETTINGS)
AXIS_CONFIG = GridConfig(
    temperatures=(10.0,),
    num_samples=(5,),
    axes={
        "learning_rate_max": (1e-3, 3e-3),
        "operations": (("sum", "concat_fc"), ("attention", "linear_glu")),
        "earlier_cells": (True, False),
        "dropout": (0.1,),
    },
    settings=SETTINGS,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


def test_every_part_of_the_space_can_be_chosen(source: FeatureSource) -> None:
    default = SearchSettings().space(source)
    assert (dict(default.features), default.length, default.operations) == (FEATURES, LENGTH, OPERATIONS)
    assert (default.earlier_cells, default.tail) == (True, "concat")
    chosen = SearchSettings(
        feature_names=("audio.layer2", "visual.layer*"),
        operations=("linear_glu", "sum"),
        earlier_cells=False,
        tail="weighted_sum",
        num_cells=3,
        num_steps=1,
        channels=16,
        length=2,
    ).space(source)
    assert list(chosen.features) == ["visual.layer2", "visual.layer3", "audio.layer2"], "in the box's order"
    assert (chosen.operations, chosen.earlier_cells, chosen.tail) == (("linear_glu", "sum"), False, "weighted_sum")
    assert (chosen.num_cells, chosen.num_steps, chosen.channels, chosen.length) == (3, 1, 16, 2)


def test_a_preset_is_whole_and_its_parts_can_be_changed(source: FeatureSource) -> None:
    released = SearchSettings(preset="released").space(source)
    assert (released.operations, released.earlier_cells, released.tail) == (OPERATIONS[1:], False, "weighted_sum")
    changed = SearchSettings(preset="released", earlier_cells=True, tail="concat").space(source)
    assert (changed.operations, changed.earlier_cells, changed.tail) == (OPERATIONS[1:], True, "concat")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"preset": "paper"}, "preset is 'paper'"),
        (
            {"feature_names": ("visual.*", "audio.layer9")},
            "feature_names has 'audio.layer9', but .* holds visual.layer2,",
        ),
        ({"feature_names": ("visual.layer2",)}, "needs at least 2"),
        ({"feature_names": ("visual.*",), "sense": "audio"}, "sense is 'audio', but of the features"),
        ({"operations": ("sum", "product")}, "operation is 'product'"),
        ({"operations": ("zero",)}, "needs one besides zero"),
        ({"tail": "mean"}, "tail is 'mean'"),
        ({"length": 3}, f"length is 3, but .* have {LENGTH} positions; give a divisor"),
        ({"length": 0}, "length is 0"),
        ({"length": 8}, "length is 8"),
        ({"num_cells": 0}, "num_cells is 0"),
        ({"search": SearchConfig(max_parameters=10)}, "max_parameters is 10, but the smallest found network"),
    ],
)
def test_a_space_that_the_box_does_not_give_is_refused(
    source: FeatureSource, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        SearchSettings(**changes).space(source)


def test_axes_are_the_settings_of_the_space_and_the_search() -> None:
    assert {"preset", "channels", "tail", "dropout", "learning_rate_max", "weight_decay", "data_seed"} < set(AXES)
    assert not {"device", "threads", "checkpoint_epochs", "search", "weights"} & set(AXES)
    assert len(set(AXES)) == len(AXES)


def test_points_are_all_combinations_with_the_options_first() -> None:
    config = replace(CONFIG, axes={"dropout": (0.1, 0.2), "channels": (8, 16)})
    # The order is that of the settings, not that of the axes as they were given.
    assert config.options() == [(("channels", c), ("dropout", d)) for c in (8, 16) for d in (0.1, 0.2)]
    points = config.points()
    assert [point.options for point in points[::4]] == config.options()
    assert [(p.temperature, p.num_samples) for p in points[:4]] == [(5, 5), (5, 10), (10, 5), (10, 10)]
    assert points[5].id == "temperature-5_samples-10_stgs_seed-0_channels-8_dropout-0.2"
    assert len({point.id for point in points}) == 16


def test_options_reach_the_settings_wherever_they_lie() -> None:
    options = (("channels", 16), ("dropout", 0.4), ("learning_rate_max", 0.01))
    search = SearchConfig(epochs=3, batch_size=32, dropout=0.4, weights=WeightSchedule(learning_rate_max=0.01))
    assert settings_of(SETTINGS, options) == replace(SETTINGS, channels=16, search=search)
    assert settings_of(SETTINGS, ()) == SETTINGS


def test_settings_hold_the_first_value_of_each_axis() -> None:
    assert set(AXIS_CONFIG.axes) == {"learning_rate_max", "operations", "earlier_cells"}
    assert AXIS_CONFIG.settings.operations == ("sum", "concat_fc")
    assert AXIS_CONFIG.settings.search.dropout == 0.1, "an axis of one value is a setting"


@pytest.mark.parametrize("config", [CONFIG, AXIS_CONFIG, GridConfig(devices=3)], ids=("plain", "axes", "devices"))
def test_config_survives_its_file(config: GridConfig) -> None:
    again = config_from_dict(json.loads(json.dumps(asdict(config), sort_keys=True)))
    assert again == config
    assert again.points() == config.points()


def test_settings_that_a_file_does_not_name_have_their_defaults() -> None:
    content = asdict(replace(CONFIG, pack="auto"))
    for name in ("axes", "devices"):
        del content[name]
    for name in ("feature_names", "operations", "earlier_cells", "tail", "length"):
        del content["settings"][name]
    del content["settings"]["search"]["max_parameters"]
    assert config_from_dict({**content, "pack": 0}) == replace(CONFIG, pack="auto")


@pytest.mark.parametrize("place", [("settings",), ("settings", "search"), ("settings", "search", "weights")])
def test_settings_that_only_a_newer_program_knows_are_refused(place: tuple[str, ...]) -> None:
    content = json.loads(json.dumps(asdict(CONFIG)))
    inner = content
    for name in place:
        inner = inner[name]
    inner["novelty"] = 1
    with pytest.raises(InputError, match="the run's settings have novelty, which this program does not know"):
        config_from_dict(content)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperatures": ()}, "temperatures is"),
        ({"num_samples": (5, 5)}, "each once"),
        ({"num_samples": (0,)}, "num_samples is 0"),
        ({"temperatures": (0.0,)}, "temperature is 0.0"),
        ({"temperatures": (1.0, 1.0000001)}, "two points would be called temperature-1_samples-5"),
        ({"estimators": ("reinforce",)}, "estimators names 'reinforce'"),
        ({"seeds": (-1,)}, "seeds has -1, but a seed must lie in"),
        ({"seeds": (2**63,)}, "seeds has 9223372036854775808"),
        ({"pack": -1}, "pack is -1"),
        ({"pack": 0}, "pack is 0, but it must be at least 1"),
        ({"devices": 0}, "devices is 0"),
        ({"axes": {"threads": (1, 2)}}, "axes names 'threads'; choose from preset, "),
        ({"axes": {"drop": (1, 2)}}, "axes names 'drop'"),
        ({"axes": {"dropout": ()}}, "dropout is"),
        ({"axes": {"dropout": (0.1, 0.1)}}, "each once"),
        ({"axes": {"tail": (None, "concat")}}, "name each value of an axis"),
        ({"axes": {"dropout": (0.1, 1.5)}}, "dropout is 1.5"),
        ({"axes": {"learning_rate_min": (1e-6, 1.0)}}, "learning_rate_min is 1.0"),
        ({"axes": {"sense": ("both", "smell")}}, "sense is 'smell'"),
        ({"axes": {"feature_names": (("visual.*",), ("visual.",))}}, "two points would be called"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GridConfig(**changes)


def test_pooled_splits_have_the_maxima_of_neighbours(source: FeatureSource) -> None:
    split = source.load("dev")
    names = ["audio.layer2", "audio.pooled"]
    half = split.only(names, LENGTH // 2)
    whole = split.columns["audio.layer2"]
    assert list(half.columns) == names
    for position in range(LENGTH // 2):
        pair = whole[:, :, 2 * position : 2 * position + 2]
        assert (half.columns["audio.layer2"][:, :, position] == pair.max(axis=2)).all()
    assert half.columns["audio.pooled"] is split.columns["audio.pooled"], "a vector has no positions"
    assert split.only(names, LENGTH).columns["audio.layer2"] is whole
    with pytest.raises(InputError, match="which 3 equal windows cannot hold"):
        split.only(names, 3)


def test_points_say_their_options_in_words() -> None:
    assert AXIS_CONFIG.points()[-1].label == (
        "operations=attention+linear_glu, earlier_cells=false, learning_rate_max=0.003"
    )
