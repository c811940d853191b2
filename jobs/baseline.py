"""Trains a baseline of another publication on the clips of a manifest, or on those of a run, and tests it once.

It reads sequences ('stgs prepare --kind sequences'). With --folds or --protocol the clips are split anew, and every
part is trained and tested by itself, side by side; with --run the splits are those of a run, and its report shows the
baseline beside the found network. What was stopped, or killed, goes on with --resume.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.baseline_results import summary, summary_text
from cluster.baseline_runs import (
    BaselineSettings,
    PlannedPart,
    SplitParts,
    baseline_uri,
    folds_protocol,
    plan_parts,
    split_by_protocol,
    split_by_run,
)
from cluster.baseline_streams import open_sequences
from cluster.baseline_training import BaselineResult, train_baseline
from cluster.baseline_weights import open_weights
from cluster.board import way_on
from cluster.engines_train import WorkerGroup
from cluster.limits import RunLimits, worker_range
from cluster.protocol_splits import ProtocolConfig
from cluster.runs import NAME_WORDS, is_run_name
from cluster.session import connect
from jobs.cli import COMPLETE, FAILED, PARTLY, STOPPED, Outcome, SessionOptions, UsageError, group, option, run_command
from stgs.baselines import BASELINES, BaselineConfig
from stgs.baselines.training import BaselineTrainingConfig


@dataclass(frozen=True, kw_only=True)
class BaselineJobConfig:
    """Options of `stgs baseline`."""

    sequences: str = option(help="directory of the sequences", positional=True, metavar="SEQUENCES")
    model: str = option(help="the baseline", choices=BASELINES)
    manifest: str | None = option(None, help="directory of the manifest that splits them; of a --run: where it is now")
    out: str | None = option(None, help="directory of the baseline's run, local or s3://; its last part is its name")
    run: str | None = option(None, help="take the splits of this run, and write into its folder baselines")
    name: str | None = option(None, help="of the folder there (default: the model)")
    folds: int | None = option(None, help="short for --protocol folds, of which so many are trained, the first ones")
    initial_weights: str | None = option(None, help="file of AV-HuBERT from whose encoder the training starts")
    checkpoint: str | None = option(None, help="file of a released baseline, which is tested without any training")
    shuffles: int = option(0, help="controls on the first part whose labels are shuffled in train and dev")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where to train")
    threads: int = option(1, help="threads of each process; the bits depend on it")
    workers: str = option(
        "1", help="processes, one a device, that share every batch; MIN:MAX to use those that are there, as they change"
    )
    resize_seconds: float = option(600.0, help="between two looks for machines, with --workers MIN:MAX; at least 1")
    resume: bool = option(False, help="continue a run that stands")
    protocol: ProtocolConfig = group(ProtocolConfig)
    baseline: BaselineConfig = group(BaselineConfig)
    training: BaselineTrainingConfig = group(BaselineTrainingConfig)
    limits: RunLimits = group(RunLimits)
    session: SessionOptions = group(SessionOptions)


def run(config: BaselineJobConfig) -> Outcome:
    """Train and test every part of a baseline."""
    start, started = time.monotonic(), time.time()
    workers = WorkerGroup(*worker_range(config.workers), config.resize_seconds)
    out, split = _place(config)
    weights, arrays = open_weights(config.initial_weights, config.checkpoint, config.model, config.baseline)
    settings = BaselineSettings(
        model=config.model,
        baseline=config.baseline,
        training=config.training,
        shuffles=config.shuffles,
        device=config.device,
        threads=config.threads,
        weights=weights,
        arrays=arrays,
    )
    sequences = open_sequences(config.sequences)
    parts = plan_parts(settings, sequences, split)
    with connect(**config.session.connect_arguments(out)):
        result = train_baseline(
            out,
            settings,
            sequences,
            split,
            parts,
            workers=workers,
            resume=config.resume,
            limits=config.limits,
            started=started,
            place="--out" if config.run is None else "--name",
        )
    if result.stop is not None:
        return _stopped(result, parts)
    notes = [] if weights is None else [weights.told()]
    return _outcome(result, parts, notes, time.monotonic() - start)


def run_directory(options: Mapping[str, Any]) -> str:
    """Where the run of the baseline is. options: by name. Raises UsageError where nothing says so."""
    name = options["name"]
    if options["run"] is not None:
        if name is not None and not is_run_name(name):
            raise UsageError(f"name is {name!r}, but that of a folder in the --run has {NAME_WORDS}.")
        return baseline_uri(options["run"], name or options["model"])
    if options["manifest"] is None or options["out"] is None:
        missing = "manifest" if options["manifest"] is None else "out"
        raise UsageError(f"{missing} is missing; give --manifest and --out, or the --run whose splits to take.")
    if name is not None:
        raise UsageError(f"name is {name!r}, but it is the folder's in a --run; leave it out.")
    return str(options["out"])


def _place(config: BaselineJobConfig) -> tuple[str, SplitParts]:
    """Where the run of the baseline is, and how its clips are split."""
    out = run_directory(vars(config))
    if config.run is not None:
        given = [
            name
            for name, value in (("out", config.out), ("folds", config.folds), ("protocol", config.protocol))
            if value not in (None, ProtocolConfig())
        ]
        if given:
            raise UsageError(
                f"{given[0]} is given, but the parts and the place of the baseline are those of --run {config.run}; "
                "leave one of them out."
            )
        return out, split_by_run(config.run, config.manifest)
    assert config.manifest is not None
    protocol = folds_protocol(config.protocol, config.folds)
    return out, split_by_protocol(config.manifest, protocol, config.folds)


def _stopped(result: BaselineResult, parts: Sequence[PlannedPart]) -> Outcome:
    """What is told where it has ended early."""
    assert result.stop is not None
    finished = len(parts) - result.unfinished - len(result.failed)
    text = (
        f"stopped early: {result.stop.reason}; {finished} of {len(parts)} parts are finished, go on with "
        f"{way_on(result.stop)}."
    )
    payload = {"out": result.out, "stopped": result.stop.reason, "unfinished": result.unfinished}
    return Outcome(payload, text, STOPPED)


def _outcome(result: BaselineResult, parts: Sequence[PlannedPart], notes: Sequence[str], seconds: float) -> Outcome:
    found = summary(result.out)
    missing = {part.name: part.missing for part in parts if part.missing}
    lines = [*notes, *summary_text(result.out)]
    lines += [
        f"{part}: {count} clips of the manifest are not among the sequences; they were refused, or not prepared"
        for part, count in missing.items()
    ]
    lines += [f"failed: {part}: {reason.splitlines()[-1]}" for part, reason in result.failed.items()]
    lines.append(f"{len(parts)} {'part' if len(parts) == 1 else 'parts'} in {seconds:.1f} s; run: {result.out}")
    payload = {
        "out": result.out,
        "model": found["model"],
        "size": found["size"],
        "max_seconds": found["max_seconds"],
        "checkpoint": found["checkpoint"],
        "parts": found["parts"],
        "over_parts": found["over_parts"],
        "shuffled": found["shuffled"],
        "failed": dict(result.failed),
        "missing_clips": missing,
        "seconds": round(seconds, 1),
    }
    exit_code = COMPLETE if not result.failed else PARTLY if len(result.failed) < len(parts) else FAILED
    return Outcome(payload, "\n".join(lines), exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs baseline`; returns the exit code."""
    return run_command("baseline", run, argv)


if __name__ == "__main__":
    sys.exit(main())
