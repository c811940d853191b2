"""The files of one part of a baseline's run: its state while it trains, then weights, scores and what they say.

metrics.json is created last and exclusively, and commits the part: test is read once.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.baseline_names import KIND
from cluster.baseline_streams import CLIP_COLUMNS, SequenceIndex, SequenceShards
from cluster.baseline_weights import WeightsFile, weights_facts
from cluster.board import Key
from cluster.evaluation import METRICS_NAME, MIXED, SCORES_NAME
from cluster.evaluation_metrics import TestClips, score_metrics, wrong_clips
from cluster.found_loop import loaded_state
from cluster.runs import part_uri
from data_prep import boxes, storage
from stgs.baselines.base import Baseline, BaselineConfig
from stgs.baselines.cost import macs
from stgs.baselines.training import BaselineTrainingConfig
from stgs.parallel import Workers
from stgs.resampling import Floats

VERSION = 1
STATE_NAME, CURVES_NAME, NETWORK_NAME, FAILED_NAME = "state.pt", "curves.parquet", "network.safetensors", "failed.json"
ATTEMPTS_NAME = "attempts.json"
# Frames of the clip whose cost is told: 3 s.
FRAMES_OF_MACS = 75
BOOTSTRAP = {"seed": 0, "resamples": 2000}


@dataclass(frozen=True, kw_only=True, slots=True)
class PartJob:
    """What the workers of one part need.

    run: URI. part: its name. model: of `stgs.baselines.BASELINES`. corpus, files: URI of the sequences, and sha256 of
    their parts. splits: where the clips of train, dev and test lie; train only where it is trained. digests: `corpus`
    and `splits`. shuffle_seed: what permuted the categories of train and dev; None: as they are. weights: the file that
    it starts from, or that is scored. device: `cpu` or `cuda`. threads: of each worker. session: the driver's.
    save_seconds: between two states, at least. patience_s: seconds for which storage may be silent.
    """

    run: str
    part: str
    model: str
    baseline: BaselineConfig
    training: BaselineTrainingConfig
    corpus: str
    files: Mapping[str, str]
    splits: Mapping[str, SequenceIndex]
    digests: Mapping[str, str]
    shuffle_seed: int | None
    weights: WeightsFile | None
    device: str
    threads: int
    session: str
    save_seconds: float = 60.0
    patience_s: float = 300.0

    @property
    def key(self) -> Key:
        """On the board."""
        return (self.run, self.part)

    @property
    def is_trained(self) -> bool:
        """Whether it is trained at all; a checkpoint is scored as it is."""
        return self.weights is None or not self.weights.is_checkpoint

    @property
    def epochs(self) -> int:
        """Epochs to run, at most."""
        return self.training.epochs if self.is_trained else 0

    def uri(self, name: str) -> str:
        """A file of the part."""
        return storage.join(part_uri(self.run, self.part), name)

    def stream(self, split: str, workers: Workers) -> SequenceShards:
        """The clips of a split, as this worker gets them."""
        return SequenceShards(
            split,
            self.splits[split],
            corpus=self.corpus,
            files=self.files,
            batch_size=self.training.batch_size,
            data_seed=self.training.data_seed,
            shuffle_clips=self.training.shuffle_clips,
            workers=workers,
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training, before test is read. rows: one of each epoch. seconds: of device time, all workers.

    network: sha256 of the file of the weights.
    """

    dev_auc: float
    best_epoch: int
    threshold: float
    rows: Sequence[Mapping[str, Any]]
    seconds: float
    network: str


def is_finished(run: str, part: str) -> bool:
    """Whether the part has its result, so that it is neither trained nor tested again."""
    return storage.exists(storage.join(part_uri(run, part), METRICS_NAME))


def save_state(job: PartJob, training: Mapping[str, Any], seconds: float) -> None:
    """Write the state of the part's training. seconds: device time that it took so far."""
    buffer = io.BytesIO()
    torch.save({"training": training, "seconds": seconds}, buffer)
    storage.write(job.uri(STATE_NAME), buffer.getvalue())


def read_state(job: PartJob) -> tuple[str, dict[str, Any]] | None:
    """sha256 and content (`training`, `seconds`) of the state that stands; None if there is none that can be read."""
    try:
        data = storage.read(job.uri(STATE_NAME))
    except FileNotFoundError:
        return None
    state = loaded_state(data)
    return None if state is None else (hashlib.sha256(data).hexdigest(), state)


def write_curves(job: PartJob, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of the epochs; nothing before the first."""
    if rows:
        storage.write(job.uri(CURVES_NAME), boxes.table_bytes(pa.Table.from_pylist([dict(row) for row in rows])))


def write_network(job: PartJob, weights: Mapping[str, Tensor]) -> str | None:
    """Write the weights of the best epoch. Returns the file's sha256; None, and nothing is written, where the part has
    its result, of another driver, which tells the digest of that one's weights.
    """
    facts = {"version": VERSION, "kind": KIND, "model": job.model, "part": job.part, "config": asdict(job.baseline)}
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    data = safetensors.torch.save(whole, {"stgs": json.dumps(facts)})
    if is_finished(job.run, job.part):
        return None
    return storage.write(job.uri(NETWORK_NAME), data)


def write_failure(job: PartJob, reason: str) -> None:
    """Say why a part has no result; a later attempt may have one."""
    storage.write(job.uri(FAILED_NAME), json.dumps({"reason": reason}).encode())


def commit(job: PartJob, model: Baseline, trained: Trained, scores: NDArray[Any], workers: int) -> None:
    """Write the scores of the test clips, [N], and what they say; the part is finished then. A result that stands
    stays. workers: that have trained it.
    """
    test = job.splits["test"]
    table = pa.table({name: list(test.clips[name]) for name in CLIP_COLUMNS} | {"score": scores})
    table = table.set_column(1, "label", table["label"].cast(pa.int8()))
    data = boxes.table_bytes(table)
    content = {
        "version": VERSION,
        "kind": KIND,
        "model": job.model,
        "part": job.part,
        "shuffle_seed": job.shuffle_seed,
        "config": asdict(job.baseline),
        "training": asdict(job.training),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": macs(model, FRAMES_OF_MACS),
        "frames_of_macs": FRAMES_OF_MACS,
        "device": job.device,
        "device_seconds": trained.seconds,
        "workers": workers,
        "dev_auc": trained.dev_auc,
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.rows),
        "threshold": trained.threshold,
        "weights": weights_facts(job.weights, with_place=True),
        "digests": {**job.digests, "network": trained.network, "scores": hashlib.sha256(data).hexdigest()},
        "datasets": measure_datasets(table, trained.threshold),
    }
    if is_finished(job.run, job.part):  # by another driver, whose scores are none to overwrite
        return
    storage.write(job.uri(SCORES_NAME), data)
    try:
        storage.create(job.uri(METRICS_NAME), json.dumps(content, indent=1, allow_nan=False).encode())
    except FileExistsError:
        return
    if storage.read(job.uri(SCORES_NAME)) != data:  # by another driver, which found these metrics then
        storage.write(job.uri(SCORES_NAME), data)
    for leftover in (STATE_NAME, FAILED_NAME, ATTEMPTS_NAME):
        if storage.exists(job.uri(leftover)):
            storage.delete(job.uri(leftover))


def measure_datasets(table: pa.Table, threshold: float) -> dict[str, dict[str, Any]]:
    """What the scores of each data set say, and, where there are several, of all together.

    table: of scores.parquet.
    """
    names = sorted(set(table["dataset"].to_pylist()))
    found = {}
    for name in [*names, MIXED] if len(names) > 1 else names:
        rows = table if name == MIXED else table.filter(pa.compute.equal(table["dataset"], name))
        test = TestClips.of(rows, **BOOTSTRAP)
        scores: Floats = rows["score"].to_numpy()
        found[name] = {
            "clips": len(test.labels),
            "fake": int(test.labels.sum()),
            "subjects": test.subjects,
            "bootstrap": BOOTSTRAP,
            "network": score_metrics(scores, test, threshold),
            "wrong": wrong_clips(scores, test, threshold),
        }
    return found
