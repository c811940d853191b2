"""A reconstruction of the paper's split, whose counts are known, but not how it was drawn."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_prep.manifest import Row
from data_prep.split_strata import Identity, Plan, assign, by_subject, rank, subject_of, subject_traits
from data_prep.storage import InputError

PAPER_SHARES = {"train": 0.673, "dev": 0.142, "test": 0.185}
"""Shares of the raw clips. The paper's 50,742 / 10,718 / 8,963 count train and dev after augmentation."""

_TOLERANCE = 0.01
# Errors are sums of floats and may differ in their last bits; below a thousandth of a clip they are equal.
_EQUAL = 1e-3
_Bins = dict[tuple[str, ...], dict[str, dict[int, list[Identity]]]]
"""Stratum -> split -> number of clips -> the subjects with as many, in random order."""
_Change = tuple[tuple[str, ...], str, int, str, int]
"""(stratum, split, clips, other split, clips there): two subjects change places; 0 clips there: one moves."""


def paper_plan(rows: Sequence[Row], *, seed: int) -> Plan:
    """Whole subjects, stratified, whose clips come as near to PAPER_SHARES as exchanges of subjects bring them.

    Raises InputError for fewer than 3 subjects.
    """
    traits = subject_traits(rows)
    if len(traits) < 3:
        raise InputError(f"the paper's split needs at least 3 subjects, there are {len(traits)}; add some.")
    num_dev, num_test = (max(1, round(PAPER_SHARES[split] * len(traits))) for split in ("dev", "test"))
    split_of = assign(traits, num_dev=num_dev, num_test=num_test, seed=seed)
    clips = Counter(map(subject_of, rows))
    split_of = _balanced(split_of, dict(traits), clips, seed, moves=False)
    if _error(_clips_of(split_of, clips), clips.total()) > _TOLERANCE * clips.total():
        # Few or unequal subjects: the shares then matter more than the strata.
        split_of = _balanced(split_of, dict.fromkeys(traits, ()), clips, seed, moves=True)
    splits = by_subject(rows, split_of)
    reached = Counter(splits)
    note = (
        "The paper's split is reconstructed: its 50,742 / 10,718 / 8,963 clips are counts after augmentation of train "
        "and dev, and it does not say how it split; here every subject is in one split, and train, dev and test have "
        + ", ".join(f"{reached[split] / len(rows):.2%}" for split in PAPER_SHARES)
        + " of the clips, where the paper has 67.3, 14.2 and 18.5 %."
    )
    return Plan(splits=splits, reasons=[None] * len(rows), notes=[note])


def _balanced(
    split_of: Mapping[Identity, str],
    strata: Mapping[Identity, tuple[str, ...]],
    clips: Counter[Identity],
    seed: int,
    *,
    moves: bool,
) -> dict[Identity, str]:
    """`split_of` after exchanges of two subjects of a stratum, best first, until none brings the clips nearer.

    clips: how many each subject has. moves: single subjects may move, too, but no split loses its last one.
    """
    have = _clips_of(split_of, clips)
    bins: _Bins = defaultdict(lambda: {split: {} for split in PAPER_SHARES})
    for identity in sorted(split_of, key=lambda identity: rank(seed, *identity)):
        bins[strata[identity]][split_of[identity]].setdefault(clips[identity], []).append(identity)
    while True:
        changes = itertools.chain(_exchanges(bins), _moves(bins) if moves else ())
        error, change = _best(changes, have, clips.total())
        if change is None or error > _error(have, clips.total()) - _EQUAL:
            break
        _apply(change, bins, have)
    return {
        identity: split
        for places in bins.values()
        for split, sizes in places.items()
        for group in sizes.values()
        for identity in group
    }


def _clips_of(split_of: Mapping[Identity, str], clips: Counter[Identity]) -> Counter[str]:
    have: Counter[str] = Counter()
    for identity, split in split_of.items():
        have[split] += clips[identity]
    return have


def _error(have: Counter[str], total: int) -> float:
    """Clips that are too many or too few, over all splits."""
    return sum(abs(have[split] - share * total) for split, share in PAPER_SHARES.items())


def _best(changes: Iterable[_Change], have: Counter[str], total: int) -> tuple[float, _Change | None]:
    """The smallest error that a change leads to, and that change, the first of equals."""
    best: tuple[float, _Change | None] = (math.inf, None)
    off = {split: have[split] - share * total for split, share in PAPER_SHARES.items()}
    standing = sum(map(abs, off.values()))
    for change in changes:
        _, split, number, other, back = change
        step = number - back
        error = standing - abs(off[split]) - abs(off[other]) + abs(off[split] - step) + abs(off[other] + step)
        if error < best[0] - _EQUAL:
            best = error, change
    return best


def _exchanges(bins: _Bins) -> Iterator[_Change]:
    for stratum in sorted(bins):
        for split, other in itertools.combinations(PAPER_SHARES, 2):
            for number, back in itertools.product(sorted(bins[stratum][split]), sorted(bins[stratum][other])):
                if number != back:
                    yield stratum, split, number, other, back


def _moves(bins: _Bins) -> Iterator[_Change]:
    for split, other in itertools.permutations(PAPER_SHARES, 2):
        if sum(len(group) for places in bins.values() for group in places[split].values()) > 1:
            for stratum in sorted(bins):
                for number in sorted(bins[stratum][split]):
                    yield stratum, split, number, other, 0


def _apply(change: _Change, bins: _Bins, have: Counter[str]) -> None:
    stratum, split, number, other, back = change
    places = bins[stratum]
    moving = [(split, other, number), (other, split, back)] if back else [(split, other, number)]
    taken = [_take(places[source], size) for source, _, size in moving]
    for (source, goal, size), identity in zip(moving, taken, strict=True):
        places[goal].setdefault(size, []).append(identity)
        have[source] -= size
        have[goal] += size


def _take(sizes: dict[int, list[Identity]], number: int) -> Identity:
    identity = sizes[number].pop()
    if not sizes[number]:
        del sizes[number]
    return identity
