"""Sequences of a box as the parts of a baseline get them: which clips, with which labels, in which batches."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster import part_reader
from cluster.baseline_runs import (
    WHOLE,
    BaselineSettings,
    SplitParts,
    folds_protocol,
    plan_parts,
    split_by_protocol,
    split_by_run,
)
from cluster.baseline_streams import Sequences, open_sequences
from cluster.features import split_digest
from cluster.protocol_splits import ProtocolConfig, parts_of, protocol_settings, split_anew
from cluster.runs import open_run, part_uri
from data_prep import boxes, storage
from data_prep.manifest import read_manifest
from data_prep.sequence import SEQUENCE_SCHEMA, sequence_arrays
from data_prep.storage import InputError
from stgs.parallel import SINGLE, Workers
from tests.cluster.baseline_parts import SETTINGS, make_jobs, read_here
from tests.cluster.planted_baselines import plant_baseline
from tests.tiny_sequences import make_sequences

SUBJECTS = {"train": 8, "dev": 2, "test": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    make_sequences(folder, subjects=SUBJECTS, frames=(2, 4), shard_clips=6)
    return folder


@pytest.fixture(scope="module")
def sequences(folder: Path) -> Sequences:
    return open_sequences(str(folder / "sequences"))


def split_of(folder: Path, protocol: ProtocolConfig | None = None, folds: int | None = None) -> SplitParts:
    return split_by_protocol(str(folder / "manifest"), protocol or ProtocolConfig(), folds)


def test_a_stream_gives_every_clip_of_its_split_once_as_it_was_prepared(
    folder: Path, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_reader.RayReader, "__call__", read_here)
    (job,) = make_jobs(folder)
    stored: dict[str, Any] = {}
    for part in sequences.meta.files:
        uri = storage.join(sequences.uri, part)
        table = boxes.read_table(uri)
        stored |= dict(zip(table["clip_id"].to_pylist(), zip(*sequence_arrays(table, uri), strict=True), strict=True))
    for split, count in SUBJECTS.items():
        streams = [job.stream(split, Workers(rank, 2)) for rank in range(2)]
        clips = job.splits[split].clips
        assert streams[0].categories.tolist() == [*"ABCD"] * count == clips["category"]
        for batches in ([b for own in streams for b in own.batches(3)], [b for own in streams for b in own.in_order()]):
            found = np.concatenate([batch.index for batch in batches])
            assert sorted(found.tolist()) == list(range(4 * count))
            for batch in batches:
                for index, video, banks in zip(batch.index, batch.video, batch.filter_banks, strict=True):
                    expected = stored[clips["clip_id"][index]]
                    assert np.array_equal(video, expected[0])
                    assert np.array_equal(banks, expected[1])


@pytest.mark.ray
def test_a_row_of_another_size_is_named(ray_session: None, tmp_path: Path) -> None:
    make_sequences(tmp_path, frames=(2, 2))
    part = str(tmp_path / "sequences" / boxes.shard_name(3))
    rows = boxes.read_table(part).to_pylist()
    rows[2]["video"] = rows[2]["video"][:-1]
    data = boxes.table_bytes(pa.Table.from_pylist(rows, schema=SEQUENCE_SCHEMA))
    storage.write(part, data)
    (job,) = make_jobs(tmp_path)
    job = replace(job, files={**job.files, boxes.shard_name(3): hashlib.sha256(data).hexdigest()})
    size = 2 * 3 * 112 * 112 - 1
    with pytest.raises(
        InputError, match=rf"part-00003\.parquet: video of clip '{rows[2]['clip_id']}' holds {size} bytes"
    ):
        list(job.stream("test", SINGLE).in_order())


def test_methods_are_those_of_the_manifest_as_in_an_evaluation(tmp_path: Path, sequences: Sequences) -> None:
    def renamed(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["method"] = f"method-{row['category']}"

    make_sequences(tmp_path, subjects=SUBJECTS, frames=(1, 1), change=renamed)
    (part,) = plan_parts(SETTINGS, sequences, split_of(tmp_path))
    clips = part.splits["test"].clips
    assert clips["method"] == [f"method-{category}" for category in clips["category"]]


def test_a_worker_without_parts_reads_nothing(folder: Path, sequences: Sequences) -> None:
    reader = part_reader.RayReader(sequences.uri, sequences.meta.files)
    assert list(reader([])) == []


def test_shuffled_parts_permute_train_and_dev_and_leave_test(folder: Path, sequences: Sequences) -> None:
    settings = replace(SETTINGS, shuffles=3)
    whole, *shuffled = plan_parts(settings, sequences, split_of(folder))
    assert [(part.name, part.shuffle_seed) for part in shuffled] == [(f"shuffle-{seed}", seed) for seed in range(3)]
    seen = []
    for part in shuffled:
        for split in ("train", "dev"):
            ours, theirs = part.splits[split], whole.splits[split]
            assert Counter(ours.categories.tolist()) == Counter(theirs.categories.tolist())
            assert (ours.categories != "A").astype(int).tolist() == ours.labels.tolist()
            assert ours.clips == theirs.clips
        assert part.splits["test"] is whole.splits["test"]
        seen.append(part.splits["train"].categories.tolist())
    assert len({tuple(one) for one in [*seen, whole.splits["train"].categories.tolist()]}) == 4
    again = plan_parts(settings, sequences, split_of(folder))
    assert [part.splits["train"].categories.tolist() for part in again[1:]] == seen
    # Draws of their own, not one start in eight disguises.
    assert len({part.training(SETTINGS.training).seed for part in again}) == 4


def test_clips_that_were_refused_are_counted(tmp_path: Path, folder: Path, sequences: Sequences) -> None:
    first = min(sequences.clips)
    fewer = replace(sequences, clips={part: rows for part, rows in sequences.clips.items() if part != first})
    (part,) = plan_parts(SETTINGS, fewer, split_of(folder))
    assert part.missing == 6
    assert len(part.splits["train"].labels) == 4 * SUBJECTS["train"] - 6


def only(split: str, label: int | None) -> Any:
    """A split that keeps clips of one label alone, or none."""

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["split"] == split and row["label"] != label:
                row["split"] = None

    return change


def relabelled(rows: list[dict[str, Any]]) -> None:
    rows[1] |= {"category": "A", "label": 0}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (only("dev", None), "split 'dev' of all has no clip of"),
        (only("dev", 1), "split 'dev' of all has fakes alone of"),
        (only("train", 0), "split 'train' of all has real clips alone of"),
        (only("test", None), "split 'test' of all has no clip of"),
        (relabelled, "does not know 'clip-000-B' of .* with label 1 and category 'B'"),
    ],
)
def test_splits_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, sequences: Sequences, change: Any, sentence: str
) -> None:
    make_sequences(tmp_path, subjects=SUBJECTS, frames=(1, 1), change=change)
    with pytest.raises(InputError, match=sentence):
        plan_parts(SETTINGS, sequences, split_of(tmp_path))


def test_a_test_of_one_class_is_no_reason_to_refuse(tmp_path: Path, sequences: Sequences) -> None:
    make_sequences(tmp_path, subjects=SUBJECTS, frames=(1, 1), change=only("test", 1))
    (part,) = plan_parts(SETTINGS, sequences, split_of(tmp_path))
    assert set(part.splits["test"].labels.tolist()) == {1}


def test_folds_are_short_for_the_protocol(folder: Path) -> None:
    assert folds_protocol(ProtocolConfig(split_seed=0), None).protocol == "manifest"
    protocol = folds_protocol(ProtocolConfig(), 2)
    split = split_of(folder, protocol, 2)
    assert [*split.parts] == [*split.told["protocol"]["parts"]] == ["fold-0", "fold-1"]
    assert [*split_of(folder).parts] == [WHOLE]
    assert split_of(folder).told == {}
    for folds, given, sentence in (
        (2, "cross", "folds is 2, but the protocol is 'cross'"),
        (6, "manifest", "folds is 6, but there are 5 folds"),
        (0, "folds", "folds is 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            folds_protocol(ProtocolConfig(protocol=given), folds)  # type: ignore[arg-type]


def test_the_splits_of_a_run_are_those_that_it_was_searched_with(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(str(folder / "manifest"))
    hints = {"features": "gone", "manifest": str(folder / "manifest")}
    config = ProtocolConfig(protocol="folds", split_seed=3)
    parts = parts_of(config, manifest)
    runs = [str(tmp_path / name) for name in ("folds", "plain")]
    open_run(runs[0], protocol_settings(config, parts), resume=False, hints=hints)
    open_run(runs[1], {"split_digest": split_digest(manifest.rows)}, resume=False, hints=hints)
    digest = split_digest(split_anew(manifest.rows, parts["fold-1"]))
    open_run(part_uri(runs[0], "fold-1"), {"split_digest": digest}, resume=False, hints=hints)
    found = split_by_run(runs[0])
    assert [*found.parts] == [f"fold-{fold}" for fold in range(5)]
    assert split_digest(found.parts["fold-1"]) == digest
    assert [*split_by_run(runs[1]).parts] == [WHOLE]
    # Other splits of the same clips.
    make_sequences(tmp_path / "other", subjects={**SUBJECTS, "train": 7, "dev": 3}, frames=(1, 1))
    with pytest.raises(InputError, match=r"is not the manifest of the splits of .*plain; give the one"):
        split_by_run(runs[1], str(tmp_path / "other" / "manifest"))
    with pytest.raises(InputError, match="is no run"):
        split_by_run(str(tmp_path / "nothing"))


def test_a_run_of_which_no_part_is_begun_takes_its_own_manifest_alone(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(str(folder / "manifest"))
    config, run = ProtocolConfig(protocol="folds"), str(tmp_path / "folds")
    content = {**protocol_settings(config, parts_of(config, manifest)), "manifest_digest": manifest.meta.digest}
    open_run(run, content, resume=False, hints={"manifest": str(folder / "manifest")})
    assert len(split_by_run(run).parts) == 5
    make_sequences(tmp_path / "other", subjects={**SUBJECTS, "train": 9}, frames=(1, 1))
    with pytest.raises(InputError, match=r"is not the manifest of the splits of .*folds; give the one"):
        split_by_run(run, str(tmp_path / "other" / "manifest"))


def test_a_baseline_is_no_run_whose_splits_to_take(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is the run of a baseline, .*; give the --run of a search, or --manifest and --out"
    ):
        split_by_run(plant_baseline(str(tmp_path / "out")))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="shuffles is -1 and threads is 1"):
        BaselineSettings(model="mrdf_ce", shuffles=-1)
