"""What the parts of a protocol say together."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from cluster import protocols
from cluster.features import FeatureSource, open_features
from cluster.protocol_splits import ProtocolConfig, protocol_settings
from cluster.runs import open_run
from data_prep import storage
from data_prep.storage import InputError
from tests.planted import make_features, two_data_sets

CROSS = ProtocolConfig(protocol="cross", split_seed=1)
Aucs = dict[str, dict[str, float | None]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted"), change=two_data_sets))


def estimate(value: float | None, sentence: str | None = None) -> dict[str, Any]:
    bounds = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {"value": value, "low": bounds[0], "high": bounds[1], "sentence": sentence}


def evaluated(folder: Path, config: ProtocolConfig, source: FeatureSource, aucs: Aucs) -> str:
    """A run of a protocol with metrics.json of what was evaluated: part -> data set -> AUC of the found network.

    Accuracies are 0.05 below.
    """
    run = str(folder / "run")
    settings = protocol_settings(config, protocols.parts_of(config, source.manifest))
    open_run(run, settings, resume=False, hints={})
    for part, datasets in aucs.items():
        for dataset, auc in datasets.items():
            accuracy = None if auc is None else auc - 0.05
            found = {
                "auc": estimate(auc, None if auc is not None else "one class alone"),
                "accuracy": estimate(accuracy),
            }
            content = {"version": 2, "found": "grid/best", "clips": 40, "subjects": 10}
            content |= {"networks": {"grid/best": found, "grid/other": {"auc": estimate(0.99)}}}
            storage.write(f"{run}/parts/{part}/evaluation/{dataset}/metrics.json", json.dumps(content).encode())
    return run


def test_folds_are_told_with_mean_and_deviation(tmp_path: Path, source: FeatureSource) -> None:
    aucs: list[float | None] = [0.8, 0.9, 0.7, None]
    config = ProtocolConfig(protocol="folds")
    run = evaluated(tmp_path, config, source, {f"fold-{fold}": {"east": auc} for fold, auc in enumerate(aucs)})
    found = protocols.summary(run)
    told = found["over_parts"]["east"]["auc"]
    # By hand: mean 0.8, squared deviations 0, 0.01 and 0.01 over n - 1 = 2.
    assert (told["mean"], told["deviation"]) == (pytest.approx(0.8), pytest.approx(0.1))
    assert (told["count"], told["of"], told["sentence"]) == (3, 5, "2 of 5 parts have no value")
    assert found["over_parts"]["east"]["accuracy"]["mean"] == pytest.approx(statistics.fmean([0.75, 0.85, 0.65]))
    assert found["parts"]["fold-1"]["datasets"]["east"]["network"] == "grid/best"
    assert found["parts"]["fold-4"]["sentence"] == "it has not been evaluated; run 'stgs evaluate'"
    assert (found["matrix"], found["protocol"]) == (None, "folds")
    lines = protocols.summary_text(found)
    assert lines[0] == "protocol folds: the found network of each of 5 parts, on test"
    assert "  fold-0 on east: AUC 0.800 [0.700, 0.900], accuracy 0.750 [0.650, 0.850]" in lines
    assert "  fold-3 on east: AUC unknown (one class alone), accuracy unknown" in lines
    mean = "  all parts on east: AUC 0.800 on average, standard deviation 0.100 (2 of 5 parts have no value), accuracy"
    assert any(line.startswith(mean) for line in lines)
    json.dumps(found, allow_nan=False)

    rows = protocols.summary_rows(found)
    assert [row["part"] for row in rows] == ["fold-0", "fold-1", "fold-2", "fold-3", "mean", "deviation"]
    written = io.StringIO()
    table = csv.DictWriter(written, rows[0])
    table.writerows(rows)  # every row has the columns of the first
    assert [row["auc"] for row in rows[4:]] == pytest.approx([0.8, 0.1])


def test_one_method_has_no_deviation_and_a_damaged_file_is_named(tmp_path: Path, source: FeatureSource) -> None:
    def methods(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["method"] = f"method{row['category']}"

    clips = open_features(*make_features(tmp_path / "clips", change=methods))
    run = evaluated(tmp_path, ProtocolConfig(protocol="method"), clips, {"method-methodB": {"planted": 0.75}})
    told = protocols.summary(run)["over_parts"]["planted"]["auc"]
    assert (told["mean"], told["deviation"], told["count"], told["of"]) == (0.75, None, 1, 3)
    assert told["sentence"] == "one part alone has no deviation, and 2 of 3 parts have no value"
    metrics = f"{run}/parts/method-methodB/evaluation/planted/metrics.json"
    storage.write(metrics, b'{"version": 1}')
    old = protocols.summary(run)
    assert "is of another version of this program" in old["parts"]["method-methodB"]["sentence"]
    assert (old["over_parts"], protocols.summary_rows(old)) == ({}, [])
    storage.write(metrics, b"{")
    with pytest.raises(InputError, match=r"metrics\.json is damaged .*; put it back"):
        protocols.summary(run)


def test_cross_gives_the_matrix_of_train_and_test_data_sets(tmp_path: Path, source: FeatureSource) -> None:
    aucs = {"train-east": {"east": 0.9, "west": 0.6, "mixed": 0.7}, "train-west": {"east": 0.5}}
    found = protocols.summary(evaluated(tmp_path, CROSS, source, {name: dict(part) for name, part in aucs.items()}))
    assert found["over_parts"] is None
    matrix = found["matrix"]
    assert matrix["datasets"] == ["east", "west"]
    cells = {
        train: {test: cell["auc"]["value"] for test, cell in tested.items()}
        for train, tested in matrix["cells"].items()
    }
    assert cells == {"east": {"east": 0.9, "west": 0.6}, "west": {"east": 0.5, "west": None}}
    assert matrix["cells"]["west"]["west"]["auc"]["sentence"] == "it was not tested on west"
    assert [line.split() for line in protocols.summary_text(found)[-3:]] == [
        ["east", "west"],
        ["east", "0.900", "/", "0.850", "0.600", "/", "0.550"],
        ["west", "0.500", "/", "0.450", "-", "/", "-"],
    ]


def test_every_category_and_method_is_told_of_parts_means_and_matrix(tmp_path: Path, source: FeatureSource) -> None:
    def planted(folder: str, config: ProtocolConfig, told: dict[str, dict[str, float]]) -> dict[str, Any]:
        datasets: Aucs = {part: {"east": 0.9} for part in told}
        run = evaluated(tmp_path / folder, config, source, datasets)
        for part, aucs in told.items():
            uri = f"{run}/parts/{part}/evaluation/east/metrics.json"
            content = json.loads(storage.read(uri))
            content["networks"]["grid/best"] |= {
                "auc_by_category": {name: estimate(auc) for name, auc in aucs.items()},
                "auc_by_method": {f"method-{name}": estimate(auc - 0.02) for name, auc in aucs.items()},
            }
            storage.write(uri, json.dumps(content).encode())
        return protocols.summary(run)

    folds = planted("folds", ProtocolConfig(protocol="folds"), {"fold-0": {"B": 0.8, "D": 0.6}, "fold-1": {"B": 0.6}})
    assert folds["parts"]["fold-0"]["datasets"]["east"]["auc_D"] == estimate(0.6)
    over = folds["over_parts"]["east"]
    assert (over["auc_B"]["mean"], over["auc_B"]["count"], over["auc_B"]["of"]) == (pytest.approx(0.7), 2, 5)
    assert (over["auc_D"]["mean"], over["auc_D"]["count"], over["auc_D"]["of"]) == (0.6, 1, 5)
    assert "auc_C" not in over, "no part tests it"
    methods = folds["methods_over_parts"]["east"]
    assert {name: (told["mean"], told["of"]) for name, told in methods.items()} == {
        "method-B": (pytest.approx(0.68), 2), "method-D": (pytest.approx(0.58), 1)
    }  # fmt: skip
    lines = protocols.summary_text(folds)
    assert lines[1].endswith("; AUC against A: B 0.800, D 0.600")
    assert lines[-1].endswith("; AUC against A: B 0.700, D 0.600")
    rows = {row["part"]: row for row in protocols.summary_rows(folds)}
    assert (rows["fold-0"]["auc_D"], rows["fold-1"]["auc_D"]) == (0.6, None)
    assert rows["mean"]["auc_B"] == pytest.approx(0.7)

    cross = planted("cross", CROSS, {"train-east": {"B": 0.8}, "train-west": {"D": 0.7}})
    cells = cross["matrix"]["cells"]
    assert (cells["east"]["east"]["auc_B"]["value"], cells["west"]["east"]["auc_D"]["value"]) == (0.8, 0.7)
    assert cells["east"]["east"]["auc_D"]["sentence"] == "the test clips of east have none of category D"
    assert cells["east"]["west"]["auc_D"]["sentence"] == "it was not tested on west"
    assert cross["methods_over_parts"] is None
