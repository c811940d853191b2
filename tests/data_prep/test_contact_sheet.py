import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.contact_sheet import caption, contact_sheet, draw_rows
from tests.tiny_sequences import make_sequences

SIDE, HEADER = 96, 18


def row(**changes: Any) -> dict[str, Any]:
    """A corpus row of two grey crops; in the first a face was found, whose box is half as wide as the crop."""
    return {
        "clip_id": "clip",
        "category": "B",
        "augmentation": None,
        "frames": np.full((2, 3, 48, 48), 128, np.uint8),
        "spectrogram": np.ones((10, 5), np.float32),
        "width": 400,
        "height": 300,
        "face_box": np.array([[100, 100, 150, 150]] * 2, np.float32),
        "face_score": np.array([0.98, 0], np.float32),
        "num_faces": 1,
        "face_choice": "only",
        "duration_s": 5.4,
        "leading_silence_s": 0.25,
    } | changes


def colours(data: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """bool [SIDE, 2 * SIDE]: where the two crops are nearer to `colour` than to grey. JPEG smears thin lines."""
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)[HEADER : HEADER + SIDE, : 2 * SIDE]
    direction = np.array(colour, float) - 128
    return (picture - 128) @ direction / (direction @ direction) > 0.5


def edges(mask: np.ndarray) -> list[int]:
    """Left, top, right, bottom of what is marked."""
    down, right = np.nonzero(mask)
    return [int(right.min()), int(down.min()), int(right.max()), int(down.max())]


def test_the_chosen_face_is_boxed_and_a_frame_without_it_is_framed() -> None:
    sheet = draw_rows([row()], face_margin=1.0)
    # The crop is twice as wide as the box, so the box is its middle half.
    assert edges(colours(sheet, (0, 255, 0))) == pytest.approx([24, 24, 72, 72], abs=2)
    assert edges(colours(sheet, (255, 0, 0))) == pytest.approx([96, 0, 191, 95], abs=2)


def test_a_crop_that_was_moved_into_the_picture_has_its_box_aside() -> None:
    corner = np.array([[0, 260, 40, 300]] * 2, np.float32)
    sheet = draw_rows([row(face_box=corner)], face_margin=1.0)
    assert edges(colours(sheet, (0, 255, 0))) == pytest.approx([0, 48, 48, 95], abs=2)


@pytest.mark.parametrize(("changes", "margin"), [({}, None), ({"augmentation": "flip"}, 1.0)])
def test_no_box_where_its_place_is_not_known(changes: dict[str, Any], margin: float | None) -> None:
    assert not colours(draw_rows([row(**changes)], face_margin=margin), (0, 255, 0)).any()


def test_captions_name_augmentation_and_choice() -> None:
    assert caption(row()) == "B clip   5.4 s, leading silence 0.25 s, face scores 0.00 to 0.98"
    chosen = row(augmentation="blur", num_faces=4, face_choice="close", category=None)
    assert caption(chosen).startswith("clip blur   5.4 s")
    assert caption(chosen).endswith(", up to 4 faces: close")


def test_sequences_show_faces_that_were_searched_and_filter_banks(tmp_path: Path) -> None:
    sequences, _ = make_sequences(tmp_path, subjects={"train": 1}, shard_clips=2)
    parts = [f"{sequences}/part-00000.parquet", f"{sequences}/part-00001.parquet"]
    data, shown = contact_sheet(parts, clips=3, face_margin=0.0, sequences=True)
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
    assert (shown, len(sheet)) == (3, 3 * (HEADER + SIDE + 6))
    # The third clip has fake pictures, with a brighter middle.
    real, fake = (sheet[top + HEADER :][24:72, 24:72].mean() for top in (0, 2 * len(sheet) // 3))
    assert fake - real > 50
    assert sheet[HEADER : HEADER + SIDE, -180:].std() > 20
