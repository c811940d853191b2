import dataclasses
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import boxes
from data_prep.clip import CORPUS_SCHEMA, REJECT_SCHEMA, ClipPreparer, PrepareConfig, Reject, RejectReason
from data_prep.storage import InputError

PLAIN = PrepareConfig(faces="none", frame_size=64)
RATE = 16_000

Prepare = Callable[..., dict[str, Any]]


def test_a_row_is_what_the_corpus_holds(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, RATE))
    labels = {"label": 1, "category": "C", "target": "id7", "method": "swap"}
    row = prepare("clip.mp4", **labels)
    assert {name: row[name] for name in labels} == labels
    schema = CORPUS_SCHEMA(PLAIN)
    assert list(row) == schema.names
    table = boxes.table_from_rows([row, row], schema)
    assert boxes.column_to_numpy(table, "frames").shape == (2, 8, 3, 64, 64)
    assert boxes.column_to_numpy(table, "spectrogram").shape == (2, 300, 257)
    assert boxes.column_to_numpy(table, "face_box").shape == (2, 8, 4)
    assert row["duration_s"] == pytest.approx(3.0)
    assert row["fps"] == 25.0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mpg"])
def test_frames_are_those_shown_in_the_middles_of_eight_parts(
    clips: Any, tmp_path: Path, prepare: Prepare, suffix: str
) -> None:
    codecs = {
        ".avi": {"video_codec": "mpeg4", "audio_codec": "mp2"},
        ".mpg": {"video_codec": "mpeg1video", "audio_codec": "mp2"},
    }
    rate = 44_100 if suffix == ".mpg" else RATE
    sound = clips.tone(1000, 5.0, rate)
    times = np.arange(125) / 25
    clips.write(tmp_path / f"clip{suffix}", frame_times=times, sound=sound, rate=rate, **codecs.get(suffix, {}))
    row = prepare(f"clip{suffix}")
    # 5 s, so the window begins at 1 s; frame i at 25 fps is shown from i / 25 s on.
    wanted = row["window_start_s"] + (np.arange(8) + 0.5) * 0.375
    assert row["window_start_s"] == pytest.approx(1.0, abs=0.05)
    assert clips.numbers(row) == [int(time * 25 + 1e-3) for time in wanted]
    np.testing.assert_allclose(row["frame_times_s"], np.floor(wanted * 25 + 1e-3) / 25, atol=2e-3)


def test_uneven_frames_are_taken_by_time_stamp_not_by_number(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    times = np.array([0, 0.2, 0.9, 1.0, 1.01, 1.02, 1.03, 1.04, 2.2, 2.5, 3.3, 3.36])
    clips.write(tmp_path / "clip.mkv", frame_times=times, sound=clips.tone(1000, 3.4, RATE))
    row = prepare("clip.mkv")
    wanted = row["window_start_s"] + (np.arange(8) + 0.5) * 0.375
    assert clips.numbers(row) == [int(np.searchsorted(times, time, "right")) - 1 for time in wanted]


def test_picture_and_sound_of_a_position_are_the_same_moment(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    times = np.arange(225) / 25
    clips.write(tmp_path / "clip.mp4", frame_times=times, sound=clips.rising_tones(9))
    middles = [(index + 0.5) * 0.375 for index in range(8)]
    for row in (
        prepare("clip.mp4"),
        prepare("clip.mp4", dataclasses.replace(PLAIN, window="random"), clip_id="another"),
    ):
        # Away from the borders of the seconds, where a frame of the spectrogram holds two tones.
        clear = [index for index, time in enumerate(middles) if 0.05 < (row["window_start_s"] + time) % 1 < 0.95]
        assert len(clear) > 4
        seen = [clips.numbers(row)[index] // 25 for index in clear]
        assert clips.heard_seconds(row, [middles[index] for index in clear]) == seen


def test_sound_that_begins_later_stays_in_step(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    # One second of picture comes first. The clip is then the 3 s from 1 s on, where the sound is at its second 0.
    sound = clips.rising_tones(3)
    clips.write(tmp_path / "clip.mkv", frame_times=np.arange(100) / 25, sound=sound, sound_start=1.0)
    row = prepare("clip.mkv")
    assert row["duration_s"] == pytest.approx(3.0, abs=0.07)
    assert [number // 25 for number in clips.numbers(row)] == [1, 1, 1, 2, 2, 3, 3, 3]
    assert clips.heard_seconds(row, [0.5, 1.5, 2.5]) == [0, 1, 2]


def test_shorter_clips_are_repeated_in_both_senses(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    clips.write(tmp_path / "clip.mp4", frame_times=np.arange(50) / 25, sound=clips.rising_tones(2))
    row = prepare("clip.mp4")
    assert row["window_start_s"] == 0
    assert row["duration_s"] == pytest.approx(2.0)
    times = (np.arange(8) + 0.5) * 0.375 % 2
    assert clips.numbers(row) == [int(time * 25 + 1e-3) for time in times]
    assert clips.heard_seconds(row, [0.5, 1.5, 2.5]) == [0, 1, 0]
    assert row["spectrogram"].shape == (300, 257)


def test_a_random_window_is_drawn_from_the_clip_id(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    clips.write(tmp_path / "clip.mp4", frame_times=np.arange(225) / 25, sound=clips.tone(1000, 9.0, RATE))
    config = dataclasses.replace(PLAIN, window="random")
    starts = [prepare("clip.mp4", config, clip_id=f"clip {index}")["window_start_s"] for index in range(12)]
    assert starts[0] == prepare("clip.mp4", config, clip_id="clip 0")["window_start_s"]
    assert len(set(starts)) == 12
    assert 0 <= min(starts) < 3 < max(starts) <= 6
    assert prepare("clip.mp4", clip_id="clip 0")["window_start_s"] == pytest.approx(3.0)


def test_sound_from_another_file(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    clips.write(tmp_path / "picture.mp4", frame_times=np.arange(125) / 25, sound=clips.tone(4000, 5.0, RATE))
    sound = clips.rising_tones(4, rate=48_000)
    clips.write(tmp_path / "voice.wav", frame_times=[], sound=sound, rate=48_000, audio_codec="pcm_s16le")
    row = prepare("picture.mp4", audio_path="clips/voice.wav")
    assert row["duration_s"] == pytest.approx(4.0)
    assert row["window_start_s"] == pytest.approx(0.5)
    assert clips.heard_seconds(row, [0.25, 1.0, 2.0, 2.75]) == [0, 1, 2, 3]
    assert clips.numbers(row)[0] == int((0.5 + 0.1875) * 25)


def test_two_files_begin_together_whatever_their_clocks_say(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    clips.write(tmp_path / "picture.mkv", frame_times=2 + np.arange(100) / 25)
    clips.write(tmp_path / "voice.wav", frame_times=[], sound=clips.rising_tones(4), audio_codec="pcm_s16le")
    row = prepare("picture.mkv", audio_path="clips/voice.wav")
    assert row["duration_s"] == pytest.approx(4.0, abs=0.05)
    wanted = row["window_start_s"] + (np.arange(8) + 0.5) * 0.375
    np.testing.assert_allclose(row["frame_times_s"], np.floor(wanted * 25) / 25, atol=1e-3)
    assert clips.numbers(row) == np.floor(wanted * 25).astype(int).tolist()
    assert clips.heard_seconds(row, [0.25, 1.0, 2.0, 2.75]) == [0, 1, 2, 3]


def test_stereo_is_mixed_and_the_volume_only_raised(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    levels = {}
    for amplitude in (0.005, 0.5):
        clips.write(tmp_path / "clip.mkv", sound=clips.tone(1000, 3.0, RATE, amplitude), audio_codec="pcm_s16le")
        # The peak of a tone's bin is half its amplitude times the window's sum, 200.
        levels[amplitude] = prepare("clip.mkv")["spectrogram"][100, 32] / 100
    assert levels[0.5] == pytest.approx(0.5, rel=1e-3)
    assert levels[0.005] == pytest.approx(np.sqrt(2) * 10 ** (-30 / 20), rel=1e-2)


def test_leading_silence_is_measured(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    sound = clips.tone(1000, 3.0, RATE)
    sound[: RATE // 2] = 0
    clips.write(tmp_path / "clip.mkv", sound=sound, audio_codec="pcm_s16le")
    assert prepare("clip.mkv")["leading_silence_s"] == 0.5


def test_faces_are_cut_out_where_the_detector_says(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, RATE), one_shot=True)
    config = dataclasses.replace(PLAIN, face_margin=0.0)
    left = clips.detector(box=(0, 16, 32, 48), num_frames=6)
    row = prepare("clip.mp4", config, detector=left)
    np.testing.assert_allclose(row["face_score"], [0.99] * 6 + [0] * 2)
    assert row["face_box"].tolist() == [[0, 16, 32, 48]] * 8
    wanted = ((np.arange(8) + 0.5) * 0.375 * 25 + 1e-3).astype(int)
    # The left half of a picture shows its number's low digit.
    greys = row["frames"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(greys, 16 + 14 * (wanted % 16), atol=4)


def test_missing_and_unreadable(clips: Any, tmp_path: Path, reject: Any) -> None:
    assert reject("nowhere.mp4")[0] is RejectReason.MISSING
    (tmp_path / "empty.mp4").touch()
    assert reject("empty.mp4")[0] is RejectReason.UNREADABLE
    (tmp_path / "text.mp4").write_text("This is no film.")
    assert reject("text.mp4")[0] is RejectReason.UNREADABLE
    clips.write(tmp_path / "picture.mp4")
    assert reject("picture.mp4", audio_path="clips/nowhere.wav")[0] is RejectReason.MISSING
    (tmp_path / "voice.wav").write_bytes(b"RIFF")
    assert reject("picture.mp4", audio_path="clips/voice.wav")[0] is RejectReason.UNREADABLE


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_file_cut_in_the_middle_is_unreadable(
    clips: Any, tmp_path: Path, reject: Any, options: dict[str, str], share: float
) -> None:
    whole = clips.write(tmp_path / "whole.mp4", sound=clips.tone(1000, 3.0, RATE), options=options).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(share * len(whole))])
    assert reject("cut.mp4")[0] is RejectReason.UNREADABLE


def test_streams_missing_or_empty(clips: Any, tmp_path: Path, reject: Any) -> None:
    clips.write(tmp_path / "mute.mp4")
    assert reject("mute.mp4")[0] is RejectReason.NO_AUDIO
    clips.write(tmp_path / "blind.mp4", frame_times=[], sound=clips.tone(1000, 3.0, RATE))
    assert reject("blind.mp4")[0] is RejectReason.NO_VIDEO
    clips.write(tmp_path / "still.mp4", sound=np.zeros(3 * RATE, np.float32))
    assert reject("still.mp4") == (RejectReason.SILENT, "the level is -inf dBFS, under -60")
    # An RMS of -60 dBFS is an amplitude of 0.00141.
    for amplitude, silent in ((0.0012, True), (0.0016, False)):
        clips.write(tmp_path / "low.mkv", sound=clips.tone(1000, 3.0, RATE, amplitude), audio_codec="pcm_s16le")
        made = ClipPreparer(PLAIN)(clips.row("low.mkv"), {"clips": str(tmp_path)})
        assert isinstance(made, Reject) == silent


def test_too_short(clips: Any, tmp_path: Path, reject: Any, prepare: Prepare) -> None:
    for name, num_frames, seconds in (("a.mkv", 12, 3.0), ("b.mkv", 75, 0.4), ("c.mkv", 13, 3.0)):
        sound = clips.tone(1000, seconds, RATE)
        clips.write(tmp_path / name, frame_times=np.arange(num_frames) / 25, sound=sound, audio_codec="pcm_s16le")
    short = (RejectReason.TOO_SHORT, "picture and sound run together for 0.48 s, under 0.5 s")
    assert reject("a.mkv") == short
    assert reject("b.mkv")[0] is RejectReason.TOO_SHORT
    assert prepare("c.mkv")["duration_s"] == pytest.approx(0.52, abs=0.001)


def test_no_face(clips: Any, tmp_path: Path, reject: Any) -> None:
    clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, RATE), one_shot=True)
    few, doubtful = clips.detector(num_frames=5), clips.detector(score=0.89)
    expected = (RejectReason.NO_FACE, "the face that was followed is in 5 of 8 frames, under 6")
    assert reject("clip.mp4", detector=few) == expected
    assert reject("clip.mp4", detector=doubtful)[0] is RejectReason.NO_FACE


def test_a_path_that_leaves_its_root_is_rejected(clips: Any, tmp_path: Path, reject: Any) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.mp4"
    clips.write(outside, sound=clips.tone(1000, 3.0, RATE))
    (tmp_path / "link.mp4").symlink_to(outside)
    for path in ("clips/link.mp4", f"clips/../{outside.name}"):
        reason, detail = reject("link.mp4", video_path=path)
        assert reason is RejectReason.UNREADABLE
        assert repr(path) in detail


def test_rejects_make_a_table() -> None:
    reject = Reject(clip_id="a", path="clips/a", reason=RejectReason.NO_FACE, detail="0 of 8")
    table = boxes.table_from_rows([dataclasses.asdict(reject)], REJECT_SCHEMA)
    assert table.to_pylist() == [{"clip_id": "a", "path": "clips/a", "reason": "no_face", "detail": "0 of 8"}]


def test_the_same_clip_gives_the_same_bytes_whatever_else_is_prepared(clips: Any, tmp_path: Path) -> None:
    for name, frequency in (("one.mp4", 700), ("two.mp4", 1900)):
        clips.write(tmp_path / name, sound=clips.tone(frequency, 3.0, 44_100), rate=44_100)
    (tmp_path / "bad.mp4").write_text("bad")
    roots = {"clips": str(tmp_path)}

    def data(names: list[str]) -> bytes:
        preparer = ClipPreparer(PLAIN)
        rows = {name: preparer(clips.row(name), roots) for name in names}
        return boxes.table_bytes(boxes.table_from_rows([rows["one.mp4"]], CORPUS_SCHEMA(PLAIN)))

    assert data(["one.mp4"]) == data(["two.mp4", "bad.mp4", "one.mp4", "two.mp4"])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells a process its memory there")
def test_memory_does_not_grow_with_the_number_of_clips(clips: Any, tmp_path: Path) -> None:
    clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, 44_100), rate=44_100)
    whole = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    preparer, roots = ClipPreparer(PLAIN), {"clips": str(tmp_path)}

    def used_after(count: int) -> int:
        for _ in range(count):
            preparer(clips.row("clip.mp4"), roots)
            preparer(clips.row("cut.mp4"), roots)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = used_after(10)
    # Were its sound (530 kB) and frames (100 kB) kept of each clip, 70 more would need 44 MB.
    assert used_after(70) - before < 10e6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"window": "left"}, "window is 'left'; give one of centre, random"),
        ({"faces": "haar"}, "faces is 'haar'; give one of mtcnn, none"),
        ({"num_frames": 0}, "num_frames is 0; give a number above 0"),
        ({"min_faces": 9}, "min_faces is 9; give a number from 1 to num_frames, 8"),
        ({"face_margin": -0.1}, "face_margin is -0.1; give 0 or more"),
        ({"spectrogram_frames": 2048}, r"spectrogram_frames is 2048, but window_s 3\.0 has only 301"),
        ({"face_margin": float("inf")}, "face_margin is inf; give 0 or more"),
        ({"clip_timeout": 0.0}, r"clip_timeout is 0\.0; give seconds above 0, at most 86,400"),
        ({"clip_timeout": 86_401.0}, r"clip_timeout is 86401\.0; give seconds above 0, at most 86,400"),
        ({"min_duration_s": 0.0}, r"min_duration_s is 0\.0; give a number above 0"),
        ({"min_duration_s": float("inf")}, "min_duration_s is inf; give a number above 0"),
        ({"min_face_score": 1.1}, r"min_face_score is 1\.1; give a probability, 0 to 1"),
        ({"min_face_score": float("nan")}, "min_face_score is nan; give a probability, 0 to 1"),
        ({"silence_dbfs": float("nan")}, "silence_dbfs is nan; give a number of decibels"),
        ({"leading_silence_db": float("-inf")}, "leading_silence_db is -inf; give a number of decibels"),
        ({"target_dbfs": float("inf")}, "target_dbfs is inf; give a number of decibels"),
        ({"window_s": float("nan")}, "window_s is nan; give a number above 0"),
    ],
)
def test_configurations_that_fit_no_clip_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        PrepareConfig(**changes)


def test_the_real_clips(shared: Path, tmp_path: Path, clips: Any) -> None:
    """Each of them is in the corpus or rejected as its README says, and the faces are where they are seen."""
    preparer = ClipPreparer(PrepareConfig())
    names = sorted(path.name for path in (shared / "clips").iterdir() if path.suffix in (".mp4", ".mpg"))
    made = {name: preparer(clips.row(name), {"clips": str(shared / "clips")}) for name in names}
    rejected = {name: row.reason for name, row in made.items() if isinstance(row, Reject)}
    assert rejected == {"no_face.mp4": RejectReason.NO_FACE, "silent_track.mp4": RejectReason.SILENT}
    rows = {name: row for name, row in made.items() if isinstance(row, dict)}
    assert len(rows) == 8
    for row in rows.values():
        assert (row["face_score"] >= 0.9).all()
        wanted = row["window_start_s"] + (np.arange(8) + 0.5) * 0.375
        assert (row["frame_times_s"] <= wanted + 1e-4).all()
        assert (row["frame_times_s"] > wanted - 1.01 / row["fps"]).all()
    assert rows["grid_bbaf2n.mpg"]["fps"] == 25
    assert (rows["portrait_1080x1920.mp4"]["width"], rows["portrait_1080x1920.mp4"]["height"]) == (1080, 1920)
    # Looked at: one head, in the middle of these pictures, and the same one in all frames.
    for name, (width, height) in {"grid_bbaf2n.mpg": (360, 288), "portrait_1080x1920.mp4": (1080, 1920)}.items():
        box = rows[name]["face_box"]
        middle = (box[:, :2] + box[:, 2:]) / 2 / [width, height]
        assert (np.abs(middle - 0.5) < 0.25).all()
    # The same clip again, after others and from elsewhere.
    shutil.copy(shared / "clips" / "voxceleb_224.mp4", tmp_path / "copy.mp4")
    again = preparer(clips.row("copy.mp4", clip_id="voxceleb_224.mp4", subject="someone"), {"clips": str(tmp_path)})
    schema = CORPUS_SCHEMA(preparer.config)
    assert isinstance(again, dict)
    tables = [boxes.table_from_rows([row], schema) for row in (again, rows["voxceleb_224.mp4"])]
    assert boxes.table_bytes(tables[0]) == boxes.table_bytes(tables[1])
