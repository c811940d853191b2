"""Identities of a manifest, and seeded choices of them that are spread evenly over what they are like."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.manifest import Row, targets_of
from data_prep.storage import InputError

Identity = tuple[str, str]
"""(dataset, name): equal names in two data sets are two people."""
Traits = dict[Identity, tuple[str, str, str, str]]
"""Identity -> (dataset, categories, race, gender), what a choice is spread over; '' where unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a protocol decides: for each row its split, or the reason why it is in none, and what the user must know."""

    splits: list[str | None]
    reasons: list[str | None]
    notes: list[str] = field(default_factory=list)
    folds: list[int | None] | None = None


def subject_of(row: Row) -> Identity:
    """The source identity of a clip."""
    return row["dataset"], row["subject"]


def target_identities(row: Row) -> list[Identity]:
    """The identities that a clip borrows, in the order of its name; none for a real clip or where none is named."""
    return [(row["dataset"], target) for target in targets_of(row)]


def subject_traits(rows: Iterable[Row]) -> Traits:
    """What the subjects of `rows` are like. Several values of one subject are all kept, in alphabetical order."""
    found: dict[Identity, tuple[set[str], set[str], set[str]]] = defaultdict(lambda: (set(), set(), set()))
    for row in rows:
        categories, races, genders = found[row["dataset"], row["subject"]]
        categories.add(row["category"])
        if row["race"]:
            races.add(row["race"])
        if row["gender"]:
            genders.add(row["gender"])
    return {
        identity: (identity[0], "".join(sorted(categories)), "+".join(sorted(races)), "+".join(sorted(genders)))
        for identity, (categories, races, genders) in found.items()
    }


def choose(traits: Traits, count: int, seed: int) -> list[Identity]:
    """`count` of the identities, at random.

    They are spread over data sets as evenly as whole identities allow, within each data set over the sets of
    categories, within those over race, and within that over gender. The result depends on the arguments' values
    alone, not on their order.
    """
    return _choose(sorted(traits), traits, count, seed, ())


def _choose(group: Sequence[Identity], traits: Traits, count: int, seed: int, path: tuple[str, ...]) -> list[Identity]:
    if not group or len(path) == len(traits[group[0]]):
        return sorted(group, key=lambda identity: rank(seed, *identity))[:count]
    parts: dict[str, list[Identity]] = defaultdict(list)
    for identity in group:
        parts[traits[identity][len(path)]].append(identity)
    quotas = _quotas({name: len(part) for name, part in parts.items()}, count, seed, path)
    return [found for name in parts for found in _choose(parts[name], traits, quotas[name], seed, (*path, name))]


def _quotas(sizes: dict[str, int], count: int, seed: int, path: tuple[str, ...]) -> dict[str, int]:
    """How many of `count` fall to each part: proportional to its size, largest remainders rounded up."""
    total = sum(sizes.values())
    quotas = {name: count * size // total for name, size in sizes.items()}
    # Ties are broken anew under every path; else they would all favour, say, the same gender in every race.
    by_remainder = sorted(sizes, key=lambda name: (-(count * sizes[name] % total), rank(seed, *path, name)))
    for name in by_remainder[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def assign(traits: Traits, *, num_dev: int, num_test: int, seed: int) -> dict[Identity, str]:
    """Identity -> train, dev or test, stratified (see `choose`). Raises InputError if none is left to train on."""
    if num_dev + num_test >= len(traits):
        raise InputError(
            f"a split of {num_dev} dev and {num_test} test subjects leaves none of {len(traits)} to train on; "
            f"give smaller --dev and --test, or --split none."
        )
    split_of = dict.fromkeys(traits, "train") | dict.fromkeys(choose(traits, num_test, seed), "test")
    left = {identity: traits[identity] for identity in traits if split_of[identity] == "train"}
    return split_of | dict.fromkeys(choose(left, num_dev, seed), "dev")


def number_of(name: str, size: int | float, total: int) -> int:
    """How many of `total` the size is: itself if an integer, else that share of them, rounded, 1 at least if above 0.

    Raises InputError if it is negative, or a float that is no share below 1; `name` is the option it came from.
    """
    if not size >= 0 or (isinstance(size, float) and size >= 1):
        raise InputError(f"{name} is {size}; give a number of subjects (an integer) or a share of them below 1.")
    if isinstance(size, int):
        return size
    return max(1, round(size * total)) if size > 0 else 0


def rank(seed: int, *names: str) -> bytes:
    """A random position that depends on nothing but its arguments."""
    return hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()


def by_subject(rows: Sequence[Row], split_of: Mapping[Identity, str]) -> list[str | None]:
    """The split of each row's subject."""
    return [split_of[row["dataset"], row["subject"]] for row in rows]
