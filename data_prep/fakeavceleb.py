"""FakeAVCeleb v1.2 (arXiv 2108.05080): its clips, subjects, targets and methods, read from its paths.

A path ends in `<type>/<race>/<men|women>/<idNNNNN>/<file>.mp4`, whatever folders stand before that: copies differ in
whether the root folder is missing, there, or there twice. `take` below is a number, in some names followed by others,
`video` the 11 characters of a YouTube video's name; the identities are those of the target:

| category | file | method |
|---|---|---|
| A | `take` | real |
| B | `take_fake`, once `take` | rtvc |
| C | `take_identity_wavtolip` | wav2lip |
| C | `take_identity_video`, `take_identity_video_faceswap` | fsgan, faceswap |
| C | `take` | not said: what meta_data.csv says, if it is there |
| D | `take_identity_wavtolip` | wav2lip |
| D | `take_identity_video_identity_wavtolip`: face, then voice | fsgan-wav2lip |
| D | `take_identity_video_faceswap_identity_wavtolip` | faceswap-wav2lip |

meta_data.csv is checked against the names and fills what they leave open. It names about twenty files twice, with two
methods; the file name decides.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data_prep import storage
from data_prep.manifest import CATEGORY_FOLDERS, Listing, PathResolver, check_roots, clip_row, files_below
from data_prep.storage import InputError

TABLE_NAME = "meta_data.csv"
METHODS = {
    "A": ("real",),
    "B": ("rtvc",),
    "C": ("faceswap", "fsgan", "wav2lip"),
    "D": ("faceswap-wav2lip", "fsgan-wav2lip", "wav2lip"),
}
RACES = ("African", "Asian (East)", "Asian (South)", "Caucasian (American)", "Caucasian (European)")
GENDERS = ("men", "women")

_IDENTITY = re.compile(r"id\d{5}")
_TAKE = r"\d+(?:_\d+)*"
_VIDEO = r"[A-Za-z0-9_-]{11}"
_SUFFIX = r"\.(?i:mp4)"
_NAMES = {
    "A": re.compile(rf"{_TAKE}{_SUFFIX}"),
    "B": re.compile(rf"{_TAKE}(?:_fake)?{_SUFFIX}"),
    "C": re.compile(rf"{_TAKE}(?:_(?P<face>id\d{{5}})_(?:(?P<lips>wavtolip)|{_VIDEO}(?P<swap>_faceswap)?))?{_SUFFIX}"),
    "D": re.compile(
        rf"{_TAKE}(?:_(?P<face>id\d{{5}})_{_VIDEO}(?P<swap>_faceswap)?)?_(?P<voice>id\d{{5}})_(?P<lips>wavtolip){_SUFFIX}"
    ),
}
"""Category -> its file names. Identities have five digits and video names 11 characters, so there is one reading."""
_COLUMNS = ("source", "target1", "target2", "method", "category", "type", "race", "gender", "path")
# The tenth and last column, the directory, has no name; pandas gives it one. Copies may lack it.
_DIRECTORY_NAMES = ("", "Unnamed: 9")
_DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class _Place:
    """The parts of a clip's path."""

    type: str
    race: str
    gender: str
    subject: str
    file: str

    @property
    def category(self) -> str:
        return CATEGORY_FOLDERS[self.type]

    @property
    def clip(self) -> str:
        """Names the clip in every copy of the data set; file names alone repeat."""
        stem, dot, suffix = self.file.rpartition(".")
        return f"{self.type}/{self.subject}/{stem}{dot}{suffix.lower()}"


Record = dict[str, str]
"""A line of meta_data.csv: column -> field."""


def fakeavceleb_manifest(root: str, *, dataset: str = "FakeAVCeleb") -> Listing:
    """Lists the clips of the copy of FakeAVCeleb at `root`, local or s3://, in any of its spellings.

    The clip_id is `dataset/<type>/<subject>/<file>`, `target` the identities of the file name, race and gender those
    of the folders (race in one of RACES, whichever way the folder spells it). Unfit are: files that are no clip by
    their path; second copies of a clip; clips whose type, category or source meta_data.csv states otherwise; and
    lines of meta_data.csv without a file. Clips on which meta_data.csv is silent, or of another opinion in method or
    target, are noted.

    Raises InputError if no clip is there, meta_data.csv cannot be read, or `dataset` cannot be a root's name.
    """
    roots = {dataset: storage.absolute(root)}
    check_roots(roots)
    names = files_below(roots[dataset])
    tables = [name for name in names if name.rpartition("/")[2] == TABLE_NAME]
    records = _read_tables(roots[dataset], tables)
    paths = PathResolver(roots)
    listing = Listing(rows=[], unfit=[], roots=roots)
    seen: dict[str, str] = {}
    places = {name: _place(name) for name in set(names) - set(tables)}
    for name in sorted(places, key=lambda name: (name.count("/"), name)):
        place = places[name]
        reason = _unfit_reason(name, place) or paths.fault(f"{dataset}/{name}")
        if place is None or reason:
            listing.unfit.append((name, str(reason)))
        elif place.clip in seen:
            listing.unfit.append((name, f"a second copy of {seen[place.clip]}"))
        else:
            seen[place.clip] = name
            _add(listing, name, place, dataset, records.get(place.clip, []) if tables else None)
    missing = records.keys() - {place.clip for place in places.values() if place}
    listing.unfit.extend((clip, f"{TABLE_NAME} lists it, but there is no such file") for clip in sorted(missing))
    if not listing.rows:
        raise InputError(
            f"{root} holds no clip of FakeAVCeleb: none of its {len(names)} files lies at "
            "<type>/<race>/<men|women>/<idNNNNN>/<file>.mp4; give the folder that holds RealVideo-RealAudio."
        )
    return listing


def _place(name: str) -> _Place | None:
    """The last five parts of a path, or None if they are none of this data set's."""
    parts = name.split("/")[-5:]
    if len(parts) < 5 or parts[0] not in CATEGORY_FOLDERS or parts[2] not in GENDERS:
        return None
    return _Place(*parts) if _IDENTITY.fullmatch(parts[3]) else None


def _unfit_reason(name: str, place: _Place | None) -> str | None:
    if place is None:
        return "not at <type>/<race>/<men|women>/<idNNNNN>/<file>"
    if not _NAMES[place.category].fullmatch(place.file):
        return f"no file name of a clip of {place.type}"
    return None


def _add(listing: Listing, name: str, place: _Place, dataset: str, records: Sequence[Record] | None) -> None:
    """Adds the clip at `name`. records: the lines of meta_data.csv on it; None: there is no meta_data.csv."""
    method, targets = read_name(place.category, place.file)
    if records is not None:
        fault = next((fault for record in records if (fault := _contradiction(place, record))), None)
        if fault:
            listing.unfit.append((name, fault))
            return
        listing.notes.extend((name, note) for note in _notes(method, targets, records))
        method = method or _recorded_method(place.category, records)
        targets = targets or _recorded_targets(records)
    listing.rows.append(
        clip_row(
            clip_id=f"{dataset}/{place.clip}",
            video_path=f"{dataset}/{name}",
            category=place.category,
            dataset=dataset,
            subject=place.subject,
            target="+".join(targets) or None,
            method=method,
            race=_race(place.race),
            gender=place.gender,
        )
    )


def categories_of(file: str) -> set[str]:
    """The categories whose file names `file` is one of; none or several may be."""
    return {category for category, names in _NAMES.items() if names.fullmatch(file)}


def read_name(category: str, file: str) -> tuple[str | None, tuple[str, ...]]:
    """(method, targets) that the file name of a clip of `category` tells: None and () where it does not."""
    match = _NAMES[category].fullmatch(file)
    if match is None:
        return None, ()
    if category in "AB":
        return METHODS[category][0], ()
    found = match.groupdict()
    swapped = found["face"] is not None and (category == "D" or not found["lips"])
    parts = ["faceswap" if found["swap"] else "fsgan"] if swapped else []
    parts += ["wav2lip"] if found["lips"] else []
    return "-".join(parts) or None, tuple(filter(None, (found["face"], found.get("voice"))))


def _race(folder: str) -> str:
    """The folder's race as RACES spells it: `Asian_South`, `asian-south` and `Asian (South)` are one."""
    words = re.findall(r"[a-z]+", folder.lower())
    return next((race for race in RACES if re.findall(r"[a-z]+", race.lower()) == words), folder)


def _read_tables(root: str, names: Iterable[str]) -> dict[str, list[Record]]:
    """Clip (`_Place.clip`) -> its lines in all copies of meta_data.csv, equal lines once."""
    found: dict[str, list[Record]] = defaultdict(list)
    for name in names:
        uri = storage.join(root, name)
        try:
            reader = csv.DictReader(io.StringIO(storage.read(uri).decode("utf-8-sig"), newline=""), strict=True)
            header = reader.fieldnames or []
            for column in [column for column in _COLUMNS if column not in header]:
                raise InputError(f"{uri} has no column {column!r}; put FakeAVCeleb's own file there, or take it away.")
            directory = header[-1] if header[-1] in _DIRECTORY_NAMES else None
            for record in reader:
                fields = {column: record[column] or "" for column in _COLUMNS}
                fields[_DIRECTORY] = (record[directory] or "") if directory is not None else ""
                clip = _recorded_clip(fields)
                if fields not in found[clip]:
                    found[clip].append(fields)
        except UnicodeDecodeError:
            raise InputError(f"{uri} is no UTF-8 text; put FakeAVCeleb's own file there, or take it away.") from None
        except csv.Error as error:
            raise InputError(f"{uri} line {reader.line_num} is no csv ({error}); correct it.") from None
    return found


def _recorded_clip(record: Record) -> str:
    """The clip that a line is about: by its directory, or else by type and source, which say the same."""
    if not record[_DIRECTORY]:
        return f"{record['type']}/{record['source']}/{record['path']}"
    path = f"{record[_DIRECTORY].rstrip('/')}/{record['path']}"
    place = _place(path)
    return place.clip if place else path


def _contradiction(place: _Place, record: Record) -> str | None:
    """Why a line of meta_data.csv casts doubt on what the clip is and whose it is."""
    folders = {"type": place.type, "category": place.category, "source": place.subject}
    for column, value in folders.items():
        if record[column] != value:
            return f"{TABLE_NAME} gives it {column} {record[column]!r}, but it lies below {value!r}"
    return None


def _notes(method: str | None, targets: tuple[str, ...], records: Sequence[Record]) -> Iterator[str]:
    if not records:
        yield f"{TABLE_NAME} does not list it"
        return
    methods = sorted({record["method"] for record in records})
    if method is not None and methods != [method]:
        yield f"{TABLE_NAME} gives it method {' and '.join(map(repr, methods))}, its name {method!r}"
    if method is None and len(methods) > 1:
        yield f"{TABLE_NAME} gives it method {' and '.join(map(repr, methods))}, its name none"
    others = {_targets(record) for record in records}
    if targets and any(set(named) - set(targets) for named in others):
        shown = " and ".join(repr("+".join(named)) for named in sorted(others))
        yield f"{TABLE_NAME} gives it target {shown}, its name {'+'.join(targets)!r}"


def _recorded_method(category: str, records: Iterable[Record]) -> str | None:
    """The one method that meta_data.csv gives a clip, if it is one of its category."""
    methods = {record["method"] for record in records}
    return methods.pop() if len(methods) == 1 and methods <= {*METHODS[category]} else None


def _recorded_targets(records: Iterable[Record]) -> tuple[str, ...]:
    """All targets that meta_data.csv gives a clip: one too many keeps more apart, one too few would leak."""
    return tuple(dict.fromkeys(target for record in records for target in _targets(record)))


def _targets(record: Record) -> tuple[str, ...]:
    """The targets of a line; a dash stands for none."""
    return tuple(target for target in (record["target1"], record["target2"]) if _IDENTITY.fullmatch(target))
