"""Baselines in the report: beside a found network, beside those of a protocol's parts, and alone."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from sklearn.metrics import roc_auc_score

from cluster.evaluation import evaluate_run
from cluster.features import FeatureSource, open_features
from cluster.settings import GridConfig
from data_prep import boxes, storage
from data_prep.sequence import SequenceConfig
from jobs.baseline import BaselineJobConfig
from jobs.prepare import PrepareJobConfig, box_config
from jobs.report import main
from jobs.report_backbone_cost import backbone_cost
from jobs.report_baseline_run import baseline_page
from jobs.report_baseline_tables import read_baseline_run
from jobs.report_facts import read_run
from jobs.report_settings import commands
from jobs.report_verdicts import chance_words
from tests.cluster.planted_baselines import (
    COLUMNS,
    clips,
    clips_of_test,
    drawn_scores,
    plant_baseline,
    plant_part,
    plant_sequences,
)
from tests.jobs.reports import SETTINGS, Page, parsed, search, train
from tests.jobs.test_report_protocol import searched, written
from tests.planted import make_features

MINE, OTHER = "mrdf_ce (reduced)", "elsewhere (avdf, reduced)"
POINT = GridConfig(temperatures=(10.0,), num_samples=(2,), settings=SETTINGS)


def two_methods(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["method"] = "real" if row["category"] == "A" else "swap" if row["category"] == "D" else "other"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted"), change=two_methods))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> tuple[Path, dict[str, Any]]:
    """A run of one point, and its metrics."""
    run = tmp_path_factory.mktemp("single") / "run"
    search(str(run), POINT, source)
    train(str(run), POINT, source, controls=False)
    return run, evaluate_run(str(run), source, resamples=40)["planted"]


@pytest.fixture
def evaluated(tmp_path: Path, template: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The same, each time without any baseline."""
    run, metrics = template
    return Path(shutil.copytree(run, tmp_path / "run")), metrics


def table(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / f"report/tables/{name}.parquet")


def test_a_baseline_stands_beside_the_found_network(
    tmp_path: Path,
    source: FeatureSource,
    evaluated: tuple[Path, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, metrics = evaluated
    page, _ = written(run, capsys)
    assert f"stgs baseline SEQUENCES --run {run}" in page.section("baselines").text
    rows = clips_of_test(source.manifest.rows)
    scores = drawn_scores(rows, strength=2.0)
    mine = plant_baseline(str(run / "baselines/mrdf_ce"))
    initial = {"file": "s3://w/av_hubert.pt", "missing": ["head"], "left_over": [], "adapted": ["stem"]}
    weights = {"initial": initial, "checkpoint": None}
    plant_part(mine, "all", rows[:-4], scores[:-4], splits=source.split_digest(), weights=weights)
    other = plant_baseline(str(tmp_path / "elsewhere"), model="avdf", parts=("fold-0", "fold-1"), shuffles=1)
    for fold in range(2):
        plant_part(other, f"fold-{fold}", rows[fold:], scores[fold:], splits=f"fold-{fold}", model="avdf")

    assert main([str(run), "--baselines", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["baselines"] == [mine, other]
    page = Page((run / "report/report.html").read_text())
    text = page.section("baselines").text
    written_rows = table(run, "baselines").set_index("name")
    assert list(written_rows.index) == ["found network", MINE, f"{OTHER}, fold-0", f"{OTHER}, fold-1"]
    found, baseline = written_rows.loc["found network"], written_rows.loc[MINE]
    network = metrics["networks"][metrics["found"]]
    assert (found["auc"], found["parameters"]) == (network["auc"]["value"], network["parameters"])
    labels = [row["label"] for row in rows[:-4]]
    assert baseline["auc"] == pytest.approx(roc_auc_score(labels, scores[:-4]))
    ours = boxes.read_table(str(run / "evaluation/planted/scores.parquet")).to_pylist()
    kept = [row for row in ours if row["clip_id"] in {row["clip_id"] for row in rows[:-4]}]
    own = roc_auc_score([row["label"] for row in kept], [row[metrics["found"]] for row in kept])
    assert baseline["difference"] == pytest.approx(own - baseline["auc"])
    assert (baseline["clips"], baseline["macs_of"]) == (44, "whole network, 75 frames")
    assert f"{MINE}: found less baseline {baseline['difference']:+.3f} [" in text
    assert "This run scored 48 test clips and the baseline 44, of which 44 are the same." in text
    assert "whose size no file names" in text, "the planted features say nothing of their backbones"
    assert (
        f"{MINE}: its training began with the weights of s3://w/av_hubert.pt (1 array missing, 1 array adapted)."
        in text
    )
    assert f"{MINE}: shuffled labels were not tried." in text
    assert f"{OTHER}: 1 training with shuffled labels without a result." in text
    # fold-0 has tested every clip of the run, fold-1 all but one.
    assert written_rows["difference"].notna().tolist() == [False, True, True, False]
    told = f"{OTHER}, fold-1: there is no difference to tell, since 1 of this run's 48 test clips are none of"
    assert told in text
    assert text.count("It was trained on other splits than this run.") == 2
    published = table(run, "published_baselines")
    assert published["model"].tolist() == ["mrdf_ce"]
    assert "Published, on other data" in text
    assert "0.9405" in text
    assert not {"published_baselines.csv", "baselines.csv"} - {path.name for path in (run / "report/tables").iterdir()}


def test_the_first_screen_tells_how_the_comparisons_came_out(
    tmp_path: Path, source: FeatureSource, evaluated: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, metrics = evaluated
    rows = clips_of_test(source.manifest.rows)
    ours = metrics["networks"][metrics["found"]]["auc"]["value"]
    weights = {"initial": None, "checkpoint": {"file": "released.ckpt"}}
    planted = {
        "better": (6.0, {}, "The baseline better (mrdf_ce, reduced) is better: found less baseline -"),
        "worse": (-6.0, {}, "The found network is better than the baseline worse (mrdf_ce, reduced): found less"),
        "full": (6.0, {"config": {"width": 768, "layers": 12}}, "The baseline full (mrdf_ce) is better"),
        "released": (
            6.0,
            {"weights": weights, "config": {"width": 768, "layers": 0}},
            "The baseline released (mrdf_ce, checkpoint) cannot be compared",
        ),
    }
    sequences = plant_sequences(str(tmp_path / "sequences"))
    outs = []
    for name, (strength, facts, _) in planted.items():
        outs.append(plant_baseline(str(tmp_path / name), sequences=sequences))
        scores = drawn_scores(rows, strength=strength)
        plant_part(outs[-1], "all", rows, scores, splits=source.split_digest(), **facts)
    assert main([str(run), "--baselines", *outs]) == 0
    page = Page((run / "report/report.html").read_text())
    summary, section = page.section("summary").text, page.section("baselines").text
    for _, _, words in planted.values():
        assert words in summary
    assert 0.1 < ours < 0.95, "else nothing could be better, or worse"
    assert "better (mrdf_ce, reduced) here" not in section
    assert "better here; worse here: reduced: width 48 of 768, 0 of 12 layers." in section
    assert "released (mrdf_ce, checkpoint): not trained here: its weights are those of a checkpoint" in section
    assert "a baseline the whole clip, up to 1 s: it also meets the clip's length" in section
    assert "SHORTCUT: the duration alone tells all fakes" in section
    assert "AUC of decisions, not of scores" in section
    (chart,) = [label for label in page.section("baselines").charts if label.startswith("AUC")]
    assert "worse" in chart
    assert "released" not in chart, "an AUC that may be one of training clips stands among no others"
    heads = section[section.index("found network sees") :]
    assert heads.index("found less baseline") < heads.index("parameters") < heads.index("device time")
    assert "p-value ↕" not in section
    assert table(run, "baselines").set_index("name").loc["released (mrdf_ce, checkpoint)", "checkpoint"]


def test_the_commands_make_the_baselines_again(
    tmp_path: Path, source: FeatureSource, evaluated: tuple[Path, dict[str, Any]]
) -> None:
    run, _ = evaluated
    sequences = plant_sequences(str(tmp_path / "sequences"))
    inside = plant_baseline(str(run / "baselines/again"), sequences=sequences, shuffles=2)
    folds = [f"fold-{fold}" for fold in range(3)]
    outside = plant_baseline(
        str(tmp_path / "outside"), sequences=sequences, parts=folds, weights={"initial": {"sha256": "0"}}
    )
    *_, prepare, first, second, report = commands(read_run(str(run), baselines=[outside]))
    made = parsed(prepare, PrepareJobConfig)
    assert (made.manifest, made.out, made.kind) == ("/m", sequences, "sequences")
    assert box_config(made) == SequenceConfig(max_seconds=1.0, faces="none")
    mine, theirs = parsed(first, BaselineJobConfig), parsed(second, BaselineJobConfig)
    assert (mine.sequences, mine.model, mine.run, mine.name) == (sequences, "mrdf_ce", str(run), "again")
    assert (mine.shuffles, mine.baseline.width, mine.baseline.layers, mine.training.epochs) == (2, 48, 0, 4)
    assert (mine.manifest, mine.out, mine.device) == (None, None, "cpu")
    assert (theirs.manifest, theirs.out, theirs.folds) == ("/m", outside, 3)
    assert theirs.protocol.protocol == "folds"
    assert report == f"stgs report {run} --baselines {outside}"
    alone = Page(baseline_page(read_baseline_run(inside)))
    told = alone.section("settings").text.replace(" \\ ", " ")
    assert f"stgs baseline {sequences} --model mrdf_ce --run {run} --name again" in told


def test_a_run_across_data_sets_has_a_page_without_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ("train-east", "train-west")
    sequences = plant_sequences(str(tmp_path / "sequences"))
    out = plant_baseline(str(tmp_path / "cross"), parts=parts, protocol="cross", sequences=sequences)
    rows = [*clips(3, dataset="east"), *clips(3, first=3, dataset="west")]
    for seed, part in enumerate(parts):
        plant_part(out, part, rows, drawn_scores(rows, strength=1, seed=seed))
    assert main([out]) == 0
    assert capsys.readouterr().out.startswith("2 finished trainings of mrdf_ce")
    page = Page((tmp_path / "cross/report/report.html").read_text())
    assert "train-west, tested on east: AUC" in page.section("summary").text
    assert "mean" not in page.section("summary").text
    assert "mean of 2 parts" not in page.section("roc").text
    summary = page.section("summary").text
    assert "reduced: width 48 of 768, 0 of 12 layers; it saw up to 1 s of each clip; 2 parts." in summary
    assert "SHORTCUT: fakes can be told from real clips without looking or listening, by duration" in summary
    assert "duration" in page.section("shortcuts").text


@pytest.mark.parametrize(
    ("at_chance", "words"),
    [(True, "end at chance, but only 3"), (False, "are NOT at chance, but only 3"), (None, "end at chance: only 3")],
)
def test_few_shuffles_are_no_reason_to_end_at_chance(at_chance: bool | None, words: str) -> None:
    assert words in chance_words({"at_chance": at_chance, "sentence": "only 3 shuffles."})


def test_the_parts_of_a_protocol_have_the_same_parts_of_a_baseline(
    tmp_path: Path, source: FeatureSource, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    found = searched(run, source, "method")
    names = list(found)
    out = plant_baseline(str(run / "baselines/mine"), parts=names, shuffles=0)
    aucs: list[float] = []
    for seed, (name, metrics) in enumerate(found.items()):
        (told,) = metrics.values()
        uri = run / f"parts/{name}/evaluation/planted/scores.parquet"
        rows = boxes.read_table(str(uri), list(COLUMNS)).to_pylist()
        scores = drawn_scores(rows, strength=2.0, seed=seed)
        aucs.append(float(roc_auc_score([row["label"] for row in rows], scores)))
        # A part is found by its splits, whatever it is called.
        plant_part(out, f"renamed-{seed}", rows, scores, splits=told["digests"]["splits"])
    page, _ = written(run, capsys)
    over = table(run, "baselines_over_parts").set_index("name")
    assert over.loc["mine (mrdf_ce, reduced)", ["auc_mean", "auc_deviation"]].tolist() == pytest.approx(
        [statistics.fmean(aucs), statistics.stdev(aucs)]
    )
    by_part = table(run, "baselines").set_index(["part", "name"])
    ours = [by_part.loc[(name, "found network"), "auc"] for name in names]
    assert [by_part.loc[(name, "mine (mrdf_ce, reduced)"), "auc"] for name in names] == pytest.approx(aucs)
    assert over.loc["found network", "auc_mean"] == pytest.approx(statistics.fmean(ours))
    expected = [mine - theirs for mine, theirs in zip(ours, aucs, strict=True)]
    assert over.loc["mine (mrdf_ce, reduced)", "difference_mean"] == pytest.approx(statistics.fmean(expected))
    assert over.loc["mine (mrdf_ce, reduced)", ["count", "differences"]].tolist() == [len(names)] * 2
    told = "Beside the baseline mine (mrdf_ce, reduced) the found network is better in"
    assert told in page.section("summary").text
    text = page.section("baselines").text
    assert f"{statistics.fmean(aucs):.3f}" in text
    assert f"mine (mrdf_ce, reduced): part {names[0]} has no result: it is not finished; go on with --resume." in text
    part, _ = written(run / "parts" / names[1], capsys)
    assert f"{aucs[1]:.3f} [" in part.section("baselines").text
    assert f"{aucs[0]:.3f} [" not in part.section("baselines").text
    storage.delete(f"{out}/parts/renamed-1/metrics.json")
    part, _ = written(run / "parts" / names[1], capsys)
    text = part.section("baselines").text
    assert f"mine (mrdf_ce, reduced): part {names[1]} has no result: it is not finished" in text
    assert "No baseline has been tested on clips of planted yet." in text, "that of another part is none of this one"


def test_a_baseline_has_a_page_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [f"fold-{fold}" for fold in range(3)]
    out = plant_baseline(str(tmp_path / "mine"), parts=parts, shuffles=3)
    metrics: dict[str, Mapping[str, Any]] = {}
    for fold, name in enumerate(parts[:2]):
        rows = clips(5, first=5 * fold)
        metrics[name] = plant_part(out, name, rows, drawn_scores(rows, strength=0.7, seed=fold))["datasets"]["planted"]
    for seed in range(3):
        plant_part(out, f"shuffle-{seed}", rows, drawn_scores(rows, strength=4.0, seed=seed), shuffle_seed=seed)
    storage.write(f"{out}/parts/fold-2/failed.json", b'{"reason": "the loss is not finite"}')
    page, payload = written(Path(out), capsys)
    assert (payload["model"], payload["parts"]) == ("mrdf_ce", parts)
    aucs = [told["network"]["auc"] for told in metrics.values()]
    values = [auc["value"] for auc in aucs]
    words = page.section("summary").text
    assert f"mean AUC {statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f} (2 of 3 parts)" in words
    assert "fold-2: it failed: the loss is not finite." in words
    assert "105 M parameters, 21 G multiply-accumulates" in words
    assert "Published, on other data" in words
    assert "with shuffled labels the scores are NOT at chance" in page.text
    for auc in aucs:
        assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in page.section("parts").text
    assert len(page.section("roc").charts) == 1
    titles = [label.partition(" over ")[0] for label in page.section("curves").charts]
    assert titles == ["AUC on dev", "Loss in training", "Loss on dev", "clip, in training", "Learning rate"]
    assert metrics["fold-0"]["wrong"][0]["clip_id"] in page.section("wrong").text
    assert "method-B" in page.section("scores").text
    names = {path.stem for path in (Path(out) / "report/tables").iterdir()}
    assert names == {
        *("parts", "over_parts", "shuffles", "by_category", "by_method", "wrong_clips", "published_baselines")
    }
    assert main([out, "--corpus", "x"]) == 2
    assert "--corpus is for the report of a search" in capsys.readouterr().err


def test_a_baseline_that_has_just_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, _ = written(Path(plant_baseline(str(tmp_path / "new"), model="avdf")), capsys)
    assert "all: it is not finished; go on with --resume." in page.section("summary").text
    assert "Not known: no part is finished." in page.section("summary").text
    assert "There are no curves to show." in page.section("curves").text


def test_backbones_are_counted_as_torchvision_and_hooks_do() -> None:
    made = {"visual": "resnet18", "audio": "resnet18"}
    sizes = {"num_frames": 2, "frame_size": 64, "spectrogram_frames": 40}
    cost = backbone_cost({"backbones": made, "corpus": sizes})
    assert cost is not None
    expected_parameters = expected_macs = 0
    for channels, shape in ((3, (2, 3, 64, 64)), (1, (1, 1, 40, 257))):
        network = torchvision.models.resnet18(weights=None)
        network.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        network.fc = torch.nn.Identity()
        expected_parameters += sum(item.numel() for item in network.parameters())
        macs: list[int] = []
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(
                    lambda own, _, out: macs.append(out.numel() * own.weight[0].numel())  # noqa: B023
                )
        with torch.no_grad():
            network.eval()(torch.zeros(shape))
        expected_macs += sum(macs)
    assert (cost.parameters, cost.macs) == (expected_parameters, expected_macs)
    assert backbone_cost({"backbones": made}) is None
    assert backbone_cost({"backbones": {**made, "audio": "own"}, "corpus": sizes}) is None
