"""Training of found networks on Ray, and the files that hold them.

A network file is safetensors: the weights, and one JSON object in its metadata with all that is needed to use them
(genotype, settings, threshold, and how features were made).
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
import safetensors.torch
import torch

from cluster.attempts import Point
from cluster.features import FeatureSource, Split
from cluster.shards import progress_bar
from data_prep import storage
from data_prep.storage import InputError
from stgs.clips import ClipSet
from stgs.config import FoundConfig
from stgs.found_network import FoundNetwork
from stgs.found_training import FoundTraining, load_found_network, member_weights
from stgs.genotype import count_macs, count_parameters, genotype_from_dict, genotype_from_json

METADATA_KEY = "stgs"
NETWORK_VERSION = 1
TASK_RETRIES = 3


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """One network to train: where its file goes, from what genotype (JSON), with which seed.

    point: the point whose search found it, which says whether labels are shuffled; None for a genotype drawn by chance.
    """

    uri: str
    genotype: str
    seed: int
    point: Point | None = None

    @property
    def shuffle_seed(self) -> int | None:
        """What permutes the labels of train and dev; None: as they are."""
        return self.point.shuffle_seed if self.point else None


@dataclass(frozen=True, slots=True)
class StoredNetwork:
    """A network file that was read. facts: genotype, parameters, macs, seed, point, config, metrics (dev_auc,
    best_epoch, threshold), seconds, provenance (digests, and the settings of backbones and corpus).
    """

    uri: str
    network: FoundNetwork
    facts: dict[str, Any]


def provenance(source: FeatureSource) -> dict[str, Any]:
    """How the features were made: what scoring a new clip has to repeat."""
    return {
        "features_digest": source.meta.digest,
        "split_digest": source.split_digest(),
        "backbones": source.meta.config,
        "weights": source.meta.extra["weights"],
        "corpus": source.meta.extra["corpus_config"],
    }


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

    Jobs of one genotype are one task: their networks are fitted side by side, equal ones once. device: `cpu` or
    `cuda`. threads: of each task on a CPU. Returns uri -> reason of the networks that failed.
    """
    waiting = [job for job in jobs if not storage.exists(job.uri)]
    groups: dict[str, list[NetworkJob]] = {}
    for job in waiting:
        groups.setdefault(job.genotype, []).append(job)
    failed: dict[str, str] = {}
    if not groups:
        return failed
    data = ray.put(source.load_splits(("train", "dev")))
    fit = ray.remote(_fit).options(
        num_cpus=1 if device == "cuda" else threads, num_gpus=1 if device == "cuda" else 0, max_retries=TASK_RETRIES
    )
    facts = provenance(source)
    pending = {fit.remote(group, config, facts, data, device, threads): group for group in groups.values()}
    with progress_bar("train", len(waiting), "network", progress) as bar:
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            group = pending.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                failed |= {job.uri: str(error) for job in group}
            bar.update(len(group))
    return failed


def _fit(
    jobs: Sequence[NetworkJob],
    config: FoundConfig,
    facts: Mapping[str, Any],
    splits: dict[str, Split],
    device: str,
    threads: int,
) -> None:
    """Train the networks of one genotype and write their files."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    genotype = genotype_from_json(jobs[0].genotype)
    members = list(dict.fromkeys((job.seed, job.shuffle_seed) for job in jobs))
    shuffles = [shuffle for _, shuffle in members]
    clips: dict[str, ClipSet] = {}
    for name in ("train", "dev"):
        split = splits[name].only(genotype.used_features, genotype.length)
        balance = clips["train"].class_weights if clips else None
        labels = split.shuffled_labels(shuffles, name)
        clips[name] = ClipSet(split.columns, labels, members=len(members), device=device, balance=balance)
    training = FoundTraining(genotype, [seed for seed, _ in members], config=config, device=device, **clips)
    while not training.finished:
        training.run_epoch()
    thresholds, network = training.thresholds(), training.best_network()
    seconds = (time.perf_counter() - start) / len(members)
    for job in jobs:
        index = members.index((job.seed, job.shuffle_seed))
        metadata = {
            "version": NETWORK_VERSION,
            "genotype": genotype.to_dict(),
            "parameters": count_parameters(genotype),
            "macs": count_macs(genotype),
            "seed": job.seed,
            "point": job.point.facts() if job.point else None,
            "config": asdict(config),
            "metrics": {
                "dev_auc": training.best_auc[index],
                "best_epoch": training.best_epoch[index],
                "threshold": thresholds[index],
            },
            "seconds": seconds,
            "provenance": facts,
        }
        weights = member_weights(network, index)
        storage.write(job.uri, safetensors.torch.save(weights, {METADATA_KEY: json.dumps(metadata)}))


def read_network(uri: str) -> StoredNetwork:
    """Load a network file for evaluation. Raises InputError if it is none."""
    try:
        data = storage.read(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{uri} is no file; give a network that 'stgs train' wrote.") from None
    try:
        facts = network_facts(data)
        weights = safetensors.torch.load(data)
    except (safetensors.SafetensorError, struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise InputError(f"{uri} is no network that 'stgs train' wrote ({error}).") from None
    if facts.get("version") != NETWORK_VERSION:
        raise InputError(f"{uri} has version {facts.get('version')}, but this program reads {NETWORK_VERSION}.")
    genotype = genotype_from_dict(facts["genotype"], uri)
    return StoredNetwork(uri, load_found_network(genotype, weights), facts)


def network_facts(data: bytes) -> dict[str, Any]:
    """The JSON object in a network file's metadata, from the header that every safetensors file begins with."""
    (size,) = struct.unpack("<Q", data[:8])
    content: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][METADATA_KEY])
    return content
