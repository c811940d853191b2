"""The report's caveats: what the figures of a run do not say, or not for sure."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.controls import AUDIO, VISUAL
from data_prep.synthetic import DATASET
from jobs.report_facts import RunFacts
from jobs.report_html import Html, plural, tag
from jobs.report_rows import ENOUGH_SEEDS
from jobs.tables import of_points


def caveats(facts: RunFacts) -> Html | None:
    """What the figures do not say, or not for sure; None where nothing is to be said."""
    warnings = (_fitted(facts), _movement(facts), _lost(facts), _choice(facts))
    lines = [line for line in (*_draws(facts), *_data(facts), *warnings) if line]
    if not lines:
        return None
    return tag("div", tag("h3", "Caveats"), tag("ul", [tag("li", line) for line in lines]), class_="caveats")


def _draws(facts: RunFacts) -> Sequence[str]:
    grid = facts.main.grid
    if not facts.searched:
        return []
    if len(grid.seeds) >= ENOUGH_SEEDS or len(grid.points()) == 1:
        return [] if len(grid.points()) > 1 else ["One point, one seed: this is one draw, it says nothing of a trend."]
    draws = "one draw" if len(grid.seeds) == 1 else f"{len(grid.seeds)} draws"
    return [
        f"{plural(len(grid.seeds), 'seed')}: the map shows {draws}, not a trend. At least {ENOUGH_SEEDS} seeds are "
        "needed before differences between its cells mean anything."
    ]


def _data(facts: RunFacts) -> Sequence[str]:
    lines = []
    if any(reading.dataset == DATASET for reading in facts.readings):
        lines.append(
            f"The data set '{DATASET}' is drawn by a program, faces and voices alike: its scores say that the "
            "machinery works, and nothing about real deepfakes."
        )
    config = facts.provenance.get("backbones", {})
    untrained = [s for s in (VISUAL, AUDIO) if str(config.get(f"{s}_weights", "")).startswith("random:")]
    if untrained:
        noun = "backbone is" if len(untrained) == 1 else "backbones are"
        lines.append(
            f"The {' and '.join(untrained)} {noun} untrained (random weights): trained ones give other scores."
        )
    if not facts.provenance:
        lines.append("No file that is left says which backbones made the features.")
    return lines


def _fitted(facts: RunFacts) -> str | None:
    networks = [network for reading in facts.readings for network in reading.networks.values()]
    if not any("dev" in (network.get("fitted_on") or ()) for network in networks):
        return None
    return (
        "Networks were fitted on train and dev: their AUC on dev is one of clips that they learnt from, and whatever "
        "was "
        "chosen by it is no clean choice."
    )


def _movement(facts: RunFacts) -> str | None:
    rows = facts.main.rows
    still = sum(row["hardly_moved"] for row in rows)
    if not still:
        return None
    return (
        f"The architecture has hardly moved at {of_points(still, len(rows))}: entropies above 0.99 of their maximum "
        "and a genotype that still changed in the last 10 epochs. Such genotypes are close calls: hold them against "
        "those drawn by chance."
    )


def _lost(facts: RunFacts) -> str | None:
    rows = facts.main.rows
    lost = sum(bool(row["gradient_lost"] or row["entropy_unmoved"]) for row in rows)
    if not lost:
        return None
    return (
        f"The architecture was not really searched at {of_points(lost, len(rows))}: its gradient is lost beside "
        "the weight decay, or an entropy never moved. They are named under 'How the search went'."
    )


def _choice(facts: RunFacts) -> str | None:
    genotypes = {row["genotype"] for row in facts.main.rows}
    if len(facts.main.rows) < 2 or len(genotypes) == len(facts.main.rows):
        return None
    return (
        f"The {len(facts.main.rows)} points ended in {plural(len(genotypes), 'different genotype')}: cells of the map "
        "that share one (and a seed) are one network, not several."
    )
