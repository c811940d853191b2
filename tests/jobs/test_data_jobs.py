"""`stgs manifest`, `prepare` and `extract` as a user meets them, on real clips."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import boxes
from jobs.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

# Which clips of the shared folder stand in which category here; what is fake in them does not matter.
CLIPS = {
    "RealVideo-RealAudio": ["grid_bbaf2n.mpg", "grid_lbax4n.mpg", "voxceleb_224.mp4", "lrs3_crop224.mp4"],
    "RealVideo-FakeAudio": ["news_512.mp4", "silent_track.mp4"],
    "FakeVideo-RealAudio": ["talk_590.mp4", "no_face.mp4"],
    "FakeVideo-FakeAudio": ["portrait_1080x1920.mp4", "several_faces.mp4"],
}
REFUSED = {"silent_track.mp4": "silent", "no_face.mp4": "no_face"}


@pytest.fixture
def clips(shared: Path, tmp_path: Path) -> Path:
    root = tmp_path / "clips"
    for category, names in CLIPS.items():
        (root / category).mkdir(parents=True)
        for name in names:
            shutil.copy(shared / "clips" / name, root / category)
    (root / "notes.txt").write_text("no clip")
    return root


def test_real_clips_are_prepared_or_refused(clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest, corpus = str(tmp_path / "manifest"), str(tmp_path / "corpus")

    def run(exit_code: int, *arguments: str) -> dict:
        assert main([*arguments, "--json"]) == exit_code, capfd.readouterr().err
        return json.loads(capfd.readouterr().out)

    # 4, because a file that is no clip is left out; then because two clips are refused.
    listed = run(4, "manifest", "folder", str(clips), "--out", manifest, "--dev", "2", "--test", "2")
    assert listed["categories"] == {"A": 4, "B": 2, "C": 2, "D": 2}
    assert listed["unfit"] == [{"path": "notes.txt", "reason": "below no category folder"}]
    prepared = run(4, "prepare", manifest, "--out", corpus, "--contact-sheet")
    refused = {row["path"].split("/")[-1]: row["reason"] for row in prepared["rejects"]}
    assert refused == REFUSED
    assert prepared["counts"]["rows"] == 10 == prepared["counts"]["clips"] + len(refused)
    table = boxes.read_table(f"{corpus}/part-00000.parquet", ["face_score", "frames"])
    assert (boxes.column_to_numpy(table, "face_score") >= 0.9).sum(axis=1).min() >= 6
    sheet = np.asarray(Image.open(prepared["contact_sheet"]))
    assert len(sheet) % 8 == 0  # rows of equal height, one per clip
    assert sheet.std() > 20  # not an empty page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["manifest", "folder", "{tmp}", "--out", "{tmp}/out"], "holds no clip"),
        (["prepare", "{tmp}", "--out", "{tmp}/out"], "is no 'manifest' box"),
        (["extract", "{tmp}", "--out", "{tmp}/out", "--visual-weights", "random:0"], "is no 'corpus' box"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(
    arguments: list[str], sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    captured = capfd.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_texts_say_what_was_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("A/s1_1.mp4", "B/s1_2.mp4", "C/s2_1.mp4", "D/s3_1.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True)
        (tmp_path / "clips" / name).write_bytes(b"")
    manifest, corpus = str(tmp_path / "manifest"), str(tmp_path / "corpus")
    assert main(["manifest", "folder", str(tmp_path / "clips"), "--out", manifest]) == 0
    shown = capfd.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["clips", *map(str, _clips_per_split(manifest))] in lines
    assert ["subjects", "1", "1", "1"] in lines
    assert main(["prepare", manifest, "--out", corpus, "--faces", "none", "--contact-sheet"]) == 4
    shown = capfd.readouterr().out
    assert "0 of 4 clips prepared" in shown
    assert "reject.unreadable: 4" in shown
    assert "clips/A/s1_1.mp4: unreadable (" in shown
    assert "contact sheet of 0 clips" in shown
    # A corpus without a clip gives features without a row, of the right sizes all the same.
    backbones = [
        "--visual",
        "resnet18",
        "--visual-weights",
        "random:0",
        "--audio",
        "resnet50",
        "--audio-weights",
        "random:0",
    ]
    assert main(["extract", corpus, "--out", str(tmp_path / "features"), *backbones, "--taps", "layer4", "pooled"]) == 0
    shown = capfd.readouterr().out
    assert "features of 0 clips" in shown
    assert "visual: resnet18, weights random:0 (untrained)" in shown
    assert {"visual.layer4: 512 x 8", "audio.layer4: 2048 x 8", "audio.pooled: 2048"} <= set(
        map(str.strip, shown.splitlines())
    )
    table = boxes.read_table(str(tmp_path / "features" / "part-00000.parquet"))
    assert boxes.column_to_numpy(table, "audio.layer4").shape == (0, 2048, 8)


def _clips_per_split(manifest: str) -> list[int]:
    splits = boxes.read_table(f"{manifest}/manifest.parquet", ["split"])["split"].to_pylist()
    return [splits.count(split) for split in ("train", "dev", "test")]
