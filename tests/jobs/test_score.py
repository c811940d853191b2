"""`stgs score`: folders, lines, exit codes, and what is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.scoring import ClipScore, WindowScore
from cluster.scoring_windows import PreparedWindow
from data_prep.rejects import RejectReason
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
    monkeypatch.setattr(score, "_MOST_PICTURES", 4)
    made = outcome(network, "b/one.MP4", ".", "notes.txt", json_lines=str(lines), faces=str(faces))
    clips = made.payload["clips"]
    assert [clip["clip"] for clip in clips] == ["b/one.MP4", "./a.mkv", "./b/one.MP4", "notes.txt"]
    assert made.exit_code == PARTLY
    assert [json.loads(line) for line in lines.read_text().splitlines()] == clips
    assert clips[0]["p_fake"] == clips[2]["p_fake"] != clips[1]["p_fake"]
    assert (clips[3]["refused"], clips[3]["windows"]) == ("unreadable", [])
    assert len(clips[1]["windows"]) == 3
    # What the clips of one window leave free goes to a.mkv, which has three.
    assert made.payload["faces_left_out"] == 1
    with Image.open(faces) as picture:
        assert picture.height == 4 * 120
    text = made.text.splitlines()
    assert text[2].startswith(f"  {clips[0]['p_fake']:.4f}  ")
    assert text[3].startswith(f"    logit {clips[0]['logit']:+.2f} = ")
    assert "(3 windows, " in text[4]
    assert text[-2] == f"  refused  notes.txt: unreadable ({clips[3]['detail']})"
    assert text[-1] == f"faces: {faces} (1 more windows are not in it)"


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
    faces = tmp_path / "faces.jpg"
    made = outcome(network, tmp_path / "none.mp4", folder / "notes.txt", faces=str(faces))
    assert made.exit_code == PARTLY
    assert [clip["refused"] for clip in made.payload["clips"]] == ["missing", "unreadable"]
    assert made.text.count("  refused  ") == 2
    assert "earlier version" not in made.text
    assert made.text.splitlines()[-1] == f"faces: {faces} was not written, since no window was scored now."
    assert made.payload["faces"] is None
    assert not faces.exists()


def test_a_score_without_a_part_of_the_clip_is_called_incomplete(
    network: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    windows = [
        WindowScore(PreparedWindow(start_s=0.0, end_s=3.0), 1.0),
        WindowScore(PreparedWindow(start_s=3.0, end_s=6.0, reason=RejectReason.NO_FACE, detail="none"), None),
        WindowScore(PreparedWindow(start_s=6.0, end_s=9.0, reason=RejectReason.TIMEOUT, detail="too slow"), None),
    ]

    def scored(stored: Any, uris: list[str], settings: Any, progress: Any) -> Iterator[ClipScore]:
        yield from (ClipScore(uri, windows[: 2 + index]) for index, uri in enumerate(uris))

    monkeypatch.setattr(score, "score_files", scored)
    whole = outcome(network, "faceless.mp4")
    assert (whole.exit_code, whole.payload["clips"][0]["incomplete"]) == (0, None)
    made = outcome(network, "faceless.mp4", "long.mp4", json_lines=str(tmp_path / "lines"))
    assert made.exit_code == PARTLY
    assert made.payload["clips"][1]["incomplete"] == "6.0 to 9.0 s: timeout (too slow)"
    assert "    incomplete: not scored are 6.0 to 9.0 s: timeout (too slow)" in made.text.splitlines()
    # What went on after an interrupt says the same.
    assert outcome(network, "faceless.mp4", "long.mp4", json_lines=str(tmp_path / "lines")).exit_code == PARTLY


def test_a_file_of_lines_is_continued(
    network: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    lines = tmp_path / "scores.jsonl"
    whole = outcome(network, "b", "a.mkv", "notes.txt")
    outcome(network, "a.mkv", json_lines=str(lines))
    with lines.open("a") as file:
        file.write('{"clip": "b/one.MP4", "p_fa')
    asked: list[str] = []
    real = score.score_files

    def recorded(stored: Any, uris: list[str], *rest: Any, **options: Any) -> Any:
        asked.extend(map(os.path.basename, uris))
        return real(stored, uris, *rest, **options)

    monkeypatch.setattr(score, "score_files", recorded)
    made = outcome(network, "b", "a.mkv", "notes.txt", json_lines=str(lines))
    assert asked == ["one.MP4", "notes.txt"]
    assert [without_time(clip) for clip in made.payload["clips"]] == [
        without_time(clip) for clip in whole.payload["clips"]
    ]
    stood = [json.loads(line)["clip"] for line in lines.read_text().splitlines()]
    assert stood == ["a.mkv", "b/one.MP4", "notes.txt"]
    assert (made.payload["resumed"], made.exit_code) == (1, PARTLY)
    assert made.text.splitlines()[-1] == f"1 of these clips stood in {lines} and were not scored again."
    again = outcome(network, "a.mkv", json_lines=str(lines), faces=str(tmp_path / "faces.jpg"))
    assert again.payload["faces_left_out"] == 3
    assert len(asked) == 2


def without_time(clip: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in clip.items() if name != "seconds"}


def test_lines_of_another_making_and_other_files_stay_as_they_are(network: str, folder: Path, tmp_path: Path) -> None:
    lines, other = tmp_path / "scores.jsonl", write_scored_network(tmp_path / "other.safetensors", with_neutral=False)
    outcome(network, folder / "notes.txt", json_lines=str(lines))
    before = lines.read_bytes()
    with pytest.raises(InputError, match=r"line 1 of .* has 1\.0 as its hop_s, and here it is 0\.5"):
        outcome(network, folder / "notes.txt", json_lines=str(lines), hop_s=0.5)
    with pytest.raises(InputError, match="as its network_sha256"):
        outcome(other, folder / "notes.txt", json_lines=str(lines))
    assert lines.read_bytes() == before
    for content in (b"no line", b"[1]\n", (folder / "a.mkv").read_bytes(), before + b"\n"):
        lines.write_bytes(content)
        with pytest.raises(InputError, match="none that 'stgs score' wrote"):
            outcome(network, folder / "notes.txt", json_lines=str(lines))
        assert lines.read_bytes() == content


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
