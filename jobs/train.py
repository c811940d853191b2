"""Trains the found network of every grid point, and of every control: weights from train, epoch and threshold from dev.

Controls are searched here on the same budget: one sense alone (the same grid on that sense's features), other ways to
search, shuffled labels, genotypes drawn by chance, and a linear classifier without any search. With --out, genotypes
are trained that are given as JSON files, without a search. Networks whose files stand are left alone, and a training
that was stopped goes on, so the same command finishes what it began. Of a protocol's parts those whose search has no
result are left out and named; exit code 4.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from cluster.controls import (
    CONCAT_LINEAR,
    CONTROL_SEARCHES,
    CONTROLS,
    GRID,
    RANDOM,
    SHUFFLED,
    arm_uri,
    control_grids,
    control_jobs,
)
from cluster.devices import chosen_device
from cluster.engines_train import WorkerGroup
from cluster.features import FeatureSource, open_features
from cluster.finetune import BackboneOptions, open_corpus
from cluster.found_loop import NetworkJob, read_network, repeated, require_same_settings, train_networks
from cluster.found_workers import TrainedNetworks, train_networks_with_workers
from cluster.gathering import GridResult, read_grid
from cluster.genotype_runs import begin_genotype_run, genotype_jobs, is_genotype_run, read_genotypes
from cluster.grid import run_grids
from cluster.limits import RunLimits, worker_range
from cluster.network_files import ENDING
from cluster.protocols import ProtocolConfig, open_parts
from cluster.runs import read_config
from cluster.session import connect
from cluster.settings import CANDIDATES, GridConfig
from cluster.stopping import Stop
from cluster.trained_backbones import extraction, is_end_to_end
from data_prep import storage
from data_prep.storage import InputError
from jobs.cli import COMPLETE, PARTLY, STOPPED, Outcome, SessionOptions, group, option, run_command
from jobs.options import flatten
from stgs.backbone_trainer import FinetuneConfig
from stgs.config import FoundConfig, released_found_config

# One network of each of these is enough: they are many already, and what is read of them are means.
_NOT_REPEATED = (RANDOM, SHUFFLED)
_OF_CONTROLS = {"controls", "control_searches", "random_genotypes", "shuffles"}
# So many networks of the grid are told when a training has ended.
_TOLD = 5


def _released() -> dict[str, Any]:
    """The options in which the released code's training differs from the defaults."""
    defaults = flatten(FoundConfig())
    return {
        f"found_{name}": value for name, value in flatten(released_found_config()).items() if value != defaults[name]
    }


@dataclass(frozen=True, kw_only=True)
class TrainJobConfig:
    """Options of `stgs train`.

    preset: `released` stands for the released code's training, on train and dev, in the options that are not given
    themselves; in Python, give `found=released_found_config()`.
    """

    # What `jobs.cli` takes the place of defaults from, by the value of the option `preset`.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"released": _released()}

    run: str = option(
        help="directory of a run; with --out, the JSON file of a genotype", positional=True, metavar="RUN|GENOTYPE"
    )
    genotypes: tuple[str, ...] = option((), help="more genotypes, with --out", positional=True, metavar="GENOTYPE")
    features: str | None = option(None, help="where the run's features are now (default: where they were)")
    manifest: str | None = option(None, help="where the run's manifest is now (default: where it was)")
    out: str | None = option(None, help="train genotypes, with --features and --manifest, into a run of this directory")
    seeds: tuple[int, ...] = option((0,), help="of each genotype's networks, with --out")
    device: Literal["auto", "cpu", "cuda"] | None = option(
        None, help="where to train (default: as the run's search, auto with --out)"
    )
    controls: tuple[str, ...] = option(CONTROLS, help="controls to search and train", choices=CONTROLS)
    control_searches: int = option(CONTROL_SEARCHES, help="searches of the softmax and the uniform control, at most")
    random_genotypes: int = option(CANDIDATES, help="genotypes of the random control")
    shuffles: int = option(20, help="searches of the shuffled control")
    repeats: int = option(1, help="networks of each genotype, of different seeds; the first one is chosen and compared")
    preset: Literal["paper", "released"] = "paper"
    workers: str = option(
        "1", help="processes, one a device, that share every batch; MIN:MAX to use those that are there, as they change"
    )
    finetune: bool = option(False, help="train the backbones, too, with --out on a corpus in the place of features")
    threads: int = option(1, help="threads of each process; the bits depend on it")
    found: FoundConfig = field(default_factory=FoundConfig, metadata={"prefix": "found_"})
    protocol: ProtocolConfig = group(ProtocolConfig)
    backbones: BackboneOptions = group(BackboneOptions)
    training: FinetuneConfig = group(FinetuneConfig)
    session: SessionOptions = group(SessionOptions)


@dataclass(frozen=True, slots=True)
class _Part:
    """A run, or one part of it: its clips, and its search's settings and rows, which a run of genotypes has not."""

    uri: str
    source: FeatureSource
    grid: GridConfig | None
    rows: Sequence[dict[str, Any]] = ()


def run(config: TrainJobConfig) -> Outcome:
    """Search the controls, then train every network."""
    start = time.monotonic()
    _require_fitting(config)
    run_uri = storage.absolute(config.out or config.run)
    begin = _genotype_parts(config, run_uri) if config.out else None
    parts, left_out = ([], {}) if begin else _standing_parts(config, run_uri)
    for part in parts:  # before the controls are searched, which takes long
        require_same_settings(_standing_networks(config, part), config.found)
    with connect(**config.session.connect_arguments(run_uri)):
        parts = begin() if begin else parts
        searched = _search_controls(config, parts)
        failed = {
            f"{storage.absolute(out).removeprefix(f'{run_uri}/')}/{point}": reason
            for out, result in searched.items()
            for point, reason in result.failed.items()
        }
        stopped = next((result.stop for result in searched.values() if result.stop is not None), None)
        if stopped is not None:
            return _stopped(config, searched.values(), stopped)
        jobs = {part.uri: _jobs(config, part, searched) for part in parts}
        for part_jobs in jobs.values():
            require_same_settings([job.uri for job in part_jobs], config.found)
        for part in parts:
            trained = _train(config, part, jobs[part.uri])
            failed |= trained.failed
            if trained.stop is not None:
                return _training_stopped(config, trained)
    networks = [_facts(config, job, uri, run_uri) for uri, own in jobs.items() for job in own if job.uri not in failed]
    return _outcome(config, networks, failed, left_out, time.monotonic() - start)


def _require_fitting(config: TrainJobConfig) -> None:
    """Refuse options that do not go together."""
    if config.repeats < 1:
        raise InputError(f"repeats is {config.repeats}, but it must be at least 1.")
    _require_heard(config)
    if config.out is None and RANDOM in config.controls and config.random_genotypes < 1:
        raise InputError(
            f"random_genotypes is {config.random_genotypes}, but it must be at least 1; leave {RANDOM} out of "
            "--controls."
        )
    if config.out is None:
        if config.genotypes or config.run.endswith(".json"):
            raise InputError(
                f"{config.run} is a genotype, which is trained into a run of its own; give --features, --manifest and "
                "--out, too."
            )
        if config.finetune or config.protocol != ProtocolConfig():
            named = "finetune" if config.finetune else "protocol"
            raise InputError(
                f"{named} is given, but {config.run} is a run with backbones and splits of its own; give --{named} "
                f"with genotypes, such as {config.run}/points/ID/genotype.json, and --out."
            )
    elif config.features is None or config.manifest is None:
        missing = "features" if config.features is None else "manifest"
        raise InputError(f"{missing} is missing; with --out, give --features and --manifest.")


def _require_heard(config: TrainJobConfig) -> None:
    """Refuse options that were given, but that nothing would look at."""
    changed = _changed(config, TrainJobConfig(run=config.run))
    if config.out is None:
        ignored, why = changed & {"seeds"}, "is for genotypes, which are trained with --out"
    else:
        ignored, why = changed & _OF_CONTROLS, "is for the controls of a search, and with --out there is none"
    if not ignored and not config.finetune:
        ignored = _changed(config.backbones, BackboneOptions()) | _changed(config.training, FinetuneConfig())
        why = "is for backbones that are trained, with --finetune"
    if ignored:
        raise InputError(f"{min(ignored)} is given, but it {why}; leave it out.")


def _changed(options: Any, defaults: Any) -> set[str]:
    """Names of a configuration's options that are not as they are by default."""
    return {item.name for item in fields(options) if getattr(options, item.name) != getattr(defaults, item.name)}


def _standing_networks(config: TrainJobConfig, part: _Part) -> list[str]:
    """Files of the networks that a run has already, of the arms that are asked for."""
    folders = [storage.join(arm_uri(part.uri, arm), "networks") for arm in (GRID, *config.controls)]
    return [storage.join(folder, file) for folder in folders for file in storage.list(folder) if file.endswith(ENDING)]


def _standing_parts(config: TrainJobConfig, run_uri: str) -> tuple[list[_Part], dict[str, str]]:
    """The parts of a run that stands, and why others are left out, by their directories.

    Raises InputError where all are: a search without any result.
    """
    parts, left_out = [], {}
    for uri, (grid, source) in open_parts(run_uri, config.features, config.manifest).items():
        if is_genotype_run(read_config(uri)):
            parts.append(_Part(uri, source, None))
            continue
        try:
            parts.append(_Part(uri, source, grid, read_grid(uri)))
        except InputError as error:
            left_out[uri] = str(error)
    if not parts:
        none = f"no part of {run_uri} has results yet; run 'stgs grid --resume' on it first."
        raise InputError(left_out.get(run_uri, none))
    return parts, left_out


def _genotype_parts(config: TrainJobConfig, run_uri: str) -> Callable[[], list[_Part]]:
    """Reads what is given; what is returned begins the run, once Ray is connected, which knows the devices."""
    assert config.features is not None
    assert config.manifest is not None
    genotypes = read_genotypes((config.run, *config.genotypes))
    source: FeatureSource
    if config.finetune:
        source = open_corpus(config.features, config.manifest, config.backbones, config.training)
    else:
        source = open_features(config.features, config.manifest)

    def begin() -> list[_Part]:
        device = chosen_device(config.device or "auto")
        begun = begin_genotype_run(run_uri, genotypes, config.seeds, source, device, config.protocol)
        return [_Part(uri, clips, None) for uri, clips in begun.items()]

    return begin


def _search_controls(config: TrainJobConfig, parts: Sequence[_Part]) -> dict[str, GridResult]:
    """Search the controls of all parts. They resume by themselves: their settings follow from the run's, with the
    points that it was given later. Of two such commands the later one goes on.
    """
    grids: dict[str, GridConfig] = {}
    sources: dict[str, FeatureSource] = {}
    for part in parts:
        if part.grid is not None:
            settings = replace(part.grid.settings, threads=config.threads)
            own = control_grids(
                part.uri,
                replace(part.grid, settings=settings),
                config.controls,
                part.source,
                shuffles=config.shuffles,
                searches=config.control_searches,
            )
            grids |= own
            sources |= dict.fromkeys(own, part.source)
    limits = RunLimits(takeover=True)
    return run_grids(grids, sources, resume=True, title="controls", limits=limits) if grids else {}


def _jobs(config: TrainJobConfig, part: _Part, searched: Mapping[str, GridResult]) -> list[NetworkJob]:
    """The networks of a part and of its controls, which have been searched."""
    if part.grid is None:
        jobs = genotype_jobs(part.uri, read_config(part.uri))
    else:
        arms = {arm: arm_uri(part.uri, arm) for arm in config.controls}
        rows = {GRID: part.rows}
        rows |= {arm: searched[uri].rows for arm, uri in arms.items() if uri in searched}
        jobs = control_jobs(
            part.uri, part.grid, part.source, rows, config.controls, random_count=config.random_genotypes
        )
    single = tuple(f"{arm_uri(part.uri, arm)}/" for arm in _NOT_REPEATED)
    return [other for job in jobs for other in repeated(job, 1 if job.uri.startswith(single) else config.repeats)]


def _train(config: TrainJobConfig, part: _Part, jobs: Sequence[NetworkJob]) -> TrainedNetworks:
    """Train the networks of a part."""
    wanted = config.device
    device = str(read_config(part.uri)["settings"]["device"]) if wanted is None else chosen_device(wanted)
    workers = worker_range(config.workers)
    common: dict[str, Any] = {"device": device, "threads": config.threads}
    if workers == (1, 1) and not config.finetune:
        return TrainedNetworks(train_networks(jobs, config.found, part.source, **common))
    group = WorkerGroup(*workers)
    return train_networks_with_workers(jobs, config.found, part.source, run=part.uri, workers=group, **common)


def _stopped(config: TrainJobConfig, searched: Collection[GridResult], stop: Stop) -> Outcome:
    """What is told where the searches of the controls have ended early."""
    finished = sum(len(result.rows) for result in searched)
    points = sum(len(result.rows) + len(result.failed) + result.unfinished for result in searched)
    text = (
        f"stopped early: {stop.reason}; {finished} of the controls' {points} points have a result, go on with the same "
        "command."
    )
    return Outcome({"run": config.run, "stopped": stop.reason, "unfinished": points - finished}, text, STOPPED)


def _training_stopped(config: TrainJobConfig, trained: TrainedNetworks) -> Outcome:
    """What is told where the training of networks has ended early."""
    assert trained.stop is not None
    reason, count = trained.stop.reason, trained.unfinished
    text = f"stopped early: {reason}; {count} networks are not trained yet, go on with the same command."
    return Outcome({"run": config.out or config.run, "stopped": reason, "unfinished": count}, text, STOPPED)


def _outcome(
    config: TrainJobConfig,
    networks: list[dict[str, Any]],
    failed: Mapping[str, str],
    left_out: Mapping[str, str],
    seconds: float,
) -> Outcome:
    fitted = "dev, which they were fitted on" if config.found.fit_on != "train" else "dev"
    counts = f"{len(networks)} networks trained, {len(failed)} failed, in {seconds:.1f} s"
    lines = [f"{counts}; AUC on {fitted}, the best of the {GRID}, then of each control:"]
    for network in _best(networks):
        told = f"{network['dev_auc']:.3f}  {network['parameters']:>9,} parameters"
        lines.append(f"  {network['arm']:<{len(CONCAT_LINEAR)}}  {told}  {network['network']}")
    lines += [f"failed: {name}: {reason.splitlines()[-1]}" for name, reason in failed.items()]
    lines += [f"left out: {reason}" for reason in left_out.values()]
    lines += [f"features of its backbones: {network['extract']}" for network in networks if "extract" in network]
    name = config.out or config.run
    payload = {
        "run": name,
        "networks": networks,
        "failed": dict(failed),
        "left_out": {uri.rsplit("/", 1)[-1]: reason for uri, reason in left_out.items()},
        "seconds": round(seconds, 1),
    }
    return Outcome(payload, "\n".join([*lines, f"run: {name}"]), PARTLY if failed or left_out else COMPLETE)


def _best(networks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The networks of the grid with the best AUC on dev, and the best of each control, as they are told.

    Those of shuffled labels are not: their dev is shuffled, too, so that their AUC there says nothing of the clips.
    """
    told = []
    for arm in (GRID, *(arm for arm in CONTROLS if arm != SHUFFLED)):
        own = sorted((facts for facts in networks if facts["arm"] == arm), key=lambda facts: -facts["dev_auc"])
        told += own[: _TOLD if arm == GRID else 1]
    return told


def _facts(config: TrainJobConfig, job: NetworkJob, part_uri: str, run_uri: str) -> dict[str, Any]:
    stored = read_network(job.uri)
    arm = next((arm for arm in CONTROLS if job.uri.startswith(f"{arm_uri(part_uri, arm)}/")), GRID)
    facts, name = stored.facts, job.uri.removeprefix(f"{run_uri}/").removesuffix(".safetensors")
    own = {"extract": extraction(stored, str(config.features))} if is_end_to_end(stored) else {}
    told = {"network": name, "arm": arm, "parameters": facts["parameters"], **facts["metrics"]}
    return {**told, "seconds": facts["seconds"], **own}


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs train`; returns the exit code."""
    return run_command("train", run, argv)


if __name__ == "__main__":
    sys.exit(main())
