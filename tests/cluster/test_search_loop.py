"""The search of one pack without Ray: what it writes, and that a search that died goes on to the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster import search_loop
from cluster.attempts import Attempt, Pack, Point, read_failure, read_result
from cluster.features import FeatureSource, open_features
from cluster.packing import add_packs, split_packs
from cluster.search_loop import PackJob, search_pack
from cluster.settings import SearchSettings
from data_prep import boxes
from data_prep.manifest import read_manifest, write_manifest
from data_prep.storage import InputError
from stgs.config import SearchConfig
from tests.planted import SPLIT_SUBJECTS, make_features

PACK = Pack("pack-0000", (Point(10.0, 5, "stgs", 0), Point(5.0, 3, "stgs", 1), Point(10.0, 5, "stgs", 0, 7)))
SETTINGS = SearchSettings(channels=8, search=SearchConfig(epochs=4, batch_size=32))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    return open_features(*make_features(tmp_path_factory.mktemp("planted")))


def search(
    run: Path, source: FeatureSource, stop_after: int | None = None, pack: Pack = PACK, session: str = "one"
) -> None:
    """Search a pack in this process; `stop_after`: die in the report of that epoch, as a killed trial would."""
    add_packs(str(run), [], [PACK])
    space = SETTINGS.space(source)
    job = PackJob(run=str(run), space=space, config=SETTINGS.search, device="cpu", threads=1, session=session)

    def report(row: dict[str, Any]) -> None:
        if row["epoch"] == stop_after:
            raise KeyboardInterrupt

    splits = source.load_splits(("train", "dev"))
    search_pack(job, pack, splits["train"], splits["dev"], report)


def outcome(run: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """Genotypes and metrics of the points, and the rows of the curves: all but seconds."""
    results = [read_result(str(run), point.id) for point in PACK.points]
    assert all(result is not None for result in results)
    found = [(result["genotype"], result["metrics"]) for result in results if result is not None]
    path = next(result["curves"]["path"] for result in results if result is not None)
    return found, boxes.read_table(str(run / path)).to_pylist()


def test_an_interrupted_search_ends_as_an_uninterrupted_one(tmp_path: Path, source: FeatureSource) -> None:
    search(tmp_path / "whole", source)
    for epoch in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "torn", source, stop_after=epoch)
    search(tmp_path / "torn", source)
    assert outcome(tmp_path / "torn") == outcome(tmp_path / "whole")
    attempts = tmp_path / "torn" / "packs" / PACK.name / "attempts"
    assert sorted(path.name for path in attempts.iterdir()) == ["0", "1", "2"]
    assert not list(attempts.glob("*/state-*.pt")), "states are deleted once the results stand"


def test_a_split_pack_ends_as_the_whole_one(tmp_path: Path, source: FeatureSource) -> None:
    search(tmp_path / "whole", source)
    run = tmp_path / "split"
    with pytest.raises(KeyboardInterrupt):
        search(run, source, stop_after=2)
    for part in split_packs(str(run), [PACK], 3, set()):
        search(run, source, pack=part)
        log = (run / "packs" / part.name / "attempts" / "0" / "log.txt").read_text()
        assert "continues at epoch 2" in log
    for point in PACK.points:
        whole, split = (read_result(str(folder), point.id) for folder in (tmp_path / "whole", run))
        assert whole is not None
        assert split is not None
        assert split["genotype"] == whole["genotype"]
        for name, value in whole["metrics"].items():
            expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            assert split["metrics"][name] == expected, name
    assert not list(run.glob("packs/*/attempts/*/state-*.pt"))


def test_a_member_that_fails_does_not_fail_its_pack(
    tmp_path: Path, source: FeatureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = search_loop._build

    def spoiled(*arguments: Any) -> Any:
        built = original(*arguments)
        with torch.no_grad():
            built.supernet.head.classifier.bias[1] = float("nan")
        return built

    monkeypatch.setattr(search_loop, "_build", spoiled)
    search(tmp_path, source)
    first, second, _ = PACK.points
    assert "ceased to be finite" in str(read_failure(str(tmp_path), second.id))
    assert read_result(str(tmp_path), second.id) is None
    assert read_result(str(tmp_path), first.id) is not None
    monkeypatch.setattr(search_loop, "_build", original)
    search(tmp_path, source)
    assert read_result(str(tmp_path), second.id) is None, "one session does not try it again"
    # Tried again by another, alone, it succeeds.
    search(tmp_path, source, session="another")
    again = read_result(str(tmp_path), second.id)
    assert again is not None
    search(tmp_path / "whole", source)
    undisturbed = read_result(str(tmp_path / "whole"), second.id)
    assert undisturbed is not None
    assert again["genotype"] == undisturbed["genotype"]


def test_a_finished_pack_is_left_alone(tmp_path: Path, source: FeatureSource) -> None:
    search(tmp_path, source)
    search(tmp_path, source)
    assert Attempt.claim(str(tmp_path), PACK).number == 1


def test_shuffled_labels_keep_their_number_and_differ_by_split(source: FeatureSource) -> None:
    train = source.load("train")
    labels = train.shuffled_labels([None, 7, 8], "train")
    assert (labels[0] == train.labels).all()
    assert (labels.sum(axis=1) == train.labels.sum()).all()
    assert not (labels[1] == labels[2]).all()
    assert not (labels[1] == train.labels).all()
    assert (labels == train.shuffled_labels([None, 7, 8], "train")).all()


def test_splits_are_disjoint_and_follow_the_manifest(source: FeatureSource) -> None:
    splits = source.load_splits(("train", "dev", "test"))
    subjects = {name: set(split.clips["subject"]) for name, split in splits.items()}
    assert {name: len(found) for name, found in subjects.items()} == SPLIT_SUBJECTS
    assert len(set().union(*subjects.values())) == sum(SPLIT_SUBJECTS.values())
    for split in splits.values():
        expected = np.array([category != "A" for category in split.clips["category"]])
        assert (split.labels == expected).all()


@pytest.mark.parametrize(("field", "value"), [("category", "B"), ("clip_id", "other")])
def test_a_manifest_that_contradicts_the_features_is_refused(
    tmp_path: Path, source: FeatureSource, field: str, value: str
) -> None:
    manifest = read_manifest(source.manifest_uri)
    rows = [dict(row) for row in manifest.rows]
    changed = next(index for index, row in enumerate(rows) if row["category"] == "C")
    rows[changed][field] = value
    write_manifest(str(tmp_path / "manifest"), rows, manifest.roots, {})
    with pytest.raises(InputError, match="give the manifest that the features were made from"):
        open_features(source.uri, str(tmp_path / "manifest")).load("train")


def test_a_changed_part_is_refused(tmp_path: Path) -> None:
    features, manifest = make_features(tmp_path)
    part = Path(features) / boxes.shard_name(0)
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(InputError, match="was changed after it was written"):
        open_features(features, manifest).load("train")


def test_a_missing_split_is_refused(source: FeatureSource) -> None:
    with pytest.raises(InputError, match=r"puts no clip of .* into split 'holdout'"):
        source.load("holdout")
