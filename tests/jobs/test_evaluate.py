"""`stgs evaluate`: what it prints of a run, of a run's parts, and of one network; what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from cluster.evaluation import network_uris
from cluster.features import FeatureSource, open_features
from cluster.gathering import read_grid
from cluster.protocol_splits import ProtocolConfig, parts_of, protocol_settings
from cluster.protocols import resplit
from cluster.runs import open_run
from cluster.shards import progress_bar
from jobs import evaluate
from jobs.cli import PARTLY, WRONG_USE
from jobs.evaluate_text import cost_line, estimate_text, latency_line
from tests.cluster.evaluated_runs import make_run
from tests.planted import make_features

FEW = {"train": 8, "dev": 6, "test": 6}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> str:
    return make_run(tmp_path_factory.mktemp("run"), source)


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert evaluate.main(list(words)) == 0
    return capsys.readouterr().out


def test_a_run_is_told_in_lines(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, run, "--resamples", "60")
    lines = text.splitlines()
    content = json.loads(Path(run, "evaluation/planted/metrics.json").read_text())
    found = content["networks"][content["found"]]
    assert lines[0] == "planted: 48 test clips of 12 unseen subjects"
    for start in (
        "AUC on test, temperature by num_samples:",
        "found (best on dev): grid/",
        f"  AUC {found['auc']['value']:.3f} [",
        "  average precision ",
        "  AUC against A: B ",
        "  AUC against the real clips: planted ",
        "best single sense (on dev): ",
        "found - best single sense: ",
        "concat + linear (on dev): AUC ",
        "best random genotype (on dev): AUC ",
        "random genotypes: mean AUC ",
        "shuffled labels: mean AUC ",
        "milliseconds a clip, without backbones: ",
        "cost on cpu: search 3.0 s (3.5e-05 CPU days), training of its networks ",
        "run: ",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert ", p = " in next(line for line in lines if line.startswith("found - best"))
    assert Path(run, "evaluation/latency.json").exists()

    payload = json.loads(output(capsys, run, "--json", "--no-latency", "--resamples", "60"))
    assert payload["latency"] is None
    assert payload["datasets"]["planted"] == content, "what stands is returned"
    fewer = json.loads(output(capsys, run, "--json", "--no-latency", "--resamples", "40"))
    assert fewer["datasets"]["planted"]["bootstrap"]["resamples"] == 40
    assert payload["cost"]["search_seconds"] == 3.0


def test_one_network_is_used_on_any_clips(
    run: str, source: FeatureSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = next(iter(network_uris(run).values()))
    given = ["--network", network, "--features", source.uri, "--manifest", source.manifest_uri]
    before = {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()}
    out = tmp_path / "dev.json"
    text = output(capsys, *given, "--split", "dev", "--out", str(out), "--resamples", "60")
    assert "planted: 48 clips of dev, 36 of them fake, of 12 subjects" in text
    content = json.loads(out.read_text())
    assert content["datasets"]["planted"]["network"]["auc"]["low"] is not None
    assert {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()} == before
    assert "one network" not in output(capsys, *given, "--resamples", "20")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "give either a RUN"),
        (["RUN", "--network", "file"], "give either a RUN"),
        (["--network", "file"], "--network needs --features and --manifest"),
        (["RUN", "--resamples", "0"], "resamples is 0"),
        (["RUN", "--split", "dev"], "--split and --out are for --network"),
        (["--network", "missing", "--features", "f", "--manifest", "m"], "missing is no file"),
    ],
)
def test_wrong_use_is_one_sentence(run: str, words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([run if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error
    assert "\n" not in error


def test_a_test_without_real_clips_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fakes_alone(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["split"] == "test" and row["category"] == "A":
                row["split"] = None

    source = open_features(*make_features(tmp_path, subjects=FEW, change=fakes_alone))
    text = output(capsys, make_run(tmp_path, source), "--no-latency")
    assert (
        "AUC unknown (18 clips hold 18 fake ones, but this metric needs real and fake clips; check the splits)" in text
    )
    assert "found - best single sense: unknown (" in text
    assert "shuffled labels" not in text


def test_parts_are_evaluated_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_data_sets(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["dataset"] = "east" if int(row["subject"][-1]) % 2 else "west"

    source = open_features(*make_features(tmp_path, change=two_data_sets))
    protocol = ProtocolConfig(protocol="cross")
    parts = parts_of(protocol, source.manifest)
    whole = tmp_path / "run"
    hints = {"features": source.uri, "manifest": source.manifest_uri}
    open_run(str(whole), protocol_settings(protocol, parts), resume=False, hints=hints)
    for name, split in parts.items():
        made = make_run(tmp_path / name, resplit(source, split), controls=False, split=asdict(split))
        (whole / "parts").mkdir(exist_ok=True)
        Path(made).rename(whole / "parts" / name)

    bars: list[tqdm[Any]] = []

    def recorded(*given: Any) -> tqdm[Any]:
        bars.append(progress_bar(*given))
        return bars[-1]

    monkeypatch.setattr(evaluate, "progress_bar", recorded)
    words = [str(whole), "--no-latency", "--resamples", "40"]
    stored = {name: whole / "parts" / name / "networks" for name in parts}
    aside = {name: tmp_path / f"networks-{name}" for name in parts}
    for name in parts:
        stored[name].rename(aside[name])
    assert evaluate.main(words) == WRONG_USE
    assert f"no part of {whole} has trained networks; run 'stgs train' on it first." in capsys.readouterr().err
    # The part without networks, the first one, is left out, and keeps the other from nothing.
    aside["train-west"].rename(stored["train-west"])
    assert evaluate.main(words) == PARTLY
    partly = capsys.readouterr().out
    assert f"left out: {whole}/parts/train-east has no trained networks; run 'stgs train' on it first." in partly
    assert (whole / "parts/train-west/evaluation/east/metrics.json").exists()
    assert not (whole / "parts/train-east/evaluation").exists()

    aside["train-east"].rename(stored["train-east"])
    text = output(capsys, *words)
    assert [(bar.n, bar.total) for bar in bars] == [(4, 4), (4, 4), (0, 0)], "2 networks on 2 data sets each"
    rows = read_grid(str(whole))
    assert [row["part"] for row in rows] == [name for name in parts for _ in range(2)]
    assert rows == [{"part": name, **row} for name in parts for row in read_grid(f"{whole}/parts/{name}")]
    assert all(row["test_auc_value.mixed"] is not None for row in rows)
    for name in ("train-east", "train-west"):
        assert f"part {name}:" in text
    for line in ("east: ", "west: ", "mixed: ", "cost on cpu: search 3.0 s "):
        assert text.count(f"\n{line}") == 2, line
    payload = json.loads(output(capsys, str(whole), "--no-latency", "--json"))
    assert set(payload["parts"]) == {"train-east", "train-west"}
    shown = payload["parts"]["train-east"]["datasets"]["west"]
    measured = payload["summary"]["matrix"]["cells"]["east"]
    assert measured["west"]["auc"] == shown["networks"][shown["found"]]["auc"]


@pytest.mark.parametrize(
    ("shuffled", "words"),
    [
        ({"standard_error": 0.01, "at_chance": True}, "standard error 0.010 (20 searches): at chance"),
        ({"standard_error": 0.01, "at_chance": False, "sentence": None}, "error 0.010 (20 searches): NOT at chance"),
        (
            {"standard_error": None, "at_chance": None, "sentence": "so few."},
            "0.700 (20 searches): no verdict (so few)",
        ),
    ],
)
def test_words_of_chance(run: str, shuffled: dict[str, Any], words: str) -> None:
    content = json.loads(Path(run, "evaluation/planted/metrics.json").read_text())
    told = evaluate.summary(content | {"shuffled": {"count": 20, "mean": 0.7, **shuffled}})
    assert next(line for line in told.splitlines() if line.startswith("shuffled")).endswith(words)


def test_words_of_networks_that_were_fitted_on_dev(run: str) -> None:
    content = json.loads(Path(run, "evaluation/planted/metrics.json").read_text())
    found = content["networks"][content["found"]]
    found |= {"fitted_on": ["train", "dev"], "search_dev_auc": 0.7}
    told = evaluate.summary(content)
    assert "\nfound (chosen by the supernet's AUC on dev, for the networks were fitted on dev): grid/" in told
    assert " at threshold 0.5\n" in told
    found["search_dev_auc"] = None
    assert "\nfound (best on dev, on which it was fitted): grid/" in evaluate.summary(content)
    assert "--repeats" not in told
    found["repeat"] = 1
    assert "--repeats" in evaluate.summary(content)


def test_words_of_estimates() -> None:
    whole = {"value": 0.5, "low": 0.4, "high": 0.6, "sentence": None}
    assert estimate_text(whole) == "0.500 [0.400, 0.600]"
    assert estimate_text({**whole, "low": None, "high": None, "sentence": "why."}) == "0.500 (no interval: why)"
    row = {"part": "all", "batch": 32, "clips": 4, "threads": 2, "milliseconds_per_clip": 12.34}
    told = latency_line({"device": "chip", "rows": [{**row, "part": "fusion"}, row]})
    assert told == "milliseconds a clip, with its backbones: 12.3 (batch 32 timed on 4, 2 cores); chip"
    alone = latency_line({"device": "chip", "rows": [{**row, "part": "fusion"}], "sentence": "timed alone: why."})
    assert (
        alone == "milliseconds a clip, without backbones: 12.3 (batch 32 timed on 4, 2 cores); chip (timed alone: why)"
    )
    cost = {"device": "cuda", "search_seconds": 86_400.0, "device_days": 1.0}
    spent = cost_line({**cost, "training_seconds": 2.0, "control_seconds": 3.0})
    assert spent == "cost on cuda: search 86,400.0 s (1 GPU days), training of its networks 2.0 s, controls 3.0 s"
    none = {**cost, "search_seconds": None, "device_days": None, "training_seconds": 2.0, "control_seconds": 3.0}
    assert cost_line(none).startswith("cost on cuda: search none, ")
