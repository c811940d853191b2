"""Training of networks and their files: what a file holds, repeats, states of trainings that were stopped."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from cluster import found_loop
from cluster.attempts import Point
from cluster.features import FeatureSource, Split, open_features
from cluster.found_loop import NetworkJob, read_network, repeated, train_networks
from cluster.network_files import provenance
from data_prep.storage import InputError
from stgs.config import FoundConfig, WeightSchedule
from stgs.found_training import FoundTraining, predict
from stgs.genotype import CellGene, Genotype, StepGene
from stgs.metrics import auc
from tests.planted import FEATURES, LENGTH, make_features

CONFIG = FoundConfig(epochs=4, batch_size=32)
STEPS = (StepGene("concat_fc", ("in1", "in2")), StepGene("sum", ("in1", "step1")))


def genotype(*pair: str, length: int = LENGTH) -> str:
    cell = CellGene((pair[0], pair[1]), STEPS)
    return Genotype(features=FEATURES, channels=8, length=length, cells=(cell,)).to_json()


BOTH = genotype("visual.layer3", "audio.pooled")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module")
def splits(source: FeatureSource) -> dict[str, Split]:
    return source.load_splits(("train", "dev"))


def fit(
    jobs: list[NetworkJob], source: FeatureSource, splits: dict[str, Split], config: FoundConfig = CONFIG
) -> dict[str, str]:
    """The body of the Ray task."""
    return found_loop._fit(jobs, config, provenance(source), splits, "cpu", 1)


def job(folder: Path, name: str = "one", seed: int = 0, **fields: Any) -> NetworkJob:
    return NetworkJob(f"{folder}/networks/{name}.safetensors", fields.pop("genotype", BOTH), seed, **fields)


def weights(uri: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(Path(uri).read_bytes())


def test_a_file_holds_the_mean_of_each_feature_over_train(
    tmp_path: Path, source: FeatureSource, splits: dict[str, Split]
) -> None:
    one = job(tmp_path, genotype=genotype("visual.layer3", "audio.pooled", length=2))
    assert fit([one], source, splits) == {}
    stored = read_network(one.uri)
    assert set(stored.neutral) == set(stored.network.used_features) == {"visual.layer3", "audio.pooled"}
    columns = {name: splits["train"].columns[name].astype(np.float64) for name in stored.neutral}
    # The network reads 2 positions, each the maximum of 2 of the box's.
    pooled = np.maximum(columns["visual.layer3"][:, :, 0::2], columns["visual.layer3"][:, :, 1::2])
    for name, expected in (("visual.layer3", pooled), ("audio.pooled", columns["audio.pooled"])):
        assert stored.neutral[name].dtype == torch.float32
        np.testing.assert_allclose(stored.neutral[name].numpy(), expected.mean(axis=0), atol=1e-6)
    assert stored.required_neutral() is stored.neutral
    facts = stored.facts
    assert (facts["kind"], facts["repeat"], facts["length"]) == ("found", 0, 2)
    assert facts["features"] == {"visual.layer3": 8, "audio.pooled": 8}
    assert facts["metrics"]["fitted_on"] == ["train"]


def test_concat_linear_reads_every_feature(tmp_path: Path, source: FeatureSource, splits: dict[str, Split]) -> None:
    every = job(tmp_path, "every", genotype=None, kind="concat_linear")
    few = job(tmp_path, "few", genotype=None, kind="concat_linear", features=("visual.layer3", "audio.layer2"))
    config = FoundConfig(epochs=12, batch_size=32, weights=WeightSchedule(learning_rate_max=3e-2))
    for one in (every, few):
        assert fit([one], source, splits, config) == {}
    stored = read_network(every.uri)
    assert stored.network.used_features == tuple(FEATURES)
    assert stored.facts["genotype"] is None
    assert stored.facts["parameters"] == 3 * sum(FEATURES.values()) + 1
    assert stored.facts["metrics"]["dev_auc"] > 0.75
    assert read_network(few.uri).network.used_features == few.features
    missing = job(tmp_path, genotype=None, kind="concat_linear", features=("visual.layer9",))
    with pytest.raises(InputError, match=r"have no 'visual\.layer9'; they have visual\.layer2"):
        fit([missing], source, splits)


def test_networks_fitted_on_dev_say_so(tmp_path: Path, source: FeatureSource, splits: dict[str, Split]) -> None:
    one = job(tmp_path)
    assert fit([one], source, splits, FoundConfig(epochs=3, batch_size=32, fit_on="train+dev")) == {}
    metrics = read_network(one.uri).facts["metrics"]
    assert metrics["fitted_on"] == ["train", "dev"]
    assert (metrics["best_epoch"], metrics["threshold"]) == (3, 0.5)


def test_repeats_are_trained_from_other_seeds(tmp_path: Path, source: FeatureSource, splits: dict[str, Split]) -> None:
    point = Point(10.0, 15, "stgs", 7)
    jobs = repeated(job(tmp_path, point.id, seed=7, point=point), 3)
    assert [Path(one.uri).stem for one in jobs] == [point.id, f"{point.id}_repeat-1", f"{point.id}_repeat-2"]
    assert jobs[0].seed == 7
    assert len({one.seed for one in jobs}) == 3
    assert min(one.seed for one in jobs) >= 0
    assert [one.seed for one in repeated(job(tmp_path, seed=7), 3)] == [one.seed for one in jobs]
    assert repeated(job(tmp_path, seed=8), 2)[1].seed != jobs[1].seed
    assert fit(jobs, source, splits) == {}
    stored = [read_network(one.uri) for one in jobs]
    assert [one.facts["repeat"] for one in stored] == [0, 1, 2]
    assert [one.facts["point"]["seed"] for one in stored] == [7, 7, 7]
    first, second = (weights(one.uri)["head.classifier.weight"] for one in jobs[:2])
    assert not torch.allclose(first, second, atol=1e-2)


class Interrupted(BaseException):
    """Ends a training as a kill would."""


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path, source: FeatureSource, splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = ([job(tmp_path / name)] for name in ("whole", "cut"))
    assert fit(whole, source, splits) == {}
    assert not list((tmp_path / "whole").glob("training/*"))
    run_epoch, epochs = FoundTraining.run_epoch, []

    def counted(self: FoundTraining) -> list[float]:
        if len(epochs) == 2:
            raise Interrupted
        epochs.append(self.epoch)
        return run_epoch(self)

    monkeypatch.setattr(found_loop, "FIRST_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(found_loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(FoundTraining, "run_epoch", counted)
    with pytest.raises(Interrupted):
        fit(cut, source, splits)
    (state,) = (tmp_path / "cut").glob("training/*.pt")
    assert not (tmp_path / "cut" / "networks").exists()
    epochs[:] = [-1]
    with pytest.raises(Interrupted):
        fit(cut, source, splits)
    assert epochs == [-1, 2], "the second attempt went on after two epochs"
    monkeypatch.undo()
    assert fit(cut, source, splits) == {}
    assert not state.exists()
    ours, theirs = weights(cut[0].uri), weights(whole[0].uri)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    facts = [read_network(jobs[0].uri).facts for jobs in (cut, whole)]
    assert facts[0]["metrics"] == facts[1]["metrics"]


def test_the_first_state_is_saved_early(
    tmp_path: Path, source: FeatureSource, splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    run_epoch, save_state, saved = FoundTraining.run_epoch, found_loop.save_state, []

    def slow(self: FoundTraining) -> list[float]:
        now[0] += 4.0
        return run_epoch(self)

    def noted(*arguments: Any) -> None:
        saved.append(now[0])
        save_state(*arguments)

    monkeypatch.setattr(found_loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(FoundTraining, "run_epoch", slow)
    monkeypatch.setattr(found_loop, "save_state", noted)
    assert fit([job(tmp_path)], source, splits, FoundConfig(epochs=19, batch_size=96)) == {}
    assert saved == [8.0, 68.0]


def test_a_state_of_other_networks_or_a_damaged_one_is_passed_over(
    tmp_path: Path, source: FeatureSource, splits: dict[str, Split]
) -> None:
    both, one = [job(tmp_path, "a", seed=0), job(tmp_path, "b", seed=1)], [job(tmp_path, "a", seed=0)]
    facts = found_loop.trained_on(provenance(source))
    training = found_loop.begin_training(both, CONFIG, splits, device="cpu")
    training.run_epoch()
    uri = found_loop.state_uri(both[0], CONFIG, facts)
    found_loop.save_state(uri, training, 5.0, both)
    shuffled = [both[0], replace(both[1], point=Point(10.0, 15, "stgs", 1, 3))]
    for jobs, seconds, epoch in ((both, 5.0, 1), (one, 0.0, 0), (shuffled, 0.0, 0)):
        again = found_loop.begin_training(jobs, CONFIG, splits, device="cpu")
        assert found_loop.load_state(found_loop.read_state(uri), again, jobs) == seconds
        assert again.epoch == epoch
    Path(uri).write_bytes(Path(uri).read_bytes()[:1000])
    assert found_loop.read_state(uri) is None
    assert found_loop.load_state(None, training, both) == 0.0
    other = found_loop.state_uri(both[0], FoundConfig(epochs=5), facts)
    assert other != uri, "a training of other settings has another state"


def as_version_1(uri: str) -> None:
    """Make a network's file what the first version wrote."""
    data = Path(uri).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["stgs"])
    for name in ("kind", "repeat", "features", "length"):
        del facts[name]
    del facts["metrics"]["fitted_on"], facts["config"]["patience"], facts["config"]["fit_on"]
    tensors = {name: tensor for name, tensor in weights(uri).items() if not name.startswith("neutral.")}
    Path(uri).write_bytes(safetensors.torch.save(tensors, {"stgs": json.dumps(facts | {"version": 1})}))


def test_files_of_the_first_version_are_read(tmp_path: Path, source: FeatureSource, splits: dict[str, Split]) -> None:
    one = job(tmp_path)
    fit([one], source, splits)
    before = read_network(one.uri)
    as_version_1(one.uri)
    after = read_network(one.uri)
    assert after.facts == before.facts | {
        "version": 1,
        "config": {name: value for name, value in before.facts["config"].items() if name not in ("patience", "fit_on")},
    }
    assert after.neutral == {}
    with pytest.raises(InputError, match="holds no neutral values of its features, since an earlier version wrote it"):
        after.required_neutral()
    clips = found_loop.begin_training([one], CONFIG, splits, device="cpu").dev
    assert (predict(after.network, clips) == predict(before.network, clips)).all()
    found_loop.require_same_settings([one.uri], CONFIG)
    with pytest.raises(InputError, match="was trained with fit_on train, not train\\+dev; leave the option"):
        found_loop.require_same_settings([one.uri], FoundConfig(epochs=4, batch_size=32, fit_on="train+dev"))


@pytest.mark.parametrize("version", [0, 3])
def test_files_of_unknown_versions_are_refused(tmp_path: Path, version: int) -> None:
    file = tmp_path / "network.safetensors"
    file.write_bytes(safetensors.torch.save({}, {"stgs": json.dumps({"version": version})}))
    with pytest.raises(InputError, match=f"has version {version}, but this program reads 2"):
        read_network(str(file))


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_networks_are_trained_side_by_side_and_failures_told_in_a_sentence(
    ray_session: None, tmp_path: Path, source: FeatureSource
) -> None:
    good = [job(tmp_path, f"seed-{seed}", seed=seed) for seed in range(2)]
    bad = job(tmp_path, "bad", genotype=genotype("visual.layer3", "audio.layer2", length=3))
    failed = train_networks([*good, bad], CONFIG, source, device="cpu", threads=1, progress=False)
    assert failed == {bad.uri: "feature 'visual.layer3' has 4 positions, which 3 equal windows cannot hold."}
    dev = source.load("dev")
    for one in good:
        stored = read_network(one.uri)
        clips = found_loop.begin_training([one], CONFIG, source.load_splits(("train", "dev")), device="cpu").dev
        score = auc(predict(stored.network, clips)[0], dev.labels)
        assert score == pytest.approx(stored.facts["metrics"]["dev_auc"], abs=1e-12)
    before = {one.uri: Path(one.uri).read_bytes() for one in good}
    assert train_networks(good, CONFIG, source, device="cpu", threads=1, progress=False) == {}
    assert before == {one.uri: Path(one.uri).read_bytes() for one in good}, "what stands is left alone"
