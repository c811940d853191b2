import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_prep.clip import PrepareConfig
from data_prep.sequence import SequenceConfig, sequence_arrays
from data_prep.storage import InputError


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_seconds": 0.03}, "max_seconds is 0.03; give seconds, 0.04"),
        ({"max_seconds": math.nan}, "max_seconds is nan"),
        ({"max_seconds": 61.0}, "max_seconds is 61.0"),
        ({"min_face_size": 0}, "min_face_size is 0; give a number above 0"),
        ({"min_duration_s": math.inf}, "min_duration_s is inf"),
        ({"silence_dbfs": math.nan}, "silence_dbfs is nan"),
        ({"clip_timeout": 0.0}, "clip_timeout is 0.0"),
        ({"min_face_share": 1.1}, "min_face_share is 1.1; give a number from 0 to 1"),
        ({"faces": "some"}, "faces is 'some'; give one of mtcnn, none"),
        ({"face_margin": -0.1}, "face_margin is -0.1; give 0 or more"),
    ],
)
def test_values_that_fit_no_clip_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as info:
        SequenceConfig(**wrong)
    assert str(info.value).startswith(sentence)


def test_settings_that_both_kinds_have_are_the_same() -> None:
    fields, others = (
        {field.name: field for field in dataclasses.fields(kind)} for kind in (SequenceConfig, PrepareConfig)
    )
    for name in fields.keys() & others.keys():
        assert (fields[name].default, fields[name].type) == (others[name].default, others[name].type)


def table(frames: int, video: bytes | None, filter_banks: bytes) -> pa.Table:
    binary = {"video": [video], "filter_banks": [filter_banks]}
    return pa.table(
        {
            "clip_id": ["clip-7"],
            "num_frames": pa.array([frames], pa.int32()),
            **{name: pa.array(values, pa.large_binary()) for name, values in binary.items()},
        }
    )


def test_arrays_are_those_that_were_stored() -> None:
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112), dtype=np.uint8)
    banks = np.arange(2 * 104, dtype=np.float32).reshape(2, 104)
    both = pa.concat_tables(
        [table(2, video.tobytes(), banks.tobytes()), table(1, video[1].tobytes(), banks[1].tobytes())]
    )
    (first, second), (first_banks, second_banks) = sequence_arrays(both, "part")
    np.testing.assert_array_equal(first, video)
    np.testing.assert_array_equal(second, video[1:])
    np.testing.assert_array_equal(first_banks, banks)
    np.testing.assert_array_equal(second_banks, banks[1:])


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (table(2, bytes(3 * 112 * 112), bytes(832)), "video of clip 'clip-7' holds 37632 bytes, but 2 frames are told"),
        (table(1, bytes(3 * 112 * 112), bytes(832)), "filter_banks of clip 'clip-7' holds 832 bytes, but 1 frames"),
        (table(1, None, bytes(416)), "video of clip 'clip-7' holds nothing, but 1 frames"),
        (table(0, b"", b""), "video of clip 'clip-7' holds 0 bytes, but 0 frames"),
    ],
)
def test_arrays_of_another_size_are_refused(row: pa.Table, sentence: str) -> None:
    with pytest.raises(InputError, match=f"part-00042: {sentence}.* prepare the sequences again into another --out"):
        sequence_arrays(row, "part-00042")
