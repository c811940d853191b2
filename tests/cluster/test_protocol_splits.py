"""The parts of each protocol, and clips that it cannot split."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from cluster.protocol_splits import (
    ProtocolConfig,
    own_split,
    parts_of,
    split_anew,
    split_from_dict,
)
from data_prep import boxes
from data_prep.manifest import Manifest, Row, clip_row
from data_prep.splits import SplitConfig, split_rows
from data_prep.storage import InputError

METHODS = {"B": "rtvc", "C": "faceswap", "D": "faceswap-wav2lip"}
META = boxes.Meta(kind=boxes.MANIFEST, config={}, counts={}, versions={}, parent=None, files={})


def manifest(
    *, subjects: int = 12, datasets: tuple[str, ...] = ("first", "second"), categories: str = "ABCD"
) -> Manifest:
    """`subjects` of each data set, with a clip of each category."""
    rows = [
        clip_row(
            clip_id=f"{dataset}-{subject:02d}-{category}",
            video_path=f"{dataset}/{subject}/{category}.mp4",
            category=category,
            dataset=dataset,
            subject=f"{subject:02d}",
            method=METHODS.get(category),
        )
        for dataset in datasets
        for subject in range(subjects)
        for category in categories
    ]
    return Manifest(rows=rows, roots={}, meta=META)


def rows_in(rows: list[Row], split: str) -> list[Row]:
    return [row for row in rows if row["split"] == split]


def test_the_manifests_own_splits_need_no_parts() -> None:
    config = ProtocolConfig()
    assert (parts_of(config, manifest(subjects=1)), own_split(config)) == ({}, None)


def test_mixed_splits_every_data_set_by_subject_in_one_run() -> None:
    config, clips = ProtocolConfig(protocol="mixed", split_seed=3), manifest()
    own = own_split(config)
    assert parts_of(config, clips) == {}
    assert own is not None
    rows = split_anew(clips.rows, own)
    assert rows == split_rows(clips.rows, SplitConfig(split="subject", seed=3)).rows
    for split in ("train", "dev", "test"):
        assert {row["dataset"] for row in rows_in(rows, split)} == {"first", "second"}


def test_cross_trains_on_one_data_set_and_tests_on_all() -> None:
    clips = manifest()
    parts = parts_of(ProtocolConfig(protocol="cross", dev_subjects=3, test_subjects=0.25), clips)
    assert list(parts) == ["train-first", "train-second"]
    for name, split in parts.items():
        trained = name.removeprefix("train-")
        rows = split_anew(clips.rows, split)
        expected = SplitConfig(
            split="cross", train_datasets=(trained,), test_datasets=("first", "second"), dev=3, test=0.25
        )
        assert rows == split_rows(clips.rows, expected).rows
        for seen in ("train", "dev"):
            assert {row["dataset"] for row in rows_in(rows, seen)} == {trained}
        tested = rows_in(rows, "test")
        # 3 own subjects, and all 12 of the other data set, with 4 clips each.
        assert sum(row["dataset"] == trained for row in tested) == 3 * 4
        assert sum(row["dataset"] != trained for row in tested) == 12 * 4
        assert len({row["subject"] for row in rows_in(rows, "dev")}) == 3


def test_every_method_is_held_out_once() -> None:
    clips = manifest()
    parts = parts_of(ProtocolConfig(protocol="method"), clips)
    assert list(parts) == ["method-faceswap", "method-faceswap-wav2lip", "method-rtvc"]
    for name, split in parts.items():
        rows = split_anew(clips.rows, split)
        assert split == SplitConfig(split="method", test_methods=(name.removeprefix("method-"),))
        assert rows == split_rows(clips.rows, split).rows
        held_out = {row["method"] for row in rows_in(rows, "test") if row["label"]}
        seen = {row["method"] for row in rows_in(rows, "train") + rows_in(rows, "dev") if row["label"]}
        assert held_out
        assert not held_out & seen
    two = parts_of(ProtocolConfig(protocol="method", test_methods=("rtvc", "wav2lip")), clips)
    assert list(two) == ["method-rtvc", "method-wav2lip"]


def test_five_folds_test_every_clip_once() -> None:
    clips = manifest()
    parts = parts_of(ProtocolConfig(protocol="folds", split_seed=1), clips)
    assert list(parts) == [f"fold-{fold}" for fold in range(5)]
    tested: list[str] = []
    for fold, split in enumerate(parts.values()):
        rows = split_anew(clips.rows, split)
        assert rows == split_rows(clips.rows, SplitConfig(split="folds", fold=fold, seed=1)).rows
        tested += [row["clip_id"] for row in rows_in(rows, "test")]
    assert sorted(tested) == sorted(row["clip_id"] for row in clips.rows)


def test_parts_have_names_that_folders_can_have() -> None:
    names = ("my set", "my/set", "My_set", "größe", "x" * 90)
    parts = parts_of(ProtocolConfig(protocol="cross"), manifest(datasets=names))
    assert [split.train_datasets for split in parts.values()] == [(name,) for name in sorted(names)]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", part) for part in parts)
    assert len({part.lower() for part in parts}) == len(names)


def test_augmented_clips_follow_their_parents_but_not_into_test() -> None:
    clips = manifest()
    children = [
        {**row, "clip_id": f"{row['clip_id']}-blur", "augmentation": "blur", "parent_clip_id": row["clip_id"]}
        for row in clips.rows
    ]
    for split in parts_of(ProtocolConfig(protocol="folds"), replace(clips, rows=[*children, *clips.rows])).values():
        rows = split_anew([*children, *clips.rows], split)
        assert [row["clip_id"] for row in rows] == [row["clip_id"] for row in [*children, *clips.rows]]
        of_parent = {row["clip_id"]: row["split"] for row in rows}
        for row in rows[: len(children)]:
            parents = of_parent[row["parent_clip_id"]]
            assert row["split"] == (parents if parents in ("train", "dev") else None)
        assert rows[len(children) :] == split_rows(clips.rows, split).rows


@pytest.mark.parametrize(
    ("options", "content", "sentence"),
    [
        ({"protocol": "mixed"}, {"datasets": ("first",)}, "needs at least two data sets, but the manifest has 'first'"),
        ({"protocol": "cross"}, {"datasets": ("first",)}, "needs at least two data sets, but the manifest has 'first'"),
        ({"protocol": "folds"}, {"subjects": 4}, "fold-0, fold-1, fold-2, fold-3, fold-4: 5 folds need at least"),
        (
            {"protocol": "folds"},
            {"categories": "BCD"},
            "fold-0, fold-1, fold-2, fold-3, fold-4: train has fakes alone); give another --protocol.",
        ),
        ({"protocol": "cross"}, {"subjects": 2}, "train-first, train-second: a split of 1 dev and 1 test subjects"),
        ({"protocol": "cross", "dev_subjects": 0}, {}, "(train-first, train-second: dev has no clip); give other"),
        ({"protocol": "mixed", "test_subjects": 0}, {}, "cannot split these clips (test has no clip); give"),
        (
            {"protocol": "method"},
            {"categories": "AB"},
            "(method-rtvc: test_methods rtvc leave train no fake); name the --test-methods that it",
        ),
        ({"protocol": "method"}, {"categories": "A"}, "needs fakes whose method is known"),
        ({"protocol": "method", "test_methods": ("none",)}, {}, "method-none: test_methods names 'none', known"),
    ],
)  # fmt: skip
def test_clips_that_cannot_be_split_are_refused_in_one_sentence(
    options: dict[str, Any], content: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)) as refused:
        parts_of(ProtocolConfig(**options), manifest(**content))
    assert str(refused.value).count(". ") == 0
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"protocol": "fold"}, "protocol is 'fold'; choose from manifest, mixed, cross, method, folds."),
        ({"protocol": "folds", "dev_subjects": 0.1}, "dev_subjects is 0.1, but the protocol 'folds' takes none"),
        ({"split_seed": 1}, "split_seed is 1, but the protocol 'manifest' takes none; leave it out"),
        ({"protocol": "mixed", "split_seed": -1}, "split_seed is -1; give 0 or more."),
        ({"protocol": "cross", "test_methods": ("rtvc",)}, "but the protocol 'cross' takes none"),
    ],
)
def test_options_that_a_protocol_does_not_have(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        ProtocolConfig(**options)


def test_a_split_of_another_program_is_refused() -> None:
    split = SplitConfig(split="cross", train_datasets=("a",), test_datasets=("a", "b"))
    content = {"split": "cross", "dev": 0.2, "test": 0.2, "seed": 0, "test_methods": [], "fold": 0}
    content |= {"train_datasets": ["a"], "test_datasets": ["a", "b"]}
    assert split_from_dict(content) == split
    with pytest.raises(InputError, match="split has shape, which this program does not know"):
        split_from_dict({**content, "shape": 1})
