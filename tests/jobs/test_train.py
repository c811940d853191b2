"""`stgs train` without Ray: genotypes alone, protocols, presets, repeats, and what it refuses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster import found_loop
from cluster.controls import GRID, SHUFFLED, VISUAL, network_uri
from cluster.features import FeatureSource, open_features
from cluster.finetune import BackboneOptions
from cluster.found_loop import NetworkJob, read_network
from cluster.found_workers import TrainedNetworks
from cluster.gathering import GridResult
from cluster.network_files import provenance
from cluster.points import Point
from cluster.protocols import ProtocolConfig, open_parts
from cluster.runs import read_config
from cluster.settings import GridConfig
from cluster.stopping import Stop
from data_prep import boxes, storage
from data_prep.storage import InputError
from jobs import evaluate, train
from jobs.cli import PARTLY, STOPPED, WRONG_USE
from jobs.train import TrainJobConfig
from stgs.backbone_trainer import FinetuneConfig
from stgs.config import FoundConfig, WeightSchedule, released_found_config
from stgs.config import InputError as SettingError
from stgs.genotype import CellGene, Genotype, StepGene
from tests.cluster.planted_baselines import plant_baseline
from tests.planted import FEATURES, LENGTH, make_features

FOUND = FoundConfig(epochs=2, batch_size=48)
STEPS = (StepGene("concat_fc", ("in1", "in2")), StepGene("sum", ("in1", "step1")))


def genotype(*pair: str, **changed: Any) -> Genotype:
    settings: dict[str, Any] = {"features": FEATURES, "channels": 4, "length": LENGTH, **changed}
    return Genotype(cells=(CellGene((pair[0], pair[1]), STEPS),), **settings)


BOTH = genotype("visual.layer3", "audio.layer2")
SIGHT = genotype("visual.layer3", "visual.layer2")
SOUND = genotype("audio.layer2", "audio.pooled", length=2)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_features(tmp_path_factory.mktemp("planted"))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in this process."""

    def train_here(
        jobs: Sequence[NetworkJob], config: FoundConfig, source: FeatureSource, *, device: str, threads: int
    ) -> dict[str, str]:
        failed: dict[str, str] = {}
        splits = source.load_splits(("train", "dev"))
        for jobs_of_one in found_loop.waiting_groups(jobs):
            failed |= found_loop._fit(jobs_of_one, config, provenance(source), splits, device, threads)
        return failed

    monkeypatch.setattr(train, "connect", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(train, "train_networks", train_here)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two genotypes' files, one as a run has it."""
    paths = [tmp_path / "own.json", tmp_path / "points" / "point-1" / "genotype.json"]
    paths[1].parent.mkdir(parents=True)
    for path, content in zip(paths, (BOTH, SOUND), strict=True):
        path.write_text(content.to_json())
    return list(map(str, paths))


def job(files: Sequence[str], box: tuple[str, str], out: Path, **settings: Any) -> TrainJobConfig:
    given = {"found": FOUND, "device": "cpu", **settings}
    return TrainJobConfig(
        run=files[0], genotypes=tuple(files[1:]), features=box[0], manifest=box[1], out=str(out), **given
    )


def test_genotypes_alone_are_trained_and_evaluated(tmp_path: Path, box: tuple[str, str], files: list[str]) -> None:
    out = tmp_path / "run"
    config = job(files, box, out, seeds=(0, 3), repeats=2)
    done = train.run(config)
    assert done.exit_code == 0
    names = {
        f"{name}_seed-{seed}{repeat}" for name in ("own", "point-1") for seed in (0, 3) for repeat in ("", "_repeat-1")
    }
    assert {Path(network["network"]).name for network in done.payload["networks"]} == names
    content = read_config(str(out))
    assert content["kind"] == "genotypes"
    assert content["genotypes"]["point-1"] == SOUND.to_dict()
    stored = read_network(str(out / "networks" / "point-1_seed-3.safetensors"))
    assert (stored.facts["seed"], stored.facts["point"], stored.facts["genotype"]) == (3, None, SOUND.to_dict())
    before = {path: path.stat().st_mtime_ns for path in (out / "networks").iterdir()}
    assert train.run(config).payload["networks"] == done.payload["networks"]
    assert train.run(TrainJobConfig(run=str(out), found=FOUND, repeats=2)).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "networks").iterdir()}

    result = evaluate.run(evaluate.EvaluateJobConfig(run=str(out), resamples=20)).payload["datasets"]["planted"]
    assert set(result["networks"]) == {f"grid/{name}" for name in names}
    firsts = [network for network in done.payload["networks"] if "repeat" not in network["network"]]
    best = max(firsts, key=lambda network: network["dev_auc"])
    assert result["networks"][result["found"]]["dev_auc"] == best["dev_auc"]


def test_a_protocol_trains_every_part_on_its_own_clips(tmp_path: Path, box: tuple[str, str], files: list[str]) -> None:
    out = tmp_path / "run"
    done = train.run(job(files[:1], box, out, protocol=ProtocolConfig(protocol="folds")))
    assert [network["network"] for network in done.payload["networks"]] == [
        f"parts/fold-{fold}/networks/own_seed-0" for fold in range(5)
    ]
    parts = open_parts(str(out), None, None)
    tested: set[str] = set()
    for fold, (uri, (_, source)) in enumerate(parts.items()):
        stored = read_network(f"{uri}/networks/own_seed-0.safetensors")
        assert stored.facts["provenance"]["split_digest"] == source.split_digest()
        subjects = {row["subject"] for row in source.manifest.rows if row["split"] == "test"}
        assert not tested & subjects, f"fold {fold} tests subjects of another one"
        tested |= subjects
    assert len(tested) == 48
    again = train.run(TrainJobConfig(run=str(out), found=FOUND))
    assert again.payload["networks"] == done.payload["networks"]


def test_another_run_of_the_same_place_is_refused(tmp_path: Path, box: tuple[str, str], files: list[str]) -> None:
    with pytest.raises(InputError, match=r"is the run of a baseline, .*; give another --out\."):
        train.run(job(files, box, Path(plant_baseline(str(tmp_path / "baseline")))))
    out = tmp_path / "run"
    train.run(job(files[:1], box, out))
    with pytest.raises(InputError, match="was begun with the genotypes own; give another --out"):
        train.run(job(files, box, out))
    with pytest.raises(InputError, match="was begun with the seeds 0; give another --out"):
        train.run(job(files[:1], box, out, seeds=(1,)))
    Path(files[0]).write_text(genotype("audio.layer2", "visual.layer2").to_json())
    with pytest.raises(InputError, match="was begun with the genotypes others of these names"):
        train.run(job(files[:1], box, out))
    with pytest.raises(InputError, match="was trained with epochs 2, not 3; leave the option as it was, or train into"):
        train.run(TrainJobConfig(run=str(out), found=FoundConfig(epochs=3, batch_size=48)))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not JSON"),
        (
            genotype("visual.layer9", "audio.layer2", features={**FEATURES, "visual.layer9": 8}).to_json(),
            "genotype 'own' reads 'visual.layer9' with 8 channels, but .* has visual.layer2, .*; give the features",
        ),
        (
            genotype("visual.layer3", "audio.layer2", features={**FEATURES, "visual.layer3": 512}).to_json(),
            "reads 'visual.layer3' with 512 channels, but .* has it with 8; give the features of the backbones",
        ),
        (genotype("visual.layer3", "audio.layer2", length=3).to_json(), "has length 3, but the features of .* have 4"),
    ],
)
def test_genotypes_that_the_features_cannot_feed_are_refused(
    tmp_path: Path, box: tuple[str, str], files: list[str], content: str, sentence: str
) -> None:
    Path(files[0]).write_text(content)
    with pytest.raises((InputError, SettingError), match=sentence):
        train.run(job(files[:1], box, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_does_not_go_together_is_refused(tmp_path: Path, box: tuple[str, str], files: list[str]) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"own\.json is a genotype, which is trained into a run of its own"):
        train.run(TrainJobConfig(run=files[0]))
    with pytest.raises(InputError, match="manifest is missing; with --out, give --features and --manifest"):
        train.run(TrainJobConfig(run=files[0], features=box[0], out=str(out)))
    with pytest.raises(InputError, match=r"finetune is given, but runs/r is a run .* runs/r/points/ID/genotype\.json"):
        train.run(TrainJobConfig(run="runs/r", finetune=True))
    with pytest.raises(InputError, match="repeats is 0, but it must be at least 1"):
        train.run(TrainJobConfig(run="runs/r", repeats=0))
    with pytest.raises(InputError, match="is no file; give the JSON file of a genotype"):
        train.run(job([str(tmp_path / "missing.json")], box, out))
    with pytest.raises(InputError, match="two genotypes are called 'own'"):
        train.run(job([files[0], files[0]], box, out))
    with pytest.raises(InputError, match=r"seeds is \[1, 1\]; give at least one, each once"):
        train.run(job(files, box, out, seeds=(1, 1)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seeds": (1,)}, "seeds is given, but it is for genotypes, which are trained with --out; leave it out"),
        (
            {"out": "o", "controls": ("random",)},
            "controls is given, but it is for the controls of a search, and with --out there is none",
        ),
        ({"out": "o", "control_searches": 2}, "control_searches is given"),
        ({"out": "o", "shuffles": 2}, "shuffles is given"),
        ({"out": "o", "random_genotypes": 2}, "random_genotypes is given"),
        ({"backbones": BackboneOptions(taps=("pooled",))}, "taps is given, .* are trained, with --finetune"),
        ({"out": "o", "training": FinetuneConfig(micro_batch=2)}, "micro_batch is given"),
        ({"random_genotypes": 0}, "random_genotypes is 0, but it must be at least 1; leave random out of --controls"),
    ],
)
def test_options_that_nothing_would_look_at_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        train.run(TrainJobConfig(run="runs/r", **settings))


def test_other_settings_are_refused_before_the_controls_are_searched(
    tmp_path: Path, box: tuple[str, str], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(job(files[:1], box, tmp_path / "given"))
    stands = tmp_path / "run" / "parts" / "visual" / "networks" / "own.safetensors"
    stands.parent.mkdir(parents=True)
    (tmp_path / "given" / "networks" / "own_seed-0.safetensors").rename(stands)
    monkeypatch.setattr(train, "open_parts", lambda *_: {str(tmp_path / "run"): (GridConfig(), open_features(*box))})
    monkeypatch.setattr(train, "read_config", lambda uri: {})
    monkeypatch.setattr(train, "read_grid", lambda uri: [])
    monkeypatch.setattr(train, "_search_controls", None)
    with pytest.raises(InputError, match=r"parts/visual/networks/own\.safetensors was trained with epochs 2, not 3"):
        train.run(TrainJobConfig(run=str(tmp_path / "run"), found=FoundConfig(epochs=3, batch_size=48)))


def test_a_failing_network_leaves_the_others(
    tmp_path: Path, box: tuple[str, str], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Such a rate makes the numbers overflow.
    wild = FoundConfig(epochs=3, batch_size=48, weights=WeightSchedule(learning_rate_max=1e30))
    done = train.run(job(files[:1], box, tmp_path / "run", found=wild))
    assert done.exit_code == PARTLY
    assert done.payload["networks"] == []
    assert "ceased to be finite in epoch" in done.text


def test_the_preset_gives_way_to_what_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[FoundConfig] = []

    def record(config: TrainJobConfig) -> Any:
        seen.append(config.found)
        raise InputError("seen.")

    monkeypatch.setattr(train, "run", record)
    file = tmp_path / "options.yaml"
    file.write_text("preset: released\nfound_epochs: 9\n")
    for words in (["--preset", "released"], ["--preset", "released", "--found-learning-rate-max", "1e-3"], []):
        assert train.main(["runs/r", *words]) == WRONG_USE
    assert train.main(["runs/r", "--config", str(file)]) == WRONG_USE
    released = released_found_config()
    slower = WeightSchedule(learning_rate_max=1e-3, restart_epochs=5, weight_decay=1e-4)
    assert seen == [released, released_found_config(weights=slower), FoundConfig(), released_found_config(epochs=9)]


def test_controls_that_were_stopped_are_told(tmp_path: Path, box: tuple[str, str], monkeypatch: Any) -> None:
    stopped = GridResult("run/parts/audio", [{}], {}, 3, Stop("run", "SIGTERM"))
    source = open_features(*box)
    monkeypatch.setattr(train, "open_parts", lambda *_: {str(tmp_path): (GridConfig(), source)})
    monkeypatch.setattr(train, "read_config", lambda uri: {})
    monkeypatch.setattr(train, "read_grid", lambda uri: [])
    monkeypatch.setattr(train, "run_grids", lambda *_, **__: {"run/parts/audio": stopped})
    told = train.run(TrainJobConfig(run=str(tmp_path), found=FOUND))
    assert told.exit_code == STOPPED
    assert told.text == (
        "stopped early: SIGTERM; 1 of the controls' 4 points have a result, go on with the same command."
    )
    assert json.dumps(told.payload)


def test_a_part_without_results_is_left_out_and_named(
    tmp_path: Path, box: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, point = open_features(*box), Point(10.0, 15, "stgs", 0)
    parts = {f"{tmp_path}/parts/fold-{fold}": (GridConfig(), source) for fold in range(3)}

    def jobs(run: str, *_: Any, **__: Any) -> list[NetworkJob]:
        shuffled = replace(point, shuffle_seed=1)
        found = {GRID: (BOTH, point), VISUAL: (SIGHT, point), SHUFFLED: (BOTH, shuffled)}
        return [
            NetworkJob(network_uri(run, arm, "id"), genes.to_json(), 0, point) for arm, (genes, point) in found.items()
        ]

    monkeypatch.setattr(train, "open_parts", lambda *_: parts)
    monkeypatch.setattr(train, "read_config", lambda uri: {"settings": {"device": "cpu"}})
    monkeypatch.setattr(train, "control_jobs", jobs)
    config = TrainJobConfig(run=str(tmp_path), found=FOUND, controls=())
    with pytest.raises(InputError, match=r"^no part of .* has results yet; run 'stgs grid --resume' on it first\.$"):
        train.run(config)
    for fold in (0, 2):
        rows = pa.Table.from_pylist([{"id": "id"}])
        storage.write(f"{tmp_path}/parts/fold-{fold}/grid.parquet", boxes.table_bytes(rows))
    done = train.run(config)
    assert done.exit_code == PARTLY
    assert list(done.payload["left_out"]) == ["fold-1"]
    assert f"left out: {tmp_path}/parts/fold-1 has no results yet" in done.text
    assert len(done.payload["networks"]) == 2 * 3
    # Those of shuffled labels, whose dev is shuffled, are not told; the grid's stand first, whatever their AUC.
    told = [line.split() for line in done.text.splitlines() if line.startswith("  ")]
    assert [line[0] for line in told] == ["grid", "grid", "visual"]
    assert [line[1] for line in told[:2]] == sorted((line[1] for line in told[:2]), reverse=True)
    aucs = {network["network"]: network["dev_auc"] for network in done.payload["networks"]}
    assert all(f"{aucs[line[-1]]:.3f}" == line[1] for line in told)


def test_workers_that_were_stopped_are_told(
    tmp_path: Path, box: tuple[str, str], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def stopped(jobs: Sequence[NetworkJob], *_: Any, **given: Any) -> TrainedNetworks:
        asked.update(given, networks=len(jobs))
        return TrainedNetworks({}, Stop("run", "SIGTERM"), 2)

    monkeypatch.setattr(train, "train_networks_with_workers", stopped)
    told = train.run(job(files, box, tmp_path / "run", workers="1:2"))
    assert (told.exit_code, told.text) == (
        STOPPED,
        "stopped early: SIGTERM; 2 networks are not trained yet, go on with the same command.",
    )
    group = asked.pop("workers")
    assert (group.fewest, group.most) == (1, 2)
    assert asked == {"networks": 2, "run": str(tmp_path / "run"), "device": "cpu", "threads": 1}
