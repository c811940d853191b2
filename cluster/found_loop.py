"""Training of found networks on Ray: networks of one architecture are one task, which may be stopped and go on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch
from torch import Tensor

from cluster.epoch_counter import TELL_SECONDS, CounterLink, start_counter, told
from cluster.features import FeatureSource, Split
from cluster.network_files import CONCAT_LINEAR as CONCAT_LINEAR
from cluster.network_files import FOUND as FOUND
from cluster.network_files import NetworkJob, neutral_values, provenance, write_network
from cluster.network_files import StoredNetwork as StoredNetwork
from cluster.network_files import network_facts as network_facts
from cluster.network_files import read_network as read_network
from cluster.network_files import repeated as repeated
from cluster.shards import progress_bar
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.clips import ClipSet
from stgs.config import FoundConfig
from stgs.config import InputError as SettingError
from stgs.found_training import FoundTraining, member_weights
from stgs.parallel import SINGLE, Workers

TASK_RETRIES = 3
# A training that takes longer saves its state so often, and the first one early: a stop comes without a warning here.
SAVE_SECONDS = 60.0
FIRST_SAVE_SECONDS = 5.0

Tell = Callable[[int], None]


def waiting_groups(jobs: Sequence[NetworkJob]) -> list[list[NetworkJob]]:
    """The jobs whose files do not stand, those of one architecture together: they are trained side by side."""
    groups: dict[Any, list[NetworkJob]] = {}
    for job in jobs:
        if not storage.exists(job.uri):
            groups.setdefault((job.kind, job.genotype, job.features), []).append(job)
    return list(groups.values())


def members_of(jobs: Sequence[NetworkJob]) -> list[tuple[int, int | None]]:
    """Seed and shuffle seed of the networks that jobs of one architecture need, equal ones once."""
    return list(dict.fromkeys((job.seed, job.shuffle_seed) for job in jobs))


def require_same_settings(uris: Iterable[str], config: FoundConfig) -> None:
    """Refuse to leave networks alone that were trained in another way than `config` says. uris: of their files."""
    wanted = _flat(asdict(config))
    for uri in uris:
        if storage.exists(uri):
            # A file of version 1 lacks the settings that were not there.
            standing = _flat(asdict(FoundConfig()) | network_facts(storage.read(uri))["config"])
            for name, value in wanted.items():
                if standing[name] != value:
                    raise InputError(
                        f"{uri} was trained with {name} {standing[name]}, not {value}; leave the option as it was, "
                        "or train into a new run."
                    )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> value of settings and of those in them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return flat


def train_networks(
    jobs: Sequence[NetworkJob],
    config: FoundConfig,
    source: FeatureSource,
    *,
    device: str,
    threads: int,
    progress: bool = True,
) -> dict[str, str]:
    """Train every network whose file does not stand, as Ray tasks; needs `cluster.session.connect`.

    Jobs of one architecture are one task: their networks are fitted side by side, equal ones once. device: `cpu` or
    `cuda`. threads: of each task on a CPU. Returns uri -> reason of the networks that failed.
    """
    groups = waiting_groups(jobs)
    failed: dict[str, str] = {}
    if not groups:
        return failed
    data = ray.put(source.load_splits(("train", "dev")))
    counter = start_counter()
    fit = ray.remote(_fit_and_tell).options(
        num_cpus=1 if device == "cuda" else threads, num_gpus=1 if device == "cuda" else 0, max_retries=TASK_RETRIES
    )
    facts = provenance(source)
    pending = {
        fit.remote(counter, index, group, config, facts, data, device, threads): index
        for index, group in enumerate(groups)
    }
    # Epochs of all networks; those of a network that is done early count as run.
    epochs = [len(members_of(group)) * config.epochs for group in groups]
    finished: set[int] = set()
    with progress_bar("train", sum(epochs), "epoch", progress) as bar:
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=TELL_SECONDS)
            for task in done:
                index = pending.pop(task)
                finished.add(index)
                try:
                    failed |= ray.get(task)
                except ray.exceptions.RayError as error:
                    failed |= {job.uri: _reason(error) for job in groups[index]}
            known = told(counter)
            count = sum(epochs[index] if index in finished else known.get(index, 0) for index in range(len(groups)))
            bar.update(max(count - bar.n, 0))
    ray.kill(counter)
    return failed


def _reason(error: Exception) -> str:
    """Why a task failed; wrong input in its own sentence."""
    cause = getattr(error, "cause", None)
    return str(cause) if isinstance(cause, InputError | SettingError) else str(error)


def _fit_and_tell(counter: Any, group: int, *arguments: Any) -> dict[str, str]:
    """The Ray task: `_fit`, which tells the counter of its epochs."""
    return _fit(*arguments, tell=CounterLink(counter, group))


def _fit(
    jobs: Sequence[NetworkJob],
    config: FoundConfig,
    facts: Mapping[str, Any],
    splits: Mapping[str, Split],
    device: str,
    threads: int,
    *,
    tell: Tell = lambda epochs: None,
) -> dict[str, str]:
    """Train the networks of one architecture and write their files; uri -> reason of those that failed.

    A training of more than `FIRST_SAVE_SECONDS` leaves its state beside the networks meanwhile, from which another
    attempt goes on; it is deleted once the files stand.
    """
    torch.set_num_threads(threads)
    training = begin_training(jobs, config, splits, device=device)
    state = state_uri(jobs[0], config, trained_on(facts))
    before = load_state(read_state(state), training, jobs)
    start = time.perf_counter()
    due = start + FIRST_SAVE_SECONDS
    while not training.finished:
        training.run_epoch()
        tell(training.epoch * len(training.seeds))
        if time.perf_counter() >= due and not training.finished:
            save_state(state, training, before + time.perf_counter() - start, jobs)
            due = time.perf_counter() + SAVE_SECONDS
    thresholds, neutral = training.thresholds(), neutral_of(training, splits["train"])
    seconds = before + time.perf_counter() - start
    failed = write_networks(jobs, training, thresholds=thresholds, neutral=neutral, facts=facts, seconds=seconds)
    if storage.exists(state):
        storage.delete(state)
    return failed


def begin_training(
    jobs: Sequence[NetworkJob],
    config: FoundConfig,
    splits: Mapping[str, Split],
    *,
    device: str,
    workers: Workers = SINGLE,
) -> FoundTraining:
    """The training of jobs of one architecture on train and dev, before its first epoch."""
    architecture = jobs[0].architecture(splits["train"])
    members = members_of(jobs)
    shuffles = [shuffle for _, shuffle in members]
    clips: dict[str, ClipSet] = {}
    for name in ("train", "dev"):
        split = splits[name].only(architecture.used_features, architecture.length)
        balance = clips["train"].class_weights if clips else None
        labels = split.shuffled_labels(shuffles, name)
        clips[name] = ClipSet(split.columns, labels, members=len(members), device=device, balance=balance)
    seeds = [seed for seed, _ in members]
    return FoundTraining(architecture, seeds, config=config, device=device, workers=workers, **clips)


def neutral_of(training: FoundTraining, train: Split) -> dict[str, Tensor]:
    """The mean over train of each feature that a training's networks read, as they read it."""
    architecture = training.architecture
    used = train.only(architecture.used_features, architecture.length)
    return neutral_values(used, architecture.used_features)


def write_networks(
    jobs: Sequence[NetworkJob],
    training: FoundTraining,
    *,
    thresholds: Sequence[float],
    neutral: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    seconds: float,
) -> dict[str, str]:
    """Write the files of a training that has ended. Returns uri -> reason of the networks that failed, without a file.

    thresholds: of each network. neutral: name -> the feature's mean over train, float32 [C] or [C, L]. facts: the
    provenance of the features. seconds: device time spent, of all networks together.
    """
    members = members_of(jobs)
    network, architecture = training.best_network(), training.architecture
    share = seconds / len(members)
    failed = {}
    for job in jobs:
        index = members.index((job.seed, job.shuffle_seed))
        failure = training.failures[index]
        if failure is not None:
            failed[job.uri] = failure
            continue
        write_network(
            job,
            architecture,
            member_weights(network, index),
            config=training.config,
            metrics={
                "dev_auc": training.best_auc[index],
                "best_epoch": training.best_epoch[index],
                "threshold": thresholds[index],
            },
            neutral=neutral,
            seconds=share,
            provenance=facts,
        )
    return failed


def trained_on(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the clips of a training. facts: the provenance of its features."""
    return {name: facts[name] for name in ("features_digest", "split_digest")}


def state_uri(job: NetworkJob, config: FoundConfig, facts: Mapping[str, Any]) -> str:
    """Where the training of a job's architecture keeps its state, beside the folder of its network:
    training/<digest>.pt. facts: what the digest is made of, beside the job and the settings.
    """
    digest = boxes.json_digest([job.kind, job.genotype, job.features, asdict(config), dict(facts)])
    return storage.join(job.uri.rpartition("/networks/")[0], "training", f"{digest[:32]}.pt")


def save_state(uri: str, training: FoundTraining, seconds: float, jobs: Sequence[NetworkJob]) -> None:
    """Write the state of the training of `jobs`. seconds: device time that it took so far."""
    buffer = io.BytesIO()
    # The training knows its seeds, but not what permuted the labels that it was given.
    state = {"training": training.state_dict(), "seconds": seconds, "members": members_of(jobs)}
    torch.save(state, buffer)
    storage.write(uri, buffer.getvalue())


def read_state(uri: str) -> dict[str, Any] | None:
    """What `save_state` wrote, on the CPU; None if there is none that can be read."""
    try:
        content = storage.read(uri)
    except FileNotFoundError:
        return None
    return loaded_state(content)


def loaded_state(content: bytes) -> dict[str, Any] | None:
    """A state that `torch.save` has written, on the CPU; None if it cannot be read."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # the disk may have lost it, for which torch.load raises many kinds: the training begins anew
        return None
    return state


def load_state(state: Mapping[str, Any] | None, training: FoundTraining, jobs: Sequence[NetworkJob]) -> float:
    """Go on from a state, if it is one of the networks of `jobs`; the seconds that it took."""
    # Of other members: some of the networks stand already, or others are asked for.
    if state is None or state.get("members") != members_of(jobs):
        return 0.0
    try:
        training.load_state_dict(state["training"])
    except SettingError:  # of an earlier version
        return 0.0
    return float(state["seconds"])
