"""Protocols that deal whole subjects to train, dev and test; one keeps targets apart, too, one whole data sets.

Each takes the rows that are no augmented children and gives their `Plan`. The arguments are those of
`splits.SplitConfig`, sizes as `split_strata.number_of` reads them.
"""

from collections import Counter
from collections.abc import Sequence

from data_prep.manifest import Row
from data_prep.split_strata import (
    Identity,
    Plan,
    Traits,
    assign,
    by_subject,
    choose,
    number_of,
    subject_of,
    subject_traits,
    target_identities,
)
from data_prep.storage import InputError

BRIDGING = "bridging: its subject and a target are in different splits"
UNKNOWN_TARGET = "fake of unknown target with a subject outside train"
OTHER_DATASET = "its data set is neither trained nor tested on"


def subject_plan(rows: Sequence[Row], *, dev: int | float, test: int | float, seed: int) -> Plan:
    """Every clip goes where its subject does; its targets may be anywhere."""
    splits = by_subject(rows, split_subjects(subject_traits(rows), dev=dev, test=test, seed=seed))
    return Plan(splits=splits, reasons=[None] * len(rows))


def split_subjects(traits: Traits, *, dev: int | float, test: int | float, seed: int) -> dict[Identity, str]:
    """Subject -> train, dev or test, stratified. Raises InputError if none is left to train on."""
    num_dev, num_test = number_of("dev", dev, len(traits)), number_of("test", test, len(traits))
    return assign(traits, num_dev=num_dev, num_test=num_test, seed=seed)


def subject_target_plan(rows: Sequence[Row], *, dev: int | float, test: int | float, seed: int) -> Plan:
    """As `subject_plan`, but no identity is in two splits in any role.

    Targets that are no subject are dealt like the subjects. A clip with identities of two splits is in none, and so
    is a fake that names no target, unless its subject is a training subject: its target might be one.

    Raises InputError if there are fakes but none names a target, since dev and test would get no fake.
    """
    fakes = [row for row in rows if row["label"] == 1]
    if fakes and all(row["target"] is None for row in fakes):
        raise InputError(
            "none of the fakes names a target, so a split by 'subject-target' would leave dev and test without fakes; "
            "split by 'subject'."
        )
    traits = subject_traits(rows)
    split_of = split_subjects(traits, dev=dev, test=test, seed=seed)
    split_of |= _split_others(rows, split_of, traits, seed)
    splits: list[str | None] = []
    reasons: list[str | None] = []
    num_unknown = 0
    for row in rows:
        split, targets = split_of[subject_of(row)], target_identities(row)
        unknown = row["label"] == 1 and not targets
        num_unknown += unknown
        reason = None
        if any(split_of[target] != split for target in targets):
            reason = BRIDGING
        elif unknown and split != "train":
            reason = UNKNOWN_TARGET
        splits.append(None if reason else split)
        reasons.append(reason)
    notes = []
    if num_unknown:
        notes.append(
            f"{num_unknown} fakes name no target; {num_unknown - reasons.count(UNKNOWN_TARGET)} of them are used, all "
            f"in train: in dev or test a target from train could hide behind them."
        )
    return Plan(splits=splits, reasons=reasons, notes=notes)


def _split_others(rows: Sequence[Row], split_of: dict[Identity, str], traits: Traits, seed: int) -> dict[Identity, str]:
    """Splits of the targets that are no subject, in the proportions of the subjects."""
    others: Traits = {
        target: (target[0], "", "", "") for row in rows for target in target_identities(row) if target not in traits
    }
    sizes = Counter(split_of.values())
    num_dev, num_test = (round(len(others) * sizes[split] / len(traits)) for split in ("dev", "test"))
    chosen = choose(others, num_test, seed)
    left = {identity: others[identity] for identity in others if identity not in set(chosen)}
    found = dict.fromkeys(others, "train") | dict.fromkeys(chosen, "test")
    return found | dict.fromkeys(choose(left, num_dev, seed), "dev")


def cross_plan(
    rows: Sequence[Row],
    *,
    dev: int | float,
    test: int | float,
    seed: int,
    train_datasets: Sequence[str],
    test_datasets: Sequence[str],
) -> Plan:
    """Train and dev from some data sets, test from others: all their clips.

    Subjects of a data set on both lists are dealt: `test` is the share of them for test; `dev` is the share of all
    subjects of `train_datasets`.

    Raises InputError for unknown data sets, and if no subject would be left for train or for test.
    """
    known = {row["dataset"] for row in rows}
    for option, names in (("train_datasets", train_datasets), ("test_datasets", test_datasets)):
        for name in names:
            if name not in known:
                raise InputError(
                    f"{option} names {name!r}, known data sets are: {', '.join(sorted(known))}; give some of them."
                )
    traits = subject_traits(rows)
    trained = {identity: traits[identity] for identity in traits if identity[0] in train_datasets}
    shared = {identity: traits[identity] for identity in trained if identity[0] in test_datasets}
    num_test = number_of("test", test, len(shared)) if shared else 0
    num_dev = number_of("dev", dev, len(trained))
    if num_test == 0 and set(test_datasets) <= set(train_datasets):
        raise InputError("test is 0, but every data set for test is trained on, too; give test some of its subjects.")
    if num_test > len(shared):
        raise InputError(
            f"test is {num_test}, but the data sets on both lists have only {len(shared)} subjects; give fewer."
        )
    if num_dev + num_test >= len(trained):
        raise InputError(
            f"a split of {num_dev} dev and {num_test} test subjects leaves none of {len(trained)} to train on; "
            f"give a smaller --dev and --test."
        )
    split_of = {identity: "test" for identity in traits if identity[0] in test_datasets}
    split_of |= dict.fromkeys(trained, "train") | dict.fromkeys(choose(shared, num_test, seed), "test")
    left = {identity: trained[identity] for identity in trained if split_of[identity] == "train"}
    split_of |= dict.fromkeys(choose(left, num_dev, seed), "dev")
    splits = [split_of.get(subject_of(row)) for row in rows]
    return Plan(splits=splits, reasons=[None if split else OTHER_DATASET for split in splits])
