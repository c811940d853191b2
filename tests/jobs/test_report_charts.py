"""Charts and drawings of the report: where lines, ticks and boxes stand."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jobs.report_charts import Axis, Series, fitted_axis, line_chart
from jobs.report_drawing import genotype_picture
from jobs.report_pareto import pareto_front
from jobs.report_roc import mean_roc
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
    curve = mean_roc([perfect, coin])
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


# The published genotypes (reference.md section 2) as their figures draw them: what is joined to what.
CELL_TO_END = {("cell1.join", "classifier"), ("cell2.join", "classifier")}
STEPS_TO_JOIN = {(f"cell{cell}.step{step}", f"cell{cell}.join") for cell in (1, 2) for step in (1, 2)}
FIGURES = {
    "temp5_sampling15": (
        (("visual.pooled", "audio.layer2"), (("linear_glu", ("in1", "in2")), ("linear_glu", ("step1", "in2")))),
        (("visual.layer2", "audio.layer2"), (("linear_glu", ("in1", "in2")), ("concat_fc", ("in1", "step1")))),
    ),
    "temp15_sampling5": (
        (("visual.layer4", "audio.layer2"), (("linear_glu", ("in1", "in2")), ("linear_glu", ("step1", "in2")))),
        (("visual.layer2", "visual.layer3"), (("sum", ("in1", "in2")), ("sum", ("in1", "in2")))),
    ),
}
EDGES = {
    "temp5_sampling15": {
        ("visual.pooled", "cell1.in1"),
        ("audio.layer2", "cell1.in2"),
        ("cell1.in1", "cell1.step1"),
        ("cell1.in2", "cell1.step1"),
        ("cell1.step1", "cell1.step2"),
        ("cell1.in2", "cell1.step2"),
        ("visual.layer2", "cell2.in1"),
        ("audio.layer2", "cell2.in2"),
        ("cell2.in1", "cell2.step1"),
        ("cell2.in2", "cell2.step1"),
        ("cell2.in1", "cell2.step2"),
        ("cell2.step1", "cell2.step2"),
    },
    "temp15_sampling5": {
        ("visual.layer4", "cell1.in1"),
        ("audio.layer2", "cell1.in2"),
        ("cell1.in1", "cell1.step1"),
        ("cell1.in2", "cell1.step1"),
        ("cell1.step1", "cell1.step2"),
        ("cell1.in2", "cell1.step2"),
        ("visual.layer2", "cell2.in1"),
        ("visual.layer3", "cell2.in2"),
        ("cell2.in1", "cell2.step1"),
        ("cell2.in2", "cell2.step1"),
        ("cell2.in1", "cell2.step2"),
        ("cell2.in2", "cell2.step2"),
    },
}
OPERATIONS = {
    "temp5_sampling15": ["linear_glu", "linear_glu", "linear_glu", "concat_fc"],
    "temp15_sampling5": ["linear_glu", "linear_glu", "sum", "sum"],
}
LABELS = {"linear_glu": "LinearGLU", "concat_fc": "ConcatFC", "sum": "Sum"}


@pytest.mark.parametrize("name", FIGURES)
def test_drawings_of_the_published_genotypes_have_the_figures_edges(name: str) -> None:
    released = {
        **{"visual.layer2": 512, "visual.layer3": 1024, "visual.layer4": 2048, "visual.pooled": 2048},
        **{"audio.layer2": 128, "audio.layer3": 256, "audio.layer4": 512, "audio.pooled": 512},
    }
    cells = tuple(CellGene(inputs, tuple(StepGene(*step) for step in steps)) for inputs, steps in FIGURES[name])
    drawn = ElementTree.fromstring(genotype_picture(Genotype(features=released, channels=128, length=8, cells=cells)))
    boxes = {box.attrib["data-node"]: box for box in drawn.iter("rect") if "data-node" in box.attrib}
    wires = [wire for wire in drawn.iter("path") if "data-from" in wire.attrib]
    edges = [(wire.attrib["data-from"], wire.attrib["data-to"]) for wire in wires]
    assert set(edges) == EDGES[name] | STEPS_TO_JOIN | CELL_TO_END
    assert len(edges) == len(set(edges))
    steps = [node for node in sorted(boxes) if ".step" in node]
    assert [boxes[node].attrib["data-operation"] for node in steps] == OPERATIONS[name]
    labels = [next(group for group in drawn.iter("g") if boxes[node] in group).findtext("text") for node in steps]
    assert labels == [LABELS[operation] for operation in OPERATIONS[name]]
    for wire, (start, end) in zip(wires, edges, strict=True):
        curve, head = wire.attrib["d"].rsplit("M", 1)
        first = [float(number) for number in re.findall(r"[-\d.]+", curve)[:2]]
        tip = [float(number) for number in re.findall(r"[-\d.]+", head)[2:4]]
        assert touches(boxes[end], tip), f"{start} is drawn to another box than {end}"
        # What leaves a cell begins at its frame, to which the line from its join leads.
        assert start.endswith("join") or touches(boxes[start], first), f"{end} is drawn from another box than {start}"


def touches(box: ElementTree.Element, place: list[float]) -> bool:
    """Whether a place lies on a box, its border included."""
    left, top, width, height = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
    return left - 0.1 <= place[0] <= left + width + 0.1 and top - 0.1 <= place[1] <= top + height + 0.1


def test_pareto_front_is_what_nothing_beats() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        points = [(float(size), float(auc)) for size, auc in random.integers(0, 6, (12, 2))]
        front = {points[index] for index in pareto_front(points)}
        beaten = {
            ours
            for ours in points
            for theirs in points
            if theirs[0] <= ours[0] and theirs[1] >= ours[1] and theirs != ours
        }
        assert front == set(points) - beaten
        sizes = [points[index][0] for index in pareto_front(points)]
        assert sizes == sorted(set(sizes)), "smallest first, each once"
    assert pareto_front([]) == []


def test_dots_and_bars_stand_where_their_values_are() -> None:
    line = Series(x=[0.0, 1.0], y=[0.5, 1.0], style=0, hint="h", dots=["a", "b"], bounds=[(0.0, 1.0), (math.nan, 1.0)])
    chart = line_chart([line], Axis("x", 0.0, 1.0), Axis("y", 0.0, 1.0), width=166, height=150)
    assert [(cx, cy) for cx, cy in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)] == [("52", "60"), ("152", "10")]
    assert chart.count('d="M52 110V10"') == 1, "one bar: the other has no interval"
    assert Axis("", 150.0, 2200.0, log=True, whole=True).ticks() == [
        (200.0, "200"),
        (500.0, "500"),
        (1000.0, "1,000"),
        (2000.0, "2,000"),
    ]
