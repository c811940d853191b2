"""`stgs score`: folders, lines, exit codes, and what is printed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.storage import InputError
from jobs import score
from jobs.cli import PARTLY, WRONG_USE, Outcome
from tests.cluster.clip_files import write_clip
from tests.scored_network import write_scored_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips in folders, and what is none of them."""
    made = tmp_path_factory.mktemp("clips")
    write_clip(made / "b" / "one.MP4", 0, seconds=0.6)
    write_clip(made / "a.mkv", 1, seconds=2.5)
    for name in ("b/._one.MP4", "notes.txt"):
        (made / name).write_bytes(b"no clip")
    (made / "empty").mkdir()
    return made


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_scored_network(tmp_path_factory.mktemp("network") / "both.safetensors")


def outcome(network: str, *videos: Path | str, **changes: Any) -> Outcome:
    settings = {"processes": 1, "device": "cpu", **changes}
    return score.run(score.ScoreJobConfig(videos=tuple(map(str, videos)), network=network, **settings))


def test_folders_lines_and_refusals(
    network: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    lines, faces = tmp_path / "scores.jsonl", tmp_path / "faces.jpg"
    monkeypatch.setattr(score, "_MOST_PICTURES", 3)
    made = outcome(network, "b/one.MP4", ".", "notes.txt", json_lines=str(lines), faces=str(faces))
    clips = made.payload["clips"]
    assert [clip["clip"] for clip in clips] == ["b/one.MP4", "./a.mkv", "./b/one.MP4", "notes.txt"]
    assert made.exit_code == PARTLY
    assert [json.loads(line) for line in lines.read_text().splitlines()] == clips
    assert clips[0]["p_fake"] == clips[2]["p_fake"] != clips[1]["p_fake"]
    assert (clips[3]["refused"], clips[3]["windows"]) == ("unreadable", [])
    assert len(clips[1]["windows"]) == 3
    # A row for each clip; two windows of a.mkv have no room.
    assert made.payload["faces_left_out"] == 2
    with Image.open(faces) as picture:
        assert picture.height == 3 * 120
    text = made.text.splitlines()
    assert text[2].startswith(f"  {clips[0]['p_fake']:.4f}  ")
    assert text[3].startswith(f"    logit {clips[0]['logit']:+.2f} = ")
    assert "(3 windows, " in text[4]
    assert text[-2] == f"  refused  notes.txt: unreadable ({clips[3]['detail']})"
    assert text[-1].endswith("(2 more windows have no room there)")


def test_lines_on_standard_output_stand_alone(
    network: str, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(folder / "b"), "--network", network, "--window", "corpus", "--processes", "1", "--device", "cpu"]
    assert score.main([*arguments, "--json-lines", "-"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["clip"] == str(folder / "b" / "one.MP4")
    assert score.main([*arguments, "--json-lines", "-", "--json"]) == WRONG_USE
    assert "both want standard output" in capsys.readouterr().err
    assert score.main([*arguments, "--json-lines", str(tmp_path)]) == WRONG_USE
    assert "which cannot be written: Is a directory" in capsys.readouterr().err


def test_every_clip_refused_is_exit_code_4(network: str, folder: Path, tmp_path: Path) -> None:
    made = outcome(network, tmp_path / "none.mp4", folder / "notes.txt")
    assert made.exit_code == PARTLY
    assert [clip["refused"] for clip in made.payload["clips"]] == ["missing", "unreadable"]
    assert made.text.count("  refused  ") == 2
    assert "earlier version" not in made.text


def test_a_file_without_neutral_values_scores_without_senses(folder: Path, tmp_path: Path) -> None:
    old = write_scored_network(tmp_path / "old.safetensors", with_neutral=False)
    made = outcome(old, folder / "b")
    (clip,) = made.payload["clips"]
    assert clip["senses"] is clip["windows"][0]["senses"] is None
    assert made.text.splitlines()[-1].startswith("Which sense spoke is left out: an earlier version wrote")


@pytest.mark.parametrize(
    ("videos", "changes", "sentence"),
    [
        ((), {}, "no clip is given"),
        (("empty",), {}, "empty is a folder without a video file; give one that holds some"),
        (("a.mkv",), {"window": "corpus", "hop_s": 1.0}, "--window corpus takes one window"),
        (("a.mkv",), {"hop_s": 0.0}, "hop_s is 0; give at least 0.125"),
        (("a.mkv",), {"json_lines": "s3://bucket/lines"}, "to a local file only"),
    ],
)
def test_wrong_use_is_told(
    network: str, folder: Path, videos: tuple[str, ...], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        outcome(network, *(folder / video for video in videos), **changes)


def test_a_run_of_parts_is_refused_with_their_names(tmp_path: Path) -> None:
    from cluster.runs import open_run

    open_run(str(tmp_path), {"protocol": {"parts": {"fold-0": {}, "fold-1": {}}}}, resume=False, hints={})
    parts = ", ".join(os.path.join(str(tmp_path), "parts", f"fold-{number}") for number in range(2))
    with pytest.raises(InputError, match=f"several parts.*{parts}"):
        score.run(score.ScoreJobConfig(videos=("clip.mp4",), run=str(tmp_path)))
