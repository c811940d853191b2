"""The folder that the released code of STGS-BMNAS reads.

In each of its folders train, dev and test (here also in the root itself) lies a `label2.txt` with a line
`<video file> <label>` per clip, label 1 for real and 0 for fake; one folder beside it holds the videos, another the
spectrograms and a `_source.txt` (its README says source.txt) with a line `<spectrogram>.npy,<path of its sound>` per
clip. The released code pairs the sorted lists of videos and spectrograms; here clips are joined by name. Spectrograms
are not read: `prepare` makes them.

The layout says neither what is fake in a clip nor whose it is. It is taken, in this order, from the folders in the
sound's path (category, idNNNNN), from names of FakeAVCeleb and SWAN-DF that leave no choice, and, for the subject
alone, from the part of the file's name before the first separator. A fake of unknown category is unfit.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_prep import fakeavceleb, storage, swan_df
from data_prep.manifest import (
    CATEGORY_FOLDERS,
    SPLITS,
    VIDEO_SUFFIXES,
    Listing,
    PathResolver,
    Row,
    clip_row,
    leading_token,
)
from data_prep.storage import InputError

LABEL_NAME = "label2.txt"
SOURCE_NAMES = ("source.txt", "_source.txt")
_REAL, _FAKE = "1", "0"
_IDENTITY = re.compile(r"id\d{5}")


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the folders train, dev and test, or the root."""

    folder: str  # "train/", or "" for the root
    split: str | None
    labels: dict[str, str]  # file name of a video -> label
    sources: dict[str, str]  # stem of a spectrogram, that is of its video -> path of the sound, on whatever machine


def label_files(names: Iterable[str]) -> list[str]:
    """Those of `names`, paths below a root, that make it a folder of this layout."""
    return [name for name in names if name in (LABEL_NAME, *(f"{split}/{LABEL_NAME}" for split in SPLITS))]


def read(root: str, names: Sequence[str], *, dataset: str) -> Listing:
    """Lists the clips of `root`, whose files are `names`.

    Folders train, dev and test set the split. audio_path is the file below the part's folder that is named like the
    sound in source.txt, if there is exactly one; else the sound is the video's own. The clip_id is
    `dataset/path below root`. Unfit are: videos without a label, labels without a video, second copies of a video
    (scaling leaves one), and fakes of unknown category.

    Raises InputError if a line of label2.txt or source.txt is none, label2.txt stands both in the root and in a folder
    of it, or no clip is left.
    """
    found = label_files(names)
    if LABEL_NAME in found and len(found) > 1:
        raise InputError(f"{root} holds {' and '.join(found)}; leave the one of the root, or those of its folders.")
    listing = Listing(rows=[], unfit=[], roots={dataset: root})
    paths = PathResolver(listing.roots)
    for label_file in found:
        folder = label_file.removesuffix(LABEL_NAME)
        own = [name for name in names if name.startswith(folder) and name not in found]
        part = _Part(
            folder=folder,
            split=folder.rstrip("/") or None,
            labels=_labels(root, label_file),
            sources=_sources(root, [name for name in own if _file(name) in SOURCE_NAMES]),
        )
        _list_part(listing, paths, part, own, dataset)
    if not listing.rows:
        raise InputError(
            f"{root} holds no clip: no video that its {LABEL_NAME} names can be one; see the folder's files."
        )
    return listing


def _labels(root: str, name: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for place, line in _lines(root, name):
        video, _, label = line.rpartition(" ")
        if not video.strip() or label not in (_REAL, _FAKE):
            raise InputError(
                f"{place} is {line!r}; write '<video file> 1' for a real clip, '<video file> 0' for a fake."
            )
        if labels.setdefault(video.strip(), label) != label:
            raise InputError(f"{place} gives {video.strip()!r} another label than before; leave one line of the two.")
    return labels


def _sources(root: str, names: Iterable[str]) -> dict[str, str]:
    sources: dict[str, str] = {}
    for name in names:
        for place, line in _lines(root, name):
            spectrogram, _, sound = line.partition(",")
            if not spectrogram.strip() or not sound.strip():
                raise InputError(f"{place} is {line!r}; write '<spectrogram>.npy,<path of its sound>'.")
            if sources.setdefault(_stem(spectrogram.strip()), sound.strip()) != sound.strip():
                raise InputError(f"{place} gives {spectrogram!r} another sound than before; leave one line of the two.")
    return sources


def _lines(root: str, name: str) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of each line that is not empty."""
    uri = storage.join(root, name)
    try:
        lines = storage.read(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{uri} is no UTF-8 text; correct it.") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{uri} line {number}", line.strip()


def _list_part(listing: Listing, paths: PathResolver, part: _Part, names: Sequence[str], dataset: str) -> None:
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_file[_file(name)].append(name)
    seen: dict[str, str] = {}
    for name in (name for name in names if name.lower().endswith(VIDEO_SUFFIXES)):
        file = _file(name)
        row = _row(part, name, by_file, dataset) if file in part.labels else None
        reason = paths.fault(f"{dataset}/{name}")
        if reason is None and file in seen:
            reason = f"a second copy of {seen[file]}"
        elif reason is None and row is None:
            known = file in part.labels
            reason = "nothing says which of its two senses is fake" if known else f"not in {part.folder}{LABEL_NAME}"
        if reason is None and row is not None:
            seen[file] = name
            listing.rows.append(row)
        else:
            listing.unfit.append((name, str(reason)))
    listing.unfit.extend(
        (f"{part.folder}{file}", f"{LABEL_NAME} lists it, but there is no such video")
        for file in sorted(part.labels.keys() - by_file.keys())
    )


def _row(part: _Part, name: str, by_file: Mapping[str, Sequence[str]], dataset: str) -> Row | None:
    """The row of a video that has a label, or None if it is a fake of unknown category."""
    file = _file(name)
    stem = _stem(file)
    source = part.sources.get(stem, "").replace("\\", "/")
    category = _category(part.labels[file], file, source)
    if category is None:
        return None
    swan = swan_df.parse(stem)
    method, targets = fakeavceleb.read_name(category, file)
    sounds = by_file.get(_file(source), ()) if source else ()
    folders = [*source.split("/")[:-1], *name.split("/")[:-1]]
    identity = next((folder for folder in folders if _IDENTITY.fullmatch(folder)), leading_token(file))
    return clip_row(
        clip_id=f"{dataset}/{name}",
        video_path=f"{dataset}/{name}",
        audio_path=f"{dataset}/{sounds[0]}" if len(sounds) == 1 and sounds[0] != name else None,
        category=category,
        dataset=dataset,
        subject=swan.subject if swan else identity,
        target=swan.target if swan else "+".join(targets) or None,
        method=method,
        gender=swan.gender if swan else None,
        split=part.split,
    )


def _category(label: str, file: str, source: str) -> str | None:
    if label == _REAL:
        return "A"
    folders = {CATEGORY_FOLDERS[folder] for folder in source.split("/") if folder in CATEGORY_FOLDERS}
    named = (folders or fakeavceleb.categories_of(file)) - {"A"}
    if not named and _swapped_and_converted(file, source):
        return "D"
    return named.pop() if len(named) == 1 else None


def _swapped_and_converted(file: str, source: str) -> bool:
    """Whether a video of SWAN-DF has a converted voice of SWAN-DF, of the same recording and target, for its sound."""
    video, voice = swan_df.parse(_stem(file)), swan_df.parse(_stem(_file(source)))
    if video is None or voice is None or video.target is None:
        return False
    return video.fields != voice.fields and (video.recording, video.target) == (voice.recording, voice.target)


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(file: str) -> str:
    return file.rpartition(".")[0]
