"""Runs of baselines: on which clips, in which parts, with what settings; what their config.yaml says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from cluster.baseline_names import KIND, WHOLE, shuffled_part
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
    protocol_words,
    split_anew,
    split_from_dict,
)
from cluster.runs import (
    as_stored,
    find_config,
    is_baseline,
    part_uri,
    read_config,
    read_hints,
    require_search,
)
from data_prep import storage
from data_prep.manifest import Row, read_manifest
from data_prep.split_folds import NUM_FOLDS
from data_prep.splits import SplitConfig
from data_prep.storage import InputError
from stgs.baselines.base import BaselineConfig
from stgs.baselines.training import BaselineTrainingConfig

# Key of config.yaml: part -> what identifies its splits.
_DIGESTS_KEY = "split_digests"


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

    Raises InputError if there is no run, if it is a baseline's, or if the manifest is not that of its splits.
    """
    run = storage.absolute(run)
    content = read_config(run)
    require_search(run, content, "the --run of a search, or --manifest and --out")
    protocol = content.get(PROTOCOL_KEY) or {}
    uri = storage.absolute(manifest_uri or read_hints(run)["manifest"])
    manifest = read_manifest(uri)
    parts = {name: split_from_dict(split) for name, split in protocol.get("parts", {}).items()}
    own = split_from_dict(content[SPLIT_KEY]) if content.get(SPLIT_KEY) else None
    rows = _split(manifest.rows, parts, own)
    digests = _run_digests(run, content, parts)
    same = all(split_digest(rows[name]) == expected for name, expected in digests.items())
    # Before a part is begun nothing tells what its splits are made of, but the manifest as a whole.
    if not same or (not digests and manifest.meta.digest != content.get("manifest_digest")):
        raise InputError(
            f"{uri} is not the manifest of the splits of {run}; give the one that it was searched with as --manifest."
        )
    told = {key: content[key] for key in (PROTOCOL_KEY, SPLIT_KEY) if content.get(key)}
    return SplitParts(uri, manifest.meta.digest, rows, told)


def _run_digests(run: str, content: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, str]:
    """Of each part that is begun the digest of the splits that it was searched with."""
    if not parts:
        return {WHOLE: content["split_digest"]}
    begun = {name: find_config(part_uri(run, name)) for name in parts}
    return {name: part["split_digest"] for name, part in begun.items() if part is not None}


def _split(rows: Sequence[Row], parts: Mapping[str, SplitConfig], own: SplitConfig | None) -> dict[str, Sequence[Row]]:
    if parts:
        return {name: split_anew(rows, split) for name, split in parts.items()}
    return {WHOLE: rows if own is None else split_anew(rows, own)}


def baseline_uri(run: str, name: str) -> str:
    """Directory of the baseline of this name on the splits of a run."""
    return storage.join(storage.absolute(run), BASELINES_FOLDER, name)


def growing_settings(run: str, content: Mapping[str, Any], place: str = "--out") -> tuple[str, ...]:
    """The settings in which a run of a baseline may differ from `content`, its new ones: more folds of the same split,
    and more shuffles; none where no run stands at `run`, or its parts are others.

    place: the option that says where it lies. Raises InputError for fewer folds or shuffles than it has, and where only
    one of the two has folds, or both have others.
    """
    standing, given = find_config(run), as_stored(content)
    if standing is None or not is_baseline(standing):
        return ()
    own, other = (_parts_of_run(config) for config in (standing, given))
    if own.protocol != other.protocol:
        if own.words() != other.words() and (own.has_folds or other.has_folds):
            raise InputError(
                f"{run} was begun with {own.words()}, not {other.words()}; give those, or another {place}."
            )
        return ()
    if any(other.parts.get(name, part) != part for name, part in own.parts.items()):
        return ()
    for name, had, count in (
        ("folds", len(own.parts), len(other.parts)),
        ("shuffles", standing["shuffles"], given["shuffles"]),
    ):
        if count < had:
            raise InputError(
                f"{run} was begun with --{name} {had}, not {count}; give {had} or more, or another {place}."
            )
    return (PROTOCOL_KEY, _DIGESTS_KEY, "shuffles")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a config.yaml says of parts. protocol: but for its parts. parts: name -> split, and digest."""

    protocol: Mapping[str, Any]
    parts: Mapping[str, tuple[Any, str]]

    @property
    def has_folds(self) -> bool:
        return self.protocol.get("protocol") == FOLDS

    def words(self) -> str:
        """The options that give them."""
        if self.has_folds:
            return f"--folds {len(self.parts)} --split-seed {self.protocol['split_seed']}"
        return protocol_words(self.protocol) or "no --folds"


def _parts_of_run(config: Mapping[str, Any]) -> _Parts:
    protocol = dict(config.get(PROTOCOL_KEY) or {})
    splits = protocol.pop("parts", None) or {}
    return _Parts(protocol, {name: (splits.get(name), digest) for name, digest in config[_DIGESTS_KEY].items()})


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
        planned.append(PlannedPart(shuffled_part(seed), splits, first.digest, seed, 0))
    return planned
