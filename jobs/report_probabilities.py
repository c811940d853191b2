"""Section of the report on what the searches came to prefer: the probability of every edge and operation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from cluster.controls import GRID
from jobs.report_charts import Axis, Cell, Series, Weight, fitted_axis, heat_map, line_chart
from jobs.report_facts import Row, RunFacts
from jobs.report_html import Html, figure, fold, fraction, section, tag
from jobs.report_rows import point_words

_LEVELS = {
    "alpha": "alpha: P(Identity) of the inputs of cells",
    "beta": "beta: P(Identity) of the states of steps",
    "gamma": "gamma: probabilities of the operations of steps",
}
# Range of probabilities below which the colours of a table are not stretched further.
_LEAST_RANGE = 0.02
_LINE_STYLES = 5  # s5 is for what was not chosen
_NOT_CHOSEN = 5

# Level (`alpha`) -> place (`cell1`, `cell1/step1`) -> candidate -> name of its column.
Layout = dict[str, dict[str, dict[str, str]]]


def probabilities_section(facts: RunFacts) -> Html:
    """The best point's probabilities, as a table and over the epochs, then the tables of all other points."""
    rows = [row for row in facts.main.rows if row["id"] in facts.curves and _layout(facts.curves[row["id"]][-1])]
    if not rows:
        nothing = tag("p", "No file of this run says them.")
        return section("probabilities", "Probabilities of edges and operations", nothing)
    best = _best(facts, rows)
    others = [row for row in rows if row is not best]
    parts: list[object] = [tag("p", _NOTE, class_="soft"), tag("h3", _title(facts, best, "Best on dev: "))]
    parts += [_tables(facts, best), _development(facts, best)]
    if others:
        content = [[tag("h3", _title(facts, row)), _tables(facts, row)] for row in others]
        parts.append(fold(f"The other points ({len(others)})", content))
    return section("probabilities", "Probabilities of edges and operations", parts)


_NOTE = (
    "softmax(logits) at a point's best epoch, from which its genotype comes; framed: what the genotype uses. An edge "
    "chooses between Identity and Zero, so 0.5 is undecided; a cell takes the pair of inputs with the largest product "
    "of which one is new, a step its two best states and its best operation but Zero. Colours span at least "
    f"{_LEAST_RANGE:g} in each table."
)


def _best(facts: RunFacts, rows: Sequence[Row]) -> Row:
    """The found network's point; before training, or where its curves are gone, the best supernet on dev."""
    found = facts.readings[0].found if facts.readings else None
    return next((row for row in rows if f"{GRID}/{row['id']}" == found), max(rows, key=lambda row: row["dev_auc"]))


def _title(facts: RunFacts, row: Row, prefix: str = "") -> str:
    words = f"{prefix}{point_words(row, facts)}"
    return f"{words[:1].upper()}{words[1:]}, epoch {row['best_epoch']} of {row['epochs']}"


def _layout(line: Mapping[str, object]) -> Layout:
    """The probabilities that a row of the curves holds; empty for a run of an earlier version."""
    found: Layout = {}
    for column in line:
        level, _, rest = column.partition("/")
        place, _, candidate = rest.partition("/")
        if level not in _LEVELS:
            continue
        if level != "alpha":
            step, _, candidate = candidate.partition("/")
            place = f"{place}/{step}"
        found.setdefault(level, {}).setdefault(place, {})[candidate] = column
    return found


def _used(row: Row) -> set[tuple[str, str, str]]:
    """(level, place, candidate) of everything that the point's genotype uses."""
    used = set()
    for number, cell in enumerate(json.loads(row["genotype"])["cells"], start=1):
        used |= {("alpha", f"cell{number}", name) for name in cell["inputs"]}
        for index, step in enumerate(cell["steps"], start=1):
            place = f"cell{number}/step{index}"
            used |= {("beta", place, state) for state in step["inputs"]} | {("gamma", place, step["operation"])}
    return used


def _tables(facts: RunFacts, row: Row) -> Html:
    lines = facts.curves[row["id"]]
    line = next((line for line in lines if line["epoch"] == row["best_epoch"]), lines[-1])
    used = _used(row)
    tables = []
    for level, places in _layout(line).items():
        names = list(dict.fromkeys(name for candidates in places.values() for name in candidates))
        cells = {}
        for i, (place, candidates) in enumerate(places.items()):
            for candidate, column in candidates.items():
                value = _numbers(line, [column])[0]
                hint = f"{place}, {candidate}: {fraction(value, 5)}"
                framed = (level, place, candidate) in used
                cells[i, names.index(candidate)] = Cell(value=value, text=fraction(value), hint=hint, found=framed)
        heads = [_two_lines(name) for name in names]
        table = heat_map(list(places), heads, cells, least=_LEAST_RANGE, missing="", class_="heat fine")
        width = f"flex-basis:{max(100 + 76 * len(names), 360)}px"
        tables.append(tag("div", figure(table, None, title=_LEVELS[level]), style=width))
    return tag("div", tables, class_="beside")


def _two_lines(name: str) -> object:
    """A feature's name as sense and tap, one below the other."""
    sense, dot, tap = name.partition(".")
    return [f"{sense}{dot}", tag("br"), tap] if dot else name


def _development(facts: RunFacts, row: Row) -> Html:
    """A chart for each cell's inputs, each step's states and each step's operations, over the epochs."""
    lines = facts.curves[row["id"]]
    used = _used(row)
    parts: list[Html] = []
    for level, places in _layout(lines[-1]).items():
        columns = [column for candidates in places.values() for column in candidates.values()]
        y = fitted_axis("", [value for line in lines for value in _numbers(line, columns)], least=_LEAST_RANGE, cap=1.0)
        charts = []
        for place, candidates in places.items():
            chosen = {candidate for candidate in candidates if (level, place, candidate) in used}
            charts.append(_chart(lines, place, candidates, chosen, y))
        parts += [tag("p", f"{_LEVELS[level]}, over the epochs", class_="head"), tag("div", charts, class_="large")]
    note = tag("p", "Thick: what the genotype uses. The lines are named at their ends.", class_="soft")
    return tag("div", tag("h3", f"How they developed: {point_words(row, facts)}"), note, parts)


def _numbers(line: Row, columns: Sequence[str]) -> list[float]:
    return [math.nan if line[column] is None else float(line[column]) for column in columns]


def _chart(lines: Sequence[Row], place: str, candidates: Mapping[str, str], chosen: set[str], y: Axis) -> Html:
    """The candidates of one choice; where they are more than there are colours, those not chosen share a grey."""
    epochs = [line["epoch"] for line in lines]
    series: list[Series] = []
    colours = iter(range(_LINE_STYLES))
    for candidate, column in candidates.items():
        values = [_numbers(line, [column])[0] for line in lines]
        weight: Weight = "thick" if candidate in chosen else ""
        coloured = candidate in chosen or len(candidates) <= _LINE_STYLES
        style = next(colours) if coloured else _NOT_CHOSEN
        hint = f"{candidate}: {fraction(values[-1], 4)} at epoch {epochs[-1]}"
        series.append(Series(x=epochs, y=values, style=style, hint=hint, weight=weight, name=candidate))
    x = Axis("epoch", 0.0, float(epochs[-1]), whole=True)
    return line_chart(series, x, y, title=place, width=380, height=230)
