"""Clips in a folder of one's own, in each of the layouts that are read."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from data_prep.folders import folder_manifest
from data_prep.manifest import Listing, write_manifest
from data_prep.storage import InputError

SWAN_VIDEO = "4_00001_m_01_04_p_2-model_256d-train_masknocolor-blending_m2s1-to-00006"
SWAN_VOICE = "4_00001_m_01_04_p_2-freevc-pretrained-tuned70k-to-00006"


def touch(root: Path, names: Iterable[str]) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def by_file(listing: Listing) -> dict[str, dict[str, Any]]:
    return {row["video_path"].rpartition("/")[2]: row for row in listing.rows}


def test_folder_manifest_names_category_subject_and_every_unfit_file(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.mp4"
    outside.touch()
    fit = {
        "RealVideo-RealAudio/id1/00001.mp4": (0, "A", "id1"),
        "RealVideo-FakeAudio/id1/session/00001.MP4": (1, "B", "id1"),
        "FakeVideo-RealAudio/id2_id7_swap.avi": (1, "C", "id2"),
        "D/id3-x.mpg": (1, "D", "id3"),
        "A/_odd.mkv": (0, "A", "_odd.mkv"),
    }
    unfit = {
        "readme.txt": "below no category folder",
        "Other/id1/a.mp4": "below no category folder",
        "A/notes.txt": "no video by its name",
        "A/id1/._00001.mp4": "a hidden file",
        "A/id1/link.mp4": "leaves its root",
    }
    for name in [*fit, *unfit]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if "link" in name:
            (root / name).symlink_to(outside)
        else:
            (root / name).touch()
    listing = folder_manifest(str(root), dataset="mine")
    assert {row["clip_id"]: (row["label"], row["category"], row["subject"]) for row in listing.rows} == {
        f"mine/{name}": values for name, values in fit.items()
    }
    assert all(row["video_path"] == row["clip_id"] and row["dataset"] == "mine" for row in listing.rows)
    reasons = dict(listing.unfit)
    assert reasons.keys() == unfit.keys()
    assert all(unfit[name] in reason for name, reason in reasons.items())
    write_manifest(str(tmp_path / "m"), listing.rows, listing.roots, {})


def test_a_name_that_is_no_utf8_is_unfit(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "good.mp4").touch()
    with open(os.path.join(os.fsencode(tmp_path / "A"), b"bad\xff.mp4"), "wb"):
        pass
    listing = folder_manifest(str(tmp_path), dataset="set")
    assert [row["clip_id"] for row in listing.rows] == ["set/A/good.mp4"]
    assert [reason for _, reason in listing.unfit] == ["its name is no UTF-8"]


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        InputError, match=r"holds no clip: none of its 1 files is a video below a folder RealVideo-Real"
    ):
        folder_manifest(str(tmp_path), dataset="set")
    (tmp_path / "empty.csv").mkdir()
    for name in ("nowhere", "empty.csv", "notes.txt"):
        with pytest.raises(
            InputError, match=f"{name} holds no clip: it does not exist, is no folder, or is empty; give the folder"
        ):
            folder_manifest(str(tmp_path / name), dataset="set")


def test_a_folder_may_be_named_like_a_csv(tmp_path: Path) -> None:
    listing = folder_manifest(touch(tmp_path / "clips.csv", ["A/one.mp4"]), dataset="set")
    assert [row["clip_id"] for row in listing.rows] == ["set/A/one.mp4"]


CSV = (
    "clip_id,video_path,audio_path,label,category,dataset,subject,target,split\n"
    "one,clips/one.mp4,,0,A,mine,s1,,train\n"
    "two,clips/two.mp4,voices/two.wav,1,D,mine,s2,s1+s3,\n"
)


def test_paths_of_a_csv_are_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(CSV)
    listing = folder_manifest(str(tmp_path / "list.csv"), dataset="root")
    assert listing.roots == {"root": str(tmp_path)}
    assert [(row["clip_id"], row["video_path"], row["audio_path"]) for row in listing.rows] == [
        ("one", "root/clips/one.mp4", None),
        ("two", "root/clips/two.mp4", "root/voices/two.wav"),
    ]
    assert [(row["dataset"], row["target"], row["split"]) for row in listing.rows] == [
        ("mine", None, "train"),
        ("mine", "s1+s3", None),
    ]
    write_manifest(str(tmp_path / "m"), listing.rows, listing.roots, {})


@pytest.mark.parametrize("path", ["../one.mp4", "./one.mp4", "/clips/one.mp4", "s3://bucket/one.mp4", "a//one.mp4"])
def test_paths_of_a_csv_stay_below_its_folder(path: str, tmp_path: Path) -> None:
    for clip, column, name in (("one", "video_path", "clips/one.mp4"), ("two", "audio_path", "voices/two.wav")):
        (tmp_path / "list.csv").write_text(CSV.replace(name, path))
        sentence = f"clip '{clip}' in .*list.csv has {column} '{path}'; give its path relative"
        with pytest.raises(InputError, match=sentence):
            folder_manifest(str(tmp_path / "list.csv"), dataset="root")


def test_a_csv_without_lines_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(CSV.splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"list\.csv holds no clip: it has a header and no line below it"):
        folder_manifest(str(tmp_path / "list.csv"), dataset="root")
    with pytest.raises(InputError, match=r"other\.csv does not exist"):
        folder_manifest(str(tmp_path / "other.csv"), dataset="root")


def released(root: Path, labels: str, sources: str = "", folder: str = "") -> None:
    (root / folder / "audio").mkdir(parents=True, exist_ok=True)
    (root / folder / "label2.txt").write_text(labels)
    (root / folder / "audio" / "_source.txt").write_text(sources)


def test_the_released_layout_sets_splits_labels_and_categories(tmp_path: Path) -> None:
    released(tmp_path, "00109.mp4 1\n00109_fake.mp4 0\n", folder="train")
    released(tmp_path, "00052_id04774_PWU6n0qrv4c.mp4 0\n", folder="dev")
    both = "00028_id00171_PWU6n0qrv4c_id05251_wavtolip.mp4"
    released(tmp_path, f"{both} 0\n\n", folder="test")
    paths = ["train/rgb/00109.mp4", "train/rgb/00109_fake.mp4", "dev/rgb/00052_id04774_PWU6n0qrv4c.mp4"]
    listing = folder_manifest(touch(tmp_path, [*paths, f"test/rgb/{both}"]), dataset="old")
    rows = by_file(listing)
    assert {name: (row["split"], row["label"], row["category"], row["subject"]) for name, row in rows.items()} == {
        "00109.mp4": ("train", 0, "A", "00109"),
        "00109_fake.mp4": ("train", 1, "B", "00109"),
        "00052_id04774_PWU6n0qrv4c.mp4": ("dev", 1, "C", "00052"),
        both: ("test", 1, "D", "00028"),
    }
    assert rows[both]["target"] == "id00171+id05251"
    assert rows[both]["method"] == "fsgan-wav2lip"
    assert rows["00109.mp4"]["clip_id"] == rows["00109.mp4"]["video_path"] == "old/train/rgb/00109.mp4"
    assert {path: reason.split(" ")[0] for path, reason in listing.unfit} == {}
    write_manifest(str(tmp_path / "m"), listing.rows, listing.roots, {})


def test_sources_of_the_released_layout_tell_category_subject_and_sound(tmp_path: Path) -> None:
    sources = (
        "00109_id00166_wavtolip.npy,/far/FakeVideo-FakeAudio/African/men/id00076/00109_id00166_wavtolip.wav\n"
        f"{SWAN_VIDEO}.npy,/far/away/{SWAN_VOICE}.wav\n"
    )
    released(tmp_path, f"00109_id00166_wavtolip.mp4 0\n{SWAN_VIDEO}.mp4 0\n4_00006_f_01_04_p_2.mp4 1\n", sources)
    videos = ["00109_id00166_wavtolip.mp4", f"{SWAN_VIDEO}.mp4", "4_00006_f_01_04_p_2.mp4"]
    listing = folder_manifest(
        touch(tmp_path, [*(f"rgb/{video}" for video in videos), f"audio/{SWAN_VOICE}.wav"]), dataset="old"
    )
    rows = by_file(listing)
    columns = ("category", "subject", "target", "audio_path", "split")
    assert {name: tuple(row[column] for column in columns) for name, row in rows.items()} == {
        videos[0]: ("D", "id00076", "id00166", None, None),
        videos[1]: ("D", "00001", "00006", f"old/audio/{SWAN_VOICE}.wav", None),
        videos[2]: ("A", "00006", None, None, None),
    }


def test_what_the_released_layout_leaves_open_is_unfit(tmp_path: Path) -> None:
    labels = "00001.mp4 1\n00109_id00166_wavtolip.mp4 0\n00002.mp4 0\nmy clip.mp4 0\ngone.mp4 1\n"
    released(tmp_path, labels + f"{SWAN_VIDEO}.mp4 0\nodd.mp4 0\n", "odd.npy,/far/RealVideo-RealAudio/odd.wav\n")
    unclear = [
        "rgb/odd.mp4",
        "rgb/00109_id00166_wavtolip.mp4",
        "rgb/00002.mp4",
        "rgb/my clip.mp4",
        f"rgb/{SWAN_VIDEO}.mp4",
    ]
    found = ["rgb/00001.mp4", *unclear, "rgb/extra.mp4", "rgb_256x256_30/00001.mp4"]
    listing = folder_manifest(touch(tmp_path, found), dataset="old")
    assert [row["video_path"] for row in listing.rows] == ["old/rgb/00001.mp4"]
    assert dict(listing.unfit) == {
        **dict.fromkeys(unclear, "nothing says which of its two senses is fake"),
        "rgb/extra.mp4": "not in label2.txt",
        "rgb_256x256_30/00001.mp4": "a second copy of rgb/00001.mp4",
        "gone.mp4": "label2.txt lists it, but there is no such video",
    }


@pytest.mark.parametrize(
    ("labels", "sources", "sentence"),
    [
        ("a.mp4 2\n", "", r"label2\.txt line 1 is 'a\.mp4 2'; write '<video file> 1' for a real clip"),
        ("\na.mp4\n", "", r"label2\.txt line 2 is 'a\.mp4'; write"),
        ("a.mp4 1\na.mp4 0\n", "", r"label2\.txt line 2 gives 'a\.mp4' another label than before"),
        ("a.mp4 1\n", "a.npy\n", r"_source\.txt line 1 is 'a\.npy'; write '<spectrogram>\.npy,<path of its sound>'"),
        ("a.mp4 1\n", "a.npy,/x\na.npy,/y\n", r"_source\.txt line 2 gives 'a\.npy' another sound than before"),
        ("b.mp4 1\n", "", "holds no clip: no video that its label2.txt names can be one"),
    ],
)
def test_a_released_layout_with_odd_lines_is_refused(labels: str, sources: str, sentence: str, tmp_path: Path) -> None:
    released(tmp_path, labels, sources)
    with pytest.raises(InputError, match=sentence):
        folder_manifest(touch(tmp_path, ["rgb/a.mp4"]), dataset="old")


def test_labels_in_two_places_are_refused(tmp_path: Path) -> None:
    released(tmp_path, "a.mp4 1\n")
    released(tmp_path, "a.mp4 1\n", folder="train")
    with pytest.raises(InputError, match=r"holds label2\.txt and train/label2\.txt; leave the one of the root, or"):
        folder_manifest(str(tmp_path), dataset="old")
    (tmp_path / "label2.txt").write_bytes(b"\xff")
    (tmp_path / "train" / "label2.txt").unlink()
    with pytest.raises(InputError, match=r"label2\.txt is no UTF-8 text"):
        folder_manifest(str(tmp_path), dataset="old")
