"""Is the operation found that a teacher is made of? One step apart, without the rest of a supernet."""

import pytest

from stgs.search_space import OPERATIONS
from stgs.supernet import Member
from tests.planted_operations import WITHOUT_GLU, find_operations

# Seen with these numbers: 10 of 10 seeds for every line below.
MEMBERS = [Member(10.0, 15, seed) for seed in range(4)]


@pytest.mark.parametrize(
    ("teacher", "candidates"),
    [("sum", OPERATIONS), ("attention", OPERATIONS), ("linear_glu", OPERATIONS), ("concat_fc", WITHOUT_GLU)],
)
def test_stgs_finds_the_operation_of_the_teacher(teacher: str, candidates: tuple[str, ...]) -> None:
    assert find_operations(teacher, MEMBERS, "stgs", epochs=6, candidates=candidates) == [teacher] * len(MEMBERS)
