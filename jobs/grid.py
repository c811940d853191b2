"""Searches a grid of temperatures and numbers of Gumbel samples on Ray, and keeps the genotype of every point.

FEATURES stands first, because an option of several values takes every word that follows it. Every option of the search
itself, --preset to --max-parameters, may be given several values, too (--dropout 0.1 0.2; a list in a --config file;
lists and switches by repeating the option), and is an axis of the grid then. Points are packed: one pack is one
population in one program. A run that was stopped, or killed, goes on with --resume and ends with the same genotypes.
With --resume it may be given more values of its axes, named behind those that it has: the new points are added.
With --protocol the clips are split anew; of cross, method and folds every part is a whole grid, under RUN/parts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cluster.features import open_features
from cluster.gathering import GridResult
from cluster.limits import RunLimits
from cluster.protocol_runs import joined, open_protocol
from cluster.protocol_splits import ProtocolConfig
from cluster.session import connect
from cluster.settings import CANDIDATES, GridConfig, SearchSettings
from jobs.cli import COMPLETE, FAILED, PARTLY, STOPPED, Outcome, SessionOptions, group, option, run_command
from jobs.tables import grid_tables, indented, warnings
from stgs.config import SearchConfig


@dataclass(frozen=True, kw_only=True)
class GridJobConfig:
    """Options of `stgs grid`."""

    features: str = option(help="directory of the features", positional=True, metavar="FEATURES")
    manifest: str = option(help="directory of the manifest that splits them")
    out: str = option(help="directory of the run, local or s3://; its last part is the run's name")
    dry_run: bool = option(False, help="print packs, their places, memory and the time to expect, and search nothing")
    resume: bool = option(False, help="continue a run that stands")
    protocol: ProtocolConfig = group(ProtocolConfig)
    limits: RunLimits = group(RunLimits)
    grid: GridConfig = group(GridConfig, settings=SearchSettings(search=SearchConfig(candidates=CANDIDATES)))
    session: SessionOptions = group(SessionOptions)


def run(config: GridJobConfig) -> Outcome:
    """Search every point of the grid."""
    start, started = time.monotonic(), time.time()
    source = open_features(config.features, config.manifest)
    searched = open_protocol(config.out, config.protocol, source)
    with connect(**config.session.connect_arguments(None if config.dry_run else config.out)):
        if config.dry_run:
            expected = searched.dry_run(config.grid)
            return Outcome(expected.payload, expected.text)
        results = searched.search_grids(config.grid, resume=config.resume, limits=config.limits, started=started)
    seconds = time.monotonic() - start
    if searched.parts:
        return parts_outcome(config.out, results, seconds)
    return outcome(config.out, results[""], seconds)


def outcome(out: str, result: GridResult, seconds: float) -> Outcome:
    """What a grid prints that has ended: the tables of dev AUC and parameters, and the best point on dev, of the points
    that are finished.
    """
    payload: dict[str, Any] = {"out": out, "points": result.rows, "failed": result.failed, "seconds": round(seconds, 1)}
    lines = [f"{len(result.rows)} points searched, {len(result.failed)} failed, in {seconds:.1f} s"]
    code = PARTLY if result.failed else COMPLETE
    if result.stop is not None:
        payload |= {"stopped": result.stop.reason, "unfinished": result.unfinished}
        lines.insert(0, result.stopped())
        code = STOPPED
    if not result.rows:
        return Outcome(payload, "\n".join([*lines, *_failures(result)]), code if code == STOPPED else FAILED)
    best = max(result.rows, key=lambda row: row["dev_auc"])
    lines += grid_tables(result.rows, "supernet's AUC on dev, temperature by num_samples", "dev_auc")
    lines += grid_tables(result.rows, "parameters of the found network", "parameters", 0)
    lines.append(f"best on dev: {best['id']}, AUC {best['dev_auc']:.3f}, {best['parameters']:,} parameters")
    lines += warnings(result.rows)
    lines += [*_failures(result), f"run: {out}"]
    return Outcome(payload, "\n".join(lines), code)


def parts_outcome(out: str, results: Mapping[str, GridResult], seconds: float) -> Outcome:
    """What the searches of a protocol print that have ended: the best point on dev of each part."""
    whole = joined(out, results)
    payload: dict[str, Any] = {
        "out": out,
        "parts": {part: {"points": result.rows, "failed": result.failed} for part, result in results.items()},
        "seconds": round(seconds, 1),
    }
    lines = [
        f"{len(whole.rows)} points searched in {len(results)} parts, {len(whole.failed)} failed, in {seconds:.1f} s"
    ]
    code = PARTLY if whole.failed else COMPLETE
    if whole.stop is not None:
        payload |= {"stopped": whole.stop.reason, "unfinished": whole.unfinished}
        lines.insert(0, whole.stopped())
        code = STOPPED
    elif not whole.rows:
        code = FAILED
    if whole.rows:
        lines += ["best on dev of each part, AUC of the supernet:", indented(_best_of_parts(results))]
    lines += [*warnings(whole.rows), *_failures(whole), f"run: {out}"]
    return Outcome(payload, "\n".join(lines), code)


def _best_of_parts(results: Mapping[str, GridResult]) -> str:
    """A line for each part."""
    told = []
    for part, result in results.items():
        done = f"{len(result.rows)}/{len(result.rows) + len(result.failed) + result.unfinished}"
        best = max(result.rows, key=lambda row: row["dev_auc"], default=None)
        if best is None:
            told.append((part, "-", "-", done, "none yet"))
        else:
            told.append((part, f"{best['dev_auc']:.3f}", f"{best['parameters']:,}", done, best["id"]))
    table = pd.DataFrame(told, columns=["part", "AUC", "parameters", "done", "point"])
    return table.to_string(index=False)


def _failures(result: GridResult) -> list[str]:
    return [f"failed: {point}: {reason.splitlines()[-1]}" for point, reason in result.failed.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs grid`; returns the exit code."""
    return run_command("grid", run, argv)


if __name__ == "__main__":
    sys.exit(main())
