"""Section of the report on how the search went: entropies, scores, losses, gradient norms, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from jobs.report_charts import Axis, Series, Weight, fitted_axis, legend, line_chart
from jobs.report_facts import Row, RunFacts
from jobs.report_html import Html, fold, fraction, plural, section, tag
from jobs.report_summary import points_words


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A column of the curves. least: smallest extent of its axis. cap: its upper bound. beside: a second column, drawn
    faint on the same axes.
    """

    column: str
    name: str
    least: float = 0.0
    cap: float = float("inf")
    log: bool = False
    beside: str | None = None


_ENTROPY_NOTE = (
    "Sum over edges or steps of the entropy of softmax(logits), divided by its maximum: 1 is undecided, 0 decided. "
    "Near 1 is no sign of failure: the right features can be found while the mean entropy has hardly fallen."
)
_ENTROPIES = (
    _Quantity("normalised_entropy_alpha", "E(alpha): features to cells", 0.002, 1.0),
    _Quantity("normalised_entropy_beta", "E(beta): edges inside cells", 0.002, 1.0),
    _Quantity("normalised_entropy_gamma", "E(gamma): operations", 0.002, 1.0),
)
_GROUPS: dict[str, tuple[str, tuple[_Quantity, ...]]] = {
    "AUC and accuracy": (
        "Of the supernet. On dev: after each epoch, without noise and dropout. In updates: mean over the epoch's "
        "weight updates (on train) and architecture updates (on dev), with both. Accuracy is at P(fake) = 0.5.",
        (
            _Quantity("dev_auc", "AUC on dev", 0.05, 1.0),
            _Quantity("dev_accuracy", "Accuracy on dev", 0.05, 1.0),
            _Quantity("train_accuracy", "Accuracy in weight updates", 0.05, 1.0),
            _Quantity("architecture_accuracy", "Accuracy in architecture updates", 0.05, 1.0),
        ),
    ),
    "Losses": (
        "Cross entropy in nats, balanced by class; on dev and in updates as above.",
        (
            _Quantity("dev_loss", "Loss on dev", 0.02),
            _Quantity("train_loss", "Loss in weight updates", 0.02),
            _Quantity("architecture_loss", "Loss in architecture updates", 0.02),
        ),
    ),
    "Gradient norms": (
        "Of the architecture parameters before Adam, mean over the epoch's updates, logarithmic scale; faint and grey: "
        "the weight decay that Adam adds to them. A gradient far below its decay is lost. The temperature rescales the "
        "gradient, which Adam divides out again.",
        tuple(
            _Quantity(f"gradient_norm_{name}", f"Gradient norm of {name}", log=True, beside=f"decay_norm_{name}")
            for name in ("alpha", "beta", "gamma")
        ),
    ),
}
_FAINT_STYLE = 5


def curves_section(facts: RunFacts) -> Html:
    """Warnings, the entropies of all points in one picture each, then panels: one a temperature, a line a member."""
    groups = [(words, [row for row in rows if row["id"] in facts.curves]) for words, rows in facts.main.groups()]
    groups = [(words, rows) for words, rows in groups if rows]
    gone = sum(row["id"] not in facts.curves for row in facts.main.rows)
    parts: list[object] = [_warnings(facts)]
    if gone:
        parts.append(tag("p", f"The curves of {plural(gone, 'point')} are missing: the file that held them is gone."))
    if groups:
        parts += _entropies(facts, groups)
    else:
        parts.append(tag("p", "There are no curves to show."))
    for words, rows in groups:
        for title, (note, quantities) in _GROUPS.items():
            there = [quantity for quantity in quantities if _values(facts, rows, quantity)]
            if there:
                parts.append(tag("h3", f"{title} with {words}" if words else title))
                parts += [tag("p", note, class_="soft"), *_panels(facts, rows, there)]
    return section("curves", "How the search went", parts)


def _warnings(facts: RunFacts) -> Html | None:
    """Points whose search did not do what a search should, by name."""
    kinds = {
        "The gradient is lost beside the weight decay (never 1 % of it), so the decay alone moves the architecture": [
            (row, row["gradient_lost"]) for row in facts.main.rows if row["gradient_lost"]
        ],
        "The entropy never moved": [(row, row["entropy_unmoved"]) for row in facts.main.rows if row["entropy_unmoved"]],
        "The architecture has hardly moved (entropies above 0.99 of their maximum, and a genotype that still changed "
        "in the last 10 epochs)": [(row, "") for row in facts.main.rows if row["hardly_moved"]],
    }
    lines = [
        tag("li", tag("b", words), ": ", _point_names(facts, points), ".") for words, points in kinds.items() if points
    ]
    return tag("div", tag("h3", "Warnings"), tag("ul", lines), class_="caveats") if lines else None


def _point_names(facts: RunFacts, points: Sequence[tuple[Row, str]]) -> Html:
    """The points in words, by the parameters that are concerned."""
    together: dict[str, list[Row]] = {}
    for row, names in points:
        together.setdefault(names, []).append(row)
    pieces = []
    for names, rows in together.items():
        where = points_words(rows, facts)
        pieces.append(f"of {' and '.join(names.split())} at {where}" if names else where)
    return tag("span", "; ".join(pieces))


def _column(facts: RunFacts, row: Row, column: str) -> list[float]:
    """A column of a point's curve; NaN where the file has no value, or no such column."""
    values = [line.get(column) for line in facts.curves[row["id"]]]
    return [math.nan if value is None else float(value) for value in values]


def _values(facts: RunFacts, rows: Iterable[Row], quantity: _Quantity) -> list[float]:
    """All finite values of a quantity, what stands beside it included."""
    columns = [quantity.column] if quantity.beside is None else [quantity.column, quantity.beside]
    return [
        value for row in rows for column in columns for value in _column(facts, row, column) if math.isfinite(value)
    ]


def _epochs(facts: RunFacts, rows: Iterable[Row]) -> Axis:
    last = max(line["epoch"] for row in rows for line in facts.curves[row["id"]])
    return Axis("epoch", 0.0, float(last), whole=True)


def _entropies(facts: RunFacts, groups: Sequence[tuple[str, Sequence[Row]]]) -> list[Html]:
    """Each entropy in one picture for all estimators and options (the paper's Figure 1b)."""
    rows = [row for _, own in groups for row in own]
    parts = [tag("h3", "Entropies"), tag("p", _ENTROPY_NOTE, class_="soft")]
    if len(rows) > 1:
        note = "thick: mean over the points; faint: each point" if len(rows) > len(groups) else None
        names = {words or str(own[0]["estimator"]): style for style, (words, own) in enumerate(groups)}
        parts.append(legend(names, note=note))
    charts = []
    for quantity in _ENTROPIES:
        y = _axis(facts, rows, quantity)
        lines = [line for style, (words, own) in enumerate(groups) for line in _bundle(facts, own, quantity, style)]
        charts.append(line_chart(lines, _epochs(facts, rows), y, title=quantity.name))
    parts.append(tag("div", charts, class_="large"))
    if len({(row["temperature"], row["num_samples"]) for row in rows}) > 1:
        panels = []
        for words, own in groups:
            panels += [tag("h3", f"With {words}") if words else None, *_panels(facts, own, _ENTROPIES)]
        parts.append(fold("The same by temperature and M", panels))
    return parts


def _bundle(facts: RunFacts, rows: Sequence[Row], quantity: _Quantity, style: int) -> list[Series]:
    """The lines of a group's points, faint, under their mean over those that have the epoch."""
    lines = [_line(facts, row, quantity, style, "faint" if len(rows) > 1 else "") for row in rows]
    if len(rows) == 1:
        return lines
    by_epoch: dict[int, list[float]] = {}
    for line in lines:
        for epoch, value in zip(line.x, line.y, strict=True):
            by_epoch.setdefault(int(epoch), []).append(value)
    epochs = sorted(by_epoch)
    means = [fmean(by_epoch[epoch]) for epoch in epochs]
    hint = f"{rows[0]['estimator']}, mean of {len(rows)} points: {fraction(means[-1], 4)} at epoch {epochs[-1]}"
    return [*lines, Series(x=epochs, y=means, style=style, hint=hint, weight="thick")]


def _panels(facts: RunFacts, rows: Sequence[Row], quantities: Sequence[_Quantity]) -> list[Html]:
    """A chart a quantity, or a row of charts where there are several temperatures; a style a number of samples."""
    samples = sorted({row["num_samples"] for row in rows})
    parts: list[Html] = []
    if len(rows) > 1:
        parts.append(legend({f"M {number}": style for style, number in enumerate(samples)}, note=_seeds(facts)))
    temperatures = sorted({row["temperature"] for row in rows})
    if len(temperatures) == 1:
        panels = [_panel(facts, rows, rows, samples, quantity, quantity.name) for quantity in quantities]
        return [*parts, tag("div", panels, class_="wrap")]
    for quantity in quantities:
        panels = []
        for temperature in temperatures:
            here = [row for row in rows if row["temperature"] == temperature]
            panels.append(_panel(facts, rows, here, samples, quantity, f"temperature {temperature:g}"))
        parts += [tag("p", tag("b", quantity.name)), tag("div", panels, class_="panels")]
    return parts


def _seeds(facts: RunFacts) -> str | None:
    return None if len(facts.main.grid.seeds) == 1 else f"{len(facts.main.grid.seeds)} lines of a kind: one a seed"


def _axis(facts: RunFacts, rows: Iterable[Row], quantity: _Quantity) -> Axis:
    values = _values(facts, rows, quantity)
    return fitted_axis("", values, least=quantity.least, cap=quantity.cap, log=quantity.log)


def _panel(
    facts: RunFacts, rows: Sequence[Row], here: Sequence[Row], samples: Sequence[int], quantity: _Quantity, title: str
) -> Html:
    """Lines of the points `here`, on the axes that all `rows` share."""
    lines = []
    if quantity.beside is not None:
        decay = _Quantity(quantity.beside, "weight decay", log=quantity.log)
        lines += [_line(facts, row, decay, _FAINT_STYLE, "faint") for row in here if _values(facts, [row], decay)]
    lines += [_line(facts, row, quantity, samples.index(row["num_samples"])) for row in here]
    return line_chart(lines, _epochs(facts, rows), _axis(facts, rows, quantity), title=title)


def _line(facts: RunFacts, row: Row, quantity: _Quantity, style: int, weight: Weight = "") -> Series:
    """A point's curve of one quantity."""
    epochs = [line["epoch"] for line in facts.curves[row["id"]]]
    values = _column(facts, row, quantity.column)
    end = f"{values[-1]:.3g}" if quantity.log else fraction(values[-1], 4)
    what = "weight decay of " if quantity.column.startswith("decay") else ""
    hint = f"{what}{row['id']}: {end} at epoch {epochs[-1]}"
    return Series(x=epochs, y=values, style=style, hint=hint, weight=weight)
