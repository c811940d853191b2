"""Which clips get which augmentations."""

from collections import Counter
from typing import Any

import pytest

from data_prep.augmentations import AUGMENTATIONS, DEFAULT_NAMES
from data_prep.augmented_manifest import augment_rows, shortfall
from data_prep.manifest import MANIFEST_COLUMNS, check_rows
from data_prep.storage import InputError

Row = dict[str, Any]


def row(name: str, category: str, split: str | None) -> Row:
    made: Row = dict.fromkeys(MANIFEST_COLUMNS)
    label = 0 if category == "A" else 1
    made |= {"clip_id": name, "video_path": f"clips/{name}.mp4", "label": label, "category": category, "split": split}
    return made | {"dataset": "clips", "subject": name.partition("-")[0]}


def manifest(real: int = 12, fake: int = 40) -> list[Row]:
    """`real` and `fake` clips in each split, and in none."""
    rows = []
    for split in ("train", "dev", "test", None):
        rows += [row(f"s{number}-{split}-real", "A", split) for number in range(real)]
        rows += [row(f"s{number}-{split}-fake", "BCD"[number % 3], split) for number in range(fake)]
    return rows


def children_of(rows: list[Row]) -> list[Row]:
    return [one for one in rows if one["augmentation"] is not None]


def test_children_follow_the_rows_and_are_like_their_parents() -> None:
    rows = manifest()
    augmented = augment_rows(rows, per_clip=3, seed=1)
    assert augmented[: len(rows)] == rows
    by_id = {one["clip_id"]: one for one in rows}
    children = augmented[len(rows) :]
    for child in children:
        parent = by_id[child["parent_clip_id"]]
        assert child["clip_id"] == f"{parent['clip_id']}#{child['augmentation']}"
        changed = {"clip_id", "augmentation", "parent_clip_id"}
        assert {name: child[name] for name in child if name not in changed} == {
            name: parent[name] for name in parent if name not in changed
        }
    check_rows(augmented, {"clips": "/clips"})


def test_every_clip_of_train_and_dev_gets_as_many_and_no_other_any() -> None:
    rows = manifest()
    children = children_of(augment_rows(rows, per_clip=5))
    number = Counter(child["parent_clip_id"] for child in children)
    assert all(number[one["clip_id"]] == (5 if one["split"] in ("train", "dev") else 0) for one in rows)
    assert len({child["clip_id"] for child in children}) == len(children)
    assert {child["augmentation"] for child in children} == set(DEFAULT_NAMES)


def test_the_draw_depends_on_seed_and_clip_alone() -> None:
    rows = manifest()
    drawn = {child["clip_id"] for child in children_of(augment_rows(rows, seed=3))}
    assert drawn == {child["clip_id"] for child in children_of(augment_rows(rows[::-1], seed=3))}
    assert drawn != {child["clip_id"] for child in children_of(augment_rows(rows, seed=4))}
    few = [one for one in rows if one["split"] == "dev"][:5]
    assert {child["clip_id"] for child in children_of(augment_rows(few, seed=3))} <= drawn
    # Fewer children are the first ones of more.
    assert drawn < {child["clip_id"] for child in children_of(augment_rows(rows, seed=3, per_clip=2))}


def test_real_and_fake_follow_one_distribution() -> None:
    rows = manifest(real=20, fake=20)
    # The same clips with their labels exchanged get the same augmentations.
    swapped = [one | {"category": "AB"[one["label"] == 0], "label": 1 - one["label"]} for one in rows]
    drawn, again = (children_of(augment_rows(some, per_clip=4, seed=2)) for some in (rows, swapped))
    assert [child["clip_id"] for child in drawn] == [child["clip_id"] for child in again]


def test_each_augmentation_is_as_likely() -> None:
    rows = [row(f"s{number}", "A", "train") for number in range(4000)]
    counts = Counter(child["augmentation"] for child in children_of(augment_rows(rows)))
    expected = len(rows) / len(DEFAULT_NAMES)
    statistic = sum((counts[name] - expected) ** 2 / expected for name in DEFAULT_NAMES)
    # Chi-square with 33 degrees of freedom: mean 33, standard deviation sqrt(66); 5 of them above.
    assert statistic < 33 + 5 * 66**0.5


def test_the_paper_balances_by_augmenting_real_clips_up_to_the_fakes() -> None:
    rows = manifest(real=12, fake=40)
    assert shortfall(rows) == {"train": 28, "dev": 28}
    augmented = augment_rows(rows, balance="paper", seed=6)
    children = children_of(augmented)
    assert {(child["label"], child["split"]) for child in children} == {(0, "train"), (0, "dev")}
    for split in ("train", "dev"):
        labels = Counter(one["label"] for one in augmented if one["split"] == split)
        assert labels == {0: 40, 1: 40}
        parents = Counter(child["parent_clip_id"] for child in children if child["split"] == split)
        # 28 children of 12 clips.
        assert sorted(parents.values()) == [2] * 8 + [3] * 4
    assert shortfall(augmented) == {"train": 0, "dev": 0}
    again = children_of(augment_rows(rows[::-1], balance="paper", seed=6))
    assert {child["clip_id"] for child in again} == {child["clip_id"] for child in children}


def test_the_paper_cannot_use_an_augmentation_twice_on_a_clip() -> None:
    rows = manifest(real=2, fake=40)
    augmented = augment_rows(rows, balance="paper", names=("flip", "grey", "gain"))
    assert len(children_of(augmented)) == 2 * 2 * 3
    assert shortfall(augmented) == {"train": 32, "dev": 32}


def test_the_paper_leaves_a_split_alone_that_has_more_real_clips_or_none() -> None:
    rows = [row(f"s{number}", "A", "train") for number in range(5)] + [row("f", "C", "train"), row("g", "C", "dev")]
    assert augment_rows(rows, balance="paper") == rows
    assert shortfall(rows) == {"train": 0, "dev": 1}


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        (manifest(1, 1), {"names": ("flip", "sepia")}, "'sepia' is none; choose from"),
        (manifest(1, 1), {"names": ("flip", "flip")}, "names has 'flip' twice"),
        (manifest(1, 1), {"names": ("flip",), "per_clip": 2}, "per_clip is 2; give a number from 1 to .* 1"),
        (manifest(1, 1), {"per_clip": 0}, "per_clip is 0"),
        (manifest(1, 1), {"names": ()}, "per_clip is 1; give a number from 1 to .* 0"),
        ([row("one", "A", "test"), row("two", "B", None)], {}, "no clip in train or dev; make it with a --split"),
        (
            [row("one", "A", "train"), row("one#flip", "A", "train") | {"augmentation": "flip"}],
            {},
            "'one#flip' is an augmentation already; augment the manifest",
        ),
    ],
)
def test_what_cannot_be_augmented_is_told(rows: list[Row], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        augment_rows(rows, **options)


def test_all_36_can_be_asked_for() -> None:
    children = children_of(augment_rows([row("one", "A", "train")], per_clip=36, names=tuple(AUGMENTATIONS)))
    assert Counter(child["augmentation"] for child in children) == Counter(AUGMENTATIONS.keys())
