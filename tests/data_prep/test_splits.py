import random
from collections import Counter, defaultdict
from typing import Any

import pytest

from data_prep.manifest import MANIFEST_COLUMNS, label_of
from data_prep.splits import SplitConfig, split_by_subject, split_rows
from data_prep.storage import InputError
from tests.listed_clips import crowd, made_child, made_row

CONFIGS = [
    SplitConfig(split="subject", dev=5, test=0.25, seed=3),
    SplitConfig(split="subject-target", seed=3),
    SplitConfig(split="method", test_methods=("m1",), seed=3),
    SplitConfig(split="folds", fold=2, seed=3),
    SplitConfig(split="paper", seed=3),
    SplitConfig(split="cross", train_datasets=("first", "second"), test_datasets=("second",), seed=3),
]
each_protocol = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.split)


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
    with pytest.raises(InputError, match="leaves none of 96 to train on; give smaller --dev and --test, or"):
        split_by_subject(ROWS, **sizes)


@pytest.mark.parametrize("size", [-1, -0.1, 1.0, 1.5])
def test_sizes_that_are_no_number_or_share_are_refused(size: float) -> None:
    with pytest.raises(InputError, match=f"dev is {size}; give a number of subjects"):
        split_by_subject(ROWS, dev=size)


def test_race_and_gender_are_spread_over_the_splits() -> None:
    rows = []
    for index in range(100):
        traits = {"race": f"r{index % 5}", "gender": "men" if index < 50 else "women"}
        rows += [row | traits for row in make_rows({f"id{index:03}": "AB"})]
    rows = split_by_subject(rows, dev=0.1, test=0.2, seed=5)
    found = Counter((row["race"], row["gender"], row["split"]) for row in rows if row["category"] == "A")
    for group in {(row["race"], row["gender"]) for row in rows}:
        assert [found[*group, split] for split in ("train", "dev", "test")] == [7, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_many_small_strata_still_give_each_data_set_its_share(seed: int) -> None:
    rows = crowd(seed)
    size = Counter(dataset for dataset, _ in splits_of_subjects(rows))
    rows = split_by_subject(rows, dev=0, test=10, seed=seed)
    tested = Counter(dataset for (dataset, _), splits in splits_of_subjects(rows).items() if splits == {"test"})
    assert tested.total() == 10
    # 10 of 40 subjects: a quarter of each data set's, rounded up or down.
    assert all(abs(tested[dataset] - size[dataset] / 4) < 1 for dataset in size)


def test_ties_between_small_strata_do_not_always_favour_the_same_gender() -> None:
    rows = [
        row | {"race": f"r{race}", "gender": gender}
        for race in range(24)
        for gender in ("men", "women")
        for row in make_rows({f"{race}{gender}": "A"})
    ]
    rows = split_by_subject(rows, dev=0, test=24, seed=0)
    # One of two in each race, decided by 24 fair coins: outside of 3 to 21 once in 12,000 seeds.
    assert 3 <= sum(row["split"] == "test" and row["gender"] == "men" for row in rows) <= 21


@each_protocol
@pytest.mark.parametrize("seed", range(3))
def test_every_clip_stays_and_each_unused_one_is_counted(config: SplitConfig, seed: int) -> None:
    rows = crowd(seed)
    before = [dict(row) for row in rows]
    result = split_rows(rows, config)
    assert rows == before
    assert [row | {"split": None, "fold": None} for row in result.rows] == before
    found = Counter(row["split"] for row in result.rows)
    assert found.keys() <= {"train", "dev", "test", None}
    assert found["train"] > found["test"] > 0 < found["dev"]
    assert sum(result.dropped.values()) == found[None]
    assert {row["fold"] is not None for row in result.rows if row["split"]} == {config.split == "folds"}


@each_protocol
@pytest.mark.parametrize("seed", range(3))
def test_a_split_depends_on_its_seed_but_not_on_row_order(config: SplitConfig, seed: int) -> None:
    rows = crowd(seed)
    shuffled = random.Random(1).sample(rows, len(rows))

    def splits(rows: list[dict[str, Any]], seed: int) -> dict[str, tuple[str, int]]:
        values = {name: getattr(config, name) for name in SplitConfig.__dataclass_fields__}
        result = split_rows(rows, SplitConfig(**values | {"seed": seed}))
        return {row["clip_id"]: (row["split"], row["fold"]) for row in result.rows}

    assert splits(shuffled, 3) == splits(rows, 3) != splits(rows, 4)


def test_without_a_split_none_is_set_and_nothing_counts_as_dropped() -> None:
    rows = [row | {"split": "train", "fold": 1} for row in ROWS]
    rows.append(made_child(rows[0]))
    result = split_rows(rows, SplitConfig(split="none"))
    assert {(row["split"], row["fold"]) for row in result.rows} == {(None, None)}
    assert (result.dropped, result.notes) == ({}, [])


def test_whole_numbers_of_subjects_may_be_floats() -> None:
    assert counts(split_rows(ROWS, SplitConfig(dev=16.0, test=24.0)).rows) == {"train": 56, "dev": 16, "test": 24}
    assert counts(split_rows(ROWS, SplitConfig(dev=1.0, test=0)).rows) == {"train": 95, "dev": 1}


def test_a_category_that_a_split_lacks_is_named() -> None:
    rows = make_rows({"one": "ABCD", "two": "AB", "three": "AC"})
    result = split_rows(rows, SplitConfig(dev=1, test=1))
    split_of = {row["subject"]: row["split"] for row in result.rows}
    lacks = {"B": [split_of["three"]], "C": [split_of["two"]], "D": [split_of["two"], split_of["three"]]}
    expected = []
    for category, splits in lacks.items():
        ordered = [split for split in ("train", "dev", "test") if split in splits]
        expected.append(f"There is no clip of category {category} in {' and '.join(ordered)}.")
    assert result.notes == expected


def test_a_category_that_is_nowhere_is_no_loss_of_the_split() -> None:
    assert split_rows(make_rows({f"id{index}": "AC" for index in range(9)}), SplitConfig()).notes == []


@each_protocol
def test_augmented_children_go_where_their_parent_is(config: SplitConfig) -> None:
    rows = crowd(0)
    split = {row["clip_id"]: row for row in split_rows(rows, config).rows}
    parents = [row for row in rows if split[row["clip_id"]]["split"] in ("train", "dev")]
    children = [made_child(row, split="test", fold=9) for row in parents]
    found = split_rows(children + rows, config)
    for row in found.rows:
        own = split[row["parent_clip_id"] or row["clip_id"]]
        assert (row["split"], row["fold"]) == (own["split"], own["fold"])


@pytest.mark.parametrize("where", ["test", None])
def test_children_of_test_clips_and_unused_clips_are_refused(where: str | None) -> None:
    rows = crowd(0)
    result = split_rows(rows, CONFIGS[1])
    parent = next(row for row in result.rows if row["split"] == where)
    said = {"test": "in test", None: "not used"}[where]
    with pytest.raises(InputError, match=f"{parent['clip_id']}#blur.* is {said} in this split; split first, augment"):
        split_rows([*rows, made_child(parent)], CONFIGS[1])


def test_children_without_their_parent_are_refused() -> None:
    for child in (made_child(made_row("one", "A")), made_child(made_child(ROWS[0]), "again")):
        with pytest.raises(InputError, match="no unaugmented clip of this manifest; list its parent, too"):
            split_rows([*ROWS, child], SplitConfig())
    with pytest.raises(InputError, match="augmentation of None, which is no unaugmented clip"):
        split_rows([*ROWS, made_row("one", "A", augmentation="blur")], SplitConfig())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"split": "random"},
            "split is 'random'; give one of subject, subject-target, method, folds, paper, cross, none",
        ),
        ({"dev": -0.1}, "dev is -0.1; give a share below 1, or a whole number"),
        ({"test": 2.5}, "test is 2.5; give a share below 1, or a whole number"),
        ({"test": float("nan")}, "test is nan; give a share"),
        ({"dev": float("inf")}, "dev is inf; give a share"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
        ({"split": "folds", "fold": 5}, "fold is 5; give one from 0 to 4"),
        ({"fold": 1}, "fold is 1, but a split by 'subject' takes none; leave it out, or give split as folds"),
        ({"split": "paper", "test": 0.1}, "test is 0.1, but a split by 'paper' takes none"),
        ({"split": "none", "dev": 3}, "dev is 3, but a split by 'none' takes none"),
        ({"test_methods": ("fsgan",)}, "test_methods is .*, but a split by 'subject' takes none"),
        ({"split": "method"}, "a split by 'method' needs test_methods; name at least one"),
        ({"split": "cross", "train_datasets": ("first",)}, "a split by 'cross' needs test_datasets"),
    ],
)
def test_options_that_are_wrong_or_of_another_protocol_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SplitConfig(**values)
