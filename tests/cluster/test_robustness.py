"""The found network of a small run on damaged test clips: on Ray from end to end, resumed, and what is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster import robustness as robustness_module
from cluster.attempts import Point
from cluster.controls import AUDIO, GRID, network_uri
from cluster.evaluation import evaluate_run, score_clips
from cluster.extract import ExtractWorker
from cluster.features import FeatureSource, Split, open_features
from cluster.network_files import NetworkJob, neutral_values, provenance, read_network, write_network
from cluster.prepare import PrepareWorker
from cluster.robustness import choose_clips, measure
from cluster.robustness_results import robustness
from data_prep import boxes, storage
from data_prep.manifest import clip_row, read_manifest, write_manifest
from data_prep.storage import InputError
from stgs.backbones import BackboneConfig, weights_digest
from stgs.config import FoundConfig
from stgs.found_network import FoundNetwork
from stgs.found_training import member_weights
from stgs.genotype import CellGene, Genotype, StepGene
from stgs.metrics import auc
from tests.cluster.clip_files import CONFIG, write_clip
from tests.planted import make_features

BACKBONES = BackboneConfig(
    visual="resnet18", visual_weights="random:1", audio="resnet18", audio_weights="random:2", taps=("layer2", "pooled")
)
DAMAGES = ("blur", "offset")
POINT = Point(5.0, 5, "stgs", 0)
FOUND = f"{GRID}/{POINT.id}"
QUIET = "test-0-A"
"""It ends so soon after its window has begun that a sound 400 ms early is silent."""


@dataclass
class Evaluated:
    run: str
    source: FeatureSource
    metrics: dict[str, Any]


def make_box(folder: Path) -> FeatureSource:
    """Clips of two subjects in each split, prepared and extracted as the workers do it, in this process."""
    rows = []
    for number, (split, subject, category) in enumerate(
        (split, subject, category) for split in ("train", "dev", "test") for subject in range(2) for category in "AD"
    ):
        clip_id = f"{split}-{subject}-{category}"
        odd = {"seconds": 3.0, "silent_after": 1.25} if clip_id == QUIET else {}
        write_clip(folder / "clips" / f"{clip_id}.mp4", number, **odd)
        path, who = f"clips/{clip_id}.mp4", f"{split}-{subject}"
        row = clip_row(clip_id=clip_id, video_path=path, category=category, dataset="toy", subject=who, split=split)
        rows.append(row)
    manifest = str(folder / "manifest")
    write_manifest(manifest, rows, {"clips": str(folder / "clips")}, {})
    read = read_manifest(manifest)
    corpus, features = str(folder / "corpus"), str(folder / "features")
    name = boxes.shard_name(0)
    *_, prepared = PrepareWorker(corpus, read.roots, CONFIG, None).work(
        {"name": name, "rows": read.rows, "position": 0}
    )
    assert prepared["counts"]["clips"] == len(rows)
    worker = ExtractWorker(corpus, features, BACKBONES, "cpu", 1)
    *_, made = worker.work({"name": name, "sha256": prepared["files"][name], "position": 0})
    extra = {
        "device": "cpu",
        "threads": 1,
        "weights": {sense: weights_digest(getattr(BACKBONES, f"{sense}_weights")) for sense in ("visual", "audio")},
        "features": made["features"],
        "length": BACKBONES.length,
        "corpus_config": asdict(CONFIG),
        "manifest": read.meta.digest,
    }
    meta = boxes.Meta(
        kind=boxes.FEATURES,
        config=asdict(BACKBONES),
        counts={"clips": len(rows)},
        versions={},
        parent=None,
        files={name: made["sha256"]},
        extra=extra,
    )
    boxes.write_meta(features, meta)
    return open_features(features, manifest)


def write_untrained(run: str, arm: str, source: FeatureSource, *features: str) -> None:
    """A network of drawn weights: robustness asks nothing of how good it is."""
    cell = CellGene((features[0], features[1]), (StepGene("sum", ("in1", "in2")), StepGene("sum", ("in1", "step1"))))
    genotype = Genotype(features=source.features, channels=8, length=source.length, cells=(cell,))
    write_network(
        NetworkJob(network_uri(run, arm, POINT.id), genotype.to_json(), 0, POINT),
        genotype,
        member_weights(FoundNetwork(genotype, [3]), 0),
        config=FoundConfig(),
        metrics={"dev_auc": 0.5, "best_epoch": 1, "threshold": 0.5},
        neutral=neutral_values(source.load("train"), features),
        seconds=1.0,
        provenance=provenance(source),
    )


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return make_box(tmp_path_factory.mktemp("box"))


@pytest.fixture(scope="module")
def small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness_module, "_CLIPS_PER_PART", 2)
        yield


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, box: FeatureSource) -> Evaluated:
    run = str(tmp_path_factory.mktemp("evaluated") / "run")
    write_untrained(run, GRID, box, "visual.layer2", "audio.layer2")
    write_untrained(run, AUDIO, box, "audio.layer2", "audio.pooled")
    grid = pa.Table.from_pylist([{"id": POINT.id, **asdict(POINT)}])
    storage.write(storage.join(run, "grid.parquet"), boxes.table_bytes(grid))
    return Evaluated(run, box, evaluate_run(run, box, resamples=100)["toy"])


@pytest.fixture(scope="module")
def result(ray_session: None, evaluated: Evaluated, small_parts: None) -> dict[str, Any]:
    """What is measured of the run, by actors of Ray."""
    return measure(evaluated.run, evaluated.source, damages=DAMAGES, actors=1, resamples=100, progress=False)["toy"]


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch, ray_session: None, small_parts: None) -> None:
    """The actors' work is done in this process."""

    def run(worker: Any, arguments: dict[str, Any], work: Sequence[dict[str, Any]], **_: object) -> list[Any]:
        made = worker(**arguments)
        return [list(made.work({**shard, "position": position}))[-1] for position, shard in enumerate(work)]

    monkeypatch.setattr(robustness_module.shards, "run", run)


def rows_of(result: dict[str, Any], name: str) -> dict[int, dict[str, Any]]:
    (damage,) = (damage for damage in result["damages"] if damage["name"] == name)
    return {row["severity"]: row for row in damage["rows"]}


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_undamaged_clips_get_what_evaluate_gave_them(evaluated: Evaluated, result: dict[str, Any]) -> None:
    assert json.loads(Path(evaluated.run, "evaluation/toy/robustness.json").read_bytes()) == result
    assert (result["clips"], result["subjects"], result["network"]) == (4, 2, FOUND)
    assert [(damage["name"], damage["sense"]) for damage in result["damages"]] == [
        ("blur", "visual"),
        ("offset", "both"),
    ]
    assert result["largest_difference"] < 1e-6
    for name in DAMAGES:
        row = rows_of(result, name)[0]
        # The same draws of subjects, too.
        assert row["auc"] == evaluated.metrics["networks"][FOUND]["auc"]
        assert (row["label"], row["scored"], row["refused"]) == ("none", 4, 0)


@pytest.mark.ray
def test_a_clip_that_a_damage_makes_unscorable_is_counted(evaluated: Evaluated, result: dict[str, Any]) -> None:
    offset = rows_of(result, "offset")
    assert list(offset) == [-3, -2, -1, 0, 1, 2, 3]
    assert (offset[-3]["scored"], offset[-3]["refused"], offset[-3]["reasons"]) == (3, 1, {"silent": 1})
    parts = sorted(Path(evaluated.run, "evaluation/toy/robustness").glob("part-*.parquet"))
    assert [len(boxes.read_table(str(part))) for part in parts] == [2 * 12, 2 * 12]
    scored = [row for part in parts for row in boxes.read_table(str(part)).to_pylist()]
    early = {row["clip_id"]: row["score"] for row in scored if (row["damage"], row["severity"]) == ("offset", -3)}
    assert early[QUIET] is None
    kept = {clip_id: score for clip_id, score in early.items() if score is not None}
    assert offset[-3]["auc"]["value"] == auc(list(kept.values()), [clip_id.endswith("D") for clip_id in kept])


@pytest.mark.ray
@pytest.mark.usefixtures("_here")
def test_parts_that_stand_are_kept_and_others_are_not_mixed_in(
    evaluated: Evaluated, result: dict[str, Any], tmp_path: Path
) -> None:
    run = str(shutil.copytree(evaluated.run, tmp_path / "run"))
    folder = Path(run, "evaluation/toy/robustness")
    kept, lost = sorted(folder.glob("part-*.parquet"))
    content, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert measure(run, evaluated.source, damages=DAMAGES, resamples=100)["toy"] == result
    assert (kept.stat().st_mtime_ns, lost.read_bytes()) == (stamp, content)
    with pytest.raises(
        InputError, match=r"robustness was begun with other clips, damages; give those again, or delete"
    ):
        measure(run, evaluated.source, damages=("offset",), clips=3)


def test_without_a_sense(tmp_path: Path) -> None:
    source = open_features(*make_features(tmp_path))
    run, alone = str(tmp_path / "run"), f"{AUDIO}/{POINT.id}"
    write_untrained(run, GRID, source, "visual.layer3", "audio.layer2")
    write_untrained(run, AUDIO, source, "audio.layer2", "audio.pooled")
    networks = {name: read_network(network_uri(run, name.split("/")[0], POINT.id)) for name in (FOUND, alone)}
    test, train = source.load("test"), source.load("train")
    scores = {name: score_clips(stored, test) for name, stored in networks.items()}
    who = {name: list(values) for name, values in test.clips.items()}
    table = pa.table({**who, "method": ["planted"] * len(test), "label": test.labels, **scores})
    undamaged = {("none", 0): dict(zip(who["clip_id"], scores[FOUND], strict=True))}
    made = robustness(table, undamaged, [], FOUND, networks, test, {"seed": 0, "resamples": 20})

    def with_mean(feature: str) -> float:
        """AUC of the found network where all clips have the mean of the train clips."""
        mean = train.columns[feature].astype(np.float64).mean(axis=0)
        columns = {**test.columns, feature: np.stack([mean] * len(test)).astype(np.float32)}
        return auc(score_clips(networks[FOUND], Split(columns, test.labels, test.clips)), test.labels)

    values = [(row["sense"], row["network"], row["auc"]["value"]) for row in made["missing"]]
    # Means are rounded to halves where features are.
    assert values == [
        ("visual", FOUND, pytest.approx(with_mean("visual.layer3"), abs=0.005)),
        ("visual", alone, pytest.approx(auc(scores[alone], test.labels), abs=1e-9)),
        ("audio", FOUND, pytest.approx(with_mean("audio.layer2"), abs=0.005)),
        ("audio", None, None),
    ]
    undamaged_auc = auc(scores[FOUND], test.labels)
    assert all(abs(value - undamaged_auc) > 0.02 for _, name, value in values if name == FOUND)
    assert "no network of visual features alone" in made["missing"][3]["auc"]["sentence"]
    old = {**networks, FOUND: replace(networks[FOUND], neutral={})}
    told = robustness(table, undamaged, [], FOUND, old, test, {"seed": 0, "resamples": 20})["missing"][0]["auc"]
    assert told["value"] is None
    assert "holds no neutral values" in told["sentence"]


@pytest.mark.ray
@pytest.mark.usefixtures("_here")
def test_wrong_input_is_told_in_a_sentence(evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="damage 'rain' is none"):
        measure(evaluated.run, evaluated.source, damages=("rain",))
    with pytest.raises(InputError, match="robustness_clips is 1, but it must be at least 2"):
        measure(evaluated.run, evaluated.source, clips=1)
    with pytest.raises(InputError, match="was not evaluated; run 'stgs evaluate'"):
        measure(str(tmp_path / "other"), evaluated.source)
    manifest = evaluated.source.manifest
    rows = [{**row, "video_path": "clips/gone.mp4"} for row in manifest.rows]
    moved = replace(evaluated.source, manifest=replace(manifest, rows=rows))
    run = str(shutil.copytree(evaluated.run, tmp_path / "run", ignore=shutil.ignore_patterns("robustness*")))
    with pytest.raises(InputError, match=r"clips/gone\.mp4 is not there any more"):
        measure(run, moved, damages=("blur",))


def test_clips_are_chosen_evenly() -> None:
    sizes = {("A", "real"): 30, ("B", "voice"): 30, ("D", "swap"): 180, ("D", "lips"): 60}
    rows = [
        clip_row(clip_id=f"{category}{method}{number}", video_path="x", category=category, dataset="d", subject="s")
        | {"method": method}
        for (category, method), size in sizes.items()
        for number in range(size)
    ]

    def counts(chosen: list[int]) -> list[int]:
        picked = [(rows[index]["category"], rows[index]["method"]) for index in chosen]
        return [picked.count(group) for group in sizes]

    assert counts(choose_clips(rows, 36)) == [18, 2, 12, 4]
    assert counts(choose_clips(rows, 90)) == [30, 7, 40, 13], "as many real clips as there are"
    assert choose_clips(rows, None) == choose_clips(rows, 999) == list(range(300))
    chosen = {rows[index]["clip_id"] for index in choose_clips(rows, 36)}
    turned = rows[::-1]
    assert {turned[index]["clip_id"] for index in choose_clips(turned, 36)} == chosen, "whatever their order"
    assert chosen < {rows[index]["clip_id"] for index in choose_clips(rows, 60)}
