"""Evaluations of a run that was evaluated already, or is by another one: test is read once, and its scores stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster import evaluation
from cluster.evaluation import evaluate_run, read_scores
from cluster.features import FeatureSource, open_features
from data_prep import boxes, storage
from data_prep.storage import InputError
from tests.cluster.evaluated_runs import make_run
from tests.planted import make_features

FEW = {"train": 8, "dev": 6, "test": 6}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted"), subjects=FEW))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> str:
    return make_run(tmp_path_factory.mktemp("run"), source, controls=False)


@pytest.fixture(scope="module")
def result(run: str, source: FeatureSource) -> dict[str, Any]:
    return evaluate_run(run, source, resamples=200)["planted"]


def test_other_resamples_are_measured_from_the_scores_that_stand(
    run: str, source: FeatureSource, result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = copy / "evaluation/planted"
    monkeypatch.setattr(FeatureSource, "load", None)
    other = evaluate_run(str(copy), source, resamples=50)["planted"]
    assert other["bootstrap"] == {"seed": 0, "resamples": 50}
    assert json.loads((folder / "metrics.json").read_text()) == other
    ours, theirs = (one["networks"][result["found"]]["auc"] for one in (other, result))
    assert ours["value"] == theirs["value"]
    assert (ours["low"], ours["high"]) != (theirs["low"], theirs["high"])
    assert evaluate_run(str(copy), source, resamples=200)["planted"] == result

    scores = boxes.read_table(str(folder / "scores.parquet"))
    storage.write(str(folder / "scores.parquet"), boxes.table_bytes(scores.slice(1)))
    for read in (lambda: evaluate_run(str(copy), source, resamples=50), lambda: read_scores(str(copy), "planted")):
        with pytest.raises(InputError, match=r"scores\.parquet is another file than the metrics that were made of it"):
            read()


def test_of_two_evaluations_at_once_the_first_one_s_scores_stand(
    run: str, source: FeatureSource, result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = copy / "evaluation/planted"
    scores = (folder / "scores.parquet").read_bytes()
    for file in folder.iterdir():
        file.unlink()
    create, measured = storage.create, evaluation._Evaluation._measured

    def overwritten(uri: str, data: bytes) -> None:
        (folder / "scores.parquet").write_bytes(b"another evaluation's")
        create(uri, data)

    monkeypatch.setattr(storage, "create", overwritten)
    assert evaluate_run(str(copy), source, resamples=200)["planted"] == result
    assert (folder / "scores.parquet").read_bytes() == scores
    monkeypatch.undo()

    # The other way round: while this one measures, another one of other networks ends.
    (folder / "metrics.json").unlink()

    def beaten(self: Any, *arguments: Any) -> Any:
        (folder / "metrics.json").write_text(json.dumps(result | {"digests": {}}))
        (folder / "scores.parquet").write_bytes(b"the first one's")
        return measured(self, *arguments)

    monkeypatch.setattr(evaluation._Evaluation, "_measured", beaten)
    with pytest.raises(InputError, match="has read the test clips of 'planted' already"):
        evaluate_run(str(copy), source, resamples=200)
    assert (folder / "scores.parquet").read_bytes() == b"the first one's"
