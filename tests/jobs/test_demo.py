"""The whole job on a few drawn people: every stage hands on to the next, and scoring a clip repeats the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from cluster.audits import read_audit
from data_prep import boxes
from data_prep.manifest import read_manifest, resolve_path
from data_prep.storage import InputError
from jobs import baseline, demo, score
from jobs.cli import COMPLETE, FAILED, PARTLY, Outcome
from stgs.baselines import BaselineConfig
from stgs.baselines.training import BaselineTrainingConfig

CONFIG: dict[str, Any] = {
    "num_subjects": 10,
    "dev_subjects": 2,
    "test_subjects": 2,
    "channels": 8,
    "epochs": 1,
    "found_epochs": 1,
    "control_searches": 1,
    "shuffles": 2,
    "random_genotypes": 1,
    "baseline_epochs": 1,
    "baseline_seconds": 0.4,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def outcome(ray_session: None, out: Path) -> Outcome:
    return demo.run(demo.DemoJobConfig(out=str(out), **CONFIG))


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_demo_runs_to_the_report(out: Path, outcome: Outcome) -> None:
    (seed,) = outcome.payload["seeds"]
    assert seed["points"] == 16
    assert seed["random"]["count"] == 1
    assert seed["shuffled"]["count"] == 2
    # Two shuffles say nothing about chance, whatever the interval says, and the exit code must say so.
    assert seed["shuffled"]["at_chance"] is None
    assert not seed["at_chance"]
    assert outcome.exit_code == FAILED
    assert Path(seed["report"]).read_text().lower().startswith("<!doctype html>")
    corpus = boxes.read_meta(str(out / "seed-0" / "corpus"), boxes.CORPUS)
    assert corpus.counts["clips"] == 40, "every drawn face is found"
    audit = read_audit(str(out / "seed-0" / "corpus")) or {}
    assert (audit["digest"], audit["clips"], audit["skipped"]) == (corpus.digest, 40, {})
    assert boxes.read_meta(str(out / "seed-0" / "features"), boxes.FEATURES).extra["audit"] == audit
    kept = read_audit(str(out / "seed-0" / "run")) or {}
    assert {name: kept[name] for name in audit} == audit
    # Drawn people borrow from people of their own split; a face that is moved by another's borrows nobody's.
    assert {leak["kind"] for leak in kept["leaks"]} <= {"test_target_unknown", "dev_target_unknown"}
    assert [line for line in outcome.text.splitlines() if line.startswith("SHORTCUT")] == audit["shortcuts"]
    for line in ("AUC on test, temperature by num_samples:", "random genotypes:", "shuffled labels:", "cell1:"):
        assert line in outcome.text
    assert seed["baseline"]["clips"] == seed["baseline"]["clips_found"] == 8
    assert f"AUC {seed['baseline']['auc_baseline']['value']:.3f}" in outcome.text.partition("baseline mrdf_ce")[2]


@pytest.mark.ray
@pytest.mark.timeout(100)
def test_two_folds_of_a_reduced_baseline(out: Path, outcome: Outcome, tmp_path: Path) -> None:
    folder = out / "seed-0"
    trained = baseline.run(
        baseline.BaselineJobConfig(
            sequences=str(folder / "sequences"),
            manifest=str(folder / "manifest"),
            model="mrdf_ce",
            out=str(tmp_path / "folds"),
            folds=2,
            baseline=BaselineConfig(layers=0, width=48),
            training=BaselineTrainingConfig(epochs=1, batch_size=8),
            device="cpu",
        )
    )
    assert trained.exit_code == COMPLETE
    assert list(trained.payload["parts"]) == ["fold-0", "fold-1"]
    tested = []
    for part in trained.payload["parts"]:
        scores = boxes.read_table(str(tmp_path / "folds" / "parts" / part / "scores.parquet")).to_pydict()
        # A fifth of ten people, a clip of each category each, and AUC is that of the scores.
        assert len(scores["clip_id"]) == 8
        assert trained.payload["parts"][part]["datasets"]["demo"]["auc"]["value"] == pytest.approx(
            roc_auc_score(scores["label"], scores["score"])
        )
        tested.append(set(scores["subject"]))
    assert not tested[0] & tested[1]
    assert trained.payload["over_parts"]["demo"]["auc"]["count"] == 2


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_score_repeats_the_evaluation(out: Path, outcome: Outcome, tmp_path: Path) -> None:
    folder = out / "seed-0"
    found = outcome.payload["seeds"][0]["found"]
    scores = boxes.read_table(str(folder / "run" / "evaluation" / "demo" / "scores.parquet"))
    expected = dict(zip(scores["clip_id"].to_pylist(), scores[found].to_pylist(), strict=True))
    manifest = read_manifest(str(folder / "manifest"))
    rows = [row for row in manifest.rows if row["clip_id"] in expected][:2]
    videos = [resolve_path(manifest.roots, row["video_path"]) for row in rows]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(videos[0]).read_bytes()[:2000])

    faces = tmp_path / "faces.jpg"
    lines = tmp_path / "scores.jsonl"
    result = score.run(
        score.ScoreJobConfig(
            videos=(*videos, str(broken)),
            run=str(folder / "run"),
            window="corpus",
            faces=str(faces),
            json_lines=str(lines),
            processes=1,
        )
    )
    for row, clip in zip(rows, result.payload["clips"], strict=False):
        assert clip["p_fake"] == expected[row["clip_id"]], "the same bits"
    assert [json.loads(line) for line in lines.read_text().splitlines()] == result.payload["clips"]
    assert result.payload["clips"][2]["refused"] == "unreadable"
    assert result.exit_code == PARTLY
    assert faces.read_bytes()[:2] == b"\xff\xd8"


def test_score_wants_one_network() -> None:
    with pytest.raises(InputError, match="either --run, for its found network, or --network"):
        score.run(score.ScoreJobConfig(videos=("clip.mp4",)))
    with pytest.raises(InputError, match="is no file"):
        score.run(score.ScoreJobConfig(videos=("clip.mp4",), network="missing.safetensors"))
