"""Clips in a folder of one's own: four category folders, a csv file, or what the released code reads."""

import os

from data_prep import released_layout, storage
from data_prep.manifest import (
    CATEGORIES,
    CATEGORY_FOLDERS,
    VIDEO_SUFFIXES,
    Listing,
    PathResolver,
    Row,
    check_roots,
    clip_row,
    files_below,
    leading_token,
    read_manifest_csv,
)
from data_prep.storage import InputError


def folder_manifest(root: str, *, dataset: str) -> Listing:
    """Lists the clips of `root`, local or s3://, in whichever of three layouts it has.

    - It is a file whose name ends in `.csv`: one with the columns of a manifest. Its paths are relative to the file's
      own folder.
    - A file `label2.txt` lies in it, or in its folders train, dev or test: see `data_prep.released_layout`.
    - Else it holds up to four category folders. The first folder of a path gives the category: a key of
      CATEGORY_FOLDERS, or A, B, C or D. The subject is the folder right below it (the first one, if there are several:
      too coarse a group cannot leak between splits), or, if the file lies in the category folder itself, the part of
      its name before the first of `_`, `-`, `.`, space. The clip_id is `dataset/path below root`.

    `dataset` is the root's name in the manifest's paths. What cannot be a clip is listed as unfit, with its reason.

    Raises InputError if `root` holds no clip, a csv file names one elsewhere than below its folder, or `dataset` cannot
    be a root's name.
    """
    check_roots({dataset: root})
    root = storage.absolute(root)
    if root.lower().endswith(".csv") and not os.path.isdir(root) and not storage.list(root):
        return _csv_listing(root, dataset)
    names = files_below(root)
    if released_layout.label_files(names):
        return released_layout.read(root, names, dataset=dataset)
    return _category_listing(root, names, dataset)


def _csv_listing(uri: str, dataset: str) -> Listing:
    folder = uri.rpartition("/")[0] or "/"
    rows = read_manifest_csv(uri)
    if not rows:
        raise InputError(f"{uri} holds no clip: it has a header and no line below it; give at least one clip.")
    for row in rows:
        for column in ("video_path", "audio_path"):
            path = row[column]
            if path is None:
                continue
            if any(part in ("", ".", "..") for part in path.split("/")):
                raise InputError(
                    f"clip {row['clip_id']!r} in {uri} has {column} {path!r}; give its path relative to the folder "
                    f"{folder}, such as 'clips/a.mp4', without './' or '../'."
                )
            row[column] = f"{dataset}/{path}"
    return Listing(rows=rows, unfit=[], roots={dataset: folder})


def _category_listing(root: str, names: list[str], dataset: str) -> Listing:
    paths = PathResolver({dataset: root})
    rows: list[Row] = []
    unfit: list[tuple[str, str]] = []
    for name in names:
        reason = _unfit_reason(name) or paths.fault(f"{dataset}/{name}")
        if reason:
            unfit.append((name, reason))
        else:
            rows.append(_folder_row(name, dataset))
    if not rows:
        folders = ", ".join([*CATEGORY_FOLDERS, *CATEGORIES])
        raise InputError(f"{root} holds no clip: none of its {len(unfit)} files is a video below a folder {folders}.")
    return Listing(rows=rows, unfit=unfit, roots={dataset: root})


def _unfit_reason(name: str) -> str | None:
    folder = name.partition("/")[0]
    if name.rpartition("/")[2].startswith("."):
        return "a hidden file, as macOS leaves one beside every file"
    if "/" not in name or folder not in (*CATEGORY_FOLDERS, *CATEGORIES):
        return "below no category folder"
    if not name.lower().endswith(VIDEO_SUFFIXES):
        return f"no video by its name ({', '.join(VIDEO_SUFFIXES)})"
    return None


def _folder_row(name: str, dataset: str) -> Row:
    folders = name.split("/")
    clip = f"{dataset}/{name}"
    return clip_row(
        clip_id=clip,
        video_path=clip,
        category=CATEGORY_FOLDERS.get(folders[0], folders[0]),
        dataset=dataset,
        subject=folders[1] if len(folders) > 2 else leading_token(folders[1]),
    )
