"""Pictures and sounds of all augmentations of one clip."""

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep import augment_gallery
from data_prep.augmentations import AUGMENTATIONS
from data_prep.clip import PrepareConfig
from data_prep.rejects import RejectedError, RejectReason

WINDOW_S = 1.0


@pytest.fixture
def config() -> PrepareConfig:
    return PrepareConfig(window_s=WINDOW_S, frame_size=64, spectrogram_frames=100)


@pytest.fixture
def clip(tmp_path: Path, clips: Any) -> Path:
    return clips.write(tmp_path / "clip.mp4", sound=clips.tone(300, 3, 16_000))


def samples(path: Path) -> np.ndarray:
    with wave.open(io.BytesIO(path.read_bytes())) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 16_000, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_each_augmentation_has_a_picture_and_a_sound(
    clip: Path, config: PrepareConfig, clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_gallery, "MtcnnDetector", lambda **_: clips.detector())
    out = tmp_path / "gallery"
    names = augment_gallery.write_gallery(str(clip), str(out), config)
    assert sorted(names) == sorted(path.name for path in out.iterdir())
    wanted = {f"{name}{suffix}" for name in AUGMENTATIONS for suffix in (".jpg", ".wav")}
    assert set(names) == wanted | {"original.wav", "gallery.jpg", "index.html"}
    original = samples(out / "original.wav")
    for name, augmentation in AUGMENTATIONS.items():
        heard = samples(out / f"{name}.wav")
        assert len(heard) == WINDOW_S * 16_000
        assert np.array_equal(heard, original) == (augmentation.sense == "visual")
    for name in ("flip", "darker", "white_noise_10db"):
        picture = np.asarray(Image.open(out / f"{name}.jpg"), float)
        # The upper half shows the clip as it was, the lower one what it became, each below its caption. Equal ones
        # would differ by less than a level, since JPEG's blocks lie differently in them.
        height = len(picture) // 2
        assert np.abs(picture[22:height] - picture[height + 22 :]).mean() > 2
    page = (out / "index.html").read_text()
    assert all(f'src="{name}.wav"' in page and f'src="{name}.jpg"' in page for name in AUGMENTATIONS)
    assert "://" not in page


def test_a_clip_without_a_face_is_refused(
    clip: Path, config: PrepareConfig, clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_gallery, "MtcnnDetector", lambda **_: clips.detector(num_frames=0))
    with pytest.raises(RejectedError) as rejected:
        augment_gallery.write_gallery(str(clip), str(tmp_path / "gallery"), config)
    assert rejected.value.reason is RejectReason.NO_FACE
    assert not (tmp_path / "gallery").exists()
