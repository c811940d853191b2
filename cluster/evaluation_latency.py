"""How long the found network takes on this machine: evaluation/latency.json, which may be written anew at any time."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cluster.found_loop import StoredNetwork
from cluster.scoring import prepare_config_of
from data_prep import storage
from data_prep.audio import NUM_BINS
from data_prep.storage import InputError
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.config import InputError as SettingError
from stgs.latency import measure_latency

LATENCY_NAME = "latency.json"


def latency_uri(run: str) -> str:
    """The file of a run."""
    return storage.join(run, "evaluation", LATENCY_NAME)


def write_latency(run: str, name: str, stored: StoredNetwork) -> dict[str, Any]:
    """Time a run's network `name`, alone and with its backbones, on one core and on all; takes some seconds.

    Returns what evaluation/latency.json holds (docs/formats.md).
    """
    extractor, clip_shapes, sentence = None, None, None
    try:
        # Untrained weights take as long as trained ones, and are there everywhere.
        extractor = FeatureExtractor(_untrained(stored))
        made = prepare_config_of(stored)
        side = made.frame_size
        clip_shapes = (made.num_frames, 3, side, side), (made.spectrogram_frames, NUM_BINS)
    except (InputError, SettingError) as error:
        sentence = f"the network was timed alone: {error}"
    rows = measure_latency(
        stored.network,
        _feature_shapes(stored),
        threads=(1, len(os.sched_getaffinity(0))),
        extractor=extractor,
        clip_shapes=clip_shapes,
    )
    content = {
        "device": processor(),
        "network": name,
        "rows": [{"network": name, **asdict(row)} for row in rows],
        "sentence": sentence,
    }
    storage.write(latency_uri(run), json.dumps(content, indent=1).encode())
    return content


def _untrained(stored: StoredNetwork) -> BackboneConfig:
    made = stored.facts["provenance"]["backbones"]
    known = {item.name for item in fields(BackboneConfig)}
    if not {"visual", "audio"} <= set(made) <= known:
        raise InputError(f"{stored.uri} does not say which backbones made its features.")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in made.items()}
    weights = {"visual_weights": "random:0", "audio_weights": "random:0", "spectrogram_statistics": "clip"}
    return BackboneConfig(**values | weights)


def _feature_shapes(stored: StoredNetwork) -> dict[str, tuple[int, ...]]:
    """Shape of each feature that the network reads, of one clip. Vectors are called `<sense>.pooled`."""
    sizes, length = stored.facts["features"], stored.network.length
    return {
        name: (sizes[name],) if name.endswith(".pooled") else (length, sizes[name])
        for name in stored.network.used_features
    }


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
