"""Parts of a baseline's run on a small box of sequences, trained in this process without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import part_reader
from cluster.baseline_part import PartJob
from cluster.baseline_runs import BaselineSettings, plan_parts, split_by_protocol
from cluster.baseline_streams import open_sequences
from cluster.baseline_training import part_job
from cluster.baseline_worker_loop import PartWorker
from cluster.protocol_splits import ProtocolConfig
from cluster.stopping import Stop
from data_prep import storage
from stgs.baselines import BaselineConfig
from stgs.baselines.training import BaselineTrainingConfig
from stgs.parallel import SINGLE, Workers
from tests.tiny_sequences import make_sequences

SMALL = BaselineConfig(layers=0, width=48)
SHORT = BaselineTrainingConfig(epochs=2, batch_size=8, shuffle_clips=8, learning_rate=3e-3)
SETTINGS = BaselineSettings(model="mrdf_ce", baseline=SMALL, training=SHORT)


def read_here(reader: part_reader.RayReader, parts: Any) -> Iterator[Any]:
    """Stands for `RayReader.__call__`: parts are read in this process, not by Ray Data."""
    for position, (name, rows) in enumerate(parts):
        uri = storage.join(reader.corpus, name)
        item = {"part": [json.dumps([position, uri, reader.files[name], rows])]}
        yield part_reader._read_part(item, reader.columns, reader.check)


def make_jobs(folder: Path, settings: BaselineSettings = SETTINGS, **boxes: Any) -> list[PartJob]:
    """The parts of a run in `folder`/run under its manifest's splits. boxes: of `make_sequences`."""
    if not (folder / "sequences").exists():
        make_sequences(folder, **{"frames": (3, 5), **boxes})
    sequences = open_sequences(str(folder / "sequences"))
    split = split_by_protocol(str(folder / "manifest"), ProtocolConfig())
    return [
        replace(
            part_job(str(folder / "run"), settings, sequences, part, device="cpu", session="session"), save_seconds=1e9
        )
        for part in plan_parts(settings, sequences, split)
    ]


def elsewhere(job: PartJob, folder: Path) -> PartJob:
    """The same part of another run."""
    return replace(job, run=str(folder))


class Told:
    """What a worker has told; after `stop_after` questions it is asked to stop."""

    def __init__(self, stop_after: int = 9999) -> None:
        self.rows: list[dict[str, Any]] = []
        self.asked = 0
        self.stop_after = stop_after

    def stop(self) -> Stop | None:
        self.asked += 1
        return Stop("run", "SIGTERM") if self.asked > self.stop_after else None


def work(job: PartJob, told: Told | None = None, workers: Workers = SINGLE, arrays: Any = None) -> Stop | None:
    """One worker, in this process."""
    told = told or Told()
    return PartWorker(job, arrays, workers, report=told.rows.append, stop=told.stop).run()


def metrics(job: PartJob) -> dict[str, Any]:
    """What the part says, but the seconds."""
    content: dict[str, Any] = json.loads(storage.read(job.uri("metrics.json")))
    return {**content, "device_seconds": None}
