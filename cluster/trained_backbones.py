"""The backbones of a network that was trained end to end: files beside the network's, and features that they made."""

from __future__ import annotations

import functools
import hashlib
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cluster.features import FeatureSource
from cluster.finetune import BackboneOptions, CorpusSource, write_backbone
from cluster.network_files import ENDING, StoredNetwork
from data_prep import storage
from data_prep.storage import InputError
from stgs.backbones import SENSES, weights_digest
from stgs.found_finetune import FoundFinetune


def backbone_file(network_uri: str, sense: str) -> str:
    """The file with the weights of a network's own backbone, as `stgs extract` takes them."""
    return f"{network_uri.removesuffix(ENDING)}.{sense}.pt"


def is_end_to_end(stored: StoredNetwork) -> bool:
    """Whether a network was trained together with backbones of its own."""
    return "finetune" in stored.facts["provenance"]


def write_backbones(network_uri: str, training: FoundFinetune) -> dict[str, str]:
    """Write the backbones of a training's best epoch beside the network's file; their sha256, by sense."""
    states = training.best_backbones()
    return {sense: write_backbone(backbone_file(network_uri, sense), state) for sense, state in states.items()}


def end_to_end_provenance(source: CorpusSource) -> dict[str, Any]:
    """How features are made for networks that are trained end to end (see `cluster.network_files.provenance`), before
    they have backbones of their own.

    There are no features yet, so features_digest is None; corpus_digest is that of the clips. started_from: the weights
    that the backbones begin with, as names or sha256.
    """
    backbones = asdict(source.job.backbones)
    return {
        "features_digest": None,
        "corpus_digest": source.meta.digest,
        "split_digest": source.split_digest(),
        "backbones": backbones,
        "started_from": {sense: weights_digest(backbones[f"{sense}_weights"]) for sense in SENSES},
        "spectrogram_statistics": weights_digest(backbones["spectrogram_statistics"]),
        "finetune": asdict(source.job.finetune),
        "corpus": source.meta.config,
    }


def with_own_backbones(facts: Mapping[str, Any], network_uri: str, weights: Mapping[str, str]) -> dict[str, Any]:
    """The provenance of one network, with its files in the place of what the backbones began with.

    weights: sha256 of the files, by sense. The settings of the backbones name them without their folder.
    """
    names = {f"{sense}_weights": backbone_file(network_uri, sense).rpartition("/")[2] for sense in SENSES}
    return {**facts, "backbones": {**facts["backbones"], **names}, "weights": dict(weights)}


def require_made_by(stored: StoredNetwork, features: FeatureSource, *, same_clips: bool = True) -> None:
    """Refuse features that a network's own backbones did not make. Raises InputError.

    same_clips: whether they are to be those of the corpus that the network was trained on.
    """
    made, there = stored.facts["provenance"], features.meta
    settings = [
        name for name in made["backbones"] if not name.endswith("_weights") and name != "spectrogram_statistics"
    ]
    differing = [name for name in settings if _plain(there.config.get(name)) != _plain(made["backbones"][name])]
    if there.extra["weights"] != made["weights"]:
        differing.append("weights")
    if there.extra.get("spectrogram_statistics") != made["spectrogram_statistics"]:
        differing.append("spectrogram_statistics")
    if same_clips and there.parent != made["corpus_digest"]:
        differing.append("corpus")
    if differing:
        raise InputError(
            f"{features.uri} was not made by the backbones that {stored.uri} was trained with (they differ in "
            f"{', '.join(differing)}); make features with '{extraction(stored, 'CORPUS')}'."
        )


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def extraction(stored: StoredNetwork, corpus: str) -> str:
    """The command that makes features of a corpus with a network's own backbones."""
    made = stored.facts["provenance"]["backbones"]
    words = ["stgs", "extract", corpus, "--out", "DIR"]
    for item in fields(BackboneOptions):
        sense = item.name.removesuffix("_weights")
        value = backbone_file(stored.uri, sense) if sense != item.name else made[item.name]
        if _plain(value) != _plain(item.default):
            values = value if isinstance(value, list | tuple) else (value,)
            words += [f"--{item.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def local_weights(stored: StoredNetwork) -> dict[str, str]:
    """Local files with the weights of a network's own backbones: `visual_weights` and `audio_weights` -> path.

    Those of a network in remote storage are copied, for as long as this process lives. Raises InputError where a file
    is gone, or is not the one that was written with the network.
    """
    found = {}
    for sense in SENSES:
        uri, wanted = backbone_file(stored.uri, sense), stored.facts["provenance"]["weights"][sense]
        try:
            content = storage.read(uri)
        except FileNotFoundError:
            raise InputError(f"{uri} is missing; copy a network's file with its backbones beside it.") from None
        if hashlib.sha256(content).hexdigest() != wanted:
            raise InputError(f"{uri} is another file than the {sense} weights that {stored.uri} was trained with.")
        path = Path(uri)
        if not path.is_file():
            path = Path(_copies().name) / f"{wanted}.pt"
            path.write_bytes(content)
        found[f"{sense}_weights"] = str(path)
    return found


@functools.cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="stgs-backbones-")
