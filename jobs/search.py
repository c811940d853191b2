"""Searches one fusion network, in Ray Train workers that share every batch, and keeps its genotype.

It reads cached features, or, with --finetune, a corpus, and then trains the backbones, too. A run that was stopped, or
killed, goes on with --resume and ends with the same genotype. With --protocol the clips are split anew; of cross,
method and folds every part is a whole search, under RUN/parts, one after another within the same limits.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cluster.engines_train import WorkerGroup
from cluster.features import FeatureSource, open_features
from cluster.finetune import BackboneOptions, backbone_uri, open_corpus
from cluster.gathering import GridResult
from cluster.limits import RunLimits, worker_range
from cluster.protocol_runs import joined, open_protocol
from cluster.protocol_splits import MANIFEST, ProtocolConfig
from cluster.runs import part_uri
from cluster.session import connect
from cluster.settings import CANDIDATES, GridConfig, SearchSettings
from jobs.cli import COMPLETE, FAILED, PARTLY, STOPPED, Outcome, SessionOptions, group, option, run_command
from jobs.describe import drawing
from jobs.tables import indented, warnings
from stgs.backbone_trainer import FinetuneConfig
from stgs.backbones import SENSES
from stgs.config import SearchConfig
from stgs.estimators import SAMPLERS
from stgs.genotype import genotype_from_json


@dataclass(frozen=True, kw_only=True)
class SearchJobConfig:
    """Options of `stgs search`."""

    features: str = option(
        help="directory of the features; of the corpus, with --finetune", positional=True, metavar="FEATURES"
    )
    manifest: str = option(help="directory of the manifest that splits them")
    out: str = option(help="directory of the run, local or s3://; its last part is the run's name")
    temperature: float = option(10.0, help="temperature lambda of the Gumbel-softmax, above 0")
    num_samples: int = option(15, help="Gumbel samples M, at least 1")
    estimator: str = option("stgs", help="gradient estimator", choices=SAMPLERS)
    seed: int = option(0, help="initial weights, noise and dropout")
    workers: str = option(
        "1", help="processes, one a device, that share every batch; MIN:MAX to use those that are there, as they change"
    )
    resize_seconds: float = option(600.0, help="between two looks for machines, with --workers MIN:MAX; at least 1")
    finetune: bool = option(False, help="train the backbones in the loop, on a corpus in the place of features")
    dry_run: bool = option(False, help="print the memory and the time to expect, and search nothing")
    resume: bool = option(False, help="continue a run that stands")
    protocol: ProtocolConfig = group(ProtocolConfig)
    limits: RunLimits = group(RunLimits)
    settings: SearchSettings = group(SearchSettings, search=SearchConfig(candidates=CANDIDATES))
    backbones: BackboneOptions = group(BackboneOptions)
    training: FinetuneConfig = group(FinetuneConfig)
    session: SessionOptions = group(SessionOptions)


def run(config: SearchJobConfig) -> Outcome:
    """Search one point."""
    start, started = time.monotonic(), time.time()
    workers = WorkerGroup(*worker_range(config.workers), config.resize_seconds)
    grid = GridConfig(
        temperatures=(config.temperature,),
        num_samples=(config.num_samples,),
        estimators=(config.estimator,),
        seeds=(config.seed,),
        settings=config.settings,
    )
    searched = open_protocol(config.out, config.protocol, _source(config))
    with connect(**config.session.connect_arguments(None if config.dry_run else config.out)):
        if config.dry_run:
            expected = searched.dry_run(grid, workers=workers.fewest, in_turn=True)
            return Outcome(expected.payload, expected.text)
        results = searched.search_singles(
            grid, workers=workers, resume=config.resume, limits=config.limits, started=started
        )
    seconds = time.monotonic() - start
    whole = joined(config.out, results) if searched.parts else results[""]
    if whole.stop is not None:
        return Outcome({"out": config.out, "stopped": whole.stop.reason}, whole.stopped(), STOPPED)
    if whole.failed and not whole.rows:
        reason = next(iter(whole.failed.values()))
        return Outcome({"out": config.out, "failed": whole.failed}, f"the search failed: {reason}", FAILED)
    if not searched.parts:
        return _outcome(config, config.out, whole.rows[0], seconds)
    return _parts_outcome(config, results, seconds)


def _source(config: SearchJobConfig) -> FeatureSource:
    if not config.finetune:
        return open_features(config.features, config.manifest)
    is_split = config.protocol.protocol == MANIFEST
    return open_corpus(config.features, config.manifest, config.backbones, config.training, is_split=is_split)


def _parts_outcome(config: SearchJobConfig, results: Mapping[str, GridResult], seconds: float) -> Outcome:
    """What the searches of a protocol print, part after part."""
    lines, failed = [], joined(config.out, results).failed
    parts: dict[str, Any] = {}
    for part, result in results.items():
        for row in result.rows:
            own = _outcome(config, part_uri(config.out, part), row, row["seconds"])
            parts[part] = own.payload
            lines += [f"{part}:", indented(own.text)]
    lines += [f"failed: {name}: {reason.splitlines()[-1]}" for name, reason in failed.items()]
    lines.append(f"{len(parts)} of {len(results)} parts searched in {seconds:.1f} s; run: {config.out}")
    payload = {"out": config.out, "parts": parts, "failed": failed}
    return Outcome(payload, "\n".join(lines), PARTLY if failed else COMPLETE)


def _outcome(config: SearchJobConfig, out: str, row: dict[str, Any], seconds: float) -> Outcome:
    """What a search prints that has a result. out: directory of its run."""
    lines = [
        f"searched in {seconds:.1f} s: AUC on dev {row['dev_auc']:.3f} at epoch {row['best_epoch']} of "
        f"{row['epochs']}, {row['parameters']:,} parameters",
        *drawing(genotype_from_json(row["genotype"])),
        *warnings([row]),
    ]
    payload: dict[str, Any] = {"out": out, **row}
    if config.finetune:
        payload["backbones"] = {sense: backbone_uri(out, sense) for sense in SENSES}
        lines.append(f"features of these backbones: {_extraction(config, payload['backbones'])}")
    return Outcome(payload, "\n".join([*lines, f"run: {out}"]))


def _extraction(config: SearchJobConfig, weights: dict[str, str]) -> str:
    """The command that makes the features of the trained backbones."""
    words = ["stgs", "extract", config.features, "--out", "DIR"]
    for item in fields(BackboneOptions):
        value = weights.get(item.name.removesuffix("_weights"), "") if item.name.endswith("_weights") else None
        value = value or getattr(config.backbones, item.name)
        if value != item.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{item.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs search`; returns the exit code."""
    return run_command("search", run, argv)


if __name__ == "__main__":
    sys.exit(main())
