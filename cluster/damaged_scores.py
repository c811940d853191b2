"""Clips prepared again, damaged, and scored with one network, by actors on Ray Data: of a clip only scores are kept."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster import shards
from cluster.network_files import read_network
from cluster.network_scores import NetworkScorer, p_fake
from cluster.scoring import backbones_of, prepare_config_of
from data_prep import boxes, storage
from data_prep.clip import ClipPreparer, Reject, RejectReason
from data_prep.damages import DAMAGES, damage_to
from data_prep.faces import FaceDetector, Faces, MtcnnDetector
from data_prep.manifest import Row
from data_prep.storage import InputError
from stgs.backbones import FeatureExtractor

UNDAMAGED = "none"
SCORES_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("damage", pa.string(), nullable=False),
        pa.field("severity", pa.int32(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
"""A part: P(fake) of a clip with a damage (`none` of severity 0: as it is), or the reason why it was refused."""


def steps_of(names: Sequence[str]) -> list[tuple[str, int]]:
    """(damage, severity) in the order of the work, the undamaged clip first.

    Those of the sound come before those of the picture, so that faces are looked for once for all of them.
    """
    order = sorted(names, key=lambda name: DAMAGES[name].sense == "visual")
    return [(UNDAMAGED, 0), *((name, severity) for name in order for severity in DAMAGES[name].values)]


class DamagedScorer(shards.ShardWorker):
    """Holds one network with its backbones, and a face detector.

    network: file. names: of damages. device: `cpu` or `cuda`, of detector and backbones. threads: of the backbones on a
    CPU. A shard: `target` (file to write) and `rows` (of the manifest).
    """

    def __init__(self, network: str, roots: Mapping[str, str], names: Sequence[str], device: str, threads: int) -> None:
        self.network = network
        self.roots = roots
        self.steps = steps_of(names)
        self.device = device
        self.threads = threads

    @functools.cached_property
    def _tools(self) -> tuple[ClipPreparer, _SenseFeatures, NetworkScorer]:
        """Loaded with the first clip: a constructor's error has no sentence."""
        stored = read_network(self.network)
        config = prepare_config_of(stored)
        detector: FaceDetector | None = None
        if config.faces == "mtcnn":
            found = MtcnnDetector(
                max_side=config.detect_max_side, min_face_size=config.min_face_size, device=self.device
            )
            detector = _RememberingDetector(found)
        features = _SenseFeatures(FeatureExtractor(backbones_of(stored)).eval().to(self.device), self.threads)
        return ClipPreparer(config, detector=detector), features, NetworkScorer(stored)

    def work(self, shard: shards.Shard) -> Iterator[int | shards.Result]:
        """Write a shard's scores, whose presence commits it."""
        if not storage.exists(shard["target"]):
            # As prepare's actors have it: the last bits of boxes depend on the number of threads.
            torch.set_num_threads(1)
            scores: list[dict[str, Any]] = []
            for row in shard["rows"]:
                scores += [self._score(row, name, severity) for name, severity in self.steps]
                yield 1
            storage.write(shard["target"], boxes.table_bytes(pa.Table.from_pylist(scores, schema=SCORES_SCHEMA)))
        else:
            yield len(shard["rows"])
        yield {"position": shard["position"]}

    def _score(self, row: Row, name: str, severity: int) -> dict[str, Any]:
        preparer, features, scorer = self._tools
        damage = None if name == UNDAMAGED else damage_to(row["clip_id"], name, severity)
        made = preparer(row, self.roots, damage)
        scored = {"clip_id": row["clip_id"], "damage": name, "severity": severity, "score": None, "reason": None}
        if not isinstance(made, Reject):
            logits = scorer.logits(features(made["frames"], made["spectrogram"]))
            return scored | {"score": float(p_fake(logits)[0])}
        if damage is None and made.reason is RejectReason.MISSING:
            raise InputError(
                f"{row['video_path']} is not there any more ({made.detail}); bring the clips back to where the "
                "manifest says, or give a --manifest with other roots."
            )
        return scored | {"reason": str(made.reason)}


class _RememberingDetector:
    """A face detector that looks at the same frames once, where they come twice in a row."""

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._frames: np.ndarray | None = None
        self._found: list[Faces] = []

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        if self._frames is None or not np.array_equal(frames, self._frames):
            self._frames, self._found = frames, self._detector(frames)
        return self._found


class _SenseFeatures:
    """Features of one clip after another; those of a sense are kept for the next clip, if it looks or sounds alike."""

    def __init__(self, extractor: FeatureExtractor, threads: int) -> None:
        self._makers = (extractor.visual_features, extractor.audio_features)
        self._device = extractor.image_mean.device
        self._threads = threads
        self._kept: dict[int, tuple[np.ndarray, dict[str, np.ndarray]]] = {}

    def __call__(self, frames: np.ndarray, spectrogram: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> float16 [1, C, L] or [1, C], of frames [T, 3, H, W] and a spectrogram [S, F]."""
        return self._of_sense(0, frames) | self._of_sense(1, spectrogram)

    def _of_sense(self, sense: int, values: np.ndarray) -> dict[str, np.ndarray]:
        kept = self._kept.get(sense)
        if kept is None or not np.array_equal(values, kept[0]):
            torch.set_num_threads(self._threads)
            made = self._makers[sense](torch.from_numpy(values[None]).to(self._device))
            torch.set_num_threads(1)
            kept = self._kept[sense] = values, {name: tensor.cpu().numpy() for name, tensor in made.items()}
        return kept[1]
