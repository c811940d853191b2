import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_prep.leaks import split_summary, summary_lines
from data_prep.splits import SplitConfig, split_rows
from tests.listed_clips import crowd, made_child, made_row, real_listing

Row = dict[str, Any]


def leaks(rows: list[Row]) -> dict[str, int]:
    """Kind -> clips."""
    found = split_summary(rows)["leaks"]
    kinds = {leak["kind"]: leak["clips"] for leak in found}
    assert len(kinds) == len(found)
    return kinds


CLEAN = [
    made_row("one", "A", split="train"),
    made_row("one", "C", "two", split="train", method="swap"),
    made_row("one", "B", split="train", method="voice"),
    made_row("three", "A", split="dev"),
    made_row("three", "D", "four+three", split="dev", method="swap"),
    made_row("five", "A", split="test"),
    made_row("five", "C", "six", split="test", method="swap"),
    made_row("seven", "C", "one+five", split=None),
]


def test_a_split_without_leaks_is_summed_up() -> None:
    summary = split_summary(CLEAN)
    assert summary == {
        "train": {
            "clips": 3,
            "subjects": 1,
            "targets": 1,
            "unknown_targets": 1,
            "categories": {"A": 1, "B": 1, "C": 1, "D": 0},
            "datasets": {"set": 3},
        },
        "dev": {
            "clips": 2,
            "subjects": 1,
            "targets": 2,
            "unknown_targets": 0,
            "categories": {"A": 1, "B": 0, "C": 0, "D": 1},
            "datasets": {"set": 2},
        },
        "test": {
            "clips": 2,
            "subjects": 1,
            "targets": 1,
            "unknown_targets": 0,
            "categories": {"A": 1, "B": 0, "C": 1, "D": 0},
            "datasets": {"set": 2},
        },
        "unused": {
            "clips": 1,
            "subjects": 1,
            "targets": 2,
            "unknown_targets": 0,
            "categories": {"A": 0, "B": 0, "C": 1, "D": 0},
            "datasets": {"set": 1},
        },
        "leaks": [],
    }
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize(
    ("row", "found"),
    [
        # A training subject in test: its subject is known from train, and is in two splits with 3 + 1 clips.
        (made_row("one", "A", clip_id="x", split="test"), {"subject_in_two_splits": 4, "test_identity_in_training": 1}),
        (made_row("one", "A", clip_id="x", split="dev"), {"subject_in_two_splits": 4, "dev_identity_in_training": 1}),
        # three in dev and test: none of it is in train.
        (
            made_row("three", "A", clip_id="x", split="test"),
            {"subject_in_two_splits": 3, "test_identity_in_dev": 1},
        ),
        # An identity of dev, as target of dev and as subject of dev.
        (made_row("four", "A", split="test"), {"test_identity_in_dev": 1}),
        (made_row("five", "D", "six+three", split="test", method="swap"), {"test_identity_in_dev": 1}),
        (made_row("three", "C", "five", split="dev", method="swap"), {"test_identity_in_dev": 2}),
        # A training subject as target, first or second; a training target as subject or as target.
        (
            made_row("five", "C", "one", split="test", method="swap"),
            {"test_identity_in_training": 1, "test_target_is_training_subject": 1},
        ),
        (
            made_row("five", "D", "six+one", split="test", method="swap"),
            {"test_identity_in_training": 1, "test_target_is_training_subject": 1},
        ),
        (
            made_row("three", "C", "one", split="dev", method="swap"),
            {"dev_identity_in_training": 1, "dev_target_is_training_subject": 1},
        ),
        (made_row("five", "C", "two", split="test", method="swap"), {"test_identity_in_training": 1}),
        (made_row("two", "A", split="test"), {"test_identity_in_training": 1}),
        # A training clip that borrows a test subject: both clips of five concern someone seen in training.
        (made_row("one", "C", "five", split="train", method="swap"), {"test_identity_in_training": 2}),
        (made_row("five", "B", split="test", method="voice"), {"test_target_unknown": 1}),
        (made_row("three", "B", split="dev", method="voice"), {"dev_target_unknown": 1}),
        (made_row("five", "C", "six", split="test", method="swap-lips"), {"method_seen_in_training": 1}),
        (made_row("five", "C", "six", split="test", method="lips"), {}),
        (made_row("five", "B", "six", split="test", method="clone"), {}),
        (made_row("five", "C", "six", split="test", method="lips-gan"), {}),
        (made_row("one", "C", "two", split="train", method="lips-gan"), {}),
        (made_row("eight", "A", split="test", video_path="set/one/A/none/any"), {"same_file_in_two_splits": 2}),
        (made_row("eight", "A", split="test", audio_path="set/one/A/none/any"), {"same_file_in_two_splits": 2}),
        (made_row("one", "A", clip_id="x", split="train", video_path="set/one/A/none/any"), {}),
        (made_row("eight", "A", split=None, video_path="set/one/A/none/any"), {}),
        (made_child(CLEAN[0]), {}),
        (made_child(CLEAN[0], split=None), {"parent_and_child_apart": 1}),
        (made_child(CLEAN[7]), {}),
        (made_child(CLEAN[5]), {"augmented_test_clip": 1}),
        (made_child(made_row("one", "A", clip_id="not listed", split="train")), {"parent_and_child_apart": 1}),
        (made_row("one", "A", dataset="other", split="test"), {"same_name_in_two_datasets": 1}),
        (made_row("nine", "C", "two", dataset="other", split="test", method="swap"), {"same_name_in_two_datasets": 1}),
        (made_row("one", "A", dataset="other", split="train"), {}),
    ],
)
def test_each_leak_is_found_and_only_it(row: Row, found: dict[str, int]) -> None:
    assert leaks([*CLEAN, row]) == found
    assert leaks([row, *reversed(CLEAN)]) == found


@pytest.mark.parametrize(
    ("trained", "tested", "perhaps"),
    [
        ({"method": "swap"}, {"method": "clone"}, True),
        ({"method": None}, {"method": "clone"}, True),
        ({"method": "swap+voice"}, {"method": "clone"}, False),
        ({"method": "swap"}, {"method": "voice"}, False),
        ({"method": "swap"}, {"method": None}, False),
        ({"method": "swap", "dataset": "other"}, {"method": "clone"}, False),
        ({"method": "swap", "category": "C"}, {"method": "clone"}, False),
        ({"method": "swap", "split": None}, {"method": "clone"}, False),
        ({"method": "swap"}, {"method": "clone", "category": "C"}, False),
    ],
)
def test_fake_sound_of_unnamed_making_may_be_what_is_held_out(
    trained: dict[str, Any], tested: dict[str, Any], perhaps: bool
) -> None:
    rows = [*CLEAN, made_row("one", "D", "two", clip_id="x") | {"split": "train"} | trained]
    rows += [made_row("five", "B", "six", clip_id="y") | {"split": "test"} | tested]
    rows += [made_row("five", "D", "six", clip_id="z", split="test", method="swap-clone")]
    assert leaks(rows).get("method_perhaps_seen_in_training") == (2 if perhaps else None)


def test_a_voice_of_the_real_listing_that_is_held_out_may_be_in_training(shared: Path) -> None:
    rows = split_rows(real_listing(shared), SplitConfig(split="method", test_methods=("rtvc",))).rows
    (leak,) = [leak for leak in split_summary(rows)["leaks"] if leak["kind"] == "method_perhaps_seen_in_training"]
    unnamed = sum(row["split"] == "train" and row["category"] == "D" for row in rows)
    assert leak["clips"] == sum(row["split"] == "test" and row["category"] == "B" for row in rows) > 0
    assert leak["sentence"].startswith(f"The method of {unnamed} training clips of category D names no method of fake")
    assert f"{leak['clips']} fakes of test, by rtvc, which training never names" in leak["sentence"]


def test_people_and_targets_count_once_however_often_they_occur() -> None:
    rows = [made_row("one", "D", targets, split="dev") for targets in ("two+three", "three+two", "three+one")]
    found = split_summary(rows)["dev"]
    assert (found["clips"], found["subjects"], found["targets"]) == (3, 1, 3)


def test_the_sentences_name_the_shares() -> None:
    rows = [*CLEAN, made_row("five", "C", "one", split="test", method="swap")]
    first, second = (leak["sentence"] for leak in split_summary(rows)["leaks"])
    assert first == (
        "1 of 3 (33%) clips of test name, as subject or target, an identity that occurs in train as subject or target."
    )
    assert second == "1 of 2 (50%) fakes of test name a target who is a training subject."


def test_the_table_has_a_column_per_split_and_a_line_per_leak() -> None:
    rows = [*CLEAN, made_row("one", "A", dataset="other", split="test")]
    lines = summary_lines(split_summary(rows))
    cells = [line.rsplit(maxsplit=4) for line in lines[:10]]
    assert cells == [
        ["train", "dev", "test", "unused"],
        ["clips", "3", "2", "3", "1"],
        ["subjects", "1", "1", "2", "1"],
        ["targets", "1", "2", "1", "2"],
        ["unknown target", "1", "0", "0", "0"],
        ["category A", "1", "1", "2", "0"],
        ["category B", "1", "0", "0", "0"],
        ["category C", "1", "0", "1", "1"],
        ["category D", "0", "1", "0", "0"],
        ["other", "0", "0", "1", "0"],
    ]
    assert len({len(line) for line in lines[:11]}) == 1
    assert lines[11:] == [f"leak: {split_summary(rows)['leaks'][0]['sentence']}"]


def test_the_table_leaves_out_what_is_nowhere() -> None:
    lines = summary_lines(split_summary(CLEAN[:7]))
    assert lines[0].split() == ["train", "dev", "test"]
    assert not any(line.startswith("set") for line in lines)
    assert lines[-1] == "No leak was found between the splits."
    for split, sentence in ((None, "no clip has a split."), ("dev", "all clips that have a split are in dev.")):
        rows = [row | {"split": split} for row in CLEAN]
        assert summary_lines(split_summary(rows))[-1] == f"There is nothing to compare: {sentence}"


def recount(rows: list[Row], split: str) -> dict[str, int]:
    """Identity leaks of a split, counted clip by clip with sets."""

    def who(row: Row) -> set[str]:
        return {row["subject"], *(row["target"] or row["subject"]).split("+")}

    train = [row for row in rows if row["split"] == "train"]
    others = [row for row in rows if row["split"] == split]
    known = set.union(*map(who, train))
    subjects = {row["subject"] for row in train}
    found = {
        f"{split}_identity_in_training": sum(bool(who(row) & known) for row in others),
        f"{split}_target_is_training_subject": sum(
            bool(subjects & set(row["target"].split("+"))) for row in others if row["target"]
        ),
        f"{split}_target_unknown": sum(row["target"] is None and row["category"] != "A" for row in others),
    }
    if split == "test":
        chosen = set[str]().union(*(who(row) for row in rows if row["split"] == "dev"))
        found["test_identity_in_dev"] = sum(bool(who(row) & chosen) for row in others)
    return {kind: clips for kind, clips in found.items() if clips}


def test_the_subject_split_of_the_real_listing_says_how_many_clips_leak(shared: Path) -> None:
    rows = split_rows(real_listing(shared), SplitConfig()).rows
    found = leaks(rows)
    assert found == recount(rows, "test") | recount(rows, "dev")
    assert found["test_target_is_training_subject"] > 2000


@pytest.mark.parametrize("seed", [0, 1])
def test_the_subject_target_split_of_the_real_listing_has_no_leak(shared: Path, seed: int) -> None:
    rows = split_rows(real_listing(shared), SplitConfig(split="subject-target", seed=seed)).rows
    assert split_summary(rows)["leaks"] == []
    assert recount(rows, "test") == recount(rows, "dev") == {}


@pytest.mark.parametrize("seed", range(5))
def test_leaks_of_splits_drawn_clip_by_clip_agree_with_a_recount(seed: int) -> None:
    drawn = random.Random(seed)
    rows = [row | {"split": drawn.choice(["train", "dev", "test", None])} for row in crowd(seed, 150)]
    rows = [row for row in rows if row["dataset"] == "first"]
    found = leaks(rows)
    for kind, clips in (recount(rows, "test") | recount(rows, "dev")).items():
        assert found[kind] == clips


def test_a_held_out_method_is_told_where_training_shows_a_part_of_it(shared: Path) -> None:
    config = SplitConfig(split="method", test_methods=("faceswap",))
    rows = split_rows(real_listing(shared), config).rows
    (leak,) = [leak for leak in split_summary(rows)["leaks"] if leak["kind"] == "method_seen_in_training"]
    both = [row for row in rows if row["split"] == "test" and row["method"] == "faceswap-wav2lip"]
    assert leak["clips"] == len(both) > 0
    assert leak["sentence"].endswith("share a part of it with training clips: wav2lip.")
