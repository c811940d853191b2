"""A small features box with a manifest, two of whose features carry the label: for tests of search and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep import boxes, storage
from data_prep.manifest import write_manifest

FEATURES = {
    **{f"visual.{tap}": 8 for tap in ("layer2", "layer3", "pooled")},
    **{f"audio.{tap}": 8 for tap in ("layer2", "layer3", "pooled")},
}
INFORMATIVE = {"visual.layer3": "CD", "audio.layer2": "BD"}
LENGTH = 4
SPLIT_SUBJECTS = {"train": 24, "dev": 12, "test": 12}


def make_features(
    folder: Path,
    *,
    strength: float = 1.5,
    seed: int = 0,
    subjects: Mapping[str, int] = SPLIT_SUBJECTS,
    change: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
) -> tuple[str, str]:
    """Write `folder`/features and `folder`/manifest; returns their paths.

    48 subjects, or `subjects` of each split, with a clip of each category. `visual.layer3` tells fake video (C, D) and
    `audio.layer2` fake sound (B, D) from real by a shift of `strength` standard deviations along one direction; the
    others are noise. change: given the manifest's rows, to say something else of the same clips.
    """
    random = np.random.default_rng(seed)
    splits = [split for split, count in subjects.items() for _ in range(count)]
    clips = [(subject, split, category) for subject, split in enumerate(splits) for category in "ABCD"]
    rows = [
        {
            "clip_id": f"clip-{subject:03d}-{category}",
            "video_path": f"demo/{category}/{subject:03d}.mp4",
            "audio_path": None,
            "label": int(category != "A"),
            "category": category,
            "dataset": "planted",
            "subject": f"subject-{subject:03d}",
            "target": None,
            "method": "planted",
            "race": None,
            "gender": None,
            "split": split,
            "fold": None,
            "augmentation": None,
            "parent_clip_id": None,
        }
        for subject, split, category in clips
    ]
    change(rows)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    manifest = str(folder / "manifest")
    manifest_meta = write_manifest(manifest, rows, {"demo": str(folder / "clips")}, {"planted": True})
    columns = {}
    for name, channels in FEATURES.items():
        shape = (channels,) if name.endswith(".pooled") else (channels, LENGTH)
        values = random.standard_normal((len(clips), *shape))
        if name in INFORMATIVE:
            direction = random.standard_normal(channels)
            direction /= np.linalg.norm(direction)
            fake = np.array([category in INFORMATIVE[name] for _, _, category in clips])
            values += strength * (2 * fake[:, None, None] - 1) * direction[None, :, None]
        columns[name] = values.astype(np.float16)
    names = ("clip_id", "label", "category", "dataset", "subject", "target", "method", "augmentation")
    table = pa.table({name: [row[name] for row in rows] for name in names})
    for name, values in columns.items():
        table = table.append_column(name, boxes.tensor_array(values))
    features = str(folder / "features")
    digest = storage.write(storage.join(features, boxes.shard_name(0)), boxes.table_bytes(table))
    boxes.write_meta(
        features,
        boxes.Meta(
            kind=boxes.FEATURES,
            config={"planted": True},
            counts={"clips": len(clips), "shards": 1},
            versions={},
            parent=None,
            files={boxes.shard_name(0): digest},
            extra={
                "features": FEATURES,
                "length": LENGTH,
                "weights": {},
                "corpus_config": {},
                "manifest": manifest_meta.digest,
            },
        ),
    )
    return features, manifest


def two_data_sets(rows: list[dict[str, Any]]) -> None:
    """A change for `make_features`: every other subject is of another data set; splits are none."""
    for row in rows:
        row["dataset"] = "east" if int(row["subject"][-1]) % 2 else "west"
        row["split"] = None
