"""`stgs baseline`: two small folds from the command to the summary, and what it refuses before anything starts."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.baseline_results import read_parts
from cluster.baseline_training import BaselineResult
from cluster.limits import RunLimits
from cluster.runs import part_uris
from data_prep.storage import InputError
from jobs import baseline
from jobs.baseline import BaselineJobConfig
from jobs.cli import COMPLETE, FAILED, PARTLY, STOPPED, WRONG_USE
from stgs.baselines import BaselineConfig
from stgs.baselines.training import BaselineTrainingConfig
from stgs.metrics import auc
from tests.tiny_sequences import make_sequences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    make_sequences(folder, subjects={"train": 8, "dev": 2, "test": 2}, frames=(3, 5), signal=1.0)
    return folder


def config_of(folder: Path, out: Path, **changes: Any) -> BaselineJobConfig:
    """A network that learns in seconds what is planted."""
    config = BaselineJobConfig(
        sequences=str(folder / "sequences"),
        manifest=str(folder / "manifest"),
        model="mrdf_ce",
        out=str(out),
        baseline=BaselineConfig(layers=0, width=48),
        training=BaselineTrainingConfig(epochs=2, batch_size=4, learning_rate=3e-3),
    )
    return replace(config, **changes)


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_two_folds_are_trained_side_by_side_and_resumed(ray_session: None, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = config_of(folder, out, folds=2)
    stopped = baseline.run(replace(config, limits=RunLimits(deadline="0s")))
    assert stopped.exit_code == STOPPED
    assert "0 of 2 parts are finished, go on with --resume" in stopped.text
    assert json.loads((out / "driver.json").read_text())["ended"] == "stopped"

    done = baseline.run(replace(config, resume=True))
    assert done.exit_code == COMPLETE
    assert [*part_uris(str(out))] == [*done.payload["parts"]] == ["fold-0", "fold-1"]
    aucs, tested = [], []
    for name, metrics in read_parts(str(out)).items():
        scores = pq.read_table(out / "parts" / name / "scores.parquet").to_pydict()
        measured = metrics["datasets"]["planted"]["network"]["auc"]["value"]
        assert measured == pytest.approx(auc(scores["score"], scores["label"]))
        aucs.append(measured)
        tested.append(set(scores["subject"]))
        assert metrics["epochs"] == 2
    assert min(aucs) > 0.75
    assert not tested[0] & tested[1]
    assert done.payload["over_parts"]["planted"]["auc"]["mean"] == pytest.approx(sum(aucs) / 2)
    assert json.loads((out / "driver.json").read_text())["ended"] == "complete"

    before = {path: path.read_bytes() for path in (out / "parts").rglob("*") if path.is_file()}
    again = baseline.run(replace(config, resume=True))
    assert {path: path.read_bytes() for path in before} == before
    assert again.payload["parts"] == done.payload["parts"]
    with pytest.raises(InputError, match="was begun with width 48, not 96"):
        baseline.run(replace(config, resume=True, baseline=BaselineConfig(layers=0, width=96)))
    with pytest.raises(InputError, match="stands already; continue it with --resume"):
        baseline.run(config)
    # Folds may be added, but none taken away.
    more = baseline.run(replace(config, folds=3, resume=True, limits=RunLimits(deadline="0s")))
    assert (more.exit_code, [*part_uris(str(out))]) == (STOPPED, ["fold-0", "fold-1", "fold-2"])
    assert "2 of 3 parts are finished" in more.text
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(InputError, match="was begun with --folds 3, not 2; give 3 or more, or another --out"):
        baseline.run(replace(config, resume=True))
    with pytest.raises(InputError, match="batch_size is 4, but each of 9 workers needs a clip"):
        baseline.run(replace(config, workers="9", out=str(tmp_path / "many")))
    assert not (tmp_path / "many" / "config.yaml").exists()


def test_parts_that_failed_are_told_and_the_others_stand(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = {"fold-1": "the loss ceased to be finite."}

    def train(out: str, *_: Any, **__: Any) -> BaselineResult:
        return BaselineResult(out, dict(failed))

    monkeypatch.setattr(baseline, "connect", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(baseline, "train_baseline", train)
    found: dict[str, Any] = {"model": "mrdf_ce", "parts": {}, "over_parts": {}}
    found |= dict.fromkeys(("shuffled", "size", "max_seconds", "checkpoint"))
    monkeypatch.setattr(baseline, "summary", lambda out: found)
    monkeypatch.setattr(baseline, "summary_text", lambda out: ["baseline mrdf_ce"])
    config = config_of(folder, tmp_path / "run", folds=2)
    outcome = baseline.run(config)
    assert (outcome.exit_code, outcome.payload["failed"]) == (PARTLY, failed)
    assert "failed: fold-1: the loss ceased to be finite." in outcome.text
    failed["fold-0"] = "so did this."
    assert baseline.run(config).exit_code == FAILED


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--out O", "manifest is missing; give --manifest and --out, or the --run whose splits to take."),
        ("--manifest M", "out is missing"),
        ("--manifest M --out O --name n", "name is 'n', but it is the folder's in a --run"),
        ("--run R --out O", "out is given, but the parts and the place of the baseline are those of --run R"),
        ("--run R --folds 2", "folds is given"),
        ("--run R --protocol folds", "protocol is given"),
        ("--run R --name a/b", "name is 'a/b', but that of a folder in the --run has 1 to 64 letters"),
        ("--run R --name ..", "name is '..', but that of a folder in the --run has 1 to 64 letters"),
        ("--run R --name .", "'_' or '-', not dots alone."),
        ("--manifest M --out O --width 50", "width is 50, but it must be a multiple of 48"),
        ("--manifest M --out O --workers none", "workers is 'none', but it must be a number"),
        ("--manifest M --out O --folds 3 --protocol cross", "folds is 3, but the protocol is 'cross'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baseline.main(["S", "--model", "avdf", *words.split()]) == WRONG_USE
    assert sentence in capsys.readouterr().err


def test_an_unknown_model_is_refused_by_those_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert baseline.main(["S", "--manifest", "M", "--out", "O", "--model", "mrdf"]) == WRONG_USE
    assert "model is 'mrdf'; choose from mrdf_ce, mrdf_margin" in capsys.readouterr().err.replace("--model", "model")
