from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.splits import SplitConfig, split_rows
from data_prep.storage import InputError
from tests.listed_clips import crowd, made_row, real_listing

HELD_OUT = "held-out method with a train or dev subject"
SEEN = "seen method with a test subject"
UNKNOWN = "fake of unknown method"


def split_by_method(rows: Any, *test_methods: str, **values: Any) -> Any:
    return split_rows(rows, SplitConfig(split="method", test_methods=test_methods, **values))


def everybody(methods: dict[str, str | None], num_subjects: int = 10) -> list[dict[str, Any]]:
    """A real clip of each subject, and a fake for each entry "category number": method."""
    rows = [made_row(f"id{index}", "A", method="real") for index in range(num_subjects)]
    for index in range(num_subjects):
        for key, method in methods.items():
            rows.append(made_row(f"id{index}", key[0], clip_id=f"id{index}/{key}", method=method))
    return rows


METHODS = {"C1": "swap", "C2": "lips", "D1": "swap-lips", "D2": "lips", "D3": "gan-lips", "B1": "voice", "C3": None}


@pytest.mark.parametrize(
    ("test_methods", "held_out"),
    [
        (("swap",), {"swap", "swap-lips"}),
        (("lips",), {"lips", "swap-lips", "gan-lips"}),
        (("swap-lips",), {"swap-lips"}),
        (("lips-swap",), {"swap-lips"}),
        (("voice", "gan"), {"voice", "gan-lips"}),
    ],
)
def test_held_out_methods_are_in_test_alone_and_others_are_not_in_it(
    test_methods: tuple[str, ...], held_out: set[str]
) -> None:
    rows = everybody(METHODS)
    result = split_by_method(rows, *test_methods, dev=2, test=3)
    home = {row["subject"]: row["split"] for row in result.rows if row["label"] == 0}
    assert Counter(home.values()) == {"train": 5, "dev": 2, "test": 3}
    for row in result.rows:
        if row["label"] == 1:
            belongs = row["method"] is not None and (row["method"] in held_out) == (home[row["subject"]] == "test")
            assert row["split"] == (home[row["subject"]] if belongs else None)
    fakes = [method for method in METHODS.values() if method]
    num_held_out = sum(method in held_out for method in fakes)
    assert result.dropped == {HELD_OUT: 7 * num_held_out, SEEN: 3 * (len(fakes) - num_held_out), UNKNOWN: 10}


def test_components_may_be_joined_by_plus_as_those_of_face_and_voice_are() -> None:
    rows = everybody({"C1": "lab-160", "D1": "lab-160+clone-tuned", "D2": "lab-256+other"})
    result = split_by_method(rows, "clone", test=2)
    assert {row["method"] for row in result.rows if row["split"] == "test"} == {"real", "lab-160+clone-tuned"}
    assert {row["method"] for row in result.rows if row["split"] == "train"} == {"real", "lab-160", "lab-256+other"}


def test_parts_that_training_shows_all_the_same_are_noted() -> None:
    notes = split_by_method(everybody(METHODS), "swap", test=3).notes
    assert notes[0] == "3 of 6 test fakes also contain a method that training shows: lips."
    assert not any("also contain" in note for note in split_by_method(everybody(METHODS), "lips", "swap", test=3).notes)


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_is_in_two_splits_and_no_held_out_method_outside_of_test(seed: int) -> None:
    result = split_by_method(crowd(seed), "m2", seed=seed)
    splits: dict[tuple[str, str], set[str]] = {}
    for row in result.rows:
        if row["split"] is not None:
            splits.setdefault((row["dataset"], row["subject"]), set()).add(row["split"])
            assert row["label"] == 0 or (row["split"] == "test") == ("m2" in row["method"])
    assert all(len(found) == 1 for found in splits.values())


def test_a_method_of_the_real_listing_is_held_out(shared: Path) -> None:
    result = split_by_method(real_listing(shared), "fsgan", dev=0.2, test=0.2)
    tested = {row["method"] for row in result.rows if row["split"] == "test"}
    others = {row["method"] for row in result.rows if row["split"] in ("train", "dev")}
    assert tested == {"real", "fsgan", "fsgan-wav2lip"}
    assert others == {"real", "rtvc", "faceswap", "wav2lip", "faceswap-wav2lip"}
    # The 351 fakes of pictures that name no target are the ones whose method the parser leaves open.
    assert result.dropped[UNKNOWN] == 351


@pytest.mark.parametrize(
    ("test_methods", "values", "sentence"),
    [
        (
            ("real",),
            {},
            "test_methods names 'real', known methods are: gan, gan-lips, lips, swap, swap-lips, voice; give",
        ),
        (("swap", "x"), {}, "test_methods names 'x', known methods are"),
        (("swap-gan",), {}, "test_methods names 'swap-gan', known methods are"),
        (("swap", "lips", "voice"), {}, "test_methods swap, lips, voice leave train no fake; hold out fewer"),
        (("swap",), {"test": 0}, "test is 0, but methods are held out for test"),
        (("swap",), {"dev": 5, "test": 5}, "a split of 5 dev and 5 test subjects leaves none of 10 to train on"),
    ],
)
def test_impossible_method_splits_are_refused(
    test_methods: tuple[str, ...], values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        split_by_method(everybody(METHODS), *test_methods, **values)


def test_a_method_that_no_test_subject_shows_is_refused() -> None:
    rows = everybody({"C1": "swap"})
    split_of = {row["subject"]: row["split"] for row in split_rows(rows, SplitConfig(test=3)).rows}
    subject = next(name for name, split in split_of.items() if split == "train")
    # The strata stay as they are: the odd fake has a category that its subject has anyway.
    rows.append(made_row(subject, "C", method="rare"))
    with pytest.raises(InputError, match="test_methods rare leave test no fake; hold out fewer or other methods"):
        split_by_method(rows, "rare", test=3)
