"""SWAN-DF and SWAN: names as public readers of the data sets quote them, on empty files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from data_prep.manifest import Listing, targets_of, write_manifest
from data_prep.storage import InputError
from data_prep.swan_df import parse, swan_df_manifest

RECORDING = "4_00001_m_01_04_p_2"
REAL = f"IDIAP/session_01/iPhone/00001/{RECORDING}.mp4"
OTHER = "IDIAP/session_01/iPad/00006/4_00006_f_01_07_t_2.mp4"
VIDEOS = tuple(
    f"{size}x{size}/00001/{RECORDING}-model_{size}d-train_masknocolor-blending_{blending}-to-00006.mp4"
    for size in (160, 256)
    for blending in ("m1s4", "m2s1")
)
VOICES = (
    f"wav/00001/{RECORDING}-freevc-pretrained-tuned70k-to-00006.wav",
    f"wav/00001/{RECORDING}-hifivc-to-00006.wav",
)


def touch(root: Path, names: Iterable[str]) -> None:
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def list_both(folder: Path, fakes: Iterable[str], recordings: Iterable[str]) -> Listing:
    touch(folder / "df", fakes)
    touch(folder / "swan", recordings)
    listing = swan_df_manifest(str(folder / "df"), str(folder / "swan"))
    write_manifest(str(folder / "m"), listing.rows, listing.roots, {})
    return listing


def of_category(listing: Listing, category: str) -> list[dict[str, Any]]:
    return [row for row in listing.rows if row["category"] == category]


def test_videos_voices_and_recordings_become_four_categories(tmp_path: Path) -> None:
    alone = "320x320/00006/4_00006_f_01_07_t_2-model_320d-train_maskmkl-blending_m4o4e15b150r7-to-00022.mp4"
    listing = list_both(tmp_path, [*VIDEOS, *VOICES, alone], [REAL, OTHER])
    assert listing.unfit == []
    assert listing.roots == {"SWAN-DF": str(tmp_path / "df"), "SWAN": str(tmp_path / "swan")}
    assert {row["dataset"] for row in listing.rows} == {"SWAN-DF"}

    real, other = of_category(listing, "A")
    assert (other["video_path"], real["video_path"]) == (f"SWAN/{REAL}", f"SWAN/{OTHER}")
    assert (other["subject"], other["gender"], other["method"], other["target"]) == ("00001", "men", "real", None)
    assert (real["subject"], real["gender"]) == ("00006", "women")

    voices = of_category(listing, "B")
    assert {row["audio_path"] for row in voices} == {f"SWAN-DF/{voice}" for voice in VOICES}
    assert {row["video_path"] for row in voices} == {f"SWAN/{REAL}"}
    assert {row["method"] for row in voices} == {"freevc-pretrained-tuned70k", "hifivc"}

    (swapped,) = of_category(listing, "C")
    assert (swapped["video_path"], swapped["audio_path"]) == (f"SWAN-DF/{alone}", f"SWAN/{OTHER}")
    assert (swapped["subject"], swapped["target"]) == ("00006", "00022")
    assert swapped["method"] == "deepfacelab-320-maskmkl-m4o4e15b150r7"

    both = of_category(listing, "D")
    assert {row["video_path"] for row in both} == {f"SWAN-DF/{video}" for video in VIDEOS}
    assert all((row["subject"], targets_of(row)) == ("00001", ("00006",)) for row in [*voices, *both])


def test_every_voice_is_dealt_to_some_video(tmp_path: Path) -> None:
    both = of_category(list_both(tmp_path, [*VIDEOS, *VOICES], [REAL]), "D")
    heard = [row["audio_path"] for row in both]
    assert len(both) == 4
    assert {heard.count(f"SWAN-DF/{voice}") for voice in VOICES} == {2}
    for row in both:
        face, voice = row["method"].split("+")
        assert face.startswith("deepfacelab-256-masknocolor-m" if "256d" in row["video_path"] else "deepfacelab-160-")
        assert voice in row["audio_path"]
        assert row["clip_id"].endswith(f"-to-00006+{voice}")


def test_voices_go_to_their_own_recording_and_target_alone(tmp_path: Path) -> None:
    other_target = VIDEOS[0].replace("to-00006", "to-00007")
    other_recording = VIDEOS[1].replace(RECORDING, "4_00001_m_01_05_p_2")
    recordings = [REAL, REAL.replace(RECORDING, "4_00001_m_01_05_p_2")]
    listing = list_both(tmp_path, [other_target, other_recording, VOICES[0]], recordings)
    assert of_category(listing, "D") == []
    assert {row["audio_path"] for row in of_category(listing, "C")} == {f"SWAN/{path}" for path in recordings}
    assert len(of_category(listing, "B")) == 1


def test_folders_may_stand_deeper_and_names_lack_their_to(tmp_path: Path) -> None:
    voice = f"SWAN-DF/audios/{VOICES[0].replace('-to-', '-')}"
    listing = list_both(tmp_path, [f"SWAN-DF/videos/{VIDEOS[0]}", voice], [f"SWAN-Idiap/{REAL}"])
    (row,) = of_category(listing, "D")
    assert (row["video_path"], row["audio_path"]) == (f"SWAN-DF/SWAN-DF/videos/{VIDEOS[0]}", f"SWAN-DF/{voice}")
    assert row["method"] == "deepfacelab-160-masknocolor-m1s4+freevc-pretrained-tuned70k"


def test_recordings_of_other_kinds_are_real_clips_only_where_a_fake_needs_them(tmp_path: Path) -> None:
    needed = "4_00002_f_01_03_p_1"  # modality 1: the face, not spoken
    fake = f"160x160/00002/{needed}-model_160d-train_maskmkl-blending_m1s4-to-00004.mp4"
    others = ["4_00002_f_01_04_p_1.mp4", "4_00002_f_02_01_p_2.mp4", "1_00002_f_01_01_p_2.mp4"]
    listing = list_both(tmp_path, [fake], [f"IDIAP/{name}" for name in (f"{needed}.mp4", *others)])
    assert [row["video_path"] for row in of_category(listing, "A")] == [f"SWAN/IDIAP/{needed}.mp4"]
    reason = "no spoken recording of Idiap's session 01, and no fake was made from it"
    assert dict(listing.unfit) == {f"SWAN/IDIAP/{name}": reason for name in others}


def test_what_cannot_be_joined_or_read_is_unfit(tmp_path: Path) -> None:
    lonely = VIDEOS[0].replace("00001", "00009")
    unheard = VOICES[0].replace("00001", "00009").replace("to-00006", "to-00010")
    unfit = {
        lonely: "neither its voice nor its recording in SWAN is there",
        unheard: "neither a video that lacks a voice nor its recording in SWAN is there",
        "readme.txt": "not at <folder>/<subject>/<file> with a folder 160x160",
        "512x512/00001/a.mp4": "not at <folder>",
        VIDEOS[0].replace(".mp4", ".txt"): "neither a video nor a voice by its name (.avi",
        VOICES[0].replace(".wav", ".mp4"): "neither a video nor a voice by its name (.wav)",
        f"160x160/00001/{RECORDING}.mp4": "its name is not <recording>-<how it was made>-to-<target>",
        f"160x160/00001/{RECORDING}-to-00006.mp4": "its name is not <recording>",
        f"160x160/00001/{RECORDING}-model_160d-to-6.mp4": "its name is not <recording>",
        "160x160/00001/clip-model_160d-x-to-00006.mp4": "its name is not <recording>",
        VIDEOS[0].replace("/00001/", "/00006/"): "its name says subject 00001, but it lies below '00006'",
        VIDEOS[0].replace("160x160", "256x256"): "its name says 160d, but it lies below '256x256'",
    }
    listing = list_both(tmp_path, [VIDEOS[2], VOICES[1], *unfit], [REAL, "notes.png", "clip.mp4", f"copy/{REAL}"])
    reasons = dict(listing.unfit)
    recordings = {
        "SWAN/notes.png": "no video by its name",
        "SWAN/clip.mp4": "its name is not <site>_<subject>",
        f"SWAN/copy/{REAL}": f"a second copy of SWAN/{REAL}",
    }
    expected = {f"SWAN-DF/{path}": reason for path, reason in unfit.items()} | recordings
    assert reasons.keys() == expected.keys()
    assert {path: reasons[path] for path in expected if expected[path] not in reasons[path]} == {}
    assert sorted(row["category"] for row in listing.rows) == ["A", "B", "D"]


def test_second_copies_are_unfit(tmp_path: Path) -> None:
    copies = [f"SWAN-DF/{VIDEOS[0]}", VIDEOS[0].replace(".mp4", ".avi"), f"SWAN-DF/{VOICES[0]}"]
    listing = list_both(tmp_path, [VIDEOS[0], VOICES[0], *copies], [REAL])
    assert {category: len(of_category(listing, category)) for category in "ABCD"} == {"A": 1, "B": 1, "C": 0, "D": 1}
    kept = {row[column] for row in listing.rows for column in ("video_path", "audio_path")}
    unfit = dict(listing.unfit)
    assert len(unfit) == 3
    for path, reason in unfit.items():
        assert path not in kept
        assert reason.removeprefix("a second copy of ") in kept


def test_names_are_read_apart() -> None:
    name = parse("4_00021_f_01_07_t_2-model_256d-train_masknocolor-blending_m4o4e15b150r7-to-00022")
    assert name is not None
    assert (name.recording, name.subject, name.target) == ("4_00021_f_01_07_t_2", "00021", "00022")
    assert name.fields == ("model_256d", "train_masknocolor", "blending_m4o4e15b150r7")
    recording = parse("4_00021_f_01_07_t_2")
    assert recording is not None
    assert (recording.target, recording.fields, recording.spoken) == (None, (), True)
    for stem in ("", "4_00021_f_01_07_t", "00109_id00166_wavtolip", "4_00021_f_01_07_t_2--to-00022"):
        assert parse(stem) is None


def test_empty_folders_and_one_name_for_both_roots_are_refused(tmp_path: Path) -> None:
    df, swan = tmp_path / "df", tmp_path / "swan"
    touch(swan, ["a.txt"])
    with pytest.raises(
        InputError, match="df holds no clip: it does not exist, is no folder, or is empty; give the folder"
    ):
        swan_df_manifest(str(df), str(swan))
    touch(df, ["a.txt"])
    with pytest.raises(InputError, match=r"df holds no fake of SWAN-DF: .* 160x160, 256x256.*; give the folder that"):
        swan_df_manifest(str(df), str(swan))
    touch(df, VIDEOS)
    with pytest.raises(InputError, match=r"swan holds no recording of SWAN's session 01; give the folder SWAN-Idiap"):
        swan_df_manifest(str(df), str(swan))
    with pytest.raises(InputError, match="the data set is named 'SWAN', which names the recordings"):
        swan_df_manifest(str(df), str(swan), dataset="SWAN")
