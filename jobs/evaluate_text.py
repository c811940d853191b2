"""What `stgs evaluate` prints: estimates, comparisons with the controls, cost and latency, in lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.controls import AUDIO, CONCAT_LINEAR, GRID, RANDOM, SOFTMAX, UNIFORM, VISUAL
from cluster.evaluation_metrics import chosen_by_search, fitted_on_dev
from jobs.tables import grid_tables

_ARM_NAMES = {
    SOFTMAX: "BM-NAS softmax",
    UNIFORM: "uniform sampling",
    RANDOM: "best random genotype",
    CONCAT_LINEAR: "concat + linear",
}


def estimate_text(value: Mapping[str, Any]) -> str:
    """An estimate in words: value and interval, or why there is none."""
    if value["value"] is None:
        return f"unknown ({value['sentence'].rstrip('.')})"
    if value["low"] is None:
        return f"{value['value']:.3f} (no interval: {value['sentence'].rstrip('.')})"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _plain(value: Mapping[str, Any]) -> str:
    return "unknown" if value["value"] is None else f"{value['value']:.3f}"


def summary(result: Mapping[str, Any]) -> str:
    """What an evaluation of one data set says, in lines."""
    networks = result["networks"]
    lines = [f"{result['dataset']}: {result['clips']} test clips of {result['subjects']} unseen subjects"]
    rows = [
        {**row["point"], "auc": row["auc"]["value"]}
        for row in networks.values()
        if row["arm"] == GRID and row["point"] is not None and row["auc"]["value"] is not None
    ]
    lines += grid_tables(rows, "AUC on test, temperature by num_samples", "auc")
    found, single = result["found"], result["best_single_sense"]
    lines.append(f"found ({_chosen(networks[found])}): {found}, {networks[found]['parameters']:,} parameters")
    lines += measured_lines(networks[found])
    if any(network["repeat"] for network in networks.values()):
        lines.append("further trainings (--repeats) show the spread; the first of each network is chosen and compared")
    if single is not None:
        lines.append(f"best single sense (on dev): {single}, AUC {estimate_text(networks[single]['auc'])}")
        lines.append(f"found - best single sense: {_difference(result['difference'])}")
    for arm, one in result["comparisons"].items():
        if arm not in (VISUAL, AUDIO):
            lines.append(
                f"{_ARM_NAMES.get(arm, arm)} (on dev): AUC {estimate_text(networks[one['network']]['auc'])}, found - "
                f"this: {_difference(one['difference'])}"
            )
    random, shuffled = result["random"], result["shuffled"]
    if random is not None:
        lines.append(
            f"random genotypes: mean AUC {random['mean']:.3f}, {random['low']:.3f} to {random['high']:.3f} "
            f"({random['count']} networks)"
        )
    if shuffled is not None:
        lines.append(_shuffled(shuffled))
    return "\n".join(lines)


def _chosen(network: Mapping[str, Any]) -> str:
    """What the found network was chosen by."""
    if chosen_by_search(network):
        return "chosen by the supernet's AUC on dev, for the networks were fitted on dev"
    return "best on dev, on which it was fitted" if fitted_on_dev(network) else "best on dev"


def _shuffled(shuffled: Mapping[str, Any]) -> str:
    error, sentence = shuffled["standard_error"], shuffled.get("sentence")
    verdict = {True: "at chance", False: "NOT at chance", None: "no verdict"}[shuffled["at_chance"]]
    return (
        f"shuffled labels: mean AUC {shuffled['mean']:.3f}"
        + ("" if error is None else f", standard error {error:.3f}")
        + f" ({shuffled['count']} searches): {verdict}"
        + ("" if sentence is None else f" ({sentence.rstrip('.')})")
    )


def measured_lines(network: Mapping[str, Any]) -> list[str]:
    """The metrics of one network."""
    threshold = "threshold 0.5" if fitted_on_dev(network) else "the dev threshold"
    lines = [
        f"  AUC {estimate_text(network['auc'])}, EER {_plain(network['equal_error_rate'])}, accuracy "
        f"{_plain(network['accuracy_dev_threshold'])} at {threshold}",
        f"  average precision {_plain(network['average_precision'])}, accuracy {_plain(network['accuracy'])} at 0.5, "
        f"balanced {_plain(network['balanced_accuracy'])}, calibration error {_plain(network['calibration_error'])}",
    ]
    for name, against in (("auc_by_category", "A"), ("auc_by_method", "the real clips")):
        if network[name]:
            told = ", ".join(f"{key} {_plain(value)}" for key, value in network[name].items())
            lines.append(f"  AUC against {against}: {told}")
    return lines


def _difference(value: Mapping[str, Any]) -> str:
    p_value = value["p_value"]
    return estimate_text(value) + ("" if p_value is None else f", p = {p_value:.2g}")


def latency_line(latency: Mapping[str, Any]) -> str:
    """Milliseconds a clip on this machine."""
    rows = latency["rows"]
    whole = [row for row in rows if row["part"] == "all"]
    told = ", ".join(
        f"{row['milliseconds_per_clip']:.3g} (batch {_batch(row)}, {_threads(row['threads'])})" for row in whole or rows
    )
    what = "with its backbones" if whole else "without backbones"
    return f"milliseconds a clip, {what}: {told}; {latency['device']}" + (
        f" ({latency['sentence'].rstrip('.')})" if latency.get("sentence") else ""
    )


def _batch(row: Mapping[str, Any]) -> str:
    return str(row["batch"]) + (f" timed on {row['clips']}" if row["clips"] < row["batch"] else "")


def _threads(number: int) -> str:
    return "1 core" if number == 1 else f"{number} cores"


def cost_line(cost: Mapping[str, Any]) -> str:
    """What the run has cost so far."""
    search = "none"
    if cost["search_seconds"] is not None:
        days = f"{cost['device_days']:.2g} {'GPU' if cost['device'] == 'cuda' else 'CPU'} days"
        search = f"{cost['search_seconds']:,.1f} s ({days})"
    return (
        f"cost on {cost['device']}: search {search}, training of its networks {cost['training_seconds']:,.1f} s, "
        f"controls {cost['control_seconds']:,.1f} s"
    )
