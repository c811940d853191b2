"""One clip to one sequence: every frame and all sound of it, once and in step."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import boxes
from data_prep.augmentations import plan
from data_prep.decoder import Decoder
from data_prep.faces import Faces
from data_prep.filter_banks import as_int16, log_filter_banks, stacked
from data_prep.rejects import Reject, RejectReason
from data_prep.sequence import SEQUENCE_SCHEMA, SequenceConfig, sequence_arrays
from data_prep.sequence_preparer import SequencePreparer
from data_prep.storage import InputError

RATE = 16_000
PCM = "pcm_s16le"
PLAIN = SequenceConfig(faces="none")


class Sequences:
    """Makes sequences of the clip in a folder."""

    def __init__(self, clips: Any, folder: Path, decoder: Decoder) -> None:
        self.clips = clips
        self.folder = folder
        self.decoder = decoder

    def write(self, frame_times: np.ndarray, sound: np.ndarray, **how: Any) -> None:
        how = {"audio_codec": PCM} | how
        self.clips.write(self.folder / "clip.mkv", frame_times=frame_times, sound=sound, **how)

    def made(self, config: SequenceConfig = PLAIN, *, detector: Any = None, **changes: Any) -> Any:
        row = self.clips.row("clip.mkv", **changes)
        return SequencePreparer(config, detector=detector, decoder=self.decoder)(row, {"clips": str(self.folder)})

    def arrays(self, *arguments: Any, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
        """video and filter_banks, as they come back from a file of rows."""
        made = self.made(*arguments, **changes)
        assert not isinstance(made, Reject), made
        part = self.folder / "part.parquet"
        part.write_bytes(boxes.table_bytes(boxes.table_from_rows([made], SEQUENCE_SCHEMA)))
        (video,), (banks,) = sequence_arrays(boxes.read_table(str(part)), str(part))
        assert len(video) == len(banks) == made["num_frames"]
        return video, banks

    def numbers(self, video: np.ndarray) -> list[int]:
        return [self.clips.number(frame) for frame in video]

    def reason(self, *arguments: Any, **changes: Any) -> RejectReason:
        made = self.made(*arguments, **changes)
        assert isinstance(made, Reject)
        return made.reason


@pytest.fixture
def sequences(clips: Any, tmp_path: Path, decoder: Decoder) -> Sequences:
    return Sequences(clips, tmp_path, decoder)


def noise(seconds: float) -> np.ndarray:
    """float32: the values that a file of 16 bits has for noise, 0.1 loud."""
    numbers = np.random.default_rng(0).normal(0, 3000, round(seconds * RATE)).astype(np.int16)
    return numbers / np.float32(32_768)


class TestExactness:
    def test_every_frame_and_sample_of_a_short_clip_once(self, sequences: Sequences) -> None:
        sound = noise(93 / 25)
        sequences.write(np.arange(93) / 25, sound)
        video, banks = sequences.arrays()
        assert sequences.numbers(video) == list(range(93))
        np.testing.assert_array_equal(banks, stacked(log_filter_banks(as_int16(sound)), 93))

    def test_a_longer_clip_is_taken_from_its_beginning(self, sequences: Sequences) -> None:
        sound = noise(4.0)
        sequences.write(np.arange(100) / 25, sound)
        video, banks = sequences.arrays(SequenceConfig(faces="none", max_seconds=1.5))
        assert sequences.numbers(video) == [*range(37), 37]  # round(37.5), half to even, is 38
        np.testing.assert_array_equal(banks, stacked(log_filter_banks(as_int16(sound[: 3 * RATE // 2])), 38))

    @pytest.mark.parametrize("fps", [12.5, 30.0])
    def test_another_frame_rate_shows_what_a_player_would(self, sequences: Sequences, fps: float) -> None:
        frames = round(2 * fps)
        sequences.write(np.arange(frames) / fps, noise(2.0))
        video, _ = sequences.arrays()
        # The last frame lasts as long as the coder says, 1/25 s.
        assert len(video) == round((2 - 1 / fps + 1 / 25) * 25)
        assert sequences.numbers(video) == [int((index + 0.5) / 25 * fps + 1e-3) for index in range(len(video))]

    def test_silence_at_both_ends_is_taken_off_both_senses(self, sequences: Sequences) -> None:
        silence = np.zeros(round(0.4 * RATE), np.float32)
        sequences.write(np.arange(50) / 25, np.concatenate([silence, noise(1.2), silence]))
        config = SequenceConfig(faces="none", trim_silence=True)
        video, banks = sequences.arrays(config)
        assert sequences.numbers(video) == list(range(10, 40))
        np.testing.assert_allclose(banks, stacked(log_filter_banks(as_int16(noise(1.2))), 30), atol=1e-5)
        row = sequences.made(config)
        assert (row["trimmed_leading_s"], row["duration_s"]) == pytest.approx((0.4, 1.2))

    def test_sound_may_be_in_another_file(self, sequences: Sequences) -> None:
        sequences.write(np.arange(50) / 25, sequences.clips.tone(300, 2.0, RATE))
        with wave.open(str(sequences.folder / "clip.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(as_int16(noise(2.0)).tobytes())
        _, banks = sequences.arrays(audio_path="clips/clip.wav")
        np.testing.assert_array_equal(banks, stacked(log_filter_banks(as_int16(noise(2.0))), 50))


def test_a_picture_of_twice_the_size_is_halved_by_means(sequences: Sequences) -> None:
    sequences.write(np.arange(25) / 25, noise(1.0), side=224, video_codec="ffv1")
    video, _ = sequences.arrays()
    for index in (0, 24):
        pairs = sequences.clips.image(index, 224).reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
        # The coder stores it as YUV, whose rounding is less than two levels.
        assert np.abs(video[index] - pairs.transpose(2, 0, 1)).max() < 2


def test_measured_columns_are_those_of_a_corpus(sequences: Sequences) -> None:
    sequences.write(np.arange(50) / 25, np.concatenate([np.zeros(RATE // 2, np.float32), noise(1.5)]))
    row = sequences.made(subject="s", category="D", label=1)
    assert (row["subject"], row["category"], row["label"], row["width"], row["sample_rate"]) == ("s", "D", 1, 64, RATE)
    assert (row["duration_s"], row["leading_silence_s"], row["fps"]) == pytest.approx((2.0, 0.5, 25.0), abs=0.011)
    assert row["loudness_dbfs"] == pytest.approx(20 * np.log10(3000 / 32768) + 10 * np.log10(0.75), abs=0.2)
    assert row == sequences.made(subject="s", category="D", label=1)


class Moving:
    """Finds a face that moves to the right by a quarter of the picture a second; without: frames that show none."""

    def __init__(self, without: tuple[int, ...] = ()) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.without = without
        self.count = 0

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        self.shapes.append(frames.shape)
        found = []
        for side in [frames.shape[2]] * len(frames):
            left = (self.count + 0.5) * 0.375 * side / 4
            box = np.array([[left, side / 4, left + side / 4, side / 2]], np.float32)
            seen = self.count not in self.without
            found.append(Faces(box[:seen], np.full(int(seen), 0.99, np.float32)))
            self.count += 1
        return found


class TestFaces:
    def write(self, sequences: Sequences) -> None:
        sequences.write(np.arange(75) / 25, noise(3.0), side=256, one_shot=True, video_codec="ffv1")

    @pytest.mark.parametrize("without", [(), (3,)])
    def test_the_crop_follows_the_face(
        self, sequences: Sequences, without: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(sequences)
        asked: list[dict[str, Any]] = []
        read = Decoder.read_crops
        monkeypatch.setattr(Decoder, "read_crops", lambda *of, **how: asked.append(how) or read(*of, **how))
        detector = Moving(without)
        row = sequences.made(SequenceConfig(detect_max_side=128), detector=detector)
        # Eight small pictures were searched; boxes are those of the picture itself.
        assert detector.shapes == [(8, 128, 128, 3)]
        assert np.array(row["face_score"]).nonzero()[0].tolist() == [i for i in range(8) if i not in without]
        moments = (np.arange(75) + 0.5) / 25
        found = np.clip(moments, 0.1875, 3 - 0.1875)
        boxes_of_frames = np.array(asked[0]["boxes"])
        # The pictures that were searched are up to one frame older than their moments.
        assert np.abs(boxes_of_frames[:, 0] - 64 * found).max() < 64 / 25 + 1e-3
        assert np.allclose(boxes_of_frames[:, 2] - boxes_of_frames[:, 0], 64, atol=1e-3)
        assert (row["num_faces"], row["face_choice"], asked[0]["margin"]) == (1, "only", 0.3)

    def test_too_few_frames_with_the_face_are_refused(self, sequences: Sequences) -> None:
        self.write(sequences)
        assert sequences.reason(SequenceConfig(), detector=Moving((1, 4, 6))) is RejectReason.NO_FACE
        assert isinstance(sequences.made(SequenceConfig(min_face_share=0.6), detector=Moving((1, 4, 6))), dict)
        nobody = Moving(tuple(range(8)))
        assert sequences.reason(SequenceConfig(min_face_share=0.0), detector=nobody) is RejectReason.NO_FACE


class TestAugmentations:
    def test_all_frames_are_changed_alike(self, sequences: Sequences) -> None:
        sequences.write(np.arange(30) / 25, noise(1.2))
        (plain, banks), (flipped, same) = sequences.arrays(), sequences.arrays(augmentation="flip")
        np.testing.assert_array_equal(flipped, plain[..., ::-1])
        np.testing.assert_array_equal(same, banks)

    def test_sound_alone(self, sequences: Sequences) -> None:
        sequences.write(np.arange(30) / 25, sequences.clips.tone(500, 1.2, RATE, amplitude=0.1))
        (plain, banks), (same, louder) = sequences.arrays(), sequences.arrays(augmentation="gain")
        decibels = plan("gain", "clip.mkv").parameters["decibels"]
        np.testing.assert_array_equal(same, plain)
        # The loudest banks, since the others hold the noise of rounding.
        loudest = np.arange(20)[:, None], banks[:20].argmax(axis=1)[:, None]
        np.testing.assert_allclose((louder - banks[: len(louder)])[loudest], decibels * np.log(10) / 10, atol=0.05)

    def test_frames_are_coded_again(self, sequences: Sequences) -> None:
        sequences.write(np.arange(30) / 25, noise(1.2))
        (plain, _), (coded, _) = sequences.arrays(), sequences.arrays(augmentation="mpeg4_low")
        assert not np.array_equal(coded, plain)
        assert sequences.numbers(coded) == sequences.numbers(plain)

    def test_both_senses_run_faster_together(self, sequences: Sequences) -> None:
        sequences.write(np.arange(100) / 25, sequences.clips.rising_tones(4))
        speed = plan("tempo", "clip.mkv").speed
        video, banks = sequences.arrays(augmentation="tempo")
        assert len(video) == round(100 / speed)
        assert sequences.numbers(video) == [int((index + 0.5) * speed + 1e-3) for index in range(len(video))]
        # The tones rise by 500 Hz at each second of the clip.
        plain = log_filter_banks(as_int16(sequences.clips.rising_tones(4)))
        for moment in (0.5, 1.5, 2.5, 3.5):
            heard = banks[round(moment / speed * 25)][:26].argmax()
            assert heard == plain[round(moment * 100)].argmax()

    def test_an_unknown_one_is_told(self, sequences: Sequences) -> None:
        sequences.write(np.arange(30) / 25, noise(1.2))
        with pytest.raises(InputError, match="augmentation 'magic' is none"):
            sequences.made(augmentation="magic")


@pytest.mark.parametrize(
    ("frames", "sound", "reason"),
    [
        (50, np.zeros(2 * RATE, np.float32), RejectReason.SILENT),
        (10, noise(0.4), RejectReason.TOO_SHORT),
        (0, noise(1.0), RejectReason.NO_VIDEO),
        (50, None, RejectReason.NO_AUDIO),
    ],
)
def test_what_cannot_be_used_is_refused(sequences: Sequences, frames: int, sound: Any, reason: RejectReason) -> None:
    sequences.write(np.arange(frames) / 25, sound)
    assert sequences.reason() is reason


def test_files_that_are_no_clips_are_refused(sequences: Sequences) -> None:
    assert sequences.reason() is RejectReason.MISSING
    (sequences.folder / "clip.mkv").write_bytes(b"no clip\n" * 50)
    assert sequences.reason() is RejectReason.UNREADABLE


def test_a_real_talking_face(shared: Path, decoder: Decoder, clips: Any) -> None:
    preparer = SequencePreparer(SequenceConfig(max_seconds=1.0), decoder=decoder)
    row = preparer(clips.row("talk_590.mp4"), {"clips": str(shared / "clips")})
    assert isinstance(row, dict)
    assert (row["num_frames"], len(row["face_score"])) == (25, 3)
    assert min(row["face_score"]) > 0.99
    video = np.frombuffer(row["video"], np.uint8).reshape(25, 3, 112, 112)
    # A crop that moves with the face changes less from frame to frame than the frames differ among themselves.
    assert np.abs(np.diff(video.astype(float), axis=0)).mean() < 0.2 * video.std()
