"""Streams of clips over shards, without Ray: every clip once, even batches, the same order again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.clip_streams import RAW_CLIPS, ShardStream, SplitIndex, index_corpus
from cluster.part_reader import Arrays, Part
from data_prep import boxes, storage
from data_prep.manifest import read_manifest, write_manifest
from data_prep.storage import InputError
from stgs.parallel import Workers
from stgs.streamed import RawClips
from tests.tiny_corpus import make_corpus

COUNTS = (7, 3, 9, 4, 6, 8, 2)
CLIPS = sum(COUNTS)


def index() -> SplitIndex:
    """Parts of unequal sizes; each takes every second row of its shard."""
    rows = tuple(tuple(range(1, 2 * count, 2)) for count in COUNTS)
    names = tuple(f"part-{number}" for number in range(len(COUNTS)))
    return SplitIndex(names, rows, (np.arange(CLIPS) % 2).astype(np.int8))


def reader(parts: Sequence[Part]) -> Iterator[Arrays]:
    """Blocks of at most three clips, whose contents say which clip they are."""
    for position, (name, rows) in enumerate(parts):
        for start in range(0, len(rows), 3):
            chosen = np.array(rows[start : start + 3])
            part = int(name.removeprefix("part-"))
            yield {
                "position": np.full(len(chosen), position),
                "frames": np.full((len(chosen), 1), part, np.uint8),
                "spectrogram": chosen[:, None].astype(np.float32),
            }


def stream(rank: int, world: int, *, batch_size: int = 8, shuffle_clips: int = 5) -> ShardStream[RawClips]:
    return ShardStream(
        "train",
        index(),
        batch_size=batch_size,
        data_seed=3,
        shuffle_clips=shuffle_clips,
        reader=reader,
        stacking=RAW_CLIPS,
        workers=Workers(rank, world),
    )


def content(batches: Sequence[RawClips]) -> list[tuple[int, int, int]]:
    """(position in the split, part, row) of the clips."""
    return [
        (int(index), int(frame[0]), int(spectrum[0]))
        for batch in batches
        for index, frame, spectrum in zip(batch.index, batch.frames, batch.spectrogram, strict=True)
    ]


EXPECTED = [(part, row) for part, count in enumerate(COUNTS) for row in range(1, 2 * count, 2)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_holds_every_clip_once_in_even_batches(world: int) -> None:
    for epoch in range(4):
        streams = [stream(rank, world) for rank in range(world)]
        batches = [list(own.batches(epoch)) for own in streams]
        assert {len(own) for own in batches} == {streams[0].num_batches(epoch)}
        clips = sorted(clip for own in batches for clip in content(own))
        assert clips == [(position, *clip) for position, clip in enumerate(EXPECTED)]
        for own in batches:
            sizes = [len(batch.index) for batch in own]
            assert min(sizes) > 0
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= streams[0].largest_share(4)
        for together in zip(*batches, strict=True):
            assert {batch.clips for batch in together} == {sum(len(batch.index) for batch in together)}
            assert together[0].clips <= 8


def test_workers_take_their_larger_batches_in_turn() -> None:
    parts = SplitIndex(("part-0", "part-1"), (tuple(range(8)),) * 2, np.zeros(16, np.int8))
    settings: dict[str, Any] = {"batch_size": 6, "data_seed": 0, "shuffle_clips": 4, "reader": reader}
    own = ShardStream("train", parts, **settings, stacking=RAW_CLIPS, workers=Workers(0, 2))
    assert [batch.clips for batch in own.batches(0)] == [5, 5, 6]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, next_epoch = (content(list(stream(0, 2).batches(epoch))) for epoch in (0, 0, 1))
    assert first == again
    assert first != next_epoch
    assert first != sorted(first), "clips are shuffled"
    parts = [part for _, part, _ in first]
    assert parts != sorted(parts, key=parts.index), "clips of several parts meet in a batch"


def test_an_evaluation_reads_every_clip_once() -> None:
    batches = [batch for rank in range(3) for batch in stream(rank, 3).in_order()]
    assert sorted(content(batches)) == [(position, *clip) for position, clip in enumerate(EXPECTED)]
    assert content(list(stream(1, 3).in_order())) == content(list(stream(1, 3).in_order()))


def test_workers_without_clips_are_refused() -> None:
    with pytest.raises(InputError, match="one of 8 workers would get 0 train clips for"):
        stream(0, 8).largest_share(1)
    with pytest.raises(InputError, match="batch_size is 2, but each of 3 workers needs a clip"):
        stream(0, 3, batch_size=2).largest_share(1)
    assert stream(0, 1).largest_share(1) == 8


def test_the_index_follows_the_manifest(tmp_path: Path) -> None:
    corpus, manifest_uri = make_corpus(tmp_path)
    manifest = read_manifest(manifest_uri)
    found = index_corpus(corpus, boxes.read_meta(corpus, boxes.CORPUS), manifest_uri, manifest)
    assert found["train"].parts == tuple(boxes.shard_name(part) for part in range(3))
    assert found["train"].rows == ((0, 1, 2, 3),) * 3
    assert found["dev"].rows == ((4, 5, 6),) * 3
    assert found["dev"].labels.tolist() == [0, 1, 1] * 3

    for change, named in (
        ({"split": None}, "puts no clip of .* into split 'train'"),
        ({"label": 0, "category": "A"}, "does not know 'clip-00-01' of .* with label 1 and category 'B'"),
    ):
        rows = [{**row, **change} for row in manifest.rows]
        other = str(tmp_path / f"other-{len(change)}")
        write_manifest(other, rows, manifest.roots, {})
        with pytest.raises(InputError, match=named):
            index_corpus(corpus, boxes.read_meta(corpus, boxes.CORPUS), other, read_manifest(other))


def test_plain_columns_are_read_without_the_others(tmp_path: Path) -> None:
    corpus, _ = make_corpus(tmp_path, shards=1)
    part = storage.join(corpus, boxes.shard_name(0))
    table = boxes.read_plain_columns(part, ["label", "clip_id"])
    assert table.column_names == ["label", "clip_id"]
    assert table.equals(boxes.read_table(part, ["label", "clip_id"]))
    with pytest.raises(InputError, match="is damaged"):
        boxes.read_plain_columns(part, ["nothing"])
    storage.write(part, b"no table")
    with pytest.raises(InputError, match="is damaged"):
        boxes.read_plain_columns(part, ["label"])
