"""Features of a corpus in memory, and the splits that a manifest gives them.

The features are read once; trials on one node share them through Ray's object store as zero-copy views. A split is
handed on alone, so that a search cannot see test clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep import boxes, storage
from data_prep.manifest import Manifest, read_manifest
from data_prep.storage import InputError

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

    def only(self, features: Sequence[str]) -> Split:
        """The same clips with some of the features."""
        return Split({name: self.columns[name] for name in features}, self.labels, self.clips)

    def shuffled_labels(self, shuffle_seeds: Sequence[int | None], split: str) -> NDArray[np.int8]:
        """Labels [P, N] of members: as they are for None, permuted by the seed otherwise (a control)."""
        stream = SPLITS.index(split)
        return np.stack(
            [
                self.labels if seed is None else np.random.default_rng([seed, stream]).permutation(self.labels)
                for seed in shuffle_seeds
            ]
        )


@dataclass(frozen=True, slots=True)
class FeatureSource:
    """A features box together with a manifest that splits it."""

    uri: str
    meta: boxes.Meta
    manifest_uri: str
    manifest: Manifest

    @property
    def features(self) -> dict[str, int]:
        """Feature name -> channels, in column order."""
        return dict(self.meta.extra["features"])

    @property
    def length(self) -> int:
        """L, the positions of a sequence feature."""
        return int(self.meta.extra["length"])

    def split_digest(self) -> str:
        """What identifies the clips, labels and splits: a search on another split is another search."""
        return boxes.json_digest(
            sorted([row["clip_id"], row["label"], row["category"], row["split"]] for row in self.manifest.rows)
        )

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
            part = storage.join(self.uri, name)
            if hashlib.sha256(storage.read(part)).hexdigest() != digest:
                raise InputError(f"{part} was changed after it was written; delete it and run 'stgs extract' again.")
            tables.append(boxes.read_table(part))
        return pa.concat_tables(tables)

    def load_splits(self, splits: Sequence[str]) -> dict[str, Split]:
        """Read several splits in one pass over the box; raises as `load` does."""
        table = self.columns()
        return {split: self._split(split, table) for split in splits}

    def _split(self, split: str, table: pa.Table) -> Split:
        rows = {row["clip_id"]: row for row in self.manifest.rows}
        clips = {name: table[name].to_pylist() for name in ("clip_id", "label", "category", "dataset", "subject")}
        chosen = []
        for index, clip_id in enumerate(clips["clip_id"]):
            row = rows.get(clip_id)
            for field in ("label", "category"):
                if row is None or row[field] != clips[field][index]:
                    known = "no such clip" if row is None else f"{field} {row[field]!r}"
                    raise InputError(
                        f"{self.manifest_uri} has {known} for {clip_id!r}, which {self.uri} holds with {field} "
                        f"{clips[field][index]!r}; give the manifest that the features were made from."
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


def open_features(features_uri: str, manifest_uri: str) -> FeatureSource:
    """A features box and a manifest; nothing but their meta data is read.

    Raises InputError if either is not what it should be.
    """
    uri, manifest = storage.absolute(features_uri), storage.absolute(manifest_uri)
    return FeatureSource(uri, boxes.read_meta(uri, boxes.FEATURES), manifest, read_manifest(manifest))
