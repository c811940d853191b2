"""A small corpus box with a manifest, without any video: for tests of what reads frames and spectrograms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.finetune import BackboneOptions, CorpusSource, open_corpus
from data_prep import boxes, storage
from data_prep.manifest import write_manifest
from stgs.backbone_trainer import FinetuneConfig

FRAMES, SIZE, SPECTROGRAM = 8, 32, (64, 33)
LABEL_COLUMNS = ("clip_id", "label", "category", "dataset", "subject", "target", "method", "augmentation")
OPTIONS = BackboneOptions(
    visual="resnet18",
    audio="resnet18",
    visual_weights="random:0",
    audio_weights="random:1",
    taps=("layer2", "pooled"),
)


def make_corpus(folder: Path, *, shards: int = 3, clips: int = 8) -> tuple[str, str]:
    """Write `folder`/corpus and `folder`/manifest; returns their paths.

    `shards` parts of `clips` clips of noise, of all four categories. In each part the first half is train, then come
    dev and one clip of test.
    """
    random = np.random.default_rng(0)
    rows, files = [], {}
    corpus = folder / "corpus"
    for part in range(shards):
        own = []
        for number in range(clips):
            category = "ABCD"[number % 4]
            split = "train" if number < clips // 2 else "test" if number == clips - 1 else "dev"
            own.append(
                {
                    "clip_id": f"clip-{part:02d}-{number:02d}",
                    "video_path": f"demo/{category}/{part}-{number}.mp4",
                    "audio_path": None,
                    "label": int(category != "A"),
                    "category": category,
                    "dataset": "noise",
                    "subject": f"subject-{part}",
                    "target": None,
                    "method": "noise",
                    "race": None,
                    "gender": None,
                    "split": split,
                    "fold": None,
                    "augmentation": None,
                    "parent_clip_id": None,
                }
            )
        rows += own
        frames = random.integers(0, 256, (clips, FRAMES, 3, SIZE, SIZE), dtype=np.uint8)
        spectrogram = random.random((clips, *SPECTROGRAM), dtype=np.float32)
        table = pa.table({name: [row[name] for row in own] for name in LABEL_COLUMNS})
        for name, values in (("frames", frames), ("spectrogram", spectrogram)):
            table = table.append_column(name, boxes.tensor_array(values))
        name = boxes.shard_name(part)
        files[name] = storage.write(str(corpus / name), boxes.table_bytes(table))
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(str(folder / "manifest"), rows, {"demo": str(folder / "clips")}, {"noise": True})
    boxes.write_meta(
        str(corpus),
        boxes.Meta(
            kind=boxes.CORPUS,
            config={"num_frames": FRAMES, "frame_size": SIZE, "spectrogram_frames": SPECTROGRAM[0]},
            counts={"clips": shards * clips, "shards": shards},
            versions={},
            parent=manifest.digest,
            files=files,
        ),
    )
    return str(corpus), str(folder / "manifest")


def corpus_source(folder: Path, shards: int = 3, options: BackboneOptions = OPTIONS, **changes: Any) -> CorpusSource:
    """The corpus of `make_corpus` with small untrained backbones; changes: of how they are trained."""
    finetune = FinetuneConfig(**{"micro_batch": 2, "shuffle_clips": 4, **changes})
    return open_corpus(*make_corpus(folder, shards=shards), options, finetune)
