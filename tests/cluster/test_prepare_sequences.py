"""From clips to sequences on Ray: the rows of the preparer, in shards of their own size, the same after a stop."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cluster import prepare as prepare_module
from cluster.prepare import PrepareWorker, prepare
from data_prep import boxes
from data_prep.clip import PrepareConfig
from data_prep.folders import folder_manifest
from data_prep.manifest import read_manifest, write_manifest
from data_prep.sequence import SequenceConfig, sequence_arrays
from data_prep.sequence_preparer import SequencePreparer
from data_prep.storage import InputError
from tests.cluster.clip_files import write_clip

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

CONFIG = SequenceConfig(faces="none", max_seconds=1.0)
CLIPS_PER_SHARD = 2


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """Two real and two fake clips, one of which has no sound, and one that is flipped."""
    for seed, name in enumerate(("A/s1.mp4", "A/s2.mp4", "B/s1.mp4")):
        write_clip(tmp_path / "clips" / name, seed)
    write_clip(tmp_path / "clips" / "D/s2.mp4", 9, seconds=0.8, sound=False)
    listing = folder_manifest(str(tmp_path / "clips"), dataset="toy")
    parent = listing.rows[0]
    flipped = parent | {
        "clip_id": f"{parent['clip_id']}#flip",
        "augmentation": "flip",
        "parent_clip_id": parent["clip_id"],
    }
    write_manifest(str(tmp_path / "manifest"), [*listing.rows, flipped], listing.roots, {})
    return str(tmp_path / "manifest")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_sequences_are_those_of_the_preparer_also_after_a_stop(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "SEQUENCE_CLIPS", CLIPS_PER_SHARD)
    out, listed = tmp_path / "sequences", read_manifest(manifest)
    # As an actor does it: a run that was stopped after two of three shards.
    boxes.begin(str(out), boxes.SEQUENCES, asdict(CONFIG) | {"face_device": None}, listed.meta.digest, resume=True)
    worker = PrepareWorker(str(out), listed.roots, CONFIG, None)
    shards = [listed.rows[first : first + CLIPS_PER_SHARD] for first in range(0, 5, CLIPS_PER_SHARD)]
    for index in (0, 2):
        *news, result = worker.work({"name": boxes.shard_name(index), "rows": shards[index], "position": index})
        assert (sum(news), result["position"]) == (len(shards[index]), index)
    standing = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert len(standing) == 4

    meta = prepare(manifest, str(out), CONFIG, actors=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in standing} == standing
    assert (meta.kind, meta.config, meta.parent) == (boxes.SEQUENCES, asdict(CONFIG), listed.meta.digest)
    assert meta == boxes.read_meta(str(out), boxes.SEQUENCES)
    counts = ("rows", "clips", "rejects", "shards", "category.A", "category.B", "reject.no_audio")
    assert [meta.counts[name] for name in counts] == [5, 4, 1, 3, 3, 1, 1]
    assert meta.extra == {"face_device": None}
    whole = files(out)
    assert meta.files == {name: hashlib.sha256(data).hexdigest() for name, data in whole.items()}

    found = {}
    for index in range(3):
        uri = str(out / boxes.shard_name(index))
        table = boxes.read_table(uri, sha256=meta.files[boxes.shard_name(index)])
        rejects = boxes.read_table(str(out / "rejects" / boxes.shard_name(index)))
        ids = table["clip_id"].to_pylist()
        assert sorted(ids + rejects["clip_id"].to_pylist()) == [row["clip_id"] for row in shards[index]]
        found |= dict(zip(ids, zip(*sequence_arrays(table, uri), strict=True), strict=True))
    with SequencePreparer(CONFIG) as preparer:
        made = [preparer(row, listed.roots) for row in listed.rows]
    rows = {row["clip_id"]: row for row in made if isinstance(row, dict)}
    assert found.keys() == rows.keys()
    for clip_id, (video, banks) in found.items():
        assert (video.tobytes(), banks.tobytes()) == (rows[clip_id]["video"], rows[clip_id]["filter_banks"])
    flipped = next(clip_id for clip_id in found if clip_id.endswith("#flip"))
    np.testing.assert_array_equal(found[flipped][0], found[flipped.removesuffix("#flip")][0][..., ::-1])

    # The shard that an actor on Ray made, made again in this process.
    worker = PrepareWorker(str(tmp_path / "again"), listed.roots, CONFIG, None)
    *_, result = worker.work({"name": boxes.shard_name(1), "rows": shards[1], "position": 1})
    assert files(tmp_path / "again") == {name: whole[name] for name in result["files"]}


def test_a_box_of_another_kind_or_length_is_refused(manifest: str, tmp_path: Path) -> None:
    out = tmp_path / "sequences"
    boxes.begin(
        str(out),
        boxes.SEQUENCES,
        asdict(CONFIG) | {"face_device": None},
        read_manifest(manifest).meta.digest,
        resume=True,
    )
    with pytest.raises(InputError, match='was begun with kind "sequences", not "corpus"'):
        prepare(manifest, str(out), PrepareConfig(faces="none"))
    with pytest.raises(InputError, match=r"was begun with config max_seconds 1\.0, not 10\.0"):
        prepare(manifest, str(out), SequenceConfig(faces="none"))
    assert not list(out.glob("*.parquet"))
