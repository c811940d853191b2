"""Evaluation of trained networks: what metrics.json says, of which clips, and what it says where it cannot measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sklearn.metrics
import torch

from cluster.controls import AUDIO, CONCAT_LINEAR, GRID, RANDOM, VISUAL, control_jobs
from cluster.evaluation import evaluate_network, evaluate_run, network_uris, score_clips
from cluster.evaluation_cost import run_cost, training_seconds
from cluster.evaluation_latency import write_latency
from cluster.features import FeatureSource, Split, open_features
from cluster.found_loop import read_network
from cluster.gathering import read_grid
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.metrics import reliability
from tests.cluster.evaluated_runs import POINTS, make_run, train
from tests.jobs.reports import GRID_CONFIG, search
from tests.planted import make_features

MEASURED = (
    *("auc", "average_precision", "equal_error_rate", "accuracy", "accuracy_dev_threshold", "balanced_accuracy"),
    "calibration_error",
)
SOME = {"train": 12, "dev": 8, "test": 8}
FEW = {"train": 8, "dev": 6, "test": 6}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted"), change=_name_methods))


def _name_methods(rows: Rows) -> None:
    for row in rows:
        row["method"] = "real" if row["category"] == "A" else "swap" if row["category"] == "C" else "voice"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> str:
    return make_run(tmp_path_factory.mktemp("run"), source)


@pytest.fixture(scope="module")
def result(run: str, source: FeatureSource) -> dict[str, Any]:
    return evaluate_run(run, source, resamples=200)["planted"]


def test_every_network_is_measured_as_scikit_learn_does(run: str, result: dict[str, Any]) -> None:
    assert result["version"] == 2
    table = boxes.read_table(f"{run}/evaluation/planted/scores.parquet")
    labels, categories = np.array(table["label"]), np.array(table["category"].to_pylist())
    assert set(result["networks"]) == set(network_uris(run))
    for name, network in result["networks"].items():
        scores, threshold = np.array(table[name]), network["threshold"]
        for metric in MEASURED:
            assert network[metric]["low"] <= network[metric]["high"], metric
            assert network[metric]["sentence"] is None
        values = {metric: network[metric]["value"] for metric in MEASURED}
        theirs = {
            "auc": sklearn.metrics.roc_auc_score(labels, scores),
            "average_precision": sklearn.metrics.average_precision_score(labels, scores),
            "accuracy": sklearn.metrics.accuracy_score(labels, scores >= 0.5),
            "accuracy_dev_threshold": sklearn.metrics.accuracy_score(labels, scores >= threshold),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, scores >= threshold),
        }
        assert {metric: values[metric] for metric in theirs} == pytest.approx(theirs, abs=1e-12)
        for category, estimate in network["auc_by_category"].items():
            pair = np.isin(categories, ["A", category])
            expected = sklearn.metrics.roc_auc_score(labels[pair], scores[pair])
            assert estimate["value"] == pytest.approx(expected, abs=1e-12)
            curve = network["roc_by_category"][category]
            assert sklearn.metrics.auc(*curve) == pytest.approx(expected, abs=1e-12)
        assert sklearn.metrics.auc(*network["roc"]) == pytest.approx(theirs["auc"], abs=1e-12)
        swapped = np.isin(categories, ["A", "C"])
        assert set(network["auc_by_method"]) == {"swap", "voice"}
        assert network["auc_by_method"]["swap"]["value"] == pytest.approx(
            sklearn.metrics.roc_auc_score(labels[swapped], scores[swapped]), abs=1e-12
        )
        shares = [(point["count"], point["fake_share"]) for point in network["reliability"]]
        assert shares == [(point.count, point.fake_share) for point in reliability(scores, labels)]
        for point in network["reliability"]:
            if point["fake_share_low"] is not None:
                assert point["fake_share_low"] <= point["fake_share"] <= point["fake_share_high"]


def test_the_found_network_is_held_against_every_arm(result: dict[str, Any]) -> None:
    networks, found = result["networks"], result["found"]
    assert set(result["comparisons"]) == {VISUAL, AUDIO, RANDOM, CONCAT_LINEAR}
    for arm, one in result["comparisons"].items():
        assert one["network"].startswith(f"{arm}/")
        difference = one["difference"]
        expected = networks[found]["auc"]["value"] - networks[one["network"]]["auc"]["value"]
        assert difference["value"] == pytest.approx(expected, abs=1e-12)
        assert difference["low"] <= difference["value"] <= difference["high"]
        assert 1 / 201 <= difference["p_value"] <= 1
        # The interval and the test look at the same evidence.
        if difference["low"] > 0.02:
            assert difference["p_value"] < 0.2
    single = result["comparisons"][result["best_single_sense"].split("/")[0]]
    assert result["difference"] == single["difference"]
    assert networks[f"{CONCAT_LINEAR}/seed-0"]["kind"] == CONCAT_LINEAR
    assert result["shuffled"]["count"] == 2


def test_wrong_clips_are_named_farthest_first(run: str, result: dict[str, Any], source: FeatureSource) -> None:
    wrong, threshold = result["wrong"], result["networks"][result["found"]]["threshold"]
    assert 0 < len(wrong) <= 12
    for clip in wrong:
        assert (clip["score"] >= threshold) != (clip["label"] == 1)
        row = next(row for row in source.manifest.rows if row["clip_id"] == clip["clip_id"])
        assert {name: row[name] for name in clip if name != "score"} == {n: clip[n] for n in clip if n != "score"}
    distances = [abs(clip["score"] - threshold) for clip in wrong]
    assert distances == sorted(distances, reverse=True)
    assert max(sum(clip["label"] == label for clip in wrong) for label in (0, 1)) <= 6
    table = boxes.read_table(f"{run}/evaluation/planted/scores.parquet")
    scores, labels = np.array(table[result["found"]]), np.array(table["label"])
    for label in (0, 1):
        right_side = (scores >= threshold) == (label == 1)
        count = int((~right_side & (labels == label)).sum())
        assert sum(clip["label"] == label for clip in wrong) == min(count, 6)


def test_metrics_of_version_1_are_made_anew_without_test(
    run: str, source: FeatureSource, result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = copy / "evaluation/planted"
    newer = ("version", "scores_digest", "comparisons", "wrong")
    old = {key: value for key, value in result.items() if key not in newer}
    (folder / "metrics.json").write_text(json.dumps(old))
    scores = boxes.read_table(str(folder / "scores.parquet")).drop_columns(["method"])
    storage.write(str(folder / "scores.parquet"), boxes.table_bytes(scores))

    def refuse(self: FeatureSource, split: str) -> Split:
        raise AssertionError(f"{split} was read")

    monkeypatch.setattr(FeatureSource, "load", refuse)
    anew = result | {"scores_digest": None}
    assert evaluate_run(str(copy), source, resamples=200)["planted"] == anew
    assert json.loads((folder / "metrics.json").read_text()) == anew
    (folder / "metrics.json").write_text(json.dumps(old))
    (folder / "scores.parquet").unlink()
    with pytest.raises(InputError, match=r"scores\.parquet is missing"):
        evaluate_run(str(copy), source)


def test_choices_weights_and_thresholds_do_not_see_test(tmp_path: Path) -> None:
    """The same clips, once with the test labels as they are and once with random ones."""

    def at_random(rows: Rows) -> None:
        tested = [row for row in rows if row["split"] == "test"]
        said = [(row["label"], row["category"]) for row in tested]
        for row, index in zip(tested, np.random.default_rng(1).permutation(len(tested)), strict=True):
            row["label"], row["category"] = said[index]

    results, files, found = [], [], []
    for name, change in (("true", lambda rows: None), ("random", at_random)):
        source = open_features(*make_features(tmp_path / name, subjects=SOME, change=change))
        run = str(tmp_path / name / "run")
        rows = {GRID: search(run, GRID_CONFIG, source)}
        train(control_jobs(run, GRID_CONFIG, source, rows, (RANDOM, CONCAT_LINEAR), random_count=2), source)
        results.append(evaluate_run(run, source, resamples=50)["planted"])
        files.append({network: _without_provenance(uri) for network, uri in network_uris(run).items()})
        found.append([(row["id"], row["genotype"], row["dev_auc"], row["best_epoch"]) for row in rows[GRID]])
    true, random = results
    assert found[0] == found[1], "architectures and their epochs"
    assert files[0] == files[1], "weights, epochs and thresholds"
    assert len(files[0]) == 4 + 2 + 1
    for key in ("found", "best_single_sense"):
        assert true[key] == random[key]
    for arm, one in true["comparisons"].items():
        assert one["network"] == random["comparisons"][arm]["network"]
    tables = [
        boxes.read_table(str(tmp_path / name / "run/evaluation/planted/scores.parquet")) for name in ("true", "random")
    ]
    for network in files[0]:
        assert tables[0][network].to_pylist() == tables[1][network].to_pylist()
    # What does see them is what is measured.
    assert tables[0]["label"].to_pylist() != tables[1]["label"].to_pylist()
    aucs = [[network["auc"]["value"] for network in result["networks"].values()] for result in results]
    assert aucs[0] != aucs[1]


def _without_provenance(uri: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    stored = read_network(uri)
    facts = {name: value for name, value in stored.facts.items() if name not in ("provenance", "seconds")}
    tensors = safetensors.torch.load(storage.read(uri))
    return facts, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def _two_sets(rows: Rows) -> None:
    """Half of the subjects are another data set, whose test clips are fakes alone, and subjects share their names."""
    for row in rows:
        number = int(row["subject"].removeprefix("subject-"))
        row["dataset"] = "left" if number % 2 else "right"
        row["subject"] = f"subject-{number // 2:03d}"
        if row["dataset"] == "right" and row["split"] == "test" and row["category"] == "A":
            row["split"] = None


def test_several_data_sets_are_read_alone_and_together(tmp_path: Path) -> None:
    source = open_features(*make_features(tmp_path, subjects=FEW, change=_two_sets))
    run = make_run(tmp_path, source, controls=False)
    results = evaluate_run(run, source, resamples=100)
    assert list(results) == ["left", "right", "mixed"]
    assert [results[name]["clips"] for name in results] == [12, 9, 21]
    assert [results[name]["subjects"] for name in results] == [3, 3, 6]
    tables = {name: boxes.read_table(f"{run}/evaluation/{name}/scores.parquet") for name in results}
    found = results["mixed"]["found"]
    assert tables["mixed"][found].to_pylist() == [
        *tables["left"][found].to_pylist(),
        *tables["right"][found].to_pylist(),
    ]
    network = results["right"]["networks"][found]
    for metric in ("auc", "average_precision", "equal_error_rate", "balanced_accuracy"):
        assert network[metric]["value"] is None
        assert "9 clips hold 9 fake ones" in network[metric]["sentence"]
    assert network["auc_by_category"]["B"]["value"] is None
    assert network["roc"] == [[], []]
    assert network["accuracy"]["low"] <= network["accuracy"]["value"] <= network["accuracy"]["high"]
    assert results["mixed"]["networks"][found]["auc"]["value"] is not None
    row = read_grid(run)[0]
    assert (row["test_auc_value.right"], row["test_auc_value.mixed"] is None) == (None, False)
    assert evaluate_run(run, source, resamples=100) == results

    def call_one_mixed(rows: Rows) -> None:
        _two_sets(rows)
        for row in rows:
            row["dataset"] = row["dataset"].replace("left", "mixed")

    named = open_features(*make_features(tmp_path / "named", subjects=FEW, change=call_one_mixed))
    with pytest.raises(InputError, match="a data set that is called 'mixed'"):
        evaluate_run(make_run(tmp_path / "named", named, controls=False), named)


def test_one_subject_and_scores_that_are_no_numbers(tmp_path: Path) -> None:
    source = open_features(*make_features(tmp_path, subjects={**FEW, "test": 1}))
    run = make_run(tmp_path, source)
    uris = network_uris(run)
    broken = uris[f"{VISUAL}/{POINTS[0].id}"]
    tensors = safetensors.torch.load(storage.read(broken))
    with safetensors.safe_open(broken, "pt") as file:
        metadata = file.metadata()
    tensors["head.classifier.bias"] += torch.nan
    storage.write(broken, safetensors.torch.save(tensors, metadata))
    result = evaluate_run(run, source, resamples=50)["planted"]
    network = result["networks"][result["found"]]
    for metric in MEASURED:
        assert network[metric]["value"] is not None
        assert network[metric]["low"] is None
        assert "1 subject only" in network[metric]["sentence"]
    assert result["comparisons"][AUDIO]["difference"]["p_value"] is None
    for metric in MEASURED:
        lost = result["networks"][f"{VISUAL}/{POINTS[0].id}"][metric]
        assert (lost["value"], lost["sentence"]) == (None, "4 of 4 scores are not finite numbers.")
    assert "not finite" in result["comparisons"][VISUAL]["difference"]["sentence"]
    assert result["networks"][f"{VISUAL}/{POINTS[0].id}"]["reliability"] == []


def test_an_empty_test_set_is_refused(tmp_path: Path) -> None:
    source = open_features(*make_features(tmp_path, subjects={**FEW, "test": 0}))
    run = make_run(tmp_path, source, controls=False)
    with pytest.raises(InputError, match=r"puts no clip of .* into split 'test'"):
        evaluate_run(run, source)


def test_one_network_on_other_clips(
    run: str, result: dict[str, Any], source: FeatureSource, tmp_path: Path, edited: Callable[..., FeatureSource]
) -> None:
    stored = read_network(network_uris(run)[result["found"]])
    again = evaluate_network(stored, source, "test", resamples=200)["planted"]
    expected = result["networks"][result["found"]]
    assert again["network"] == {name: expected[name] for name in again["network"]}
    assert (again["wrong"], again["subjects"]) == (result["wrong"], result["subjects"])
    dev = evaluate_network(stored, source, "dev", resamples=50)["planted"]
    assert dev["network"]["auc"]["value"] == pytest.approx(stored.facts["metrics"]["dev_auc"], abs=1e-12)
    other = open_features(*make_features(tmp_path, seed=5, subjects=FEW, change=_two_sets))
    results = evaluate_network(stored, other, "test", resamples=50)
    assert {name: one["clips"] for name, one in results.items()} == {"left": 12, "right": 9, "mixed": 21}
    assert results["right"]["network"]["auc"]["value"] is None
    with pytest.raises(InputError, match=r"was made with backbones planted = \"no\", but .* was trained with true"):
        evaluate_network(stored, edited(config={"planted": "no"}), "test")


@pytest.fixture
def edited(source: FeatureSource) -> Callable[..., FeatureSource]:
    """Makes the source say something else in its meta.json."""
    return lambda **fields: replace(source, meta=replace(source.meta, **fields))


def test_latency_of_a_network_whose_backbones_are_unknown(run: str, result: dict[str, Any], tmp_path: Path) -> None:
    stored = read_network(network_uris(run)[result["found"]])
    content = write_latency(str(tmp_path), result["found"], stored)
    assert json.loads((tmp_path / "evaluation/latency.json").read_text()) == content
    assert {(row["part"], row["network"]) for row in content["rows"]} == {("fusion", result["found"])}
    assert {row["batch"] for row in content["rows"]} == {1, 32}
    assert "does not say which backbones" in content["sentence"]
    assert content["device"]


def test_cost_is_summed_over_arms(run: str, result: dict[str, Any]) -> None:
    cost = run_cost(run, result["networks"])
    assert (cost["device"], cost["search_seconds"]) == ("cpu", 3.0)
    assert cost["device_days"] == 3.0 / 86_400
    seconds = sum(network["seconds"] for network in result["networks"].values())
    assert cost["training_seconds"] + cost["control_seconds"] == pytest.approx(seconds)


def test_a_training_that_arms_share_is_counted_once() -> None:
    point = {"seed": 3, "shuffle_seed": None}
    one = {"arm": GRID, "kind": "found", "genotype": {"a": 1}, "point": point, "repeat": 0, "seconds": 2.0}
    networks = {
        "grid/a": one,
        "grid/b": one,
        "grid/a_repeat-1": {**one, "repeat": 1},
        "visual/a": {**one, "arm": VISUAL},
        "random/random-0": {**one, "arm": RANDOM, "point": None},
        "random/random-1": {**one, "arm": RANDOM, "point": None, "genotype": {"a": 2}},
        "shuffled/a": {**one, "arm": "shuffled", "point": {**point, "shuffle_seed": 0}},
    }
    assert training_seconds(networks, 3) == {GRID: 4.0, RANDOM: 2.0, "shuffled": 2.0}
    assert training_seconds(networks, 4)[RANDOM] == 4.0, "another seed is another training"


def test_scores_do_not_depend_on_the_other_clips(run: str, result: dict[str, Any], source: FeatureSource) -> None:
    stored = read_network(network_uris(run)[f"{CONCAT_LINEAR}/seed-0"])
    test = source.load("test")
    part = Split({name: column[5:9] for name, column in test.columns.items()}, test.labels[5:9], {})
    np.testing.assert_allclose(score_clips(stored, part), score_clips(stored, test)[5:9], atol=1e-6)
