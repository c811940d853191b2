"""Section of the report with ROC curves: the found network and controls, by category, and by the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from cluster.controls import AUDIO, RANDOM, SHUFFLED, SOFTMAX, VISUAL
from jobs.report_charts import Axis, Series, legend, line_chart
from jobs.report_facts import Reading, RunFacts
from jobs.report_html import Html, figure, fraction, section, tag
from jobs.report_rows import ARM_NAMES, FAKES
from jobs.report_tables import estimate_words

# The temperature of the paper's published ROC figure; ROC curves by M are drawn at it where the grid has it.
_PAPER_TEMPERATURE = 10.0
FALSE_POSITIVES = np.linspace(0.0, 1.0, 201)

RocLine = tuple[str, Sequence[float], Sequence[float]]


def roc_section(facts: RunFacts) -> Html:
    """ROC curves of each data set."""
    parts: list[object] = []
    for reading in facts.tested:
        if len(facts.tested) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        figures = [_arms(reading), _categories(reading), _samples(facts, reading)]
        parts.append(tag("div", figures, class_="pair"))
    if not facts.tested:
        parts.append(tag("p", "There are none: the test clips have not been read yet."))
    return section("roc", "ROC curves on test", parts)


def _arms(reading: Reading) -> Html:
    lines: list[RocLine] = []
    for name in (reading.found, reading.best_of(VISUAL), reading.best_of(AUDIO), reading.best_of(SOFTMAX)):
        if name is not None and drawable(reading.networks[name].get("roc")):
            network = reading.networks[name]
            words = "found network" if name == reading.found else f"{ARM_NAMES[network['arm']]}, best on dev"
            lines.append((f"{words}: AUC {estimate_words(network['auc'])}", *network["roc"]))
    for arm in (RANDOM, SHUFFLED):
        networks = [network for network in reading.of_arm(arm) if drawable(network.get("roc"))]
        if networks:
            average = fraction(fmean(network["auc"]["value"] for network in networks))
            curve = mean_roc([network["roc"] for network in networks])
            words = f"{ARM_NAMES[arm]}, mean of {len(networks)}: mean AUC {average}"
            lines.append((words, FALSE_POSITIVES.tolist(), curve.tolist()))
    return roc_figure(
        lines, "Found network and controls", "The line from corner to corner is chance.", first_thick=True
    )


def _categories(reading: Reading) -> Html:
    """One against the rest: the real clips against all fakes, and against those of each category."""
    network = reading.networks[reading.found]
    lines: list[RocLine] = []
    if drawable(network.get("roc")):
        lines.append((f"A against all fakes: AUC {estimate_words(network['auc'])}", *network["roc"]))
    curves, aucs = network.get("roc_by_category", {}), network.get("auc_by_category", {})
    for category in FAKES:
        if drawable(curves.get(category)):
            words = f"A against {category}: AUC {estimate_words(aucs.get(category))}"
            lines.append((words, *curves[category]))
    caption = "A: real; B: fake sound; C: fake video; D: both fake."
    return roc_figure(lines, "The found network, by category", caption, first_thick=True)


def _samples(facts: RunFacts, reading: Reading) -> Html | None:
    """ROC curves over M at one temperature; None for a grid with one M."""
    grid, found = facts.main.grid, reading.networks[reading.found]["point"]
    if len(grid.num_samples) < 2 or found is None:
        return None
    fixed = _PAPER_TEMPERATURE if _PAPER_TEMPERATURE in grid.temperatures else found["temperature"]
    lines: list[RocLine] = []
    for row in sorted(facts.main.rows, key=lambda row: row["num_samples"]):
        wanted = (fixed, found["estimator"], found["seed"], found.get("options", ""))
        network = reading.point_network(row["id"])
        own = (row["temperature"], row["estimator"], row["seed"], row["options"])
        if own == wanted and network is not None and drawable(network.get("roc")):
            lines.append((f"M {row['num_samples']}: AUC {estimate_words(network['auc'])}", *network["roc"]))
    where = f"temperature {fixed:g}"
    where += f", {words}" if (words := facts.main.group_words(found)) else ""
    where += f", seed {found['seed']}" if len(grid.seeds) > 1 else ""
    whose = "paper's ROC figure" if fixed == _PAPER_TEMPERATURE else "found network"
    why = f"This temperature is that of the {whose}."
    return roc_figure(lines, f"Networks found with different M at {where}", f"{why} Equal genotypes give one curve.")


def roc_figure(lines: Sequence[RocLine], title: str, caption: str, *, first_thick: bool = False) -> Html:
    """ROC curves with the line of chance. lines: of each its words, false and true positive rates."""
    if not lines:
        return tag("p", f"{title}: no curve, because the test clips are not of both classes.")
    series = [
        Series(x=x, y=y, style=style, hint=name, weight="thick" if first_thick and style == 0 else "")
        for style, (name, x, y) in enumerate(lines)
    ]
    axes = Axis("false positive rate (real clips called fake)", 0.0, 1.0), Axis("true positive rate", 0.0, 1.0)
    chart = line_chart(series, *axes, width=440, height=430, diagonal=True)
    names = {name: style for style, (name, _, _) in enumerate(lines)}
    return figure([chart, legend(names, rows=True)], caption, title=title, class_="roc")


def drawable(curve: Sequence[Sequence[float]] | None) -> bool:
    """Whether there is a curve: of clips of one class there is none."""
    return curve is not None and len(curve[0]) > 0


def mean_roc(curves: Sequence[Sequence[Sequence[float]]]) -> np.ndarray[Any, Any]:
    """Mean true positive rate at equal false positive rates."""
    return np.mean([np.interp(FALSE_POSITIVES, x, y) for x, y in curves], axis=0)
