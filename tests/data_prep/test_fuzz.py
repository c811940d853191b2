"""Damaged, disguised and odd files: none stops the preparer, each gets a reason that is right, and harms no other."""

from pathlib import Path

import pytest

from tests.data_prep.fuzz_files import run

NUM_FILES = 420


def test_odd_and_damaged_files_get_a_right_reason_and_harm_no_other(tmp_path: Path) -> None:
    # `run` compares the rows of the whole clips before and after each kind of file.
    fuzz = run(tmp_path, count=NUM_FILES, seed=0)
    assert fuzz.wrong == []
    assert fuzz.total == NUM_FILES
    # Every outcome was met, so none is right only because it never came up.
    met = {outcome for found in fuzz.outcomes.values() for outcome in found}
    assert met == {"row", "missing", "unreadable", "no_video", "no_audio", "too_short", "silent"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_more_damaged_files(tmp_path: Path, seed: int) -> None:
    assert run(tmp_path, count=2000, seed=seed).wrong == []
