"""Section of the report with every genotype as a picture; equal ones are drawn once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.controls import AUDIO, GRID, RANDOM, SOFTMAX, UNIFORM, VISUAL
from jobs.report_drawing import genotype_picture
from jobs.report_facts import Reading, Row, RunFacts
from jobs.report_html import Html, count, figure, fold, fraction, plural, section, tag
from jobs.report_rows import ARM_NAMES
from jobs.report_tables import estimate_words, value_of
from stgs.genotype import genotype_from_json


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A genotype (JSON) with the networks that have it: name (`arm/id`) -> point, None for one drawn by chance."""

    genotype: str
    parameters: int
    points: dict[str, Row | None]


def genotypes_section(facts: RunFacts) -> Html:
    """The genotypes of the grid, best on dev first, then those of the controls."""
    rows = facts.main.rows
    if not facts.searched:
        given = [_control(facts, reading, GRID) for reading in facts.readings[:1]]
        return section("genotypes", "Genotypes", _HOW_TO_READ, given or tag("p", "No network is trained yet."))
    drawn = _grouped((f"{GRID}/{row['id']}", row["genotype"], row["parameters"], row) for row in rows)
    drawn.sort(key=lambda item: -max(_dev_auc(facts, name) for name in item.points))
    parts: list[object] = [_HOW_TO_READ if rows else tag("p", "No point has a result, so there is none.")]
    if len(rows) > 1:
        parts.append(tag("p", f"{len(rows)} points, {plural(len(drawn), 'different genotype')}, best on dev first."))
    parts.append(_drawings(facts, drawn))
    if facts.readings:
        for arm in (VISUAL, AUDIO, SOFTMAX, UNIFORM, RANDOM):
            parts.append(_control(facts, facts.readings[0], arm))
    return section("genotypes", "Genotypes", parts)


_HOW_TO_READ = tag(
    "p",
    "Left: the features that the space offers, those that no cell reads pale. A cell's first input is in1, its second "
    "in2; each step joins two states by its operation; the cell ends in a convolution of its joined steps, plus in1, "
    "normalised. Parameters are without the classifier.",
    class_="soft",
)


def _grouped(items: Iterable[tuple[str, str, int, Row | None]]) -> list[_Drawn]:
    found: dict[str, _Drawn] = {}
    for name, genotype, parameters, point in items:
        found.setdefault(genotype, _Drawn(genotype, parameters, {})).points[name] = point
    return list(found.values())


def _dev_auc(facts: RunFacts, name: str) -> float:
    """What the genotypes are ordered by: dev AUC of the trained network, before training that of the supernet."""
    if facts.readings:
        network = facts.readings[0].networks.get(name)
        return float(network["dev_auc"]) if network else 0.0
    return next(float(row["dev_auc"]) for row in facts.main.rows if f"{GRID}/{row['id']}" == name)


def _control(facts: RunFacts, reading: Reading, arm: str) -> Html | None:
    networks = {name: network for name, network in reading.networks.items() if network["arm"] == arm}
    if not networks:
        return None
    drawn = _grouped(
        (name, json.dumps(network["genotype"]), network["parameters"], network["point"])
        for name, network in networks.items()
    )
    drawn.sort(key=lambda item: -max(_dev_auc(facts, name) for name in item.points))
    title = f"{plural(len(drawn), 'different genotype')} of {plural(len(networks), 'network')}"
    if arm == GRID:
        return tag("div", tag("p", title), _drawings(facts, drawn))
    return fold(f"Control, {ARM_NAMES[arm]}: {title}", _drawings(facts, drawn))


def _origin(item: _Drawn, facts: RunFacts) -> str:
    """The points that led to a genotype, those with equal settings but M together."""
    groups: dict[str, list[str]] = {}
    for name, point in sorted(item.points.items(), key=_place):
        if point is None:
            groups[name.partition("/")[2]] = []
            continue
        words = f"temperature {point['temperature']:g}"
        if group := facts.main.group_words(point):
            words = f"{group}, {words}"
        if len(facts.main.grid.seeds) > 1:
            words = f"seed {point['seed']}, {words}"
        groups.setdefault(words, []).append(str(point["num_samples"]))
    return "; ".join(f"{words}, M {', '.join(samples)}" if samples else words for words, samples in groups.items())


def _place(item: tuple[str, Row | None]) -> tuple[object, ...]:
    """Sorts points in the grid's order, then networks of random genotypes by name."""
    name, point = item
    if point is None:
        return (1, name)
    return (0, point["estimator"], point.get("options", ""), point["seed"], point["temperature"], point["num_samples"])


def _drawings(facts: RunFacts, drawn: Sequence[_Drawn]) -> Html:
    best = {name for reading in facts.readings for name in (reading.found, reading.best_single_sense)}
    figures = []
    for item in drawn:
        chosen = best & item.points.keys()
        picture = tag("div", genotype_picture(genotype_from_json(item.genotype)), class_="scroll")
        figures.append(figure(picture, _caption(facts, item, chosen), class_="best" if chosen else None))
    return tag("div", figures, class_="drawings")


def _caption(facts: RunFacts, item: _Drawn, chosen: set[str | None]) -> Html:
    title = None
    if chosen:
        found = any(reading.found in chosen for reading in facts.readings)
        title = [tag("b", "The found network" if found else "The best single sense, chosen on dev"), ". "]
    scores = []
    for reading in facts.readings:
        networks = [reading.networks[name] for name in item.points if name in reading.networks]
        if networks and reading is facts.readings[0]:
            scores.append(f"AUC on dev {_range([network['dev_auc'] for network in networks])}")
        tested = [network["auc"] for network in networks if value_of(network.get("auc")) is not None]
        if tested:
            alike = len({auc["value"] for auc in tested}) == 1
            words = estimate_words(tested[0]) if alike else _range([auc["value"] for auc in tested])
            scores.append(f"on test ({reading.dataset}) {words}")
    if not facts.readings:
        scores.append(f"supernet's AUC on dev {_range([_dev_auc(facts, name) for name in item.points])}")
    return tag(
        "span",
        title,
        f"{count(item.parameters)} parameters; {', '.join(scores) or 'not trained'}. From {_origin(item, facts)}.",
    )


def _range(values: Sequence[float]) -> str:
    low, high = fraction(min(values)), fraction(max(values))
    return low if low == high else f"{low} to {high}"
