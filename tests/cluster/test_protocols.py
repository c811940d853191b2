"""Runs of a protocol: their searches, and what they say of themselves."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
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
from tests.cluster.undriven import drive_without_ray
from tests.planted import make_features, two_data_sets

SETTINGS = SearchSettings(channels=4, device="cpu", search=SearchConfig(epochs=2, batch_size=64))
CONFIG = GridConfig(temperatures=(10.0,), num_samples=(3, 5), settings=SETTINGS)
CROSS = ProtocolConfig(protocol="cross", split_seed=1)
PARTS = ["train-east", "train-west"]
NO_LIMITS = RunLimits()


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
    with pytest.raises(InputError, match=r"was begun with --protocol cross --split-seed 1 .*; give those, or"):
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


@pytest.fixture
def undriven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches are driven without Ray."""

    drive_without_ray(monkeypatch)
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
    none = dict.fromkeys(("over_parts", "methods_over_parts", "matrix"))
    assert protocols.summary(out) == {"protocol": "mixed", "parts": {}, **none}
    assert protocols.summary_text(protocols.summary(out)) == []


def test_parts_share_the_devices_that_packs_are_planned_for(
    tmp_path: Path, source: FeatureSource, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "search_with_tune", lambda *_, **__: {})
    run = open_protocol(str(tmp_path / "run"), CROSS, source)
    # 2 devices, 2 parts of 2 points: a pack each, not two.
    run.search_grids(CONFIG, resume=False, limits=NO_LIMITS)
    assert [len(list((tmp_path / "run" / "parts" / name / "packs").glob("pack-*"))) for name in PARTS] == [1, 1]


def test_another_protocol_is_refused_by_the_options_of_the_first(tmp_path: Path, source: FeatureSource) -> None:
    def settings(config: ProtocolConfig, **more: Any) -> dict[str, Any]:
        return {**more, **protocol_settings(config, protocols.parts_of(config, source.manifest))}

    def told(run: str, content: dict[str, Any]) -> str:
        with pytest.raises(InputError) as refused:
            open_run(run, content, resume=True, hints={})
        return str(refused.value)

    folds = str(tmp_path / "folds")
    open_run(folds, settings(ProtocolConfig(protocol="folds")), resume=False, hints={})
    expected = f"{folds} was begun with --protocol folds --split-seed 0; give those, or another --out."
    # Other settings may follow from another protocol, and stand before it in the alphabet.
    assert told(folds, {"a_digest": "x"}) == expected
    assert told(folds, settings(ProtocolConfig(protocol="folds", split_seed=1))) == expected
    method = ProtocolConfig(protocol="method", test_methods=("planted",))
    other = str(tmp_path / "method")
    open_run(other, {"protocol": {**asdict(method), "parts": {}}}, resume=False, hints={})
    options = "--split-seed 0 --dev-subjects 0.2 --test-subjects 0.2 --test-methods planted"
    assert f"was begun with --protocol method {options}; give those" in told(other, settings(CROSS))
    plain = str(tmp_path / "plain")
    open_run(plain, {"a_digest": "x"}, resume=False, hints={})
    sentence = f"{plain} was begun without --protocol; leave it out, or give another --out."
    assert told(plain, settings(CROSS)) == sentence
    # Of the same protocol, what differs is named.
    assert "was begun with a_digest None, not 'x'" in told(
        folds, settings(ProtocolConfig(protocol="folds"), a_digest="x")
    )
