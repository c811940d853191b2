"""Manifest -> corpus or sequences, on Ray Data: what is seen and heard of every clip, or the reason why there is none.

Both kinds are made alike, and a configuration tells which: a corpus has a window of each clip, with face crops and
spectrogram, sequences have all of it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from cluster import shards
from cluster.devices import device_memory
from data_prep import boxes, storage
from data_prep.boxes import SHARD_CLIPS, Meta, shard_name
from data_prep.clip import CORPUS_SCHEMA, REJECT_SCHEMA, ClipPreparer, PrepareConfig, Reject
from data_prep.faces import FaceDetector, MtcnnDetector
from data_prep.manifest import Row, read_manifest
from data_prep.sequence import SEQUENCE_CLIPS, SEQUENCE_SCHEMA, SequenceConfig
from data_prep.sequence_preparer import SequencePreparer
from data_prep.storage import InputError

REJECTS = "rejects"
FACE_DEVICES = ("auto", "cpu", "cuda")
_PACKAGES = (
    "audiomentations", "av", "facenet-pytorch", "librosa", "numpy", "pyarrow", "pyroomacoustics", "scipy", "soxr",
    "torch", "torchvision",
)  # fmt: skip
Config = PrepareConfig | SequenceConfig
# What an actor takes of a GPU: its CUDA context with the libraries, and MTCNN on the frames of one clip.
_GPU_BYTES_PER_ACTOR = 2**30


def prepare(
    manifest_uri: str,
    out: str,
    config: Config,
    *,
    actors: int | None = None,
    face_device: str = "auto",
    progress: bool = True,
) -> Meta:
    """Prepare every clip of a manifest into the corpus or the sequences `out`, and return its meta.json.

    Needs a connection (`cluster.session.connect`). config: of the kind that is wanted. actors: processes, each with a
    CPU and a face detector; None: as many as the cluster has room for. face_device: `cuda` looks for faces on GPUs,
    which actors share, `auto` does so where every machine with CPUs has one, so that none stays idle; boxes and scores
    differ between devices in their last bits. Shards that stand are kept, so a stopped run goes on where it stopped; a
    complete box is returned as it is. counts: rows, clips, rejects, shards, category.<A..D> of the clips,
    reject.<reason>. extra: face_device (cpu or cuda; null without a detector).

    Raises InputError if the manifest is none, if `out` was begun from another manifest, with another config or on
    another face_device, or if there is no CUDA where `cuda` was asked for; RuntimeError if a row was lost.
    """
    device = _resolved_device(face_device, config)
    manifest = read_manifest(manifest_uri)
    out = storage.absolute(out)
    how = {"face_device": device}
    kind, shard_clips = kind_of(config), _shard_clips(config)
    boxes.begin(out, kind, asdict(config) | how, manifest.meta.digest, resume=True)
    if storage.exists(storage.join(out, boxes.META_NAME)):
        return boxes.read_meta(out, kind)
    starts = range(0, len(manifest.rows), shard_clips)
    work = [
        {"name": shard_name(index), "rows": manifest.rows[start : start + shard_clips]}
        for index, start in enumerate(starts)
    ]
    results = shards.run(
        PrepareWorker,
        {"out": out, "roots": manifest.roots, "config": config, "face_device": device},
        work,
        clips=len(manifest.rows),
        title="prepare",
        actors=actors,
        num_gpus=gpu_share() if device == "cuda" else 0,
        progress=progress,
        way_out="give --face-device cpu" if device == "cuda" else "add a machine",
    )
    counts: Counter[str] = Counter(rows=len(manifest.rows), shards=len(work), clips=0, rejects=0)
    for result in results:
        counts.update(result["counts"])
    if counts["rows"] != counts["clips"] + counts["rejects"]:
        raise RuntimeError(
            f"{out}: {counts['rows']} rows became {counts['clips']} clips and {counts['rejects']} rejects"
        )
    meta = Meta(
        kind=kind,
        config=asdict(config),
        counts=dict(counts),
        versions=shards.versions(_PACKAGES),
        parent=manifest.meta.digest,
        files={name: digest for result in results for name, digest in result["files"].items()},
        extra=how,
    )
    boxes.write_meta(out, meta)
    return boxes.read_meta(out, kind)


def kind_of(config: Config) -> str:
    """The kind of box that `config` makes."""
    return boxes.SEQUENCES if isinstance(config, SequenceConfig) else boxes.CORPUS


def _shard_clips(config: Config) -> int:
    return SEQUENCE_CLIPS if isinstance(config, SequenceConfig) else SHARD_CLIPS


def _preparer(
    config: Config, detector: FaceDetector | None
) -> Callable[[Row, dict[str, str]], dict[str, Any] | Reject]:
    """What makes a row of the box, or a reject, of a row of the manifest."""
    if isinstance(config, SequenceConfig):
        return SequencePreparer(config, detector=detector)
    return ClipPreparer(config, detector=detector)


def _schema(config: Config) -> pa.Schema:
    return SEQUENCE_SCHEMA if isinstance(config, SequenceConfig) else CORPUS_SCHEMA(config)


def _resolved_device(wanted: str, config: Config) -> str | None:
    """`cpu` or `cuda`; None where no faces are looked for."""
    if wanted not in FACE_DEVICES:
        raise InputError(f"face_device is {wanted!r}; choose from {', '.join(FACE_DEVICES)}.")
    if config.faces == "none":
        return None
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    if wanted == "cuda" and not has_gpu:
        raise InputError("face_device is 'cuda', but the cluster has no GPU; give --face-device cpu.")
    if wanted == "auto" and has_gpu:
        return _automatic_device()
    return "cuda" if wanted == "cuda" else "cpu"


def _automatic_device() -> str:
    """`cuda` if every machine with CPUs has a GPU: decoding keeps the CPUs busy, and those of others would be idle."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    without = sum(machine.get("GPU", 0) < 1 for machine in machines)
    if not without:
        return "cuda"
    print(
        f"Faces are looked for on CPUs, because {without} of {len(machines)} machines with CPUs have no GPU; "
        "--face-device cuda uses the machines with GPUs alone.",
        file=sys.stderr,
    )
    return "cpu"


def gpu_share() -> float:
    """What each actor reserves of a GPU: all CPUs get an actor if the smallest GPU has memory for as many."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
    wanted = max(math.ceil(node.get("CPU", 0) / int(node["GPU"])) for node in nodes)
    room = (device_memory("cuda") or 0) // _GPU_BYTES_PER_ACTOR
    # Rounded down to Ray's smallest share, or seven times a seventh would be more than the whole.
    return math.floor(1e4 / max(1, min(wanted, room))) / 1e4


class PrepareWorker(shards.ShardWorker):
    """Holds one face detector, from its first clip on; makes one shard at a time.

    face_device: where the detector runs, `cpu` or `cuda`; None: there is no detector.
    """

    def __init__(self, out: str, roots: dict[str, str], config: Config, face_device: str | None) -> None:
        self.out = out
        self.roots = roots
        self.config = config
        self.face_device = face_device

    @functools.cached_property
    def _prepare_clip(self) -> Callable[[Row, dict[str, str]], dict[str, Any] | Reject]:
        """Loaded when it is needed, which it is not where all shards stand."""
        if self.face_device is None:
            return _preparer(self.config, None)
        # Takes seconds to import, and only those who look for faces need it.
        import torch

        # Bits depend on the number of threads, and a process per CPU needs no more than one.
        torch.set_num_threads(1)
        if self.face_device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"face_device is 'cuda', but torch finds no CUDA on {platform.node()}; give --face-device cpu."
            )
        config = self.config
        detector = MtcnnDetector(
            max_side=config.detect_max_side, min_face_size=config.min_face_size, device=self.face_device
        )
        return _preparer(config, detector)

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
            part: boxes.table_from_rows(rows, _schema(self.config)),
        }
        rows.clear()  # the tables hold copies, and a shard has 100 MB and more
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
