from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.splits import SplitConfig, split_rows
from data_prep.storage import InputError
from tests.listed_clips import crowd, made_row, real_listing

Row = dict[str, Any]
BRIDGING = "bridging: its subject and a target are in different splits"
UNKNOWN = "fake of unknown target with a subject outside train"
OTHER = "its data set is neither trained nor tested on"


def identities(rows: Iterable[Row], *, subjects: bool = True) -> set[tuple[str, str]]:
    """Who occurs in the rows as target, and as subject unless told otherwise."""
    found = {(row["dataset"], name) for row in rows if row["target"] for name in row["target"].split("+")}
    return found | {(row["dataset"], row["subject"]) for row in rows if subjects}


def parts(rows: Sequence[Row]) -> dict[str | None, list[Row]]:
    found: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["split"]].append(row)
    return found


def test_the_subject_split_of_the_real_listing_keeps_subjects_apart_but_not_targets(shared: Path) -> None:
    found = parts(split_rows(real_listing(shared), SplitConfig(dev=0.2, test=0.2)).rows)
    subjects = {split: {row["subject"] for row in found[split]} for split in ("train", "dev", "test")}
    assert {split: len(names) for split, names in subjects.items()} == {"train": 300, "dev": 100, "test": 100}
    assert len(set.union(*subjects.values())) == 500
    assert found.keys() == {"train", "dev", "test"}
    leaking = [row for row in found["test"] if row["target"] and subjects["train"] & set(row["target"].split("+"))]
    # 60 % of the identities are training subjects: so are most of the targets, named once or twice per fake.
    assert 0.5 < len(leaking) / sum(row["label"] for row in found["test"]) < 0.75


@pytest.mark.parametrize("seed", range(3))
def test_the_subject_target_split_of_the_real_listing_leaves_no_identity_in_two_splits(shared: Path, seed: int) -> None:
    listing = real_listing(shared)
    result = split_rows(listing, SplitConfig(split="subject-target", dev=72, test=92, seed=seed))
    found = parts(result.rows)
    train, dev, test = (identities(found[split]) for split in ("train", "dev", "test"))
    assert not train & dev
    assert not train & test
    assert not dev & test
    # Real clips of all 500 subjects are kept, so the split of every dropped clip's subject is known.
    home = {row["subject"]: row["split"] for row in result.rows if row["category"] == "A"}
    assert len(home) == 500
    for row in result.rows:
        splits = {home[name] for name in [row["subject"], *(row["target"] or row["subject"]).split("+")]}
        unknown = row["label"] == 1 and row["target"] is None
        expected = None if len(splits) > 1 or (unknown and splits != {"train"}) else splits.pop()
        assert row["split"] == expected
    dropped = [row for row in found[None] if row["category"] in "CD"]
    # A target lies in a given subject's split with probability 0.51, and half of D name two.
    assert 0.49 < len(dropped) / 20_544 < 0.6
    assert result.dropped == {
        BRIDGING: sum(row["target"] is not None for row in found[None]),
        UNKNOWN: sum(row["target"] is None for row in found[None]),
    }
    kept = 851 - result.dropped[UNKNOWN]
    assert result.notes[0].startswith(f"851 fakes name no target; {kept} of them are used, all in train:")
    assert result.notes[1:] == ["There is no clip of category B in dev and test."]


@pytest.mark.parametrize("seed", range(8))
def test_no_identity_is_in_two_splits_whoever_names_whom(seed: int) -> None:
    rows = crowd(seed)
    result = split_rows(rows, SplitConfig(split="subject-target", seed=seed))
    found = parts(result.rows)
    seen = [identities(found[split]) for split in ("train", "dev", "test")]
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert all(row["target"] or row["label"] == 0 for split in ("dev", "test") for row in found[split])
    # The same seed splits the subjects as the split by subject does.
    by_subject = {row["clip_id"]: row["split"] for row in split_rows(rows, SplitConfig(seed=seed)).rows}
    assert all(row["split"] in (None, by_subject[row["clip_id"]]) for row in result.rows)


def test_bridging_clips_and_fakes_of_unknown_target_are_dropped_by_reason() -> None:
    names = [f"id{index}" for index in range(12)]
    rows = [made_row(name, "A") for name in names]
    rows += [made_row(name, "C", target) for name in names for target in names]
    rows += [made_row(name, "D", f"{first}+{second}") for name in names for first in names for second in names[:3]]
    rows += [made_row(name, "B") for name in names]
    result = split_rows(rows, SplitConfig(split="subject-target", dev=3, test=4))
    home = {row["subject"]: row["split"] for row in result.rows if row["category"] == "A"}
    sizes = {"train": 5, "dev": 3, "test": 4}
    assert result.dropped[UNKNOWN] == 7
    assert sum(row["category"] == "C" and row["split"] is not None for row in result.rows) == 5**2 + 3**2 + 4**2
    kept = sum(sizes[home[name]] for name in names for voice in names[:3] if home[name] == home[voice])
    assert sum(row["category"] == "D" and row["split"] is not None for row in result.rows) == kept
    assert result.dropped[BRIDGING] == 144 - 50 + 432 - kept


def test_targets_who_are_no_subjects_are_kept_apart_in_the_proportions_of_the_subjects() -> None:
    rows = [made_row(f"id{index}", "A") for index in range(20)]
    rows += [made_row(f"id{index}", "C", f"guest{guest}") for index in range(20) for guest in range(40)]
    found = parts(split_rows(rows, SplitConfig(split="subject-target", dev=0.25, test=0.1)).rows)
    guests = {split: identities(found[split], subjects=False) for split in ("train", "dev", "test")}
    assert {split: len(names) for split, names in guests.items()} == {"train": 26, "dev": 10, "test": 4}
    assert len(set.union(*guests.values())) == 40


def test_equal_names_of_two_data_sets_are_two_people() -> None:
    rows = [made_row(f"id{index}", "A", dataset=name) for index in range(10) for name in ("first", "second")]
    rows += [
        made_row(f"id{index}", "C", f"id{index}", dataset=name) for index in range(10) for name in ("first", "second")
    ]
    result = split_rows(rows, SplitConfig(split="subject-target", dev=4, test=6))
    assert result.dropped == {}
    split_of = {(row["subject"], row["dataset"]): row["split"] for row in result.rows}
    assert any(split_of[f"id{index}", "first"] != split_of[f"id{index}", "second"] for index in range(10))


def test_a_target_split_of_fakes_without_targets_is_refused() -> None:
    rows = [made_row(f"id{index}", category) for index in range(9) for category in "AB"]
    with pytest.raises(InputError, match=r"none of the fakes names a target, .*; split by 'subject'"):
        split_rows(rows, SplitConfig(split="subject-target"))


def cross(rows: Sequence[Row], trained: str, tested: str, **values: Any) -> dict[str, set[str | None]]:
    """Data set -> the splits in which it is."""
    config = SplitConfig(split="cross", train_datasets=tuple(trained), test_datasets=tuple(tested), **values)
    found = defaultdict(set)
    for row in split_rows(rows, config).rows:
        found[row["dataset"]].add(row["split"])
    return found


THREE = [made_row(f"id{index}", category, dataset=name) for name in "abc" for index in range(10) for category in "AB"]


def test_cross_trains_on_some_data_sets_and_tests_on_all_clips_of_others() -> None:
    assert cross(THREE, "a", "b") == {"a": {"train", "dev"}, "b": {"test"}, "c": {None}}
    assert cross(THREE, "ab", "c") == {"a": {"train", "dev"}, "b": {"train", "dev"}, "c": {"test"}}
    assert cross(THREE, "a", "bc", dev=0) == {"a": {"train"}, "b": {"test"}, "c": {"test"}}
    config = SplitConfig(split="cross", train_datasets=("a",), test_datasets=("b",))
    assert split_rows(THREE, config).dropped == {OTHER: 20}


def test_a_data_set_that_is_trained_and_tested_on_is_divided_by_subject() -> None:
    config = SplitConfig(split="cross", train_datasets=("a", "b"), test_datasets=("b", "c"), dev=0.2, test=0.3)
    subjects = defaultdict(set)
    for row in split_rows(THREE, config).rows:
        subjects[row["dataset"], row["split"]].add(row["subject"])
    # 3 of b's 10 for test; 4 of the 20 for dev, from the 10 and 7 that are left: 2.35 and 1.65, rounded.
    sizes = {key: len(names) for key, names in subjects.items()}
    assert sizes == {
        ("a", "train"): 8,
        ("a", "dev"): 2,
        ("b", "train"): 5,
        ("b", "dev"): 2,
        ("b", "test"): 3,
        ("c", "test"): 10,
    }
    assert len(set.union(*(subjects["b", split] for split in ("train", "dev", "test")))) == 10


@pytest.mark.parametrize(
    ("train", "test", "values", "sentence"),
    [
        ("ax", "b", {}, "train_datasets names 'x', known data sets are: a, b, c; give some of them"),
        ("a", "x", {}, "test_datasets names 'x', known data sets are: a, b, c"),
        (
            "a",
            "b",
            {"dev": 10},
            "a split of 10 dev and 0 test subjects leaves none of 10 to train on; give a smaller --dev",
        ),
        ("ab", "b", {"test": 11}, "test is 11, but the data sets on both lists have only 10 subjects; give fewer"),
        ("a", "a", {"test": 0}, "test is 0, but every data set for test is trained on, too"),
    ],
)
def test_impossible_cross_splits_are_refused(train: str, test: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        cross(THREE, train, test, **values)
