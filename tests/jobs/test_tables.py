"""Tables that commands print."""

import re

import pytest

from jobs.tables import grid_tables, warnings


def row(temperature: float, samples: int, value: float, estimator: str = "stgs", **more: object) -> dict[str, object]:
    return {"temperature": temperature, "num_samples": samples, "estimator": estimator, "auc": value, **more}


def test_one_estimator_and_no_options_make_one_table_of_means() -> None:
    rows = [row(5, 1, 0.5), row(5, 1, 0.7), row(10, 1, 0.25), row(10, 3, 0.75)]
    title, table = grid_tables(rows, "AUC", "auc")
    assert title == "AUC:"
    lines = table.splitlines()
    assert lines[0].split() == ["M=1", "M=3"]
    assert [line.split() for line in lines[1:]] == [["5", "0.600", "NaN"], ["10", "0.250", "0.750"]]


@pytest.mark.parametrize(
    ("second", "titles"),
    [
        ({"estimator": "egs"}, ["AUC (stgs):", "AUC (egs):"]),
        ({"options": "dropout=0.2"}, ["AUC (dropout=0.1):", "AUC (dropout=0.2):"]),
        ({"estimator": "egs", "options": "dropout=0.2"}, ["AUC (stgs, dropout=0.1):", "AUC (egs, dropout=0.2):"]),
    ],
)
def test_estimators_and_options_have_their_own_tables(second: dict[str, str], titles: list[str]) -> None:
    rows = [row(5, 1, 0.5, options="dropout=0.1"), row(5, 1, 0.75, **{"options": "dropout=0.1", **second})]
    lines = grid_tables(rows, "AUC", "auc")
    assert lines[::2] == titles
    assert [re.findall(r"0\.\d+", table) for table in lines[1::2]] == [["0.500"], ["0.750"]]


def searched(name: str, *, hardly: bool = False, lost: str = "", unmoved: str = "") -> dict[str, object]:
    return {"id": name, "hardly_moved": hardly, "gradient_lost": lost, "entropy_unmoved": unmoved}


def test_points_that_are_not_to_be_trusted_are_named() -> None:
    rows = [searched("a"), searched("b", lost="alpha gamma"), searched("c", hardly=True, unmoved="beta")]
    lost, unmoved, hardly = warnings(rows)
    assert "1 of 3 points" in lost
    assert "b (alpha gamma)" in lost
    assert unmoved.endswith("1 of 3 points: c (beta)")
    assert "hardly moved at 1 of 3 points" in hardly
    assert warnings(rows[:1]) == []
    assert "at this point" in warnings([rows[2]])[1]


def test_of_many_points_the_first_are_named() -> None:
    (line,) = warnings([searched(f"p{number}", lost="alpha") for number in range(9)])
    assert "9 of 9 points" in line
    assert line.endswith("p0 (alpha), p1 (alpha), p2 (alpha), p3 (alpha), ...")
