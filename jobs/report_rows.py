"""Rows of the report's tables on networks: what the page shows of them and the csv and parquet files beside it hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from cluster.controls import AUDIO, CONCAT_LINEAR, CONTROLS, GRID, RANDOM, SHUFFLED, SOFTMAX, UNIFORM, VISUAL
from jobs.report_facts import Reading, Row, RunFacts
from jobs.report_html import count, duration, fraction, tag, text_of
from jobs.report_tables import Column, DataTable, value_of

ARMS = (GRID, *CONTROLS)
ARM_NAMES = {
    GRID: "both senses",
    VISUAL: "visual only",
    AUDIO: "audio only",
    SOFTMAX: "BM-NAS softmax",
    UNIFORM: "uniform sampling",
    RANDOM: "random genotypes",
    CONCAT_LINEAR: "concat + linear",
    SHUFFLED: "shuffled labels",
}
FAKES = "BCD"
DAY_S = 86_400.0
MEASURED = {
    "auc": "test AUC",
    "average_precision": "average precision",
    "equal_error_rate": "EER",
    "accuracy": "accuracy at 0.5",
    "accuracy_dev_threshold": "at dev threshold",
    "balanced_accuracy": "balanced",
    "calibration_error": "calibration error",
}
MEASURED_NOTE = (
    "With 95 % bootstrap intervals over subjects. EER: equal error rate; accuracy: at P(fake) = 0.5, and at the "
    "threshold chosen on dev; balanced: at that one, mean over the two classes; calibration error: mean distance "
    "between "
    "P(fake) and the share of fakes, over 10 bins."
)
# From this number of seeds on, design.md section 4 lets a heat map be called a result.
ENOUGH_SEEDS = 3
_DATASET = Column(key="dataset", text=True)
_POINT = ("temperature", "num_samples", "estimator", "seed", "options", "shuffle_seed")


def point_words(point: Mapping[str, object] | None, facts: RunFacts) -> str:
    """A point in words: temperature and M, and what else the grid varies."""
    if point is None:
        return "a genotype drawn by chance"
    words = f"temperature {text_of(point['temperature'])}, M {point['num_samples']}"
    if group := facts.main.group_words(point):
        words += f", {group}"
    return words + (f", seed {point['seed']}" if len(facts.main.grid.seeds) > 1 else "")


def network_words(network: Mapping[str, Any], facts: RunFacts) -> str:
    """Where a network comes from: its point in words, or what it is."""
    if network.get("kind") == CONCAT_LINEAR:
        return "one linear layer"
    if network["point"] is not None and network["arm"] in (SOFTMAX, UNIFORM):
        return f"seed {network['point']['seed']}"  # temperature and M mean nothing to them
    given = network["point"] is None and not facts.searched
    words = "a genotype that was given" if given else point_words(network["point"], facts)
    return f"{words}, repeat {network['repeat']}" if network.get("repeat") else words


def network_names(facts: RunFacts, *, with_arm: bool = True) -> Callable[[str], object]:
    """What the page calls networks: their arm and where they come from; the name in the files is a hint."""
    known = {name: network for reading in facts.readings for name, network in reading.networks.items()}

    def named(name: str) -> object:
        if name not in known:
            return name
        network = known[name]
        by_name = network["point"] is None and network.get("kind") != CONCAT_LINEAR
        words = name.partition("/")[2] if by_name else network_words(network, facts)
        if with_arm:
            words = f"{ARM_NAMES.get(network['arm'], network['arm'])}: {words}"
        return tag("span", words, title=name, style="white-space:nowrap")

    return named


def networks_table(facts: RunFacts) -> DataTable:
    """Every trained network with all that was measured of it, once a data set."""
    columns = (
        _DATASET,
        Column(key="network", head="network", text=True, show=network_names(facts)),
        Column(key="role", head="chosen as", text=True),
        Column(key="arm", text=True),
        Column(key="kind", text=True),
        Column(key="parameters", head="parameters", show=count),
        Column(key="macs", head="MACs a clip", show=count),
        Column(key="dev_auc", head="dev AUC", show=fraction),
        *(Column(key=key, head=head) for key, head in MEASURED.items()),
        Column(key="best_epoch", head="epoch", show=count),
        Column(key="threshold", head="dev threshold", show=fraction),
        Column(key="seconds", head="device time", show=duration),
        *(Column(key=key) for key in ("repeat", "fitted_on", *_POINT, "genotype")),
    )
    rows = []
    for reading in facts.readings:
        roles = roles_of(reading)
        for name, network in reading.networks.items():
            point = network["point"] or {}
            keys = ("arm", "kind", "repeat", "parameters", "macs", "dev_auc", "best_epoch", "threshold", "seconds")
            row = {key: network.get(key) for key in (*keys, *MEASURED, "genotype")}
            row |= {key: point.get(key) for key in _POINT}
            row["fitted_on"] = "+".join(network.get("fitted_on") or ()) or None
            rows.append({"dataset": reading.dataset, "network": name, "role": roles.get(name), **row})
    return DataTable("networks", columns, rows)


def roles_of(reading: Reading) -> dict[str, str]:
    """Network -> what it was chosen as, on dev: the found network, and the best of each control."""
    roles = {}
    for arm in ARMS:
        best = reading.best_of(arm)
        if best is not None and arm != SHUFFLED:
            roles[best] = f"best of {ARM_NAMES[arm]}"
    if reading.best_single_sense is not None:
        roles[reading.best_single_sense] = "best single sense"
    return {**roles, reading.found: "found network"}


def controls_table(facts: RunFacts) -> DataTable:
    """The arms with their budget, their best network on dev, and the mean of all of theirs, once a data set."""
    columns = (
        _DATASET,
        Column(key="arm", text=True),
        Column(key="name", head="arm", text=True),
        Column(key="best", head="best on dev", text=True, show=network_names(facts, with_arm=False)),
        Column(key="searches", head="searches", show=count),
        Column(key="networks", head="networks", show=count),
        Column(key="search_seconds", head="search, device time", show=duration),
        Column(key="training_seconds", head="training", show=duration),
        Column(key="dev_auc", head="best: dev AUC", show=fraction),
        Column(key="auc", head="best: test AUC"),
        Column(key="mean_auc", head="all: mean test AUC", show=fraction),
        Column(key="least_auc", head="lowest", show=fraction),
        Column(key="largest_auc", head="highest", show=fraction),
    )
    training = facts.training_seconds()
    rows = []
    for reading in facts.readings:
        for arm in ARMS:
            networks = reading.of_arm(arm)
            searched = facts.arms.get(arm)
            if not networks and searched is None:
                continue
            best = reading.best_of(arm) if arm != SHUFFLED else None
            rows.append(
                {
                    "dataset": reading.dataset,
                    "arm": arm,
                    "name": ARM_NAMES[arm],
                    "best": best,
                    "searches": len(searched.rows) if searched else None,
                    "networks": len(networks),
                    "search_seconds": searched.device_seconds if searched else None,
                    "training_seconds": training.get(arm),
                    **({key: reading.networks[best].get(key) for key in ("dev_auc", "auc")} if best else {}),
                    **_spread(networks),
                }
            )
    return DataTable("controls", columns, rows)


def _spread(networks: Sequence[Row]) -> Row:
    values = [value for network in networks if (value := value_of(network.get("auc"))) is not None]
    if not values:
        return {}
    return {"mean_auc": fmean(values), "least_auc": min(values), "largest_auc": max(values)}


def comparisons_table(facts: RunFacts) -> DataTable:
    """The found network minus the best of each control on dev: paired differences of test AUC, once a data set."""
    columns = (
        _DATASET,
        Column(key="arm", text=True),
        Column(key="name", head="found network minus", text=True),
        Column(key="network", head="its best on dev", text=True, show=network_names(facts, with_arm=False)),
        Column(key="verdict", head="the interval", text=True),
        Column(key="difference", head="difference of test AUC"),
        Column(key="p_value", head="p-value", show=p_value_words),
    )
    rows: list[Row] = []
    for reading in facts.tested:
        for arm, compared in reading.content.get("comparisons", {}).items():
            difference = compared["difference"]
            rows.append(
                {
                    "dataset": reading.dataset,
                    "arm": arm,
                    "name": ARM_NAMES.get(arm, arm),
                    "network": compared["network"],
                    "difference": difference,
                    "p_value": (difference or {}).get("p_value"),
                    "verdict": against_zero(difference),
                }
            )
    return DataTable("comparisons", columns, rows)


def p_value_words(value: float) -> str:
    """A p-value, e.g. 0.031, or < 0.001."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def against_zero(difference: Mapping[str, Any] | None) -> str | None:
    """Where the interval of a difference lies; None where it has none."""
    if difference is None or difference.get("low") is None or difference.get("high") is None:
        return None
    if difference["low"] > 0:
        return "lies above 0"
    return "lies below 0" if difference["high"] < 0 else "does not exclude 0"


def by_category_table(facts: RunFacts) -> DataTable:
    """AUC of every network against the real clips A, for all fakes and each category, once a data set."""
    columns = (
        _DATASET,
        Column(key="network", head="network", text=True, show=network_names(facts)),
        Column(key="role", head="chosen as", text=True),
        Column(key="auc", head="A / all fakes"),
        *(Column(key=f"auc_{category}", head=f"A / {category}") for category in FAKES),
    )
    rows = []
    for reading in facts.tested:
        roles = roles_of(reading)
        for name, network in reading.networks.items():
            aucs = network.get("auc_by_category", {})
            scores = {"auc": network["auc"], **{f"auc_{category}": aucs.get(category) for category in FAKES}}
            rows.append({"dataset": reading.dataset, "network": name, "role": roles.get(name), **scores})
    return DataTable("by_category", columns, rows)


def by_method_table(facts: RunFacts) -> DataTable:
    """AUC of every network against the real clips, by forgery method, once a data set."""
    columns = (
        _DATASET,
        Column(key="method", head="forgery method", text=True),
        Column(key="network", head="network", text=True, show=network_names(facts)),
        Column(key="role", head="chosen as", text=True),
        Column(key="auc", head="AUC against real clips"),
    )
    rows = []
    for reading in facts.tested:
        roles = roles_of(reading)
        for name, network in reading.networks.items():
            for method, auc in (network.get("auc_by_method") or {}).items():
                rows.append(
                    {
                        "dataset": reading.dataset,
                        "method": method,
                        "network": name,
                        "role": roles.get(name),
                        "auc": auc,
                    }
                )
    return DataTable("by_method", columns, rows)


def grid_table(facts: RunFacts) -> DataTable:
    """Every point of the grid: what its search says, and every column of grid.parquet."""
    names = {row["id"]: tag("span", point_words(row, facts), title=row["id"]) for row in facts.main.rows}
    shown = (
        Column(key="id", head="point", text=True, show=lambda point: names[point]),
        Column(key="parameters", head="parameters", show=count),
        Column(key="macs", head="MACs a clip", show=count),
        Column(key="dev_auc", head="dev AUC", show=fraction),
        Column(key="best_epoch", head="best epoch", show=count),
        *(
            Column(key=f"normalised_entropy_{name}", head=f"E({name})", show=lambda value: fraction(value, 4))
            for name in ("alpha", "beta", "gamma")
        ),
        Column(key="device_seconds", head="device time", show=duration),
        Column(key="hardly_moved", head="architecture", show=lambda value: "hardly moved" if value else "moved"),
    )
    rest = dict.fromkeys(key for row in facts.main.rows for key in row)
    others = tuple(Column(key=key) for key in rest if key not in {column.key for column in shown})
    return DataTable("grid", (*shown, *others), list(facts.main.rows))
