import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_prep import boxes, storage
from data_prep.boxes import Meta
from data_prep.storage import InputError


def make_meta(**changes: Any) -> Meta:
    meta = Meta(kind="corpus", config={"size": 224}, counts={"rows": 2}, versions={"av": "1"}, parent="f00", files={})
    return dataclasses.replace(meta, **changes)


def write_box(uri: str, **changes: Any) -> Meta:
    files = {"part-00000.parquet": storage.write(storage.join(uri, "part-00000.parquet"), b"rows")}
    meta = make_meta(files=files, **changes)
    boxes.write_meta(uri, meta)
    return meta


def test_meta_comes_back_whole(tmp_path: Path) -> None:
    meta = write_box(str(tmp_path), extra={"length": 8})
    assert boxes.read_meta(str(tmp_path), "corpus") == meta


def test_digest_is_that_of_the_files_and_of_nothing_else() -> None:
    files = {"b": "2", "a": "1"}
    meta = make_meta(files=files)
    assert len(meta.digest) == 64
    assert meta.digest == make_meta(files=dict(sorted(files.items())), config={}, parent=None).digest
    assert meta.digest != make_meta(files=files | {"a": "3"}).digest
    assert meta.digest != make_meta(files={"a": "2", "b": "1"}).digest


def test_digest_of_a_manifest_is_that_of_its_rows() -> None:
    meta = make_meta(kind="manifest", files={"manifest.parquet": "1"}, extra={"rows": "abc"})
    assert meta.digest == "abc"


def test_what_is_no_finished_box_of_the_kind_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "box")
    with pytest.raises(InputError, match=r"box is no 'corpus' box: it has no meta\.json; give the directory of one\."):
        boxes.read_meta(uri, "corpus")
    boxes.begin(uri, "corpus", {}, None, resume=False)
    with pytest.raises(InputError, match="box is unfinished; run the command that makes it again"):
        boxes.read_meta(uri, "corpus")
    write_box(uri)
    with pytest.raises(InputError, match="'corpus' box, but a 'sequences' one is needed; give its directory"):
        boxes.read_meta(uri, "sequences")
    with pytest.raises(InputError, match="is no 'corpus' box"):
        boxes.read_meta(storage.join(uri, "part-00000.parquet"), "corpus")


def test_damaged_boxes_are_refused(tmp_path: Path) -> None:
    uri, name = str(tmp_path), str(tmp_path / "meta.json")
    write_box(uri)
    content = json.loads(storage.read(name))

    storage.write(name, b'{"version": 1, ')
    with pytest.raises(InputError, match=r"meta\.json is damaged"):
        boxes.read_meta(uri, "corpus")
    storage.write(name, json.dumps(content | {"files": {"part-00000.parquet": "0" * 64}}).encode())
    with pytest.raises(InputError, match="its digest is not"):
        boxes.read_meta(uri, "corpus")
    storage.write(name, json.dumps(content | {"version": 2}).encode())
    with pytest.raises(InputError, match="has version 2; this program reads 1"):
        boxes.read_meta(uri, "corpus")
    del content["files"]
    storage.write(name, json.dumps(content).encode())
    with pytest.raises(InputError, match=r"meta\.json is damaged"):
        boxes.read_meta(uri, "corpus")
    write_box(uri)
    storage.delete(str(tmp_path / "part-00000.parquet"))
    with pytest.raises(InputError, match=r"part-00000\.parquet is gone \(1 of 1\)"):
        boxes.read_meta(uri, "corpus")


def test_an_unfinished_box_is_continued_by_the_same_plan_only(tmp_path: Path) -> None:
    uri = str(tmp_path)
    boxes.begin(uri, "corpus", {"sizes": (224, 112), "window": "centre"}, "parent1", resume=False)
    boxes.begin(uri, "corpus", {"window": "centre", "sizes": [224, 112]}, "parent1", resume=False)
    with pytest.raises(InputError, match=r'config window "centre", not "random"; give another --out'):
        boxes.begin(uri, "corpus", {"sizes": (224, 112), "window": "random"}, "parent1", resume=True)
    with pytest.raises(InputError, match='parent "parent1", not "parent2"'):
        boxes.begin(uri, "corpus", {"sizes": (224, 112), "window": "centre"}, "parent2", resume=True)
    with pytest.raises(InputError, match='config window "centre", not null'):
        boxes.begin(uri, "corpus", {"sizes": (224, 112)}, "parent1", resume=True)


def test_a_finished_box_is_taken_up_again_only_to_resume(tmp_path: Path) -> None:
    uri = str(tmp_path / "box")
    boxes.begin(uri, "corpus", {}, None, resume=False)
    write_box(uri)
    boxes.begin(uri, "corpus", {}, None, resume=True)
    with pytest.raises(InputError, match="is complete already"):
        boxes.begin(uri, "corpus", {}, None, resume=False)
    other = str(tmp_path / "other")
    write_box(other)
    with pytest.raises(InputError, match="holds another box already"):
        boxes.begin(other, "corpus", {}, None, resume=True)


SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("frames", pa.fixed_shape_tensor(pa.uint8(), (2, 3, 4, 4))),
        ("feature", pa.fixed_shape_tensor(pa.float16(), (5, 8))),
        ("vector", pa.fixed_shape_tensor(pa.float64(), (3,))),
        ("seconds", pa.float64()),
    ]
)


def make_rows(count: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [
        {
            "clip_id": f"clip {index}",
            "frames": generator.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8),
            "feature": generator.standard_normal((5, 8)).astype(np.float16),
            "vector": generator.standard_normal(3),
            "seconds": float(index),
        }
        for index in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_tables_come_back_with_the_same_types_and_values(tmp_path: Path, count: int) -> None:
    rows = make_rows(count)
    uri = str(tmp_path / boxes.shard_name(3))
    storage.write(uri, boxes.table_bytes(boxes.table_from_rows(rows, SCHEMA)))
    table = boxes.read_table(uri)
    assert table.schema.equals(SCHEMA)
    assert table["clip_id"].to_pylist() == [row["clip_id"] for row in rows]
    for name, shape in (("frames", (2, 3, 4, 4)), ("feature", (5, 8)), ("vector", (3,)), ("seconds", ())):
        column = boxes.column_to_numpy(table, name)
        assert column.shape == (count, *shape)
        for value, row in zip(column, rows, strict=True):
            np.testing.assert_array_equal(value, row[name])
    assert boxes.read_table(uri, ["vector", "clip_id"]).column_names == ["vector", "clip_id"]


def test_the_same_rows_give_the_same_bytes_however_the_table_was_made() -> None:
    rows = make_rows(6)
    data = boxes.table_bytes(boxes.table_from_rows(rows[2:5], SCHEMA))
    whole = boxes.table_from_rows(rows, SCHEMA)
    assert boxes.table_bytes(whole.slice(2, 3)) == data
    pieces = [boxes.table_from_rows([row], SCHEMA) for row in rows[2:5]]
    assert boxes.table_bytes(pa.concat_tables(pieces)) == data
    assert boxes.table_bytes(whole.slice(1, 3)) != data


def test_rows_of_another_shape_or_dtype_are_refused() -> None:
    (row,) = make_rows(1)
    with pytest.raises(ValueError, match=r"vector: float64 \(4,\), expected float64 \(3,\)"):
        boxes.table_from_rows([row | {"vector": np.zeros(4)}], SCHEMA)
    with pytest.raises(ValueError, match="vector: float32"):
        boxes.table_from_rows([row | {"vector": np.zeros(3, np.float32)}], SCHEMA)


def test_tensors_are_read_without_a_copy(tmp_path: Path) -> None:
    uri = str(tmp_path / "part")
    storage.write(uri, boxes.table_bytes(boxes.table_from_rows(make_rows(3), SCHEMA)))
    table = boxes.read_table(uri)
    first, second = (boxes.column_to_numpy(table, "frames") for _ in range(2))
    assert np.shares_memory(first, second)
    assert not first.flags.writeable


def test_columns_of_tables_from_elsewhere_are_read() -> None:
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    nested = pa.array(values.tolist(), pa.list_(pa.list_(pa.float32())))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6)
    table = pa.table({"nested": nested, "fixed": fixed, "label": [0, 1]})
    np.testing.assert_array_equal(boxes.column_to_numpy(table, "nested"), values)
    np.testing.assert_array_equal(boxes.column_to_numpy(table, "fixed"), values.reshape(2, 6))
    np.testing.assert_array_equal(boxes.column_to_numpy(table.slice(1), "fixed"), values.reshape(2, 6)[1:])
    np.testing.assert_array_equal(boxes.column_to_numpy(table, "label"), [0, 1])


def test_ragged_and_empty_values_are_refused() -> None:
    table = pa.table({"ragged": [[1, 2], [3], [4, 5, 6]], "empty": [[1], None, [2]]})
    with pytest.raises(InputError, match="column 'ragged' has rows of 2 and of 1 values"):
        boxes.column_to_numpy(table, "ragged")
    with pytest.raises(InputError, match="column 'empty' has 1 empty rows"):
        boxes.column_to_numpy(table, "empty")


def test_a_damaged_file_and_a_missing_column_are_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "part")
    data = boxes.table_bytes(boxes.table_from_rows(make_rows(3), SCHEMA))
    storage.write(uri, data[: len(data) // 2])
    with pytest.raises(InputError, match="part is damaged"):
        boxes.read_table(uri)
    storage.write(uri, data)
    with pytest.raises(InputError, match="part has no column 'faces'; it has clip_id, frames"):
        boxes.read_table(uri, ["faces"])
