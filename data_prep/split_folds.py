"""MRDF's protocol: equally many clips of each category, in 5 folds by subject, of which one is the test set."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from data_prep.manifest import Row
from data_prep.split_strata import Identity, Plan, Traits, choose, rank, subject_of, subject_traits
from data_prep.storage import InputError

NUM_FOLDS = 5
DEV_PART = 0.125
"""Share of the training subjects of a fold that is cut off for dev; MRDF itself has no such part."""
NOT_DRAWN = "not drawn for the folds"


def folds_plan(rows: Sequence[Row], *, fold: int, seed: int) -> Plan:
    """One clip per subject and category, 5 folds of subjects, and the split in which `fold` is the test set.

    Where subjects lack a category that their data set has, further clips of other subjects of the same fold stand in
    as long as there are any, second ones before third ones: every category has as many clips as there are subjects,
    in every fold. Folds are stratified as `split_strata.choose` is; their sizes differ by one subject at most.

    Raises InputError for fewer than 10 subjects.
    """
    traits = subject_traits(rows)
    if len(traits) < 2 * NUM_FOLDS:
        raise InputError(
            f"{NUM_FOLDS} folds need at least {2 * NUM_FOLDS} subjects, there are {len(traits)}; give another --split."
        )
    fold_of = _deal(traits, seed)
    drawn, notes = _draw(rows, fold_of, seed)
    folds = [fold_of[subject_of(row)] if index in drawn else None for index, row in enumerate(rows)]
    notes.insert(
        0,
        f"Fold {fold} of {NUM_FOLDS} is the test set, {DEV_PART:.1%} of the other folds' subjects are dev; "
        f"{len(drawn)} of {len(rows)} clips are drawn for the folds.",
    )
    return Plan(
        splits=_fold_splits(rows, folds, fold, seed=seed),
        reasons=[NOT_DRAWN if own is None else None for own in folds],
        notes=notes,
        folds=folds,
    )


def _fold_splits(rows: Sequence[Row], folds: Sequence[int | None], fold: int, *, seed: int) -> list[str | None]:
    """The split of each row when `fold` is the test set; folds: that of each row, null for clips that are not used."""
    chosen = [(row, own) for row, own in zip(rows, folds, strict=True) if own is not None]
    training = subject_traits(row for row, own in chosen if own != fold)
    # Each fold cuts its own dev part: with one rank for all, the same subjects would be dev again and again.
    fold_seed = int.from_bytes(rank(seed, "dev", str(fold))[:8])
    dev = set(choose(training, max(1, round(DEV_PART * len(training))), fold_seed))
    return [
        None if own is None else "test" if own == fold else "dev" if subject_of(row) in dev else "train"
        for row, own in zip(rows, folds, strict=True)
    ]


def _deal(traits: Traits, seed: int) -> dict[Identity, int]:
    """Subject -> fold. Dealt in turn, stratum after stratum, so that each fold gets its share of every stratum."""
    order = sorted(traits, key=lambda identity: (traits[identity], rank(seed, *identity)))
    return {identity: position % NUM_FOLDS for position, identity in enumerate(order)}


def _draw(rows: Sequence[Row], fold_of: dict[Identity, int], seed: int) -> tuple[set[int], list[str]]:
    """Indices of the rows that are used, and what to say of subjects that lack a category."""
    clips: dict[tuple[str, str], dict[Identity, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in sorted(range(len(rows)), key=lambda index: rank(seed, rows[index]["clip_id"])):
        clips[rows[index]["dataset"], rows[index]["category"]][subject_of(rows[index])].append(index)
    drawn: set[int] = set()
    notes: list[str] = []
    for (dataset, category), of_subject in sorted(clips.items()):
        drawn.update(own[0] for own in of_subject.values())
        lacking = Counter(fold for subject, fold in fold_of.items() if subject[0] == dataset)
        lacking.subtract(fold_of[subject] for subject in of_subject)
        stand_ins = _stand_ins(of_subject, fold_of, lacking, seed)
        drawn.update(stand_ins)
        if lacking.total():
            notes.append(
                f"Category {category} of {dataset} has clips of {len(of_subject)} of "
                f"{len(of_subject) + lacking.total()} subjects; further clips of theirs that stand in for the others: "
                f"{len(stand_ins)}, missing: {lacking.total() - len(stand_ins)}."
            )
    return drawn, notes


def _stand_ins(
    of_subject: dict[Identity, list[int]], fold_of: dict[Identity, int], lacking: Counter[int], seed: int
) -> list[int]:
    """Up to lacking[fold] further clips of every fold, of as many subjects as there are, from the clips of each."""
    further: dict[int, list[tuple[int, bytes, int]]] = defaultdict(list)
    for subject, own in of_subject.items():
        position = rank(seed, "stand-in", *subject)
        further[fold_of[subject]].extend((turn, position, index) for turn, index in enumerate(own[1:]))
    return [index for fold, found in further.items() for _, _, index in sorted(found)[: lacking[fold]]]
