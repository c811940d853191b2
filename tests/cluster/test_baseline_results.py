"""What the parts of a baseline run say together, and the baseline beside a found network; scores are drawn."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from cluster.baseline_comparison import compare, matching_part
from cluster.baseline_remarks import sequences_of, size_words
from cluster.baseline_results import baselines_of, is_baseline, read_parts, summary, summary_text
from cluster.runs import open_run
from data_prep import boxes, storage
from data_prep.storage import InputError
from tests.cluster.planted_baselines import COLUMNS, clips, drawn_scores, plant_baseline, plant_part, plant_sequences

Rows = Sequence[Mapping[str, Any]]


def planted(folder: Path, folds: int = 3, shuffles: int = 0, **settings: Any) -> tuple[str, list[dict[str, Any]]]:
    """A run with folds, each on clips of its own, and the metrics of the folds."""
    out = plant_baseline(
        str(folder / "out"), parts=[f"fold-{fold}" for fold in range(folds)], shuffles=shuffles, **settings
    )
    metrics = []
    for fold in range(folds):
        rows = clips(5, first=5 * fold)
        metrics.append(plant_part(out, f"fold-{fold}", rows, drawn_scores(rows, strength=1.5, seed=fold)))
    return out, metrics


def test_folds_are_summed_up_by_mean_and_deviation(tmp_path: Path) -> None:
    out, metrics = planted(tmp_path, folds=11)
    content = summary(out)
    assert list(content["parts"]) == [f"fold-{fold}" for fold in range(11)], "fold-10 follows fold-9"
    aucs = [one["datasets"]["planted"]["network"]["auc"]["value"] for one in metrics]
    told = content["over_parts"]["planted"]["auc"]
    assert (told["mean"], told["deviation"]) == pytest.approx((statistics.fmean(aucs), statistics.stdev(aucs)))
    assert (told["count"], told["of"]) == (11, 11)
    assert set(content["methods_over_parts"]["planted"]) == {"method-B", "method-C", "method-D"}
    part = content["parts"]["fold-2"]
    assert part["datasets"]["planted"]["auc"] == metrics[2]["datasets"]["planted"]["network"]["auc"]
    assert (part["best_epoch"], part["epochs"], part["dev_auc"], part["sentence"]) == (3, 4, 0.91, None)
    assert (content["model"], content["shuffled"], content["unfinished_shuffles"]) == ("mrdf_ce", None, 0)
    json.dumps(content, allow_nan=False)
    lines = summary_text(out)
    assert lines[0] == (
        "baseline mrdf_ce: 105,021,806 parameters, 21,000,000,000 MACs for a clip of 75 frames; 11 parts, on test"
    )
    assert lines[1] == "  reduced: width 48 of 768, 0 of 12 layers"
    auc = metrics[2]["datasets"]["planted"]["network"]["auc"]
    assert lines[4].startswith(
        f"  fold-2 on planted: AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}], acc"
    )
    assert lines[4].endswith("; best epoch 3 of 4, dev AUC 0.910")
    mean = f"AUC {statistics.fmean(aucs):.3f} on average, standard deviation {statistics.stdev(aucs):.3f}"
    assert lines[13].startswith(f"  all parts on planted: {mean}, accuracy")
    assert "share training clips: it is no interval" in lines[14]
    assert lines[15].startswith("  published, on other data (FakeAVCeleb, 5 folds")
    assert "AUC of decisions, not of scores, and epochs chosen on the test folds" in lines[15]
    assert len(lines) == 16


def test_a_part_without_a_result_is_one_that_the_mean_lacks(tmp_path: Path) -> None:
    out, _ = planted(tmp_path, folds=3)
    storage.delete(f"{out}/parts/fold-1/metrics.json")
    told = summary(out)["over_parts"]["planted"]["auc"]
    assert (told["count"], told["of"], told["sentence"]) == (2, 3, "1 of 3 parts have no value")


def test_tests_in_and_across_data_sets_have_no_mean(tmp_path: Path) -> None:
    parts = ("train-east", "train-west")
    out = plant_baseline(str(tmp_path / "out"), parts=parts, protocol="cross")
    rows = [*clips(3, dataset="east"), *clips(3, first=3, dataset="west")]
    for seed, part in enumerate(parts):
        plant_part(out, part, rows, drawn_scores(rows, strength=1, seed=seed))
    content = summary(out)
    assert (content["over_parts"], content["methods_over_parts"]) == (None, None)
    lines = summary_text(out)
    assert sum(line.startswith("  train-east on ") for line in lines) == 3
    assert "all parts" not in "\n".join(lines)


def test_a_checkpoint_is_told_and_not_averaged(tmp_path: Path) -> None:
    out, _ = planted(tmp_path, folds=2)
    for fold in range(2):
        rows, weights = clips(5, first=5 * fold), {"initial": None, "checkpoint": {"file": "r.ckpt", "sha256": "0"}}
        plant_part(out, f"fold-{fold}", rows, drawn_scores(rows, strength=1), weights=weights, epochs=0)
    content = summary(out)
    assert (content["over_parts"], content["methods_over_parts"]) == (None, None)
    assert content["checkpoint"] == {"file": "r.ckpt", "sha256": "0"}
    text = "\n".join(summary_text(out))
    assert "not trained here: its weights are those of a checkpoint, whose own training may have seen subjects" in text
    assert "all parts" not in text


@pytest.mark.parametrize(
    ("width", "layers", "words"),
    [
        (768, 12, None),
        (48, 12, "reduced: width 48 of 768"),
        (768, 3, "reduced: 3 of 12 layers"),
        (768, 0, "0 of 12 layers, as the released code has in effect"),
        (816, 12, "enlarged: width 816 of 768"),
    ],
)
def test_another_size_than_the_papers_is_told(width: int, layers: int, words: str | None) -> None:
    assert size_words({"width": width, "layers": layers}) == words


def test_what_it_saw_of_a_clip_is_known_from_its_own_sequences_alone(tmp_path: Path) -> None:
    sequences = plant_sequences(str(tmp_path / "sequences"), max_seconds=1.5)
    out = plant_baseline(str(tmp_path / "out"), sequences=sequences)
    assert summary(out)["max_seconds"] == 1.5
    assert "  it saw up to 1.5 s of each clip" in summary_text(out)
    audit = sequences_of(out).audit
    assert audit is not None
    assert audit["clips"] == 48
    plant_sequences(sequences, digest="other")
    assert (summary(out)["max_seconds"], sequences_of(out).audit) == (None, None)
    storage.write(f"{sequences}/meta.json", b"{")
    assert summary(out)["max_seconds"] is None
    gone = plant_baseline(str(tmp_path / "gone"), sequences=str(tmp_path / "nowhere"))
    assert summary(gone)["max_seconds"] is None


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    out = plant_baseline(str(tmp_path / "out"), parts=("fold-0", "fold-1", "fold-2"), shuffles=2, model="no_more_known")
    rows = [row for row in clips(4) if row["category"] != "A"]
    plant_part(out, "fold-0", rows, [0.5] * len(rows))
    storage.write(f"{out}/parts/fold-1/failed.json", b'{"reason": "Traceback\\n\\nInputError: the loss is not finite"}')
    storage.write(f"{out}/parts/fold-2/state.pt", b"half")
    content = summary(out)
    assert content["parts"]["fold-1"]["sentence"] == "it failed: InputError: the loss is not finite"
    assert content["parts"]["fold-2"]["sentence"] == "it is not finished; go on with --resume"
    assert content["over_parts"]["planted"]["auc"]["sentence"] == "no part has a value"
    assert (content["shuffled"], content["unfinished_shuffles"]) == (None, 2)
    text = "\n".join(summary_text(out))
    assert "fold-0 on planted: AUC unknown (" in text, "fakes alone have no AUC"
    assert "fold-1: it failed: InputError: the loss is not finite" in text
    assert "shuffled labels: 2 without a result; go on with --resume" in text
    assert "all parts" not in text
    assert "published" not in text, "nothing is known of that model"
    assert "no_more_known; 3 parts" in "\n".join(summary_text(plant_baseline(
        str(tmp_path / "new"), parts=("fold-0", "fold-1", "fold-2"), model="no_more_known"
    )))  # fmt: skip


@pytest.mark.parametrize(
    ("strength", "count", "at_chance", "words"),
    [
        (0.0, 20, True, "at chance"),
        (3.0, 3, False, "NOT at chance (only 3 shuffles; 20 are needed"),
    ],
)
def test_shuffled_labels_are_held_against_chance(
    tmp_path: Path, strength: float, count: int, at_chance: bool, words: str
) -> None:
    out, rows = plant_baseline(str(tmp_path / "out"), shuffles=count), clips(3)
    aucs = []
    for seed in range(count):
        scores = drawn_scores(rows, strength=strength, seed=seed)
        aucs.append(roc_auc_score([row["label"] for row in rows], scores))
        plant_part(out, f"shuffle-{seed}", rows, scores, shuffle_seed=seed)
    content = summary(out)
    assert list(content["parts"]) == ["all"], "shuffles are no results"
    assert content["shuffled"]["mean"] == pytest.approx(statistics.fmean(aucs))
    assert (content["shuffled"]["count"], content["shuffled"]["at_chance"]) == (count, at_chance)
    line = summary_text(out)[3]
    assert line.startswith(f"  shuffled labels: mean AUC {statistics.fmean(aucs):.3f} of {count}, {words}")


def test_a_run_that_is_none_and_damaged_files_are_named(tmp_path: Path) -> None:
    out, _ = planted(tmp_path, folds=1)
    assert is_baseline(out)
    assert not is_baseline(str(tmp_path))
    uri = f"{out}/parts/fold-0/metrics.json"
    content = json.loads(storage.read(uri))
    storage.write(uri, json.dumps({**content, "version": 7}).encode())
    with pytest.raises(InputError, match=r"metrics\.json is no metrics of a baseline of version 1"):
        read_parts(out)
    storage.write(uri, b"{")
    with pytest.raises(InputError, match=r"metrics\.json is damaged .*; put it back"):
        summary(out)
    search = open_run(str(tmp_path / "grid"), {"settings": {}}, resume=False, hints={})
    assert not is_baseline(search)
    with pytest.raises(InputError, match="is no run of a baseline, but of a search"):
        read_parts(search)


def test_the_baselines_of_a_run_lie_in_its_folder(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert baselines_of(run) == []
    for name in ("mrdf_ce", "avdf"):
        plant_baseline(f"{run}/baselines/{name}")
    storage.write(f"{run}/baselines/mrdf_ce/parts/all/config.yaml", b"")
    assert baselines_of(run) == [f"{run}/baselines/avdf", f"{run}/baselines/mrdf_ce"]


def test_a_part_of_the_same_splits_comes_before_one_of_the_same_name() -> None:
    def part(splits: str, shuffle: int | None = None) -> dict[str, Any]:
        return {"shuffle_seed": shuffle, "digests": {"splits": splits}}

    parts = {"fold-0": part("a"), "fold-1": part("b"), "shuffle-0": part("c", 0)}
    assert matching_part(parts, "fold-0", "b") == "fold-1"
    assert matching_part(parts, "fold-0", "x") == "fold-0"
    assert matching_part(parts, "fold-2", "c") is None, "shuffles match nothing"
    assert matching_part({"all": part("a")}, None, "x") == "all"
    assert matching_part(parts, None, None) is None


def evaluated(folder: Path, rows: Rows, scores: Sequence[float], splits: str = "splits") -> str:
    """A run whose found network has these scores on its test clips."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in COLUMNS}
    table = pa.table({**columns, "grid/found": list(scores), "grid/other": [0.5] * len(rows)})
    data, uri = boxes.table_bytes(table), str(folder / "run/evaluation/planted")
    content = {"found": "grid/found", "bootstrap": {"seed": 0, "resamples": 200}, "digests": {"splits": splits}}
    content["scores_digest"] = hashlib.sha256(data).hexdigest()
    storage.write(f"{uri}/scores.parquet", data)
    storage.write(f"{uri}/metrics.json", json.dumps(content).encode())
    return str(folder / "run")


def test_the_difference_is_that_of_the_clips_which_both_scored(tmp_path: Path) -> None:
    rows = clips(12)
    ours, theirs = (np.array(drawn_scores(rows, strength=s, seed=s)) for s in (3, 1))
    run, out = evaluated(tmp_path, rows[:-4], ours[:-4]), plant_baseline(str(tmp_path / "out"))
    plant_part(out, "all", list(reversed(rows[4:])), list(reversed(theirs[4:])))
    told = compare(run, "planted", f"{out}/parts/all")
    labels = np.array([row["label"] for row in rows])[4:-4]
    expected = [roc_auc_score(labels, scores[4:-4]) for scores in (ours, theirs)]
    assert [told["auc_found"]["value"], told["auc_baseline"]["value"]] == pytest.approx(expected)
    assert told["difference"]["value"] == pytest.approx(expected[0] - expected[1])
    assert told["difference"]["low"] < told["difference"]["value"] < told["difference"]["high"]
    assert 0 < told["difference"]["p_value"] <= 1
    assert (told["clips"], told["clips_found"], told["clips_baseline"]) == (40, 44, 44)
    assert told["sentences"] == ["this run scored 44 test clips and the baseline 44, of which 40 are the same"]


def test_equal_scores_differ_by_nothing(tmp_path: Path) -> None:
    rows = clips(6)
    scores = drawn_scores(rows, strength=1)
    run, out = evaluated(tmp_path, rows, scores), plant_baseline(str(tmp_path / "out"))
    plant_part(out, "all", rows, scores)
    told = compare(run, "planted", f"{out}/parts/all")
    assert (told["difference"]["value"], told["difference"]["p_value"], told["sentences"]) == (0, 1, [])


def test_nothing_is_told_where_the_baseline_may_have_seen_test_clips(tmp_path: Path) -> None:
    rows = clips(8)
    run, out = evaluated(tmp_path, rows, drawn_scores(rows, strength=1)), plant_baseline(str(tmp_path / "out"))

    def told(kept: Rows, **facts: Any) -> dict[str, Any]:
        plant_part(out, "all", kept, drawn_scores(kept, strength=1), **facts)
        return compare(run, "planted", f"{out}/parts/all")

    unlike = told(rows[4:], splits="other")
    assert unlike["difference"]["value"] is unlike["difference"]["p_value"] is None
    assert "4 of this run's 32 test clips are none of the baseline's" in unlike["difference"]["sentence"]
    assert unlike["auc_baseline"]["value"] is not None
    assert unlike["sentences"][0] == "it was trained on other splits than this run"
    tested = told([*rows, *clips(2, first=20)], splits="other")
    assert tested["difference"]["value"] is not None, "every test clip of the run is one of the baseline's, too"
    assert tested["sentences"][0] == "it was trained on other splits than this run"
    released = told(rows, splits="others", weights={"initial": None, "checkpoint": {"file": "released.ckpt"}})
    assert "whose training clips no file names" in released["difference"]["sentence"]
    assert not any("trained on other splits" in note for note in released["sentences"]), "nobody trained it here"
    apart = told(clips(2, first=20))
    assert (apart["clips"], apart["difference"]["sentence"]) == (0, "the two runs have no test clip in common.")
    unlabelled = told([{**row, "label": 1} for row in rows])
    assert unlabelled["difference"]["sentence"] == "the two runs do not label the clips alike."


def test_scores_other_than_those_of_the_metrics_are_refused(tmp_path: Path) -> None:
    rows = clips(4)
    run, out = evaluated(tmp_path, rows, drawn_scores(rows, strength=1)), plant_baseline(str(tmp_path / "out"))
    plant_part(out, "all", rows, drawn_scores(rows, strength=1))
    scores = f"{out}/parts/all/scores.parquet"
    storage.write(scores, storage.read(scores) + b" ")
    with pytest.raises(InputError, match=r"scores\.parquet is another file than the metrics"):
        compare(run, "planted", f"{out}/parts/all")
    storage.delete(scores)
    with pytest.raises(InputError, match=r"scores\.parquet is missing"):
        compare(run, "planted", f"{out}/parts/all")
