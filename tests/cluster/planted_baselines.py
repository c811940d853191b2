"""Directories of baseline runs as `stgs baseline` leaves them, with scores that are drawn, not measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.evaluation import MIXED
from cluster.evaluation_metrics import TestClips, score_metrics, wrong_clips
from cluster.runs import open_run
from data_prep import boxes, storage

SEED, RESAMPLES = 0, 40
# Of the sequences that a planted run names.
DIGEST = "c"
COLUMNS = ("clip_id", "label", "category", "dataset", "subject", "method")


def clips_of_test(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The test clips of a manifest, as scores.parquet has them."""
    return [{name: row[name] for name in COLUMNS} for row in rows if row["split"] == "test"]


def clips(subjects: int, *, first: int = 0, dataset: str = "planted") -> list[dict[str, Any]]:
    """Test clips of their own: one of each category for each subject."""
    return [
        {
            "clip_id": f"clip-{subject:03d}-{category}",
            "label": int(category != "A"),
            "category": category,
            "dataset": dataset,
            "subject": f"subject-{subject:03d}",
            "method": "real" if category == "A" else f"method-{category}",
        }
        for subject in range(first, first + subjects)
        for category in "ABCD"
    ]


def drawn_scores(rows: Sequence[Mapping[str, Any]], *, strength: float, seed: int = 0) -> list[float]:
    """P(fake) in (0, 1): normal noise, shifted by `strength` for fakes."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal(len(rows)) + strength * np.array([row["label"] - 0.5 for row in rows])
    return [float(value) for value in 1 / (1 + np.exp(-logits))]


def plant_baseline(
    out: str,
    *,
    model: str = "mrdf_ce",
    parts: Sequence[str] = (),
    shuffles: int = 0,
    protocol: str = "folds",
    sequences: str = "/s",
    **settings: Any,
) -> str:
    """A baseline run that has no part yet; returns its URI. parts: of its protocol; none: the manifest's own split.

    settings: what its config.yaml says besides.
    """
    config = {"kind": "baseline", "model": model, "baseline": {"layers": 0, "width": 48}, "training": {"epochs": 4}}
    config |= {"shuffles": shuffles, "device": "cpu", "corpus_digest": DIGEST, **settings}
    if parts:
        config["protocol"] = {"protocol": protocol, "split_seed": 0, "parts": {name: {} for name in parts}}
    return open_run(out, config, resume=False, hints={"sequences": sequences, "manifest": "/m"})


def plant_sequences(uri: str, *, digest: str = DIGEST, max_seconds: float = 1.0) -> str:
    """What a report reads of a box of sequences: settings, and an audit with a shortcut; returns its URI."""
    result = {"auc": 0.9, "low": 0.8, "high": 1.0, "null_error": 0.05, "least_subjects": 9}
    audit = {
        "digest": digest, "clips": 48, "subjects": 12, "tests": 4, "skipped": {},
        "facts": {"duration_s": dict.fromkeys(("all", "B", "C", "D"), result)},
        "shortcuts": ["SHORTCUT: the duration alone tells all fakes from real clips."],
    }  # fmt: skip
    meta = {"digest": digest, "config": {"max_seconds": max_seconds, "faces": "none", "min_face_share": 0.75}}
    storage.write(storage.join(uri, "meta.json"), json.dumps(meta).encode())
    storage.write(storage.join(uri, "audit.json"), json.dumps(audit).encode())
    return uri


def plant_part(
    out: str,
    part: str,
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    *,
    splits: str = "splits",
    shuffle_seed: int | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """A finished part with its scores, metrics and curves; returns its metrics. facts: what they say otherwise."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in COLUMNS}
    table = pa.table({**columns, "method": pa.array(columns["method"], pa.string()), "score": list(scores)})
    data, folder = boxes.table_bytes(table), storage.join(out, "parts", part)
    names = sorted(set(columns["dataset"]))
    datasets = {}
    for name in [*names, *([MIXED] if len(names) > 1 else [])]:
        kept = [index for index, row in enumerate(rows) if name in (MIXED, row["dataset"])]
        datasets[name] = _dataset(table.take(kept))
    content = {
        "version": 1, "kind": "baseline", "model": "mrdf_ce", "part": part, "shuffle_seed": shuffle_seed,
        "config": {"layers": 0, "width": 48}, "training": {"epochs": 4}, "parameters": 105_021_806,
        "macs": 21_000_000_000, "frames_of_macs": 75, "device": "cpu", "device_seconds": 90.0, "workers": 1,
        "dev_auc": 0.91, "best_epoch": 3, "epochs": 4, "threshold": 0.5,
        "weights": {"initial": "random", "checkpoint": None}, "datasets": datasets,
        "digests": {"corpus": DIGEST, "splits": splits, "network": "n", "scores": hashlib.sha256(data).hexdigest()},
    }  # fmt: skip
    content |= facts
    curves = [
        {"epoch": epoch, "loss": 2.0 / epoch, "clip": 1.0 / epoch, "dev_loss": 1.0 + 0.1 * epoch, "dev_auc": 0.8}
        | {"learning_rate": 1e-3, "seconds": 1.0}
        for epoch in range(1, 5)
    ]
    storage.write(storage.join(folder, "scores.parquet"), data)
    storage.write(storage.join(folder, "curves.parquet"), boxes.table_bytes(pa.Table.from_pylist(curves)))
    storage.write(storage.join(folder, "metrics.json"), json.dumps(content).encode())
    return content


def _dataset(table: pa.Table) -> dict[str, Any]:
    test = TestClips.of(table, seed=SEED, resamples=RESAMPLES)
    scores = table["score"].to_numpy()
    return {
        "clips": len(test.labels),
        "fake": int(test.labels.sum()),
        "subjects": test.subjects,
        "bootstrap": {"seed": SEED, "resamples": RESAMPLES},
        "network": score_metrics(scores, test, 0.5),
        "wrong": wrong_clips(scores, test, 0.5),
    }
