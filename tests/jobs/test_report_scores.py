"""What the report says of scores, controls, robustness and cost, and the tables that it writes beside the page."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cluster.controls import CONTROLS
from cluster.features import FeatureSource, open_features
from data_prep import boxes, storage
from data_prep.storage import InputError
from jobs.evaluate import EvaluateJobConfig
from jobs.report import main, report_page
from jobs.report_facts import Reading, RunFacts, read_run
from jobs.report_paper import table_2
from jobs.report_settings import commands
from jobs.report_tables import Column, DataTable, write_tables
from jobs.report_wrong_pictures import wrong_pictures
from tests.jobs.reports import Page, complete_run, parsed, read_page
from tests.planted import make_features
from tests.tiny_corpus import make_corpus

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> & more"
ESTIMATE = {"value": 0.9123, "low": 0.8, "high": 0.95, "sentence": None}
NO_INTERVAL = {"value": 0.75, "low": None, "high": None, "sentence": "one subject gives no interval."}
NOTHING = {"value": None, "low": None, "high": None, "sentence": "there are clips of one class alone."}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> Path:
    return complete_run(tmp_path_factory.mktemp("runs") / "complete", source)


@pytest.fixture(scope="module")
def facts(complete: Path) -> RunFacts:
    return read_run(str(complete))


@pytest.fixture
def changed(complete: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the complete run whose metrics.json is changed."""

    def change(how: Callable[[dict[str, Any]], None]) -> Path:
        run = tmp_path / "copy"
        shutil.copytree(complete, run)
        file = run / "evaluation/planted/metrics.json"
        content = json.loads(file.read_text())
        how(content)
        file.write_text(json.dumps(content))
        return run

    return change


def reread(facts: RunFacts, **content: Any) -> RunFacts:
    """The same facts with other content of metrics.json, or robustness."""
    reading = facts.readings[0]
    robustness = content.pop("robustness", None)
    content = {**copy.deepcopy(reading.content), **content}
    networks = content["networks"]
    other = Reading(reading.dataset, networks, reading.found, reading.best_single_sense, content, robustness)
    return replace(facts, readings=[other])


def robustness(name: str = "blur", behaviour: str = "the mean stands for it") -> dict[str, Any]:
    rows = [
        {"severity": 0, "label": "none", "auc": ESTIMATE, "scored": 40, "refused": 0},
        {"severity": 1, "label": "2 px", "auc": {**ESTIMATE, "value": 0.8123}, "scored": 37, "refused": 3},
        {"severity": 2, "label": "4 px", "auc": NOTHING, "scored": 0, "refused": 40},
    ]
    damages = [{"name": name, "sense": "visual", "unit": "px", "text": "a blur", "rows": rows}]
    missing = [{"sense": "audio", "behaviour": behaviour, "network": None, "auc": NO_INTERVAL}]
    return {"clips": 40, "subjects": 10, "network": "grid/x", "damages": damages, "missing": missing}


def first_words(page: Page) -> str:
    """What the page begins with, after its title."""
    return Page(page.source[page.source.index("<body>") : page.source.index("</body>") + 7]).text


def test_the_first_screen_answers_four_questions(facts: RunFacts) -> None:
    # Two shuffles are too few to be at chance for sure.
    shuffled = {"count": 20, "mean": 0.51, "standard_error": 0.012, "at_chance": True}
    page = read_page(reread(facts, shuffled=shuffled))
    content = facts.readings[0].content
    words = page.section("summary").text
    places = [words.index(line) for line in ("What was found", "How good it is", "How sure that is", "What it cost")]
    assert places == sorted(places)
    found = content["networks"][content["found"]]
    answers = words[: words.index("AUC on test of the found network")]
    assert f"{found['parameters']:,} parameters" in answers
    assert f"AUC {found['auc']['value']:.3f} [{found['auc']['low']:.3f}, {found['auc']['high']:.3f}]" in answers
    assert f"(p {content['difference']['p_value']:.3f})" in answers
    assert "of device time for the search" in answers
    assert "Shuffled labels end at chance." in answers
    comparisons = {"softmax": -0.01, "random": 0.02, "visual": 0.0}
    facts = reread(
        facts,
        comparisons={
            arm: {
                "network": content["found"],
                "difference": {"value": low + 0.1, "low": low, "high": 0.3, "p_value": 0.1},
            }
            for arm, low in comparisons.items()
        },
    )
    assert "No advantage is shown over the best of: BM-NAS softmax, visual only." in read_page(facts).text


def test_networks_that_were_fitted_on_dev_are_chosen_by_their_supernets(facts: RunFacts) -> None:
    content = facts.readings[0].content
    fitted = {"fitted_on": ["train", "dev"], "search_dev_auc": 0.7}
    networks = {name: {**network, **fitted} for name, network in content["networks"].items()}
    page = read_page(reread(facts, networks=networks)).text
    assert "by the supernet's AUC there, for the networks were fitted on dev." in page
    assert "at 0.5, for it was fitted on dev" in page
    assert "at the threshold of dev" not in page


def test_shuffled_labels_that_are_not_at_chance_are_the_first_line(facts: RunFacts) -> None:
    shuffled = {"count": 20, "mean": 0.731, "standard_error": 0.012, "at_chance": False}
    few = {**shuffled, "standard_error": None, "at_chance": None, "sentence": "only 1 shuffle; 20 are needed."}
    untold = read_page(reread(facts, shuffled=few))
    assert "WARNING: with shuffled labels" not in untold.text
    assert "do not tell whether they end at chance: only 1 shuffle; 20 are needed." in untold.text
    for at_chance in (False, True):
        page = read_page(reread(facts, shuffled={**shuffled, "at_chance": at_chance}))
        begins = first_words(page).startswith(
            "WARNING: with shuffled labels the scores are NOT at chance (planted: mean"
        )
        assert begins == (not at_chance)
        assert ("0.731" in first_words(page)[:200]) == (not at_chance)
        assert ("Shuffled labels end at chance" in page.text) == at_chance
    assert "Shuffled labels were not tried" in read_page(reread(facts, shuffled=None)).text


def test_what_has_no_interval_or_no_value_says_why(facts: RunFacts) -> None:
    networks = copy.deepcopy(facts.readings[0].networks)
    for estimate in (NO_INTERVAL, NOTHING):
        for network in networks.values():
            names = ("auc", "average_precision", "equal_error_rate", "accuracy", "accuracy_dev_threshold")
            network |= dict.fromkeys((*names, "balanced_accuracy", "calibration_error"), estimate)
            network["auc_by_category"] = dict.fromkeys("BCD", estimate)
            network["auc_by_method"] = {"planted": estimate}
            network |= {"roc": [[], []], "roc_by_category": {"B": [[], []]}, "reliability": []}
        difference = {**estimate, "p_value": None}
        comparisons = {"visual": {"network": facts.readings[0].best_of("visual"), "difference": difference}}
        nothing = {"networks": networks, "difference": difference, "comparisons": comparisons}
        page = read_page(reread(facts, **nothing, random=None, shuffled=None))
        assert estimate["sentence"].rstrip(".") in page.section("summary").text
        assert estimate["sentence"] in page.section("controls").text
        assert "None" not in page.text
        assert "nan" not in page.text.lower().replace("finance", "")
        assert "no curve, because the test clips are not of both classes" in page.section("roc").text


def test_metrics_of_an_earlier_version_are_refused(
    changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed(lambda content: content.pop("version"))
    assert main([str(run)]) == 2
    said = capsys.readouterr().err
    assert "metrics.json has version 1, but this program reads 2" in said
    assert f"run 'stgs evaluate {run}' again" in said


def test_files_beside_the_page_hold_what_metrics_hold(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(complete), "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    folder = complete / "report" / "tables"
    assert sorted(payload["tables"]) == sorted(str(file) for file in folder.iterdir())
    content = json.loads((complete / "evaluation/planted/metrics.json").read_text())
    scores = boxes.read_table(str(complete / "evaluation/planted/scores.parquet"))
    table = pd.read_parquet(folder / "networks.parquet").set_index("network")
    assert set(table.index) == set(content["networks"])
    for name, network in content["networks"].items():
        assert table.loc[name, "auc"] == pytest.approx(
            roc_auc_score(scores["label"].to_numpy(), scores[name].to_numpy()), abs=1e-12
        )
        for measure in ("auc", "accuracy", "equal_error_rate", "calibration_error", "balanced_accuracy"):
            estimate = network[measure]
            for key, part in ((measure, "value"), (f"{measure}_low", "low"), (f"{measure}_high", "high")):
                assert table.loc[name, key] == estimate[part]
    roles = table["role"].dropna()
    assert roles[content["found"]] == "found network"
    assert roles[content["best_single_sense"]] == "best single sense"
    assert set(pd.read_parquet(folder / "controls.parquet")["arm"]) == {"grid", *CONTROLS}
    compared = pd.read_parquet(folder / "comparisons.parquet").set_index("arm")
    for arm, row in content["comparisons"].items():
        assert compared.loc[arm, "difference"] == row["difference"]["value"]
        assert compared.loc[arm, "p_value"] == row["difference"]["p_value"]
    for file in folder.glob("*.parquet"):
        told, read = pd.read_parquet(file), pd.read_csv(file.with_suffix(".csv"))
        assert list(told.columns) == list(read.columns)
        for column in told.select_dtypes("number"):
            np.testing.assert_array_equal(told[column], read[column])


def test_the_page_shows_the_values_that_are_sorted_by_and_written(facts: RunFacts, tmp_path: Path) -> None:
    columns = (
        Column(key="name", head="name", text=True),
        Column(key="auc", head="AUC"),
        Column(key="count", head="count", show=lambda value: f"{value:,}"),
        Column(key="hidden"),
    )
    rows = [
        {"name": "=1+cmd|' /C calc'!A0", "auc": ESTIMATE, "count": 12345, "hidden": [1, 2]},
        {"name": f'{EVIL}, "quoted"\nnew line', "auc": NO_INTERVAL, "count": None},
        {"name": None, "auc": NOTHING, "count": 7, "hidden": None},
    ]
    data = DataTable("odd", columns, rows)
    shown = Page(f"<body>{data.html()}</body>")
    values = [given["data-value"] for name, given in shown.tags if name == "td" and "data-value" in given]
    assert values == ["0.9123", "12345.0", "0.75", "", "", "7.0"]
    assert "0.912 [0.800, 0.950]" in shown.text
    assert NO_INTERVAL["sentence"] in shown.text
    assert EVIL in shown.text
    assert shown.count_tags("script") == shown.count_tags("img") == 0
    (tmp_path / "old.csv").write_text("of an earlier report")
    written = write_tables(str(tmp_path), [data, DataTable("empty", columns, [])])
    assert sorted(written) == sorted(str(file) for file in tmp_path.iterdir())
    for ending, guard in (("csv", "'"), ("parquet", "")):
        read = pd.read_csv(tmp_path / "odd.csv") if ending == "csv" else pd.read_parquet(tmp_path / "odd.parquet")
        assert list(read.columns) == ["name", "auc", "auc_low", "auc_high", "auc_sentence", "count", "hidden"]
        names = [f"{guard}{rows[0]['name']}", rows[1]["name"]]
        assert list(read["name"][:2]) == names, "a spreadsheet runs no formula that came from data"
        np.testing.assert_array_equal(read["auc"], [0.9123, 0.75, np.nan])
        assert list(read["auc_sentence"][1:]) == [NO_INTERVAL["sentence"], NOTHING["sentence"]]


def test_table_2_holds_our_rows_and_the_papers(facts: RunFacts) -> None:
    reading = facts.readings[0]
    rows = table_2(facts).rows
    ours = {row["method"]: row for row in rows if row["source"] == "this run"}
    paper = {row["method"]: row for row in rows if row["source"] == "paper"}
    assert list(ours) == ["found network", "visual only", "audio only", "BM-NAS softmax", "concat + linear"]
    found = reading.networks[reading.found]
    assert ours["found network"]["auc"] == pytest.approx(100 * found["auc"]["value"])
    assert ours["found network"]["parameters"] == found["parameters"]
    assert ours["found network"]["device_days"] == pytest.approx(facts.main.device_seconds / 86400)
    assert ours["found network"]["gpu_days"] is None, "it ran on a CPU"
    assert (paper["STGS-BMNAS"]["auc"], paper["STGS-BMNAS"]["accuracy"], paper["STGS-BMNAS"]["gpu_days"]) == (
        94.4,
        95.5,
        2,
    )
    assert (paper["BM-NAS"]["parameters"], paper["ID-Reveal"]["parameters"]) == (620_000, 7_300_000)
    words = read_page(facts).section("paper").text
    assert "Table 2, on other data" in words
    two = [replace(reading, dataset=name) for name in ("FakeAVCeleb", "SWAN-DF")]
    assert "Table 2, on the same data sets, other splits" in read_page(replace(facts, readings=two)).text


def test_robustness_is_drawn_or_its_command_is_named(facts: RunFacts) -> None:
    assert (
        f"Nothing was measured: 'stgs evaluate {facts.uri} --robustness'" in read_page(facts).section("robustness").text
    )
    page = read_page(reread(facts, robustness=robustness())).section("robustness")
    assert page.count("g", "dot") == 2, "what has no AUC has no dot"
    (chart,) = page.charts
    assert chart.startswith("blur, 43 clips refused over px")
    assert "2 px: AUC 0.812 [0.800, 0.950], 37 clips scored, 3 refused" in page.text
    assert NOTHING["sentence"] in page.text
    assert "the mean stands for it" in page.text
    evaluate = next(
        line for line in commands(reread(facts, robustness=robustness())) if line.startswith("stgs evaluate")
    )
    again = parsed(evaluate, EvaluateJobConfig).damaged
    assert (again.robustness, again.robustness_damages, again.robustness_clips) == (True, ("blur",), 40)


def test_rank_correlation_and_latency_are_told_or_what_they_need(facts: RunFacts) -> None:
    page = read_page(facts)
    assert "it needs the dev AUC of at least 16 random genotypes" in page.section("controls").text
    assert f"Nothing was timed: 'stgs evaluate {facts.uri}' does." in page.section("cost").text
    pairs = [[0.5 + index / 100, 0.6 + index / 50, f"random/random-{index}"] for index in range(16)]
    told = {"spearman": 0.8123, "kendall": 0.7123, "low": 0.5, "high": 0.9, "sentence": None}
    untold = dict.fromkeys(told) | {"sentence": "3 genotypes have both scores."}
    ids = [row["id"] for row in facts.main.rows]
    points = [
        {"id": ids[0], "count": 16, **told, "pairs": pairs},
        {"id": ids[1], "count": 3, **untold, "pairs": pairs[:3]},
    ]
    ranks = {"points": points, "mean": {"spearman": 0.8123, "kendall": 0.7123, "points": 1}}
    row = {"network": facts.readings[0].found, "part": "fusion", "batch": 32, "threads": 1}
    latency = {"device": "a CPU", "rows": [{**row, "milliseconds_per_clip": 0.4567, "low": 0.4, "high": 0.6}]}
    page = read_page(replace(facts, rank_correlation=ranks, latency=latency))
    words = page.section("controls").text
    assert "Mean over 1 point: Spearman 0.812, Kendall 0.712." in words
    assert "0.812 [0.500, 0.900]" in words
    assert "3 genotypes have both scores." in words
    assert "random/random-3: 0.530 in the supernet, 0.660 alone" in words
    assert "0.457" in page.section("cost").text


def test_curves_by_category_and_the_reliability_are_those_of_the_found_network(facts: RunFacts) -> None:
    page, reading = read_page(facts), facts.readings[0]
    found = reading.networks[reading.found]
    for category in "BCD":
        auc = found["auc_by_category"][category]
        line = f"A against {category}: AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
        assert line in page.section("roc").text
    bins = [row for row in found["reliability"] if row["count"]]
    drawn = page.section("scores")
    for row in bins:
        assert f"mean {row['mean_score']:.3f}, share of fakes {row['fake_share']:.3f}" in drawn.text
    assert f"Calibration error {found['calibration_error']['value']:.3f}" in drawn.text
    chart = next(label for label in page.section("pareto").charts if label.startswith("AUC on test over parameters"))
    for name, network in reading.networks.items():
        assert (f"{name}: AUC" in chart) == (network["arm"] != "shuffled")
    assert f"found network: {reading.found}: AUC" in chart


def test_most_wrong_clips_are_shown_with_their_pictures(facts: RunFacts, tmp_path: Path) -> None:
    corpus, _ = make_corpus(tmp_path)
    meta = boxes.read_meta(corpus, boxes.CORPUS)
    features = str(tmp_path / "features")
    name = boxes.shard_name(0)
    parts = {"counts": {"clips": 0}, "versions": {}, "files": {name: storage.write(f"{features}/{name}", b"nothing")}}
    made = boxes.Meta(kind=boxes.FEATURES, config={}, parent=meta.digest, **parts)
    boxes.write_meta(features, made)
    config, hints = {"features_digest": made.digest}, {"features": features}
    clips = [("clip-00-01", 1), ("clip-02-00", 0), (EVIL, 1)]
    who = {"category": "B", "dataset": "noise", "subject": "subject-0", "method": "noise"}
    wrong = [{"clip_id": clip, "label": label, "score": 0.3712, **who} for clip, label in clips]
    pictures, sentence = wrong_pictures(config, hints, [{"wrong": wrong}], corpus)
    assert set(pictures) == {"clip-00-01", "clip-02-00"}
    assert sentence == f"{corpus} has no row for 1 of these clips."
    page = read_page(replace(reread(facts, wrong=wrong), pictures=pictures, no_pictures=sentence)).section("wrong")
    images = [given for tag, given in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(str(given["src"]).startswith("data:image/jpeg;base64,") for given in images)
    assert "fake (B), called real: P(fake) 0.371 ; clip-00-01" in page.text
    assert EVIL in page.text
    assert 12 * len(page.source) / 2 < 3_000_000, "noise is the worst that a JPEG can be of"
    assert "give it as --corpus" in str(wrong_pictures(config, hints, [{"wrong": wrong}], None)[1])
    assert "were made from the corpus" in str(
        wrong_pictures({"features_digest": made.digest}, hints, [{"wrong": wrong}], _other_corpus(tmp_path))[1]
    )
    assert "no longer at" in str(wrong_pictures(config, {"features": "/nowhere"}, [{"wrong": wrong}], corpus)[1])
    trained = {"finetune": {}, "features_digest": meta.digest}
    assert wrong_pictures(trained, {"features": corpus}, [{"wrong": wrong}], None)[0] == pictures
    with pytest.raises(InputError, match="is no 'corpus' box"):
        wrong_pictures(config, hints, [{"wrong": wrong}], str(tmp_path / "none"))
    assert wrong_pictures(config, hints, [{"wrong": []}], corpus) == ({}, None)


def _other_corpus(folder: Path) -> str:
    return make_corpus(folder / "other", shards=1)[0]


def test_names_in_the_new_sections_are_text(facts: RunFacts) -> None:
    networks = copy.deepcopy(facts.readings[0].networks)
    for network in networks.values():
        network["auc_by_method"] = {EVIL: ESTIMATE}
    who = {"category": EVIL, "dataset": EVIL, "subject": EVIL, "method": EVIL}
    wrong = [{"clip_id": EVIL, "label": 1, "score": 0.1, **who}]
    changed = reread(facts, networks=networks, wrong=wrong, robustness=robustness(EVIL, EVIL))
    row = {
        "network": EVIL,
        "part": EVIL,
        "batch": 1,
        "threads": 1,
        "milliseconds_per_clip": 1.0,
        "low": 1.0,
        "high": 1.0,
    }
    point = {"id": EVIL, "count": 16, "spearman": 0.1, "kendall": 0.1, "low": 0.0, "high": 0.2, "sentence": None}
    ranks = {
        "points": [{**point, "pairs": [[0.5, 0.6, EVIL]]}],
        "mean": {"spearman": 0.1, "kendall": 0.1, "points": 1},
    }
    pictures = {EVIL: (b"frames", b"sound")}
    latency = {"device": EVIL, "rows": [row]}
    page = Page(
        report_page(replace(changed, pictures=pictures, no_pictures=EVIL, latency=latency, rank_correlation=ranks))
    )
    assert page.count_tags("script") == 1
    assert page.count_tags("img") == 2
    assert not any(key.startswith("on") for _, given in page.tags for key in given)
    for anchor in ("scores", "controls", "robustness", "wrong", "cost"):
        assert EVIL in page.section(anchor).text, anchor
