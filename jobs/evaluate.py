"""Loads the trained networks of a run and reads the test clips once: AUC with intervals, and the controls.

The found network is the grid point whose network has the best AUC on dev; the best single sense is chosen on dev, too.
Intervals are 95 % bootstrap intervals over subjects.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.controls import GRID
from cluster.evaluation import evaluate_run, network_uris
from cluster.shards import progress_bar
from data_prep import storage
from jobs.cli import Outcome, option, run_command
from jobs.tables import grid_tables
from jobs.train import open_run_source


@dataclass(frozen=True, kw_only=True)
class EvaluateJobConfig:
    """Options of `stgs evaluate`."""

    run: str = option(help="directory of a run with trained networks", positional=True, metavar="RUN")
    features: str | None = option(None, help="where the run's features are now (default: where they were)")
    manifest: str | None = option(None, help="where the run's manifest is now (default: where it was)")
    resamples: int = option(2000, help="bootstrap resamples of the subjects")


def run(config: EvaluateJobConfig) -> Outcome:
    """Evaluate every network of the run."""
    run_uri = storage.absolute(config.run)
    _, source = open_run_source(run_uri, config.features, config.manifest)
    with progress_bar("evaluate", len(network_uris(run_uri)), "network", True) as bar:
        results = evaluate_run(run_uri, source, resamples=config.resamples, progress=bar.update)
    text = "\n".join(summary(result) for result in results.values())
    return Outcome({"run": config.run, "datasets": results}, f"{text}\nrun: {config.run}")


def summary(result: dict[str, Any]) -> str:
    """What an evaluation of one data set says, in lines."""
    networks = result["networks"]
    lines = [f"{result['dataset']}: {result['clips']} test clips of {result['subjects']} unseen subjects"]
    rows = [{**row["point"], "auc": row["auc"]["value"]} for row in networks.values() if row["arm"] == GRID]
    lines += grid_tables(rows, "AUC on test, temperature by num_samples", "auc")
    found, single = result["found"], result["best_single_sense"]
    lines.append(f"found (best on dev): {found}, {networks[found]['parameters']:,} parameters")
    lines.append(
        f"  AUC {_interval(networks[found]['auc'])}, EER {networks[found]['equal_error_rate']:.3f}, accuracy "
        f"{networks[found]['accuracy_dev_threshold']:.3f} at the dev threshold"
    )
    if single is not None:
        lines.append(f"best single sense (on dev): {single}, AUC {_interval(networks[single]['auc'])}")
        lines.append(f"found - best single sense: {_interval(result['difference'])}")
    random, shuffled = result["random"], result["shuffled"]
    if random is not None:
        lines.append(
            f"random genotypes: mean AUC {random['mean']:.3f}, {random['low']:.3f} to {random['high']:.3f} "
            f"({random['count']} networks)"
        )
    if shuffled is not None:
        where = "at chance" if shuffled["at_chance"] else "NOT at chance"
        lines.append(
            f"shuffled labels: mean AUC {shuffled['mean']:.3f}, standard error {shuffled['standard_error']:.3f} "
            f"({shuffled['count']} searches): {where}"
        )
    return "\n".join(lines)


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs evaluate`; returns the exit code."""
    return run_command("evaluate", run, argv)


if __name__ == "__main__":
    sys.exit(main())
