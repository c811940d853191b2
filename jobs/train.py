"""Trains the found network of every grid point, and of every control: weights from train, epoch and threshold from dev.

Controls are searched here on the same budget: one sense alone (the same grid on that sense's features), shuffled
labels, and genotypes drawn by chance. Networks whose files stand are left alone, so a stopped run goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.controls import (
    CONTROLS,
    GRID,
    RANDOM,
    arm_uri,
    control_grids,
    grid_jobs,
    random_jobs,
)
from cluster.features import FeatureSource, open_features
from cluster.finetune import require_trained_features
from cluster.found_loop import NetworkJob, read_network, train_networks
from cluster.grid import GridResult, read_grid, run_grids
from cluster.limits import RunLimits
from cluster.runs import read_config, read_hints
from cluster.session import connect
from cluster.settings import GridConfig, config_from_dict
from cluster.stopping import Stop
from data_prep import storage
from data_prep.storage import InputError
from jobs.cli import PARTLY, STOPPED, Outcome, SessionOptions, group, option, run_command
from stgs.config import FoundConfig


@dataclass(frozen=True, kw_only=True)
class TrainJobConfig:
    """Options of `stgs train`."""

    run: str = option(help="directory of a grid's run", positional=True, metavar="RUN")
    features: str | None = option(None, help="where the run's features are now (default: where they were)")
    manifest: str | None = option(None, help="where the run's manifest is now (default: where it was)")
    controls: tuple[str, ...] = option(CONTROLS, help="controls to search and train", choices=CONTROLS)
    random_genotypes: int = option(8, help="genotypes of the random control")
    shuffles: int = option(20, help="searches of the shuffled control")
    threads: int = option(1, help="threads of each process; the bits depend on it")
    found: FoundConfig = field(default_factory=FoundConfig, metadata={"prefix": "found_"})
    session: SessionOptions = group(SessionOptions)


def run(config: TrainJobConfig) -> Outcome:
    """Search the controls, then train every network."""
    start = time.monotonic()
    run_uri = storage.absolute(config.run)
    grid, source = open_run_source(run_uri, config.features, config.manifest)
    rows = {GRID: read_grid(run_uri)}
    with connect(**config.session.connect_arguments(run_uri)):
        searched = _search_controls(run_uri, config, grid, source)
        stopped = next((result.stop for result in searched.values() if result.stop is not None), None)
        if stopped is not None:
            return _stopped(config, searched.values(), stopped)
        rows |= {arm: searched[arm_uri(run_uri, arm)].rows for arm in config.controls if arm != RANDOM}
        jobs = [job for arm, found in rows.items() for job in grid_jobs(run_uri, arm, found)]
        if RANDOM in config.controls:
            jobs += random_jobs(run_uri, grid, source, count=config.random_genotypes)
        device = str(read_config(run_uri)["settings"]["device"])
        failed = train_networks(jobs, config.found, source, device=device, threads=config.threads)
    failed |= {point: reason for result in searched.values() for point, reason in result.failed.items()}
    networks = [_facts(job, run_uri) for job in jobs if job.uri not in failed]
    seconds = time.monotonic() - start
    payload = {"run": config.run, "networks": networks, "failed": failed, "seconds": round(seconds, 1)}
    return Outcome(payload, _summary(config, networks, failed, seconds), PARTLY if failed else 0)


def open_run_source(run_uri: str, features: str | None, manifest: str | None) -> tuple[GridConfig, FeatureSource]:
    """A run's grid, and the features and manifest that it was searched on.

    features, manifest: where they are now, None for where they were. A run that trained its backbones was searched on a
    corpus: its features are those that these backbones make of it. Raises InputError where they are other ones.
    """
    content, hints = read_config(run_uri), read_hints(run_uri)
    there: dict[str, Any] = {}
    if "finetune" in content and features is None:
        raise InputError(
            f"{run_uri} trained its backbones; run 'stgs extract' with their weights on {hints['features']}, and give "
            "the features as --features."
        )
    source = open_features(features or hints["features"], manifest or hints["manifest"])
    if "finetune" in content:
        require_trained_features(run_uri, content, source)
    else:
        there["features_digest"] = source.meta.digest
    there["split_digest"] = source.split_digest()
    for name, digest in there.items():
        if content[name] != digest:
            raise InputError(
                f"{run_uri} was searched with {name} {content[name]}, but what is there now has {digest}; give "
                "--features and --manifest of that search."
            )
    return config_from_dict(content), source


def _search_controls(
    run_uri: str, config: TrainJobConfig, grid: GridConfig, source: FeatureSource
) -> dict[str, GridResult]:
    """Search the controls. They resume by themselves: their settings follow from the run's, with the points that it was
    given later. Of two such commands the later one goes on.
    """
    settings = replace(grid.settings, threads=config.threads)
    config_of_controls = replace(grid, settings=settings)
    grids = control_grids(run_uri, config_of_controls, config.controls, source, shuffles=config.shuffles)
    limits = RunLimits(takeover=True)
    return run_grids(grids, source, resume=True, title="controls", limits=limits) if grids else {}


def _stopped(config: TrainJobConfig, searched: Collection[GridResult], stop: Stop) -> Outcome:
    """What is told where the searches of the controls have ended early."""
    finished = sum(len(result.rows) for result in searched)
    points = sum(len(result.rows) + len(result.failed) + result.unfinished for result in searched)
    text = (
        f"stopped early: {stop.reason}; {finished} of the controls' {points} points have a result, go on with the same "
        "command."
    )
    return Outcome({"run": config.run, "stopped": stop.reason, "unfinished": points - finished}, text, STOPPED)


def _facts(job: NetworkJob, run_uri: str) -> dict[str, Any]:
    facts = read_network(job.uri).facts
    name = job.uri.removeprefix(f"{run_uri}/").removesuffix(".safetensors")
    return {"network": name, "parameters": facts["parameters"], **facts["metrics"], "seconds": facts["seconds"]}


def _summary(config: TrainJobConfig, networks: list[dict[str, Any]], failed: dict[str, str], seconds: float) -> str:
    lines = [f"{len(networks)} networks trained, {len(failed)} failed, in {seconds:.1f} s; AUC on dev, best first:"]
    for network in sorted(networks, key=lambda facts: -facts["dev_auc"])[:5]:
        lines.append(f"  {network['dev_auc']:.3f}  {network['parameters']:>9,} parameters  {network['network']}")
    lines += [f"failed: {name}: {reason.splitlines()[-1]}" for name, reason in failed.items()]
    return "\n".join([*lines, f"run: {config.run}"])


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs train`; returns the exit code."""
    return run_command("train", run, argv)


if __name__ == "__main__":
    sys.exit(main())
