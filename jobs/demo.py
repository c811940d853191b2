"""Makes a small corpus of talking-face videos and runs the whole job on it: clips to genotypes, scores and a report.

The faces are drawn and the voices synthesised, so the figures say that the machinery works, and nothing about real
forgeries. The backbones are untrained, because their weights cannot be downloaded everywhere. What stands already is
kept: a second run goes on where the first stopped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.audits import read_audit
from cluster.baseline_comparison import compare
from cluster.baseline_names import WHOLE
from cluster.controls import CONTROL_SEARCHES
from cluster.runs import part_uri
from cluster.session import connect
from cluster.settings import CANDIDATES, GridConfig, SearchSettings
from cluster.shards import progress_bar
from data_prep import storage, synthetic
from data_prep.manifest import write_manifest
from data_prep.synthetic import SyntheticConfig, make_corpus
from jobs import baseline, evaluate, extract, grid, prepare, report, train
from jobs.cli import FAILED, Outcome, SessionOptions, group, option, run_command
from jobs.describe import drawing
from jobs.evaluate_text import estimate_text
from jobs.tables import indented
from stgs.backbones import BackboneConfig
from stgs.baselines import BaselineConfig
from stgs.baselines.training import BaselineTrainingConfig
from stgs.config import FoundConfig, SearchConfig, WeightSchedule
from stgs.genotype import genotype_from_dict

_BASELINE = "mrdf_ce"
_MUST_HOLD = ("beats_single_sense", "at_chance", "baseline_beats_chance")


@dataclass(frozen=True, kw_only=True)
class DemoJobConfig:
    """Options of `stgs demo`."""

    out: str = option(help="folder for everything the demo makes")
    seeds: tuple[int, ...] = option((0,), help="seeds; each makes its own corpus and runs the whole job on it")
    num_subjects: int = option(104, help="drawn people, each with a clip of every category")
    dev_subjects: int = option(24, help="people whose clips choose architectures, epochs and thresholds")
    test_subjects: int = option(24, help="people whose clips are read once, at the end")
    backbone: str = option("resnet18", help="architecture of both backbones")
    channels: int = option(32, help="width C of the fusion networks")
    epochs: int = option(31, help="epochs of the search; 31 ends a cycle of the learning rate")
    found_epochs: int = option(63, help="epochs of each found network; 63 ends a cycle, too")
    batch_size: int = option(32, help="clips a batch, in search and training")
    dropout: float = option(0.5, help="dropout, in search and training: there are few people to learn from")
    learning_rate_max: float = option(3e-3, help="highest learning rate of the weights, in search and training")
    control_searches: int = option(CONTROL_SEARCHES, help="searches of the softmax and the uniform control, at most")
    shuffles: int = option(20, help="searches of the shuffled control")
    random_genotypes: int = option(16, help="genotypes of the random control")
    baseline_epochs: int = option(10, help=f"epochs of the baseline, {_BASELINE} at a reduced width")
    baseline_width: int = option(48, help="width of the baseline, a multiple of 48")
    baseline_layers: int = option(0, help="transformer layers of the baseline")
    baseline_seconds: float = option(1.0, help="seconds of each clip that the baseline sees")
    session: SessionOptions = group(SessionOptions)


@dataclass(slots=True)
class _Stages:
    """Runs the stages one after another and says how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        result = work()
        self.seconds[name] = round(time.monotonic() - start, 1)
        print(f"{name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)
        return result


def run(config: DemoJobConfig) -> Outcome:
    """Run the demo for every seed; it fails where the found network does not beat the best single sense, shuffled
    labels are not at chance, or the baseline does not beat chance.
    """
    out = storage.absolute(config.out)
    results = []
    with connect(**config.session.connect_arguments(out)):
        for seed in config.seeds:
            results.append(_run_seed(config, seed, storage.join(out, f"seed-{seed}")))
    text = "\n\n".join(result["text"] for result in results)
    if len(results) > 1:
        text += "\n\n" + _seeds_table(results)
    holds = all(result[name] for result in results for name in _MUST_HOLD)
    payload = {"seeds": [{key: value for key, value in result.items() if key != "text"} for result in results]}
    return Outcome(payload, text, 0 if holds else FAILED)


def _run_seed(config: DemoJobConfig, seed: int, folder: str) -> dict[str, Any]:
    manifest, corpus, features, run_uri = (
        storage.join(folder, name) for name in ("manifest", "corpus", "features", "run")
    )
    cpus = len(os.sched_getaffinity(0))
    stages = _Stages()
    stages.run("clips", lambda: _make_clips(config, seed, folder, manifest, cpus))
    stages.run(
        "prepare", lambda: prepare.run(prepare.PrepareJobConfig(manifest=manifest, out=corpus, contact_sheet=True))
    )
    backbones = BackboneConfig(
        visual=config.backbone,
        visual_weights=f"random:{2 * seed}",
        audio=config.backbone,
        audio_weights=f"random:{2 * seed + 1}",
    )
    stages.run(
        "extract", lambda: extract.run(extract.ExtractJobConfig(corpus=corpus, out=features, backbones=backbones))
    )
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "dropout": config.dropout,
        "weights": WeightSchedule(learning_rate_max=config.learning_rate_max),
    }
    grid_config = GridConfig(
        seeds=(seed,),
        # All points in one population. One thread: matrices this small gain nothing from a second one.
        pack=16,
        settings=SearchSettings(
            channels=config.channels,
            device="cpu",
            search=SearchConfig(epochs=config.epochs, candidates=CANDIDATES, data_seed=seed, **common),
        ),
    )
    searched = stages.run(
        "grid",
        lambda: grid.run(
            grid.GridJobConfig(features=features, manifest=manifest, out=run_uri, resume=True, grid=grid_config)
        ),
    )
    stages.run(
        "train",
        lambda: train.run(
            train.TrainJobConfig(
                run=run_uri,
                control_searches=config.control_searches,
                shuffles=config.shuffles,
                random_genotypes=config.random_genotypes,
                found=FoundConfig(epochs=config.found_epochs, data_seed=seed, **common),
            )
        ),
    )
    evaluated = stages.run("evaluate", lambda: evaluate.run(evaluate.EvaluateJobConfig(run=run_uri)))
    compared = _run_baseline(config, seed, folder, manifest, run_uri, stages)
    reported = stages.run("report", lambda: report.run(report.ReportJobConfig(run=run_uri, corpus=corpus)))
    shortcuts = (read_audit(corpus) or {}).get("shortcuts", [])
    return _result(config, seed, shortcuts, searched, evaluated, compared, reported, stages.seconds)


def _run_baseline(
    config: DemoJobConfig, seed: int, folder: str, manifest: str, run_uri: str, stages: _Stages
) -> dict[str, Any]:
    """Prepare sequences and train the baseline on them, on the splits of the run; the found network beside it."""
    sequences = storage.join(folder, "sequences")
    options = prepare.SequenceOptions(max_seconds=config.baseline_seconds)
    stages.run(
        "sequences",
        lambda: prepare.run(
            prepare.PrepareJobConfig(manifest=manifest, out=sequences, kind="sequences", sequences=options)
        ),
    )
    trained = stages.run(
        "baseline",
        lambda: baseline.run(
            baseline.BaselineJobConfig(
                sequences=sequences,
                model=_BASELINE,
                run=run_uri,
                resume=True,
                device="cpu",
                baseline=BaselineConfig(layers=config.baseline_layers, width=config.baseline_width),
                training=BaselineTrainingConfig(
                    epochs=config.baseline_epochs, batch_size=16, seed=seed, data_seed=seed
                ),
            )
        ),
    )
    return compare(run_uri, synthetic.DATASET, part_uri(trained.payload["out"], WHOLE))


def _make_clips(config: DemoJobConfig, seed: int, folder: str, manifest: str, processes: int) -> None:
    source = storage.join(folder, "source")
    drawn = SyntheticConfig(
        num_subjects=config.num_subjects,
        dev_subjects=config.dev_subjects,
        test_subjects=config.test_subjects,
        seed=seed,
    )
    with progress_bar("clips", 4 * config.num_subjects, "clip", True) as bar:

        def show(done: int, total: int) -> None:
            bar.update(done - bar.n)

        rows = make_corpus(source, drawn, num_processes=processes, progress=show)
    write_manifest(manifest, rows, synthetic.roots(source), {"source": "demo", "seed": seed})


def _result(
    config: DemoJobConfig,
    seed: int,
    shortcuts: list[str],
    searched: Outcome,
    evaluated: Outcome,
    compared: dict[str, Any],
    reported: Outcome,
    seconds: dict[str, float],
) -> dict[str, Any]:
    metrics = evaluated.payload["datasets"][synthetic.DATASET]
    found = metrics["networks"][metrics["found"]]
    difference, shuffled = metrics["difference"], metrics["shuffled"]
    # On few clips there may be no interval, which proves nothing.
    beats = difference["low"] is not None and difference["low"] > 0
    verdict = (
        "the found network beats the best single sense: the interval of the difference lies above 0"
        if beats
        else "the found network does NOT beat the best single sense: the interval of the difference reaches 0"
    )
    learnt = compared["auc_baseline"]["low"] is not None and compared["auc_baseline"]["low"] > 0.5
    lines = [
        f"demo, seed {seed}: drawn faces and voices, untrained backbones",
        evaluate.summary(metrics),
        *_baseline_lines(config, compared),
        "its genotype:",
        indented("\n".join(drawing(genotype_from_dict(found["genotype"])))),
        verdict,
        *shortcuts,
        f"seconds: {', '.join(f'{name} {value:.0f}' for name, value in seconds.items())}",
        f"report: {reported.payload['report']}",
    ]
    return {
        "seed": seed,
        "found": metrics["found"],
        "auc": found["auc"],
        "best_single_sense": metrics["networks"][metrics["best_single_sense"]]["auc"],
        "difference": difference,
        "random": metrics["random"],
        "shuffled": shuffled,
        "beats_single_sense": beats,
        "at_chance": bool(shuffled and shuffled["at_chance"]),
        "baseline": compared,
        "baseline_beats_chance": learnt,
        "shortcuts": shortcuts,
        "points": len(searched.payload["points"]),
        "seconds": seconds,
        "report": reported.payload["report"],
        "text": "\n".join(lines),
    }


def _baseline_lines(config: DemoJobConfig, compared: dict[str, Any]) -> list[str]:
    size = f"width {config.baseline_width}, {config.baseline_layers} layers, {config.baseline_seconds:g} s of each clip"
    difference = compared["difference"]
    p_value = "" if difference["p_value"] is None else f", p = {difference['p_value']:.2g}"
    return [
        f"baseline {_BASELINE}, reduced ({size}): AUC {estimate_text(compared['auc_baseline'])}",
        f"found - baseline: {estimate_text(difference)}{p_value}",
    ]


def _seeds_table(results: Sequence[dict[str, Any]]) -> str:
    lines = ["seed  found AUC  best single sense  difference [95 % interval]  random  shuffled"]
    for result in results:
        difference = result["difference"]
        means = (f"{result[arm]['mean']:.3f}" if result[arm] else "none" for arm in ("random", "shuffled"))
        lines.append(
            f"{result['seed']:>4}  {result['auc']['value']:>9.3f}  {result['best_single_sense']['value']:>17.3f}  "
            f"{estimate_text(difference)}        {'   '.join(means)}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs demo`; returns the exit code."""
    return run_command("demo", run, argv)


if __name__ == "__main__":
    sys.exit(main())
