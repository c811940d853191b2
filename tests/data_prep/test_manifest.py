import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep import boxes, manifest, storage
from data_prep.manifest import (
    MANIFEST_COLUMNS,
    clip_row,
    merge_manifests,
    read_manifest,
    read_manifest_csv,
    targets_of,
    write_manifest,
)
from data_prep.storage import InputError


def make_row(name: str = "one", **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(MANIFEST_COLUMNS)
    row |= {"clip_id": name, "video_path": f"root/{name}.mp4", "label": 1, "category": "C"}
    return row | {"dataset": "set", "subject": "id1"} | changes


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "clips").mkdir()
    return {"root": str(tmp_path / "clips")}


def test_a_manifest_comes_back_in_order_of_clip_id(tmp_path: Path, roots: dict[str, str]) -> None:
    rows = [make_row("b", split="test", fold=3, target="id9"), make_row("a", label=0, category="A")]
    meta = write_manifest(str(tmp_path / "m"), rows, roots, {"command": "folder"})
    back = read_manifest(str(tmp_path / "m"))
    assert back.rows == [rows[1], rows[0]]
    assert back.roots == roots
    assert back.meta == meta
    assert meta.counts == {"rows": 2}
    write_manifest(str(tmp_path / "m"), reversed(rows), roots, {"command": "folder"})
    assert read_manifest(str(tmp_path / "m")).meta.digest == meta.digest


def test_columns_that_an_older_manifest_lacks_are_null(tmp_path: Path, roots: dict[str, str]) -> None:
    uri, anew = str(tmp_path / "m"), str(tmp_path / "anew")
    old = manifest.MANIFEST_SCHEMA.remove(manifest.MANIFEST_SCHEMA.get_field_index("race"))
    old = old.remove(old.get_field_index("gender"))
    data = boxes.table_bytes(pa.Table.from_pylist([make_row(method="swap")], schema=old))
    standing = write_manifest(uri, [make_row(method="swap")], roots, {})
    storage.write(storage.join(uri, manifest.MANIFEST_NAME), data)
    files = {manifest.MANIFEST_NAME: hashlib.sha256(data).hexdigest()}
    boxes.write_meta(uri, replace(standing, files=files))
    listing = merge_manifests([uri])
    assert listing.rows == [make_row(method="swap")]
    write_manifest(anew, listing.rows, listing.roots, {})


def test_digest_leaves_out_split_and_fold_only(tmp_path: Path, roots: dict[str, str]) -> None:
    def digest(name: str, **changes: Any) -> str:
        return write_manifest(str(tmp_path / name), [make_row(**changes)], roots, {}).digest

    plain = digest("plain")
    assert digest("split", split="train", fold=1) == plain
    others = {
        digest("subject", subject="id2"),
        digest("path", video_path="root/other.mp4"),
        digest("target", target="id2"),
    }
    assert len(others | {plain}) == 4


def test_another_manifest_in_the_same_place_is_refused(tmp_path: Path, roots: dict[str, str]) -> None:
    uri = str(tmp_path / "m")
    write_manifest(uri, [make_row()], roots, {})
    with pytest.raises(InputError, match="holds another manifest"):
        write_manifest(uri, [make_row(split="dev")], roots, {})
    assert read_manifest(uri).rows[0]["split"] is None


def test_a_manifest_changed_afterwards_is_refused(tmp_path: Path, roots: dict[str, str]) -> None:
    uri, other = str(tmp_path / "m"), str(tmp_path / "other")
    write_manifest(uri, [make_row()], roots, {})
    write_manifest(other, [make_row(subject="id2")], roots, {})
    name = storage.join(uri, manifest.MANIFEST_NAME)
    storage.write(name, storage.read(storage.join(other, manifest.MANIFEST_NAME)))
    with pytest.raises(InputError, match=r"manifest\.parquet was changed after it was written"):
        read_manifest(uri)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": 0}, "clip 'one' has label 0, which contradicts its category C; labels are 1 for fake"),
        ({"category": "A"}, "clip 'one' has label 1, which contradicts its category A"),
        ({"category": "E"}, "clip 'one' has category 'E'; give one of A, B, C, D"),
        ({"video_path": "root/../secret.mp4"}, r"path 'root/\.\./secret\.mp4' is no plain relative path"),
        ({"video_path": "root//etc/passwd"}, "is no plain relative path"),
        ({"video_path": "root"}, "is no plain relative path"),
        ({"audio_path": "root/a/../../x.wav"}, "is no plain relative path"),
        ({"video_path": "elsewhere/one.mp4"}, "names the root 'elsewhere', known are: root"),
        ({"split": "validation"}, "clip 'one' has split 'validation'; give one of train, dev, test, or none"),
        ({"subject": None}, "clip 'one' has no subject; every clip needs one"),
        ({"subject": ""}, "clip 'one' has subject ''; give a text"),
        ({"subject": 7}, "clip 'one' has subject 7; give a text"),
        ({"subject": "\udcff"}, "give a text in UTF-8"),
        ({"label": "1"}, "clip 'one' has label '1'; give an integer"),
        ({"fold": -1}, "clip 'one' has fold -1; give an integer from 0"),
        ({"target": "id7++id8"}, r"clip 'one' has target 'id7\+\+id8'; give one identity, or several joined by '\+'"),
        ({"target": "id7+"}, "has target 'id7\\+'; give one identity"),
        ({"speaker": "x"}, "clip 'one' has an unknown field 'speaker'; known are clip_id"),
    ],
)
def test_rows_that_no_manifest_may_hold_are_refused(
    tmp_path: Path, roots: dict[str, str], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        write_manifest(str(tmp_path / "m"), [make_row(**changes)], roots, {})
    assert not (tmp_path / "m").exists()


def test_a_repeated_clip_id_a_missing_field_and_no_rows_are_refused(tmp_path: Path, roots: dict[str, str]) -> None:
    uri = str(tmp_path / "m")
    with pytest.raises(InputError, match="clip_id 'one' occurs twice; give every clip its own"):
        write_manifest(uri, [make_row(), make_row("two"), make_row()], roots, {})
    incomplete = make_row()
    del incomplete["method"]
    with pytest.raises(InputError, match="clip 'one' has no field 'method'"):
        write_manifest(uri, [incomplete], roots, {})
    with pytest.raises(InputError, match="has no clip"):
        write_manifest(uri, [], roots, {})
    with pytest.raises(InputError, match="root name 'a/b' cannot begin a path"):
        write_manifest(uri, [make_row()], roots | {"a/b": "x"}, {})


def test_symbolic_links_may_not_lead_out_of_the_root(tmp_path: Path, roots: dict[str, str]) -> None:
    clips = tmp_path / "clips"
    (tmp_path / "outside.mp4").touch()
    (clips / "inside.mp4").touch()
    (clips / "out.mp4").symlink_to(tmp_path / "outside.mp4")
    (clips / "in.mp4").symlink_to(clips / "inside.mp4")
    (clips / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "door").symlink_to(clips, target_is_directory=True)
    for path in ("root/out.mp4", "root/up/outside.mp4"):
        with pytest.raises(InputError, match="leaves its root"):
            manifest.resolve_path(roots, path)
    assert manifest.resolve_path(roots, "root/in.mp4") == str(clips / "in.mp4")
    assert manifest.resolve_path({"root": str(tmp_path / "door")}, "root/in.mp4") == str(tmp_path / "door" / "in.mp4")
    assert manifest.resolve_path({"root": "s3://bucket/data"}, "root/a/b.mp4") == "s3://bucket/data/a/b.mp4"


def test_links_are_looked_at_behind_a_folder_that_was_looked_up_before(tmp_path: Path, roots: dict[str, str]) -> None:
    clips = tmp_path / "clips"
    (tmp_path / "outside.mp4").touch()
    (clips / "id1").mkdir()
    (clips / "id1" / "inside.mp4").touch()
    (clips / "id1" / "out.mp4").symlink_to(tmp_path / "outside.mp4")
    paths = manifest.PathResolver(roots)
    assert paths.resolve("root/id1/inside.mp4") == str(clips / "id1" / "inside.mp4")
    with pytest.raises(InputError, match="leaves its root"):
        paths.resolve("root/id1/out.mp4")
    assert "leaves its root" in str(paths.fault("root/id1/out.mp4"))
    assert paths.fault("root/id1/\udcff.mp4") == "its name is no UTF-8"
    assert paths.fault("root/id1/missing.mp4") is None


def test_targets_of_a_row() -> None:
    assert targets_of(make_row(target="id00171+id05251")) == ("id00171", "id05251")
    assert targets_of(make_row(target="id00171")) == ("id00171",)
    assert targets_of(make_row()) == ()


def test_a_row_has_the_label_of_its_category_and_null_elsewhere() -> None:
    row = clip_row(clip_id="one", video_path="root/one.mp4", category="A", dataset="set", subject="id1", race="x")
    assert row == make_row(label=0, category="A", race="x")
    fakes = [
        clip_row(clip_id="a", video_path="r/a", category=category, dataset="set", subject="s") for category in "BCD"
    ]
    assert [row["label"] for row in fakes] == [1, 1, 1]


PARENT, CHILD = "one", "one#grey"


def child(**changes: Any) -> dict[str, Any]:
    columns = {"video_path": "root/one.mp4", "augmentation": "grey", "parent_clip_id": PARENT, "split": "train"}
    return make_row(CHILD, **columns | changes)


def test_augmented_children_stand_beside_their_parents(
    tmp_path: Path, roots: dict[str, str], name_augmentations: Callable[..., None]
) -> None:
    name_augmentations("grey")
    rows = [make_row(PARENT, split="train"), child(), make_row("two", split="test")]
    write_manifest(str(tmp_path / "m"), rows, roots, {})
    assert read_manifest(str(tmp_path / "m")).rows[1]["parent_clip_id"] == PARENT


@pytest.mark.parametrize(
    ("parent", "changes", "sentence"),
    [
        ({}, {"augmentation": None}, f"'{CHILD}' has parent_clip_id '{PARENT}' but no augmentation; give both"),
        ({}, {"parent_clip_id": None}, f"'{CHILD}' has augmentation 'grey' but no parent_clip_id; give both"),
        ({}, {"augmentation": "sepia"}, f"'{CHILD}' has augmentation 'sepia'; known are grey, blur"),
        ({}, {"parent_clip_id": "three"}, "parent_clip_id 'three', which is not listed; list it"),
        ({}, {"parent_clip_id": CHILD}, f"parent_clip_id '{CHILD}', which is augmented itself; name a recorded"),
        (
            {"split": "test"},
            {"split": "test"},
            f"an augmentation of '{PARENT}', a test clip; split first, augment then",
        ),
        ({"split": "test"}, {}, f"an augmentation of '{PARENT}', a test clip; split first, augment then"),
        ({}, {"split": "dev"}, f"'{CHILD}' has split 'dev', but its parent '{PARENT}' has 'train'; make them alike"),
        ({}, {"split": None}, "has split None, but its parent"),
        ({}, {"subject": "id2"}, "has subject 'id2', but its parent"),
        ({}, {"category": "D"}, "has category 'D', but its parent"),
        ({}, {"video_path": "root/two.mp4"}, "has video_path 'root/two.mp4', but its parent"),
        ({}, {"audio_path": "root/one.wav"}, "has audio_path 'root/one.wav', but its parent"),
        ({}, {"fold": 2}, "has fold 2, but its parent"),
        ({"method": "swap"}, {"method": "lips"}, "has method 'lips', but its parent"),
    ],
)
def test_children_that_would_leak_or_mislead_are_refused(
    tmp_path: Path,
    roots: dict[str, str],
    name_augmentations: Callable[..., None],
    parent: dict[str, Any],
    changes: dict[str, Any],
    sentence: str,
) -> None:
    name_augmentations("grey", "blur")
    rows = [make_row(PARENT, **{"split": "train"} | parent), child(**changes)]
    with pytest.raises(InputError, match=sentence):
        write_manifest(str(tmp_path / "m"), rows, roots, {})


@pytest.fixture
def name_augmentations(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes its arguments the names of all augmentations."""
    from data_prep import augmentations

    return lambda *names: monkeypatch.setattr(augmentations, "AUGMENTATIONS", dict.fromkeys(names))


def test_manifests_are_joined_with_their_roots(tmp_path: Path, roots: dict[str, str]) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    others = {"more": str(tmp_path / "more")}
    write_manifest(first, [make_row("b", split="dev", fold=1)], roots, {})
    write_manifest(second, [make_row("a", video_path="more/a.mp4")], roots | others, {})
    listing = merge_manifests([first, second])
    assert listing.rows == [make_row("b", split="dev", fold=1), make_row("a", video_path="more/a.mp4")]
    assert listing.roots == roots | others
    assert listing.unfit == listing.notes == []


def test_manifests_that_contradict_each_other_are_not_joined(tmp_path: Path, roots: dict[str, str]) -> None:
    first, moved, again = (str(tmp_path / name) for name in ("first", "moved", "again"))
    write_manifest(first, [make_row("a")], roots, {})
    write_manifest(moved, [make_row("b")], {"root": str(tmp_path)}, {})
    write_manifest(again, [make_row("b"), make_row("a")], roots, {})
    with pytest.raises(InputError, match=f"{moved} has the root 'root' at {tmp_path}, another manifest at .*--dataset"):
        merge_manifests([first, moved])
    with pytest.raises(InputError, match=f"{again} lists clip 'a', as {first} does; leave one out"):
        merge_manifests([first, again])
    with pytest.raises(InputError, match=f"{first}/? is given twice; leave one out"):
        merge_manifests([first, f"{first}/"])


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> str:
    (folder / "m.csv").write_text(text, encoding=encoding)
    return str(folder / "m.csv")


def test_csv_rows_pass_as_a_manifest(tmp_path: Path, roots: dict[str, str]) -> None:
    text = (
        "clip_id,video_path,label,category,dataset,subject,split,fold\n"
        '"one, two",root/one.mp4,1,C,set,id1,train,2\n'
        "three,root/three.mp4,0,A,set,id2,,\n"
    )
    rows = read_manifest_csv(write_csv(tmp_path, text, "utf-8-sig"))
    assert rows == [
        make_row("one, two", video_path="root/one.mp4", split="train", fold=2),
        make_row("three", label=0, category="A", subject="id2"),
    ]
    write_manifest(str(tmp_path / "m"), rows, roots, {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("clip_id,video_path,label,category,dataset\n", "has no column 'subject'"),
        ("", "has no column 'clip_id'"),
        (
            "clip_id,video_path,label,category,dataset,subject,label\n",
            "has the column 'label' twice; leave one of them",
        ),
        ("clip_id,path\n", "has an unknown column 'path'; known are clip_id"),
        ("clip_id,video_path,label,category,dataset,subject\na,root/a,one,A,s,i\n", "line 2 has label 'one'"),
        ("clip_id,video_path,label,category,dataset,subject\na,root/a,0,A,s\n", "line 2 has more or fewer fields"),
        ("clip_id,video_path,label,category,dataset,subject\na,root/a,0,A,s,i,x\n", "line 2 has more or fewer"),
        ('clip_id,video_path,label,category,dataset,subject\n"a,root/a,0\n', "is no csv"),
    ],
)
def test_csv_that_is_no_manifest_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_manifest_csv(write_csv(tmp_path, text))


def test_csv_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.csv does not exist"):
        read_manifest_csv(str(tmp_path / "no.csv"))
    with pytest.raises(InputError, match=r"m\.csv is no UTF-8 text"):
        read_manifest_csv(write_csv(tmp_path, "clip_id,é\n", "latin-1"))
