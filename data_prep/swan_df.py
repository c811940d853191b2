"""SWAN-DF (arXiv 2311.17655): fakes of people recorded in SWAN, whose recordings are the real clips.

SWAN-DF holds swapped faces and converted voices in separate files, SWAN the recordings they were made from:

    SWAN-DF/256x256/00001/4_00001_m_01_04_p_2-model_256d-train_masknocolor-blending_m2s1-to-00006.mp4
    SWAN-DF/wav/00001/4_00001_m_01_04_p_2-freevc-pretrained-tuned70k-to-00006.wav
    SWAN-Idiap/IDIAP/session_01/iPhone/00001/4_00001_m_01_04_p_2.mp4

The fields of a name are set apart by dashes: the recording, how the fake was made, `to`, and the target. A recording is
`site_subject_gender_session_number_device_modality`, as Idiap's own reader of SWAN (bob.db.swan) has it: site 4 is
Idiap, modality 2 a spoken recording (1 face, 3 eye, 4 finger). The names of fakes are those that public readers of the
data set parse and quote; neither data set was at hand when this was written. Everything on names stands in `parse`.

No source says whether a swapped video carries the recorded sound or a converted one. Its own sound is therefore never
used: it gets the converted voice of the same recording and target (category D), or, if there is none, the sound of
the recording itself, which is real for certain (category C). A recording under a converted voice is category B.
"""

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data_prep import storage
from data_prep.manifest import VIDEO_SUFFIXES, Listing, PathResolver, Row, check_roots, clip_row, files_below
from data_prep.storage import InputError

SWAN = "SWAN"
"""Name of the root of the recordings."""
RESOLUTIONS = ("160x160", "256x256", "320x320")
VOICES = "wav"

_RECORDING = re.compile(
    r"(?P<site>\d)_(?P<subject>\d{5})_(?P<gender>[mf])_(?P<session>\d{2})_\d{2}_[pt]_(?P<modality>\d)"
)
_TARGET = re.compile(r"\d{5}")
_GENDERS = {"m": "men", "f": "women"}
_IDIAP, _SESSION, _SPOKEN = "4", "01", "2"
_KINDS = ("model_", "train_", "blending_", "blend_")


@dataclass(frozen=True, slots=True)
class Name:
    """What a file name of SWAN or SWAN-DF tells."""

    recording: str
    subject: str
    gender: str
    session: str
    site: str
    spoken: bool
    target: str | None
    """The identity borrowed; None for a recording."""
    fields: tuple[str, ...]
    """How a fake was made."""


@dataclass(frozen=True, slots=True)
class _File:
    path: str  # root name/relative path
    folder: str  # resolution, or VOICES
    name: Name

    @property
    def stem(self) -> str:
        return self.path.rpartition("/")[2].rpartition(".")[0]

    @property
    def method(self) -> str:
        if self.folder == VOICES:
            return "-".join(self.name.fields)
        plain = [_without_kind(field) for field in self.name.fields]
        size = self.folder.partition("x")[0]
        return "-".join(["deepfacelab", size, *(field for field in plain if field != f"{size}d")])


_Key = tuple[str, str]  # recording, target


def parse(stem: str) -> Name | None:
    """Reads a file name without its suffix; None if it is neither of SWAN nor of SWAN-DF."""
    recording, *fields = stem.split("-")
    match = _RECORDING.fullmatch(recording)
    if match is None:
        return None
    target = None
    if fields:
        target = fields.pop()
        if fields and fields[-1] == "to":
            fields.pop()
        if not fields or not all(fields) or not _TARGET.fullmatch(target):
            return None
    return Name(
        recording=recording,
        subject=match["subject"],
        gender=_GENDERS[match["gender"]],
        session=match["session"],
        site=match["site"],
        spoken=match["modality"] == _SPOKEN,
        target=target,
        fields=tuple(fields),
    )


def swan_df_manifest(root: str, swan_root: str, *, dataset: str = "SWAN-DF") -> Listing:
    """Lists the fakes of SWAN-DF at `root` and the recordings of SWAN at `swan_root`, both local or s3://.

    - A: SWAN's spoken recordings of session 01 at Idiap, the session of the fakes, and whatever else a fake was made
      from.
    - D: every swapped video with one converted voice of the same recording and target as its audio_path. Where there
      are several voices they are dealt out in turn, from a start that depends on recording and target alone.
    - C: every swapped video without such a voice, with the recording's sound as its audio_path.
    - B: every converted voice as the audio_path of the recording it was made from.

    Subject is the person recorded, target the person imitated. method: `deepfacelab-<size>-<training>-<blending>`,
    the voice's fields, or both joined by `+`; `real` for recordings. All rows have the data set `dataset`, as a person
    has one number in both; `dataset` and SWAN are the names of the roots. What fits nothing is unfit.

    Raises InputError if a folder holds none of its files, or `dataset` cannot be a root's name.
    """
    roots = {dataset: storage.absolute(root), SWAN: storage.absolute(swan_root)}
    check_roots(roots)
    if dataset == SWAN:
        raise InputError(f"the data set is named {SWAN!r}, which names the recordings; give another --dataset.")
    listing = Listing(rows=[], unfit=[], roots=roots)
    paths = PathResolver(roots)
    fakes = _fakes(listing, paths, dataset)
    if not fakes:
        folders = ", ".join([*RESOLUTIONS, VOICES])
        raise InputError(
            f"{root} holds no fake of SWAN-DF: none of its {len(listing.unfit)} files lies at "
            f"<folder>/<subject>/<file> with a folder {folders}; give the folder that holds these."
        )
    recordings = _recordings(listing, paths, {fake.name.recording for fake in fakes})
    if not recordings:
        raise InputError(
            f"{swan_root} holds no recording of SWAN's session 01; give the folder SWAN-Idiap or session_01."
        )
    listing.rows.extend(_real_row(file, dataset) for file in recordings.values())
    _join(listing, fakes, recordings, dataset)
    return listing


def _fakes(listing: Listing, paths: PathResolver, dataset: str) -> list[_File]:
    found: list[_File] = []
    seen: dict[tuple[str, str], str] = {}
    for path in files_below(listing.roots[dataset]):
        parts = path.split("/")
        name = parse(parts[-1].rpartition(".")[0])
        reason = _fault_of_fake(parts, name) or paths.fault(f"{dataset}/{path}")
        if name is None or reason:
            listing.unfit.append((f"{dataset}/{path}", str(reason)))
            continue
        file = _File(f"{dataset}/{path}", parts[-3], name)
        if (file.folder, file.stem) in seen:
            listing.unfit.append((file.path, f"a second copy of {seen[file.folder, file.stem]}"))
        else:
            seen[file.folder, file.stem] = file.path
            found.append(file)
    return found


def _fault_of_fake(parts: list[str], name: Name | None) -> str | None:
    if len(parts) < 3 or parts[-3] not in (*RESOLUTIONS, VOICES):
        return f"not at <folder>/<subject>/<file> with a folder {', '.join([*RESOLUTIONS, VOICES])}"
    suffixes = (".wav",) if parts[-3] == VOICES else VIDEO_SUFFIXES
    if not parts[-1].lower().endswith(suffixes):
        return f"neither a video nor a voice by its name ({', '.join(suffixes)})"
    if name is None or name.target is None:
        return "its name is not <recording>-<how it was made>-to-<target>"
    if name.subject != parts[-2]:
        return f"its name says subject {name.subject}, but it lies below {parts[-2]!r}"
    sizes = [field for field in map(_without_kind, name.fields) if re.fullmatch(r"\d+d", field)]
    if parts[-3] != VOICES and sizes not in ([], [parts[-3].partition("x")[0] + "d"]):
        return f"its name says {sizes[0]}, but it lies below {parts[-3]!r}"
    return None


def _without_kind(field: str) -> str:
    """`m2s1` of `blending_m2s1`."""
    return next((field.removeprefix(kind) for kind in _KINDS if field.startswith(kind)), field)


def _recordings(listing: Listing, paths: PathResolver, needed: set[str]) -> dict[str, _File]:
    """Recording -> its file. needed: recordings that fakes were made from."""
    found: dict[str, _File] = {}
    for path in files_below(listing.roots[SWAN]):
        file = path.rpartition("/")[2]
        name = parse(file.rpartition(".")[0])
        reason = _fault_of_recording(file, name, needed) or paths.fault(f"{SWAN}/{path}")
        if name is None or reason:
            listing.unfit.append((f"{SWAN}/{path}", str(reason)))
        elif name.recording in found:
            listing.unfit.append((f"{SWAN}/{path}", f"a second copy of {found[name.recording].path}"))
        else:
            found[name.recording] = _File(f"{SWAN}/{path}", "", name)
    return found


def _fault_of_recording(file: str, name: Name | None, needed: set[str]) -> str | None:
    if not file.lower().endswith(VIDEO_SUFFIXES):
        return f"no video by its name ({', '.join(VIDEO_SUFFIXES)})"
    if name is None or name.target is not None:
        return "its name is not <site>_<subject>_<m|f>_<session>_<number>_<p|t>_<modality>"
    if name.recording in needed or (name.site, name.session, name.spoken) == (_IDIAP, _SESSION, True):
        return None
    return "no spoken recording of Idiap's session 01, and no fake was made from it"


def _join(listing: Listing, fakes: Iterable[_File], recordings: Mapping[str, _File], dataset: str) -> None:
    """Adds the rows of the fakes, and what cannot be joined to the unfit."""
    videos: dict[_Key, list[_File]] = defaultdict(list)
    voices: dict[_Key, list[_File]] = defaultdict(list)
    for fake in fakes:
        groups = voices if fake.folder == VOICES else videos
        groups[fake.name.recording, str(fake.name.target)].append(fake)
    heard: set[str] = set()
    for key, group in videos.items():
        for position, video in enumerate(group):
            voice = _dealt(key, voices.get(key, []), position)
            real = recordings.get(video.name.recording)
            if voice is not None:
                heard.add(voice.path)
                listing.rows.append(_swapped_row(video, voice.path, voice.method, dataset))
            elif real is not None:
                listing.rows.append(_swapped_row(video, real.path, None, dataset))
            else:
                listing.unfit.append((video.path, "neither its voice nor its recording in SWAN is there"))
    for voice in itertools.chain.from_iterable(voices.values()):
        real = recordings.get(voice.name.recording)
        if real is not None:
            listing.rows.append(_spoken_over_row(real, voice, dataset))
        elif voice.path not in heard:
            listing.unfit.append((voice.path, "neither a video that lacks a voice nor its recording in SWAN is there"))


def _dealt(key: _Key, voices: list[_File], position: int) -> _File | None:
    if not voices:
        return None
    start = int.from_bytes(hashlib.sha256("\0".join(key).encode()).digest()[:4], "big")
    return voices[(start + position) % len(voices)]


def _real_row(file: _File, dataset: str) -> Row:
    return clip_row(
        clip_id=f"{dataset}/{SWAN}/{file.name.subject}/{file.name.recording}",
        video_path=file.path,
        category="A",
        dataset=dataset,
        subject=file.name.subject,
        gender=file.name.gender,
        method="real",
    )


def _swapped_row(video: _File, sound: str, voice: str | None, dataset: str) -> Row:
    """A swapped face; `voice`: method of the converted voice at `sound`, None if `sound` is the recording's."""
    clip = f"{dataset}/{video.folder}/{video.name.subject}/{video.stem}"
    return clip_row(
        clip_id=clip if voice is None else f"{clip}+{voice}",
        video_path=video.path,
        audio_path=sound,
        category="C" if voice is None else "D",
        dataset=dataset,
        subject=video.name.subject,
        target=video.name.target,
        gender=video.name.gender,
        method=video.method if voice is None else f"{video.method}+{voice}",
    )


def _spoken_over_row(real: _File, voice: _File, dataset: str) -> Row:
    return clip_row(
        clip_id=f"{dataset}/{VOICES}/{voice.name.subject}/{voice.stem}",
        video_path=real.path,
        audio_path=voice.path,
        category="B",
        dataset=dataset,
        subject=voice.name.subject,
        target=voice.name.target,
        gender=voice.name.gender,
        method=voice.method,
    )
