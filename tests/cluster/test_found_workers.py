"""Found networks in workers that share every batch: on cached features, and end to end with their backbones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster import found_workers, part_reader
from cluster.attempts import Point
from cluster.clip_streams import SplitIndex, joined
from cluster.features import FeatureSource, open_features
from cluster.finetune import CorpusSource, require_trained_features
from cluster.found_loop import _fit, provenance
from cluster.found_worker_loop import FoundJob, FoundWorker
from cluster.found_workers import train_networks_with_workers
from cluster.network_files import NetworkJob, StoredNetwork, read_network
from cluster.search_loop import SearchFailedError
from cluster.settings import GENOTYPES
from cluster.stopping import Stop
from cluster.trained_backbones import backbone_file, extraction, is_end_to_end, local_weights, require_made_by
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.backbones import BACKBONES, BackboneConfig, FeatureExtractor
from stgs.config import FoundConfig
from stgs.genotype import CellGene, Genotype, StepGene
from stgs.layers import ForwardContext
from stgs.parallel import SINGLE
from tests.planted import FEATURES, LENGTH, make_features
from tests.tiny_backbone import TinyBackbone
from tests.tiny_corpus import FRAMES, OPTIONS, corpus_source

CONFIG = FoundConfig(epochs=3, batch_size=32)
SHORT = FoundConfig(epochs=2, batch_size=8)
# Registered in this process alone.
BACKBONES.setdefault("tiny", TinyBackbone)
TINY = replace(OPTIONS, visual="tiny", audio="tiny", taps=("late", "pooled"))
STEPS = (StepGene("concat_fc", ("in1", "in2")), StepGene("sum", ("in1", "step1")))


def genotype(features: dict[str, int], length: int, *names: str) -> str:
    return Genotype(features=features, channels=8, length=length, cells=(CellGene(names, STEPS),)).to_json()


BOTH = genotype(FEATURES, LENGTH, "visual.layer3", "audio.layer2")
AUDIO = genotype(FEATURES, LENGTH, "audio.layer2", "audio.pooled")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusSource:
    return corpus_source(tmp_path_factory.mktemp("corpus"), 2, TINY, backbone_learning_rate=1e-3)


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a corpus are read in this process, not by Ray Data."""

    def read(reader: part_reader.RayReader, parts: Any) -> Iterator[Any]:
        for position, (name, rows) in enumerate(parts):
            uri = storage.join(reader.corpus, name)
            yield part_reader._read_part({"part": [json.dumps([position, uri, reader.files[name], rows])]})

    monkeypatch.setattr(part_reader.RayReader, "__call__", read)


def jobs_in(run: Path, text: str = BOTH, count: int = 2) -> list[NetworkJob]:
    return [NetworkJob(str(run / "networks" / f"point-{seed}.safetensors"), text, seed) for seed in range(count)]


def found_job(run: Path, source: FeatureSource, groups: list[list[NetworkJob]], config: FoundConfig) -> FoundJob:
    # No state is due before the training ends, so that those that are there come from a stop.
    common = {"device": "cpu", "threads": 1, "session": "session", "save_seconds": 1e9}
    clips = found_workers._clips_of(source)
    return FoundJob(training=str(run / "training"), groups=groups, config=config, **common, **clips)


class Told:
    """What a worker has told; `stop_after` epochs it is asked to stop."""

    def __init__(self, stop_after: int = 99) -> None:
        self.epochs: list[int] = []
        self.failed: dict[str, str] = {}
        self.stop_after = stop_after

    def report(self, row: dict[str, Any]) -> None:
        self.epochs.append(row["epoch"])

    def fail(self, uri: str, reason: str) -> None:
        self.failed[uri] = reason

    def stop(self) -> Stop | None:
        return Stop("run", "SIGTERM") if len(self.epochs) >= self.stop_after else None


def work(job: FoundJob, source: FeatureSource, told: Told) -> Stop | None:
    """One worker, in this process."""
    splits = {} if job.finetune else source.load_splits(("train", "dev"))
    worker = FoundWorker(job, splits, SINGLE, report=told.report, fail=told.fail, stop=told.stop)
    return worker.run(told.failed)


def weights(stored: StoredNetwork) -> dict[str, torch.Tensor]:
    return stored.network.state_dict()


def same_networks(ours: list[NetworkJob], theirs: list[NetworkJob]) -> None:
    """The same bits, and the same that files say of them, but for the seconds."""
    for first, second in zip(ours, theirs, strict=True):
        one, other = read_network(first.uri), read_network(second.uri)
        assert {**one.facts, "seconds": 0} == {**other.facts, "seconds": 0}
        for name, tensor in {**weights(one), **one.neutral}.items():
            assert torch.equal(tensor, {**weights(other), **other.neutral}[name]), name


def test_a_worker_makes_the_files_of_a_task_however_often_it_stops(tmp_path: Path, source: FeatureSource) -> None:
    alone, torn = tmp_path / "alone", tmp_path / "torn"
    groups = [jobs_in(torn), [NetworkJob(str(torn / "networks" / "audio.safetensors"), AUDIO, 5)]]
    epochs, stops = [], 0
    while work(found_job(torn, source, groups, CONFIG), source, told := Told(stop_after=1)):
        assert len(list((torn / "training").glob("*.pt"))) <= 1
        epochs += told.epochs
        stops += 1
        assert stops < 2 * CONFIG.epochs, "it goes on from what it has saved"
    assert stops == 2 * CONFIG.epochs - 1
    assert [*epochs, *told.epochs] == [2, 4, 6, 7, 8, 9], "epochs of all networks"
    assert not list((torn / "training").iterdir()), "states are gone once the files stand"
    facts, splits = provenance(source), source.load_splits(("train", "dev"))
    theirs = [jobs_in(alone), [NetworkJob(str(alone / "networks" / "audio.safetensors"), AUDIO, 5)]]
    for ours, own in zip(groups, theirs, strict=True):
        assert _fit(own, CONFIG, facts, splits, "cpu", 1) == {}
        same_networks(ours, own)
    assert not is_end_to_end(read_network(groups[0][0].uri))


def test_trainings_that_cannot_be_are_told_and_the_others_go_on(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = genotype({**FEATURES, "visual.layer2": 99}, LENGTH, "visual.layer2", "audio.layer2")
    refused, dying, good = jobs_in(tmp_path, foreign, 1), jobs_in(tmp_path / "dying", AUDIO), jobs_in(tmp_path / "good")
    told = Told()
    job = found_job(tmp_path, source, [refused, dying, good], CONFIG)
    run_epoch = found_workers.FoundWorker._run_epochs

    def broken(worker: FoundWorker, training: Any, *rest: Any) -> None:
        if training.architecture.to_json() == AUDIO:
            raise ZeroDivisionError("a mistake")
        run_epoch(worker, training, *rest)

    monkeypatch.setattr(FoundWorker, "_run_epochs", broken)
    with pytest.raises(SearchFailedError):
        work(job, source, told)
    assert work(job, source, told) is None
    assert [*told.failed] == [network.uri for network in (*refused, *dying)]
    assert "'visual.layer2' has" in told.failed[refused[0].uri]
    assert told.failed[dying[0].uri] == "ZeroDivisionError: a mistake"
    assert all(storage.exists(network.uri) for network in good)


def test_a_training_whose_processes_die_without_a_new_epoch_is_given_up(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    job, told = found_job(tmp_path, source, [jobs_in(tmp_path)], CONFIG), Told()
    with monkeypatch.context() as patched:
        patched.setattr(FoundWorker, "_run_epochs", killed)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                work(job, source, told)
        assert told.failed == {}
        assert work(job, source, told) is None
    assert [*told.failed.values()] == ["3 attempts in a row ended without saving a new epoch"] * 2
    later = Told()
    assert work(replace(job, session="later"), source, later) is None
    assert later.failed == {}


def test_joined_splits_are_a_split_of_their_clips() -> None:
    first = SplitIndex(("a", "c"), ((4, 0), (1,)), np.array([1, 0, 1], np.int8))
    second = SplitIndex(("b", "c"), ((2,), (0,)), np.array([1, 0], np.int8))
    both = joined(first, second)
    assert (both.parts, both.rows) == (("a", "b", "c"), ((0, 4), (2,), (0, 1)))
    assert both.labels.tolist() == [0, 1, 1, 0, 1]


def test_end_to_end_leaves_backbones_beside_the_network(tmp_path: Path, corpus: CorpusSource, read_here: None) -> None:
    """Scores of the file's network, on features that the files beside it make, are those that dev was judged by."""
    text = genotype(corpus.features, FRAMES, "visual.late", "audio.pooled")
    (job,) = jobs_in(tmp_path, text, 1)
    assert work(found_job(tmp_path, corpus, [[job]], SHORT), corpus, told := Told(stop_after=1)) == told.stop()
    work(found_job(tmp_path, corpus, [[job]], SHORT), corpus, told := Told())
    assert told.failed == {}
    stored = read_network(job.uri)
    assert is_end_to_end(stored)
    files = local_weights(stored)
    assert files == {f"{sense}_weights": backbone_file(job.uri, sense) for sense in ("visual", "audio")}
    made = stored.facts["provenance"]
    assert made["started_from"] == {"visual": "random:0", "audio": "random:1"}
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in made["backbones"].items()}
    extractor = FeatureExtractor(BackboneConfig(**settings | files))
    split = corpus.job.splits["dev"]
    scores, context = [], ForwardContext(stored.network.seeds, 0, training=False, track_statistics=False)
    for name, rows in zip(split.parts, split.rows, strict=True):
        table = boxes.read_table(storage.join(corpus.uri, name))
        arrays = [boxes.column_to_numpy(table, column)[list(rows)].copy() for column in ("frames", "spectrogram")]
        found = extractor(*map(torch.from_numpy, arrays))
        features = {name: (x.transpose(1, 2) if x.dim() == 3 else x).float() for name, x in found.items()}
        with torch.no_grad():
            scores += stored.network(features, context)[0].sigmoid().tolist()
    fake = np.array(scores)[split.labels == 1]
    real = np.array(scores)[split.labels == 0]
    wins = (fake[:, None] > real[None]).mean()
    assert stored.facts["metrics"]["dev_auc"] == pytest.approx(wins, abs=1 / (len(fake) * len(real)))

    command = extraction(stored, "CORPUS").split()
    assert command[:5] == ["stgs", "extract", "CORPUS", "--out", "DIR"]
    assert command[command.index("--audio-weights") + 1] == files["audio_weights"]
    assert command[command.index("--taps") + 1 :][:2] == ["late", "pooled"]
    Path(files["audio_weights"]).write_bytes(b"")
    with pytest.raises(InputError, match=r"audio\.pt is another file than the audio weights"):
        local_weights(stored)
    Path(files["audio_weights"]).unlink()
    with pytest.raises(InputError, match=r"audio\.pt is missing"):
        local_weights(stored)


@pytest.fixture
def trained(tmp_path: Path, corpus: CorpusSource, read_here: None) -> StoredNetwork:
    """A network that was trained end to end for one epoch."""
    (job,) = jobs_in(tmp_path, genotype(corpus.features, FRAMES, "visual.late", "audio.pooled"), 1)
    work(found_job(tmp_path, corpus, [[job]], replace(SHORT, epochs=1)), corpus, Told())
    return read_network(job.uri)


def test_only_features_of_its_own_backbones_are_a_networks(
    tmp_path: Path, trained: StoredNetwork, corpus: CorpusSource
) -> None:
    config = {**asdict(TINY), "length": FRAMES, "visual_weights": "elsewhere.pt", "audio_weights": "elsewhere.pt"}
    own = {"weights": trained.facts["provenance"]["weights"], "spectrogram_statistics": "clip"}
    meta = replace(corpus.meta, kind=boxes.FEATURES, config=config, parent=corpus.meta.digest, extra=own)
    content = {"kind": GENOTYPES, "features_digest": corpus.meta.digest, **corpus.run_settings()}

    def check(**changes: Any) -> None:
        features = FeatureSource("features", replace(meta, **changes), "", corpus.manifest)
        require_made_by(trained, features)
        require_trained_features(str(tmp_path), content, features)

    check()
    for named, changes in {
        "weights": {"extra": {**own, "weights": {**own["weights"], "audio": "random:1"}}},
        "taps": {"config": {**config, "taps": ("late",)}},
        "corpus": {"parent": "another"},
    }.items():
        with pytest.raises(InputError, match=rf"was not made by the backbones .* differ in {named}\); .*stgs extract"):
            check(**changes)
    with pytest.raises(InputError, match="has no trained networks yet"):
        require_trained_features(str(tmp_path / "empty"), content, corpus)


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_two_workers_train_as_one(ray_session: None, tmp_path: Path, source: FeatureSource) -> None:
    config = replace(CONFIG, epochs=2)
    ours, theirs = jobs_in(tmp_path / "two"), jobs_in(tmp_path / "one")
    facts, splits = provenance(source), source.load_splits(("train", "dev"))
    assert _fit(theirs, config, facts, splits, "cpu", 1) == {}
    common: dict[str, Any] = {"run": str(tmp_path / "two"), "device": "cpu", "threads": 1, "progress": False}
    result = train_networks_with_workers(ours, config, source, workers=2, **common)
    assert (result.failed, result.stop, result.unfinished) == ({}, None, 0)
    for first, second in zip(ours, theirs, strict=True):
        one, other = read_network(first.uri), read_network(second.uri)
        assert one.facts["metrics"]["dev_auc"] == pytest.approx(other.facts["metrics"]["dev_auc"], abs=0.01)
        for name, tensor in weights(other).items():
            # Sums of float32 in another order, which Adam magnifies where a gradient is next to nothing.
            assert (tensor - weights(one)[name]).abs().mean() < 1e-3, name
        assert one.neutral.keys() == other.neutral.keys()

    assert train_networks_with_workers(ours, config, source, workers=40, **common).failed == {}, "all stand"
    with pytest.raises(InputError, match="but each of 40 workers needs one"):
        train_networks_with_workers(jobs_in(tmp_path / "new"), config, source, workers=40, **common)
    with pytest.raises(InputError, match="needs 3 CPU, but the cluster has 2"):
        train_networks_with_workers(jobs_in(tmp_path / "new"), config, source, workers=3, **common)


def test_controls_on_cached_features_are_not_trained_end_to_end(corpus: CorpusSource, tmp_path: Path) -> None:
    linear = NetworkJob(str(tmp_path / "linear"), None, 0, kind="concat_linear")
    shuffled = replace(jobs_in(tmp_path, count=1)[0], point=Point(1.0, 1, "stgs", 0, 7))
    for job, told in ((linear, "is of kind concat_linear"), (shuffled, "is to have shuffled labels")):
        with pytest.raises(InputError, match=told):
            found_workers._require_trainable([[job]])
