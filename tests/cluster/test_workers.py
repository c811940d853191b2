"""Several Ray Train workers share a search: on cached features, and with the backbones in the loop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.attempts import read_result
from cluster.features import FeatureSource, open_features
from cluster.finetune import backbone_uri
from cluster.grid import pack_job, plan_packs, run_single
from cluster.packing import add_packs
from cluster.runs import read_config
from cluster.search_loop import search_pack
from cluster.settings import GridConfig, SearchSettings
from data_prep import boxes, storage
from data_prep.storage import InputError
from jobs import cli
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.config import SearchConfig
from tests.planted import make_features
from tests.tiny_corpus import corpus_source

SETTINGS = SearchSettings(channels=8, device="cpu", search=SearchConfig(epochs=2, batch_size=32))
POINT = GridConfig(temperatures=(10.0,), num_samples=(5,), pack=1, settings=SETTINGS)


def curves(run: Path, point_id: str) -> list[dict[str, Any]]:
    result = read_result(str(run), point_id)
    assert result is not None
    return boxes.read_table(storage.join(str(run), result["curves"]["path"])).to_pylist()


def search_alone(run: Path, source: FeatureSource) -> None:
    """The same search in this process, without Ray."""
    settings = POINT.settings
    (pack,) = add_packs(str(run), [], plan_packs(POINT, settings, source))
    splits = source.load_splits(("train", "dev"))
    job = pack_job(str(run), settings, source, pack)
    search_pack(job, pack, splits["train"], splits["dev"], lambda row: None)


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_two_workers_search_as_one(ray_session: None, tmp_path: Path) -> None:
    source = open_features(*make_features(tmp_path / "planted"))
    torch.set_num_threads(1)
    search_alone(tmp_path / "one", source)
    result = run_single(str(tmp_path / "two"), POINT, source, workers=2, resume=False, progress=False)
    assert result.failed == {}
    (point,) = POINT.points()
    one, two = (read_result(str(tmp_path / name), point.id) for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one["genotype"] == two["genotype"]
    attempts = list((tmp_path / "two" / "packs" / "pack-0000" / "attempts").iterdir())
    assert [path.name for path in attempts] == ["0"], "one of the workers writes for all"
    for ours, theirs in zip(curves(tmp_path / "two", point.id), curves(tmp_path / "one", point.id), strict=True):
        for name in ("train_loss", "architecture_loss", "dev_loss", "entropy_gamma"):
            # Sums of float32 in another order, carried through a dozen updates.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name

    with pytest.raises(InputError, match="a search needs 3 CPU, but the cluster has 2"):
        run_single(str(tmp_path / "three"), POINT, source, workers=3, resume=False)
    with pytest.raises(InputError, match="each of 40 workers needs one"):
        run_single(str(tmp_path / "forty"), POINT, source, workers=40, resume=False)
    with pytest.raises(InputError, match="a search has one point, but these settings have 2"):
        run_single(str(tmp_path / "points"), replace(POINT, seeds=(0, 1)), source, resume=False)
    assert not any((tmp_path / name).exists() for name in ("three", "forty", "points")), "refused before it is begun"


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_backbones_are_trained_by_two_workers(ray_session: None, tmp_path: Path) -> None:
    source = corpus_source(tmp_path, shards=2, backbone_learning_rate=1e-3)
    short = replace(POINT, settings=replace(SETTINGS, search=SearchConfig(epochs=1, batch_size=8)))
    run = tmp_path / "run"
    result = run_single(str(run), short, source, workers=2, resume=False, progress=False)
    assert result.failed == {}
    (point,) = short.points()
    (row,) = curves(run, point.id)
    assert 0.0 <= row["dev_auc"] <= 1.0
    assert list(json.loads(result.rows[0]["genotype"])["features"]) == list(source.features)
    assert read_config(str(run))["backbones"]["visual"] == "resnet18"

    start = FeatureExtractor(source.job.backbones)
    files = {f"{sense}_weights": backbone_uri(str(run), sense) for sense in ("visual", "audio")}
    trained = FeatureExtractor(BackboneConfig(visual="resnet18", audio="resnet18", **files))
    moved = {name: not torch.equal(p, dict(start.named_parameters())[name]) for name, p in trained.named_parameters()}
    assert all(moved.values()), [name for name, changed in moved.items() if not changed]


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_an_elastic_search_starts_with_what_is_there_and_stops_orderly(tmp_path: Path, repository: Path) -> None:
    features, manifest = make_features(tmp_path / "planted")
    run = tmp_path / "run"
    words = "--workers 1:2 --resize-seconds 1 --num-cpus 1 --channels 8 --epochs 2000 --batch-size 32"
    command = [sys.executable, "-m", "jobs.search", features, "--manifest", manifest, "--out", str(run), *words.split()]
    log = tmp_path / "log"
    with log.open("wb") as output:
        search = subprocess.Popen(command, cwd=repository, stdout=output, stderr=output, start_new_session=True)
        try:
            deadline = time.monotonic() + 100
            while not list(run.glob("packs/*/attempts/0/state-*.pt")):
                assert search.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    search.wait(timeout=0.1)
            search.send_signal(signal.SIGINT)
            assert search.wait(timeout=40) == cli.STOPPED
        finally:
            search.kill()
            search.wait()
    assert "stopped early: SIGINT; 0 of 1 points have a result, go on with --resume." in log.read_text()
    (attempt,) = run.glob("packs/*/attempts/*")
    beat = json.loads((attempt / "heartbeat.json").read_text())
    assert (beat["ended"], beat["world"]) == ("stopped", 1)
    assert (attempt / f"state-{beat['update']}.pt").exists()


def kill_the_first_worker(run: Path, stop: threading.Event) -> None:
    """Kill the worker that writes for all, once an epoch is over."""
    beat = run / "packs" / "pack-0000" / "attempts" / "0" / "heartbeat.json"
    while not stop.wait(0.05):
        if beat.exists():
            os.kill(json.loads(beat.read_text())["pid"], signal.SIGKILL)
            return


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(500)
def test_a_killed_worker_costs_no_bits(ray_session: None, tmp_path: Path) -> None:
    source = corpus_source(tmp_path, shards=2)
    config = replace(POINT, settings=replace(SETTINGS, search=SearchConfig(epochs=3, batch_size=8)))
    (point,) = config.points()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_single(str(whole), config, source, workers=2, resume=False, progress=False).failed == {}
    stop = threading.Event()
    killer = threading.Thread(target=kill_the_first_worker, args=(killed, stop))
    killer.start()
    try:
        assert run_single(str(killed), config, source, workers=2, resume=False, progress=False).failed == {}
    finally:
        stop.set()
        killer.join()
    attempts = killed / "packs" / "pack-0000" / "attempts"
    assert sorted(path.name for path in attempts.iterdir()) == ["0", "1"]
    assert curves(killed, point.id) == curves(whole, point.id)
    for sense in ("visual", "audio"):
        ours, theirs = (torch.load(backbone_uri(str(run), sense)) for run in (killed, whole))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
