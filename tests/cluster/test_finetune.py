"""A corpus in the place of features, and the backbones that a search on it leaves; without Ray."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster import part_reader, search_loop
from cluster.attempts import Attempt, Pack, read_failure, read_result
from cluster.features import FeatureSource
from cluster.finetune import (
    CorpusSource,
    backbone_uri,
    open_corpus,
    publish_backbones,
    require_trained_features,
)
from cluster.grid import _begin
from cluster.packing import add_packs
from cluster.running import Seconds
from cluster.search_loop import PackJob
from cluster.settings import GridConfig, SearchSettings
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.backbone_trainer import FinetuneConfig
from stgs.config import SearchConfig
from stgs.finetune import FinetuneSearch
from stgs.genotype import CellGene, Genotype, StepGene
from tests.tiny_corpus import FRAMES, OPTIONS, corpus_source, make_corpus

SETTINGS = SearchSettings(channels=8, device="cpu", search=SearchConfig(epochs=2, batch_size=32))
POINT = GridConfig(temperatures=(10.0,), num_samples=(5,), pack=1, settings=SETTINGS)
(ONE_POINT,) = POINT.points()
PACK = Pack("pack-0000", (ONE_POINT,))
SENSES = ("visual", "audio")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CorpusSource:
    return corpus_source(tmp_path_factory.mktemp("corpus"))


class Searched(FinetuneSearch):
    """A search that is over, whose backbones hold one number; failure: why it has no genotype."""

    def __init__(self, number: float, failure: str | None = None) -> None:
        self.number, self.failure = number, failure
        self.rows = [{"epoch": 1, "member": 0}]

    def results(self) -> Any:
        cell = CellGene(("visual.pooled", "audio.pooled"), (StepGene("sum", ("in1", "in2")),))
        found = Genotype(features={"visual.pooled": 4, "audio.pooled": 4}, channels=4, length=2, cells=(cell,))
        genotype = None if self.failure else found
        return [SimpleNamespace(genotype=genotype, failure=self.failure, metrics={}, candidates=())]

    def best_backbones(self) -> dict[str, dict[str, torch.Tensor]]:
        return {sense: {"weight": torch.tensor(self.number)} for sense in SENSES}


def commit(attempt: Attempt, search: Searched, source: CorpusSource) -> None:
    space, config = SETTINGS.space(source), SETTINGS.search
    job = PackJob(run=attempt.run, space=space, config=config, device="cpu", threads=1, finetune=source.job)
    search_loop._commit(attempt, [ONE_POINT], search, Seconds([1.0], [1.0]), job)


def kept(run: str) -> list[float]:
    return [float(torch.load(backbone_uri(run, sense))["weight"]) for sense in SENSES]


def test_backbones_are_those_of_the_attempt_whose_result_stands(source: CorpusSource, tmp_path: Path) -> None:
    run = str(tmp_path)
    add_packs(run, [], [PACK])
    failed, first, second = (Attempt.claim(run, PACK) for _ in range(3))
    commit(failed, Searched(0.0, failure="ceased to be finite"), source)
    assert read_failure(run, ONE_POINT.id) == "ceased to be finite"
    assert not list(tmp_path.rglob("visual.pt")), "a search that failed leaves no backbones"
    commit(second, Searched(2.0), source)
    commit(first, Searched(1.0), source)
    result = read_result(run, ONE_POINT.id)
    assert result is not None
    assert result["backbones"]["visual"]["path"] == "packs/pack-0000/attempts/2/backbones/visual.pt"
    publish_backbones(run, result)
    assert kept(run) == [2.0, 2.0]
    # What stands there is derived: it is made again where it is gone, or is another attempt's.
    storage.delete(backbone_uri(run, "visual"))
    storage.write(backbone_uri(run, "audio"), storage.read(f"{first.uri}/backbones/audio.pt"))
    publish_backbones(run, result)
    assert kept(run) == [2.0, 2.0]


def test_a_corpus_stands_in_the_place_of_features(tmp_path: Path, source: CorpusSource) -> None:
    assert source.length == FRAMES
    assert list(source.features) == ["visual.layer2", "visual.pooled", "audio.layer2", "audio.pooled"]
    assert source.largest_share(SETTINGS.search, 3) == 4
    with pytest.raises(InputError, match="one of 4 workers would get 0"):
        source.largest_share(SETTINGS.search, 4)
    with pytest.raises(InputError, match=r"length is 2, but backbones that are trained give 8 positions"):
        replace(SETTINGS, length=2).space(source)
    with pytest.raises(ValueError, match="audio_segments is 4, but it must be 0, or the length, 8"):
        open_corpus(*make_corpus(tmp_path), replace(OPTIONS, audio_segments=4), FinetuneConfig())


def test_a_run_is_what_its_files_hold_wherever_they_lie(
    source: CorpusSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = json.dumps({"mean": [0.0], "deviation": [1.0]})
    sources = []
    for folder, micro_batch in (("here", 2), ("there", 4)):
        path = tmp_path / folder / "statistics.json"
        storage.write(str(path), statistics.encode())
        backbones = replace(source.job.backbones, spectrogram_statistics=str(path))
        finetune = replace(source.job.finetune, micro_batch=micro_batch)
        sources.append(replace(source, job=replace(source.job, backbones=backbones, finetune=finetune)))
    here, there = sources
    settings = here.run_settings()
    assert settings == there.run_settings()
    assert settings["backbones"]["weights"] == {"visual": "random:0", "audio": "random:1"}
    assert len(settings["backbones"]["spectrogram_statistics"]) == 64
    assert settings["finetune"]["shuffle_clips"] == 4
    hints = there.run_hints()
    assert (hints["micro_batch"], hints["visual_weights"]) == (4, "random:0")
    assert hints["spectrogram_statistics"].endswith("there/statistics.json")
    monkeypatch.setattr("cluster.grid.chosen_device", lambda wanted: "cpu")
    run = str(tmp_path / "run")
    _begin(run, POINT, here, resume=False)
    _begin(run, POINT, there, resume=True)
    other = replace(here, job=replace(here.job, finetune=replace(here.job.finetune, shuffle_clips=5)))
    with pytest.raises(InputError, match="was begun with shuffle_clips 4, not 5"):
        _begin(run, POINT, other, resume=True)


def test_found_networks_are_trained_on_features_of_the_trained_backbones(source: CorpusSource, tmp_path: Path) -> None:
    run = str(tmp_path)
    content = {"features_digest": source.meta.digest, **source.run_settings()}
    with pytest.raises(InputError, match="has no trained backbones yet"):
        require_trained_features(run, content, source)
    add_packs(run, [], [PACK])
    with pytest.raises(InputError, match="has no trained backbones yet"):
        require_trained_features(run, content, source)
    commit(Attempt.claim(run, PACK), Searched(1.0), source)
    result = read_result(run, ONE_POINT.id)
    assert result is not None
    digests = {sense: facts["sha256"] for sense, facts in result["backbones"].items()}
    config = asdict(source.job.backbones)
    extra = {"weights": digests, "spectrogram_statistics": "clip"}
    made = replace(source.meta, kind=boxes.FEATURES, config=config, parent=source.meta.digest, extra=extra)
    require_trained_features(run, content, FeatureSource("features", made, "", source.manifest))
    for change in (
        {"parent": "other"},
        {"config": {**config, "taps": ("layer2",)}},
        {"extra": {**extra, "weights": {**digests, "audio": "random:1"}}},
        {"extra": {**extra, "spectrogram_statistics": "0" * 64}},
    ):
        other = FeatureSource("features", replace(made, **change), "", source.manifest)
        with pytest.raises(InputError, match=r"features was not made by the backbones that .* trained"):
            require_trained_features(run, content, other)


def test_a_part_that_was_changed_is_refused_when_it_is_first_read(tmp_path: Path) -> None:
    source = corpus_source(tmp_path, shards=1)
    ((name, digest),) = source.meta.files.items()
    part = Path(source.uri) / name
    item = {"part": [json.dumps([0, str(part), digest, [0, 2]])]}
    untouched = part.read_bytes()
    part.write_bytes(untouched + b"x")
    (sentence,) = part_reader._read_part(item)["refused"]
    assert sentence.startswith(f"{part} was changed after it was written")
    part.write_bytes(untouched)
    assert part_reader._read_part(item)["frames"].shape[:2] == (2, FRAMES)
