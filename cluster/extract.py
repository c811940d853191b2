"""Corpus -> features, on Ray Data: actors that hold the frozen backbones read prepared clips and write their taps."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from cluster import shards
from cluster.audits import corpus_audit
from data_prep import boxes, storage
from data_prep.boxes import Meta
from data_prep.storage import InputError
from stgs.backbones import BackboneConfig, FeatureExtractor, fetch_weights, weights_digest

LABEL_COLUMNS = ("clip_id", "label", "category", "dataset", "subject", "target", "method", "augmentation")
DEVICES = ("auto", "cpu", "cuda")
_PACKAGES = ("numpy", "pyarrow", "torch", "torchvision")
# On CPU a batch never crosses clips, so that the same clip gives the same bytes in every company.
_CLIPS_PER_BATCH = {"cpu": 1, "cuda": 16}


def extract(
    corpus_uri: str,
    out: str,
    config: BackboneConfig,
    *,
    actors: int | None = None,
    threads: int = 1,
    device: str = "auto",
    progress: bool = True,
) -> Meta:
    """Run the backbones over every clip of a corpus into the features box `out`, and return its meta.json.

    Needs a connection (`cluster.session.connect`). actors: processes, each with its own copy of the backbones; None:
    as many as the cluster has room for. threads: of each actor; the bits depend on it. device: `cuda` gives each actor
    a GPU, `auto` does so where the cluster has one. Shards that stand are kept; complete features are returned as they
    are. extra: features (column -> channels, in column order), length, corpus_config, manifest (its digest), device,
    threads, weights and spectrogram_statistics (sha256 of those that come from a file), audit (the corpus's audit.json;
    null if it has none).

    Raises InputError if the corpus is none or was changed, or if `out` was begun from another corpus or config.
    """
    if device not in DEVICES:
        raise InputError(f"device is {device!r}; choose from {', '.join(DEVICES)}.")
    if threads < 1:
        raise InputError(f"threads is {threads}, but at least 1 is needed.")
    corpus_uri, out = storage.absolute(corpus_uri), storage.absolute(out)
    corpus = boxes.read_meta(corpus_uri, boxes.CORPUS)
    audit = corpus_audit(corpus_uri, corpus)
    if corpus.config["num_frames"] != config.length:
        raise InputError(
            f"{corpus_uri} has {corpus.config['num_frames']} frames a clip, but length is {config.length}; "
            "set length to that number, or prepare a corpus with as many frames."
        )
    config.check_spectrogram(corpus.config["spectrogram_frames"])
    if device == "auto":
        device = "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    config = absolute_paths(config)
    weights = {sense: weights_digest(getattr(config, f"{sense}_weights")) for sense in ("visual", "audio")}
    how = {"device": device, "threads": threads, "weights": weights}
    fetch_weights(config)
    boxes.begin(out, boxes.FEATURES, asdict(config) | how, corpus.digest, resume=True)
    if storage.exists(storage.join(out, boxes.META_NAME)):
        return boxes.read_meta(out, boxes.FEATURES)
    parts = sorted(name for name in corpus.files if "/" not in name)
    results = shards.run(
        ExtractWorker,
        {"corpus": corpus_uri, "out": out, "config": config, "device": device, "threads": threads},
        [{"name": name, "sha256": corpus.files[name]} for name in parts],
        clips=corpus.counts["clips"],
        title="extract",
        actors=actors,
        num_cpus=threads,
        num_gpus=1 if device == "cuda" else 0,
        progress=progress,
        way_out="ask for fewer threads" + (", or give --device cpu" if device == "cuda" else ""),
    )
    clips = sum(result["clips"] for result in results)
    if clips != corpus.counts["clips"]:
        raise RuntimeError(f"{out}: {corpus.counts['clips']} clips became {clips} rows of features")
    meta = Meta(
        kind=boxes.FEATURES,
        config=asdict(config),
        counts={"clips": clips, "shards": len(parts)},
        versions=shards.versions(_PACKAGES),
        parent=corpus.digest,
        files={result["name"]: result["sha256"] for result in results},
        extra={
            **how,
            "features": results[0]["features"],
            "length": config.length,
            "spectrogram_statistics": weights_digest(config.spectrogram_statistics),
            "corpus_config": corpus.config,
            "manifest": corpus.parent,
            "audit": audit,
        },
    )
    boxes.write_meta(out, meta)
    return boxes.read_meta(out, boxes.FEATURES)


def absolute_paths(config: BackboneConfig) -> BackboneConfig:
    """`config` with absolute paths, because Ray's workers run in another directory."""
    paths: dict[str, Any] = {
        name: str(Path(value).resolve())
        for name, value in asdict(config).items()
        if isinstance(value, str) and Path(value).is_file()
    }
    return replace(config, **paths)


class ExtractWorker(shards.ShardWorker):
    """Holds the backbones; makes one shard of features at a time."""

    def __init__(self, corpus: str, out: str, config: BackboneConfig, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.corpus = corpus
        self.out = out
        self.device = device
        self.length = config.length
        self.config = config

    @functools.cached_property
    def extractor(self) -> FeatureExtractor:
        """Loaded with the first shard: a constructor's error, of a damaged weights file, say, has no sentence."""
        return FeatureExtractor(self.config).to(self.device)

    def work(self, shard: shards.Shard) -> Iterator[int | shards.Result]:
        """Write the features of one part of the corpus under the same name."""
        name, target = shard["name"], storage.join(self.out, shard["name"])
        if storage.exists(target):
            standing = boxes.read_table(target, ["clip_id"])
            yield standing.num_rows
            yield self._result(shard, hashlib.sha256(storage.read(target)).hexdigest(), standing.num_rows)
            return
        source = storage.join(self.corpus, name)
        if hashlib.sha256(storage.read(source)).hexdigest() != shard["sha256"]:
            raise InputError(
                f"{source} was changed after it was written; delete it and {boxes.META_NAME}, and prepare."
            )
        corpus = boxes.read_table(source, [*LABEL_COLUMNS, "frames", "spectrogram"])
        frames, spectrogram = (boxes.column_to_numpy(corpus, column) for column in ("frames", "spectrogram"))
        labels = corpus.select(LABEL_COLUMNS).to_pylist()
        step = _CLIPS_PER_BATCH[self.device]
        rows: list[dict[str, Any]] = []
        for start in range(0, len(labels), step):
            batch = slice(start, start + step)
            rows += self._rows(labels[batch], frames[batch], spectrogram[batch])
            yield len(labels[batch])
        table = boxes.table_from_rows(rows, self._schema(corpus.schema))
        yield self._result(shard, storage.write(target, boxes.table_bytes(table)), table.num_rows)

    def _rows(
        self, labels: list[dict[str, Any]], frames: np.ndarray, spectrogram: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        """Labels, frames uint8 [N, L, 3, H, W] and spectrograms float32 [N, T, F] -> N rows of features."""
        # Copies, because torch takes no read-only arrays, and these are views of the file.
        inputs = (torch.from_numpy(array.copy()).to(self.device) for array in (frames, spectrogram))
        features = {name: values.cpu().numpy() for name, values in self.extractor(*inputs).items()}
        for position, row in enumerate(labels):
            yield row | {name: values[position] for name, values in features.items()}

    def _schema(self, corpus: pa.Schema) -> pa.Schema:
        """The label columns of the corpus, then float16 [C, L] per feature, [C] where it is pooled."""
        fields = [corpus.field(name) for name in LABEL_COLUMNS]
        for name, channels in self.extractor.features.items():
            shape = (channels,) if name.endswith(".pooled") else (channels, self.length)
            fields.append(pa.field(name, pa.fixed_shape_tensor(pa.float16(), shape)))
        return pa.schema(fields)

    def _result(self, shard: shards.Shard, sha256: str, clips: int) -> shards.Result:
        return {
            "position": shard["position"],
            "name": shard["name"],
            "sha256": sha256,
            "clips": clips,
            "features": dict(self.extractor.features),
        }
