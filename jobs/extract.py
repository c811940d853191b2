"""Runs the frozen backbones over a corpus and keeps their taps: the features that search and training read.

A stopped run goes on where it stopped when it is started again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.extract import DEVICES, extract
from cluster.session import connect
from data_prep import boxes
from data_prep.boxes import Meta
from jobs.cli import Outcome, SessionOptions, group, option, run_command
from stgs.backbones import BackboneConfig


@dataclass(frozen=True, kw_only=True)
class ExtractJobConfig:
    """Options of `stgs extract`."""

    corpus: str = option(help="directory of the corpus", positional=True, metavar="CORPUS")
    out: str = option(help="directory for the features, local or s3://")
    actors: int | None = option(None, help="processes, each with its backbones (default: as many as there is room for)")
    threads: int = option(1, help="threads of each process; the features' last bits depend on it")
    device: str = option("auto", help="where the backbones run", choices=DEVICES)
    backbones: BackboneConfig = group(BackboneConfig)
    session: SessionOptions = group(SessionOptions)


def run(config: ExtractJobConfig) -> Outcome:
    """Extract the features of every clip of the corpus."""
    start = time.monotonic()
    boxes.read_meta(config.corpus, boxes.CORPUS)  # a wrong path is told before Ray starts
    with connect(**config.session.connect_arguments(config.out)):
        meta = extract(
            config.corpus,
            config.out,
            config.backbones,
            actors=config.actors,
            threads=config.threads,
            device=config.device,
        )
    seconds = time.monotonic() - start
    payload = {
        "out": config.out,
        "digest": meta.digest,
        "counts": meta.counts,
        "features": meta.extra["features"],
        "seconds": round(seconds, 1),
    }
    return Outcome(payload, _summary(config, meta, seconds))


def _summary(config: ExtractJobConfig, meta: Meta, seconds: float) -> str:
    lines = [f"features of {meta.counts['clips']} clips extracted in {seconds:.1f} s on {meta.extra['device']}"]
    for sense in ("visual", "audio"):
        weights = getattr(config.backbones, f"{sense}_weights")
        note = " (untrained)" if weights.startswith("random:") else ""
        lines.append(f"  {sense}: {getattr(config.backbones, sense)}, weights {weights}{note}")
    length = meta.extra["length"]
    for name, channels in meta.extra["features"].items():
        lines.append(f"  {name}: {channels}" if name.endswith(".pooled") else f"  {name}: {channels} x {length}")
    return "\n".join([*lines, f"features: {config.out}"])


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs extract`; returns the exit code."""
    return run_command("extract", run, argv)


if __name__ == "__main__":
    sys.exit(main())
