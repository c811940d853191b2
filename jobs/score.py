"""Prints P(fake) for new clips with a trained network, and shows the faces that it looked at.

Everything is done as it was for the network's training clips: the settings of faces, sound and backbones stand in the
network's file. A clip that training would have refused is refused here, with the reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from cluster.controls import GRID
from cluster.evaluation import choose, network_uris, score_clips
from cluster.features import Split
from cluster.found_loop import StoredNetwork, read_network
from cluster.shards import progress_bar
from data_prep import storage
from data_prep.clip import ClipPreparer, PrepareConfig, Reject
from data_prep.contact_sheet import draw_rows
from data_prep.storage import InputError
from jobs.cli import PARTLY, Outcome, option, run_command
from stgs.backbones import BackboneConfig, FeatureExtractor, weights_digest


@dataclass(frozen=True, kw_only=True)
class ScoreJobConfig:
    """Options of `stgs score`."""

    videos: tuple[str, ...] = option(help="clips to score", positional=True, metavar="VIDEO")
    run: str | None = option(None, help="run whose found network (best on dev) is used")
    network: str | None = option(None, help="file of the network to use, in place of --run")
    faces: str | None = option(None, help="picture (.jpg) to write, with the faces that the network looked at")
    threads: int = option(1, help="threads; the last bits depend on it")


def run(config: ScoreJobConfig) -> Outcome:
    """Score the clips."""
    stored = _network(config)
    torch.set_num_threads(config.threads)
    made = stored.facts["provenance"]
    prepare_config = _from_facts(PrepareConfig, made["corpus"])
    extractor = FeatureExtractor(_backbones(stored))
    threshold = stored.facts["metrics"]["threshold"]
    results: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    with (
        ClipPreparer(prepare_config) as preparer,
        progress_bar("score", len(config.videos), "clip", len(config.videos) > 1) as bar,
    ):
        for video in config.videos:
            row = _prepare(preparer, video)
            if isinstance(row, Reject):
                results.append({"video": video, "refused": str(row.reason), "detail": row.detail})
            else:
                p_fake = _score(stored, extractor, row)
                results.append({"video": video, "p_fake": p_fake, "fake": p_fake >= threshold})
                shown.append(row)
            bar.update()
    payload: dict[str, Any] = {
        "network": stored.uri,
        "threshold": threshold,
        "clips": results,
    }
    text = _text(stored, threshold, results)
    if config.faces and shown:
        storage.write(config.faces, draw_rows(shown, face_margin=prepare_config.face_margin))
        payload["faces"] = config.faces
        text += f"\nfaces: {config.faces}"
    return Outcome(payload, text, PARTLY if len(shown) < len(results) else 0)


def _network(config: ScoreJobConfig) -> StoredNetwork:
    if (config.run is None) == (config.network is None):
        raise InputError("give either --run, for its found network, or --network, for a network's file.")
    if config.network is not None:
        return read_network(storage.absolute(config.network))
    run_uri = storage.absolute(str(config.run))
    networks = {name: read_network(uri) for name, uri in network_uris(run_uri).items() if name.startswith(f"{GRID}/")}
    found = choose({name: stored.facts for name, stored in networks.items()}, (GRID,))
    assert found is not None  # network_uris refuses a run without networks of the grid
    return networks[found]


def _backbones(stored: StoredNetwork) -> BackboneConfig:
    made = stored.facts["provenance"]
    config = _from_facts(BackboneConfig, made["backbones"])
    for sense in ("visual", "audio"):
        weights = getattr(config, f"{sense}_weights")
        if weights_digest(weights) != made["weights"][sense]:
            raise InputError(f"{weights} is another file than the {sense} weights that {stored.uri} was trained with.")
    return config


def _from_facts(config_class: Any, facts: dict[str, Any]) -> Any:
    """A setting that the file does not name is newer than it, and its default is how things were."""
    unknown = sorted(set(facts) - {field.name for field in fields(config_class)})
    if unknown:
        raise InputError(
            f"the network's file has {', '.join(unknown)} in its {config_class.__name__}, which this program does not "
            "know; score with the version that trained it."
        )
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()})


def _prepare(preparer: ClipPreparer, video: str) -> dict[str, Any] | Reject:
    uri = storage.absolute(video)
    folder, name = os.path.split(uri)
    row = {
        "clip_id": video,
        "video_path": f"clip/{name}",
        "audio_path": None,
        **dict.fromkeys(("label", "category", "dataset", "subject", "target", "method", "augmentation")),
    }
    return preparer(row, {"clip": folder})


def _score(stored: StoredNetwork, extractor: FeatureExtractor, row: dict[str, Any]) -> float:
    features = extractor(torch.from_numpy(row["frames"][None]), torch.from_numpy(row["spectrogram"][None]))
    columns = {name: values.numpy() for name, values in features.items()}
    return float(score_clips(stored, Split(columns, np.zeros(1, np.int8), {}))[0])


def _text(stored: StoredNetwork, threshold: float, results: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"network: {stored.uri} ({stored.facts['parameters']:,} parameters, AUC on dev "
        f"{stored.facts['metrics']['dev_auc']:.3f})",
        f"P(fake), called fake from {threshold:.4f} on:",
    ]
    for result in results:
        if "refused" in result:
            lines.append(f"  refused  {result['video']}: {result['refused']} ({result['detail']})")
        else:
            lines.append(f"  {result['p_fake']:.4f}  {'fake' if result['fake'] else 'real'}  {result['video']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs score`; returns the exit code."""
    return run_command("score", run, argv)


if __name__ == "__main__":
    sys.exit(main())
