"""Splits of a manifest's clips in which no subject is in two of train, dev and test."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from data_prep.manifest import Row
from data_prep.storage import InputError

Subject = tuple[str, str]
"""(dataset, subject): equal names in two data sets are two people."""


def split_by_subject(
    rows: Sequence[Row], *, dev: int | float = 0.2, test: int | float = 0.2, seed: int = 0
) -> list[Row]:
    """Copies of `rows`, in their order, with `split` set to train, dev or test by their subject.

    `dev` and `test` are numbers of subjects (int) or shares of them (float below 1, rounded, at least one subject if
    above 0). Subjects are stratified by data set and by which categories they have, as evenly as whole subjects
    allow. The result depends on the subjects, their categories and `seed`, not on the order of the rows. A fake
    also borrows a target identity, which may be a subject of another split: see `stgs manifest --split`.

    Raises InputError if a number is negative or no subject is left to train on.
    """
    strata = _strata(rows)
    total = sum(len(subjects) for subjects in strata.values())
    num_dev, num_test = _num_subjects("dev", dev, total), _num_subjects("test", test, total)
    if num_dev + num_test >= total:
        raise InputError(
            f"a split of {num_dev} dev and {num_test} test subjects leaves none of {total} to train on; take fewer."
        )
    ordered = {name: sorted(strata[name], key=lambda subject: _rank(seed, *subject)) for name in strata}
    split_of: dict[Subject, str] = {}
    for split, count in (("test", num_test), ("dev", num_dev)):
        for name, quota in _quotas({name: len(ordered[name]) for name in ordered}, count, seed).items():
            split_of |= dict.fromkeys(ordered[name][:quota], split)
            ordered[name] = ordered[name][quota:]
    return [row | {"split": split_of.get((row["dataset"], row["subject"]), "train")} for row in rows]


def _strata(rows: Sequence[Row]) -> dict[str, list[Subject]]:
    """Stratum, named `data set:categories`, -> its subjects."""
    categories: dict[Subject, set[str]] = defaultdict(set)
    for row in rows:
        categories[row["dataset"], row["subject"]].add(row["category"])
    strata: dict[str, list[Subject]] = defaultdict(list)
    for subject, found in categories.items():
        strata[f"{subject[0]}:{''.join(sorted(found))}"].append(subject)
    return strata


def _num_subjects(name: str, size: int | float, total: int) -> int:
    if size < 0 or (isinstance(size, float) and size >= 1):
        raise InputError(f"{name} is {size}; give a number of subjects (an integer) or a share of them below 1.")
    if isinstance(size, int):
        return size
    return max(1, round(size * total)) if size > 0 else 0


def _quotas(sizes: dict[str, int], count: int, seed: int) -> dict[str, int]:
    """How many of `count` fall to each stratum: proportional to its size, largest remainders rounded up."""
    total = sum(sizes.values())
    quotas = {name: count * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(count * sizes[name] % total), _rank(seed, name)))
    for name in by_remainder[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _rank(seed: int, *names: str) -> bytes:
    """A random position that depends on nothing but its arguments."""
    return hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
