"""The commands that make runs of baselines again, with their sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.baseline_remarks import SequencesFacts
from cluster.protocol_splits import FOLDS, PROTOCOL_KEY
from data_prep.sequence import SequenceConfig
from data_prep.split_folds import NUM_FOLDS
from jobs.baseline import BaselineJobConfig
from jobs.prepare import SEQUENCES, PrepareJobConfig
from jobs.report_baseline_facts import BaselineFacts
from jobs.report_commands import command_line

# Of these alone `stgs prepare` has no default of its own, but takes that of the sequences.
_OF_SEQUENCES = ("max_seconds", "min_face_share")
_WEIGHTS = {"initial": "initial_weights", "checkpoint": "checkpoint"}


def baseline_commands(baselines: Sequence[BaselineFacts]) -> list[str]:
    """The commands that make some baselines, each box of sequences once, in order, as far as their files say."""
    lines: dict[str, None] = {}
    for baseline in baselines:
        manifest = str(baseline.hints["manifest"])
        if baseline.sequences.uri is not None:
            lines[_prepare(baseline.sequences, manifest)] = None
        lines[_train(baseline, manifest)] = None
    return [*lines]


def _prepare(sequences: SequencesFacts, manifest: str) -> str:
    usual = SequenceConfig()
    made = {
        name: value
        for name, value in (sequences.config or {}).items()
        if name not in _OF_SEQUENCES or value != getattr(usual, name)
    }
    return command_line(
        "prepare", PrepareJobConfig, {**made, "manifest": manifest, "out": sequences.uri, "kind": SEQUENCES}
    )


def _train(baseline: BaselineFacts, manifest: str) -> str:
    config = baseline.config
    values: dict[str, Any] = {
        "sequences": baseline.sequences.uri or "SEQUENCES",
        **config.get("baseline", {}),
        **config.get("training", {}),
        **{name: config[name] for name in ("model", "shuffles", "device", "threads") if name in config},
        **_workers(baseline),
    }
    for name, option in _WEIGHTS.items():
        if isinstance((config.get("weights") or {}).get(name), Mapping):
            values[option] = baseline.hints.get("weights")
    if baseline.run is not None:
        values |= {"run": baseline.run, "name": baseline.name if baseline.name != baseline.model else None}
    else:
        values |= {"manifest": manifest, "out": baseline.uri, **_protocol(config)}
    return command_line("baseline", BaselineJobConfig, values)


def _protocol(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(config.get(PROTOCOL_KEY) or {})
    parts = settings.pop("parts", {})
    if settings.get("protocol") == FOLDS and len(parts) < NUM_FOLDS:
        settings["folds"] = len(parts)
    return settings


def _workers(baseline: BaselineFacts) -> dict[str, str]:
    counts = {metrics["workers"] for metrics in baseline.parts.values()}
    return {"workers": str(max(counts))} if counts else {}
