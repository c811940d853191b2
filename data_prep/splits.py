"""Splits of a manifest's clips into train, dev and test, and MRDF's folds.

No row is ever removed: a clip that a protocol does not use keeps split null, and is counted with the reason. So one
corpus serves every protocol. What a split leaves to be recognised is told by `data_prep.leaks`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

from data_prep.manifest import CATEGORIES, SPLITS, Row
from data_prep.split_folds import NUM_FOLDS, folds_plan
from data_prep.split_identities import cross_plan, split_subjects, subject_plan, subject_target_plan
from data_prep.split_methods import method_plan
from data_prep.split_paper import paper_plan
from data_prep.split_strata import Plan, by_subject, subject_traits
from data_prep.storage import InputError

Protocol = Literal["subject", "subject-target", "method", "folds", "paper", "cross", "none"]

# Options that not every protocol has -> the protocols that have them.
_OF_PROTOCOLS = {
    "dev": ("subject", "subject-target", "method", "cross"),
    "test": ("subject", "subject-target", "method", "cross"),
    "test_methods": ("method",),
    "fold": ("folds",),
    "train_datasets": ("cross",),
    "test_datasets": ("cross",),
}
_NEEDED = ("test_methods", "train_datasets", "test_datasets")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """How clips are split. Raises InputError for values that are none and for options that a protocol does not have."""

    split: Protocol = "subject"
    """What keeps train, dev and test apart. subject: no source identity is in two of them (of merged data sets: the
    mixed protocol, each in proportion); subject-target: no identity in any role; method: besides subject, forgery
    methods seen in test alone; folds: MRDF's 5 folds of balanced categories; paper: shares of clips as in the paper;
    cross: test on other data sets; none: no split."""
    dev: float = 0.2
    """Share of the subjects for dev, or their number from 1 on (subject, subject-target, method, cross)."""
    test: float = 0.2
    """Share of the subjects for test, or their number from 1 on (subject, subject-target, method; cross: of those of
    data sets on both lists, else without effect)."""
    seed: int = 0
    """Seed of every random choice of the split."""
    test_methods: tuple[str, ...] = ()
    """Methods, or parts of them such as wav2lip, that are kept for test (method)."""
    fold: int = 0
    """The fold that is the test set, 0 to 4 (folds)."""
    train_datasets: tuple[str, ...] = ()
    """Data sets for train and dev (cross)."""
    test_datasets: tuple[str, ...] = ()
    """Data sets for test; one that is in train_datasets, too, is divided by subject (cross)."""

    def __post_init__(self) -> None:
        if self.split not in get_args(Protocol):
            raise InputError(f"split is {self.split!r}; give one of {', '.join(get_args(Protocol))}.")
        for name in ("dev", "test"):
            size = getattr(self, name)
            if not 0 <= size < math.inf or (size >= 1 and size != int(size)):
                raise InputError(f"{name} is {size}; give a share below 1, or a whole number of subjects.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; give 0 or more.")
        if not 0 <= self.fold < NUM_FOLDS:
            raise InputError(f"fold is {self.fold}; give one from 0 to {NUM_FOLDS - 1}.")
        defaults = {item.name: item.default for item in fields(self)}
        for name, protocols in _OF_PROTOCOLS.items():
            value = getattr(self, name)
            if self.split not in protocols and value != defaults[name]:
                raise InputError(
                    f"{name} is {value!r}, but a split by {self.split!r} takes none; leave it out, or give split as "
                    f"{' or '.join(protocols)}."
                )
            if self.split in protocols and name in _NEEDED and not value:
                raise InputError(f"a split by {self.split!r} needs {name}; name at least one.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitResult:
    """What became of a manifest's rows.

    rows: copies of all of them, in their order, with split and fold set, null where a clip is not used. dropped:
    reason -> clips that are not used for it. notes: sentences on what the user should know of this split.
    """

    rows: list[Row]
    dropped: dict[str, int]
    notes: list[str]


def split_rows(rows: Sequence[Row], config: SplitConfig) -> SplitResult:
    """Splits `rows` as `config` says. The result depends on the rows and the config, not on the order of the rows.

    An augmented child has the split and the fold of its parent.

    Raises InputError for a child whose parent is in test or not used, and for what the protocol cannot do with these
    rows: too few subjects, unknown methods or data sets.
    """
    originals = [row for row in rows if not _is_child(row)]
    plan = _plan(originals, config)
    decided = {
        row["clip_id"]: {"split": split, "fold": fold}
        for row, split, fold in zip(originals, plan.splits, plan.folds or [None] * len(originals), strict=True)
    }
    found = _with_children(rows, decided, unsplit=config.split == "none")
    dropped = Counter(reason for reason in plan.reasons if reason is not None)
    return SplitResult(
        rows=found, dropped=dict(sorted(dropped.items())), notes=[*plan.notes, *_missing_categories(found)]
    )


def _plan(rows: Sequence[Row], config: SplitConfig) -> Plan:
    dev, test = _size(config.dev), _size(config.test)
    seed = config.seed
    match config.split:
        case "subject":
            return subject_plan(rows, dev=dev, test=test, seed=seed)
        case "subject-target":
            return subject_target_plan(rows, dev=dev, test=test, seed=seed)
        case "method":
            return method_plan(rows, dev=dev, test=test, seed=seed, test_methods=config.test_methods)
        case "folds":
            return folds_plan(rows, fold=config.fold, seed=seed)
        case "paper":
            return paper_plan(rows, seed=seed)
        case "cross":
            train, tested = config.train_datasets, config.test_datasets
            return cross_plan(rows, dev=dev, test=test, seed=seed, train_datasets=train, test_datasets=tested)
        case "none":
            return Plan(splits=[None] * len(rows), reasons=[None] * len(rows))


def _size(value: float) -> int | float:
    return int(value) if value >= 1 else value


def _is_child(row: Row) -> bool:
    return row["augmentation"] is not None or row["parent_clip_id"] is not None


def _with_children(rows: Sequence[Row], decided: dict[str, Row], *, unsplit: bool) -> list[Row]:
    """Copies of `rows` with what was decided of them (clip_id -> columns) or of their parents.

    unsplit: children may be in no split, since no clip is in one.
    """
    found = []
    for row in rows:
        clip_id, parent = row["clip_id"], row["parent_clip_id"]
        if not _is_child(row):
            found.append(row | decided[clip_id])
            continue
        if parent not in decided:
            raise InputError(
                f"clip {clip_id!r} is an augmentation of {parent!r}, which is no unaugmented clip of this manifest; "
                f"list its parent, too."
            )
        split = decided[parent]["split"]
        if split == "test" or (split is None and not unsplit):
            where = "in test" if split else "not used"
            raise InputError(
                f"clip {clip_id!r} is an augmentation of {parent!r}, which is {where} in this split; split first, "
                f"augment then."
            )
        found.append(row | decided[parent])
    return found


def _missing_categories(rows: Sequence[Row]) -> list[str]:
    """A sentence for each category that some split lacks though it has clips."""
    found = {split: {row["category"] for row in rows if row["split"] == split} for split in SPLITS}
    notes = []
    for category in CATEGORIES:
        lacking = [split for split in SPLITS if found[split] and category not in found[split]]
        if lacking and any(row["category"] == category for row in rows):
            notes.append(f"There is no clip of category {category} in {' and '.join(lacking)}.")
    return notes


def split_by_subject(
    rows: Sequence[Row], *, dev: int | float = 0.2, test: int | float = 0.2, seed: int = 0
) -> list[Row]:
    """Copies of `rows`, in their order, with `split` set to train, dev or test by their subject.

    `dev` and `test` are numbers of subjects (int) or shares of them (float below 1, rounded, at least one subject if
    above 0). Subjects are stratified by data set, by which categories they have, by race and by gender, as evenly as
    whole subjects allow. The result does not depend on the order of the rows. A fake also borrows a target identity,
    which may be a subject of another split: see `SplitConfig.split`.

    Raises InputError if a number is negative or no subject is left to train on.
    """
    split_of = split_subjects(subject_traits(rows), dev=dev, test=test, seed=seed)
    return [row | {"split": split} for row, split in zip(rows, by_subject(rows, split_of), strict=True)]
