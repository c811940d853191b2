"""The protocol that keeps forgery methods for test alone, to see how a detector does on forgeries it never saw."""

import re
from collections.abc import Iterable, Sequence

from data_prep.manifest import Row
from data_prep.split_identities import split_subjects
from data_prep.split_strata import Plan, by_subject, number_of, subject_traits
from data_prep.storage import InputError

HELD_OUT_WITHOUT_TEST_SUBJECT = "held-out method with a train or dev subject"
SEEN_WITH_TEST_SUBJECT = "seen method with a test subject"
UNKNOWN_METHOD = "fake of unknown method"


def components_of(method: str) -> frozenset[str]:
    """What a method is made of, joined by - or +: {"faceswap", "wav2lip"} for "faceswap-wav2lip"."""
    return frozenset(re.split("[-+]", method))


def method_plan(
    rows: Sequence[Row], *, dev: int | float, test: int | float, seed: int, test_methods: Sequence[str]
) -> Plan:
    """Subjects are split as in `split_identities.subject_plan`; besides, fakes are parted by method.

    A fake that contains one of `test_methods` (all components of it) is used in test alone, and only if its subject
    is a test subject; any other fake only with a train or dev subject. A fake whose method is null is not used: it may
    hold what is held out, and it may hold what is seen. Real clips go where their subject does.

    Raises InputError for methods that no fake has, and if no fake would be left for train or for test.
    """
    held_out = [components_of(method) for method in test_methods]
    _check(rows, test_methods)
    traits = subject_traits(rows)
    if number_of("test", test, len(traits)) == 0:
        raise InputError("test is 0, but methods are held out for test; give a share or number of test subjects.")
    splits = by_subject(rows, split_subjects(traits, dev=dev, test=test, seed=seed))
    reasons: list[str | None] = [None] * len(rows)
    for index, row in enumerate(rows):
        if row["label"] == 0:
            continue
        if row["method"] is None:
            reasons[index] = UNKNOWN_METHOD
        elif _contains(row, held_out) and splits[index] != "test":
            reasons[index] = HELD_OUT_WITHOUT_TEST_SUBJECT
        elif not _contains(row, held_out) and splits[index] == "test":
            reasons[index] = SEEN_WITH_TEST_SUBJECT
        if reasons[index]:
            splits[index] = None
    for split in ("train", "test"):
        if not any(row["label"] == 1 and used == split for row, used in zip(rows, splits, strict=True)):
            raise InputError(
                f"test_methods {', '.join(test_methods)} leave {split} no fake; hold out fewer or other methods."
            )
    return Plan(splits=splits, reasons=reasons, notes=_notes(rows, splits))


def _contains(row: Row, held_out: Iterable[frozenset[str]]) -> bool:
    return any(components_of(row["method"]) >= components for components in held_out)


def _check(rows: Sequence[Row], test_methods: Sequence[str]) -> None:
    methods = {row["method"] for row in rows if row["label"] == 1 and row["method"] is not None}
    for wanted in test_methods:
        if not any(components_of(method) >= components_of(wanted) for method in methods):
            known = methods.union(*map(components_of, methods))
            raise InputError(
                f"test_methods names {wanted!r}, known methods are: {', '.join(sorted(known)) or 'none'}; "
                f"give one of them or a part of one."
            )


def _notes(rows: Sequence[Row], splits: Sequence[str | None]) -> list[str]:
    """Which parts of the tested methods training shows, too."""
    used = list(zip(rows, splits, strict=True))
    seen = {row["method"] for row, split in used if split == "train" and row["label"] == 1}
    seen_parts = frozenset[str]().union(*map(components_of, seen))
    shared = [components_of(row["method"]) & seen_parts for row, split in used if split == "test" and row["label"] == 1]
    notes = []
    if any(shared):
        names = ", ".join(sorted(frozenset[str]().union(*shared)))
        notes.append(
            f"{sum(map(bool, shared))} of {len(shared)} test fakes also contain a method that training shows: {names}."
        )
    return notes
