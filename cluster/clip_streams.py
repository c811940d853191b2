"""Clips of a corpus, streamed to the workers of a training that reads them while it runs.

A worker's share of an epoch is a number of shards, dealt out anew for each (data_seed, epoch, number of workers). Ray
Data reads them in that order, ahead of the training and in processes of its own, and sends the clips of the split
alone. A buffer shuffles them: the clips of one shard are neighbours by name, so they resemble each other. All of it
depends on seeds alone, so an epoch that was interrupted is read once more in the same order.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.part_reader import Arrays, Part
from data_prep import boxes, storage
from data_prep.boxes import Meta
from data_prep.manifest import Manifest, Row
from data_prep.storage import InputError
from stgs.parallel import SINGLE, Workers
from stgs.streamed import RawClips

EVALUATION_CLIPS = 16
# Readers of the list of clips; on S3 each waits for an answer most of the time.
_INDEX_THREADS = 16
# The epoch of `in_order`: no real one, so that evaluation always reads the same shards.
_NO_EPOCH = -1

Reader = Callable[[Sequence[Part]], Iterator[Arrays]]
# The arrays of one clip, and what a stream's batches are.
Clip = tuple[NDArray[Any], ...]
Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class SplitIndex:
    """Where the clips of one split lie.

    parts: names of the shards with clips of the split. rows: of each part the rows that are of the split. labels: of
    all clips, int8 [N], by part and row. A clip's position in the split is its place in `labels`.
    """

    parts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    labels: NDArray[np.int8]


# Part of a box -> its clips, by row.
Clips = Mapping[str, Sequence[Row]]


def read_clips(uri: str, corpus: Meta, columns: Sequence[str] = ("clip_id", "label", "category")) -> Clips:
    """What some columns say of every clip of a corpus, without the large ones being read."""
    parts = sorted(name for name in corpus.files if "/" not in name)
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        tables = list(pool.map(lambda part: boxes.read_plain_columns(storage.join(uri, part), columns), parts))
    return {part: table.to_pylist() for part, table in zip(parts, tables, strict=True)}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a clip lies, by part and row, and what is known of it."""

    part: str
    row: int
    clip: Row


def clips_of_splits(
    clips: Clips, uri: str, manifest_uri: str, rows: Sequence[Row], splits: Sequence[str]
) -> dict[str, list[Place]]:
    """Those of the corpus's clips that a manifest's rows put into each of `splits`, by part and row.

    Raises InputError if the manifest lacks a clip of the corpus at `uri`, or knows it with another label or category.
    """
    known = {row["clip_id"]: row for row in rows}
    found: dict[str, list[Place]] = {split: [] for split in splits}
    for part, own in clips.items():
        for row, clip in enumerate(own):
            listed = known.get(clip["clip_id"])
            if listed is None or any(listed[name] != clip[name] for name in ("label", "category")):
                raise InputError(
                    f"{manifest_uri} does not know {clip['clip_id']!r} of {uri} with label {clip['label']} and "
                    f"category {clip['category']!r}; give the manifest that the corpus was made from."
                )
            if listed["split"] in found:
                found[listed["split"]].append(Place(part, row, clip))
    return found


def index_places(places: Sequence[Place]) -> SplitIndex:
    """The split of these clips, which are in order of part and row."""
    rows: dict[str, list[int]] = {}
    for place in places:
        rows.setdefault(place.part, []).append(place.row)
    labels = np.array([place.clip["label"] for place in places], np.int8)
    return SplitIndex(tuple(rows), tuple(map(tuple, rows.values())), labels)


def index_corpus(uri: str, corpus: Meta, manifest_uri: str, manifest: Manifest) -> dict[str, SplitIndex]:
    """The train and dev clips of a corpus, by a manifest.

    Raises InputError as `clips_of_splits` does, or if the manifest puts no clip into train or dev.
    """
    found = clips_of_splits(read_clips(uri, corpus), uri, manifest_uri, manifest.rows, ("train", "dev"))
    for split, places in found.items():
        if not places:
            raise InputError(f"{manifest_uri} puts no clip of {uri} into split {split!r}; split it first.")
    return {split: index_places(places) for split, places in found.items()}


def joined(first: SplitIndex, second: SplitIndex) -> SplitIndex:
    """The clips of two splits of one corpus as one."""
    found: dict[str, list[tuple[int, int]]] = {}
    for index in (first, second):
        labels = iter(index.labels.tolist())
        for part, rows in zip(index.parts, index.rows, strict=True):
            found.setdefault(part, []).extend((row, next(labels)) for row in rows)
    parts = sorted(found)
    clips = [sorted(found[part]) for part in parts]
    return SplitIndex(
        tuple(parts),
        tuple(tuple(row for row, _ in own) for own in clips),
        np.array([label for own in clips for _, label in own], np.int8),
    )


@dataclass(frozen=True, slots=True)
class Stacking(Generic[Batch]):
    """How what is read becomes batches.

    clips: of a block of the reader, the arrays of each of its clips, which hold none of the block's memory. batch: of
    some clips, their positions in the split, int64 [B], and the number of clips of all workers' batch.
    """

    clips: Callable[[Arrays], Iterator[Clip]]
    batch: Callable[[Sequence[Clip], NDArray[np.int64], int], Batch]


def _framed(block: Arrays) -> Iterator[Clip]:
    for frames, spectrogram in zip(block["frames"], block["spectrogram"], strict=True):
        # Copies: a view would hold the block's memory for as long as the clip waits in the buffer.
        yield frames.copy(), spectrogram.copy()


def _stacked(clips: Sequence[Clip], index: NDArray[np.int64], total: int) -> RawClips:
    frames, spectrograms = zip(*clips, strict=True)
    return RawClips(np.stack(frames), np.stack(spectrograms), index, total)


# Of blocks with `frames` and `spectrogram`, each [n, ...]: batches of a `stgs.streamed.ClipStream`.
RAW_CLIPS = Stacking(_framed, _stacked)


class ShardStream(Generic[Batch]):
    """A split over the shards of a corpus; of `RAW_CLIPS`, a `stgs.streamed.ClipStream`.

    Args:
        split: its name, which the order depends on.
        index: where its clips lie.
        batch_size: clips of a batch of all workers, at most.
        data_seed: of the order.
        shuffle_clips: size of the buffer that shuffles.
        reader: reads parts, each with its rows, one after the other: `position` (of the part in its argument), and what
            `stacking` takes, each [n, ...], in blocks of any size.
        stacking: what becomes of that.
        workers: who shares the clips.
    """

    def __init__(
        self,
        split: str,
        index: SplitIndex,
        *,
        batch_size: int,
        data_seed: int,
        shuffle_clips: int,
        reader: Reader,
        stacking: Stacking[Batch],
        workers: Workers = SINGLE,
    ) -> None:
        self.split, self.index, self.workers, self.reader, self.stacking = split, index, workers, reader, stacking
        self.batch_size, self.data_seed, self.shuffle_clips = batch_size, data_seed, shuffle_clips
        counts = [len(rows) for rows in index.rows]
        self._counts = counts
        # Position in the split of each part's first clip.
        self._first = np.concatenate([[0], np.cumsum(counts)])[:-1]

    @property
    def labels(self) -> NDArray[np.int8]:
        """0 real, 1 fake, [N]."""
        return self.index.labels

    def largest_share(self, epochs: int) -> int:
        """Most clips that a worker gets in a batch of these epochs.

        Raises:
            InputError: a worker would get a batch without clips.
        """
        world, largest = self.workers.world, 0
        if self.batch_size < world:
            raise InputError(f"batch_size is {self.batch_size}, but each of {world} workers needs a clip; give more.")
        for epoch in range(epochs):
            shares = self._shares(epoch)
            batches = self.num_batches(epoch)
            if min(shares) < batches:
                raise InputError(
                    f"one of {world} workers would get {min(shares)} {self.split} clips for {batches} batches in epoch "
                    f"{epoch + 1}, because the corpus has {len(self._counts)} shards with such clips; take fewer "
                    "workers or a larger batch_size, or prepare a corpus of more clips."
                )
            largest = max(largest, math.ceil(max(shares) / batches))
        return largest

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch, on every worker."""
        shares = self._shares(epoch)
        batches = math.ceil(sum(shares) / self.batch_size)
        # Each worker's share is cut evenly; where the remainders meet in one batch, it must not become too large.
        while sum(math.ceil(share / batches) for share in shares) > self.batch_size:
            batches += 1
        return batches

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This worker's clips of an epoch, each once, in `num_batches(epoch)` batches."""
        count = self.num_batches(epoch)
        # Workers have their larger batches at different times, so that whole batches are even, too.
        offsets = [worker * count // self.workers.world for worker in range(self.workers.world)]
        sizes = [_even(share, count, at) for share, at in zip(self._shares(epoch), offsets, strict=True)]
        clips = self._shuffled(self._clips(self._deal(epoch)[self.workers.rank]), epoch)
        for number, size in enumerate(sizes[self.workers.rank]):
            yield self._batch([next(clips) for _ in range(size)], sum(own[number] for own in sizes))

    def in_order(self) -> Iterator[Batch]:
        """This worker's clips for an evaluation, the same ones each time."""
        clips = self._clips(self._deal(_NO_EPOCH)[self.workers.rank])
        while batch := list(islice(clips, EVALUATION_CLIPS)):
            yield self._batch(batch, len(batch))

    def _batch(self, clips: Sequence[tuple[int, Clip]], total: int) -> Batch:
        positions = np.array([position for position, _ in clips], np.int64)
        return self.stacking.batch([clip for _, clip in clips], positions, total)

    def _deal(self, epoch: int) -> list[list[int]]:
        """The parts of each worker: in an order of the epoch, each goes to whoever has the fewest clips."""
        world = self.workers.world
        random = np.random.default_rng([self.data_seed, epoch + 1, zlib.crc32(self.split.encode()), world])
        hands: list[list[int]] = [[] for _ in range(world)]
        clips = [0] * world
        for part in random.permutation(len(self._counts)):
            worker = clips.index(min(clips))
            hands[worker].append(int(part))
            clips[worker] += self._counts[part]
        return hands

    def _shares(self, epoch: int) -> list[int]:
        """Clips of each worker."""
        return [sum(self._counts[part] for part in hand) for hand in self._deal(epoch)]

    def _clips(self, parts: Sequence[int]) -> Iterator[tuple[int, Clip]]:
        """Position in the split, and arrays, of every clip of these parts."""
        wanted = [(self.index.parts[part], list(self.index.rows[part])) for part in parts]
        seen = dict.fromkeys(range(len(parts)), 0)
        for block in self.reader(wanted):
            for number, clip in zip(block["position"].tolist(), self.stacking.clips(block), strict=True):
                yield int(self._first[parts[number]]) + seen[number], clip
                seen[number] += 1

    def _shuffled(self, clips: Iterator[Any], epoch: int) -> Iterator[Any]:
        """The same clips, each drawn from a buffer of the next `shuffle_clips`."""
        seed = [self.data_seed, epoch, zlib.crc32(self.split.encode()), self.workers.world, self.workers.rank]
        random = np.random.default_rng(seed)
        buffer: list[Any] = []
        for clip in clips:
            if len(buffer) < self.shuffle_clips:
                buffer.append(clip)
                continue
            place = int(random.integers(len(buffer)))
            buffer[place], drawn = clip, buffer[place]
            yield drawn
        random.shuffle(buffer)
        while buffer:
            yield buffer.pop()


def _even(clips: int, batches: int, offset: int) -> list[int]:
    """`clips` cut into sizes that differ by at most one; offset, in [0, batches): shifts where the larger ones are."""
    bounds = [(number * clips + offset) // batches for number in range(batches + 1)]
    return [end - start for start, end in pairwise(bounds)]
