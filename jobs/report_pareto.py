"""Section of the report on size: AUC against parameters of every trained network, and the front of the best trades."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.controls import SHUFFLED
from jobs.report_charts import Axis, Series, fitted_axis, legend, line_chart
from jobs.report_facts import Reading, Row, RunFacts
from jobs.report_html import Html, count, figure, section, tag
from jobs.report_rows import ARM_NAMES, ARMS, network_names
from jobs.report_tables import Column, DataTable, estimate_words, value_of

_FRONT_STYLE = 4


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (parameters, AUC) that no other point beats, smallest first.

    A point is beaten by one with no more parameters and no lower AUC that is better in one of them; of equal points
    the first stands for all.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index)):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def pareto_table(facts: RunFacts) -> DataTable:
    """The networks of the front, once a data set."""
    columns = (
        Column(key="dataset", text=True),
        Column(key="network", head="network", text=True, show=network_names(facts)),
        Column(key="parameters", head="parameters", show=count),
        Column(key="auc", head="test AUC"),
    )
    rows = []
    for reading in facts.tested:
        names, points = _points(reading)
        for index in pareto_front(points):
            network = reading.networks[names[index]]
            row = {"network": names[index], "parameters": network["parameters"], "auc": network["auc"]}
            rows.append({"dataset": reading.dataset, **row})
    return DataTable("pareto", columns, rows)


def _points(reading: Reading) -> tuple[list[str], list[tuple[float, float]]]:
    """Names and places of the networks that have an AUC; those of shuffled labels are no detectors."""
    places = {
        name: (float(network["parameters"]), value)
        for name, network in reading.networks.items()
        if network["arm"] != SHUFFLED and (value := value_of(network["auc"])) is not None
    }
    return list(places), list(places.values())


def pareto_section(facts: RunFacts) -> Html:
    """A chart and the front's table for each data set."""
    parts: list[object] = []
    for reading in facts.tested:
        if len(facts.tested) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        parts += [_chart(reading), pareto_table(facts).where(dataset=reading.dataset).html()]
    if not facts.tested:
        parts.append(tag("p", "There is no front: the test clips have not been read yet."))
    return section("pareto", "AUC against parameters", parts)


def _chart(reading: Reading) -> Html:
    names, points = _points(reading)
    if not points:
        return tag("p", "No network has a test AUC.")
    front = [points[index] for index in pareto_front(points)]
    sizes = [size for size, _ in points]
    x = Axis("parameters, without the classifier", max(min(sizes), 1.0) / 1.25, max(sizes) * 1.25, log=True, whole=True)
    y = fitted_axis("AUC on test", [auc for _, auc in points], least=0.05, cap=1.0)
    stairs_x, stairs_y = _stairs([*front, (x.high, front[-1][1])])
    hint = "the front: no network has fewer parameters and a higher AUC"
    series = [Series(x=stairs_x, y=stairs_y, style=_FRONT_STYLE, hint=hint)]
    styles = {}
    for arm in ARMS:
        own = [name for name in names if reading.networks[name]["arm"] == arm and name != reading.found]
        if own:
            styles[ARM_NAMES[arm]] = ARMS.index(arm)
            series.append(_dots(reading, own, ARMS.index(arm)))
    if reading.found in names:
        series.append(_dots(reading, [reading.found], 0, found=True))
    chart = line_chart(series, x, y, width=760, height=380)
    keys = legend({"the front": _FRONT_STYLE, **styles}, dots=styles, note="the large dot is the found network")
    caption = (
        "Every trained network but those of shuffled labels. The found network is chosen on dev, so it need not lie on "
        "the front, which is drawn on test clips and chooses nothing."
    )
    chart = tag("div", tag("div", chart, style="min-width:520px;max-width:860px"), class_="scroll")
    return figure([chart, keys], caption, title=f"AUC on test ({reading.dataset}) against parameters")


def _stairs(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The points joined by level and upright lines."""
    x, y = [points[0][0]], [points[0][1]]
    for size, auc in points[1:]:
        x += [size, size]
        y += [y[-1], auc]
    return x, y


def _dots(reading: Reading, names: Sequence[str], style: int, *, found: bool = False) -> Series:
    networks: list[Row] = [reading.networks[name] for name in names]
    hints = [
        f"{'found network: ' if found else ''}{name}: AUC {estimate_words(network['auc'])}, "
        f"{count(network['parameters'])} parameters"
        for name, network in zip(names, networks, strict=True)
    ]
    return Series(
        x=[network["parameters"] for network in networks],
        y=[network["auc"]["value"] for network in networks],
        style=style,
        hint="",
        dots=hints,
        line=False,
        weight="thick" if found else "",
    )
