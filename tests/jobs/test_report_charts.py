"""Charts and drawings of the report: where lines, ticks and boxes stand."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from jobs.report_charts import Axis, Series, fitted_axis, line_chart
from jobs.report_drawing import genotype_picture
from jobs.report_results import _mean_roc
from stgs.genotype import CellGene, Genotype, StepGene


def test_lines_are_drawn_where_their_values_are() -> None:
    line = Series(x=[0.0, 1.0, 2.0, 3.0, 4.0], y=[0.0, 5.0, float("nan"), 10.0, 10.0], style=0, hint="line")
    chart = line_chart([line], Axis("x", 0.0, 4.0), Axis("y", 0.0, 10.0), width=166, height=150)
    # 100 wide from 52, 100 high above 110; the line is broken at the missing value.
    assert 'd="M52 110L77 60M127 10L152 10"' in chart


def test_points_inside_a_straight_run_are_left_out() -> None:
    staircase = Series(x=[0, 0, 0, 1, 2, 2], y=[0, 1, 2, 2, 2, 4], style=0, hint="")
    chart = line_chart([staircase], Axis("x", 0, 2), Axis("y", 0, 4), width=166, height=150)
    assert 'd="M52 110L52 60L152 60L152 10"' in chart


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.992, 1.0, ["0.992", "0.994", "0.996", "0.998", "1.000"]),
        (0.0, 20.0, ["0", "5", "10", "15", "20"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in Axis("", low, high).ticks()] == labels


def test_axes_hold_their_values() -> None:
    random = np.random.default_rng(0)
    for scale in 10.0 ** np.arange(-8, 8):
        values = (random.normal(size=5) * scale + random.normal() * 10).tolist()
        axis = fitted_axis("", values)
        assert axis.low <= min(values) + 1e-9 * scale
        assert axis.high >= max(values) - 1e-9 * scale
        assert 2 <= len(axis.ticks()) <= 8
    assert fitted_axis("", [0.9931, 0.9937], least=0.05, cap=1.0).high <= 1.0
    assert fitted_axis("", [1.0, 1.0]).low < 1.0
    norms = fitted_axis("", [0.0, 2e-16, 3e-3, float("nan")], log=True)
    assert (norms.low, norms.high) == pytest.approx((1e-16, 1e-2))
    assert fitted_axis("", [], log=True).low > 0


def test_mean_roc_is_the_mean_of_true_positive_rates() -> None:
    perfect, coin = ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0]), ([0.0, 1.0], [0.0, 1.0])
    curve = _mean_roc([perfect, coin])
    np.testing.assert_allclose(curve, (1 + np.linspace(0, 1, len(curve))) / 2, atol=1e-12)


def test_drawings_hold_deep_genotypes() -> None:
    steps = tuple(StepGene("linear_glu", pair) for pair in (("in1", "in2"), ("step1", "in1"), ("step1", "step2")))
    cells = (
        CellGene(("a.x", "b.pooled"), steps),
        CellGene(("cell1", "a.x"), steps),
        CellGene(("cell1", "cell2"), steps),
    )
    genotype = Genotype(features={"a.x": 3, "b.pooled": 4, "c": 5}, channels=8, length=4, cells=cells)
    picture = genotype_picture(genotype)
    assert picture.count(">LinearGLU<") == 9
    # From two features and two cells to inputs, from two states to each step, steps to joins, joins out, cells to the
    # classifier.
    assert picture.count('class="wire"') == 3 * 2 + 9 * 2 + 9 + 3 + 3
    assert picture.count('class="unused"') == 1


def test_names_at_the_ends_of_lines_keep_apart_and_in_order() -> None:
    ends = {"f": 0.0, "e": 0.01, "d": 0.5, "c": 0.51, "b": 0.52, "a": 1.0}
    lines = [Series(x=[0.0, 1.0], y=[0.5, end], style=0, hint="", name=name) for name, end in ends.items()]
    chart = line_chart(lines, Axis("x", 0.0, 1.0), Axis("y", 0.0, 1.0), width=200, height=150)
    found = {name: float(height) for height, name in re.findall(r'y="([\d.]+)" dy="0.35em" class="s0">(\w)<', chart)}
    assert sorted(found, key=lambda name: found[name]) == sorted(ends)
    heights = sorted(found.values())
    assert min(b - a for a, b in itertools.pairwise(heights)) > 12
    # 100 high above 110.
    assert (heights[0], heights[-1]) == (10.0, 110.0)
