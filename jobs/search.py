"""Searches one fusion network on cached features, in a Ray Train worker, and keeps its genotype.

A run that was stopped, or killed, goes on with --resume and ends with the same genotype.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.features import open_features
from cluster.grid import GridConfig, SearchSettings, run_single
from cluster.session import connect
from jobs.cli import FAILED, Outcome, SessionOptions, group, option, run_command
from jobs.describe import drawing
from stgs.estimators import ESTIMATORS
from stgs.genotype import genotype_from_json


@dataclass(frozen=True, kw_only=True)
class SearchJobConfig:
    """Options of `stgs search`."""

    features: str = option(help="directory of the features", positional=True, metavar="FEATURES")
    manifest: str = option(help="directory of the manifest that splits them")
    out: str = option(help="directory of the run, local or s3://; its last part is the run's name")
    temperature: float = option(10.0, help="temperature lambda of the Gumbel-softmax, above 0")
    num_samples: int = option(15, help="Gumbel samples M, at least 1")
    estimator: str = option("stgs", help="gradient estimator", choices=ESTIMATORS)
    seed: int = option(0, help="initial weights, noise and dropout")
    resume: bool = option(False, help="continue a run that stands")
    settings: SearchSettings = group(SearchSettings)
    session: SessionOptions = group(SessionOptions)


def run(config: SearchJobConfig) -> Outcome:
    """Search one point."""
    start = time.monotonic()
    grid = GridConfig(
        temperatures=(config.temperature,),
        num_samples=(config.num_samples,),
        estimators=(config.estimator,),
        seeds=(config.seed,),
        settings=config.settings,
    )
    source = open_features(config.features, config.manifest)
    with connect(**config.session.connect_arguments(config.out)):
        result = run_single(config.out, grid, source, resume=config.resume)
    seconds = time.monotonic() - start
    if result.failed:
        reason = next(iter(result.failed.values()))
        return Outcome({"out": config.out, "failed": result.failed}, f"the search failed: {reason}", FAILED)
    row = result.rows[0]
    lines = [
        f"searched in {seconds:.1f} s: AUC on dev {row['dev_auc']:.3f} at epoch {row['best_epoch']} of "
        f"{row['epochs']}, {row['parameters']:,} parameters",
        *drawing(genotype_from_json(row["genotype"])),
    ]
    if row["hardly_moved"]:
        lines.append("the architecture has hardly moved: a close call, to be held against random genotypes.")
    return Outcome({"out": config.out, **row}, "\n".join([*lines, f"run: {config.out}"]))


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs search`; returns the exit code."""
    return run_command("search", run, argv)


if __name__ == "__main__":
    sys.exit(main())
