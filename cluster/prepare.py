"""Manifest -> corpus, on Ray Data: face crops and spectrograms of every clip, or the reason why there are none."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from cluster import shards
from data_prep import boxes, storage
from data_prep.boxes import SHARD_CLIPS, Meta, shard_name
from data_prep.clip import CORPUS_SCHEMA, REJECT_SCHEMA, ClipPreparer, PrepareConfig, Reject
from data_prep.manifest import read_manifest
from data_prep.storage import InputError

REJECTS = "rejects"
_PACKAGES = ("av", "facenet-pytorch", "librosa", "numpy", "pyarrow", "torch")


def prepare(
    manifest_uri: str, out: str, config: PrepareConfig, *, actors: int | None = None, progress: bool = True
) -> Meta:
    """Prepare every clip of a manifest into the corpus `out`, and return its meta.json.

    Needs a connection (`cluster.session.connect`). actors: processes, each with a CPU and a face detector; None: one
    per CPU. Shards that stand are kept, so a stopped run goes on where it stopped; a complete corpus is returned as it
    is. counts: rows, clips, rejects, shards, category.<A..D> of the clips, reject.<reason>.

    Raises InputError if the manifest is none, or if `out` was begun from another manifest or with another config.
    """
    manifest = read_manifest(manifest_uri)
    out = storage.absolute(out)
    boxes.begin(out, boxes.CORPUS, asdict(config), manifest.meta.digest, resume=True)
    if storage.exists(storage.join(out, boxes.META_NAME)):
        return boxes.read_meta(out, boxes.CORPUS)
    starts = range(0, len(manifest.rows), SHARD_CLIPS)
    work = [
        {"name": shard_name(index), "rows": manifest.rows[start : start + SHARD_CLIPS]}
        for index, start in enumerate(starts)
    ]
    results = shards.run(
        PrepareWorker,
        {"out": out, "roots": manifest.roots, "config": config},
        work,
        clips=len(manifest.rows),
        title="prepare",
        actors=actors,
        progress=progress,
    )
    counts: Counter[str] = Counter(rows=len(manifest.rows), shards=len(work), clips=0, rejects=0)
    for result in results:
        counts.update(result["counts"])
    if counts["rows"] != counts["clips"] + counts["rejects"]:
        raise RuntimeError(
            f"{out}: {counts['rows']} rows became {counts['clips']} clips and {counts['rejects']} rejects"
        )
    meta = Meta(
        kind=boxes.CORPUS,
        config=asdict(config),
        counts=dict(counts),
        versions=shards.versions(_PACKAGES),
        parent=manifest.meta.digest,
        files={name: digest for result in results for name, digest in result["files"].items()},
    )
    boxes.write_meta(out, meta)
    return boxes.read_meta(out, boxes.CORPUS)


class PrepareWorker(shards.ShardWorker):
    """Holds one face detector, from its first clip on; makes one shard at a time."""

    def __init__(self, out: str, roots: dict[str, str], config: PrepareConfig) -> None:
        self.out = out
        self.roots = roots
        self.config = config

    @functools.cached_property
    def _prepare_clip(self) -> ClipPreparer:
        """Loaded when it is needed, which it is not where all shards stand."""
        if self.config.faces != "none":
            # Bits depend on the number of threads, and a process per CPU needs no more than one.
            import torch

            torch.set_num_threads(1)
        return ClipPreparer(self.config)

    def work(self, shard: shards.Shard) -> Iterator[int | shards.Result]:
        """Write a shard's rejects, then its part, whose presence commits both."""
        part, rejects = shard["name"], f"{REJECTS}/{shard['name']}"
        if storage.exists(storage.join(self.out, part)) and storage.exists(storage.join(self.out, rejects)):
            yield len(shard["rows"])
            yield self._standing(shard, part, rejects)
            return
        rows: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        for row in shard["rows"]:
            made = self._prepare_clip(row, self.roots)
            if isinstance(made, Reject):
                refused.append(asdict(made))
            else:
                rows.append(made)
            yield 1
        tables = {
            rejects: pa.Table.from_pylist(refused, schema=REJECT_SCHEMA),
            part: boxes.table_from_rows(rows, CORPUS_SCHEMA(self.config)),
        }
        files = {name: storage.write(storage.join(self.out, name), boxes.table_bytes(tables[name])) for name in tables}
        yield self._result(shard, files, tables[part], tables[rejects])

    def _standing(self, shard: shards.Shard, part: str, rejects: str) -> shards.Result:
        """The result of a shard that an earlier run wrote."""
        uris = {name: storage.join(self.out, name) for name in (part, rejects)}
        files = {name: hashlib.sha256(storage.read(uri)).hexdigest() for name, uri in uris.items()}
        clips = boxes.read_table(uris[part], ["clip_id", "category"])
        refused = boxes.read_table(uris[rejects], ["clip_id", "reason"])
        found = clips["clip_id"].to_pylist() + refused["clip_id"].to_pylist()
        if sorted(found) != [row["clip_id"] for row in shard["rows"]]:
            raise InputError(f"{uris[part]} holds other clips than the manifest has there; delete it and run again.")
        return self._result(shard, files, clips, refused)

    def _result(self, shard: shards.Shard, files: dict[str, str], clips: pa.Table, refused: pa.Table) -> shards.Result:
        counts = Counter(clips=clips.num_rows, rejects=refused.num_rows)
        counts.update(f"category.{category}" for category in clips["category"].to_pylist())
        counts.update(f"reject.{reason}" for reason in refused["reason"].to_pylist())
        return {"position": shard["position"], "files": files, "counts": counts}
