"""Section of the report on the grid: maps over temperature and M, the paper's beside them, and all points in "
"numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from cluster.controls import GRID
from jobs.report_charts import Cell, heat_map
from jobs.report_facts import Reading, Row, RunFacts
from jobs.report_html import Html, bounds, count, figure, fold, fraction, section, table, tag
from jobs.report_paper import PAPER_TABLE_3, datasets_of, mark, other_data
from jobs.report_rows import ENOUGH_SEEDS, MEASURED, MEASURED_NOTE, grid_table, networks_table
from jobs.report_tables import bounds_of, value_of

# Range of AUC below which the colours of a map are not stretched further: smaller differences are noise on test sets
# of thousands of clips.
_LEAST_AUC_RANGE = 0.05


def grid_section(facts: RunFacts) -> Html:
    """Maps over temperature and M, the paper's Table 3, and the table of all points."""
    arm = facts.main
    parts: list[object] = []
    if not arm.rows:
        parts.append(tag("p", "No point has a result." if facts.searched else _NO_SEARCH))
    many = len(arm.rows) > 1
    if many:
        parts += [tag("p", _seeds_note(facts)), tag("p", _MAP_NOTE, class_="soft")]
    for words, rows in arm.groups() if many else ():
        if words:
            parts.append(tag("h3", f"With {words}"))
        parts.append(tag("div", _maps(facts, rows), class_="maps"))
    if arm.rows:
        tables = [_searched_points(facts), *(_trained_points(facts, reading) for reading in facts.readings)]
        parts.append(fold("All points in numbers", tables) if many else tables)
    elif not facts.searched:
        parts += [_trained_points(facts, reading) for reading in facts.readings]
    if arm.missing:
        parts += [tag("h3", "Points without a result"), table(["point", "why"], arm.missing.items(), text_columns=2)]
    parts += [
        tag("h3", f"The paper's Table 3, {mark(datasets_of(facts))}"),
        tag("div", _paper_maps(datasets_of(facts)), class_="maps"),
    ]
    parts.append(tag("p", _PAPER_NOTE, class_="soft"))
    return section("grid", "The grid", parts)


_NO_SEARCH = "Nothing was searched: the genotypes were given."
_MAP_NOTE = (
    "λ is the temperature, M the number of Gumbel samples. Darker is larger; the colours of an AUC span at least "
    f"{_LEAST_AUC_RANGE:g}, so that noise does not look like a trend. The cell of the found network is framed."
)
_PAPER_NOTE = (
    "Other clips (FakeAVCeleb and SWAN-DF, mixed), other backbones, another machine: not to be ranked against the maps "
    "above. The paper's sources disagree at its own choice, temperature 10 and M 15: Table 3 prints 92 %, the "
    "published ROC figure says 0.94, and its text takes this point although Table 3 has higher ones. Parameter counts "
    "are without the classifier, as here; the nine from (10, 20) on cannot be produced by the published search space."
)


def _seeds_note(facts: RunFacts) -> str | None:
    seeds = len(facts.main.grid.seeds)
    if seeds >= ENOUGH_SEEDS:
        return f"Each cell is the mean of {seeds} seeds, with their standard deviation."
    return (
        f"Fewer than {ENOUGH_SEEDS} seeds (there {'is 1' if seeds == 1 else f'are {seeds}'}): the maps show draws, and "
        "a difference between two cells is no result."
    )


def _maps(facts: RunFacts, rows: Sequence[Row]) -> list[Html]:
    maps: list[Html] = []
    for reading in facts.readings:
        if reading.dataset is None:
            continue
        aucs = {row["id"]: network["auc"] for row in rows if (network := reading.point_network(row["id"]))}
        values = {point: value for point, auc in aucs.items() if (value := value_of(auc)) is not None}
        lines = {point: bounds(auc) for point, auc in aucs.items() if bounds_of(auc)}
        caption = f"AUC on test ({reading.dataset})"
        if len(facts.main.grid.seeds) == 1:
            caption += ", with its 95 % interval over subjects"
        maps.append(_grid_map(facts, rows, caption, values, fraction, lines=lines, least=_LEAST_AUC_RANGE))
    if facts.readings:
        first = facts.readings[0]
        trained = {row["id"]: network for row in rows if (network := first.point_network(row["id"]))}
        dev = {point: network["dev_auc"] for point, network in trained.items() if network["dev_auc"] is not None}
        caption = "AUC on dev of the trained networks"
        maps.append(_grid_map(facts, rows, caption, dev, fraction, least=_LEAST_AUC_RANGE))
    caption = "AUC on dev of the supernet during the search"
    supernet = {row["id"]: row["dev_auc"] for row in rows}
    maps.append(_grid_map(facts, rows, caption, supernet, fraction, least=_LEAST_AUC_RANGE))
    sizes = {row["id"]: row["parameters"] for row in rows}
    maps.append(_grid_map(facts, rows, "Parameters of the found networks, without classifier", sizes, count))
    return maps


def _grid_map(
    facts: RunFacts,
    rows: Sequence[Row],
    caption: str,
    values: Mapping[str, float],
    text: Callable[[float], str],
    *,
    lines: Mapping[str, str] | None = None,
    least: float = 0.0,
) -> Html:
    """A map of `values` (by point): the mean over seeds, with its standard deviation where there are several.

    lines: by point, the second line of a cell that has one seed.
    """
    grid = facts.main.grid
    found = facts.readings[0].found.partition("/")[2] if facts.readings else None
    seconds = lines or {}
    cells = {}
    for i, temperature in enumerate(grid.temperatures):
        for j, samples in enumerate(grid.num_samples):
            here = [
                row["id"]
                for row in rows
                if (row["temperature"], row["num_samples"]) == (temperature, samples) and row["id"] in values
            ]
            if not here:
                continue
            numbers = [values[point] for point in here]
            second = seconds.get(here[0], "")
            if len(here) > 1:
                second = f"± {text(stdev(numbers))}, {len(here)} seeds"
            hint = "\n".join(f"{point}: {text(values[point])} {seconds.get(point, '')}".rstrip() for point in here)
            cells[i, j] = Cell(
                value=mean(numbers), text=text(mean(numbers)), small=second, hint=hint, found=found in here
            )
    names = [f"λ {temperature:g}" for temperature in grid.temperatures]
    columns = [f"M {samples}" for samples in grid.num_samples]
    if len(grid.seeds) > 1:
        caption += "; mean ± standard deviation over seeds"
    return figure(heat_map(names, columns, cells, least=least), None, title=caption)


def _paper_maps(datasets: set[str]) -> list[Html]:
    temperatures = sorted({temperature for temperature, _ in PAPER_TABLE_3})
    samples = sorted({samples for _, samples in PAPER_TABLE_3})
    names, columns = [f"λ {t}" for t in temperatures], [f"M {m}" for m in samples]
    auc, parameters = {}, {}
    for (temperature, number), (printed, size) in PAPER_TABLE_3.items():
        place = (temperatures.index(temperature), samples.index(number))
        auc[place] = Cell(value=float(printed), text=f"{printed} %")
        # Coloured by rank of magnitude: one printed count is ten times the others.
        parameters[place] = Cell(value=math.log(size), text=count(size))
    whose = "The paper, other data" if other_data(datasets) else "The paper"
    return [
        figure(heat_map(names, columns, auc), None, title=f"{whose}: AUC on test as it prints it"),
        figure(heat_map(names, columns, parameters), None, title=f"{whose}: parameters (colour: logarithm)"),
    ]


def _searched_points(facts: RunFacts) -> Html:
    """What the search says of each point."""
    note = "The search. dev AUC: of the supernet. E: entropy at the end, divided by its maximum."
    return tag("div", tag("p", note), grid_table(facts).html())


def _trained_points(facts: RunFacts, reading: Reading) -> Html:
    """What is known of each point's trained networks."""
    mine = networks_table(facts).where(dataset=reading.dataset, arm=GRID)
    if reading.dataset is None:
        return tag("div", tag("p", "The trained networks."), mine.html(without=tuple(MEASURED)))
    return tag("div", tag("p", f"The trained networks on {reading.dataset}. {MEASURED_NOTE}"), mine.html())
