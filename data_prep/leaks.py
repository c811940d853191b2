"""What a split holds, and what it leaves to be recognised instead of forgeries."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from data_prep.manifest import CATEGORIES, SPLITS, Row
from data_prep.split_methods import components_of
from data_prep.split_strata import Identity, subject_of, target_identities

UNUSED = "unused"
"""The name, beside the splits', of the clips whose split is null."""

Leak = dict[str, Any]
_Splits = dict[str | None, list[Row]]


def split_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of every split, and its leaks, in JSON types.

    Under train, dev, test and unused (clips whose split is null): clips, subjects and targets (how many different
    ones), unknown_targets (fakes that name no target), categories {A, B, C, D: clips} and datasets {name: clips}.
    Under leaks: a list of {kind, clips, sentence}; clips says how many are concerned.
    """
    parts: _Splits = {split: [] for split in (*SPLITS, None)}
    for row in rows:
        parts[row["split"]].append(row)
    leaks = [leak for find in _FINDERS for leak in find(parts)]
    return {split or UNUSED: _counts(part) for split, part in parts.items()} | {"leaks": leaks}


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    categories = Counter(row["category"] for row in rows)
    return {
        "clips": len(rows),
        "subjects": len(_subjects(rows)),
        "targets": len({target for row in rows for target in target_identities(row)}),
        "unknown_targets": sum(_is_fake(row) and row["target"] is None for row in rows),
        "categories": {category: categories[category] for category in CATEGORIES},
        "datasets": dict(sorted(Counter(row["dataset"] for row in rows).items())),
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """A summary of `split_summary` as lines of text: a table with a column per split, then a line per leak."""
    columns = [name for name in (*SPLITS, UNUSED) if name in SPLITS or summary[name]["clips"]]
    datasets = sorted({name for column in columns for name in summary[column]["datasets"]})
    table = [["", *columns]]
    for field in ("clips", "subjects", "targets"):
        table.append([field, *(f"{summary[column][field]:,}" for column in columns)])
    table.append(["unknown target", *(f"{summary[column]['unknown_targets']:,}" for column in columns)])
    for category in CATEGORIES:
        table.append([f"category {category}", *(f"{summary[column]['categories'][category]:,}" for column in columns)])
    for name in datasets if len(datasets) > 1 else ():
        table.append([name, *(f"{summary[column]['datasets'].get(name, 0):,}" for column in columns)])
    first, *others = (max(map(len, cells)) for cells in zip(*table, strict=True))
    lines = [
        "  ".join([head.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for head, *cells in table
    ]
    leaks = [f"leak: {leak['sentence']}" for leak in summary["leaks"]]
    used = [split for split in SPLITS if summary[split]["clips"]]
    if len(used) < 2 and not leaks:
        where = f"all clips that have a split are in {used[0]}" if used else "no clip has a split"
        leaks = [f"There is nothing to compare: {where}."]
    return [*lines, *(leaks or ["No leak was found between the splits."])]


def _is_fake(row: Row) -> bool:
    return bool(row["label"] == 1)


def _subjects(rows: Iterable[Row]) -> set[Identity]:
    return {subject_of(row) for row in rows}


def _identities(row: Row) -> list[Identity]:
    return [subject_of(row), *target_identities(row)]


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def _leak(kind: str, clips: int, sentence: str) -> list[Leak]:
    return [{"kind": kind, "clips": clips, "sentence": sentence}] if clips else []


def _subject_in_two_splits(parts: _Splits) -> list[Leak]:
    splits_of: dict[Identity, set[str]] = defaultdict(set)
    for split in SPLITS:
        for subject in _subjects(parts[split]):
            splits_of[subject].add(split)
    both = {subject for subject, splits in splits_of.items() if len(splits) > 1}
    clips = sum(subject_of(row) in both for split in SPLITS for row in parts[split])
    sentence = f"{len(both)} of {len(splits_of)} subjects are in more than one split, with {clips} clips."
    return _leak("subject_in_two_splits", clips, sentence)


def _identity_in_training(parts: _Splits) -> list[Leak]:
    known = {identity for row in parts["train"] for identity in _identities(row)}
    leaks: list[Leak] = []
    for split in ("test", "dev"):
        found = [row for row in parts[split] if not known.isdisjoint(_identities(row))]
        if found:
            sentence = (
                f"{_share(len(found), len(parts[split]))} clips of {split} name, as subject or target, an identity "
                f"that occurs in train as subject or target."
            )
            leaks += _leak(f"{split}_identity_in_training", len(found), sentence)
    return leaks


def _test_identity_in_dev(parts: _Splits) -> list[Leak]:
    """Dev chooses among networks: what is chosen on the people of test does not say how it does on others."""
    known = {identity for row in parts["dev"] for identity in _identities(row)}
    found = sum(not known.isdisjoint(_identities(row)) for row in parts["test"])
    sentence = (
        f"{_share(found, len(parts['test']) or 1)} clips of test name, as subject or target, an identity that occurs "
        f"in dev as subject or target."
    )
    return _leak("test_identity_in_dev", found, sentence)


def _target_is_training_subject(parts: _Splits) -> list[Leak]:
    known = _subjects(parts["train"])
    leaks: list[Leak] = []
    for split in ("test", "dev"):
        fakes = [row for row in parts[split] if _is_fake(row)]
        found = [row for row in fakes if not known.isdisjoint(target_identities(row))]
        if found:
            sentence = f"{_share(len(found), len(fakes))} fakes of {split} name a target who is a training subject."
            leaks += _leak(f"{split}_target_is_training_subject", len(found), sentence)
    return leaks


def _target_unknown(parts: _Splits) -> list[Leak]:
    leaks: list[Leak] = []
    for split in ("test", "dev"):
        fakes = [row for row in parts[split] if _is_fake(row)]
        found = [row for row in fakes if row["target"] is None]
        if found and parts["train"]:
            sentence = f"{_share(len(found), len(fakes))} fakes of {split} name no target, who may occur in train."
            leaks += _leak(f"{split}_target_unknown", len(found), sentence)
    return leaks


def _method_seen_in_training(parts: _Splits) -> list[Leak]:
    """Looks only at methods that test has and train has not: others are meant to be known."""
    seen = {row["method"] for row in parts["train"] if _is_fake(row) and row["method"] is not None}
    seen_parts = frozenset[str]().union(*map(components_of, seen))
    tested = Counter(row["method"] for row in parts["test"] if _is_fake(row) and row["method"] is not None)
    found = {
        method: clips for method, clips in tested.items() if method not in seen and components_of(method) & seen_parts
    }
    shared = frozenset[str]().union(*map(components_of, found)) & seen_parts
    if not found:
        return []
    clips = sum(found.values())
    sentence = (
        f"{_share(clips, tested.total())} fakes of test have a method that no training clip has "
        f"({', '.join(sorted(found))}), but share a part of it with training clips: {', '.join(sorted(shared))}."
    )
    return _leak("method_seen_in_training", clips, sentence)


def _method_perhaps_seen_in_training(parts: _Splits) -> list[Leak]:
    """Voices of test that train has not, where clips of category D in train do not name the making of their sound.

    FakeAVCeleb names no voice method for D, whose sound is cloned all the same.
    """
    fakes = [row for part in parts.values() for row in part if _is_fake(row) and row["method"] is not None]
    voices = _parts_of(row for row in fakes if row["category"] == "B")
    held_out = voices - _parts_of(row for row in fakes if row["split"] == "train")
    tested = [row for row in fakes if row["split"] == "test" and components_of(row["method"]) & held_out]
    datasets = {row["dataset"] for row in tested}
    unnamed = sum(
        row["category"] == "D" and row["dataset"] in datasets and not components_of(row["method"] or "") & voices
        for row in parts["train"]
    )
    names = ", ".join(sorted(held_out & _parts_of(tested)))
    sentence = (
        f"The method of {unnamed} training clips of category D names no method of fake sound, though their sound is "
        f"fake: it may have been made like that of {len(tested)} fakes of test, by {names}, which training never names."
    )
    return _leak("method_perhaps_seen_in_training", len(tested) if unnamed else 0, sentence)


def _parts_of(fakes: Iterable[Row]) -> frozenset[str]:
    """What the methods of these fakes are made of; each must have one."""
    return frozenset[str]().union(*(components_of(row["method"]) for row in fakes))


def _same_file_in_two_splits(parts: _Splits) -> list[Leak]:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for row in parts[split]:
            for path in _files(row):
                splits_of[path].add(split)
    both = {path for path, splits in splits_of.items() if len(splits) > 1}
    clips = sum(not both.isdisjoint(_files(row)) for split in SPLITS for row in parts[split])
    example = min(both, default="")
    sentence = f"{clips} clips share a file with a clip of another split, such as {example!r}."
    return _leak("same_file_in_two_splits", clips, sentence)


def _files(row: Row) -> list[str]:
    return [path for path in (row["video_path"], row["audio_path"]) if path is not None]


def _children(parts: _Splits) -> list[Leak]:
    split_of = {row["clip_id"]: split for split, part in parts.items() for row in part}
    children = [row for part in parts.values() for row in part if row["parent_clip_id"] is not None]
    apart = sum(split_of.get(row["parent_clip_id"]) != row["split"] for row in children)
    tested = sum(row["split"] == "test" for row in children)
    return [
        *_leak(
            "parent_and_child_apart",
            apart,
            f"{apart} of {len(children)} augmented clips are not in the split of their parent.",
        ),
        *_leak(
            "augmented_test_clip",
            tested,
            f"{tested} of {len(parts['test'])} clips of test are augmented; test clips must be as they are.",
        ),
    ]


def _same_name_in_two_datasets(parts: _Splits) -> list[Leak]:
    datasets_of: dict[str, set[str]] = defaultdict(set)
    for row in parts["train"]:
        for dataset, name in _identities(row):
            datasets_of[name].add(dataset)
    found: set[str] = set()
    clips = 0
    for row in parts["test"]:
        names = {name for dataset, name in _identities(row) if datasets_of.get(name, set()) - {dataset}}
        clips += bool(names)
        found |= names
    sentence = (
        f"{_share(clips, len(parts['test']) or 1)} clips of test name an identity whose name occurs in train in "
        f"another data set, such as {min(found, default='')!r}; equal names of two data sets are taken for two people."
    )
    return _leak("same_name_in_two_datasets", clips, sentence)


_FINDERS: tuple[Callable[[_Splits], list[Leak]], ...] = (
    _subject_in_two_splits,
    _identity_in_training,
    _test_identity_in_dev,
    _target_is_training_subject,
    _target_unknown,
    _method_seen_in_training,
    _method_perhaps_seen_in_training,
    _same_file_in_two_splits,
    _children,
    _same_name_in_two_datasets,
)
