"""Boxes: the directories that jobs hand to each other (manifest, corpus, features, sequences).

A box has one `meta.json`, written last: what it was made by (config, versions), from (the parent's digest), and the
sha256 of each of its files. Its own digest is the sha256 of those. `plan.json`, written first, says what an unfinished
box is being made by, so that a second run continues it or is refused.

On disk a tensor column is one binary value per row with dtype and shape in the field's metadata, in memory it is an
Arrow fixed_shape_tensor. Parquet stores nested uint8 as 32-bit integers with levels: 60 times slower to read.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import storage
from data_prep.storage import InputError

MANIFEST, CORPUS, FEATURES, SEQUENCES = KINDS = ("manifest", "corpus", "features", "sequences")
META_NAME = "meta.json"
PLAN_NAME = "plan.json"
META_VERSION = 1
SHARD_CLIPS = 64
_DTYPE_KEY, _SHAPE_KEY = b"tensor.dtype", b"tensor.shape"


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """The content of a box's meta.json, version 1."""

    kind: str
    """One of KINDS."""
    config: dict[str, Any]
    """The complete, resolved configuration that made the box."""
    counts: dict[str, int]
    """What is in it, e.g. {"rows": 384, "rejects": 2}."""
    versions: dict[str, str]
    """Versions of the libraries that shaped its bytes."""
    parent: str | None
    """Digest of the box that it was made from."""
    files: dict[str, str]
    """Relative path -> sha256 in hexadecimal, taken while writing."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only this kind of box has. A manifest: "roots", and "rows" (the digest of its rows)."""

    @property
    def digest(self) -> str:
        """64 hexadecimal digits: sha256 over `files`; for a manifest, over its rows without split and fold.

        So the same clips under another split keep their corpus.
        """
        if self.kind == MANIFEST:
            rows_digest: str = self.extra["rows"]
            return rows_digest
        return json_digest(self.files)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def json_digest(value: Any) -> str:
    """sha256, in hexadecimal, of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def shard_name(index: int) -> str:
    """File name of shard `index`: of the clips in order of clip_id the next 64; of sequences the next 16."""
    return f"part-{index:05d}.parquet"


def write_meta(uri: str, meta: Meta) -> None:
    """Writes the box's meta.json, which completes the box: call it last."""
    if meta.kind not in KINDS:
        raise ValueError(f"kind {meta.kind!r} is none of {KINDS}")
    content = {"version": META_VERSION, "digest": meta.digest, **asdict(meta)}
    storage.write(storage.join(uri, META_NAME), _pretty_json(content))


def read_meta(uri: str, kind: str) -> Meta:
    """The meta.json of the box at `uri`.

    Raises InputError if there is none, the box is unfinished, of another kind, of another version, or if its meta.json
    is damaged or names files that are gone. File contents are not read.
    """
    name = storage.join(uri, META_NAME)
    try:
        content = _read_json(name)
    except (FileNotFoundError, NotADirectoryError):
        if storage.exists(storage.join(uri, PLAN_NAME)):
            raise InputError(f"{uri} is unfinished; run the command that makes it again to complete it.") from None
        raise InputError(f"{uri} is no {kind!r} box: it has no {META_NAME}; give the directory of one.") from None
    if content.get("version") != META_VERSION:
        raise InputError(f"{name} has version {content.get('version')!r}; this program reads {META_VERSION}.")
    if content.get("kind") != kind:
        raise InputError(f"{uri} is a {content.get('kind')!r} box, but a {kind!r} one is needed; give its directory.")
    digest = content.get("digest")
    try:
        meta = Meta(**{key: value for key, value in content.items() if key not in ("version", "digest")})
        intact = meta.digest == digest
    except (TypeError, KeyError) as error:
        raise InputError(f"{name} is damaged ({error}); make the box again.") from None
    if not intact:
        raise InputError(f"{name} is damaged: its digest is not {digest}; make the box again.")
    gone = sorted(set(meta.files) - set(storage.list(uri)))
    if gone:
        raise InputError(f"{uri} is damaged: {gone[0]} is gone ({len(gone)} of {len(meta.files)}); make it again.")
    return meta


def begin(uri: str, kind: str, config: Mapping[str, Any], parent: str | None, *, resume: bool) -> None:
    """Claims `uri` for a box of `kind` made by `config` from `parent`, before its first shard is written.

    An unfinished box of the same config and parent is continued (its standing shards are good), a finished one only
    with `resume`. Raises InputError, naming both values, if another config or parent began it.
    """
    plan = {"version": META_VERSION, "kind": kind, "config": config, "parent": parent}
    plan = json.loads(canonical_json(plan))  # Tuples become lists, as in the plan that is read back.
    name = storage.join(uri, PLAN_NAME)
    finished = storage.exists(storage.join(uri, META_NAME))
    try:
        if finished and not storage.exists(name):
            raise InputError(f"{uri} holds another box already; give another --out.")
        storage.create(name, _pretty_json(plan))
        return
    except FileExistsError:
        standing = _read_json(name)
    difference = _first_difference(standing, plan)
    if difference:
        field_name, theirs, ours = difference
        raise InputError(f"{uri} was begun with {field_name} {theirs}, not {ours}; give another --out.")
    if finished and not resume:
        raise InputError(f"{uri} is complete already; use it, or give another --out.")


def _first_difference(standing: dict[str, Any], plan: dict[str, Any]) -> tuple[str, str, str] | None:
    """(field, its value in `standing`, its value in `plan`) of the first field that differs, or None."""
    ours, theirs = plan.pop("config"), standing.pop("config", {})
    pairs = [(key, standing.get(key), plan[key]) for key in ("kind", "version", "parent")]
    pairs += [(f"config {key}", theirs.get(key), ours.get(key)) for key in sorted({*ours, *theirs})]
    for name, theirs_value, ours_value in pairs:
        if theirs_value != ours_value:
            return name, json.dumps(theirs_value), json.dumps(ours_value)
    return None


def _pretty_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def _read_json(uri: str) -> dict[str, Any]:
    """A JSON object; FileNotFoundError, or InputError if it is damaged."""
    try:
        content = json.loads(storage.read(uri))
    except ValueError as error:
        raise InputError(f"{uri} is damaged ({error}); remove its directory and make it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{uri} is damaged (no JSON object); remove its directory and make it again.")
    return content


def tensor_array(values: np.ndarray) -> pa.FixedShapeTensorArray:
    """An Arrow column of `len(values)` tensors of shape `values.shape[1:]`, without a copy if contiguous."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def table_from_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of `rows`, whose tensor columns hold arrays of the schema's shape and dtype. Raises ValueError if not."""
    columns = []
    for column in schema:
        values = [row[column.name] for row in rows]
        if not isinstance(column.type, pa.FixedShapeTensorType):
            columns.append(pa.array(values, column.type))
            continue
        shape, dtype = tuple(column.type.shape), column.type.value_type.to_pandas_dtype()
        for value in values:
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(f"{column.name}: {value.dtype} {value.shape}, expected {dtype.__name__} {shape}")
        stacked = np.stack(values) if values else np.empty((0, *shape), dtype)
        columns.append(_from_bytes(_to_bytes(stacked), column))
    return pa.table(columns, schema=schema)


def table_bytes(table: pa.Table) -> bytes:
    """`table` as a Parquet file; the same rows give the same bytes (with one version of pyarrow)."""
    columns, fields = [], []
    for name, column_field in zip(table.column_names, table.schema, strict=True):
        if isinstance(column_field.type, pa.FixedShapeTensorType):
            array = column_to_numpy(table, name)
            metadata = {_DTYPE_KEY: array.dtype.name, _SHAPE_KEY: json.dumps(array.shape[1:])}
            columns.append(_to_bytes(array))
            fields.append(pa.field(name, columns[-1].type, nullable=False, metadata=metadata))
        else:
            columns.append(table[name])
            fields.append(column_field)
    sink = pa.BufferOutputStream()
    flat = pa.table(columns, schema=pa.schema(fields, table.schema.metadata))
    # Dictionaries and statistics of megabyte-sized values cost time and help nobody.
    plain = [column_field.name for column_field in fields if not _is_large(column_field)]
    # A page ends between two batches of values, and whole pages are compressed: megabytes need one for each.
    large = any(pa.types.is_large_binary(column_field.type) for column_field in fields)
    batch = {"write_batch_size": 1} if large else {}
    pq.write_table(flat, sink, compression="zstd", use_dictionary=plain, write_statistics=plain, **batch)
    return sink.getvalue().to_pybytes()


def read_table(uri: str, columns: Sequence[str] | None = None, *, sha256: str | None = None) -> pa.Table:
    """One Parquet file of a box, all columns or those named; tensor columns as fixed_shape_tensor.

    sha256: of the file, in hexadecimal, from the box's meta.json; None: it is not checked. Raises FileNotFoundError,
    and InputError if the file is damaged, has another sha256, or lacks a column.
    """
    data = storage.read(uri)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{uri} was changed after it was written; delete it and make its box again.")
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        missing = [name for name in columns or () if name not in file.schema_arrow.names]
        if missing:
            raise InputError(f"{uri} has no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}.")
        flat = file.read(columns=None if columns is None else [*columns])
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri} is damaged ({error}); make its box again.") from None
    arrays, fields = [], []
    for name, column_field in zip(flat.column_names, flat.schema, strict=True):
        if _is_stored_tensor(column_field):
            shape = json.loads(column_field.metadata[_SHAPE_KEY])
            value_type = pa.from_numpy_dtype(np.dtype(column_field.metadata[_DTYPE_KEY].decode()))
            column_field = pa.field(name, pa.fixed_shape_tensor(value_type, shape))
            arrays.append(_from_bytes(_single_chunk(flat[name]), column_field))
        else:
            arrays.append(flat[name])
        fields.append(column_field)
    return pa.table(arrays, schema=pa.schema(fields, flat.schema.metadata))


def read_tensor_shapes(uri: str) -> dict[str, tuple[int, ...]]:
    """The tensor columns of one Parquet file of a box with the shape of a row's value; only the footer is read.

    Raises FileNotFoundError, and InputError if the file is damaged.
    """
    with storage.reader(uri) as file:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{uri} is damaged ({error}); make its box again.") from None
    return {item.name: tuple(json.loads(item.metadata[_SHAPE_KEY])) for item in schema if _is_stored_tensor(item)}


def read_plain_columns(uri: str, columns: Sequence[str]) -> pa.Table:
    """Columns without tensors of one Parquet file of a box. The others are not read, however large.

    Raises FileNotFoundError, and InputError if the file is damaged or lacks a column.
    """
    with storage.reader(uri) as file:
        try:
            return pq.ParquetFile(file).read(columns=[*columns]).select([*columns])
        except (pa.ArrowInvalid, KeyError, OSError) as error:
            raise InputError(f"{uri} is damaged ({error}); make its box again.") from None


def column_to_numpy(table: pa.Table, name: str) -> np.ndarray:
    """Column `name` as an array [rows, ...]; tensor columns without a copy (then read-only).

    Takes scalars, tensors and (nested) lists of equal lengths, so that tables from elsewhere can be read too.
    Raises InputError if the rows differ in shape or one of them is null.
    """
    column = _single_chunk(table[name])
    rows, shape = len(column), []
    if isinstance(column.type, pa.FixedShapeTensorType):
        shape, column = list(column.type.shape), _without_nulls(column.storage, name).flatten()
    while isinstance(column.type, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        lengths = pc.unique(pc.list_value_length(_without_nulls(column, name))).to_pylist()
        if len(lengths) > 1:
            raise InputError(f"column {name!r} has rows of {lengths[0]} and of {lengths[1]} values; make them equal.")
        shape.append(lengths[0] if lengths else 0)
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(rows, *shape)


def _without_nulls(array: pa.Array, name: str) -> pa.Array:
    if array.null_count:
        raise InputError(f"column {name!r} has {array.null_count} empty rows; every row needs its values.")
    return array


def _single_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _is_stored_tensor(column_field: pa.Field) -> bool:
    return column_field.metadata is not None and _DTYPE_KEY in column_field.metadata


def _is_large(column_field: pa.Field) -> bool:
    return _is_stored_tensor(column_field) or pa.types.is_large_binary(column_field.type)


def _to_bytes(values: np.ndarray) -> pa.FixedSizeBinaryArray:
    """One binary value per row (C order, little endian as on every machine Arrow supports), without a copy."""
    values = np.ascontiguousarray(values)
    width = math.prod(values.shape[1:]) * values.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])


def _from_bytes(binary: pa.FixedSizeBinaryArray, tensor_field: pa.Field) -> pa.FixedShapeTensorArray:
    """The tensors of `tensor_field`'s type in `binary`, without a copy."""
    tensor_type = tensor_field.type
    size, rows = math.prod(tensor_type.shape), len(binary)
    buffers = [None, binary.buffers()[1]]
    values = pa.Array.from_buffers(tensor_type.value_type, rows * size, buffers, offset=binary.offset * size)
    return pa.FixedShapeTensorArray.from_storage(tensor_type, pa.FixedSizeListArray.from_arrays(values, size))
