"""Loads the trained networks of a run and reads the test clips once: every metric with intervals, and the controls.

The found network is the grid point whose network has the best AUC on dev; the best of every control is chosen on dev,
too. Intervals are 95 % bootstrap intervals over subjects. With --network, one network's file is used on any clips that
were prepared and extracted as its own, and nothing is written but --out.

With --robustness the run's test clips are prepared again, damaged, for its found network, on Ray; what was stopped goes
on when it is started again.

Of a protocol's parts those without trained networks are left out and named, before any test is read; exit code 4.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.evaluation import METRICS_NAME, evaluate_network, evaluate_run, network_uris
from cluster.evaluation_cost import run_cost
from cluster.evaluation_latency import write_latency
from cluster.features import FeatureSource, open_features
from cluster.found_loop import read_network
from cluster.protocol_runs import gather_parts
from cluster.protocol_summary import summary as protocol_summary
from cluster.protocol_summary import summary_text
from cluster.protocols import open_parts
from cluster.shards import progress_bar
from data_prep import storage
from data_prep.storage import InputError
from jobs.cli import COMPLETE, PARTLY, Outcome, SessionOptions, group, option, run_command
from jobs.evaluate_robustness import RobustnessOptions, measured, robustness_text
from jobs.evaluate_text import cost_line, latency_line, measured_lines, summary

__all__ = ["EvaluateJobConfig", "main", "run", "summary"]


@dataclass(frozen=True, kw_only=True)
class EvaluateJobConfig:
    """Options of `stgs evaluate`: a run, or a network with features and manifest."""

    run: str | None = option(None, help="directory of a run with trained networks", positional=True, metavar="RUN")
    network: str | None = option(None, help="file of a network to use, in place of a run")
    features: str | None = option(None, help="where the run's features are now (default: where they were)")
    manifest: str | None = option(None, help="where the run's manifest is now (default: where it was)")
    split: Literal["train", "dev", "test"] = option("test", help="clips to use with --network")
    out: str | None = option(None, help="file (.json) for what --network gives")
    resamples: int = option(2000, help="bootstrap resamples of the subjects")
    latency: bool = option(True, help="time the found network on this machine")
    damaged: RobustnessOptions = group(RobustnessOptions)
    session: SessionOptions = group(SessionOptions)


def run(config: EvaluateJobConfig) -> Outcome:
    """Evaluate every network of the run, or the one network."""
    if (config.run is None) == (config.network is None):
        raise InputError("give either a RUN, whose networks are evaluated, or --network, for one network's file.")
    if config.resamples < 1:
        raise InputError(f"resamples is {config.resamples}, but it must be at least 1.")
    return _one_network(config) if config.run is None else _whole_run(config, config.run)


def _whole_run(config: EvaluateJobConfig, given: str) -> Outcome:
    if config.out is not None or config.split != "test":
        raise InputError("--split and --out are for --network; a run's test clips are read into the run.")
    run_uri = storage.absolute(given)
    parts = {uri: source for uri, (_, source) in open_parts(run_uri, config.features, config.manifest).items()}
    left_out = {} if run_uri in parts else _untrained(run_uri, parts)
    with config.damaged.connection(config.session, run_uri):
        found = {uri: _part(uri, source, config) for uri, source in parts.items() if uri not in left_out}
    if run_uri in found:
        payload, lines = found[run_uri]
        return Outcome({"run": given, **payload}, "\n".join([*lines, f"run: {given}"]))
    gather_parts(run_uri)
    together = protocol_summary(run_uri)
    names = {uri: uri.rsplit("/", 1)[-1] for uri in parts}
    text = [line for uri, (_, lines) in found.items() for line in (f"part {names[uri]}:", *lines, "")]
    text += [*summary_text(together), *(f"left out: {reason}" for reason in left_out.values()), f"run: {given}"]
    payload = {
        "run": given,
        "parts": {names[uri]: one for uri, (one, _) in found.items()},
        "summary": together,
        "left_out": {names[uri]: reason for uri, reason in left_out.items()},
    }
    return Outcome(payload, "\n".join(text), PARTLY if left_out else COMPLETE)


def _untrained(run_uri: str, parts: Mapping[str, FeatureSource]) -> dict[str, str]:
    """Why parts cannot be evaluated, by their directories. Raises InputError where none can."""
    found = {}
    for uri in parts:
        try:
            network_uris(uri)
        except InputError as error:
            found[uri] = str(error)
    if len(found) == len(parts):
        raise InputError(f"no part of {run_uri} has trained networks; run 'stgs train' on it first.")
    return found


def _part(uri: str, source: FeatureSource, config: EvaluateJobConfig) -> tuple[dict[str, Any], list[str]]:
    """What is known of one run after its evaluation: payload, and lines."""
    networks = network_uris(uri)
    datasets = {row["dataset"] for row in source.manifest.rows if row["split"] == "test"}
    # Every network scores the clips of every data set that has not been read yet.
    unread = [name for name in datasets if not storage.exists(storage.join(uri, "evaluation", name, METRICS_NAME))]
    with progress_bar("evaluate", len(networks) * len(unread), "network", True) as bar:
        results = evaluate_run(uri, source, resamples=config.resamples, progress=bar.update)
    cost = run_cost(uri, next(iter(results.values()))["networks"])
    payload: dict[str, Any] = {"datasets": results, "cost": cost, "latency": None}
    lines = [summary(result) for result in results.values()]
    found = next(iter(results.values()))["found"]
    if config.latency and found is not None:
        payload["latency"] = write_latency(uri, found, read_network(networks[found]))
        lines.append(latency_line(payload["latency"]))
    lines.append(cost_line(cost))
    if config.damaged.robustness:
        payload["robustness"] = measured(uri, source, config.damaged, config.resamples)
        lines += [robustness_text(result) for result in payload["robustness"].values()]
    return payload, lines


def _one_network(config: EvaluateJobConfig) -> Outcome:
    if config.damaged.robustness:
        raise InputError(
            "--robustness is for a run, whose found network it measures; give a RUN in place of --network."
        )
    if config.features is None or config.manifest is None:
        raise InputError("--network needs --features and --manifest: the clips that it is to be used on.")
    stored = read_network(storage.absolute(str(config.network)))
    source = open_features(config.features, config.manifest)
    results = evaluate_network(stored, source, config.split, resamples=config.resamples)
    payload = {"network": stored.uri, "threshold": stored.facts["metrics"]["threshold"], "datasets": results}
    lines = [f"network: {stored.uri}, {stored.facts['parameters']:,} parameters"]
    for result in results.values():
        lines.append(
            f"{result['dataset']}: {result['clips']} clips of {config.split}, {result['fake']} of them fake, of "
            f"{result['subjects']} subjects"
        )
        lines += measured_lines({**stored.facts["metrics"], **result["network"]})
    if config.out is not None:
        storage.write(storage.absolute(config.out), json.dumps(payload, indent=1, allow_nan=False).encode())
        lines.append(f"metrics: {config.out}")
    return Outcome(payload, "\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs evaluate`; returns the exit code."""
    return run_command("evaluate", run, argv)


if __name__ == "__main__":
    sys.exit(main())
