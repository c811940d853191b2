"""FakeAVCeleb: the real listing on empty files, and every spelling of the data set that is about."""

import gzip
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep import storage
from data_prep.fakeavceleb import fakeavceleb_manifest
from data_prep.manifest import Listing, targets_of, write_manifest
from data_prep.storage import InputError
from tests.s3 import s3_bucket

REAL = "RealVideo-RealAudio/Asian (South)/men/id00032/00028.mp4"
CLONED = "RealVideo-FakeAudio/Asian (South)/men/id00032/00028_fake.mp4"
SWAPPED = "FakeVideo-RealAudio/Asian (South)/men/id00032/00028_id00171_PWU6n0qrv4c.mp4"
BOTH = "FakeVideo-FakeAudio/Asian (South)/men/id00032/00028_id00171_PWU6n0qrv4c_id05251_wavtolip.mp4"
CLIPS = (REAL, CLONED, SWAPPED, BOTH)
HEADER = "source,target1,target2,method,category,type,race,gender,path,"


def touch(root: Path, names: Iterable[str]) -> str:
    names = list(names)
    for folder in {name.rpartition("/")[0] for name in names}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).touch()
    return str(root)


def column(listing: Listing, name: str) -> dict[str, Any]:
    """File name -> value of a column."""
    return {row["video_path"].rpartition("/")[2]: row[name] for row in listing.rows}


def record(path: str, *, method: str, target1: str = "-", target2: str = "-", **changes: str) -> str:
    """A line of meta_data.csv on the clip at `path`."""
    kind, race, gender, subject, file = path.split("/")
    category = {REAL: "A", CLONED: "B", SWAPPED: "C", BOTH: "D"}.get(path, "C")
    fields = {"source": subject, "target1": target1, "target2": target2, "method": method, "category": category}
    fields |= {"type": kind, "race": race, "gender": gender, "path": file}
    return ",".join([*(fields | changes).values(), f"FakeAVCeleb/{kind}/{race}/{gender}/{subject}"])


RECORDS = (
    record(REAL, method="real"),
    record(CLONED, method="rtvc"),
    record(SWAPPED, method="fsgan", target1="id00171"),
    record(BOTH, method="fsgan-wav2lip", target1="id00171", target2="id05251"),
)


def write_table(root: Path, lines: Sequence[str], header: str = HEADER) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "meta_data.csv").write_text("\n".join([header, *lines, ""]))


@pytest.fixture(scope="module")
def published(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """The listing of all 21,544 clips of FakeAVCeleb v1.2."""
    with gzip.open(shared / "data" / "fakeavceleb_v1.2_paths.txt.gz", "rt") as file:
        names = file.read().splitlines()
    root = tmp_path_factory.mktemp("published")
    listing = fakeavceleb_manifest(touch(root, names))
    write_manifest(str(tmp_path_factory.mktemp("box") / "m"), listing.rows, listing.roots, {})
    shutil.rmtree(root)
    return listing


def test_every_published_clip_is_listed(published: Listing) -> None:
    assert (published.unfit, published.notes) == ([], [])
    assert Counter(row["category"] for row in published.rows) == {"A": 500, "B": 500, "C": 9709, "D": 10835}
    assert len({row["clip_id"] for row in published.rows}) == 21544
    subjects = {
        category: {row["subject"] for row in published.rows if row["category"] == category} for category in "AD"
    }
    assert len(subjects["A"]) == 500
    assert subjects["A"] - subjects["D"] == {"id04789"}
    people = {row["subject"]: (row["race"], row["gender"]) for row in published.rows}
    assert set(Counter(people.values()).values()) == {50}
    assert len(set(people.values())) == 10
    assert len({row["race"] for row in published.rows}) == 5


def test_every_published_target_is_a_subject(published: Listing) -> None:
    named = Counter((row["category"], len(targets_of(row))) for row in published.rows)
    expected = {("A", 0): 500, ("B", 0): 500, ("C", 0): 351, ("C", 1): 9358, ("D", 1): 5519, ("D", 2): 5316}
    assert named == expected
    subjects = {row["subject"] for row in published.rows}
    assert {target for row in published.rows for target in targets_of(row)} <= subjects


def test_published_methods_follow_the_names(published: Listing) -> None:
    # Counted in the listing with grep, by the words in the names; not by the expressions under test.
    def names(category: str, *words: str, without: Sequence[str] = ()) -> int:
        files = [row["video_path"].rpartition("/")[2] for row in published.rows if row["category"] == category]
        return sum(all(w in name for w in words) and not any(w in name for w in without) for name in files)

    methods = Counter((row["category"], row["method"]) for row in published.rows)
    assert methods["C", "wav2lip"] == names("C", "_wavtolip.mp4")
    assert methods["C", "faceswap"] == names("C", "_faceswap.mp4")
    assert methods["C", None] == names("C", without=["_id"]) == 351
    assert methods["D", "faceswap-wav2lip"] == names("D", "_faceswap_id")
    assert methods["D", "wav2lip"] + methods["D", "fsgan-wav2lip"] == names("D", without=["_faceswap_id"])
    assert methods["D", "wav2lip"] == 5519
    assert {method for category, method in methods if category in "AB"} == {"real", "rtvc"}


@pytest.mark.parametrize(
    ("name", "method", "target"),
    [
        ("RealVideo-RealAudio/{}/1.mp4", "real", None),
        ("RealVideo-FakeAudio/{}/00021.mp4", "rtvc", None),
        ("FakeVideo-RealAudio/{}/00052_id04774_wavtolip.mp4", "wav2lip", "id04774"),
        ("FakeVideo-RealAudio/{}/00052_id04774__V9xAwwG9-U.mp4", "fsgan", "id04774"),
        ("FakeVideo-RealAudio/{}/00052_id04774_id012345678.mp4", "fsgan", "id04774"),
        ("FakeVideo-RealAudio/{}/00052_id04774_a_wavtolip2.mp4", "fsgan", "id04774"),
        ("FakeVideo-RealAudio/{}/00052_id04774_PWU6n0qrv4c_faceswap.mp4", "faceswap", "id04774"),
        ("FakeVideo-RealAudio/{}/00113_0_1.mp4", None, None),
        ("FakeVideo-FakeAudio/{}/1_2_id02493_wavtolip.mp4", "wav2lip", "id02493"),
        ("FakeVideo-FakeAudio/{}/1_id00171_id05251_id3_id05252_wavtolip.mp4", "fsgan-wav2lip", "id00171+id05252"),
        ("FakeVideo-FakeAudio/{}/1_id00171_1_Egh-mW9y9_id05252_wavtolip.mp4", "fsgan-wav2lip", "id00171+id05252"),
        (
            "FakeVideo-FakeAudio/{}/1_id00171_PWU6n0qrv4c_faceswap_id03965_wavtolip.mp4",
            "faceswap-wav2lip",
            "id00171+id03965",
        ),
    ],
)
def test_names_tell_method_and_targets(name: str, method: str | None, target: str | None, tmp_path: Path) -> None:
    path = name.format("African/women/id00220")
    listing = fakeavceleb_manifest(touch(tmp_path, [path]))
    (row,) = listing.rows
    assert (row["method"], row["target"]) == (method, target)
    kind, *_, file = path.split("/")
    assert row["clip_id"] == f"FakeAVCeleb/{kind}/id00220/{file}"
    assert row["video_path"] == f"FakeAVCeleb/{path}"
    assert (row["subject"], row["race"], row["gender"]) == ("id00220", "African", "women")


@pytest.mark.parametrize("prefix", ["", "FakeAVCeleb/", "FakeAVCeleb_v1.2/FakeAVCeleb/"])
@pytest.mark.parametrize("race", ["Asian (South)", "Asian_South", "asian-south"])
def test_root_folders_and_races_are_read_in_every_spelling(prefix: str, race: str, tmp_path: Path) -> None:
    paths = [f"{prefix}{path.replace('Asian (South)', race)}" for path in CLIPS]
    write_table(tmp_path / prefix, RECORDS)
    listing = fakeavceleb_manifest(touch(tmp_path, paths), dataset="mine")
    assert (listing.unfit, listing.notes) == ([], [])
    assert {row["race"] for row in listing.rows} == {"Asian (South)"}
    assert {row["video_path"] for row in listing.rows} == {f"mine/{path}" for path in paths}
    short = {path.replace("/Asian (South)/men", "") for path in CLIPS}
    assert {row["clip_id"] for row in listing.rows} == {f"mine/{path}" for path in short}
    write_manifest(str(tmp_path / "m"), listing.rows, listing.roots, {})


def test_what_is_no_clip_is_unfit(tmp_path: Path) -> None:
    place = "FakeVideo-RealAudio/African/men/id00076"
    unfit = {
        "download.sh": "not at <type>/<race>/<men|women>/<idNNNNN>/<file>",
        "RealVideo-RealAudio/men/id00076/00109.mp4": "not at <type>",
        "RealVideo-RealAudio/African/boys/id00076/00109.mp4": "not at <type>",
        "RealVideo-RealAudio/African/men/76/00109.mp4": "not at <type>",
        f"{place}/00109_id00166_wavtolip.avi": "no file name of a clip of FakeVideo-RealAudio",
        f"{place}/00109_id166_wavtolip.mp4": "no file name of a clip",
        f"{place}/00109_id00166_short.mp4": "no file name of a clip",
        f"{place}/00109_id00166_PWU6n0qrv4c_id00167_wavtolip.mp4": "no file name of a clip",
        f"again/{REAL}": f"a second copy of {REAL}",
    }
    listing = fakeavceleb_manifest(touch(tmp_path, [REAL, *unfit]))
    assert [row["video_path"] for row in listing.rows] == [f"FakeAVCeleb/{REAL}"]
    reasons = dict(listing.unfit)
    assert reasons.keys() == unfit.keys()
    assert all(expected in reasons[path] for path, expected in unfit.items())


def test_links_out_of_the_root_are_unfit(tmp_path: Path) -> None:
    root = Path(touch(tmp_path / "root", [REAL]))
    (tmp_path / "elsewhere.mp4").touch()
    (root / CLONED).parent.mkdir(parents=True)
    (root / CLONED).symlink_to(tmp_path / "elsewhere.mp4")
    ((path, reason),) = fakeavceleb_manifest(str(root)).unfit
    assert path == CLONED
    assert "leaves its root" in reason


def test_a_table_fills_what_names_leave_open(tmp_path: Path) -> None:
    place = "FakeVideo-RealAudio/African/men/id00076"
    silent = {
        name: f"{place}/{name}" for name in ("00109_0.mp4", "00109_1.mp4", "00109_2.mp4", "00109_3.mp4", "00109_4.mp4")
    }
    lines = [
        record(silent["00109_0.mp4"], method="faceswap", target1="id00166"),
        record(silent["00109_1.mp4"], method="faceswap", target1="id00166"),
        record(silent["00109_1.mp4"], method="fsgan", target1="id00167"),
        record(silent["00109_2.mp4"], method="rtvc"),
        record(silent["00109_3.mp4"], method="faceswap", target1="nobody"),
    ]
    write_table(tmp_path, lines)
    listing = fakeavceleb_manifest(touch(tmp_path, silent.values()))
    methods, targets = column(listing, "method"), column(listing, "target")
    assert methods == dict(zip(silent, ["faceswap", None, None, "faceswap", None], strict=True))
    # Of two opinions on a target both are kept apart from; one that is no identity says nothing.
    assert targets == dict(zip(silent, ["id00166", "id00166+id00167", None, None, None], strict=True))
    assert listing.unfit == []
    assert listing.notes == [
        (silent["00109_1.mp4"], "meta_data.csv gives it method 'faceswap' and 'fsgan', its name none"),
        (silent["00109_4.mp4"], "meta_data.csv does not list it"),
    ]


def test_a_table_that_contradicts_names_is_told_and_the_name_holds(tmp_path: Path) -> None:
    again = record(BOTH, method="faceswap-wav2lip", target1="id00171", target2="id05251")
    other = record(SWAPPED, method="fsgan", target1="id00172")
    write_table(tmp_path, [*RECORDS[:2], other, RECORDS[3], again])
    listing = fakeavceleb_manifest(touch(tmp_path, CLIPS))
    assert len(listing.rows) == 4
    assert listing.unfit == []
    assert dict(listing.notes) == {
        BOTH: "meta_data.csv gives it method 'faceswap-wav2lip' and 'fsgan-wav2lip', its name 'fsgan-wav2lip'",
        SWAPPED: "meta_data.csv gives it target 'id00172', its name 'id00171'",
    }
    assert column(listing, "method")[Path(BOTH).name] == "fsgan-wav2lip"
    assert column(listing, "target")[Path(SWAPPED).name] == "id00171"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"category": "D"}, "meta_data.csv gives it category 'D', but it lies below 'C'"),
        (
            {"type": "RealVideo-RealAudio"},
            "gives it type 'RealVideo-RealAudio', but it lies below 'FakeVideo-RealAudio'",
        ),
        ({"source": "id00033"}, "gives it source 'id00033', but it lies below 'id00032'"),
    ],
)
def test_a_clip_whose_label_or_subject_is_in_doubt_is_unfit(
    changes: dict[str, str], reason: str, tmp_path: Path
) -> None:
    write_table(tmp_path, [*RECORDS[:2], record(SWAPPED, method="fsgan", target1="id00171", **changes), RECORDS[3]])
    listing = fakeavceleb_manifest(touch(tmp_path, CLIPS))
    assert len(listing.rows) == 3
    ((path, told),) = listing.unfit
    assert path == SWAPPED
    assert reason in told


def test_lines_without_a_file_are_unfit(tmp_path: Path) -> None:
    strange = "id1,-,-,real,A,X,Y,Z,a.mp4,FakeAVCeleb/X/Y"
    misnamed = REAL.replace("00028", "my clip")
    write_table(tmp_path, [*RECORDS, strange, record(misnamed, method="real")])
    listing = fakeavceleb_manifest(touch(tmp_path, [*CLIPS[:3], misnamed]))
    assert len(listing.rows) == 3
    assert listing.notes == []
    reason = "meta_data.csv lists it, but there is no such file"
    assert listing.unfit == [
        (misnamed, "no file name of a clip of RealVideo-RealAudio"),
        ("FakeAVCeleb/X/Y/a.mp4", reason),
        (f"FakeVideo-FakeAudio/id00032/{Path(BOTH).name}", reason),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"source,target1\n", r"meta_data\.csv has no column 'target2'; put FakeAVCeleb's own file there"),
        (HEADER.encode() + b"\n\xff\n", r"meta_data\.csv is no UTF-8 text"),
        (HEADER.encode() + b'\n"id1,-\n', r"meta_data\.csv line 1 is no csv"),
    ],
)
def test_a_table_that_is_none_is_refused(text: bytes, sentence: str, tmp_path: Path) -> None:
    touch(tmp_path, CLIPS)
    (tmp_path / "meta_data.csv").write_bytes(text)
    with pytest.raises(InputError, match=sentence):
        fakeavceleb_manifest(str(tmp_path))


@pytest.mark.parametrize(("first", "last"), [("", None), ("", "Unnamed: 9"), (",", "Unnamed: 9"), (",", None)], ids=str)
def test_a_table_may_have_been_through_pandas_or_lack_its_last_column(
    first: str, last: str | None, tmp_path: Path
) -> None:
    """first: what stands before, an index; last: name of the tenth column, None if it was dropped."""
    header = first + (HEADER + last if last else HEADER.rstrip(","))
    index = "0," if first else ""
    lines = [index + (line if last else line.rpartition(",")[0]) for line in RECORDS]
    write_table(tmp_path, [*lines[:2], lines[2].replace("fsgan", "faceswap"), lines[3]], header)
    listing = fakeavceleb_manifest(touch(tmp_path, CLIPS))
    assert (len(listing.rows), listing.unfit) == (4, [])
    assert listing.notes == [(SWAPPED, "meta_data.csv gives it method 'faceswap', its name 'fsgan'")]


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    loud = SWAPPED.replace(".mp4", ".MP4")
    write_table(tmp_path, RECORDS[:3])
    listing = fakeavceleb_manifest(touch(tmp_path, [REAL, CLONED, loud, f"again/{SWAPPED}"]))
    assert {row["video_path"] for row in listing.rows} == {f"FakeAVCeleb/{path}" for path in (REAL, CLONED, loud)}
    assert listing.unfit == [(f"again/{SWAPPED}", f"a second copy of {loud}")]
    assert listing.notes == []
    assert column(listing, "target")[Path(loud).name] == "id00171"


def test_short_lines_of_a_table_end_in_no_traceback(tmp_path: Path) -> None:
    write_table(tmp_path, [*RECORDS, "id00032"])
    assert len(fakeavceleb_manifest(touch(tmp_path, CLIPS)).rows) == 4


def test_a_folder_without_clips_and_an_odd_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["readme.txt"])
    with pytest.raises(InputError, match=r"holds no clip of FakeAVCeleb: none of its 1 files .* give the folder that"):
        fakeavceleb_manifest(str(tmp_path))
    with pytest.raises(
        InputError, match="nowhere holds no clip: it does not exist, is no folder, or is empty; give the folder"
    ):
        fakeavceleb_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="root name 'a/b' cannot begin a path"):
        fakeavceleb_manifest(str(tmp_path), dataset="a/b")


def test_a_copy_in_s3_lists_the_same_clips(tmp_path: Path) -> None:
    write_table(tmp_path, RECORDS)
    local = fakeavceleb_manifest(touch(tmp_path, CLIPS))
    with s3_bucket() as bucket:
        for path in (*CLIPS, "meta_data.csv"):
            storage.write(f"{bucket}/data/{path}", (tmp_path / path).read_bytes())
        remote = fakeavceleb_manifest(f"{bucket}/data")
    assert remote.rows == local.rows
    assert remote.roots == {"FakeAVCeleb": f"{bucket}/data"}
    assert (remote.unfit, remote.notes) == ([], [])
