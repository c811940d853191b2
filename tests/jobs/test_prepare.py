"""`stgs prepare` of both kinds: which options fit which, and what it says of sequences."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import boxes
from data_prep.clip import PrepareConfig
from data_prep.sequence import SequenceConfig
from jobs.audit import audit_corpus
from jobs.cli import UsageError, main
from jobs.options import build
from jobs.prepare import PrepareJobConfig, box_config
from tests.cluster.clip_files import write_clip
from tests.tiny_sequences import make_sequences


def config_of(**values: Any) -> PrepareConfig | SequenceConfig:
    return box_config(build(PrepareJobConfig, {"manifest": "M", "out": "S", **values}))


def test_options_of_both_kinds_reach_the_one_that_is_made() -> None:
    shared = {"faces": "none", "trim_silence": True, "min_duration_s": 0.7, "clip_timeout": 9.0}
    assert config_of(**shared, window_s=4.0) == PrepareConfig(**shared, window_s=4.0)
    assert config_of(kind="sequences") == SequenceConfig()
    own = {"max_seconds": 4.0, "min_face_share": 0.0}
    assert config_of(kind="sequences", **shared, **own) == SequenceConfig(**shared, **own)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_seconds": 10.0}, "--max-seconds is for --kind sequences"),
        ({"min_face_share": 0.75}, "--min-face-share is for --kind sequences"),
        ({"kind": "sequences", "window_s": 4.0}, "--window-s is not for --kind sequences"),
        ({"kind": "sequences", "min_faces": 4}, "--min-faces is not for --kind sequences"),
        ({"kind": "sequences", "target_dbfs": -20.0}, "--target-dbfs is not for --kind sequences"),
    ],
)
def test_options_of_the_other_kind_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as info:
        config_of(**values)
    assert str(info.value).startswith(sentence)
    assert str(info.value).endswith("leave it out, or give that." if "kind" not in values else "leave it out.")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kind", "frames"], "choose from clips, sequences"),
        (["--kind", "sequences", "--max-seconds", "0"], "max_seconds is 0.0; give seconds"),
    ],
)
def test_wrong_values_are_one_sentence(
    words: Sequence[str], sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(tmp_path), "--out", str(tmp_path / "out"), *words]) == 2
    told = capfd.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_a_length_that_gives_fakes_away_is_told_with_a_way_out(tmp_path: Path) -> None:
    sequences, _ = make_sequences(tmp_path, subjects={"train": 8})
    meta = boxes.read_meta(sequences, boxes.SEQUENCES)
    assert audit_corpus(sequences, meta)["digest"] == meta.digest
    for name in meta.files:
        table = boxes.read_table(f"{sequences}/{name}")
        seconds = [float(row["label"]) + 0.01 * index for index, row in enumerate(table.to_pylist())]
        table = table.set_column(table.column_names.index("duration_s"), table.schema.field("duration_s"), [seconds])
        Path(sequences, name).write_bytes(boxes.table_bytes(table))
    (shortcut,) = audit_corpus(sequences, meta)["shortcuts"]
    assert shortcut.startswith("SHORTCUT: the duration alone tells all fakes")
    assert shortcut.endswith("take no more of a clip than the shortest has (--max-seconds).")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_sequences_are_made_audited_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for seed, category in enumerate("ABCD"):
        write_clip(tmp_path / "clips" / category / f"s{seed}.mp4", seed)
    manifest, out = str(tmp_path / "manifest"), str(tmp_path / "sequences")
    assert main(["manifest", "folder", str(tmp_path / "clips"), "--out", manifest, "--json"]) == 0
    capfd.readouterr()
    words = ["prepare", manifest, "--out", out, "--kind", "sequences", "--faces", "none", "--contact-sheet"]
    assert main(words) == 0
    told = capfd.readouterr().out
    assert f"\nsequences: {out}\n" in told
    assert f"\ncontact sheet of 4 clips: {out}/contact-sheet.jpg\n" in told
    # Complete, it is told again.
    assert main([*words, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["counts"]["clips"], said["rejects"]) == (4, [])
    assert said["audit"]["facts"].keys() >= {"leading_silence_s", "duration_s"}
    meta = boxes.read_meta(out, boxes.SEQUENCES)
    assert (meta.config["max_seconds"], said["audit"]["digest"]) == (10.0, meta.digest)
    frames = boxes.read_table(f"{out}/part-00000.parquet", ["num_frames"])
    np.testing.assert_array_equal(boxes.column_to_numpy(frames, "num_frames"), 30)
