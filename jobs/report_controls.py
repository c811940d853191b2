"""Section of the report on what the found network is held against: every arm, paired comparisons, rank correlation."""

from __future__ import annotations

from typing import Any

from cluster.controls import CONTROL_SEARCHES, GRID, SHUFFLED
from jobs.report_charts import DotRow, Series, dot_chart, fitted_axis, line_chart
from jobs.report_facts import Arm, Reading, RunFacts
from jobs.report_html import Html, figure, fold, fraction, plural, section, tag
from jobs.report_rows import ARM_NAMES, ARMS, comparisons_table, controls_table, network_words, point_words
from jobs.report_tables import Column, DataTable, bounds_of, estimate_words, value_of

_STYLES = 6


def controls_section(facts: RunFacts) -> Html:
    """The arms with their budget, how they compare, and how well the supernet ranks."""
    parts: list[object] = [_ARMS_NOTE]
    arms, comparisons = controls_table(facts), comparisons_table(facts)
    for reading in facts.readings:
        if len(facts.readings) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        parts.append(arms.where(dataset=reading.dataset).html())
        if reading.dataset is not None:
            parts += [_chart(facts, reading), _comparisons(comparisons.where(dataset=reading.dataset))]
    if not facts.readings:
        parts = [tag("p", "No network is trained yet, so there are none.")]
    for name, arm in facts.arms.items():
        if name != GRID and arm.missing:
            parts.append(tag("p", f"{ARM_NAMES[name]}: {_missing_words(arm)}"))
    parts += [tag("h3", "How well the supernet ranks genotypes"), *_ranking(facts)]
    return section("controls", "Controls", parts)


_ARMS_NOTE = tag(
    "p",
    "Every arm has the same clips, splits and training, and a search of its own has as many epochs and no more points "
    "than the grid. Networks of equal genotype, seed and labels are trained once, and that time is counted for the "
    "first arm that has them.",
)


def _missing_words(arm: Arm) -> str:
    reasons = "; ".join(f"{point} {reason}" for point, reason in arm.missing.items())
    return f"{len(arm.missing)} of {len(arm.rows) + len(arm.missing)} searches without a result ({reasons})."


def _comparisons(data: DataTable) -> Html | None:
    if not data.rows:
        return None
    note = (
        "The found network against the best of each arm on dev, on the same clips. Intervals are 95 % bootstrap "
        "intervals of the difference over subjects; p-values, two-sided, come from exchanging the two networks' ranks "
        "subject by subject, and are not corrected for their number. Softmax and uniform have as many searches as the "
        f"grid has points, but at most {CONTROL_SEARCHES} unless --control-searches says otherwise: the table of the "
        "arms counts them. Of repeated trainings the first one counts, so that every arm has equal draws."
    )
    return tag("div", tag("p", tag("b", "Paired comparisons. "), note), data.html())


def _chart(facts: RunFacts, reading: Reading) -> Html | None:
    rows, all_values = [], [0.5]
    for style, arm in enumerate(ARMS):
        scored = {
            name: value
            for name, network in reading.networks.items()
            if network["arm"] == arm and (value := value_of(network["auc"])) is not None
        }
        if not scored:
            continue
        best = reading.best_of(arm) if arm != SHUFFLED else None
        chosen = None
        if best in scored:
            value = scored[best]
            chosen = (value, *(bounds_of(reading.networks[best]["auc"]) or (value, value)))
        hints = [
            f"{name} ({network_words(reading.networks[name], facts)}): {estimate_words(reading.networks[name]['auc'])}"
            for name in scored
        ]
        dots = list(zip(scored.values(), hints, strict=True))
        rows.append(DotRow(name=ARM_NAMES[arm], values=dots, chosen=chosen, style=style % _STYLES))
        all_values += [*scored.values(), *(chosen or ())]
    if not rows:
        return None
    axis = fitted_axis("AUC on test", all_values, cap=1.0)
    caption = (
        "Each dot is a trained network; the diamond is the arm's best on dev, with its 95 % interval over subjects."
    )
    chart = tag("div", tag("div", dot_chart(rows, axis), style="min-width:520px;max-width:820px"), class_="scroll")
    return figure(chart, caption, title=f"AUC on test ({reading.dataset}) of every network")


def rank_correlation_table(facts: RunFacts) -> DataTable:
    """Spearman's and Kendall's correlation of each point's supernet with the networks trained alone."""
    names = {row["id"]: point_words(row, facts) for row in facts.main.rows}
    columns = (
        Column(key="point", head="supernet of", text=True, show=lambda point: names.get(point, point)),
        Column(key="count", head="genotypes"),
        Column(key="spearman", head="Spearman"),
        Column(key="kendall", head="Kendall", show=fraction),
    )
    rows = [
        {
            "point": point["id"],
            "count": point["count"],
            "spearman": {
                "value": point["spearman"],
                **{key: point[key] for key in ("low", "high", "sentence")},
            },
            "kendall": point["kendall"],
        }
        for point in (facts.rank_correlation or {}).get("points", ())
    ]
    return DataTable("rank_correlation", columns, rows)


def rank_pairs_table(facts: RunFacts) -> DataTable:
    """What is correlated: dev AUC by the supernet and of the network trained alone, for each point and genotype."""
    columns = tuple(Column(key=key) for key in ("point", "genotype", "supernet_auc", "dev_auc"))
    rows = [
        {"point": point["id"], "genotype": name, "supernet_auc": supernet, "dev_auc": alone}
        for point in (facts.rank_correlation or {}).get("points", ())
        for supernet, alone, name in point["pairs"]
    ]
    return DataTable("rank_pairs", columns, rows)


def _ranking(facts: RunFacts) -> list[object]:
    data = rank_correlation_table(facts)
    if not data.rows:
        return [tag("p", _NO_RANKING)]
    told = (facts.rank_correlation or {})["mean"]
    words = _RANKING_NOTE
    if told["points"]:
        words += (
            f" Mean over {plural(told['points'], 'point')}: Spearman {fraction(told['spearman'])}, Kendall "
            f"{fraction(told['kendall'])}."
        )
    points = [point for point in (facts.rank_correlation or {})["points"] if point["pairs"]]
    found = facts.readings[0].found.partition("/")[2] if facts.readings else None
    points.sort(key=lambda point: point["id"] != found)
    parts: list[object] = [tag("p", words), tag("div", [_scatter(facts, point) for point in points[:1]], class_="wrap")]
    parts.append(data.html())
    if len(points) > 1:
        others = tag("div", [_scatter(facts, point) for point in points[1:]], class_="wrap")
        parts.append(fold(f"The supernets of the other points ({len(points) - 1})", others))
    return parts


_RANKING_NOTE = (
    "Genotypes drawn by chance are scored on dev twice: with the weights of a point's supernet, and trained alone. "
    "Rank "
    "correlation tells whether the supernet orders them as training does: 1 fully, 0 not at all; its bounds are those "
    "of "
    "a 95 % bootstrap interval over genotypes."
)
_NO_RANKING = (
    "Not known: it needs the dev AUC of at least 16 random genotypes in the supernet (--candidates of 'stgs grid') and "
    "trained alone (--random-genotypes of 'stgs train')."
)


def _scatter(facts: RunFacts, point: dict[str, Any]) -> Html:
    """A dot for each genotype."""
    pairs = point["pairs"]
    dots = Series(
        x=[supernet for supernet, _, _ in pairs],
        y=[alone for _, alone, _ in pairs],
        style=0,
        hint="",
        dots=[
            f"{name}: {fraction(supernet)} in the supernet, {fraction(alone)} alone" for supernet, alone, name in pairs
        ],
        line=False,
    )
    x = fitted_axis("dev AUC in the supernet", dots.x, least=0.02, cap=1.0)
    y = fitted_axis("dev AUC alone", dots.y, least=0.02, cap=1.0)
    names = {row["id"]: point_words(row, facts) for row in facts.main.rows}
    words = f"Spearman {fraction(point['spearman'])}, Kendall {fraction(point['kendall'])}"
    return figure(line_chart([dots], x, y), words, title=names.get(point["id"], point["id"]))
