"""What the report says of the searches themselves: curves, probabilities, warnings, and what it keeps apart."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.features import FeatureSource, open_features
from cluster.settings import GridConfig
from data_prep import boxes, storage
from jobs.report_facts import read_run
from tests.jobs.reports import GRID_CONFIG, SETTINGS, Page, read_page, search
from tests.planted import FEATURES, make_features

CURVES = "packs/pack-0000/attempts/0/curves.parquet"
PARAMETERS = ("alpha", "beta", "gamma")
# Lines of probabilities over the epochs: 2 cells, the second of which may read the first, of 2 steps of 5 operations.
DEVELOPMENT = len(FEATURES) + (len(FEATURES) + 1) + 2 * (2 + 3) + 4 * 5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> Path:
    """A grid of 2 x 2 points that is searched, and no more."""
    run = tmp_path_factory.mktemp("runs") / "grid"
    search(str(run), GRID_CONFIG, source)
    return run


@pytest.fixture(scope="module")
def axes(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> Path:
    """Two estimators by two values of an option, two numbers of samples, two seeds."""
    run = tmp_path_factory.mktemp("runs") / "axes"
    config = GridConfig(
        temperatures=(10.0,),
        num_samples=(1, 2),
        estimators=("stgs", "softmax"),
        seeds=(0, 1),
        axes={"dropout": (0.1, 0.3)},
        settings=SETTINGS,
    )
    search(str(run), config, source)
    return run


def rewrite(path: Path, **changes: Any) -> list[dict[str, Any]]:
    """Change columns of a table; a function is called with each row, None takes the column away."""
    rows = boxes.read_table(str(path)).to_pylist()
    for row in rows:
        for name, value in changes.items():
            if value is None:
                row.pop(name)
            else:
                row[name] = value(row)
    storage.write(str(path), boxes.table_bytes(pa.Table.from_pylist(rows)))
    return rows


def test_curves_are_those_of_their_points(searched: Path) -> None:
    page = read_page(searched).section("curves")
    # Each entropy: points and their mean in one picture, points again by temperature; 7 scores and losses; each
    # gradient with its weight decay.
    assert page.count("path", "series") == 3 * (4 + 1) + 3 * 4 + 7 * 4 + 3 * 2 * 4
    last = boxes.read_table(str(searched / CURVES)).to_pylist()[-4:]
    for member, (row, point) in enumerate(zip(last, GRID_CONFIG.points(), strict=True)):
        assert (row["epoch"], row["member"]) == (2, member)
        plain = [f"{score}_{what}" for what in ("accuracy", "loss") for score in ("dev", "train", "architecture")]
        for name in ("normalised_entropy_alpha", "dev_auc", *plain):
            assert f"{point.id}: {row[name]:.4f} at epoch 2" in page.text
        for name in PARAMETERS:
            assert f" {point.id}: {row[f'gradient_norm_{name}']:.3g} at epoch 2" in f" {page.text}"
            assert f"weight decay of {point.id}: {row[f'decay_norm_{name}']:.3g} at epoch 2" in page.text


def test_one_picture_of_each_entropy_holds_all_estimators(axes: Path) -> None:
    facts = read_run(str(axes))
    charts = read_page(axes).section("curves").charts[:3]
    for name, chart in zip(PARAMETERS, charts, strict=True):
        assert chart.startswith(f"E({name})")
        for row in facts.main.rows:
            assert f"{row['id']}: " in chart
        for estimator in ("stgs", "softmax"):
            own = [row for row in facts.main.rows if row["estimator"] == estimator and "0.3" in row["options"]]
            ends = [facts.curves[row["id"]][-1][f"normalised_entropy_{name}"] for row in own]
            assert f"{estimator}, mean of 4 points: {np.mean(ends):.4f} at epoch 2" in chart


def test_estimators_and_options_never_share_a_cell_or_a_panel(axes: Path) -> None:
    page, rows = read_page(axes), read_run(str(axes)).main.rows
    groups = {(row["estimator"], row["options"]) for row in rows}
    assert len(groups) == 4
    hints = [given["title"] or "" for name, given in page.section("grid").tags if name == "td" and "title" in given]
    maps = 2  # supernet's AUC and parameters
    assert len(hints) == maps * len(groups) * 2
    for hint in hints:
        named = [row for row in rows if f"{row['id']}:" in hint]
        assert {row["seed"] for row in named} == {0, 1}
        assert len({(row["estimator"], row["options"], row["num_samples"]) for row in named}) == 1
    for chart in page.section("curves").charts[3:]:
        assert len({(row["estimator"], row["options"]) for row in rows if f"{row['id']}: " in chart}) == 1
    for options in ("dropout=0.1", "dropout=0.3"):
        assert f"With softmax, {options}" in page.text


def test_probabilities_are_those_of_the_best_epoch(searched: Path) -> None:
    facts = read_run(str(searched))
    page = read_page(searched).section("probabilities")
    best = max(facts.main.rows, key=lambda row: row["dev_auc"])
    assert f"Best on dev: temperature {best['temperature']:g}, M {best['num_samples']}, epoch" in page.text
    cells = [given for name, given in page.tags if name == "td" and "title" in given]
    names = [name for name in facts.curves[best["id"]][0] if name.split("/")[0] in PARAMETERS]
    assert len(cells) == len(names) * len(facts.main.rows)
    (line,) = (line for line in facts.curves[best["id"]] if line["epoch"] == best["best_epoch"])
    assert len(names) == DEVELOPMENT
    shown = {given["title"]: "found" in (given.get("class") or "") for given in cells[: len(names)]}
    for name in names:
        place, _, candidate = name.partition("/")[2].rpartition("/")
        assert f"{place}, {candidate}: {line[name]:.5f}" in shown
    # Two inputs a cell; two states and an operation a step.
    assert sum(shown.values()) == 2 * 2 + 4 * 3
    for cell in json.loads(best["genotype"])["cells"][:1]:
        for name in cell["inputs"]:
            assert shown[f"cell1, {name}: {line[f'alpha/cell1/{name}']:.5f}"]
    assert page.count("path", "series") == DEVELOPMENT
    assert page.count("path", "thick") == 2 * 2 + 4 * 3
    end = facts.curves[best["id"]][-1]["gamma/cell2/step1/sum"]
    assert f"sum: {end:.4f} at epoch 2" in page.text


def test_a_run_of_an_earlier_version(searched: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree(searched, run)
    new = ("accuracy", "decay_norm", "temperature", "/")
    columns = boxes.read_table(str(run / CURVES)).column_names
    rewrite(run / CURVES, **{name: None for name in columns if any(part in name for part in new)})
    rewrite(run / "grid.parquet", options=None, gradient_lost=None, entropy_unmoved=None)
    page = read_page(run)
    # Entropies, AUC, three losses, gradients.
    assert page.count("path", "series") == 3 * (4 + 1) + (3 + 1 + 3 + 3) * 4
    assert "No file of this run says them." in page.section("probabilities").text
    assert "Accuracy" not in "".join(page.section("curves").charts)


def test_searches_that_did_not_move_are_named(searched: Path, tmp_path: Path) -> None:
    run = tmp_path / "lost"
    shutil.copytree(searched, run)
    rewrite(run / "grid.parquet", hardly_moved=lambda row: False)
    assert "Warnings" not in read_page(run).text
    rewrite(
        run / "grid.parquet",
        gradient_lost=lambda row: "alpha gamma" if row["temperature"] == 5.0 else "",
        entropy_unmoved=lambda row: "beta",
        hardly_moved=lambda row: (row["temperature"], row["num_samples"]) == (10.0, 3),
    )
    page = read_page(run)
    text = page.section("curves").text
    assert re.search(r"The gradient is lost .*: of alpha and gamma at temperature 5, M 1, 3 \.", text)
    assert "The entropy never moved : of beta at all 4 points ." in text
    assert re.search(r"has hardly moved \(.*\) : temperature 10, M 3 \.", text)
    assert "The architecture was not really searched at 4 of 4 points" in page.section("summary").text


def test_names_of_features_are_text(searched: Path) -> None:
    evil = 'visual.<script>alert(1)</script>"><img src=x onerror=alert(1)> & more'
    facts = read_run(str(searched))
    curves = {
        point: [{**line, f"alpha/cell1/{evil}": 0.5, f"gamma/cell1/step1/{evil}": 0.5} for line in lines]
        for point, lines in facts.curves.items()
    }
    page: Page = read_page(replace(facts, curves=curves))
    assert "img" not in {name for name, _ in page.tags}
    assert page.count_tags("script") == 1
    assert page.text.count(evil) > 3


def test_warm_up_epochs_and_failed_numbers_leave_gaps(searched: Path) -> None:
    facts = read_run(str(searched))
    gaps = {
        point: [{**lines[0], "dev_auc": None, "gradient_norm_alpha": float("nan")}, *lines[1:]]
        for point, lines in facts.curves.items()
    }
    assert len(read_page(replace(facts, curves=gaps)).charts) == len(read_page(facts).charts)
