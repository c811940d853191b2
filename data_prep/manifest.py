"""Manifests: which clips there are, where they lie, what they are, and which split each belongs to.

A manifest is a box with `manifest.parquet`. Its paths are `root name/relative path`, so that data can move: where
the roots are stands in meta.json alone.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
_LIKE_PARENT = ("video_path", "audio_path", "category", "dataset", "subject", "target", "method", "split", "fold")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A manifest that was read: its rows in order of clip_id, and where their roots are."""

    rows: list[Row]
    roots: dict[str, str]
    meta: boxes.Meta


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What the reader of a data set found."""

    rows: list[Row]
    """One per clip."""
    unfit: list[tuple[str, str]]
    """(path, reason) of everything that cannot be a clip."""
    roots: dict[str, str]
    """Root name -> local path or s3:// URI."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """(path, remark) of clips that are listed although something about them is odd."""


def label_of(category: str) -> int:
    """1 (fake) for B, C and D, 0 (real) for A, where neither picture nor sound is fake."""
    return 0 if category == "A" else 1


def clip_row(*, clip_id: str, video_path: str, category: str, dataset: str, subject: str, **others: Any) -> Row:
    """A row with the label of its category, `others` as given, and null in every other column."""
    row: Row = dict.fromkeys(MANIFEST_COLUMNS)
    row |= {"clip_id": clip_id, "video_path": video_path, "category": category, "label": label_of(category)}
    return row | {"dataset": dataset, "subject": subject} | others


def targets_of(row: Row) -> tuple[str, ...]:
    """The identities that a fake borrows, as far as its name says: in its order, face before voice; often none."""
    return tuple(row["target"].split("+")) if row["target"] else ()


def leading_token(name: str) -> str:
    """The part of `name` before the first of `_`, `-`, `.` and space; the whole name if it begins with one."""
    token = name
    for separator in _STEM_SEPARATORS:
        token = token.split(separator)[0]
    return token or name


def files_below(root: str) -> list[str]:
    """Sorted paths of all files below `root`, relative to it. Raises InputError if there are none."""
    names = storage.list(root)
    if not names:
        raise InputError(
            f"{root} holds no clip: it does not exist, is no folder, or is empty; give the folder of the data set."
        )
    return names


class PathResolver:
    """Turns paths of a manifest, `root name/relative path`, into absolute ones.

    Where a folder really lies, after symbolic links, is looked up once and remembered: an instance is for one pass
    over a list of clips.
    """

    def __init__(self, roots: Mapping[str, str]) -> None:
        self._roots = {name: storage.absolute(root) for name, root in roots.items()}
        self._real_folders: dict[str, str] = {}

    def resolve(self, path: str) -> str:
        """The absolute path or s3:// URI of `path`.

        Raises InputError if the root is unknown or the path leaves it, by `..` or by a symbolic link.
        """
        root_name, _, relative = path.partition("/")
        if root_name not in self._roots:
            known = ", ".join(sorted(self._roots)) or "none"
            raise InputError(
                f"path {path!r} names the root {root_name!r}, known are: {known}; write root/relative path."
            )
        parts = relative.split("/")
        if not relative or "\0" in relative or any(part in ("", ".", "..") for part in parts):
            raise InputError(
                f"path {path!r} is no plain relative path below its root; write root/relative path, no '..'."
            )
        root = self._roots[root_name]
        uri = storage.join(root, relative)
        if not root.startswith("s3://"):
            real_root = self._real_folder(root)
            if os.path.commonpath([real_root, self._real_path(uri)]) != real_root:
                raise InputError(
                    f"path {path!r} leaves its root {root} by a symbolic link; put the file below the root."
                )
        return uri

    def fault(self, path: str) -> str | None:
        """Why no manifest can hold `path`, or None if one can."""
        if not _is_text(path):
            return "its name is no UTF-8"
        try:
            self.resolve(path)
        except InputError as error:
            return str(error)
        return None

    def _real_path(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        return os.path.join(self._real_folder(folder), name)

    def _real_folder(self, folder: str) -> str:
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return self._real_folders[folder]


def resolve_path(roots: Mapping[str, str], path: str) -> str:
    """The absolute path or s3:// URI of one `path`; see `PathResolver.resolve`."""
    return PathResolver(roots).resolve(path)


def read_manifest_csv(uri: str) -> list[Row]:
    """Rows of a csv file with a header of MANIFEST_COLUMNS; an empty field is null, an absent column all null.

    Raises InputError for unknown, missing or repeated columns and for a label or fold that is no integer. Everything
    else is checked by `write_manifest`.
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
        for name in [name for name in header if header.count(name) > 1]:
            raise InputError(f"{uri} has the column {name!r} twice; leave one of them.")
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
    """The manifest at directory `uri`; a column that an older one lacks is null.

    Raises InputError if there is none or it was changed since it was written.
    """
    meta = boxes.read_meta(uri, boxes.MANIFEST)
    name = storage.join(uri, MANIFEST_NAME)
    if hashlib.sha256(storage.read(name)).hexdigest() != meta.files[MANIFEST_NAME]:
        raise InputError(f"{name} was changed after it was written; make the manifest again.")
    rows = [dict.fromkeys(MANIFEST_COLUMNS) | row for row in boxes.read_table(name).to_pylist()]
    return Manifest(rows=rows, roots=meta.extra["roots"], meta=meta)


def merge_manifests(uris: Sequence[str]) -> Listing:
    """The rows and roots of the manifests at `uris`, in their order.

    Raises InputError if one is given twice, or two of them place one root differently or list one clip_id; the rest is
    `write_manifest`'s.
    """
    listing = Listing(rows=[], unfit=[], roots={})
    origin: dict[str, str] = {}
    places = [storage.absolute(uri).rstrip("/") for uri in uris]
    for uri, place in zip(uris, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{uri} is given twice; leave one out.")
        manifest = read_manifest(uri)
        for name, root in manifest.roots.items():
            if listing.roots.setdefault(name, root) != root:
                raise InputError(
                    f"{uri} has the root {name!r} at {root}, another manifest at {listing.roots[name]}; "
                    "make one of them again with another --dataset."
                )
        for row in manifest.rows:
            if origin.setdefault(row["clip_id"], uri) != uri:
                raise InputError(
                    f"{uri} lists clip {row['clip_id']!r}, as {origin[row['clip_id']]} does; leave one out."
                )
        listing.rows.extend(manifest.rows)
    return listing


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
    label that contradicts its category; a path that leaves its root; an augmented child of a test clip, or one that
    is no child of a listed clip, or unlike it (`_check_children`). Whether the files exist is not looked at:
    `prepare` rejects missing ones.
    """
    check_roots(roots)
    paths = PathResolver(roots)
    by_id: dict[str, Row] = {}
    for row in rows:
        clip_id = row.get("clip_id")
        _check_types(row)
        if clip_id in by_id:
            raise InputError(f"clip_id {clip_id!r} occurs twice; give every clip its own.")
        by_id[row["clip_id"]] = row
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
                paths.resolve(row[column])
    _check_children(by_id)


def _check_children(by_id: Mapping[str, Row]) -> None:
    children = [row for row in by_id.values() if row["augmentation"] or row["parent_clip_id"]]
    if not children:
        return
    # Most manifests have none, and the module brings the codec library.
    from data_prep.augmentations import AUGMENTATIONS

    for row in children:
        clip_id, name, parent_id = row["clip_id"], row["augmentation"], row["parent_clip_id"]
        if name is None or parent_id is None:
            here, missing = ("parent_clip_id", "augmentation") if name is None else ("augmentation", "parent_clip_id")
            raise InputError(f"clip {clip_id!r} has {here} {row[here]!r} but no {missing}; give both or neither.")
        if name not in AUGMENTATIONS:
            raise InputError(f"clip {clip_id!r} has augmentation {name!r}; known are {', '.join(AUGMENTATIONS)}.")
        parent = by_id.get(parent_id)
        if parent is None:
            raise InputError(f"clip {clip_id!r} has parent_clip_id {parent_id!r}, which is not listed; list it, too.")
        if parent["parent_clip_id"] is not None:
            raise InputError(
                f"clip {clip_id!r} has parent_clip_id {parent_id!r}, which is augmented itself; name a recorded clip."
            )
        if parent["split"] == "test":
            raise InputError(
                f"clip {clip_id!r} is an augmentation of {parent_id!r}, a test clip; split first, augment then."
            )
        for column in _LIKE_PARENT:
            if row[column] != parent[column]:
                raise InputError(
                    f"clip {clip_id!r} has {column} {row[column]!r}, but its parent {parent_id!r} has "
                    f"{parent[column]!r}; make them alike."
                )


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
    if not all(targets_of(row)):
        raise InputError(
            f"clip {clip_id!r} has target {row['target']!r}; give one identity, or several joined by '+', none empty."
        )


def _is_text(value: str) -> bool:
    """Whether `value` is not empty and has no half characters, as file names that are no UTF-8 have."""
    return value != "" and not any("\ud800" <= character <= "\udfff" for character in value)


def check_roots(roots: Mapping[str, str]) -> None:
    """Raises InputError if a root's name cannot begin a path."""
    for name in roots:
        if not name or "/" in name or name in (".", ".."):
            raise InputError(f"root name {name!r} cannot begin a path; give a name without '/'.")


def _rows_digest(rows: list[Row]) -> str:
    """sha256 over the rows, in order of clip_id, without split and fold."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(boxes.canonical_json({name: row[name] for name in row if name not in ("split", "fold")}) + b"\n")
    return digest.hexdigest()
