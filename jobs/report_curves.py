"""Section of the report on how the search went: entropies, AUC and losses, gradient norms, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.report_charts import Axis, Series, fitted_axis, legend, line_chart
from jobs.report_facts import Row, RunFacts
from jobs.report_html import Html, fraction, plural, section, tag


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A column of the curves. least: smallest extent of its axis. cap: its upper bound."""

    column: str
    name: str
    least: float = 0.0
    cap: float = float("inf")
    log: bool = False


_GROUPS: dict[str, tuple[str, tuple[_Quantity, ...]]] = {
    "Entropies": (
        "Sum over edges or steps of the entropy of softmax(logits), divided by its maximum: 1 is undecided, 0 decided. "
        "Near 1 is no sign of failure: the right features can be found while the mean entropy has hardly fallen.",
        (
            _Quantity("normalised_entropy_alpha", "E(alpha): features to cells", 0.002, 1.0),
            _Quantity("normalised_entropy_beta", "E(beta): edges inside cells", 0.002, 1.0),
            _Quantity("normalised_entropy_gamma", "E(gamma): operations", 0.002, 1.0),
        ),
    ),
    "AUC and loss": (
        "Of the supernet, after each epoch, on dev without noise and dropout; the loss on train is the mean over the "
        "epoch's weight updates.",
        (
            _Quantity("dev_auc", "AUC on dev", 0.05, 1.0),
            _Quantity("dev_loss", "Loss on dev (cross entropy, nats)", 0.02),
            _Quantity("train_loss", "Loss on train (cross entropy, nats)", 0.02),
        ),
    ),
    "Gradient norms": (
        "Of the architecture parameters before Adam, mean over the epoch's updates, logarithmic scale. The temperature "
        "rescales the gradient, which Adam divides out again.",
        (
            _Quantity("gradient_norm_alpha", "Gradient norm of alpha", log=True),
            _Quantity("gradient_norm_beta", "Gradient norm of beta", log=True),
            _Quantity("gradient_norm_gamma", "Gradient norm of gamma", log=True),
        ),
    ),
}


def curves_section(facts: RunFacts) -> Html:
    """All curves: a panel a temperature, a line a member."""
    rows = [row for row in facts.main.rows if row["id"] in facts.curves]
    gone = len(facts.main.rows) - len(rows)
    parts: list[object] = []
    if gone:
        parts.append(tag("p", f"The curves of {plural(gone, 'point')} are missing: the file that held them is gone."))
    if not rows:
        parts.append(tag("p", "There are no curves to show."))
    for estimator in facts.main.grid.estimators:
        own = [row for row in rows if row["estimator"] == estimator]
        if not own:
            continue
        parts += _groups(facts, own, f", estimator {estimator}" if len(facts.main.grid.estimators) > 1 else "")
    return section("curves", "How the search went", parts)


def _groups(facts: RunFacts, rows: Sequence[Row], which: str) -> list[Html]:
    samples = sorted({row["num_samples"] for row in rows})
    parts = []
    for title, (note, quantities) in _GROUPS.items():
        parts += [tag("h3", title + which), tag("p", note, class_="soft")]
        if len(rows) > 1:
            parts.append(legend({f"M {number}": style for style, number in enumerate(samples)}, note=_seeds(facts)))
        if len({row["temperature"] for row in rows}) == 1:
            panels = [_panel(facts, rows, rows, samples, quantity, quantity.name) for quantity in quantities]
            parts.append(tag("div", panels, class_="wrap"))
            continue
        for quantity in quantities:
            panels = []
            for temperature in sorted({row["temperature"] for row in rows}):
                here = [row for row in rows if row["temperature"] == temperature]
                panels.append(_panel(facts, rows, here, samples, quantity, f"temperature {temperature:g}"))
            parts += [tag("p", tag("b", quantity.name)), tag("div", panels, class_="panels")]
    return parts


def _seeds(facts: RunFacts) -> str | None:
    return None if len(facts.main.grid.seeds) == 1 else f"{len(facts.main.grid.seeds)} lines of a kind: one a seed"


def _panel(
    facts: RunFacts, rows: Sequence[Row], here: Sequence[Row], samples: Sequence[int], quantity: _Quantity, title: str
) -> Html:
    """Lines of the points `here`, on the axes that all `rows` share."""
    values = [line[quantity.column] for row in rows for line in facts.curves[row["id"]]]
    y = fitted_axis("", [v for v in values if v is not None], least=quantity.least, cap=quantity.cap, log=quantity.log)
    last = max(line["epoch"] for row in rows for line in facts.curves[row["id"]])
    lines = []
    for row in here:
        curve = facts.curves[row["id"]]
        numbers = [float("nan") if line[quantity.column] is None else line[quantity.column] for line in curve]
        end = f"{numbers[-1]:.3g}" if quantity.log else fraction(numbers[-1], 4)
        hint = f"{row['id']}: {end} at epoch {curve[-1]['epoch']}"
        style = samples.index(row["num_samples"])
        lines.append(Series(x=[line["epoch"] for line in curve], y=numbers, style=style, hint=hint))
    return line_chart(lines, Axis("epoch", 0.0, float(last), whole=True), y, title=title)
