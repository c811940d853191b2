"""`stgs manifest` as a user meets it: sources, splits, merging, and what it prints. The files are empty."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from data_prep.manifest import Row, read_manifest
from jobs.cli import main

Run = Callable[..., dict[str, Any]]

RACES = {"African": "men", "Asian_South": "women"}
SUBJECTS = 12


def touch(root: Path, names: Iterable[str]) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def celebrities() -> list[str]:
    """Paths of a small FakeAVCeleb: of each subject one clip a category, whose target is the next subject."""
    names = []
    for number in range(SUBJECTS):
        race = list(RACES)[number % 2]
        subject, target = f"id{number:05}", f"id{(number + 1) % SUBJECTS:05}"
        folder = f"{race}/{RACES[race]}/{subject}"
        names += [f"RealVideo-RealAudio/{folder}/00001.mp4", f"RealVideo-FakeAudio/{folder}/00001_fake.mp4"]
        names += [f"FakeVideo-RealAudio/{folder}/00001_{target}_wavtolip.mp4"]
        names += [f"FakeVideo-FakeAudio/{folder}/00001_{target}_PWU6n0qrv4c_{target}_wavtolip.mp4"]
    return names


def recordings(*subjects: str) -> list[str]:
    return [f"session_01/iPad/{subject}/4_{subject}_m_01_01_t_2.mp4" for subject in subjects]


@pytest.fixture
def celebrities_root(tmp_path: Path) -> str:
    return touch(tmp_path / "celebrities", celebrities())


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `stgs manifest` with --json and gives what it printed."""

    def call(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
        assert main(["manifest", *arguments, "--json"]) == exit_code, capfd.readouterr().err
        return json.loads(capfd.readouterr().out)

    return call


def rows_of(uri: str) -> list[Row]:
    return read_manifest(uri).rows


def test_fakeavceleb_is_listed_split_and_counted(celebrities_root: str, tmp_path: Path, run: Run) -> None:
    out = str(tmp_path / "m")
    told = run("fakeavceleb", celebrities_root, "--out", out)
    rows = rows_of(out)
    assert (told["clips"], told["subjects"], told["targets"]) == (48, 12, 12)
    assert told["categories"] == {"A": 12, "B": 12, "C": 12, "D": 12}
    assert {row["clip_id"].split("/")[0] for row in rows} == {"FakeAVCeleb"}
    assert read_manifest(out).roots == {"FakeAVCeleb": celebrities_root}
    counts = Counter(row["split"] for row in rows)
    assert {name: split["clips"] for name, split in told["splits"].items() if split["clips"]} == counts
    assert set(counts) == {"train", "dev", "test"}
    subjects = {split: {row["subject"] for row in rows if row["split"] == split} for split in counts}
    assert {name: told["splits"][name]["subjects"] for name in counts} == {name: len(s) for name, s in subjects.items()}
    # Targets go round in a ring: whatever the split, some test fake borrows the face of somebody else's split.
    assert told["leaks"]
    assert told["digest"] == read_manifest(out).meta.digest
    assert (told["unfit"], told["notes"], told["dropped"]) == ([], [], {})


def test_splits_without_leaks_leave_clips_in_the_manifest(celebrities_root: str, tmp_path: Path, run: Run) -> None:
    out = str(tmp_path / "m")
    told = run("fakeavceleb", celebrities_root, "--out", out, "--split", "subject-target", "--seed", "3")
    rows = rows_of(out)
    assert len(rows) == 48
    unused = sum(row["split"] is None for row in rows)
    assert unused == sum(told["dropped"].values()) == told["splits"]["unused"]["clips"] > 0
    assert told["leaks"] == []
    assert read_manifest(out).meta.config["split"]["split"] == "subject-target"


def test_files_left_out_and_remarks_are_told(
    celebrities_root: str, tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    root = Path(celebrities_root)
    header = "source,target1,target2,method,category,type,race,gender,path,"
    (root / "meta_data.csv").write_text(f"{header}\n")
    touch(root, [f"notes/{number:02}.txt" for number in range(25)])
    told = run("fakeavceleb", celebrities_root, "--out", str(tmp_path / "m"), exit_code=4)
    assert len(told["unfit"]) == 25
    assert told["unfit"][0].keys() == {"path", "reason"}
    assert {note["reason"] for note in told["notes"]} == {"meta_data.csv does not list it"}
    assert len(told["notes"]) == 48
    assert main(["manifest", "fakeavceleb", celebrities_root, "--out", str(tmp_path / "m")]) == 4
    lines = capfd.readouterr().out.splitlines()
    assert "48 clips of 12 subjects, imitating 12 known targets: A 12, B 12, C 12, D 12" in lines
    assert f"manifest: {tmp_path / 'm'}" in lines
    assert "files left out: 25" in lines
    assert "  notes/19.txt: not at <type>/<race>/<men|women>/<idNNNNN>/<file>" in lines
    assert "  ... and 5 more (--json lists all)" in lines
    assert not any("notes/20.txt" in line for line in lines)
    assert "remarks on clips: 48" in lines


def test_a_name_that_is_no_utf8_is_printed_all_the_same(
    tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    root = touch(tmp_path / "own", [f"A/s{number}/a.mp4" for number in range(5)])
    with open(os.path.join(os.fsencode(root), b"A", b"bad\xff.mp4"), "wb"):
        pass
    told = run("folder", root, "--out", str(tmp_path / "m"), exit_code=4)
    # Written out: a lone half of a character is no JSON that others can read.
    assert [item["path"] for item in told["unfit"]] == ["A/bad\\udcff.mp4"]
    assert main(["manifest", "folder", root, "--out", str(tmp_path / "m")]) == 4
    assert "  A/bad\\udcff.mp4: its name is no UTF-8" in capfd.readouterr().out.splitlines()


def test_swan_df_has_two_roots(tmp_path: Path, run: Run) -> None:
    fake = "256x256/00001/4_00001_m_01_01_t_2-model_256d-train_maskmkl-blending_m1s4-to-00002.mp4"
    fakes = touch(tmp_path / "df", [fake])
    swan = touch(tmp_path / "swan", recordings("00001", "00002", "00003"))
    told = run("swan-df", fakes, "--swan", swan, "--out", str(tmp_path / "m"))
    assert told["categories"] == {"A": 3, "C": 1}
    assert read_manifest(str(tmp_path / "m")).roots == {"SWAN-DF": fakes, "SWAN": swan}


def test_merging_joins_data_sets_and_crosses_them(celebrities_root: str, tmp_path: Path, run: Run) -> None:
    first, second, both = (str(tmp_path / name) for name in ("first", "second", "both"))
    own = [f"{category}/s{number}/a.mp4" for category in "ABCD" for number in range(10)]
    run("fakeavceleb", celebrities_root, "--out", first)
    run("folder", touch(tmp_path / "own", own), "--out", second, "--dataset", "own")
    told = run(
        *("merge", first, second, "--out", both, "--split", "cross"),
        *("--train-datasets", "own", "--test-datasets", "FakeAVCeleb"),
    )
    assert told["clips"] == 88
    assert told["subjects"] == 22
    merged = read_manifest(both)
    assert merged.roots.keys() == {"FakeAVCeleb", "own"}
    assert {(row["dataset"], row["split"]) for row in merged.rows if row["split"]} == {
        ("own", "train"),
        ("own", "dev"),
        ("FakeAVCeleb", "test"),
    }


def test_merging_one_manifest_splits_it_anew_or_keeps_its_splits(
    celebrities_root: str, tmp_path: Path, run: Run
) -> None:
    first, anew, kept = (str(tmp_path / name) for name in ("first", "anew", "kept"))
    digest = run("fakeavceleb", celebrities_root, "--out", first)["digest"]
    assert run("merge", first, "--out", anew, "--seed", "1")["digest"] == digest
    replaced = "ROOT's own splits are replaced; --keep-splits leaves them."
    assert replaced in run("merge", first, "--out", anew, "--seed", "1")["split_notes"]
    told = run("merge", first, "--out", kept, "--keep-splits")
    assert told["split_notes"] == []
    none = str(tmp_path / "none")
    assert replaced in run("merge", first, "--out", none, "--split", "none")["split_notes"]
    assert run("merge", none, "--out", str(tmp_path / "again"), "--split", "none")["split_notes"] == []
    assert rows_of(kept) == rows_of(first) != rows_of(anew)
    assert told["splits"]["train"]["clips"] == sum(row["split"] == "train" for row in rows_of(first))
    assert told["leaks"]


def test_splits_of_a_csv_can_be_kept(tmp_path: Path, run: Run) -> None:
    lines = ["clip_id,video_path,label,category,dataset,subject,split,fold"]
    lines += [f"c{number},a/{number}.mp4,0,A,mine,s{number},{split},2" for number, split in enumerate(("test", "dev"))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    run("folder", str(tmp_path / "list.csv"), "--out", str(tmp_path / "m"), "--keep-splits")
    kept = [(row["split"], row["fold"], row["video_path"]) for row in rows_of(str(tmp_path / "m"))]
    assert kept == [("test", 2, "clips/a/0.mp4"), ("dev", 2, "clips/a/1.mp4")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["folder", "{root}", "{root}"], "folder reads one ROOT, not 2; list them singly, then merge them."),
        (["folder", "{root}/RealVideo-RealAudio"], "holds no clip: none of its 12 files"),
        (["swan-df", "{root}"], "SWAN-DF holds fakes alone: give --swan with the folder of SWAN for swan-df"),
        (["fakeavceleb", "{root}", "--swan", "{root}"], "for swan-df, and only there"),
        (["merge", "{root}"], "is no 'manifest' box"),
        (["merge", "{root}", "--dataset", "x"], "--dataset is 'x', but merged clips keep the names of their own"),
        (
            ["fakeavceleb", "{root}", "--keep-splits"],
            "fakeavceleb has no splits of its own to keep; leave out --keep-sp",
        ),
        (["merge", "{root}", "--keep-splits", "--seed", "1"], "--keep-splits leaves the splits as they are; leave it"),
        (["other", "{root}"], "SOURCE is 'other'; choose from folder, fakeavceleb, swan-df, merge."),
        (["folder"], "ROOT is missing; give it first on the command line"),
        (["folder", "{root}", "--processes", "0"], "processes is 0; give at least 1."),
        (["folder", "{root}", "--clip-timeout", "0"], "clip_timeout is 0.0; give seconds above 0, at most 86,400."),
        (["folder", "{root}", "--clip-timeout", "1e5"], "clip_timeout is 100000.0; give seconds above 0, at most"),
        (["fakeavceleb", "{root}", "--dev", "1.5"], "dev is 1.5; give a share below 1, or a whole number"),
        (["fakeavceleb", "{root}", "--dev", "6", "--test", "6"], "leaves none"),
    ],
)
def test_wrong_use_ends_in_a_sentence_and_writes_nothing(
    arguments: list[str], sentence: str, celebrities_root: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [argument.format(root=celebrities_root) for argument in arguments]
    assert main(["manifest", *words, "--out", str(tmp_path / "m")]) == 2
    captured = capfd.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_an_audit_is_printed_and_in_the_json(
    celebrities_root: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from jobs import audit

    seen: list[Any] = []
    refused: list[dict[str, str]] = []

    def audit_manifest(rows: list[Row], roots: dict[str, str], *, clip_timeout: float, processes: int) -> Any:
        seen.append((len(rows), roots, clip_timeout, processes))
        return {"clips": len(rows), "refused_clips": refused}

    monkeypatch.setattr(audit, "audit_manifest", audit_manifest)
    monkeypatch.setattr(audit, "audit_text", lambda found: f"audited {found['clips']}")
    call = ["fakeavceleb", celebrities_root, "--out", str(tmp_path / "m"), "--audit", "--processes", "3"]
    assert run(*call)["audit"] == {"clips": 48, "refused_clips": []}
    assert main(["manifest", *call, "--clip-timeout", "5"]) == 0
    assert capfd.readouterr().out.endswith("\naudited 48\n")
    roots = {"FakeAVCeleb": celebrities_root}
    assert seen == [(48, roots, 60.0, 3), (48, roots, 5.0, 3)]
    refused += [{"clip_id": f"clip {number}", "reason": "unreadable", "detail": "no film"} for number in range(21)]
    assert run(*call, exit_code=4)["audit"]["refused_clips"] == refused
    assert main(["manifest", *call]) == 4
    lines = capfd.readouterr().out.splitlines()
    assert lines[-22:-20] == ["clips that cannot be read: 21", "  clip 0: unreadable (no film)"]
    assert lines[-1] == "  ... and 1 more (--json lists all)"
