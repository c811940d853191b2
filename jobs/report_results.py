"""Sections of the report on scores: the grid's maps, ROC curves, and controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np

from cluster.controls import AUDIO, GRID, RANDOM, SHUFFLED, VISUAL
from jobs.report_charts import Axis, Cell, DotRow, Series, dot_chart, fitted_axis, heat_map, legend, line_chart
from jobs.report_facts import Arm, Reading, Row, RunFacts
from jobs.report_html import (
    MISSING,
    Html,
    bounds,
    count,
    duration,
    figure,
    fold,
    fraction,
    interval,
    section,
    table,
    tag,
)
from jobs.report_summary import ARM_NAMES, point_words

# Range of AUC below which the colours of a map are not stretched further: smaller differences are noise on test sets
# of thousands of clips.
_LEAST_AUC_RANGE = 0.05
# Table 3 of STGS-BMNAS (arXiv 2406.13384): (lambda, M) -> AUC in percent as printed, parameters.
PAPER_TABLE_3 = {
    (5, 5): ("86.7", 651776), (5, 10): ("87.3", 683776), (5, 15): ("89.2", 534400), (5, 20): ("91.4", 404096),
    (10, 5): ("92", 356096), (10, 10): ("94", 257920), (10, 15): ("92", 255872), (10, 20): ("90", 223187),
    (15, 5): ("94.5", 2165674), (15, 10): ("95.1", 201964), (15, 15): ("95.6", 196186), (15, 20): ("96.3", 185726),
    (20, 5): ("96.25", 183264), (20, 10): ("96.4", 177624), (20, 15): ("97.1", 170125), (20, 20): ("97.5", 162517),
}  # fmt: skip
# The temperature of the paper's published ROC figure; ROC curves by M are drawn at it where the grid has it.
_PAPER_TEMPERATURE = 10.0
_FALSE_POSITIVES = np.linspace(0.0, 1.0, 201)


def grid_section(facts: RunFacts) -> Html:
    """Maps over temperature and M, the paper's Table 3, and the table of all points."""
    arm = facts.main
    parts: list[object] = []
    if not arm.rows:
        parts.append(tag("p", "No point has a result."))
    many = len(arm.rows) > 1
    if many:
        parts.append(tag("p", _MAP_NOTE, class_="soft"))
    for words, rows in arm.groups() if many else ():
        if words:
            parts.append(tag("h3", f"With {words}"))
        parts.append(tag("div", _maps(facts, rows), class_="maps"))
    if arm.rows:
        tables = [_searched_points(facts), *(_trained_points(facts, reading) for reading in facts.readings)]
        parts.append(fold("All points in numbers", tables) if many else tables)
    if arm.missing:
        parts += [tag("h3", "Points without a result"), table(["point", "why"], arm.missing.items(), text_columns=2)]
    parts += [tag("h3", "The paper's Table 3, on other data"), tag("div", _paper_maps(), class_="maps")]
    parts.append(tag("p", _PAPER_NOTE, class_="soft"))
    return section("grid", "The grid", parts)


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


def _maps(facts: RunFacts, rows: Sequence[Row]) -> list[Html]:
    maps: list[Html] = []
    for reading in facts.readings:
        if reading.dataset is None:
            continue
        aucs = {row["id"]: network["auc"] for row in rows if (network := reading.point_network(row["id"]))}
        values = {point: auc["value"] for point, auc in aucs.items()}
        lines = {point: bounds(auc) for point, auc in aucs.items()}
        caption = f"AUC on test ({reading.dataset})"
        if len(facts.main.grid.seeds) == 1:
            caption += ", with its 95 % interval over subjects"
        maps.append(_grid_map(facts, rows, caption, values, fraction, lines=lines, least=_LEAST_AUC_RANGE))
    if facts.readings:
        first = facts.readings[0]
        dev = {row["id"]: network["dev_auc"] for row in rows if (network := first.point_network(row["id"]))}
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


def _paper_maps() -> list[Html]:
    temperatures = sorted({temperature for temperature, _ in PAPER_TABLE_3})
    samples = sorted({samples for _, samples in PAPER_TABLE_3})
    names, columns = [f"λ {t}" for t in temperatures], [f"M {m}" for m in samples]
    auc, parameters = {}, {}
    for (temperature, number), (printed, size) in PAPER_TABLE_3.items():
        place = (temperatures.index(temperature), samples.index(number))
        auc[place] = Cell(value=float(printed), text=f"{printed} %")
        # Coloured by rank of magnitude: one printed count is ten times the others.
        parameters[place] = Cell(value=float(np.log(size)), text=count(size))
    return [
        figure(heat_map(names, columns, auc), None, title="Other data: AUC on test as the paper prints it"),
        figure(heat_map(names, columns, parameters), None, title="Other data: parameters (colour: logarithm)"),
    ]


def _searched_points(facts: RunFacts) -> Html:
    """What the search says of each point."""
    head = ["point", "parameters", "MACs a clip", "dev AUC", "best epoch", "E(alpha)", "E(beta)", "E(gamma)"]
    rows = [
        [
            _named(row, facts),
            count(row["parameters"]),
            count(row["macs"]),
            fraction(row["dev_auc"]),
            f"{row['best_epoch']} of {row['epochs']}",
            *(fraction(row[f"normalised_entropy_{name}"], 4) for name in ("alpha", "beta", "gamma")),
            "hardly moved" if row["hardly_moved"] else "moved",
            duration(row["device_seconds"]),
        ]
        for row in facts.main.rows
    ]
    note = "The search. dev AUC: of the supernet. E: entropy at the end, divided by its maximum."
    return tag("div", tag("p", note), table([*head, "architecture", "device time"], rows))


def _trained_points(facts: RunFacts, reading: Reading) -> Html:
    """What is known of each point's trained network."""
    head = ["point", "dev AUC", "best epoch", "device time"]
    scores = ["test AUC", "EER", "accuracy", "at dev threshold", "balanced"] if reading.dataset is not None else []
    rows = []
    for row in facts.main.rows:
        network = reading.point_network(row["id"])
        if network is None:
            rows.append([_named(row, facts), "not trained", *[MISSING] * (2 + len(scores))])
            continue
        cells = [_named(row, facts), fraction(network["dev_auc"]), network["best_epoch"], duration(network["seconds"])]
        if scores:
            cells.append(interval(network["auc"]))
            names = ("equal_error_rate", "accuracy", "accuracy_dev_threshold", "balanced_accuracy")
            cells += [fraction(network[name]) for name in names]
        rows.append(cells)
    where = (
        ""
        if reading.dataset is None
        else (
            f" on {reading.dataset}. EER: equal error rate; accuracy: at threshold 0.5, and at the one chosen on dev; "
            "balanced: at that one, mean over the two classes"
        )
    )
    return tag("div", tag("p", f"The trained networks{where}."), table([*head, *scores], rows))


def _named(row: Row, facts: RunFacts) -> Html:
    return tag("span", point_words(row, facts), title=row["id"], style="white-space:nowrap")


def roc_section(facts: RunFacts) -> Html:
    """ROC curves of each data set."""
    tested = [reading for reading in facts.readings if reading.dataset is not None]
    parts: list[object] = []
    for reading in tested:
        if len(tested) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        parts.append(tag("div", _arms_roc(facts, reading), _samples_roc(facts, reading), class_="pair"))
    if not tested:
        parts.append(tag("p", "There are none: the test clips have not been read yet."))
    return section("roc", "ROC curves on test", parts)


def _arms_roc(facts: RunFacts, reading: Reading) -> Html:
    lines: list[tuple[str, Any, Any]] = []
    for name in (reading.found, reading.best_of(VISUAL), reading.best_of(AUDIO)):
        if name is not None:
            network = reading.networks[name]
            words = "found network" if name == reading.found else f"{ARM_NAMES[network['arm']]}, best on dev"
            lines.append((f"{words}: AUC {interval(network['auc'])}", *network["roc"]))
    for arm in (RANDOM, SHUFFLED):
        networks = reading.of_arm(arm)
        if networks:
            average = fraction(mean(network["auc"]["value"] for network in networks))
            curve = _mean_roc([network["roc"] for network in networks])
            lines.append((f"{ARM_NAMES[arm]}, mean of {len(networks)}: mean AUC {average}", _FALSE_POSITIVES, curve))
    caption = "The line from corner to corner is chance."
    return _roc_figure(lines, "Found network and controls", caption, first_thick=True)


def _samples_roc(facts: RunFacts, reading: Reading) -> Html | None:
    """ROC curves over M at one temperature; None for a grid with one M."""
    grid, found = facts.main.grid, reading.networks[reading.found]["point"]
    if len(grid.num_samples) < 2:
        return None
    fixed = _PAPER_TEMPERATURE if _PAPER_TEMPERATURE in grid.temperatures else found["temperature"]
    lines = []
    for row in sorted(facts.main.rows, key=lambda row: row["num_samples"]):
        wanted = (fixed, found["estimator"], found["seed"], found.get("options", ""))
        network = reading.point_network(row["id"])
        own = (row["temperature"], row["estimator"], row["seed"], row["options"])
        if own == wanted and network is not None:
            lines.append((f"M {row['num_samples']}: AUC {interval(network['auc'])}", *network["roc"]))
    where = f"temperature {fixed:g}"
    where += f", {words}" if (words := facts.main.group_words(found)) else ""
    where += f", seed {found['seed']}" if len(grid.seeds) > 1 else ""
    whose = "paper's ROC figure" if fixed == _PAPER_TEMPERATURE else "found network"
    why = f"This temperature is that of the {whose}."
    return _roc_figure(lines, f"Networks found with different M at {where}", f"{why} Equal genotypes give one curve.")


def _roc_figure(lines: Sequence[tuple[str, Any, Any]], title: str, caption: str, *, first_thick: bool = False) -> Html:
    series = [
        Series(x=x, y=y, style=style, hint=name, weight="thick" if first_thick and style == 0 else "")
        for style, (name, x, y) in enumerate(lines)
    ]
    axes = Axis("false positive rate (real clips called fake)", 0.0, 1.0), Axis("true positive rate", 0.0, 1.0)
    chart = line_chart(series, *axes, width=440, height=430, diagonal=True)
    names = {name: style for style, (name, _, _) in enumerate(lines)}
    return figure([chart, legend(names, rows=True)], caption, title=title, class_="roc")


def _mean_roc(curves: Sequence[Sequence[Sequence[float]]]) -> np.ndarray[Any, Any]:
    """Mean true positive rate at equal false positive rates."""
    return np.mean([np.interp(_FALSE_POSITIVES, x, y) for x, y in curves], axis=0)


def controls_section(facts: RunFacts) -> Html:
    """What the found network is held against."""
    parts: list[object] = [_ARMS_NOTE]
    for reading in facts.readings:
        if len(facts.readings) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        parts.append(_controls_table(facts, reading))
        if reading.dataset is not None:
            parts.append(_controls_chart(facts, reading))
    if not facts.readings:
        parts = [tag("p", "No network is trained yet, so there are none.")]
    for name, arm in facts.arms.items():
        if name != GRID and arm.missing:
            parts.append(tag("p", f"{ARM_NAMES[name]}: {_missing_words(arm)}"))
    return section("controls", "Controls", parts)


_ARMS_NOTE = tag(
    "p",
    "Every arm has the same clips, splits and budget. AUC by category: against the real clips A, the fakes B (real "
    "video, fake sound), C (fake video, real sound) and D (both fake) alone. B can only be heard and C only be seen.",
)


def _missing_words(arm: Arm) -> str:
    reasons = "; ".join(f"{point} {reason}" for point, reason in arm.missing.items())
    return f"{len(arm.missing)} of {len(arm.rows) + len(arm.missing)} searches without a result ({reasons})."


def _controls_table(facts: RunFacts, reading: Reading) -> Html:
    head = ["arm", "which", "networks", "dev AUC", "test AUC", "95 % interval, or spread", "A / B", "A / C", "A / D"]
    rows = []
    for arm in (GRID, VISUAL, AUDIO):
        name = reading.best_of(arm)
        if name is not None:
            network = reading.networks[name]
            role = "found network" if name == reading.found else "best on dev"
            if name == reading.best_single_sense:
                role = "best single sense"
            words = f"{role}: {point_words(network['point'], facts)}"
            rows.append([ARM_NAMES[arm], words, len(reading.of_arm(arm)), *_scores(network)])
    for arm in (GRID, VISUAL, AUDIO, RANDOM, SHUFFLED):
        networks = reading.of_arm(arm)
        if len(networks) > 1:
            rows.append([ARM_NAMES[arm], "mean of all", len(networks), *_mean_scores(networks)])
    return table(head, rows, text_columns=2)


def _scores(network: Row) -> list[str]:
    auc, categories = network.get("auc"), network.get("auc_by_category", {})
    tail = [fraction(categories.get(category)) for category in "BCD"]
    return [
        fraction(network["dev_auc"]),
        *((fraction(auc["value"]), bounds(auc)) if auc else (MISSING, MISSING)),
        *tail,
    ]


def _mean_scores(networks: Sequence[Row]) -> list[str]:
    dev = fraction(mean(network["dev_auc"] for network in networks))
    if "auc" not in networks[0]:
        return [dev, *[MISSING] * 5]
    aucs = [network["auc"]["value"] for network in networks]
    tail = []
    for category in "BCD":
        values = [n["auc_by_category"][category] for n in networks if category in n["auc_by_category"]]
        tail.append(fraction(mean(values)) if values else MISSING)
    return [dev, fraction(mean(aucs)), f"{fraction(min(aucs))} to {fraction(max(aucs))}", *tail]


def _controls_chart(facts: RunFacts, reading: Reading) -> Html:
    rows, all_values = [], [0.5]
    for style, arm in enumerate((GRID, VISUAL, AUDIO, RANDOM, SHUFFLED)):
        names = [name for name, network in reading.networks.items() if network["arm"] == arm]
        if not names:
            continue
        best = reading.best_of(arm) if arm in (GRID, VISUAL, AUDIO) else None
        auc: Mapping[str, float] | None = reading.networks[best]["auc"] if best else None
        values = [(reading.networks[name]["auc"]["value"], name) for name in names]
        hinted = [(value, f"{name}: {interval(reading.networks[name]['auc'])}") for value, name in values]
        chosen = (auc["value"], auc["low"], auc["high"]) if auc else None
        rows.append(DotRow(name=ARM_NAMES[arm], values=hinted, chosen=chosen, style=style))
        all_values += [value for value, _ in values] + list(chosen or ())
    axis = fitted_axis("AUC on test", all_values, cap=1.0)
    caption = (
        "Each dot is a trained network; the diamond is the arm's best on dev, with its 95 % interval over subjects."
    )
    chart = tag("div", tag("div", dot_chart(rows, axis), style="min-width:520px;max-width:820px"), class_="scroll")
    return figure(chart, caption, title=f"AUC on test ({reading.dataset}) of every network")
