"""Runs of a protocol: their searches, what they say of themselves, and what their parts say together."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import devices, grid, packing, protocols
from cluster.audits import read_audit
from cluster.driving import Driver
from cluster.engines_train import WorkerGroup
from cluster.features import FeatureSource, open_features
from cluster.fetching import fetch_results
from cluster.gathering import read_grid
from cluster.limits import RunLimits
from cluster.liveness import read_driver
from cluster.packing import add_packs, plan_packs
from cluster.protocol_runs import joined, open_protocol
from cluster.protocol_splits import ProtocolConfig, protocol_settings
from cluster.runs import open_run, read_config
from cluster.search_loop import search_pack
from cluster.settings import GridConfig, SearchSettings
from cluster.stopping import Stop
from cluster.watching import Watcher
from data_prep import boxes, storage
from data_prep.leaks import split_summary
from data_prep.manifest import write_manifest
from data_prep.splits import SplitConfig, split_rows
from data_prep.storage import InputError
from jobs import cli
from jobs.grid import parts_outcome
from jobs.status import text as status_text
from stgs.config import SearchConfig
from tests.planted import make_features

SETTINGS = SearchSettings(channels=4, device="cpu", search=SearchConfig(epochs=2, batch_size=64))
CONFIG = GridConfig(temperatures=(10.0,), num_samples=(3, 5), settings=SETTINGS)
CROSS = ProtocolConfig(protocol="cross", split_seed=1)
PARTS = ["train-east", "train-west"]
NO_LIMITS = RunLimits()


def two_data_sets(rows: list[dict[str, Any]]) -> None:
    """Every other subject is of another data set; splits are none."""
    for row in rows:
        row["dataset"] = "east" if int(row["subject"][-1]) % 2 else "west"
        row["split"] = None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted"), change=two_data_sets))


def searched_alone(source: FeatureSource, folder: Path, part: str) -> list[dict[str, Any]]:
    """The grid of a part, on a manifest that was written with its split, in one process without Ray."""
    split = SplitConfig(split="cross", train_datasets=(part[6:],), test_datasets=("east", "west"), seed=1)
    rows = split_rows(source.manifest.rows, split).rows
    write_manifest(str(folder / "manifest"), rows, source.manifest.roots, {"planted": True})
    own = open_features(source.uri, str(folder / "manifest"))
    run, splits = str(folder / "run"), own.load_splits(("train", "dev"))
    packs = add_packs(run, [], plan_packs(replace(CONFIG, pack=2), SETTINGS, own))
    for pack in packs:
        search_pack(grid.pack_job(run, SETTINGS, own, pack), pack, splits["train"], splits["dev"], lambda row: None)
    return grid.gather(run, packs, {}).rows


def stable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("id", "genotype", "dev_auc", "best_epoch")} for row in rows]


@pytest.mark.ray
@pytest.mark.timeout(150)
def test_a_protocol_that_was_stopped_resumes_to_whole_runs_of_its_parts(
    ray_session: None, tmp_path: Path, source: FeatureSource
) -> None:
    out = str(tmp_path / "run")
    run = open_protocol(out, CROSS, source)
    late = RunLimits(deadline="2000-01-01T00:00Z")
    stopped = run.search_grids(CONFIG, resume=False, limits=late, progress=False)
    assert (
        joined(out, stopped).stopped().startswith("stopped early: the deadline 2000-01-01 00:00 UTC has passed; 0 of 4")
    )
    status = Watcher(out).look()
    assert (status.counts["waiting"], list(status.parts)) == (4, PARTS)
    assert status.driver is not None
    assert (status.driver["ended"], status.over) == ("stopped", True)
    with pytest.raises(InputError, match="stands already; continue it with --resume"):
        run.search_grids(CONFIG, resume=False, limits=NO_LIMITS)
    other = open_protocol(out, ProtocolConfig(protocol="folds"), source)
    with pytest.raises(InputError, match="was begun with protocol"):
        other.search_grids(CONFIG, resume=True, limits=NO_LIMITS)

    results = run.search_grids(CONFIG, resume=True, limits=NO_LIMITS, progress=False)
    assert list(results) == PARTS
    for name, result in results.items():
        assert (result.failed, result.stop) == ({}, None)
        assert stable(result.rows) == stable(searched_alone(source, tmp_path / name, name))
    _says_what_it_was(out, source)
    _is_shown_and_fetched(out, tmp_path / "fetched")
    # One driver's word for the whole, and nothing is searched twice.
    driver, parts = read_driver(out), [read_driver(f"{out}/parts/{name}") for name in PARTS]
    assert driver is not None
    assert (driver["ended"], driver["generation"]) == ("complete", 2)
    spent = [part["device_seconds"] for part in parts if part is not None]
    assert driver["device_seconds"] == pytest.approx(sum(spent), rel=0.2)
    assert min(spent) > 0


def _says_what_it_was(out: str, source: FeatureSource) -> None:
    protocol = read_config(out)["protocol"]
    assert (protocol["protocol"], protocol["split_seed"], list(protocol["parts"])) == ("cross", 1, PARTS)
    assert "split_digest" not in read_config(out), "its clips have no split of their own"
    opened = protocols.open_parts(out, None, None)
    assert list(opened) == [f"{out}/parts/{name}" for name in PARTS] == list(protocols.part_uris(out).values())
    for name, (uri, (config, clips)) in zip(PARTS, opened.items(), strict=True):
        assert replace(config, devices=None, pack="auto") == CONFIG
        tested = {row["dataset"] for row in clips.manifest.rows if row["split"] == "test"}
        trained = {row["dataset"] for row in clips.manifest.rows if row["split"] == "train"}
        assert (tested, trained) == ({"east", "west"}, {name.removeprefix("train-")})
        audit = read_audit(uri)
        assert audit is not None
        assert audit["leaks"] == split_summary(clips.manifest.rows)["leaks"]
        assert protocols.open_parts(uri, None, None).keys() == {uri}
    with pytest.raises(
        InputError, match="has the parts train-east, train-west, each a run of its own; give one of them"
    ):
        protocols.open_run_source(out, None, None)
    rows = read_grid(out)
    assert [row["part"] for row in rows] == [name for name in PARTS for _ in range(2)]
    assert stable(rows) == [row for name in PARTS for row in stable(read_grid(f"{out}/parts/{name}"))]


def _is_shown_and_fetched(out: str, folder: Path) -> None:
    status = Watcher(out).look()
    assert (status.counts["done"], sum(status.counts.values())) == (4, 4)
    assert {name: counts["done"] for name, counts in status.parts.items()} == dict.fromkeys(PARTS, 2)
    assert sorted(point.id for point in status.points) == sorted(f"{row['part']}/{row['id']}" for row in read_grid(out))
    assert all(point.dev_auc is not None for point in status.points)
    assert "part train-west: 2 points: 2 done" in status_text(status)
    # A control of a part is a part of that part.
    storage.write(f"{out}/parts/train-east/parts/visual/packs/index.json", b"[]")
    assert list(Watcher(out).look().parts) == ["train-east", "train-east/visual", "train-west"]
    names = fetch_results(out, str(folder)).names
    expected = ["config.yaml", "environment.json", "grid.parquet"]
    for name in PARTS:
        genotypes = [f"points/{row['id']}/genotype.json" for row in read_grid(f"{out}/parts/{name}")]
        expected += [f"parts/{name}/{file}" for file in ["config.yaml", "environment.json", "grid.parquet", *genotypes]]
    assert sorted(names) == sorted(expected)
    assert (folder / "parts" / PARTS[0] / "grid.parquet").is_file()


class Undriven(Driver):
    """A driver without a board, in tests without Ray."""

    def work_on(self, run: str, *, takeover: bool, is_whole: bool = False) -> None:
        """Nobody else does."""

    def confirm(self, run: str) -> None:
        """Nor later."""

    def look(self) -> None:
        """Nobody is asked."""


@pytest.fixture
def undriven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches are driven without Ray."""

    @contextlib.contextmanager
    def driving(**limits: Any) -> Iterator[Driver]:
        yield Undriven(None)

    monkeypatch.setattr(grid, "driving", driving)
    monkeypatch.setattr(devices, "_most", lambda resource, size: 2 // size if resource == "CPU" else 0)
    monkeypatch.setattr(packing, "planned_devices", lambda kind, threads: 2)
    monkeypatch.setattr(packing, "device_memory", lambda kind, threads: None)


def test_searches_on_ray_train_come_one_after_another_and_stop_together(
    tmp_path: Path, source: FeatureSource, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    def search(trial: Any, splits: Any, driver: Driver, group: WorkerGroup, *, progress: bool) -> dict[Any, str]:
        seen.append((trial[0].run, len(splits["train"])))
        if len(seen) == 2:
            driver.request(Stop("run", "SIGTERM"))
        return {(trial[0].run, trial[1].name): "no luck"}

    monkeypatch.setattr(grid, "search_with_train", search)
    out = str(tmp_path / "run")
    run = open_protocol(out, ProtocolConfig(protocol="folds"), source)
    one = replace(CONFIG, num_samples=(3,))
    results = run.search_singles(one, workers=WorkerGroup(), resume=False, limits=NO_LIMITS)
    splits = [clips.manifest_clips("train") for clips in run.parts.values()]
    assert seen == [(f"{out}/parts/fold-{fold}", splits[fold]) for fold in (0, 1)]
    whole = joined(out, results)
    (point,) = one.points()
    assert whole.failed == {f"fold-{fold}/{point.id}": "no luck" for fold in (0, 1)}
    assert (whole.unfinished, whole.stop) == (3, Stop("run", "SIGTERM"))
    told = parts_outcome(out, results, 1.0)
    assert told.exit_code == cli.STOPPED
    assert told.text.startswith("stopped early: SIGTERM; 0 of 5 points have a result, go on with --resume.")
    assert not (tmp_path / "run" / "grid.parquet").exists()


def test_mixed_is_one_run_that_says_how_it_was_split(
    tmp_path: Path, source: FeatureSource, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "search_with_tune", lambda *_, **__: {})
    out = str(tmp_path / "run")
    config = ProtocolConfig(protocol="mixed", dev_subjects=8, test_subjects=10)
    run = open_protocol(out, config, source)
    (result,) = run.search_grids(CONFIG, resume=False, limits=NO_LIMITS).values()
    assert (result.run, result.unfinished) == (out, 2)
    content = read_config(out)
    assert (content["protocol"]["protocol"], content["protocol"]["parts"]) == ("mixed", {})
    ((uri, (_, clips)),) = protocols.open_parts(out, None, None).items()
    assert uri == out
    assert clips.manifest.rows == split_rows(source.manifest.rows, SplitConfig(dev=8, test=10)).rows
    told = json.loads(boxes.canonical_json(clips.protocol))
    assert told == {name: content[name] for name in ("split", "protocol")}
    assert run.search_grids(CONFIG, resume=True, limits=NO_LIMITS)[""].unfinished == 2
    assert protocols.summary(out) == {"protocol": "mixed", "parts": {}, "over_parts": None, "matrix": None}
    assert protocols.summary_text(protocols.summary(out)) == []


def test_parts_share_the_devices_that_packs_are_planned_for(
    tmp_path: Path, source: FeatureSource, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "search_with_tune", lambda *_, **__: {})
    run = open_protocol(str(tmp_path / "run"), CROSS, source)
    # 2 devices, 2 parts of 2 points: a pack each, not two.
    run.search_grids(CONFIG, resume=False, limits=NO_LIMITS)
    assert [len(list((tmp_path / "run" / "parts" / name / "packs").glob("pack-*"))) for name in PARTS] == [1, 1]


def estimate(value: float | None, sentence: str | None = None) -> dict[str, Any]:
    bounds = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {"value": value, "low": bounds[0], "high": bounds[1], "sentence": sentence}


Aucs = dict[str, dict[str, float | None]]


def evaluated(folder: Path, config: ProtocolConfig, source: FeatureSource, aucs: Aucs) -> str:
    """A run of a protocol with metrics.json of what was evaluated: part -> data set -> AUC of the found network.

    Accuracies are 0.05 below.
    """
    run = str(folder / "run")
    settings = protocol_settings(config, protocols.parts_of(config, source.manifest))
    open_run(run, settings, resume=False, hints={})
    for part, datasets in aucs.items():
        for dataset, auc in datasets.items():
            accuracy = None if auc is None else auc - 0.05
            found = {
                "auc": estimate(auc, None if auc is not None else "one class alone"),
                "accuracy": estimate(accuracy),
            }
            content = {"version": 2, "found": "grid/best", "clips": 40, "subjects": 10}
            content |= {"networks": {"grid/best": found, "grid/other": {"auc": estimate(0.99)}}}
            storage.write(f"{run}/parts/{part}/evaluation/{dataset}/metrics.json", json.dumps(content).encode())
    return run


def test_folds_are_told_with_mean_and_deviation(tmp_path: Path, source: FeatureSource) -> None:
    aucs: list[float | None] = [0.8, 0.9, 0.7, None]
    config = ProtocolConfig(protocol="folds")
    run = evaluated(tmp_path, config, source, {f"fold-{fold}": {"east": auc} for fold, auc in enumerate(aucs)})
    found = protocols.summary(run)
    told = found["over_parts"]["east"]["auc"]
    # By hand: mean 0.8, squared deviations 0, 0.01 and 0.01 over n - 1 = 2.
    assert (told["mean"], told["deviation"]) == (pytest.approx(0.8), pytest.approx(0.1))
    assert (told["count"], told["of"], told["sentence"]) == (3, 4, "1 of 4 parts have no value")
    assert found["over_parts"]["east"]["accuracy"]["mean"] == pytest.approx(statistics.fmean([0.75, 0.85, 0.65]))
    assert found["parts"]["fold-1"]["datasets"]["east"]["network"] == "grid/best"
    assert found["parts"]["fold-4"]["sentence"] == "it has not been evaluated; run 'stgs evaluate'"
    assert (found["matrix"], found["protocol"]) == (None, "folds")
    lines = protocols.summary_text(found)
    assert lines[0] == "protocol folds: the found network of each of 5 parts, on test"
    assert "  fold-0 on east: AUC 0.800 [0.700, 0.900], accuracy 0.750 [0.650, 0.850]" in lines
    assert "  fold-3 on east: AUC unknown (one class alone), accuracy unknown" in lines
    mean = "  all parts on east: AUC 0.800 on average, standard deviation 0.100 (1 of 4 parts have no value), accuracy"
    assert any(line.startswith(mean) for line in lines)
    json.dumps(found, allow_nan=False)

    rows = protocols.summary_rows(found)
    assert [row["part"] for row in rows] == ["fold-0", "fold-1", "fold-2", "fold-3", "mean", "deviation"]
    written = io.StringIO()
    table = csv.DictWriter(written, rows[0])
    table.writerows(rows)  # every row has the columns of the first
    assert [row["auc"] for row in rows[4:]] == pytest.approx([0.8, 0.1])


def test_one_method_has_no_deviation_and_a_damaged_file_is_named(tmp_path: Path, source: FeatureSource) -> None:
    def methods(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["method"] = f"method{row['category']}"

    clips = open_features(*make_features(tmp_path / "clips", change=methods))
    run = evaluated(tmp_path, ProtocolConfig(protocol="method"), clips, {"method-methodB": {"planted": 0.75}})
    told = protocols.summary(run)["over_parts"]["planted"]["auc"]
    assert told == {"mean": 0.75, "deviation": None, "count": 1, "of": 1, "sentence": "one part alone has no deviation"}
    metrics = f"{run}/parts/method-methodB/evaluation/planted/metrics.json"
    storage.write(metrics, b'{"version": 1}')
    old = protocols.summary(run)
    assert "is of another version of this program" in old["parts"]["method-methodB"]["sentence"]
    assert (old["over_parts"], protocols.summary_rows(old)) == ({}, [])
    storage.write(metrics, b"{")
    with pytest.raises(InputError, match=r"metrics\.json is damaged .*; put it back"):
        protocols.summary(run)


def test_cross_gives_the_matrix_of_train_and_test_data_sets(tmp_path: Path, source: FeatureSource) -> None:
    aucs = {"train-east": {"east": 0.9, "west": 0.6, "mixed": 0.7}, "train-west": {"east": 0.5}}
    found = protocols.summary(evaluated(tmp_path, CROSS, source, {name: dict(part) for name, part in aucs.items()}))
    assert found["over_parts"] is None
    matrix = found["matrix"]
    assert matrix["datasets"] == ["east", "west"]
    cells = {
        train: {test: cell["auc"]["value"] for test, cell in tested.items()}
        for train, tested in matrix["cells"].items()
    }
    assert cells == {"east": {"east": 0.9, "west": 0.6}, "west": {"east": 0.5, "west": None}}
    assert matrix["cells"]["west"]["west"]["auc"]["sentence"] == "it was not tested on west"
    assert [line.split() for line in protocols.summary_text(found)[-3:]] == [
        ["east", "west"],
        ["east", "0.900", "/", "0.850", "0.600", "/", "0.550"],
        ["west", "0.500", "/", "0.450", "-", "/", "-"],
    ]
