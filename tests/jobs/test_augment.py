"""The command `stgs augment`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_prep.augmentations import AUGMENTATIONS
from data_prep.manifest import MANIFEST_COLUMNS, read_manifest, write_manifest
from data_prep.rejects import RejectedError, RejectReason
from jobs.augment import main
from jobs.cli import COMMANDS


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """2 real and 10 fake clips in train, 1 and 3 in dev, 1 and 1 in test and in no split."""
    rows: list[dict[str, Any]] = []
    for split, real, fake in (("train", 2, 10), ("dev", 1, 3), ("test", 1, 1), (None, 1, 1)):
        for number in range(real + fake):
            name, category = f"{split}-{number}", "A" if number < real else "D"
            one: dict[str, Any] = dict.fromkeys(MANIFEST_COLUMNS)
            one |= {"clip_id": name, "video_path": f"clips/{name}.mp4", "category": category, "split": split}
            rows.append(one | {"label": int(category != "A"), "dataset": "clips", "subject": name})
    write_manifest(str(tmp_path / "manifest"), rows, {"clips": str(tmp_path)}, {})
    return str(tmp_path / "manifest")


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_it_is_a_command() -> None:
    assert "augment" in COMMANDS


def test_a_manifest_gets_children(manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main([manifest, "--out", out, "--per-clip", "2", "--seed", "5", "--json"]) == 0
    payload = told(capsys)
    parent, written = read_manifest(manifest), read_manifest(out)
    assert payload["digest"] == written.meta.digest
    assert payload["clips"] == len(written.rows) == len(parent.rows) + 2 * 16
    assert payload["splits"]["train"] == {
        "real": 2,
        "fake": 10,
        "augmented_real": 4,
        "augmented_fake": 20,
        "clips": 36,
    }
    assert payload["splits"]["test"]["clips"] == payload["splits"]["none"]["clips"] == 2
    assert written.roots == parent.roots
    assert written.meta.config["parent"] == parent.meta.digest
    assert written.meta.config["augment"]["seed"] == 5
    assert [row for row in written.rows if row["augmentation"] is None] == parent.rows
    # The same again is fine, another one is not written over it.
    assert main([manifest, "--out", out, "--per-clip", "2", "--seed", "5"]) == 0
    assert main([manifest, "--out", out, "--per-clip", "2", "--seed", "6"]) == 2


def test_a_dry_run_prints_the_counts_beside_the_papers(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([manifest, "--balance", "paper", "--dry-run"]) == 0
    text = capsys.readouterr().out
    rows = {
        line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("train", "dev", "test"))
    }
    assert rows == {
        "train": ["2", "10", "8", "0", "20", "50,742"],
        "dev": ["1", "3", "2", "0", "6", "10,718"],
        "test": ["1", "1", "0", "0", "2"],
    }
    assert "every augmented clip is real" in text
    assert "nothing was written" in text
    assert {path.name for path in tmp_path.iterdir()} == {"manifest"}


def test_what_the_paper_cannot_balance_is_told(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([manifest, "--balance", "paper", "--names", "flip", "grey", "--dry-run", "--json"]) == 0
    payload = told(capsys)
    assert payload["splits"]["train"]["augmented_real"] == 4
    assert any("In train the real clips stay 4 fewer" in note for note in payload["notes"])
    assert payload["paper"] == {"train": 50_742, "dev": 10_718}


def test_doubtful_augmentations_are_used_only_when_named(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([manifest, "--per-clip", "36", "--names", "all", "--dry-run", "--json"]) == 0
    payload = told(capsys)
    assert payload["splits"]["dev"]["augmented_real"] == len(AUGMENTATIONS)
    assert {note.partition(":")[0] for note in payload["notes"]} == {"gain", "pitch", "tempo"}
    assert main([manifest, "--per-clip", "36", "--dry-run"]) == 2
    assert "per_clip is 36" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either MANIFEST_DIR, .* or --gallery CLIP"),
        (["MANIFEST", "--gallery", "clip.mp4", "--out", "x"], "give either MANIFEST_DIR"),
        (["MANIFEST"], "--out is missing"),
        (["--gallery", "clip.mp4"], "--out is missing"),
        *(
            (["--gallery", "clip.mp4", "--out", "x", *option], f"{option[0]} is for a manifest, and --gallery shows")
            for option in (["--dry-run"], ["--names", "flip"], ["--balance", "paper"], ["--per-clip", "2"])
        ),
        (["MANIFEST", "--names", "sepia", "--dry-run"], "'sepia' is none"),
        (["nowhere", "--dry-run"], "nowhere"),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str], sentence: str, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([manifest if word == "MANIFEST" else word for word in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(sentence, error)


def test_a_gallery_tells_where_it_is_or_why_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def write(clip: str, out: str, config: object) -> list[str]:
        calls.append((clip, out))
        if clip.endswith("bad.mp4"):
            raise RejectedError(RejectReason.NO_FACE, "none of the window's frames shows a face")
        return ["gallery.jpg"]

    monkeypatch.setattr("data_prep.augment_gallery.write_gallery", write)
    out = str(tmp_path / "gallery")
    assert main(["--gallery", str(tmp_path / "clip.mp4"), "--out", out, "--json"]) == 0
    assert calls == [(str(tmp_path / "clip.mp4"), out)]
    assert told(capsys) == {"out": out, "files": ["gallery.jpg"], "names": list(AUGMENTATIONS)}
    assert main(["--gallery", "bad.mp4", "--out", out]) == 2
    assert "bad.mp4 cannot be shown: no_face (none of the window's frames shows a face)" in capsys.readouterr().err
