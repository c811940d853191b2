"""The demo corpus: deterministic, whole, split without overlap, and nothing but the forgery tells the categories."""

import io
import multiprocessing
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep import storage, synthetic, synthetic_takes, synthetic_voices
from data_prep.manifest import CATEGORY_FOLDERS, MANIFEST_COLUMNS, resolve_path
from data_prep.storage import InputError
from data_prep.synthetic import SyntheticConfig, make_corpus
from data_prep.synthetic_encoding import Levels, _aim, _arrived

SMALL = SyntheticConfig(num_subjects=4, test_subjects=2, dev_subjects=0, seed=7)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict]]:
    root = str(tmp_path_factory.mktemp("demo"))
    return root, make_corpus(root, SMALL, num_processes=1)


def clip_files(root: str) -> dict[str, bytes]:
    return {path: storage.read(storage.join(root, path)) for path in storage.list(root)}


def decoded(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [T, h, w, 3] and sound float64 [samples]."""
    with av.open(io.BytesIO(data)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(io.BytesIO(data)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, sound.astype(np.float64)


def clip_bytes(corpus: tuple[str, list[dict]], row: dict) -> bytes:
    root, _ = corpus
    return storage.read(resolve_path(synthetic.roots(root), row["video_path"]))


def test_rows_are_a_manifest_of_files_that_stand(corpus: tuple[str, list[dict]]) -> None:
    root, rows = corpus
    assert len(rows) == 16
    assert len({row["clip_id"] for row in rows}) == 16
    assert "RealVideo-RealAudio/subject-000/take-0" in {row["clip_id"] for row in rows}
    for row in rows:
        assert tuple(row) == MANIFEST_COLUMNS
        assert row["label"] == (0 if row["category"] == "A" else 1)
        assert CATEGORY_FOLDERS[row["clip_id"].split("/")[0]] == row["category"]
        assert Path(resolve_path(synthetic.roots(root), row["video_path"])).is_file()
    assert len(storage.list(storage.join(root, synthetic.CLIPS_FOLDER))) == 16


def test_splits_share_neither_subjects_nor_targets() -> None:
    config = SyntheticConfig(num_subjects=30, test_subjects=8, dev_subjects=6)
    rows = [row for plan in synthetic._plans(config) for row in synthetic._rows(plan)]
    people = {
        split: {row[field] for row in rows if row["split"] == split for field in ("subject", "target")} - {None}
        for split in ("train", "dev", "test")
    }
    assert [len(people[split]) for split in ("train", "dev", "test")] == [16, 6, 8]
    assert not people["train"] & people["dev"]
    assert not (people["train"] | people["dev"]) & people["test"]
    assert all(row["target"] != row["subject"] for row in rows)
    # Only the real clips, and those whose face is the subject's own, borrow nobody.
    assert {row["method"] for row in rows if row["target"] is None} == {"real", "reenactment"}
    # The splits are drawn, not cut from the order of the subjects.
    assert {row["subject"] for row in rows if row["split"] == "test"} != {f"subject-{i:03d}" for i in range(8)}


def test_same_seed_gives_same_bytes_with_any_number_of_processes(
    corpus: tuple[str, list[dict]], tmp_path: Path
) -> None:
    root, rows = corpus
    assert make_corpus(str(tmp_path), SMALL, num_processes=2) == rows
    assert clip_files(str(tmp_path)) == clip_files(root)
    assert not multiprocessing.active_children()


def test_another_seed_gives_other_clips(corpus: tuple[str, list[dict]]) -> None:
    root, _ = corpus
    config = SyntheticConfig(num_subjects=4, test_subjects=2, dev_subjects=0, seed=8)
    data = synthetic._Studio(config, synthetic._plans(config)[0]).clip("A")
    assert data not in clip_files(root).values()


def test_second_run_keeps_whole_files_and_makes_missing_ones(tmp_path: Path) -> None:
    config = SyntheticConfig(num_subjects=2, test_subjects=0, dev_subjects=0, duration_s=1.0)
    seen: list[tuple[int, int]] = []
    make_corpus(str(tmp_path), config, num_processes=1, progress=lambda *counts: seen.append(counts))
    assert seen == [(4, 8), (8, 8)]
    before = clip_files(str(tmp_path))
    first, second = sorted(path for path in before if path.endswith(".mp4"))[:2]
    (tmp_path / first).unlink()
    age = (tmp_path / second).stat().st_mtime_ns
    make_corpus(str(tmp_path), config, num_processes=1)
    assert clip_files(str(tmp_path)) == before
    assert (tmp_path / second).stat().st_mtime_ns == age


def test_folder_with_another_corpus_is_refused(corpus: tuple[str, list[dict]]) -> None:
    root, _ = corpus
    other = SyntheticConfig(num_subjects=4, test_subjects=2, dev_subjects=0, seed=9)
    with pytest.raises(InputError, match="seed 7, not seed 9; choose another folder"):
        make_corpus(root, other, num_processes=1)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_subjects": 40, "test_subjects": 24, "dev_subjects": 16}, "leaves 0 train subjects"),
        ({"test_subjects": 1}, "1 test subjects"),
        ({"duration_s": 0.2}, "duration_s is 0.2"),
        ({"audio_strength": 1.5}, "audio_strength is 1.5"),
        ({"visual_strength": 2.5}, "visual_strength is 2.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_unusable_config_is_refused(values: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SyntheticConfig(**values)


def test_every_file_has_the_same_streams(corpus: tuple[str, list[dict]]) -> None:
    facts = set()
    for row in corpus[1]:
        with av.open(io.BytesIO(clip_bytes(corpus, row))) as container:
            (video,), (audio,) = container.streams.video, container.streams.audio
            assert len(container.streams) == 2
            picture = (video.codec.name, video.profile, video.pix_fmt, video.width, video.height)
            timing = (video.average_rate, video.frames, float(video.duration * video.time_base), container.duration)
            sound = (audio.codec.name, audio.profile, audio.sample_rate, audio.layout.name)
            facts.add((*picture, *timing, *sound, float(audio.duration * audio.time_base)))
    assert len(facts) == 1
    assert facts.pop()[:9] == ("h264", "High", "yuv420p", 224, 224, 25, 75, 3.0, 3_000_000)


def test_loudness_peak_silence_and_size_come_from_the_same_range(corpus: tuple[str, list[dict]]) -> None:
    """The ranges of `_Studio._draw_levels` and `draw_utterance`, whatever the category; codecs may add a little."""
    for row in corpus[1]:
        data = clip_bytes(corpus, row)
        frames, sound = decoded(data)
        sound = sound[:48_000]
        assert frames.shape == (75, 224, 224, 3)
        rms = np.sqrt((sound**2).mean())
        assert -26.6 < 20 * np.log10(rms) < -25.4
        assert 3.3 < np.abs(sound).max() / rms < 4.8
        blocks = np.sqrt((sound.reshape(-1, 160) ** 2).mean(axis=1))
        assert 0.05 <= np.argmax(blocks > np.abs(sound).max() / 100) * 0.01 <= 0.40
        assert 120_000 < len(data) < 145_000


def test_loudness_peak_and_rate_arrive_whatever_is_coded() -> None:
    """As wanted within the coder's own scatter, natural voices like vocoded ones."""
    wanted = Levels(rms=0.05, crest=4.0, audio_bit_rate=32_000, video_bit_rate=300_000)
    arrived = []
    for take in range(8):
        rng = np.random.default_rng([3, take])
        voice, words = synthetic_voices.draw_voice(rng), synthetic_voices.draw_utterance(rng, 3.0)
        wave = synthetic_voices.speak(voice, words, rng)
        for sound in (wave, synthetic_voices.vocode(wave, rng, strength=1.0)):
            gated = synthetic_voices.gate(sound, voice, words, rng)
            levels = _arrived(gated, _aim(gated, wanted))
            arrived.append((levels.rms / wanted.rms, levels.crest / wanted.crest, levels.audio_bit_rate / 32_000))
    ratios = np.array(arrived).reshape(8, 2, 3)
    assert np.abs(ratios - 1).max(axis=(0, 1)) == pytest.approx([0, 0, 0], abs=0.07)
    # Without the corrections rates arrive 3 % too high, and the peaks of natural voices 1 % higher than the others'.
    np.testing.assert_allclose(ratios.mean(axis=0), 1, atol=0.02)


def test_silences_before_and_after_the_voice_do_not_tell_a_vocoder() -> None:
    """To the 10 ms that silence is measured in, a vocoded take is silent as long as the natural one it came from."""
    differences = []
    for take in range(24):
        rng = np.random.default_rng([4, take])
        voice, words = synthetic_voices.draw_voice(rng), synthetic_voices.draw_utterance(rng, 3.0)
        natural = synthetic_voices.speak(voice, words, rng)
        loud = []
        for wave in (natural, synthetic_voices.vocode(natural, rng, strength=1.0)):
            sound = synthetic_voices.limit(synthetic_voices.gate(wave, voice, words, rng), rms=0.1, crest=4.0)
            blocks = np.sqrt((sound.reshape(-1, 160) ** 2).mean(axis=1)) > np.abs(sound).max() / 100
            loud.append([np.argmax(blocks), np.argmax(blocks[::-1])])
        differences.append(np.subtract(*loud))
    assert np.abs(differences).max() <= 1
    # A vocoder that is heard outside its gate is heard a block earlier or later in most takes.
    assert np.mean(differences == np.zeros(2)) > 0.85


def studio(monkeypatch: pytest.MonkeyPatch, forged: list[str], swaps: str = "C") -> synthetic._Studio:
    """A studio that notes in `forged` what it forges."""
    forge, vocode = synthetic_takes.forge, synthetic_voices.vocode

    def noted_forge(*arguments: object, **options: object) -> np.ndarray:
        forged.append("video")
        return forge(*arguments, **options)  # type: ignore[arg-type]

    def noted_vocode(*arguments: object, **options: object) -> np.ndarray:
        forged.append("sound")
        return vocode(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(synthetic_takes, "forge", noted_forge)
    monkeypatch.setattr(synthetic_voices, "vocode", noted_vocode)
    config = SyntheticConfig(num_subjects=4, test_subjects=0, dev_subjects=0, duration_s=1.0)
    return synthetic._Studio(config, synthetic._Plan(subject=0, target=1, split="train", swaps=swaps))


@pytest.mark.parametrize(
    ("category", "senses"), [("A", []), ("B", ["sound"]), ("C", ["video"]), ("D", ["video", "sound"])]
)
def test_only_the_category_s_senses_are_forged(
    monkeypatch: pytest.MonkeyPatch, category: str, senses: list[str]
) -> None:
    forged: list[str] = []
    studio(monkeypatch, forged).clip(category)
    assert forged == senses


def test_forgery_changes_every_frame_and_nothing_outside_the_inner_face() -> None:
    config = SyntheticConfig(num_subjects=4, test_subjects=0, dev_subjects=0, duration_s=1.0)
    layers = synthetic._Studio(config, synthetic._plans(config)[0])._layers
    rng = np.random.default_rng(0)
    real, donor = (
        synthetic_takes.inner_faces(layers, rng.random(25), rng.random(25), rng.integers(0, 3, 25)) for _ in range(2)
    )
    faces = real.distinct[real.shown]
    made = synthetic_takes.forge(real, donor, rng, strength=1.0)
    changed = (made != faces).any(axis=-1)
    assert changed.mean(axis=(1, 2)).min() > 0.4
    for border in (changed[:, 0], changed[:, -1], changed[:, :, 0], changed[:, :, -1]):
        assert not border.any()
    np.testing.assert_array_equal(made[..., 3], faces[..., 3])


def test_forged_face_shows_the_donor_s_mouth() -> None:
    """At strength 0 nothing else happens: in the middle of the region the forged frame is the donor's."""
    config = SyntheticConfig(num_subjects=4, test_subjects=0, dev_subjects=0, duration_s=1.0)
    layers = synthetic._Studio(config, synthetic._plans(config)[0])._layers
    still, lids = np.full(2, 0.5), np.zeros(2, int)
    shut = synthetic_takes.inner_faces(layers, np.zeros(2), still, lids)
    wide = synthetic_takes.inner_faces(layers, np.ones(2), still, lids)
    made = synthetic_takes.forge(shut, wide, np.random.default_rng(0), strength=0.0).astype(int)
    mouth = (slice(None), slice(56, 80), slice(40, 64))  # around the mouth, well inside the seam
    to_donor, to_real = (np.abs(made - faces.distinct[faces.shown])[mouth].mean() for faces in (wide, shut))
    assert to_donor < 8 < to_real


def test_mouth_follows_the_loudness_of_a_real_take_and_not_of_a_fake_one() -> None:
    """Over many takes: correlation of the openness of the mouth that is seen with the loudness that is heard."""
    times = np.arange(75) / 25
    in_step, out_of_step = [], []
    for take in range(20):
        rng = np.random.default_rng([1, take])
        words, others = (synthetic_voices.draw_utterance(rng, 3.0) for _ in range(2))
        wave = (
            np.abs(synthetic_voices.speak(synthetic_voices.draw_voice(rng), words, rng)).reshape(75, 640).mean(axis=1)
        )
        in_step.append(np.corrcoef(wave, words.openness(times))[0, 1])
        out_of_step.append(np.corrcoef(wave, others.openness(times))[0, 1])
    assert np.mean(in_step) > 0.6
    assert abs(np.mean(out_of_step)) < 0.15


def test_vocoder_keeps_the_voice_and_destroys_its_phase() -> None:
    """Magnitudes stay near, wave forms do not: the correlation of waves is that of independent signals."""
    rng = np.random.default_rng(5)
    voice, words = synthetic_voices.draw_voice(rng), synthetic_voices.draw_utterance(rng, 3.0)
    wave = synthetic_voices.speak(voice, words, rng)
    fake = synthetic_voices.vocode(wave, rng, strength=1.0)
    assert abs(np.corrcoef(wave, fake)[0, 1]) < 0.2
    before, after = (np.abs(synthetic_voices.stft(sound, 512, 128)).ravel() for sound in (wave, fake))
    assert np.corrcoef(before, after)[0, 1] > 0.7


def test_istft_inverts_stft() -> None:
    wave = np.random.default_rng(0).standard_normal(5_000)
    np.testing.assert_allclose(
        synthetic_voices.istft(synthetic_voices.stft(wave, 512, 128), 512, 128, 5_000), wave, atol=1e-10
    )
