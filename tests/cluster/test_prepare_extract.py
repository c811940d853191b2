"""From clips to a corpus to features on Ray: nothing vanishes, a stopped run goes on, bytes are the same each time."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import prepare as prepare_module
from cluster.extract import extract
from cluster.prepare import prepare
from data_prep import boxes
from data_prep.boxes import Meta, column_to_numpy, read_table
from data_prep.clip import ClipPreparer
from data_prep.folders import folder_manifest
from data_prep.manifest import read_manifest, write_manifest
from data_prep.storage import InputError
from stgs.backbones import BackboneConfig, FeatureExtractor
from tests.cluster.clip_files import CONFIG, write_clip

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

CLIPS_PER_SHARD = 3
BACKBONES = BackboneConfig(
    visual="resnet18", visual_weights="random:1", audio="resnet18", audio_weights="random:2", taps=("layer2", "pooled")
)


DAMAGED = {
    "empty.mp4": "unreadable",
    "cut.mp4": "unreadable",
    "text.mp4": "unreadable",
    "missing.mp4": "missing",
    "mute.mp4": "no_audio",
}


@dataclass
class Boxes:
    """One pass through prepare and extract, on two actors each."""

    manifest: Path
    corpus: Path
    corpus_meta: Meta
    features: Path
    features_meta: Meta


@pytest.fixture(scope="module", autouse=True)
def _small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "SHARD_CLIPS", CLIPS_PER_SHARD)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: None, _small_shards: None) -> Boxes:
    root = tmp_path_factory.mktemp("boxes")
    for seed, name in enumerate(["A/s1.mp4", "A/s2.mp4", "B/s1.mp4", "B/s2.mp4", "C/s1.mp4", "D/s1.mp4", "D/s2.mp4"]):
        write_clip(root / "clips" / name, seed)
    damaged = root / "clips" / "C"
    whole = (damaged / "s1.mp4").read_bytes()
    contents = {
        "empty.mp4": b"",
        "cut.mp4": whole[: len(whole) // 2],
        "text.mp4": b"no clip\n" * 50,
        "missing.mp4": b"x",
    }
    for name, content in contents.items():
        (damaged / name).write_bytes(content)
    write_clip(damaged / "mute.mp4", 9, sound=False)
    manifest = root / "manifest"
    listing = folder_manifest(str(root / "clips"), dataset="toy")
    write_manifest(str(manifest), listing.rows, listing.roots, {})
    (damaged / "missing.mp4").unlink()
    corpus, features = root / "corpus", root / "features"
    corpus_meta = prepare(str(manifest), str(corpus), CONFIG, actors=2, progress=False)
    features_meta = extract(str(corpus), str(features), BACKBONES, actors=2, device="cpu", progress=False)
    return Boxes(manifest, corpus, corpus_meta, features, features_meta)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def stamps(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def test_every_manifest_row_is_in_the_corpus_or_in_the_rejects(made: Boxes) -> None:
    rows = [row["clip_id"] for row in read_manifest(str(made.manifest)).rows]
    assert len(rows) == 12
    clips, rejects = [], {}
    for index, part in enumerate(parts(made.corpus)):
        refused = read_table(str(made.corpus / "rejects" / part.name)).to_pylist()
        kept = read_table(str(part), ["clip_id"])["clip_id"].to_pylist()
        shard = rows[index * CLIPS_PER_SHARD : (index + 1) * CLIPS_PER_SHARD]
        assert sorted(kept + [row["clip_id"] for row in refused]) == shard
        assert kept == sorted(kept)
        clips += kept
        rejects |= {row["clip_id"].split("/")[-1]: row["reason"] for row in refused}
    assert rejects == DAMAGED
    counts = made.corpus_meta.counts
    assert (counts["rows"], counts["clips"], counts["rejects"], counts["shards"]) == (12, 7, 5, 4)
    assert [counts[f"category.{category}"] for category in "ABCD"] == [2, 2, 1, 2]
    assert (counts["reject.unreadable"], counts["reject.missing"], counts["reject.no_audio"]) == (3, 1, 1)


def test_corpus_rows_are_those_of_the_preparer(made: Boxes) -> None:
    manifest = read_manifest(str(made.manifest))
    table = read_table(str(parts(made.corpus)[0]))
    row = ClipPreparer(CONFIG)(manifest.rows[0], manifest.roots)
    assert isinstance(row, dict)
    assert row.keys() == set(table.column_names)
    assert table["clip_id"][0].as_py() == row["clip_id"]
    for name in ("frames", "spectrogram", "frame_times_s", "face_box"):
        np.testing.assert_array_equal(column_to_numpy(table, name)[0], row[name])


def test_meta_names_the_files_as_they_are(made: Boxes) -> None:
    for folder, meta in ((made.corpus, made.corpus_meta), (made.features, made.features_meta)):
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}
        assert meta.files == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert made.corpus_meta.extra == {"face_device": None}
    assert made.corpus_meta.parent == read_manifest(str(made.manifest)).meta.digest
    assert made.features_meta.parent == made.corpus_meta.digest
    assert made.features_meta.extra["manifest"] == made.corpus_meta.parent
    assert made.features_meta.extra["corpus_config"] == json.loads(json.dumps(made.corpus_meta.config))


def test_stopped_preparation_goes_on_with_the_same_bytes(made: Boxes, tmp_path: Path) -> None:
    corpus = shutil.copytree(made.corpus, tmp_path / "corpus")
    before = stamps(corpus)
    lost = parts(corpus)[1]
    lost.unlink()
    (corpus / boxes.META_NAME).unlink()
    again = prepare(str(made.manifest), str(corpus), CONFIG, actors=1, progress=False)
    assert again == made.corpus_meta
    after = stamps(corpus)
    assert {name for name in before if after[name] != before[name]} == {lost.name, f"rejects/{lost.name}"}


def test_part_that_commits_a_shard_is_written_last(
    made: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(prepare_module.storage, "write", lambda uri, data: written.append(uri) or "")
    manifest = read_manifest(str(made.manifest))
    worker = prepare_module.PrepareWorker(str(tmp_path), manifest.roots, CONFIG, None)
    shard = {"name": boxes.shard_name(0), "rows": manifest.rows[:1], "position": 0}
    steps = list(worker.work(shard))
    assert written == [f"{tmp_path}/rejects/part-00000.parquet", f"{tmp_path}/part-00000.parquet"]
    assert steps[0] == 1
    assert steps[1]["counts"] == {"clips": 1, "rejects": 0, "category.A": 1}


def test_complete_boxes_are_returned_as_they_are(made: Boxes) -> None:
    before = stamps(made.corpus) | stamps(made.features)
    assert prepare(str(made.manifest), str(made.corpus), CONFIG) == made.corpus_meta
    assert extract(str(made.corpus), str(made.features), BACKBONES, device="cpu") == made.features_meta
    assert stamps(made.corpus) | stamps(made.features) == before


def test_other_config_or_manifest_is_refused(made: Boxes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config frame_size 32, not 48"):
        prepare(str(made.manifest), str(made.corpus), replace(CONFIG, frame_size=48))
    manifest = read_manifest(str(made.manifest))
    other = write_manifest(str(tmp_path / "other"), manifest.rows[1:], manifest.roots, {})
    with pytest.raises(InputError, match=f'parent "{manifest.meta.digest}", not "{other.digest}"'):
        prepare(str(tmp_path / "other"), str(made.corpus), CONFIG)
    with pytest.raises(InputError, match=r"config visual_weights .*random:1.*random:3"):
        extract(str(made.corpus), str(made.features), replace(BACKBONES, visual_weights="random:3"), device="cpu")


def test_another_split_keeps_the_corpus(made: Boxes, tmp_path: Path) -> None:
    manifest = read_manifest(str(made.manifest))
    rows = [row | {"split": "train"} for row in manifest.rows]
    write_manifest(str(tmp_path / "split"), rows, manifest.roots, {})
    assert prepare(str(tmp_path / "split"), str(made.corpus), CONFIG) == made.corpus_meta


def test_standing_shard_of_other_clips_is_refused(made: Boxes, tmp_path: Path) -> None:
    corpus = shutil.copytree(made.corpus, tmp_path / "corpus")
    first, second = parts(corpus)[:2]
    shutil.copy(second, first)
    (corpus / boxes.META_NAME).unlink()
    with pytest.raises(InputError, match=f"{first.name} holds other clips than the manifest"):
        prepare(str(made.manifest), str(corpus), CONFIG, actors=1, progress=False)


def test_features_are_those_of_the_backbones(made: Boxes) -> None:
    extractor = FeatureExtractor(BACKBONES)
    channels = {"visual.layer2": 128, "visual.pooled": 512, "audio.layer2": 128, "audio.pooled": 512}
    # A list, because the order is part of it: genotypes break ties by it.
    assert list(boxes.read_meta(str(made.features), boxes.FEATURES).extra["features"].items()) == list(channels.items())
    assert [path.name for path in parts(made.features)] == [path.name for path in parts(made.corpus)]
    for corpus_part, features_part in zip(parts(made.corpus), parts(made.features), strict=True):
        corpus, features = read_table(str(corpus_part)), read_table(str(features_part))
        assert features["clip_id"].equals(corpus["clip_id"])
        frames, spectrogram = (column_to_numpy(corpus, name).copy() for name in ("frames", "spectrogram"))
        for index in range(corpus.num_rows):
            clip = slice(index, index + 1)
            expected = extractor(torch.from_numpy(frames[clip]), torch.from_numpy(spectrogram[clip]))
            for name, values in expected.items():
                column = column_to_numpy(features, name)
                assert column.dtype == np.float16
                np.testing.assert_array_equal(column[index], values[0].numpy(), err_msg=name)


def test_stopped_extraction_goes_on_with_the_same_bytes(made: Boxes, tmp_path: Path) -> None:
    features = shutil.copytree(made.features, tmp_path / "features")
    before = stamps(features)
    lost = parts(features)[2]
    lost.unlink()
    (features / boxes.META_NAME).unlink()
    assert (
        extract(str(made.corpus), str(features), BACKBONES, actors=1, device="cpu", progress=False)
        == made.features_meta
    )
    after = stamps(features)
    assert {name for name in before if after[name] != before[name]} == {lost.name}


def test_corpus_that_was_changed_is_refused(made: Boxes, tmp_path: Path) -> None:
    corpus = shutil.copytree(made.corpus, tmp_path / "corpus")
    first, second = parts(corpus)[:2]
    shutil.copy(second, first)
    with pytest.raises(InputError, match=f"{first.name} was changed after it was written"):
        extract(str(corpus), str(tmp_path / "features"), BACKBONES, actors=1, device="cpu", progress=False)


def test_wrong_settings_are_refused_before_work(made: Boxes, tmp_path: Path) -> None:
    out = tmp_path / "features"
    for settings, sentence in (
        ({"device": "tpu"}, "device is 'tpu'; choose from auto, cpu, cuda."),
        ({"threads": 0}, "threads is 0, but at least 1 is needed."),
        ({"config": replace(BACKBONES, length=4)}, "has 8 frames a clip, but length is 4;"),
    ):
        with pytest.raises(InputError, match=sentence):
            extract(str(made.corpus), str(out), **({"config": BACKBONES} | settings))
    assert not out.exists()
