import random
from collections import Counter, defaultdict
from typing import Any

import pytest

from data_prep.manifest import MANIFEST_COLUMNS, label_of
from data_prep.splits import split_by_subject
from data_prep.storage import InputError


def make_rows(subjects: dict[str, str], dataset: str = "set") -> list[dict[str, Any]]:
    """Rows of subjects with the categories named, e.g. {"id1": "AB"}."""
    rows = []
    for subject, categories in subjects.items():
        for category in categories:
            row = dict.fromkeys(MANIFEST_COLUMNS)
            row |= {"clip_id": f"{dataset}/{subject}/{category}", "subject": subject, "dataset": dataset}
            rows.append(row | {"category": category, "label": label_of(category)})
    return rows


ROWS = make_rows({f"id{index:03}": "ABCD" for index in range(96)})


def splits_of_subjects(rows: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    found = defaultdict(set)
    for row in rows:
        found[row["dataset"], row["subject"]].add(row["split"])
    return found


def counts(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(split for splits in splits_of_subjects(rows).values() for split in splits)


def test_splits_share_no_subject_and_have_the_sizes_asked_for() -> None:
    rows = split_by_subject(ROWS, dev=16, test=24, seed=0)
    assert all(len(splits) == 1 for splits in splits_of_subjects(rows).values())
    assert counts(rows) == {"train": 56, "dev": 16, "test": 24}
    assert counts(split_by_subject(ROWS, dev=0.25, test=0.125)) == {"train": 60, "dev": 24, "test": 12}
    assert counts(split_by_subject(ROWS, dev=0, test=1)) == {"train": 95, "test": 1}
    assert counts(split_by_subject(ROWS, dev=0.001, test=0.0)) == {"train": 95, "dev": 1}


def test_rows_keep_their_order_and_everything_but_the_split() -> None:
    before = [dict(row) for row in ROWS]
    rows = split_by_subject(ROWS, dev=16, test=24, seed=0)
    assert before == ROWS
    assert [row | {"split": None} for row in rows] == ROWS


def test_the_split_depends_on_subjects_and_seed_but_not_on_row_order() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    first = splits_of_subjects(split_by_subject(ROWS, dev=16, test=24, seed=3))
    assert splits_of_subjects(split_by_subject(shuffled, dev=16, test=24, seed=3)) == first
    assert splits_of_subjects(split_by_subject(ROWS, dev=16, test=24, seed=4)) != first


def test_every_stratum_gets_its_share() -> None:
    rows = make_rows({f"id{index}": "ABCD" for index in range(60)})
    rows += make_rows({f"id{index}": "CD" for index in range(60, 80)})
    rows += make_rows({f"id{index}": "D" for index in range(40)}, dataset="other")
    rows = split_by_subject(rows, dev=0.1, test=0.25, seed=0)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for (dataset, subject), splits in splits_of_subjects(rows).items():
        stratum = dataset if dataset == "other" or int(subject[2:]) < 60 else "fakes only"
        found[stratum].update(splits)
    assert found == {
        "set": {"train": 39, "dev": 6, "test": 15},
        "fakes only": {"train": 13, "dev": 2, "test": 5},
        "other": {"train": 26, "dev": 4, "test": 10},
    }


def test_strata_of_one_subject_each_still_give_the_sizes_asked_for() -> None:
    rows = [row for index in range(10) for row in make_rows({"someone": "A"}, dataset=f"set{index}")]
    assert counts(split_by_subject(rows, dev=2, test=3, seed=0)) == {"train": 5, "dev": 2, "test": 3}


@pytest.mark.parametrize("sizes", [{"dev": 50, "test": 46}, {"dev": 0.5, "test": 0.5}, {"dev": 0, "test": 200}])
def test_splits_without_training_subjects_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="leaves none of 96 to train on; take fewer"):
        split_by_subject(ROWS, **sizes)


@pytest.mark.parametrize("size", [-1, -0.1, 1.0, 1.5])
def test_sizes_that_are_no_number_or_share_are_refused(size: float) -> None:
    with pytest.raises(InputError, match=f"dev is {size}; give a number of subjects"):
        split_by_subject(ROWS, dev=size)
