"""Training of found networks, their files, the controls, and the one reading of the test clips."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.attempts import Point
from cluster.controls import (
    AUDIO,
    GRID,
    RANDOM,
    SHUFFLED,
    VISUAL,
    network_uri,
)
from cluster.evaluation import choose, evaluate_run, network_uris, score_clips
from cluster.features import FeatureSource, open_features
from cluster.found_loop import NetworkJob, read_network, train_networks
from cluster.grid import read_grid
from cluster.settings import GridConfig, SearchSettings
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.config import FoundConfig
from stgs.genotype import CellGene, Genotype, StepGene
from stgs.metrics import auc
from tests.planted import FEATURES, LENGTH, make_features

CONFIG = FoundConfig(epochs=12, batch_size=32)
GRID_CONFIG = GridConfig(settings=SearchSettings(channels=8))


def genotype(*pairs: tuple[str, str]) -> str:
    """A genotype whose cells read `pairs`."""
    steps = (StepGene("concat_fc", ("in1", "in2")), StepGene("sum", ("in1", "step1")))
    cells = tuple(CellGene(pair, steps) for pair in pairs)
    return Genotype(features=FEATURES, channels=8, length=LENGTH, cells=cells).to_json()


BOTH = genotype(("visual.layer3", "audio.layer2"), ("visual.layer2", "audio.pooled"))
ONLY_AUDIO = genotype(("audio.layer2", "audio.pooled"), ("audio.layer2", "audio.layer3"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module")
def trained(ray_session: None, tmp_path_factory: pytest.TempPathFactory, source: FeatureSource) -> str:
    """A run with two networks of the grid, one of the audio arm, and two shuffled ones."""
    run = str(tmp_path_factory.mktemp("run"))
    points = [Point(5.0, 5, "stgs", 0), Point(10.0, 5, "stgs", 1)]
    shuffled = [Point(10.0, 15, "stgs", 0, seed) for seed in range(2)]
    jobs = [NetworkJob(network_uri(run, GRID, point.id), BOTH, point.seed, point) for point in points]
    jobs.append(NetworkJob(network_uri(run, AUDIO, points[0].id), ONLY_AUDIO, 0, points[0]))
    jobs += [NetworkJob(network_uri(run, SHUFFLED, point.id), BOTH, 0, point) for point in shuffled]
    assert train_networks(jobs, CONFIG, source, device="cpu", threads=1, progress=False) == {}
    rows = [{"id": point.id, **asdict(point)} for point in points]
    storage.write(storage.join(run, "grid.parquet"), boxes.table_bytes(pa.Table.from_pylist(rows)))
    return run


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_network_files_hold_all_that_scoring_needs(trained: str, source: FeatureSource) -> None:
    uris = network_uris(trained)
    assert {name.split("/")[0] for name in uris} == {GRID, AUDIO, SHUFFLED}
    stored = read_network(uris["grid/temperature-10_samples-5_stgs_seed-1"])
    assert stored.facts["genotype"] == json.loads(BOTH)
    assert stored.facts["point"]["temperature"] == 10.0
    assert stored.facts["provenance"]["features_digest"] == source.meta.digest
    assert 1 <= stored.facts["metrics"]["best_epoch"] <= CONFIG.epochs
    # The file's weights give the dev AUC that the training reported: they are those of the best epoch.
    dev = source.load("dev")
    assert auc(score_clips(stored, dev), dev.labels) == pytest.approx(stored.facts["metrics"]["dev_auc"], abs=1e-12)


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_network_trained_alone_equals_one_trained_beside_others(
    trained: str, tmp_path: Path, source: FeatureSource
) -> None:
    point = Point(10.0, 5, "stgs", 1)
    runs = [str(tmp_path / name) for name in ("one", "two")]
    jobs = [NetworkJob(network_uri(run, GRID, point.id), BOTH, point.seed, point) for run in runs]
    for job in jobs:
        assert train_networks([job], CONFIG, source, device="cpu", threads=1, progress=False) == {}
    alone, again, beside = (read_network(uri) for uri in (*(j.uri for j in jobs), network_uri(trained, GRID, point.id)))
    test = source.load("test")
    assert (score_clips(alone, test) == score_clips(again, test)).all(), "the same training twice gives the same bits"
    # Batched products of one and of four members round differently, and 12 epochs carry that on.
    np.testing.assert_allclose(score_clips(alone, test), score_clips(beside, test), atol=1e-3)


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_evaluation_reads_test_once(trained: str, source: FeatureSource) -> None:
    steps: list[int] = []
    result = evaluate_run(trained, source, resamples=200, progress=steps.append)["planted"]
    assert len(steps) == 5
    assert result["clips"] == 48
    assert result["subjects"] == 12
    assert result["found"].startswith("grid/")
    assert result["best_single_sense"].startswith("audio/")
    network = result["networks"][result["found"]]
    assert network["auc"]["low"] <= network["auc"]["value"] <= network["auc"]["high"]
    # B, C and D can all be told from A by both senses, C by audio alone cannot.
    deaf = result["networks"][result["best_single_sense"]]
    assert network["auc_by_category"]["C"]["value"] > deaf["auc_by_category"]["C"]["value"]
    table = boxes.read_table(f"{trained}/evaluation/planted/scores.parquet")
    scores, labels = table[result["found"]].to_numpy(), table["label"].to_numpy()
    assert auc(scores, labels) == network["auc"]["value"]

    for row in read_grid(trained):
        network = result["networks"][f"grid/{row['id']}"]
        assert row["network_dev_auc"] == network["dev_auc"]
        assert row["test_auc_low.planted"] == network["auc"]["low"]

    assert evaluate_run(trained, source, resamples=200, progress=steps.append)["planted"] == result
    assert len(steps) == 5, "the second evaluation reads what stands"
    extra = Path(network_uri(trained, RANDOM, "random-0"))
    extra.parent.mkdir(parents=True)
    extra.write_bytes(Path(network_uris(trained)[result["found"]]).read_bytes())
    with pytest.raises(InputError, match="has read the test clips of 'planted' already"):
        evaluate_run(trained, source)


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_networks_of_other_features_are_refused(trained: str, tmp_path: Path) -> None:
    other = open_features(*make_features(tmp_path, seed=1))
    with pytest.raises(InputError, match="was trained with features_digest"):
        evaluate_run(_copy_networks(trained, tmp_path / "run"), other)


def _copy_networks(run: str, target: Path) -> str:
    folder = target / "networks"
    folder.mkdir(parents=True)
    for file in Path(run, "networks").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return str(target)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_no_network_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "network.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match="is no network that 'stgs train' wrote"):
        read_network(str(file))
    with pytest.raises(InputError, match="is no file"):
        read_network(str(tmp_path / "missing.safetensors"))


def test_untrained_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run 'stgs train' on it first"):
        network_uris(str(tmp_path))


def test_choose_takes_the_best_on_dev_of_the_given_arms() -> None:
    dev = {"grid/t10": (10.0, 0.9), "grid/t5": (5.0, 0.9), "grid/t15": (15.0, 0.7), "audio/t5": (5.0, 0.95)}
    facts = {
        name: {"point": asdict(Point(temperature, 5, "stgs", 0)), "metrics": {"dev_auc": value}}
        for name, (temperature, value) in dev.items()
    }
    assert choose(facts, (GRID,)) == "grid/t5", "of equal networks the first point's"
    assert choose(facts, (VISUAL, AUDIO)) == "audio/t5"
    assert choose(facts, (RANDOM,)) is None
    facts["grid/t15_repeat-1"] = {**facts["grid/t15"], "repeat": 1, "metrics": {"dev_auc": 1.0}}
    assert choose(facts, (GRID,)) == "grid/t5", "a further training is no further draw of this arm"
    assert choose({"grid/b": {**facts["grid/t5"], "repeat": 1}}, (GRID,)) == "grid/b", "the first training failed"
    # Fitted on dev: the scores there are those of clips that were learnt, but the supernets' are not.
    searched = {"grid/t10": 0.7, "grid/t5": 0.6, "grid/t15": 0.8}
    for name, value in searched.items():
        facts[name]["metrics"] |= {"fitted_on": ["train", "dev"], "search_dev_auc": value}
    assert choose(facts, (GRID,)) == "grid/t15"
    facts["grid/t10"]["metrics"]["search_dev_auc"] = None
    assert choose(facts, (GRID,)) == "grid/t5", "of a file that does not know it"
