"""A small sequences box with a manifest, without any video: for tests of what reads pictures and filter banks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep import boxes, storage
from data_prep.filter_banks import STACKED_BANKS
from data_prep.manifest import clip_row, read_manifest, write_manifest
from data_prep.sequence import FRAME_SIZE, SEQUENCE_SCHEMA

SPLIT_SUBJECTS = {"train": 4, "dev": 2, "test": 2}
LABEL_COLUMNS = ("clip_id", "label", "category", "dataset", "subject", "target", "method", "augmentation")
_MEASURED = {
    "face_times_s": [0.2], "face_score": [1.0], "face_box": [[0.0, 0.0, 112.0, 112.0]], "fps": 25.0,
    "leading_silence_s": 0.1, "trailing_silence_s": 0.1, "trimmed_leading_s": 0.0, "trimmed_trailing_s": 0.0,
    "loudness_dbfs": -25.0, "width": 224, "height": 224, "sample_rate": 16_000, "bit_rate": 1e6,
    "file_bytes": 100_000, "num_faces": 1, "face_choice": "only",
}  # fmt: skip


def make_sequences(
    folder: Path,
    *,
    subjects: Mapping[str, int] = SPLIT_SUBJECTS,
    frames: tuple[int, int] = (8, 12),
    signal: float = 1.0,
    shard_clips: int = 8,
    seed: int = 0,
    change: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
) -> tuple[str, str]:
    """Write `folder`/sequences and `folder`/manifest; returns their paths.

    A clip of each category of each subject, `subjects` of each split, with `frames` from fewest to most: noise that
    compresses well. Fake pictures (categories C, D) have a brighter middle, by 80 * `signal` levels, and fake sound
    (B, D) a stronger quarter of its filter banks, by 3 * `signal`; 0: nothing tells them. shard_clips: clips of a
    part. change: given the manifest's rows, to say something else of the same clips.
    """
    splits = [split for split, count in subjects.items() for _ in range(count)]
    rows = [
        clip_row(
            clip_id=f"clip-{subject:03d}-{category}",
            video_path=f"demo/{category}/{subject:03d}.mp4",
            category=category,
            dataset="planted",
            subject=f"subject-{subject:03d}",
            method="planted",
            split=split,
        )
        for subject, split in enumerate(splits)
        for category in "ABCD"
    ]
    change(rows)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    manifest, sequences = str(folder / "manifest"), str(folder / "sequences")
    write_manifest(manifest, rows, {"demo": str(folder / "clips")}, {"planted": True})
    write_sequences(sequences, manifest, frames=frames, signal=signal, shard_clips=shard_clips, seed=seed)
    return sequences, manifest


def write_sequences(
    uri: str, manifest_uri: str, *, frames: tuple[int, int], signal: float, shard_clips: int, seed: int
) -> boxes.Meta:
    """Write the sequences of a manifest's clips as `make_sequences` does; returns their meta.json."""
    random = np.random.default_rng(seed)
    manifest = read_manifest(manifest_uri)
    files = {}
    for part, start in enumerate(range(0, len(manifest.rows), shard_clips)):
        rows = [
            _sequence(row, random, int(random.integers(frames[0], frames[1] + 1)), signal)
            for row in manifest.rows[start : start + shard_clips]
        ]
        table = pa.Table.from_pylist(rows, schema=SEQUENCE_SCHEMA)
        name = boxes.shard_name(part)
        files[name] = storage.write(storage.join(uri, name), boxes.table_bytes(table))
    meta = boxes.Meta(
        kind=boxes.SEQUENCES,
        config={"planted": True, "faces": "mtcnn", "face_margin": 0.3},
        counts={"rows": len(manifest.rows), "clips": len(manifest.rows), "rejects": 0, "shards": len(files)},
        versions={},
        parent=manifest.meta.digest,
        files=files,
        extra={"face_device": "cpu"},
    )
    boxes.write_meta(uri, meta)
    return meta


def _sequence(row: Mapping[str, Any], random: np.random.Generator, frames: int, signal: float) -> dict[str, Any]:
    """A row of SEQUENCE_SCHEMA for a row of a manifest."""
    blocks = random.integers(40, 140, (frames, 3, 14, 14), dtype=np.uint8)
    video = blocks.repeat(FRAME_SIZE // 14, axis=2).repeat(FRAME_SIZE // 14, axis=3)
    filter_banks = random.normal(10, 2, (frames, STACKED_BANKS)).astype(np.float32)
    if row["category"] in "CD":
        video[:, :, 28:84, 28:84] += np.uint8(80 * signal)
    if row["category"] in "BD":
        filter_banks[:, : STACKED_BANKS // 4] += np.float32(3 * signal)
    arrays = {"num_frames": frames, "video": video.tobytes(), "filter_banks": filter_banks.tobytes()}
    return {name: row[name] for name in LABEL_COLUMNS} | arrays | _MEASURED | {"duration_s": frames / 25}
