"""What a dry run says, and that it is what a search would do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import devices
from cluster import dry_run as module
from cluster.dry_run import dry_run
from cluster.features import FeatureSource, open_features
from cluster.finetune import CorpusSource, FinetuneJob
from cluster.placement import place_packs
from cluster.settings import GridConfig, SearchSettings
from data_prep.storage import InputError
from stgs.backbone_trainer import FinetuneConfig
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.config import SearchConfig
from stgs.forecast import UpdateSeconds, forecast_search
from tests.planted import make_features

SETTINGS = SearchSettings(channels=4, device="cpu", search=SearchConfig(epochs=3, batch_size=48))
GRID = GridConfig(temperatures=(5.0, 10.0), num_samples=(1, 3), pack=3, devices=2, settings=SETTINGS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


def faked(monkeypatch: pytest.MonkeyPatch, *, memory: int | None) -> None:
    """A cluster of one CPU, on which a weight update takes 1 s and an architecture update 2 s."""
    monkeypatch.setattr(module, "chosen_device", lambda wanted: "cpu")
    monkeypatch.setattr(module, "require_processes", lambda kind, threads, count: None)
    monkeypatch.setattr(module, "device_memory", lambda kind, threads: memory)
    monkeypatch.setattr(module, "_on_a_device", lambda *arguments: UpdateSeconds(1.0, 2.0))
    monkeypatch.setattr(module, "free_resources", lambda: {"10.0.0.1": {"CPU": 1.0}})
    monkeypatch.setattr(module, "startable_types", lambda process: ["large", "small"])


def test_packs_memory_and_time_add_up(monkeypatch: pytest.MonkeyPatch, source: FeatureSource) -> None:
    faked(monkeypatch, memory=10**9)
    found = dry_run(GRID, source).payload
    splits = [row["split"] for row in source.manifest.rows]
    clips = {"train_clips": splits.count("train"), "dev_clips": splits.count("dev")}
    assert [pack["points"] for pack in found["packs"]] == [3, 1]
    expected = forecast_search(SETTINGS.space(source), SETTINGS.search, members=3, **clips)
    # What a process keeps from its first forecast on is some hundred bytes.
    assert found["packs"][0]["device_bytes"] == pytest.approx(expected.device_bytes, rel=0.01)
    updates = [-(-count // 48) for count in clips.values()]
    epoch = updates[0] * 1.0 + updates[1] * 2.0
    assert [pack["epoch_seconds"] for pack in found["packs"]] == pytest.approx([epoch, epoch / 3])
    # Two devices side by side: the larger pack is the last to end.
    assert (found["seconds"], found["device_seconds"]) == pytest.approx((3 * epoch, 4 * epoch))
    one = dry_run(replace(GRID, devices=1), source).payload
    assert one["seconds"] == pytest.approx(4 * epoch)


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch, source: FeatureSource) -> None:
    faked(monkeypatch, memory=10**9)
    found = dry_run(GRID, source)
    assert "NOT FIT" not in found.text
    assert "available: 1.00 GB a device, of which 600.0 MB are planned with" in found.text
    small = {**found.payload, "available_bytes": 10**5, "usable_bytes": 6 * 10**4}
    lines = [line for line in module._text(small, trained=False).splitlines() if "THIS DOES NOT FIT" in line]
    assert [line.partition("give a smaller ")[2] for line in lines] == [
        "--pack",
        "--batch-size, or with 'stgs search' more --workers",
    ]
    assert "smaller --micro-batch or --batch-size" in module._text(small, trained=True)
    unknown = {**found.payload, "available_bytes": None, "usable_bytes": None}
    assert "no device is there to be asked" in module._text(unknown, trained=False)


def test_what_finds_no_room_is_refused(monkeypatch: pytest.MonkeyPatch, source: FeatureSource) -> None:
    monkeypatch.setattr(devices, "_most", lambda resource, size: 2 // size if resource == "CPU" else 0)
    threads = replace(GRID, settings=replace(SETTINGS, threads=3))
    with pytest.raises(InputError, match="a search needs 3 CPU, but the cluster has 2; ask for fewer threads"):
        dry_run(threads, source)
    with pytest.raises(InputError, match="needs 3 CPU, but the cluster has 2; ask for fewer workers or threads"):
        dry_run(GRID, source, workers=3)


def test_workers_share_a_batch(monkeypatch: pytest.MonkeyPatch, source: FeatureSource) -> None:
    faked(monkeypatch, memory=None)
    config = replace(GRID, temperatures=(5.0,), num_samples=(1,), devices=4)
    alone, shared = (dry_run(config, source, workers=workers).payload for workers in (1, 4))
    assert shared["packs"][0]["update_bytes"] < alone["packs"][0]["update_bytes"]
    assert shared["packs"][0]["clip_bytes"] == alone["packs"][0]["clip_bytes"]
    assert shared["device_seconds"] == pytest.approx(4 * alone["device_seconds"])


def test_packs_are_placed_on_what_is_free(monkeypatch: pytest.MonkeyPatch, source: FeatureSource) -> None:
    free = {"10.0.0.1": {"CPU": 3.0}, "10.0.0.2": {"CPU": 64.0, "GPU": 2.0}}
    alone = place_packs(4, free, {"GPU": 1, "CPU": 1})
    assert [place.nodes for place in alone] == [("10.0.0.2",), ("10.0.0.2",), (), ()]
    shared = place_packs(3, {**free, "10.0.0.2": {"CPU": 2.0}}, {"CPU": 1}, workers=2)
    assert [place.nodes for place in shared] == [("10.0.0.1",) * 2, ("10.0.0.1", "10.0.0.2"), ()]
    faked(monkeypatch, memory=10**9)
    found = dry_run(GRID, source)
    assert [pack["nodes"] for pack in found.payload["packs"]] == [["10.0.0.1"], []]
    assert found.payload["device_hours"] == found.payload["device_seconds"] / 3600
    assert "pack-0000: starts on 10.0.0.1\n  pack-0001: waits for a node of type large or small\n" in found.text
    monkeypatch.setattr(module, "startable_types", lambda process: [])
    monkeypatch.setattr(module, "free_resources", lambda: {"10.0.0.1": {"CPU": 8.0}})
    text = dry_run(replace(GRID, temperatures=(5.0,), num_samples=(1,)), source, workers=4).text
    assert "pack-0000: starts on 10.0.0.1 (4 workers)" in text
    assert "waits until another pack has ended" in dry_run(GRID, source, workers=8).text


class Corpus(CorpusSource):
    """A corpus whose clips nobody reads."""

    def largest_share(self, config: SearchConfig, workers: int) -> int:
        return -(-config.batch_size // workers)


def test_backbones_in_the_loop_are_counted(monkeypatch: pytest.MonkeyPatch, source: FeatureSource) -> None:
    faked(monkeypatch, memory=10**9)
    weights = {"visual_weights": "random:0", "audio_weights": "random:1"}
    backbones = BackboneConfig(visual="resnet18", audio="resnet18", length=2, **weights)
    job = FinetuneJob("corpus", {}, {}, backbones, FinetuneConfig(micro_batch=4))
    meta = replace(source.meta, config={"frame_size": 32, "spectrogram_frames": 32})
    corpus = Corpus(source.uri, meta, source.manifest_uri, source.manifest, job)
    settings = replace(SETTINGS, search=SearchConfig(epochs=1, batch_size=4))
    config = replace(GRID, temperatures=(5.0,), num_samples=(1,), pack=1, settings=settings)
    (pack,) = dry_run(config, corpus, workers=2).payload["packs"]
    # Weights and two moments in float32.
    parameters = sum(p.numel() for p in FeatureExtractor(backbones).parameters())
    assert pack["state_bytes"] > 12 * parameters
    assert pack["clip_bytes"] < 1000, "labels alone"


@pytest.mark.ray
def test_a_dry_run_measures_and_writes_nothing(ray_session: None, source: FeatureSource, tmp_path: Path) -> None:
    config: Any = replace(GRID, estimators=("stgs", "softmax"), pack="auto", devices=None)
    before = sorted(tmp_path.parent.rglob("*"))
    found = dry_run(config, source)
    assert sorted(tmp_path.parent.rglob("*")) == before
    facts = found.payload
    assert (facts["device"], facts["devices"], facts["points"]) == ("cpu", 2, 8)
    assert [(pack["estimator"], pack["points"]) for pack in facts["packs"]] == [("stgs", 4), ("softmax", 4)]
    assert all(0 < pack["epoch_seconds"] < 60 for pack in facts["packs"])
    assert facts["usable_bytes"] < facts["available_bytes"]
    assert "8 points in 2 packs, on 2 cpu devices" in found.text
    (address,) = {address for pack in facts["packs"] for address in pack["nodes"]}
    assert f"starts on {address}" in found.text
