"""The files of trained networks, and what names one before it is trained.

A network file is safetensors: the weights, the neutral value of each feature, and one JSON object in its metadata with
all that is needed to use them (architecture, settings, threshold, and how features were made).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from cluster.attempts import Point
from cluster.baseline_names import KIND
from cluster.features import FeatureSource, Split
from data_prep import storage
from data_prep.storage import InputError
from stgs.concat_linear import ConcatLinearInputs
from stgs.config import FoundConfig
from stgs.found_training import Architecture, Network, load_network
from stgs.genotype import count_macs, count_parameters, genotype_from_dict, genotype_from_json

METADATA_KEY = "stgs"
NETWORK_VERSION = 2
_READABLE = (1, 2)
# Kinds of networks.
FOUND, CONCAT_LINEAR = "found", "concat_linear"
_NEUTRAL = "neutral."
ENDING = ".safetensors"


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """One network to train: where its file goes, from what, with which seed.

    genotype: JSON; None for `kind` concat_linear, which has none. point: the point whose search found it, which says
    whether labels are shuffled; None for a genotype drawn by chance, or given. repeat: 0, or which further training of
    the same it is (`repeated`). features: names of those that concat + linear reads, None for all of the box.
    search_dev_auc: AUC on dev of the supernet that found it, None where none did.
    """

    uri: str
    genotype: str | None
    seed: int
    point: Point | None = None
    repeat: int = 0
    kind: str = FOUND
    features: tuple[str, ...] | None = None
    search_dev_auc: float | None = None

    @property
    def shuffle_seed(self) -> int | None:
        """What permutes the labels of train and dev; None: as they are."""
        return self.point.shuffle_seed if self.point else None

    def architecture(self, split: Split) -> Architecture:
        """What is trained, on clips such as those of `split`. Raises InputError for a feature that they lack."""
        if self.genotype is not None:
            return genotype_from_json(self.genotype)
        names = tuple(split.columns) if self.features is None else self.features
        unknown = [name for name in names if name not in split.columns]
        if unknown:
            raise InputError(f"the features have no {unknown[0]!r}; they have {', '.join(split.columns)}.")
        shapes = {name: split.columns[name].shape[1:] for name in names}
        lengths = {shape[1] for shape in shapes.values() if len(shape) == 2}
        return ConcatLinearInputs({name: shape[0] for name, shape in shapes.items()}, max(lengths, default=1))


def repeated(job: NetworkJob, count: int) -> list[NetworkJob]:
    """`count` trainings of one network: the job itself, and others with seeds derived from its seed."""
    stem = job.uri.removesuffix(ENDING)
    others = [
        replace(job, uri=f"{stem}_repeat-{repeat}{ENDING}", seed=_derived_seed(job.seed, repeat), repeat=repeat)
        for repeat in range(1, count)
    ]
    return [job, *others]


def _derived_seed(seed: int, repeat: int) -> int:
    """A seed of 63 bits that depends on both."""
    return int(np.random.SeedSequence([seed, repeat]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True, slots=True)
class StoredNetwork:
    """A network file that was read.

    facts: kind, repeat, genotype (None for concat_linear), features (name -> channels of those that it reads), length,
    parameters, macs, seed, point, config, metrics (dev_auc, best_epoch, threshold, fitted_on, search_dev_auc), seconds,
    provenance (digests, and the settings of backbones and corpus). neutral: name -> the mean of the feature over the
    train clips, float32 [C] or [C, L]; empty in files of version 1.
    """

    uri: str
    network: Network
    facts: dict[str, Any]
    neutral: dict[str, Tensor]

    def required_neutral(self) -> dict[str, Tensor]:
        """What stands for a feature of a missing sense. Raises InputError where the file is too old to hold it."""
        if not self.neutral:
            raise InputError(
                f"{self.uri} holds no neutral values of its features, since an earlier version wrote it; train the "
                "network again with this one, into a new run."
            )
        return self.neutral


def provenance(source: FeatureSource) -> dict[str, Any]:
    """How the features were made: what scoring a new clip has to repeat."""
    return {
        "features_digest": source.meta.digest,
        "split_digest": source.split_digest(),
        "backbones": source.meta.config,
        "weights": source.meta.extra["weights"],
        "corpus": source.meta.extra["corpus_config"],
    }


def neutral_values(train: Split, features: Sequence[str]) -> dict[str, Tensor]:
    """The mean of each feature over the train clips, float32 [C] or [C, L]."""
    return {
        name: torch.from_numpy(train.columns[name].mean(axis=0, dtype=np.float64).astype(np.float32, order="C"))
        for name in features
    }


def write_network(
    job: NetworkJob,
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    *,
    config: FoundConfig,
    metrics: Mapping[str, Any],
    neutral: Mapping[str, Tensor],
    seconds: float,
    provenance: Mapping[str, Any],
) -> None:
    """Write the file of a trained network.

    weights: of `stgs.found_training.member_weights`. metrics: dev_auc, best_epoch and threshold. seconds: of device
    time that the training took.
    """
    if isinstance(architecture, ConcatLinearInputs):
        genotype, parameters, macs = None, architecture.count_parameters(), architecture.count_macs()
    else:
        genotype, parameters, macs = architecture.to_dict(), count_parameters(architecture), count_macs(architecture)
    content = {
        "version": NETWORK_VERSION,
        "kind": job.kind,
        "repeat": job.repeat,
        "genotype": genotype,
        "features": {name: architecture.features[name] for name in architecture.used_features},
        "length": architecture.length,
        "parameters": parameters,
        "macs": macs,
        "seed": job.seed,
        "point": job.point.facts() if job.point else None,
        "config": asdict(config),
        "metrics": {**metrics, "fitted_on": list(config.fitted_on), "search_dev_auc": job.search_dev_auc},
        "seconds": seconds,
        "provenance": dict(provenance),
    }
    tensors = {**weights, **{f"{_NEUTRAL}{name}": value for name, value in neutral.items()}}
    storage.write(job.uri, safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(content)}))


def read_network(uri: str) -> StoredNetwork:
    """Load a network file for evaluation. Raises InputError if it is none."""
    try:
        data = storage.read(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{uri} is no file; give a network that 'stgs train' wrote.") from None
    try:
        facts = network_facts(data)
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise InputError(f"{uri} is no network that 'stgs train' wrote ({error}).") from None
    if facts.get("kind") == KIND:
        raise InputError(
            f"{uri} is the network of a baseline, which only 'stgs baseline' uses; give one that 'stgs train' wrote."
        )
    if facts.get("version") not in _READABLE:
        raise InputError(f"{uri} has version {facts.get('version')}, but this program reads {NETWORK_VERSION}.")
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NEUTRAL)}
    neutral = {name.removeprefix(_NEUTRAL): tensors[name] for name in tensors if name not in weights}
    architecture: Architecture
    if facts["kind"] == CONCAT_LINEAR:
        architecture = ConcatLinearInputs(facts["features"], facts["length"])
    else:
        architecture = genotype_from_dict(facts["genotype"], uri)
    return StoredNetwork(uri, load_network(architecture, weights), facts, neutral)


def network_facts(data: bytes) -> dict[str, Any]:
    """The JSON object in a network file's metadata, from the header that every safetensors file begins with.

    What a file of version 1 does not say is filled in.
    """
    (size,) = struct.unpack("<Q", data[:8])
    content: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][METADATA_KEY])
    # A baseline's file counts its own versions.
    if content.get("version") == 1 and content.get("kind") != KIND:
        genotype = genotype_from_dict(content["genotype"])
        content |= {"kind": FOUND, "repeat": 0, "length": genotype.length}
        content["features"] = {name: genotype.features[name] for name in genotype.used_features}
        content["metrics"]["fitted_on"] = ["train"]
    return content
