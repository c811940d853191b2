"""Manifests: which clips there are, where they lie, what they are, and which split each belongs to.

A manifest is a box with `manifest.parquet`. Its paths are `root name/relative path`, so that data can move: where
the roots are stands in meta.json alone.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep import boxes, storage
from data_prep.storage import InputError

Row = dict[str, Any]

MANIFEST_NAME = "manifest.parquet"
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_path", pa.string(), nullable=False),
        pa.field("audio_path", pa.string()),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("target", pa.string()),
        pa.field("method", pa.string()),
        pa.field("race", pa.string()),
        pa.field("gender", pa.string()),
        pa.field("split", pa.string()),
        pa.field("fold", pa.int32()),
        pa.field("augmentation", pa.string()),
        pa.field("parent_clip_id", pa.string()),
    ]
)
MANIFEST_COLUMNS: tuple[str, ...] = tuple(MANIFEST_SCHEMA.names)
CATEGORIES = ("A", "B", "C", "D")
CATEGORY_FOLDERS = {
    "RealVideo-RealAudio": "A",
    "RealVideo-FakeAudio": "B",
    "FakeVideo-RealAudio": "C",
    "FakeVideo-FakeAudio": "D",
}
"""Folder name -> category. A copy of FakeAVCeleb names them so; A, B, C, D themselves are taken too."""
SPLITS = ("train", "dev", "test")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")

_REQUIRED = tuple(column.name for column in MANIFEST_SCHEMA if not column.nullable)
_INTEGERS = ("label", "fold")
_STEM_SEPARATORS = "_-. "


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A manifest that was read: its rows in order of clip_id, and where their roots are."""

    rows: list[Row]
    roots: dict[str, str]
    meta: boxes.Meta


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderListing:
    """What a folder holds: a row per clip, and (path, reason) of every file that cannot be one."""

    rows: list[Row]
    unfit: list[tuple[str, str]]
    roots: dict[str, str]


def label_of(category: str) -> int:
    """1 (fake) for B, C and D, 0 (real) for A, where neither picture nor sound is fake."""
    return 0 if category == "A" else 1


def resolve_path(roots: Mapping[str, str], path: str) -> str:
    """The absolute path or s3:// URI of `path`, which reads `root name/relative path`.

    Raises InputError if the root is unknown or the path leaves it, by `..` or by a symbolic link.
    """
    root_name, _, relative = path.partition("/")
    if root_name not in roots:
        known = ", ".join(sorted(roots)) or "none"
        raise InputError(f"path {path!r} names the root {root_name!r}, known are: {known}; write root/relative path.")
    parts = relative.split("/")
    if not relative or "\0" in relative or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"path {path!r} is no plain relative path below its root; write root/relative path, no '..'.")
    root = storage.absolute(roots[root_name])
    uri = storage.join(root, relative)
    if not root.startswith("s3://"):
        real_root = os.path.realpath(root)
        if os.path.commonpath([real_root, os.path.realpath(uri)]) != real_root:
            raise InputError(f"path {path!r} leaves its root {root} by a symbolic link; put the file below the root.")
    return uri


def folder_manifest(root: str, *, dataset: str) -> FolderListing:
    """Lists the clips below `root`, a folder (or s3:// prefix) with up to four category folders.

    The first folder of a path gives the category: a key of CATEGORY_FOLDERS, or A, B, C or D. The subject is the
    folder right below it (the first one, if there are several: too coarse a group cannot leak between splits), or,
    if the file lies in the category folder itself, the part of its name before the first of `_`, `-`, `.`, space.
    The clip_id is `dataset/path below root`. Every other file is listed as unfit, with its reason.

    Raises InputError if `root` holds no clip, or `dataset` cannot be a root's name.
    """
    roots = {dataset: storage.absolute(root)}
    _check_roots(roots)
    rows: list[Row] = []
    unfit: list[tuple[str, str]] = []
    for relative in storage.list(roots[dataset]):
        reason = _unfit_reason(relative, roots, dataset)
        if reason:
            unfit.append((relative, reason))
        else:
            rows.append(_folder_row(relative, dataset))
    if not rows:
        folders = ", ".join([*CATEGORY_FOLDERS, *CATEGORIES])
        raise InputError(f"{root} holds no clip: none of its {len(unfit)} files is a video below a folder {folders}.")
    return FolderListing(rows=rows, unfit=unfit, roots=roots)


def _unfit_reason(relative: str, roots: Mapping[str, str], dataset: str) -> str | None:
    folder = relative.partition("/")[0]
    if "/" not in relative or folder not in (*CATEGORY_FOLDERS, *CATEGORIES):
        return "below no category folder"
    if not relative.lower().endswith(VIDEO_SUFFIXES):
        return f"no video by its name ({', '.join(VIDEO_SUFFIXES)})"
    if not _is_text(relative):
        return "its name is no UTF-8"
    try:
        resolve_path(roots, f"{dataset}/{relative}")
    except InputError as error:
        return str(error)
    return None


def _folder_row(relative: str, dataset: str) -> Row:
    folders = relative.split("/")
    category = CATEGORY_FOLDERS.get(folders[0], folders[0])
    subject = folders[1] if len(folders) > 2 else _leading_token(folders[1])
    clip = f"{dataset}/{relative}"
    row: Row = dict.fromkeys(MANIFEST_COLUMNS)
    return row | {
        "clip_id": clip,
        "video_path": clip,
        "label": label_of(category),
        "category": category,
        "dataset": dataset,
        "subject": subject,
    }


def _leading_token(name: str) -> str:
    token = name
    for separator in _STEM_SEPARATORS:
        token = token.split(separator)[0]
    return token or name


def read_manifest_csv(uri: str) -> list[Row]:
    """Rows of a csv file with a header of MANIFEST_COLUMNS; an empty field is null, an absent column all null.

    Raises InputError for unknown or missing columns and for a label or fold that is no integer. Everything else is
    checked by `write_manifest`.
    """
    try:
        text = storage.read(uri).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{uri} does not exist; give a csv file with the columns of a manifest.") from None
    except UnicodeDecodeError:
        raise InputError(f"{uri} is no UTF-8 text; give a csv file with the columns of a manifest.") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        for name in [name for name in header if name not in MANIFEST_COLUMNS]:
            raise InputError(f"{uri} has an unknown column {name!r}; known are {', '.join(MANIFEST_COLUMNS)}.")
        for name in [name for name in _REQUIRED if name not in header]:
            raise InputError(f"{uri} has no column {name!r}; it needs {', '.join(_REQUIRED)}.")
        return [_csv_row(record, f"{uri} line {reader.line_num}") for record in reader]
    except csv.Error as error:
        raise InputError(f"{uri} line {reader.line_num} is no csv ({error}); correct it.") from None


def _csv_row(record: dict[str, Any], place: str) -> Row:
    if None in record or None in record.values():
        raise InputError(f"{place} has more or fewer fields than the header; give every column its field.")
    row: Row = {name: record.get(name) or None for name in MANIFEST_COLUMNS}
    for name in _INTEGERS:
        if row[name] is not None:
            try:
                row[name] = int(row[name])
            except ValueError:
                raise InputError(f"{place} has {name} {row[name]!r}; give an integer.") from None
    return row


def read_manifest(uri: str) -> Manifest:
    """The manifest at directory `uri`. Raises InputError if there is none or it was changed since it was written."""
    meta = boxes.read_meta(uri, boxes.MANIFEST)
    name = storage.join(uri, MANIFEST_NAME)
    if hashlib.sha256(storage.read(name)).hexdigest() != meta.files[MANIFEST_NAME]:
        raise InputError(f"{name} was changed after it was written; make the manifest again.")
    return Manifest(rows=boxes.read_table(name).to_pylist(), roots=meta.extra["roots"], meta=meta)


def write_manifest(uri: str, rows: Iterable[Row], roots: Mapping[str, str], config: Mapping[str, Any]) -> boxes.Meta:
    """Checks `rows` (see `check_rows`) and writes them, in order of clip_id, as a manifest at directory `uri`.

    `roots`: name -> local path or s3:// URI, made absolute. `config`: what made the rows, kept in meta.json.
    Writing the same again is fine; raises InputError if another manifest stands there.
    """
    roots = {name: storage.absolute(root) for name, root in roots.items()}
    rows = sorted(rows, key=lambda row: str(row.get("clip_id")))
    if not rows:
        raise InputError("the manifest has no clip; give at least one row.")
    check_rows(rows, roots)
    data = boxes.table_bytes(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    meta = boxes.Meta(
        kind=boxes.MANIFEST,
        config=dict(config),
        counts={"rows": len(rows)},
        versions={"pyarrow": pa.__version__},
        parent=None,
        files={MANIFEST_NAME: hashlib.sha256(data).hexdigest()},
        extra={"roots": roots, "rows": _rows_digest(rows)},
    )
    if storage.exists(storage.join(uri, boxes.META_NAME)):
        standing = boxes.read_meta(uri, boxes.MANIFEST)
        if (standing.files, standing.extra) != (meta.files, meta.extra):
            raise InputError(f"{uri} holds another manifest (digest {standing.digest[:12]}); give another --out.")
    storage.write(storage.join(uri, MANIFEST_NAME), data)
    boxes.write_meta(uri, meta)
    return meta


def check_rows(rows: Iterable[Row], roots: Mapping[str, str]) -> None:
    """Raises InputError at the first row that no manifest may hold.

    That is: a column missing, unknown or of another type; a repeated clip_id; a category or split that is none; a
    label that contradicts its category; a path that leaves its root. Whether the files exist is not looked at:
    `prepare` rejects missing ones.
    """
    _check_roots(roots)
    seen: set[str] = set()
    for row in rows:
        clip_id = row.get("clip_id")
        _check_types(row)
        if clip_id in seen:
            raise InputError(f"clip_id {clip_id!r} occurs twice; give every clip its own.")
        seen.add(row["clip_id"])
        category, label, split = row["category"], row["label"], row["split"]
        if category not in CATEGORIES:
            raise InputError(f"clip {clip_id!r} has category {category!r}; give one of {', '.join(CATEGORIES)}.")
        if label != label_of(category):
            raise InputError(
                f"clip {clip_id!r} has label {label}, which contradicts its category {category}; "
                f"labels are 1 for fake (B, C, D) and 0 for real (A)."
            )
        if split not in (*SPLITS, None):
            raise InputError(f"clip {clip_id!r} has split {split!r}; give one of {', '.join(SPLITS)}, or none.")
        for column in ("video_path", "audio_path"):
            if row[column] is not None:
                resolve_path(roots, row[column])


def _check_types(row: Row) -> None:
    clip_id = row.get("clip_id")
    for name in sorted(row.keys() - set(MANIFEST_COLUMNS)):
        raise InputError(f"clip {clip_id!r} has an unknown field {name!r}; known are {', '.join(MANIFEST_COLUMNS)}.")
    for name in MANIFEST_COLUMNS:
        if name not in row:
            raise InputError(f"clip {clip_id!r} has no field {name!r}; give it, or null if it may be empty.")
        value = row[name]
        if value is None:
            if name in _REQUIRED:
                raise InputError(f"clip {clip_id!r} has no {name}; every clip needs one.")
        elif name in _INTEGERS:
            if type(value) is not int or not 0 <= value < 2**31:
                raise InputError(f"clip {clip_id!r} has {name} {value!r}; give an integer from 0.")
        elif not isinstance(value, str) or not _is_text(value):
            raise InputError(f"clip {clip_id!r} has {name} {value!r}; give a text in UTF-8.")


def _is_text(value: str) -> bool:
    """Whether `value` is not empty and has no half characters, as file names that are no UTF-8 have."""
    return value != "" and not any("\ud800" <= character <= "\udfff" for character in value)


def _check_roots(roots: Mapping[str, str]) -> None:
    for name in roots:
        if not name or "/" in name or name in (".", ".."):
            raise InputError(f"root name {name!r} cannot begin a path; give a name without '/'.")


def _rows_digest(rows: list[Row]) -> str:
    """sha256 over the rows, in order of clip_id, without split and fold."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(boxes.canonical_json({name: row[name] for name in row if name not in ("split", "fold")}) + b"\n")
    return digest.hexdigest()
