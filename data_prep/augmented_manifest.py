"""Augmented clips as rows of a manifest: children of clips of train and dev, prepared like any other row."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Literal

from data_prep.augmentations import DEFAULT_NAMES, augmentation_named
from data_prep.manifest import Row
from data_prep.split_strata import rank
from data_prep.storage import InputError

AUGMENTED_SPLITS = ("train", "dev")
PAPER_CLIPS = {"train": 50_742, "dev": 10_718}
"""Clips of the paper's training and validation set after its augmentation (arXiv 2406.13384)."""


def augment_rows(
    rows: Sequence[Row],
    *,
    per_clip: int = 1,
    names: tuple[str, ...] = DEFAULT_NAMES,
    balance: Literal["none", "paper"] = "none",
    seed: int = 0,
) -> list[Row]:
    """`rows`, in their order, and behind them the augmented children of those in train and dev.

    A child is its parent's row with clip_id `parent#augmentation`, augmentation and parent_clip_id. A clip's
    augmentations are drawn without repetition from `names`, each as likely, from `seed` and the clip_id alone: real
    and fake follow one distribution. Clips of test, and those that no split uses, get none.

    balance: with none, every clip gets `per_clip` children. With paper (arXiv 2406.13384), in each of the two splits
    real clips alone get children, as many as there are fakes too many, spread evenly, but a clip no more than there
    are `names`. A child is then always real: its augmentation tells the label.

    Raises InputError if a name is no augmentation, stands there twice, or there are fewer than per_clip; if per_clip
    is below 1; if a row is augmented already; if no clip is in train or dev.
    """
    _check(rows, per_clip, names)
    numbers = _balanced_numbers(rows, len(names), seed) if balance == "paper" else _equal_numbers(rows, per_clip)
    children = [_child(row, name) for row in rows for name in _drawn(row, names, numbers[row["clip_id"]], seed)]
    return [*rows, *children]


def shortfall(rows: Collection[Row]) -> dict[str, int]:
    """Split -> how many real clips it lacks to have as many as fakes; train and dev, augmented clips counted."""
    lacking = {}
    for split in AUGMENTED_SPLITS:
        labels = [row["label"] for row in rows if row["split"] == split]
        lacking[split] = max(0, sum(labels) - labels.count(0))
    return lacking


def _check(rows: Sequence[Row], per_clip: int, names: tuple[str, ...]) -> None:
    for name in names:
        augmentation_named(name)
        if names.count(name) > 1:
            raise InputError(f"names has {name!r} twice; give each augmentation once.")
    if not 1 <= per_clip <= len(names):
        raise InputError(f"per_clip is {per_clip}; give a number from 1 to the number of names, {len(names)}.")
    for row in rows:
        if row["augmentation"] is not None:
            raise InputError(
                f"clip {row['clip_id']!r} is an augmentation already; augment the manifest that this one was made from."
            )
    if not any(row["split"] in AUGMENTED_SPLITS for row in rows):
        raise InputError("the manifest has no clip in train or dev; make it with a --split first.")


def _equal_numbers(rows: Sequence[Row], per_clip: int) -> dict[str, int]:
    return {row["clip_id"]: per_clip if row["split"] in AUGMENTED_SPLITS else 0 for row in rows}


def _balanced_numbers(rows: Sequence[Row], most: int, seed: int) -> dict[str, int]:
    """clip_id -> number of children, at most `most`, 0 for fakes."""
    real: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["label"] == 0:
            real[row["split"]].append(row["clip_id"])
    numbers = dict.fromkeys((row["clip_id"] for row in rows), 0)
    for split, wanted in shortfall(rows).items():
        clip_ids = sorted(real[split], key=lambda clip_id: rank(seed, clip_id))
        for position, clip_id in enumerate(clip_ids):
            # The first ones take one more where the number cannot be shared out evenly.
            numbers[clip_id] = min(most, (wanted + len(clip_ids) - 1 - position) // len(clip_ids))
    return numbers


def _drawn(row: Row, names: tuple[str, ...], number: int, seed: int) -> list[str]:
    return sorted(names, key=lambda name: rank(seed, row["clip_id"], name))[:number] if number else []


def _child(row: Row, name: str) -> Row:
    return row | {
        "clip_id": f"{row['clip_id']}#{name}",
        "augmentation": name,
        "parent_clip_id": row["clip_id"],
    }
