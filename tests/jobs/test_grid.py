"""The options of `stgs grid`, and what it prints."""

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cluster.grid import GridResult
from cluster.stopping import Stop
from jobs import cli, grid, search
from jobs.cli import Outcome, run_command
from jobs.grid import GridJobConfig, outcome
from jobs.options import add_arguments, build, options_of
from tests.planted import make_features

PLACES = ["FEATURES", "--manifest", "M", "--out", "R"]


def configured(tmp_path: Path, *words: str, file: str = "") -> GridJobConfig:
    """The configuration that `stgs grid` builds of these words and a --config file of this content."""
    (tmp_path / "grid.yaml").write_text(file)
    built: list[GridJobConfig] = []

    def run(config: GridJobConfig) -> Outcome:
        built.append(config)
        return Outcome({}, "")

    assert run_command("grid", run, [*PLACES, "--config", str(tmp_path / "grid.yaml"), *words]) == cli.COMPLETE
    return built[0]


def test_every_search_option_may_be_an_axis(tmp_path: Path) -> None:
    words = "--dropout 0.1 0.2 --architecture-learning-rate 1e-3 3e-3 --channels 16 --earlier-cells --no-earlier-cells"
    grid = configured(tmp_path, *words.split()).grid
    file = """
        dropout: [0.1, 0.2]
        architecture_learning_rate: [1e-3, 3e-3]
        channels: 16
        earlier_cells: [true, false]
    """
    assert configured(tmp_path, file=file).grid == grid
    assert grid.axes == {
        "earlier_cells": (True, False),
        "architecture_learning_rate": (1e-3, 3e-3),
        "dropout": (0.1, 0.2),
    }
    assert grid.settings.channels == 16
    assert len(grid.points()) == 16 * 8
    # A flag stands above the file, axis or not.
    assert configured(tmp_path, "--dropout", "0.4", file=file).grid.settings.search.dropout == 0.4
    swept = {item.name for item in options_of(GridJobConfig) if item.axes is not None}
    assert {"preset", "tail", "num_cells", "operations", "feature_names", "learning_rate_max", "batch_size"} < swept
    assert swept.isdisjoint({"device", "threads", "checkpoint_epochs", "pack", "seeds", "out"})


def test_lists_are_repeated_for_an_axis() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, options_of(GridJobConfig))
    words = "--operations sum attention --operations linear_glu --feature-names visual.* audio.layer2"
    values = vars(parser.parse_args([*PLACES, *words.split()]))
    grid = build(GridJobConfig, values).grid
    assert grid.axes == {"operations": (("sum", "attention"), ("linear_glu",))}
    assert grid.settings.feature_names == ("visual.*", "audio.layer2")


@pytest.mark.parametrize(("words", "pack"), [((), "auto"), (("--pack", "auto"), "auto"), (("--pack", "4"), 4)])
def test_pack_is_a_number_or_auto(tmp_path: Path, words: tuple[str, ...], pack: int | str) -> None:
    assert configured(tmp_path, *words, "--devices", "3").grid.pack == pack


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--pack", "many"], "--pack is 'many', but it must be auto or a whole number."),
        (["--pack", "0"], "pack is 0, but it must be at least 1."),
        (["--dropout", "0.1", "2"], "dropout is 2.0, but it must lie in [0, 1)."),
        (["--threads", "1", "2"], "unrecognized arguments: 2"),
    ],
)
def test_wrong_values_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: GridJobConfig) -> Outcome:
        raise AssertionError("the values were taken")

    assert run_command("grid", run, [*PLACES, *words]) == cli.WRONG_USE
    assert sentence in capsys.readouterr().err


def row(number: int, options: str, auc: float) -> dict[str, Any]:
    point = {"temperature": 10.0, "num_samples": 5 * (number % 2 + 1), "estimator": "stgs", "seed": 0}
    metrics = {"dev_auc": auc, "parameters": 1000 * (number + 1), "hardly_moved": False}
    return {"id": f"point-{number}", **point, "shuffle_seed": None, "options": options, **metrics}


def test_every_set_of_options_has_its_tables() -> None:
    rows = [row(number, f"dropout={0.1 * (number // 2 + 1):g}", 0.5 + number / 8) for number in range(4)]
    text = outcome("run", GridResult("run", rows, {}), 1.0).text
    for value in (0.1, 0.2):
        assert f"supernet's AUC on dev, temperature by num_samples (dropout={value}):" in text
    assert "0.500 0.625" in " ".join(text.split())
    assert "best on dev: point-3, AUC 0.875, 4,000 parameters" in text


def test_a_grid_that_was_stopped_says_why_and_prints_what_it_has() -> None:
    stop = Stop("run", "the deadline 2026-11-21 18:00 UTC has passed")
    ended = outcome("run", GridResult("run", [row(0, "", 0.75)], {"point-1": "no luck"}, 2, stop), 1.0)
    sentence = f"stopped early: {stop.reason}; 1 of 4 points have a result, go on with --resume."
    assert ended.exit_code == cli.STOPPED
    assert ended.text.startswith(sentence)
    assert "best on dev: point-0, AUC 0.750" in ended.text
    assert "failed: point-1: no luck" in ended.text
    assert (ended.payload["stopped"], ended.payload["unfinished"]) == (stop.reason, 2)
    none = outcome("run", GridResult("run", [], {}, 4, stop), 1.0)
    assert none.exit_code == cli.STOPPED
    assert none.text.startswith("stopped early: the deadline")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--workers 4:2", "workers is '4:2', but it must be a number from 1 on, or MIN:MAX such as 1:4."),
        ("--workers 1:2 --resize-seconds 0.5", "resize_seconds is 0.5, but it must be at least 1."),
        ("--deadline tomorrow", "deadline is 'tomorrow', but it must be a duration such as 90m, 8h or 2d"),
        ("--device-hours 0", "device_hours is 0, but a budget must be above 0."),
        ("--checkpoint-minutes 0", "checkpoint_minutes is 0, but it must be above 0."),
    ],
)
def test_wrong_limits_are_one_sentence(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main([*PLACES, *words.split()]) == cli.WRONG_USE
    assert sentence in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.parametrize(
    ("job", "axes"), [(search, "--workers 1:9 --num-samples 3"), (grid, "--num-samples 3 5 --pack 1")]
)
def test_a_dry_run_writes_nothing(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], job: ModuleType, axes: str
) -> None:
    features, manifest = make_features(tmp_path / "data")
    out = tmp_path / "run"
    words = ["--manifest", manifest, "--out", str(out), "--channels", "8", "--device", "cpu", "--dry-run", "--json"]
    assert job.main([features, *words, *axes.split()]) == cli.COMPLETE
    expected = json.loads(capsys.readouterr().out)
    assert len(expected["packs"]) == expected["points"]
    assert expected["workers"] == 1, "the fewest: each then has the largest share"
    assert all(pack["device_bytes"] > 0 and pack["epoch_seconds"] > 0 for pack in expected["packs"])
    assert not out.exists()
