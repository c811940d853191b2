"""Runs of baselines: on which clips, in which parts, with what settings; what their config.yaml says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from cluster.baseline_part import KIND
from cluster.baseline_results import BASELINES_FOLDER
from cluster.baseline_streams import SPLITS, SequenceIndex, Sequences
from cluster.baseline_weights import WeightsFile, weights_facts
from cluster.features import split_digest
from cluster.protocol_splits import (
    FOLDS,
    MANIFEST,
    PROTOCOL_KEY,
    SPLIT_KEY,
    ProtocolConfig,
    own_split,
    parts_of,
    protocol_settings,
    split_anew,
    split_from_dict,
)
from cluster.runs import part_uri, read_config, read_hints
from data_prep import storage
from data_prep.manifest import Row, read_manifest
from data_prep.split_folds import NUM_FOLDS
from data_prep.splits import SplitConfig
from data_prep.storage import InputError
from stgs.baselines.base import BaselineConfig
from stgs.baselines.training import BaselineTrainingConfig

# The one part of a run that has no others.
WHOLE = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineSettings:
    """What a run of a baseline is made by beside its clips.

    model: of `stgs.baselines.BASELINES`. shuffles: parts with shuffled labels, besides. device: `auto`, `cpu` or
    `cuda`. threads: of each process. weights: a file to start from or to score, with its arrays.
    """

    model: str
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    training: BaselineTrainingConfig = field(default_factory=BaselineTrainingConfig)
    shuffles: int = 0
    device: str = "auto"
    threads: int = 1
    weights: WeightsFile | None = None
    arrays: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.shuffles < 0 or self.threads < 1:
            raise InputError(
                f"shuffles is {self.shuffles} and threads is {self.threads}, but they must be at least 0 and 1."
            )
        if self.shuffles and not self.is_trained:
            raise InputError(f"shuffles is {self.shuffles}, but a checkpoint is not trained; leave --shuffles out.")

    @property
    def is_trained(self) -> bool:
        """Whether parts are trained at all; a checkpoint is scored as it is."""
        return self.weights is None or not self.weights.is_checkpoint

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose clips are needed."""
        return SPLITS if self.is_trained else ("dev", "test")

    def content(self, device: str) -> dict[str, Any]:
        """What config.yaml says of them. device: `cpu` or `cuda`."""
        return {
            "kind": KIND,
            "model": self.model,
            "baseline": asdict(self.baseline),
            "training": asdict(self.training),
            "shuffles": self.shuffles,
            "weights": weights_facts(self.weights),
            "device": device,
            "threads": self.threads,
        }


@dataclass(frozen=True, slots=True)
class SplitParts:
    """How the clips of a manifest are split for each part.

    manifest: its URI. digest: of the manifest. parts: name -> rows. told: what config.yaml says of it.
    """

    manifest: str
    digest: str
    parts: Mapping[str, Sequence[Row]]
    told: Mapping[str, Any]


def folds_protocol(protocol: ProtocolConfig, folds: int | None) -> ProtocolConfig:
    """The protocol, of which `folds` is short for `folds`. Raises InputError where both are given and differ."""
    if folds is None:
        return protocol
    if protocol.protocol not in (MANIFEST, FOLDS):
        raise InputError(
            f"folds is {folds}, but the protocol is {protocol.protocol!r}; leave --folds or --protocol out."
        )
    if not 1 <= folds <= NUM_FOLDS:
        raise InputError(f"folds is {folds}, but there are {NUM_FOLDS} folds; give a number from 1 to {NUM_FOLDS}.")
    return replace(protocol, protocol="folds")


def split_by_protocol(manifest_uri: str, config: ProtocolConfig, folds: int | None = None) -> SplitParts:
    """The parts of a manifest's clips under a protocol. folds: only the first ones of `folds`.

    Raises InputError for a protocol that cannot split them (`cluster.protocol_splits.parts_of`).
    """
    uri = storage.absolute(manifest_uri)
    manifest = read_manifest(uri)
    parts, own = parts_of(config, manifest), own_split(config)
    parts = dict([*parts.items()][:folds])
    told = protocol_settings(config, parts)
    if own is not None:
        told[SPLIT_KEY] = asdict(own)
    return SplitParts(uri, manifest.meta.digest, _split(manifest.rows, parts, own), told)


def split_by_run(run: str, manifest_uri: str | None = None) -> SplitParts:
    """The parts of a run, with its splits. manifest_uri: where its manifest is now; None: where it was.

    Raises InputError if there is no run, or the manifest is not that of its splits.
    """
    run = storage.absolute(run)
    content, protocol = read_config(run), read_config(run).get(PROTOCOL_KEY) or {}
    uri = storage.absolute(manifest_uri or read_hints(run)["manifest"])
    manifest = read_manifest(uri)
    parts = {name: split_from_dict(split) for name, split in protocol.get("parts", {}).items()}
    own = split_from_dict(content[SPLIT_KEY]) if content.get(SPLIT_KEY) else None
    rows = _split(manifest.rows, parts, own)
    for name, expected in _run_digests(run, content, parts).items():
        if expected is not None and split_digest(rows[name]) != expected:
            raise InputError(
                f"{uri} is not the manifest of the splits of {run}; give the one that it was searched with as "
                "--manifest."
            )
    told = {key: content[key] for key in (PROTOCOL_KEY, SPLIT_KEY) if content.get(key)}
    return SplitParts(uri, manifest.meta.digest, rows, told)


def _run_digests(run: str, content: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, str | None]:
    """Of each part the digest of the splits that it was searched with, None where it was not begun."""
    if not parts:
        return {WHOLE: content.get("split_digest")}
    found: dict[str, str | None] = {}
    for name in parts:
        begun = storage.exists(storage.join(part_uri(run, name), "config.yaml"))
        found[name] = read_config(part_uri(run, name)).get("split_digest") if begun else None
    return found


def _split(rows: Sequence[Row], parts: Mapping[str, SplitConfig], own: SplitConfig | None) -> dict[str, Sequence[Row]]:
    if parts:
        return {name: split_anew(rows, split) for name, split in parts.items()}
    return {WHOLE: rows if own is None else split_anew(rows, own)}


def baseline_uri(run: str, name: str) -> str:
    """Directory of the baseline of this name on the splits of a run."""
    return storage.join(storage.absolute(run), BASELINES_FOLDER, name)


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """One training. splits: where its clips lie. digest: of its splits. shuffle_seed: what permutes their categories.

    missing: clips that the manifest puts into these splits, but that the sequences do not hold.
    """

    name: str
    splits: Mapping[str, SequenceIndex]
    digest: str
    shuffle_seed: int | None
    missing: int

    def training(self, config: BaselineTrainingConfig) -> BaselineTrainingConfig:
        """How it is trained: shuffled ones begin with other weights each, so that they are draws of their own."""
        return config if self.shuffle_seed is None else replace(config, seed=config.seed + 1 + self.shuffle_seed)


def plan_parts(settings: BaselineSettings, sequences: Sequences, split: SplitParts) -> list[PlannedPart]:
    """The parts with their clips, those with shuffled labels, on the clips of the first part, last.

    Raises InputError where sequences and manifest do not belong together, or a split lacks a class.
    """
    planned = []
    for name, rows in split.parts.items():
        splits = sequences.splits(split.manifest, rows, name, settings.splits)
        listed = sum(row["split"] in splits for row in rows)
        missing = listed - sum(len(index.labels) for index in splits.values())
        planned.append(PlannedPart(name, splits, split_digest(rows), None, missing))
    first = planned[0]
    for seed in range(settings.shuffles):
        splits = {name: index if name == "test" else index.shuffled(seed, name) for name, index in first.splits.items()}
        planned.append(PlannedPart(f"shuffle-{seed}", splits, first.digest, seed, 0))
    return planned
