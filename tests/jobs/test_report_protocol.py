"""The report of runs that are not one search: parts of a protocol, and genotypes that were given."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster import found_loop
from cluster.evaluation import evaluate_run
from cluster.features import FeatureSource, open_features
from cluster.genotype_runs import begin_genotype_run, genotype_jobs
from cluster.protocol_runs import open_protocol
from cluster.protocol_splits import ProtocolConfig
from cluster.runs import open_run, read_config
from cluster.settings import GridConfig
from jobs.report import main
from jobs.report_facts import read_run
from jobs.report_settings import commands
from jobs.search import SearchJobConfig
from jobs.train import TrainJobConfig
from stgs.genotype import genotype_from_json
from tests.jobs.reports import FOUND, SETTINGS, Page, parsed, read_page, search, train
from tests.planted import make_features

POINT = GridConfig(temperatures=(10.0,), num_samples=(2,), settings=SETTINGS)


def two_datasets(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["dataset"] = "FakeAVCeleb" if int(row["subject"][-1]) % 2 else "SWAN-DF"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted"), change=two_datasets))


def searched(run: Path, source: FeatureSource, protocol: str) -> dict[str, Any]:
    """A run of a protocol whose parts are searched, trained and evaluated in this process; data of their metrics."""
    opened = open_protocol(str(run), ProtocolConfig(protocol=protocol, split_seed=3), source)  # type: ignore[arg-type]
    hints = {"features": source.uri, "manifest": source.manifest_uri}
    digests = {"features_digest": source.meta.digest, "manifest_digest": source.manifest.meta.digest}
    config = {**asdict(POINT), **digests, "split_digest": source.split_digest(), **opened.source.protocol}
    open_run(str(run), config, resume=False, hints=hints)
    found = {}
    for uri, clips in opened.sources.items():
        search(uri, POINT, clips)
        train(uri, POINT, clips, controls=False)
        found[uri.rsplit("/", 1)[-1]] = evaluate_run(uri, clips, resamples=20)
    return found


def written(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Page, dict[str, Any]]:
    assert main([str(run), "--json"]) == 0
    payload: dict[str, Any] = json.loads(capsys.readouterr().out)
    return Page((run / "report" / "report.html").read_text()), payload


def test_folds_are_summed_up_by_mean_and_deviation(
    tmp_path: Path, source: FeatureSource, capsys: pytest.CaptureFixture[str]
) -> None:
    found = searched(tmp_path / "run", source, "folds")
    page, payload = written(tmp_path / "run", capsys)
    assert payload["parts"] == list(found) == [f"fold-{fold}" for fold in range(5)]
    aucs = []
    for part, results in found.items():
        network = results["mixed"]["networks"][results["mixed"]["found"]]
        auc = network["auc"]
        aucs.append(auc["value"])
        assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in page.section("parts").text
        assert f"Its own page: stgs report {tmp_path}/run/parts/{part}" in page.section("found").text
    told = f"mixed: mean AUC {statistics.fmean(aucs):.3f} ± {statistics.stdev(aucs):.3f} (5 of 5 parts)"
    assert told in page.section("summary").text
    assert sum(name == "svg" for name, _ in page.tags) == 5
    over = pd.read_parquet(tmp_path / "run/report/tables/over_parts.parquet").set_index(["dataset", "measure"])
    assert over.loc[("mixed", "auc"), "mean"] == pytest.approx(statistics.fmean(aucs))
    tables = tmp_path / "run/report/tables"
    categories = pd.read_parquet(tables / "by_category.parquet").set_index(["part", "dataset"])
    methods = pd.read_parquet(tables / "by_method.parquet").set_index(["part", "dataset", "method"])
    network = found["fold-2"]["mixed"]["networks"][found["fold-2"]["mixed"]["found"]]
    for name, auc in network["auc_by_category"].items():
        assert categories.loc[("fold-2", "mixed"), f"auc_{name}"] == auc["value"]
        assert f"{auc['value']:.3f} [" in page.section("parts").text
        assert ("mixed", f"auc_{name}") in over.index
        assert f"AUC, A / {name}" in page.section("parts").text
    for name, auc in network["auc_by_method"].items():
        assert methods.loc[("fold-2", "mixed", name), "auc"] == auc["value"]
        assert ("mixed", f"AUC, {name}") in over.index
    assert set(network["auc_by_category"]) == set("BCD")
    part = read_page(tmp_path / "run/parts/fold-3")
    assert "The found network" in part.text
    lines = commands(read_run(str(tmp_path / "run/parts/fold-3")))
    again = parsed(lines[0], SearchJobConfig)
    assert (again.protocol, again.out) == (ProtocolConfig(protocol="folds", split_seed=3), str(tmp_path / "run"))
    assert (again.num_samples, again.seed) == (2, 0), "the seed of the search is not that of the split"
    assert parsed(lines[1], TrainJobConfig).run == str(tmp_path / "run")


def test_cross_stands_beside_table_4(tmp_path: Path, source: FeatureSource, capsys: pytest.CaptureFixture[str]) -> None:
    found = searched(tmp_path / "run", source, "cross")
    page, _ = written(tmp_path / "run", capsys)
    assert "The paper's Table 4, on the same data sets, other splits" in page.section("matrix").text
    table = pd.read_csv(tmp_path / "run/report/tables/table4.csv").set_index(["source", "train", "test"])
    for train_on in ("FakeAVCeleb", "SWAN-DF"):
        for test_on, result in found[f"train-{train_on}"].items():
            if test_on != "mixed":
                auc = result["networks"][result["found"]]["auc"]["value"]
                assert table.loc[("this run", train_on, test_on), "auc"] == pytest.approx(100 * auc)
                assert f"{100 * auc:.4g}" in page.section("matrix").text
    assert table.loc[("paper", "SWAN-DF", "FakeAVCeleb"), ["auc", "accuracy"]].tolist() == [84.8, 83.2]
    assert len(table) == 8


def test_parts_without_an_evaluation_say_so(
    tmp_path: Path, source: FeatureSource, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_protocol(str(tmp_path / "run"), ProtocolConfig(protocol="cross"), source)
    hints = {"features": source.uri, "manifest": source.manifest_uri}
    config = {**asdict(POINT), **opened.source.protocol}
    open_run(str(tmp_path / "run"), config, resume=False, hints=hints)
    for uri, clips in opened.sources.items():
        search(uri, POINT, clips)
    page, _ = written(tmp_path / "run", capsys)
    assert "Not known: the test clips have not been read yet." in page.text
    assert "train-SWAN-DF: it has not been evaluated" in page.section("summary").text
    assert page.section("found").text.count("no network is trained yet") == 2
    assert main([str(tmp_path / "run"), "--corpus", "x"]) == 2
    assert "--corpus is for the report of one part" in capsys.readouterr().err


def test_a_run_of_given_genotypes(tmp_path: Path, source: FeatureSource, capsys: pytest.CaptureFixture[str]) -> None:
    rows = search(str(tmp_path / "grid"), POINT, source)
    genotypes = {f"mine-{index}": genotype_from_json(rows[0]["genotype"]) for index in range(2)}
    run = tmp_path / "given"
    begin_genotype_run(str(run), genotypes, (3, 4), source, "cpu")
    splits = source.load_splits(("train", "dev"))
    for group in found_loop.waiting_groups(genotype_jobs(str(run), read_config(str(run)))):
        assert found_loop._fit(group, FOUND, found_loop.provenance(source), splits, "cpu", 1) == {}
    result = evaluate_run(str(run), source, resamples=20)["mixed"]
    page, _ = written(run, capsys)
    words = page.section("summary").text
    assert "Nothing was searched: 2 genotypes (mine-0, mine-1) were given, and trained with seeds 3, 4." in words
    assert f"{result['networks'][result['found']]['auc']['value']:.3f}" in words
    assert "Controls that are missing" not in words
    assert "without a result" not in page.text
    assert "Nothing was searched: the genotypes were given." in page.section("grid").text
    facts = read_run(str(run))
    assert sum(facts.training_seconds().values()) == pytest.approx(
        sum(network["seconds"] for network in result["networks"].values())
    )
    first, *_ = commands(facts)
    again = parsed(first, TrainJobConfig)
    assert (again.run, again.genotypes, again.seeds) == ("mine-0.json", ("mine-1.json",), (3, 4))
    assert (again.out, again.features, again.found) == (str(run), source.uri, FOUND)
    assert "1 different genotype of 4 networks" in page.section("genotypes").text
