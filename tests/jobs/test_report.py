"""The report of runs that the project's own writers make, without Ray: what it says, and that it stands alone.

Nothing here is searched or trained long enough to be good: the page must show what the files say.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster import found_loop
from cluster.attempts import Pack
from cluster.controls import CONTROLS, GRID
from cluster.features import FeatureSource, open_features
from cluster.grid import gather, read_grid
from cluster.settings import GridConfig
from data_prep import boxes, storage
from data_prep.clip import PrepareConfig
from jobs.describe import drawing
from jobs.extract import ExtractJobConfig
from jobs.grid import GridJobConfig
from jobs.prepare import PrepareJobConfig
from jobs.report import main, report_page
from jobs.report_facts import _provenance, read_run
from jobs.report_html import duration, tag
from jobs.report_paper import PAPER_TABLE_3
from jobs.report_settings import commands
from jobs.search import SearchJobConfig
from jobs.train import TrainJobConfig
from stgs.backbones import BackboneConfig
from stgs.genotype import genotype_from_json
from tests.jobs.reports import (
    FOUND,
    GRID_CONFIG,
    RANDOMS,
    SETTINGS,
    SHUFFLES,
    Page,
    complete_run,
    parsed,
    read_page,
    search,
)
from tests.planted import make_features
from tests.tiny_corpus import OPTIONS, corpus_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> Path:
    """A grid with all controls, trained and evaluated."""
    return complete_run(tmp_path_factory.mktemp("runs") / "complete", source)


@pytest.fixture
def copied(complete: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the complete run, without some of its files and folders."""

    def copy(*without: str) -> Path:
        run = tmp_path / "copy"
        shutil.copytree(complete, run)
        for path in without:
            shutil.rmtree(run / path) if (run / path).is_dir() else (run / path).unlink()
        return run

    return copy


def metrics(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "evaluation/planted/metrics.json").read_text())
    return content


def interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def test_command_writes_one_file_that_needs_no_other(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(complete), "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["report"] == str(complete / "report" / "report.html")
    assert payload["datasets"] == ["planted"]
    data = (complete / "report" / "report.html").read_bytes()
    assert len(data) == payload["bytes"]
    page = Page(data.decode())
    assert {name for name, _ in page.tags}.isdisjoint({"link", "img", "iframe", "object", "base"})
    assert page.count_tags("script") == 1, "the page's own"
    for name, given in page.tags:
        assert given.keys().isdisjoint({"src", "srcset", "data", "action"}), name
        assert not any(key.startswith("on") for key in given), name
        assert (given.get("href") or "#").startswith("#"), name
    anchors = {given["id"] for _, given in page.tags if "id" in given}
    assert {given["href"] for _, given in page.tags if "href" in given} == {f"#{anchor}" for anchor in anchors}
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.source.replace(str(complete.parents[1]), ""))
    assert main([str(complete)]) == 0
    assert (complete / "report" / "report.html").read_bytes() == data, "the same files give the same page"


def test_page_shows_the_numbers_of_the_files(complete: Path) -> None:
    page, content, rows = read_page(complete), metrics(complete), read_grid(str(complete))
    found = content["networks"][content["found"]]
    single = content["networks"][content["best_single_sense"]]
    for value in (found["auc"], single["auc"]):
        assert interval(value) in page.text
    difference = content["difference"]
    assert f"{difference['value']:+.3f} [{difference['low']:.3f}, {difference['high']:.3f}]" in page.text
    assert f"{content['shuffled']['mean']:.3f}, standard error {content['shuffled']['standard_error']:.3f}" in page.text
    random = content["random"]
    assert f"{random['mean']:.3f} on average, {random['low']:.3f} to {random['high']:.3f}" in page.text
    for row in rows:
        network = content["networks"][f"grid/{row['id']}"]
        assert interval(network["auc"]) in page.text
        for shown in (f"{row['parameters']:,}", f"{row['dev_auc']:.3f}", f"{network['dev_auc']:.3f}"):
            assert shown in page.text
    for arm in ("visual only", "audio only", "random genotypes", "shuffled labels"):
        assert arm in page.text
    for category in "BCD":
        assert interval(found["auc_by_category"][category]) in page.text
    for name in ("features_digest", "manifest_digest", "split_digest"):
        assert read_run(str(complete)).main.config[name] in page.text
    assert content["digests"]["networks"] in page.text
    for printed, parameters in PAPER_TABLE_3.values():
        assert f"{printed} %" in page.text
        assert f"{parameters:,}" in page.text


def test_summary_says_what_the_intervals_and_the_run_allow(complete: Path, copied: Callable[..., Path]) -> None:
    assert "1 seed: the map shows one draw, not a trend." in read_page(complete).text
    run = copied()
    content = metrics(run)
    content["dataset"] = "demo"
    for low, high, verdict in ((0.1, 0.3, "lies above 0"), (-0.1, 0.3, "does not exclude 0"), (-0.3, -0.1, "below 0")):
        content["difference"] = {"value": (low + high) / 2, "low": low, "high": high, "sentence": None, "p_value": 0.2}
        content["shuffled"]["at_chance"] = low > 0
        (run / "evaluation/planted/metrics.json").write_text(json.dumps(content))
        page = read_page(run)
        assert f"this paired interval over subjects {verdict}" in page.text.replace("lies below", "below")
        assert ("NOT at chance" in page.text) == (low < 0)
        assert "is drawn by a program" in page.text


def test_cost_counts_networks_that_were_trained_once_once(complete: Path) -> None:
    facts, content = read_run(str(complete)), metrics(complete)
    seconds = {}
    for network in content["networks"].values():
        point = network["point"] or {"seed": 0, "shuffle_seed": None}
        seconds[json.dumps(network["genotype"]), point["seed"], point["shuffle_seed"]] = network["seconds"]
    assert sum(facts.training_seconds().values()) == pytest.approx(sum(seconds.values()))
    searched = sum(row["device_seconds"] for row in read_grid(str(complete)))
    assert f"What it cost {duration(searched)} of device time".replace("\u00a0", " ") in read_page(complete).text


def test_cells_of_a_map_stand_at_their_temperature_and_number_of_samples(complete: Path) -> None:
    page, networks = read_page(complete), metrics(complete)["networks"]
    cells = [given["title"] for name, given in page.tags if name == "td" and "title" in given]
    ids = [point.id for point in GRID_CONFIG.points()]  # temperatures down, num_samples across
    assert cells[: len(ids)] == [f"{point}: {interval(networks[f'grid/{point}']['auc'])}" for point in ids]
    assert cells[len(ids) : 2 * len(ids)] == [f"{point}: {networks[f'grid/{point}']['dev_auc']:.3f}" for point in ids]
    assert page.section("grid").count("td", "found") == 4, "in each map of this run"


def test_equal_genotypes_are_drawn_once(copied: Callable[..., Path]) -> None:
    page, rows = read_page(run := copied()), read_grid(str(run))
    labels = [given["aria-label"] for name, given in page.tags if name == "svg" and "aria-label" in given]
    for row in rows:
        assert "\n".join(drawing(genotype_from_json(row["genotype"]))) in labels
    assert page.count("figure", "best") == 2  # the found network and the best single sense
    shutil.rmtree(run / "networks")
    shutil.rmtree(run / "evaluation")
    for row in rows:
        row["genotype"] = rows[0]["genotype"]
    storage.write(str(run / "grid.parquet"), boxes.table_bytes(pa.Table.from_pylist(rows)))
    page = read_page(run)
    assert sum("output = classifier" in (given.get("aria-label") or "") for _, given in page.tags) == 1
    assert "4 points, 1 different genotype" in page.text
    assert "From temperature 5, M 1, 3; temperature 10, M 1, 3." in page.text


@pytest.mark.parametrize("controls", [True, False])
def test_a_run_without_evaluation(copied: Callable[..., Path], controls: bool) -> None:
    run = copied("evaluation") if controls else copied("evaluation", "parts")
    page = read_page(run)
    assert "test clips have not been read yet" in page.text
    assert "on test (" not in page.text
    assert ("Controls that are missing: visual only, audio only, BM-NAS softmax, uniform" in page.text) == (
        not controls
    )
    files = (run / "networks").glob("*.safetensors")
    best = max(found_loop.network_facts(file.read_bytes())["metrics"]["dev_auc"] for file in files)
    assert f"dev AUC {best:.3f}" in page.text
    assert [line.split()[1] for line in commands(read_run(str(run)))] == ["grid", "train", "report"]


def test_a_run_without_networks_shows_its_search(copied: Callable[..., Path]) -> None:
    page = read_page(copied("evaluation", "parts", "networks"))
    assert "No network is trained yet, so this page shows the search alone." in page.text
    assert page.section("curves").count("path", "series") == page.count("path", "series") - 43  # its probabilities
    assert page.section("grid").count("table", "heat") == 2 + 2  # supernet's AUC and parameters, and the paper's


def test_a_search_of_one_point(tmp_path: Path, source: FeatureSource) -> None:
    config = GridConfig(temperatures=(10.0,), num_samples=(3,), seeds=(4,), pack=1, settings=SETTINGS)
    (row,) = search(str(tmp_path / "one"), config, source)
    page = read_page(tmp_path / "one")
    assert "One point was searched: temperature 10, 3 Gumbel samples" in page.text
    assert "one draw" in page.text
    assert f"{row['parameters']:,} parameters" in page.text
    facts = read_run(str(tmp_path / "one"))
    line = next(line for line in commands(facts) if line.startswith("stgs search"))
    again = parsed(line, SearchJobConfig)
    assert (again.temperature, again.num_samples, again.seed) == (10.0, 3, 4)
    assert again.settings == SETTINGS


def test_commands_of_a_search_that_trained_its_backbones(tmp_path: Path, source: FeatureSource) -> None:
    corpus = corpus_source(tmp_path, precision="float32", micro_batch=3)
    run = tmp_path / "one"
    search(str(run), GridConfig(temperatures=(10.0,), num_samples=(3,), pack=1, settings=SETTINGS), source)
    facts = read_run(str(run))
    main_arm = replace(facts.main, config={**facts.main.config, **corpus.run_settings()})
    hints = {"features": corpus.uri, "manifest": corpus.manifest_uri, **corpus.run_hints()}
    facts = replace(facts, arms={GRID: main_arm}, hints=hints, provenance=_provenance(hints))
    lines = commands(facts)
    assert [line.split()[1] for line in lines] == ["prepare", "search", "extract", "report"]
    prepare = parsed(lines[0], PrepareJobConfig)
    assert (prepare.out, prepare.prepare.frame_size) == (corpus.uri, 32)
    again = parsed(lines[1], SearchJobConfig)
    assert (again.finetune, again.features, again.settings) == (True, corpus.uri, SETTINGS)
    assert (again.backbones, again.training) == (OPTIONS, corpus.job.finetune)
    files = {f"{sense}_weights": str(run / "backbones" / f"{sense}.pt") for sense in ("visual", "audio")}
    for path in files.values():
        storage.write(path, b"weights are looked for, not read")
    extract = parsed(lines[2], ExtractJobConfig)
    assert (extract.corpus, extract.out) == (corpus.uri, "FEATURES")
    assert extract.backbones == replace(corpus.job.backbones, **files)
    trained = replace(facts, provenance={**facts.provenance, "backbones": asdict(extract.backbones)})
    assert commands(trained) == lines, "the features of the trained backbones were not there before the search"


def test_several_seeds_are_averaged(tmp_path: Path, source: FeatureSource) -> None:
    config = GridConfig(temperatures=(5.0, 10.0), num_samples=(1,), seeds=(0, 1, 2), settings=SETTINGS)
    rows = search(str(tmp_path / "seeds"), config, source)
    page = read_page(tmp_path / "seeds")
    assert "not a trend" not in page.text
    for temperature in config.temperatures:
        values = [row["dev_auc"] for row in rows if row["temperature"] == temperature]
        assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}, 3 seeds" in page.text


def test_points_and_curves_that_are_missing_are_named(tmp_path: Path, source: FeatureSource) -> None:
    run = str(tmp_path / "broken")
    rows = search(run, GRID_CONFIG, source)
    failed, waiting, kept, _ = (row["id"] for row in rows)
    for point in (failed, waiting):
        (tmp_path / "broken" / "points" / point / "result.json").unlink()
    (tmp_path / "broken" / "points" / failed / "failed.json").write_text('{"reason": "Traceback\\nout of memory"}')
    gather(run, [Pack("pack-0000", tuple(GRID_CONFIG.points()))], {})
    (tmp_path / "broken" / "packs/pack-0000/attempts/0/curves.parquet").unlink()
    page = read_page(tmp_path / "broken")
    assert "2 points of 4 without a result" in page.text
    assert f"{failed} failed: out of memory" in page.text
    assert f"{waiting} not searched yet" in page.text
    assert f'title="{kept}"' in page.source
    assert page.count("td", "none") == 2 * 2
    assert "The curves of 2 points are missing" in page.text
    (tmp_path / "broken" / "grid.parquet").unlink()
    assert "searched, but not gathered into grid.parquet yet" in read_page(tmp_path / "broken").text


def test_names_from_files_are_text(copied: Callable[..., Path]) -> None:
    run = copied()
    evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> & more"
    text = (run / "evaluation/planted/metrics.json").read_text()
    hostile = json.dumps(evil)[1:-1]
    text = text.replace("visual.layer2", f"visual.{hostile}").replace('"planted"', f'"{hostile}"')
    (run / "evaluation/planted/metrics.json").write_text(text)
    (run / "environment.json").write_text(json.dumps({"commit": evil, "versions": {evil: evil}, evil: evil}))
    page = read_page(run)
    assert "img" not in {name for name, _ in page.tags}
    assert page.count_tags("script") == 1
    assert not any(key.startswith("on") for _, given in page.tags for key in given)
    assert page.text.count(evil) > 5
    assert f"<b>{tag('i', evil)}</b>" == tag("b", tag("i", evil)), "what is HTML already is not escaped again"


def test_commands_repeat_the_run(complete: Path, source: FeatureSource) -> None:
    lines = commands(read_run(str(complete)))
    assert [line.split()[1] for line in lines] == ["grid", "train", "evaluate", "report"]
    grid = parsed(lines[0], GridJobConfig)
    assert (grid.features, grid.manifest, grid.out) == (source.uri, source.manifest_uri, str(complete))
    assert grid.grid == GRID_CONFIG
    train_again = parsed(lines[1], TrainJobConfig)
    assert train_again.found == FOUND
    assert (train_again.shuffles, train_again.random_genotypes) == (SHUFFLES, RANDOMS)
    assert set(train_again.controls) == set(CONTROLS)
    assert "--resamples 40" in lines[2]


def test_untrained_backbones_and_the_way_to_the_features_are_told(complete: Path) -> None:
    backbones = BackboneConfig(visual="resnet18", visual_weights="random:0", audio_weights="random:1")
    preparation = PrepareConfig(min_faces=4, faces="none")
    facts = replace(read_run(str(complete)), provenance={"backbones": asdict(backbones), "corpus": asdict(preparation)})
    page = Page(report_page(facts))
    assert "(visual: resnet18, weights random:0, audio: resnet34, weights random:1)" in page.text
    assert "The visual and audio backbones are untrained" in page.text
    prepare, extract = commands(facts)[:2]
    assert parsed(prepare, PrepareJobConfig).prepare == preparation
    assert parsed(extract, ExtractJobConfig).backbones == backbones


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is no run: it has no config.yaml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
