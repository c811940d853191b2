from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from data_prep.splits import SplitConfig, split_rows
from data_prep.storage import InputError
from tests.listed_clips import crowd, made_row, real_listing


def folds(rows: Any, **values: Any) -> Any:
    return split_rows(rows, SplitConfig(split="folds", **values))


def people(num_subjects: int, clips: dict[str, int], **changes: Any) -> list[dict[str, Any]]:
    """Subjects with so many clips of each category."""
    return [
        made_row(f"id{index:03}", category, clip_id=f"{index}/{category}/{number}", **changes)
        for index in range(num_subjects)
        for category, count in clips.items()
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_real_listing_gives_mrdfs_folds(shared: Path, seed: int) -> None:
    listing = real_listing(shared)
    result = folds(listing, fold=3, seed=seed)
    drawn = [row for row in result.rows if row["fold"] is not None]
    assert result.dropped == {"not drawn for the folds": 19_544}
    assert Counter((row["fold"], row["category"]) for row in drawn) == {
        (fold, category): 100 for fold in range(5) for category in "ABCD"
    }
    fold_of = defaultdict(set)
    for row in drawn:
        fold_of[row["subject"]].add(row["fold"])
    assert len(fold_of) == 500
    assert all(len(found) == 1 for found in fold_of.values())
    # Race and gender make ten groups of 50, of whom each fold has 10; who lacks D may shift one.
    groups = Counter((row["race"], row["gender"], row["fold"]) for row in drawn if row["category"] == "A")
    assert len(groups) == 50
    assert set(groups.values()) <= {9, 10, 11}
    per_subject = Counter((row["subject"], row["category"]) for row in drawn)
    assert Counter(per_subject.values()) == {1: 1998, 2: 1}
    assert {category for (_, category), count in per_subject.items() if count == 2} == {"D"}
    assert per_subject["id04789", "D"] == 0
    assert {row["fold"] for row in drawn if row["split"] == "test"} == {3}
    found = Counter((row["split"], row["category"]) for row in drawn)
    for category in "ABC":
        assert [found[split, category] for split in ("train", "dev", "test")] == [350, 50, 100]
    # Who lacks D and who stands in are in one fold, but perhaps not both in dev.
    assert found["test", "D"] == 100
    assert abs(found["dev", "D"] - 50) <= 1
    assert result.notes[1:] == [
        "Category D of FakeAVCeleb has clips of 499 of 500 subjects; further clips of theirs that stand in for the "
        "others: 1, missing: 0."
    ]


@pytest.mark.parametrize("num_subjects", [10, 11, 13, 24, 51])
def test_folds_of_any_number_of_subjects_differ_by_one_at_most(num_subjects: int) -> None:
    rows = people(num_subjects, {"A": 1, "B": 3, "D": 2})
    result = folds(rows, seed=2)
    drawn = Counter((row["category"], row["fold"]) for row in result.rows if row["fold"] is not None)
    for category in "ABD":
        sizes = [drawn[category, fold] for fold in range(5)]
        assert sum(sizes) == num_subjects
        assert max(sizes) - min(sizes) <= 1
    subjects = {split: {row["subject"] for row in result.rows if row["split"] == split} for split in ("train", "dev")}
    assert len(subjects["dev"]) == max(1, round((num_subjects - drawn["A", 0]) / 8))
    assert not subjects["train"] & subjects["dev"]


@pytest.mark.parametrize("seed", range(4))
def test_every_fold_is_the_test_set_once_and_the_dev_parts_differ(seed: int) -> None:
    rows = crowd(seed, 60)
    tested: list[str] = []
    devs = []
    for fold in range(5):
        result = folds(rows, fold=fold, seed=seed).rows
        tested += [row["clip_id"] for row in result if row["split"] == "test"]
        devs.append({(row["dataset"], row["subject"]) for row in result if row["split"] == "dev"})
        splits = defaultdict(set)
        for row in result:
            if row["split"]:
                splits[row["dataset"], row["subject"]].add(row["split"])
        assert len(splits) == 60
        assert all(len(found) == 1 for found in splits.values())
        assert len(devs[-1]) == 6  # an eighth of 48
    assert sorted(tested) == sorted(row["clip_id"] for row in result if row["fold"] is not None)
    # With probability (7/8)^4 a subject is in no dev part: 25 are expected in one, 6 if all parts were alike.
    assert len(set.union(*devs)) > 15


def test_folds_are_balanced_over_what_subjects_are_like() -> None:
    rows = []
    for index in range(60):
        traits = {"race": f"r{index % 3}", "gender": "men" if index < 30 else "women"}
        rows += [row | {"subject": f"id{index}", "clip_id": f"{index}"} for row in people(1, {"A": 1}, **traits)]
    found = Counter((row["race"], row["gender"], row["fold"]) for row in folds(rows).rows)
    assert found == {
        (f"r{race}", gender, fold): 2 for race in range(3) for gender in ("men", "women") for fold in range(5)
    }


def test_further_clips_of_as_many_subjects_as_possible_stand_in_within_the_fold() -> None:
    # 20 subjects; 12 have 3 clips of C: at least one other per fold can stand in, some twice.
    rows = people(20, {"A": 1}) + people(12, {"C": 3})
    result = folds(rows, seed=1)
    size = Counter(row["fold"] for row in result.rows if row["category"] == "A")
    of_fold: dict[int, Counter[str]] = defaultdict(Counter)
    for row in result.rows:
        if row["category"] == "C" and row["fold"] is not None:
            of_fold[row["fold"]][row["subject"]] += 1
    for fold, counts in of_fold.items():
        assert counts.total() == min(size[fold], 3 * len(counts))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert any("Category C of set has clips of 12 of 20 subjects" in note for note in result.notes)


def test_what_cannot_be_filled_up_is_said_to_be_missing() -> None:
    rows = people(20, {"A": 1}) + people(13, {"B": 1})
    notes = folds(rows).notes
    assert notes[1].endswith(
        "has clips of 13 of 20 subjects; further clips of theirs that stand in for the others: 0, missing: 7."
    )
    assert "33 of 33 clips are drawn" in notes[0]


def test_a_category_that_a_data_set_lacks_is_not_filled_up_from_another() -> None:
    rows = people(10, {"A": 1, "B": 4}, dataset="first")
    rows += [row | {"dataset": "second", "clip_id": f"second/{row['clip_id']}"} for row in people(10, {"C": 2})]
    found = Counter((row["dataset"], row["category"]) for row in folds(rows).rows if row["fold"] is not None)
    assert found == {("first", "A"): 10, ("first", "B"): 10, ("second", "C"): 10}


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="5 folds need at least 10 subjects, there are 9; give another --split"):
        folds(people(9, {"A": 2}))


@pytest.mark.parametrize("fold", range(5))
def test_a_manifest_in_folds_is_split_anew_by_another_fold(fold: int) -> None:
    rows = crowd(4)
    first = folds(rows, fold=0, seed=7).rows
    anew = folds(first, fold=fold, seed=7).rows
    assert anew == folds(rows, fold=fold, seed=7).rows
    assert [row["fold"] for row in anew] == [row["fold"] for row in first]
