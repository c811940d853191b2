"""What a row gets beside its frames and spectrogram, and what augmentations do to it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.augmentations import plan
from data_prep.clip import ClipPreparer, PrepareConfig, Reject, RejectReason
from data_prep.decoder import Decoder
from data_prep.storage import InputError

PLAIN = PrepareConfig(faces="none", frame_size=64)
RATE = 16_000

Prepare = Callable[..., dict[str, Any]]


def is_running(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()  # A zombie would still be there.


def both(prepare: Prepare, name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The clip as it is, and augmented."""
    row = changes | {"clip_id": f"clip.mkv#{name}"}
    return prepare("clip.mkv", **row), prepare("clip.mkv", **row, augmentation=name)


def write(clips: Any, tmp_path: Path, sound: np.ndarray | None = None) -> None:
    sound = clips.rising_tones(5) if sound is None else sound
    clips.write(tmp_path / "clip.mkv", frame_times=np.arange(125) / 25, sound=sound, audio_codec="pcm_s16le")


def test_crops_are_changed_and_nothing_else(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    write(clips, tmp_path)
    plain, flipped = both(prepare, "flip")
    np.testing.assert_array_equal(flipped["frames"], plain["frames"][..., ::-1])
    for name in set(plain) - {"frames", "augmentation"}:
        np.testing.assert_equal(flipped[name], plain[name], err_msg=name)
    assert flipped["augmentation"] == "flip"


def test_sound_is_changed_and_nothing_else(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    write(clips, tmp_path)
    plain, low = both(prepare, "white_noise_10db")
    assert not np.array_equal(low["spectrogram"], plain["spectrogram"])
    for name in set(plain) - {"spectrogram", "augmentation"}:
        np.testing.assert_equal(low[name], plain[name], err_msg=name)


def test_frames_are_coded_again_before_faces_are_looked_for(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    write(clips, tmp_path)
    seen: list[np.ndarray] = []

    class Watching(clips.detector):  # type: ignore[name-defined]
        def __call__(self, frames: np.ndarray) -> Any:
            seen.append(frames)
            return super().__call__(frames)

    for augmentation in (None, "mpeg4_low"):
        prepare("clip.mkv", detector=Watching(), augmentation=augmentation)
    assert seen[0].shape == seen[1].shape
    assert not np.array_equal(seen[0], seen[1])


def test_both_senses_run_faster_together(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    write(clips, tmp_path)
    plain, changed = both(prepare, "tempo")
    assert changed["spectrogram"].shape == plain["spectrogram"].shape
    # The same moment in the middle; what is heard and what is seen move away from it alike.
    speed = (2.5 - changed["window_start_s"]) / (2.5 - plain["window_start_s"])
    assert 0.05 < abs(speed - 1) < 0.3
    wanted = 2.5 + speed * (np.arange(8) - 3.5) * 0.375
    assert clips.numbers(changed) == [int(moment * 25 + 1e-3) for moment in wanted]
    borders = [0.3, 1.5, 2.7]
    expected = [int(2.5 + speed * (time - 1.5)) for time in borders]
    assert clips.heard_seconds(changed, borders) == expected


def test_silence_is_that_of_the_file(clips: Any, tmp_path: Path, prepare: Prepare, reject: Any) -> None:
    write(clips, tmp_path, sound=np.zeros(5 * RATE, np.float32))
    assert reject("clip.mkv", augmentation="white_noise_10db")[0] is RejectReason.SILENT
    # A tone of -58 dBFS, of which the augmentation leaves less than -60.
    write(clips, tmp_path, sound=clips.tone(7000, 5.0, RATE, amplitude=0.00178))
    assert prepare("clip.mkv", augmentation="low_pass")["loudness_dbfs"] == pytest.approx(-58, abs=0.2)


def test_a_quiet_clip_is_raised_before_its_volume_is_changed(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    write(clips, tmp_path, sound=clips.tone(1000, 5.0, RATE, amplitude=0.01))  # -43 dBFS, raised to -30.
    plain, changed = both(prepare, "gain")
    decibels = plan("gain", "clip.mkv#gain").parameters["decibels"]
    assert abs(decibels) >= 3
    np.testing.assert_allclose(
        changed["spectrogram"], plain["spectrogram"] * 10 ** (decibels / 20), rtol=1e-4, atol=1e-6
    )


def test_a_name_that_is_none_is_refused(clips: Any, tmp_path: Path) -> None:
    with ClipPreparer(PLAIN) as preparer, pytest.raises(InputError, match="augmentation 'sparkle' is none"):
        preparer(clips.row("clip.mkv", augmentation="sparkle"), {"clips": str(tmp_path)})


def test_facts_of_the_file_stand_in_the_row(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    sound = clips.tone(1000, 4.0, 44_100)
    sound[: round(0.5 * 44_100)] = 0
    sound[round(3.2 * 44_100) :] = 0
    path = clips.write(
        tmp_path / "clip.mkv", frame_times=np.arange(100) / 25, sound=sound, rate=44_100, audio_codec="flac"
    )
    row = prepare("clip.mkv")
    size = path.stat().st_size
    assert (row["width"], row["height"], row["sample_rate"], row["file_bytes"]) == (64, 64, 44_100, size)
    assert row["bit_rate"] == pytest.approx(8 * size / 4.0, rel=1e-3)
    assert (row["leading_silence_s"], row["trailing_silence_s"]) == (0.5, pytest.approx(0.8, abs=0.011))
    # A tone of amplitude 0.5 for 2.7 s of 4.
    assert row["loudness_dbfs"] == pytest.approx(10 * np.log10(0.125 * 2.7 / 4), abs=0.01)
    assert (row["trimmed_leading_s"], row["trimmed_trailing_s"]) == (0, 0)
    assert (row["num_faces"], row["face_choice"]) == (0, "none")
    trimmed = prepare("clip.mkv", dataclasses.replace(PLAIN, trim_silence=True))
    assert trimmed["duration_s"] == pytest.approx(2.7, abs=0.011)
    assert (trimmed["trimmed_leading_s"], trimmed["leading_silence_s"]) == (0.5, 0)
    assert trimmed["trimmed_leading_s"] + trimmed["trimmed_trailing_s"] + trimmed["duration_s"] == pytest.approx(4.0)


def test_the_number_of_faces_and_the_choice_stand_in_the_row(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, RATE), one_shot=True)
    row = prepare("clip.mp4", detector=clips.detector())
    assert (row["num_faces"], row["face_choice"]) == (1, "only")


def test_faces_of_several_shots_are_several_faces(clips: Any, tmp_path: Path, prepare: Prepare) -> None:
    # Without anything that stays, a face at one place is not one face.
    clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, RATE))
    row = prepare("clip.mp4", dataclasses.replace(PLAIN, min_faces=1), detector=clips.detector())
    assert (row["num_faces"], row["face_choice"]) == (1, "largest_track")
    assert np.count_nonzero(row["face_score"]) < 8


def test_decoding_runs_in_a_process_that_ends_with_the_preparer(clips: Any, tmp_path: Path) -> None:
    clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, RATE))
    row, roots = clips.row("clip.mp4"), {"clips": str(tmp_path)}
    with ClipPreparer(PLAIN) as preparer:
        assert isinstance(preparer(row, roots), dict)
        own = preparer._own_decoder.child_pid
        assert is_running(own)
    assert not is_running(own)
    with Decoder() as lent:
        with ClipPreparer(PLAIN, decoder=lent) as preparer:
            assert isinstance(preparer(row, roots), dict)
            assert preparer._own_decoder.child_pid is None
        assert is_running(lent.child_pid)


def test_a_clip_that_takes_too_long_is_rejected(clips: Any, tmp_path: Path) -> None:
    clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, RATE))
    with ClipPreparer(dataclasses.replace(PLAIN, clip_timeout=1e-3)) as hasty:
        made = hasty(clips.row("clip.mp4"), {"clips": str(tmp_path)})
    assert isinstance(made, Reject)
    assert (made.reason, made.detail) == (RejectReason.TIMEOUT, "decoding took over 0.001 s")
