"""Sequences of pictures and filter banks, as `stgs prepare --kind sequences` leaves them, for the parts of a baseline.

What the clips are is read once, for all parts; pictures and sound are streamed while a part trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cluster.clip_streams import (
    Clip,
    Clips,
    Place,
    ShardStream,
    SplitIndex,
    Stacking,
    clips_of_splits,
    index_places,
    read_clips,
)
from cluster.part_reader import Arrays, RayReader
from data_prep import boxes, storage
from data_prep.filter_banks import STACKED_BANKS
from data_prep.manifest import Row
from data_prep.sequence import ARRAY_COLUMNS, FRAME_SIZE, sequence_arrays
from data_prep.storage import InputError
from stgs.baselines.batch import RawSequences
from stgs.parallel import Workers

SPLITS = ("train", "dev", "test")
CLIP_COLUMNS = ("clip_id", "label", "category", "dataset", "subject", "method")
# What is read of a box; methods are the manifest's, as in an evaluation of found networks.
_OWN_COLUMNS = CLIP_COLUMNS[:-1]


@dataclass(frozen=True, slots=True)
class SequenceIndex(SplitIndex):
    """Where the clips of one split lie, and what they are, by position in the split.

    categories: A to D, [N], as a training is told them. clips: CLIP_COLUMNS, [N] each, as they are; methods as the
    manifest tells them, the others as the box does.
    """

    categories: NDArray[np.str_]
    clips: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, places: Sequence[Place], methods: Mapping[str, str | None]) -> Self:
        """The split of these clips. methods: by clip_id."""
        index = index_places(places)
        clips = {name: [place.clip[name] for place in places] for name in _OWN_COLUMNS}
        clips["method"] = [methods[clip_id] for clip_id in clips["clip_id"]]
        return cls(index.parts, index.rows, index.labels, np.array(clips["category"], "<U1"), clips)

    def shuffled(self, seed: int, split: str) -> Self:
        """The same clips with categories permuted among them, and labels with them: a control at chance."""
        order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(self.labels))
        return replace(self, labels=self.labels[order], categories=self.categories[order])


@dataclass(frozen=True, slots=True)
class Sequences:
    """A box of sequences. clips: what each of them is, without its pictures and its sound."""

    uri: str
    meta: boxes.Meta
    clips: Clips

    def splits(self, manifest_uri: str, rows: Sequence[Row], part: str, splits: Sequence[str]) -> dict[str, Any]:
        """The clips that a manifest's rows put into each of `splits`: split -> SequenceIndex.

        part: whose splits they are, for errors. Raises InputError where the manifest does not know a clip, a split is
        empty, or train or dev holds one class alone; of test the metrics say what cannot be measured.
        """
        found = clips_of_splits(self.clips, self.uri, manifest_uri, rows, splits)
        for split, places in found.items():
            classes = {place.clip["label"] for place in places}
            if len(classes) == 2 or (classes and split == "test"):
                continue
            what = "no clip" if not classes else "fakes alone" if 1 in classes else "real clips alone"
            raise InputError(
                f"split {split!r} of {part} has {what} of {self.uri}; split {manifest_uri} in another way, or prepare "
                "the clips that are missing."
            )
        methods = {row["clip_id"]: row["method"] for row in rows}
        return {split: SequenceIndex.of(places, methods) for split, places in found.items()}


def open_sequences(uri: str) -> Sequences:
    """The box of sequences at `uri`. Raises InputError if it is none."""
    uri = storage.absolute(uri)
    meta = boxes.read_meta(uri, boxes.SEQUENCES)
    return Sequences(uri, meta, read_clips(uri, meta, _OWN_COLUMNS))


class SequenceShards(ShardStream[RawSequences]):
    """A `stgs.baselines.batch.SequenceStream` over the shards of a box. Arguments as of `ShardStream`.

    corpus, files: URI of the box, and sha256 of its parts.
    """

    def __init__(
        self,
        split: str,
        index: SequenceIndex,
        *,
        corpus: str,
        files: Mapping[str, str],
        batch_size: int,
        data_seed: int,
        shuffle_clips: int,
        workers: Workers,
    ) -> None:
        super().__init__(
            split,
            index,
            batch_size=batch_size,
            data_seed=data_seed,
            shuffle_clips=shuffle_clips,
            reader=RayReader(corpus, files, ARRAY_COLUMNS, sequence_arrays),
            stacking=RAW_SEQUENCES,
            workers=workers,
        )
        self._categories = index.categories

    @property
    def categories(self) -> NDArray[np.str_]:
        """A to D, [N], of all workers' clips."""
        return self._categories


def _clips(block: Arrays) -> Iterator[Clip]:
    # Of the sizes that `sequence_arrays` has seen. The block holds `bytes`, each with a memory of its own.
    for video, banks in zip(block["video"], block["filter_banks"], strict=True):
        yield (
            np.frombuffer(video, np.uint8).reshape(-1, 3, FRAME_SIZE, FRAME_SIZE),
            np.frombuffer(banks, np.float32).reshape(-1, STACKED_BANKS),
        )


def _batch(clips: Sequence[Clip], index: NDArray[np.int64], total: int) -> RawSequences:
    videos, banks = zip(*clips, strict=True)
    return RawSequences(videos, banks, index, total)


RAW_SEQUENCES = Stacking(_clips, _batch)
