"""Features of a corpus in memory, and the splits that a manifest gives them.

The features are read once; trials on one node share them through Ray's object store as zero-copy views. A split is
handed on alone, so that a search cannot see test clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep import boxes, storage
from data_prep.manifest import Manifest, Row, read_manifest
from data_prep.storage import InputError

if TYPE_CHECKING:
    from cluster.finetune import FinetuneJob
    from stgs.config import SearchConfig

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Split:
    """The clips of one split: feature columns float16 [N, C, L] or [N, C], labels int8 [N], and who they are."""

    columns: Mapping[str, NDArray[np.float16]]
    labels: NDArray[np.int8]
    clips: Mapping[str, Sequence[Any]]
    """clip_id, category, dataset, subject, [N] each."""

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, features: Sequence[str], length: int) -> Split:
        """The same clips with some of the features, those that are sequences max-pooled to `length` positions.

        A position is then the maximum over neighbouring ones: of sound what an extraction to that length gives, of
        faces the maximum over frames. Raises InputError if `length` does not divide the positions.
        """
        columns = {name: _pooled(name, self.columns[name], length) for name in features}
        return Split(columns, self.labels, self.clips)

    def shuffled_labels(self, shuffle_seeds: Sequence[int | None], split: str) -> NDArray[np.int8]:
        """Labels [P, N] of members: as they are for None, permuted by the seed otherwise (a control)."""
        stream = SPLITS.index(split)
        return np.stack(
            [
                self.labels if seed is None else np.random.default_rng([seed, stream]).permutation(self.labels)
                for seed in shuffle_seeds
            ]
        )


def _pooled(name: str, column: NDArray[np.float16], length: int) -> NDArray[np.float16]:
    if column.ndim == 2 or column.shape[2] == length:
        return column
    if column.shape[2] % length:
        raise InputError(f"feature {name!r} has {column.shape[2]} positions, which {length} equal windows cannot hold.")
    pooled: NDArray[np.float16] = column.reshape(*column.shape[:2], length, -1).max(axis=3)
    return pooled


@dataclass(frozen=True, slots=True)
class FeatureSource:
    """A features box together with a manifest that splits it."""

    uri: str
    meta: boxes.Meta
    manifest_uri: str
    manifest: Manifest
    protocol: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """What the config.yaml of a run on these clips says of how they were split anew; empty: as the manifest says."""

    @property
    def features(self) -> dict[str, int]:
        """Feature name -> channels, in column order."""
        return dict(self.meta.extra["features"])

    @property
    def length(self) -> int:
        """L, the positions of a sequence feature."""
        return int(self.meta.extra["length"])

    def with_rows(self, rows: list[Row], protocol: Mapping[str, Any]) -> Self:
        """The same clips, split anew as these rows of their manifest say. protocol: see the field."""
        return replace(self, manifest=replace(self.manifest, rows=rows), protocol=protocol)

    def manifest_clips(self, split: str) -> int:
        """Clips that the manifest puts into a split; the box may lack some, which were refused."""
        return sum(row["split"] == split for row in self.manifest.rows)

    def vectors(self) -> frozenset[str]:
        """The features that are one vector a clip, as the first part of the box says."""
        shapes = boxes.read_tensor_shapes(storage.join(self.uri, min(self.meta.files)))
        return frozenset(name for name in self.features if len(shapes[name]) == 1)

    @property
    def finetune(self) -> FinetuneJob | None:
        """How a search makes the features itself, in the loop (`cluster.finetune`); None: they are in the box."""
        return None

    def run_settings(self) -> dict[str, Any]:
        """What a run is made by beside the settings of its search."""
        return {}

    def run_hints(self) -> dict[str, Any]:
        """What may change between the attempts of a run, beside where the features lie."""
        return {}

    def audit(self) -> dict[str, Any] | None:
        """The audit of the corpus that the features were made of; None if it had none."""
        return self.meta.extra.get("audit")

    def largest_share(self, config: SearchConfig, workers: int) -> int:
        """Most clips that one of `workers` gets in a batch. Raises InputError where a batch has none for it."""
        shares = []
        for split in ("train", "dev"):
            count = self.manifest_clips(split)
            batches = max(math.ceil(count / config.batch_size), 1)
            if 0 < count // batches < workers:
                raise InputError(
                    f"batches of {split} have as few as {count // batches} clips, but each of {workers} workers needs "
                    "one; give fewer workers or a larger batch_size."
                )
            shares.append(math.ceil(math.ceil(count / batches) / workers))
        return max(shares)

    def split_digest(self) -> str:
        """What identifies the clips, labels and splits: a search on another split is another search."""
        return split_digest(self.manifest.rows)

    def load(self, split: str) -> Split:
        """Read one split.

        Raises:
            InputError: a damaged part, a clip that the manifest does not know or calls something else, an empty split.
        """
        return self.load_splits((split,))[split]

    def columns(self) -> pa.Table:
        """All parts of the box as one table; each part's sha256 is checked."""
        tables = []
        for name, digest in sorted(self.meta.files.items()):
            tables.append(boxes.read_table(storage.join(self.uri, name), sha256=digest))
        return pa.concat_tables(tables)

    def load_splits(self, splits: Sequence[str], table: pa.Table | None = None) -> dict[str, Split]:
        """Read several splits in one pass over the box; raises as `load` does. table: `columns()`, if it was read."""
        table = self.columns() if table is None else table
        return {split: self._split(split, table) for split in splits}

    def _split(self, split: str, table: pa.Table) -> Split:
        rows = {row["clip_id"]: row for row in self.manifest.rows}
        clips = {name: table[name].to_pylist() for name in ("clip_id", "label", "category", "dataset", "subject")}
        chosen = []
        for index, clip_id in enumerate(clips["clip_id"]):
            row = rows.get(clip_id)
            for column in ("label", "category"):
                if row is None or row[column] != clips[column][index]:
                    known = "no such clip" if row is None else f"{column} {row[column]!r}"
                    raise InputError(
                        f"{self.manifest_uri} has {known} for {clip_id!r}, which {self.uri} holds with {column} "
                        f"{clips[column][index]!r}; give the manifest that the features were made from."
                    )
            if row is not None and row["split"] == split:
                chosen.append(index)
        if not chosen:
            raise InputError(f"{self.manifest_uri} puts no clip of {self.uri} into split {split!r}; split it first.")
        where = np.asarray(chosen)
        columns = {name: boxes.column_to_numpy(table, name)[where] for name in self.features}
        labels = np.asarray(clips["label"], np.int8)[where]
        kept = {name: [values[index] for index in chosen] for name, values in clips.items() if name != "label"}
        return Split(columns, labels, kept)


def split_digest(rows: Sequence[Row]) -> str:
    """What identifies the clips, labels and splits of a manifest's rows."""
    return boxes.json_digest(sorted([row["clip_id"], row["label"], row["category"], row["split"]] for row in rows))


def open_features(features_uri: str, manifest_uri: str) -> FeatureSource:
    """A features box and a manifest; nothing but their meta data is read.

    Raises InputError if either is not what it should be.
    """
    uri, manifest = storage.absolute(features_uri), storage.absolute(manifest_uri)
    return FeatureSource(uri, boxes.read_meta(uri, boxes.FEATURES), manifest, read_manifest(manifest))
