"""The ONNX file of a stored network agrees with PyTorch, or is not written."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cluster.found_loop import StoredNetwork
from data_prep import boxes
from data_prep.clip import PrepareConfig
from data_prep.storage import InputError
from jobs import export
from jobs.cli import FAILED
from stgs import backbones
from stgs.detector import Detector
from tests.stgs.test_detector import detector
from tests.tiny_backbone import TinyBackbone, random_clips

PREPARED = PrepareConfig(num_frames=4, frame_size=16, spectrogram_frames=24, min_faces=1)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Detector:
    """A stored network of tiny backbones stands in for the one that is named."""
    monkeypatch.setitem(backbones.BACKBONES, "tiny", TinyBackbone)
    whole = detector(4)
    facts: Mapping[str, Any] = {
        "kind": "found", "genotype": whole.network.genotype.to_dict(), "parameters": 1, "macs": 2,
        "metrics": {"threshold": 0.4},
        "provenance": {
            "backbones": asdict(whole.extractor.config), "corpus": asdict(PREPARED),
            "weights": {"visual": "random:0", "audio": "random:1"},
        },
    }  # fmt: skip
    stored = StoredNetwork("network", whole.network, dict(facts), {})
    monkeypatch.setattr(export, "network_of", lambda run, network: stored)
    return whole


def test_the_file_gives_torch_s_scores_for_batches_of_any_size(exported: Detector, tmp_path: Path) -> None:
    file = tmp_path / "detector.onnx"
    outcome = export.run(export.ExportJobConfig(onnx=str(file), network="network"))
    assert outcome.exit_code == 0
    assert outcome.payload["clips"] == 3
    assert outcome.payload["from_torch"] <= 1e-4
    assert outcome.payload["from_cached"] > 0, "rounded features give other scores"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        frames, spectrogram = random_clips(count, 4)
        spectrogram = torch.rand(count, 24, 257)
        found = session.run(["p_fake", "logit"], {"frames": frames.numpy(), "spectrogram": spectrogram.numpy()})
        with torch.no_grad():
            for one, other in zip(found, exported(frames, spectrogram), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
    (content,) = [prop.value for prop in onnx.load(file).metadata_props if prop.key == "stgs"]
    facts = json.loads(content)
    assert facts["metrics"]["threshold"] == 0.4
    assert PrepareConfig(**facts["prepare"]) == PREPARED


def test_a_file_that_differs_is_not_written(
    exported: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    outcome = export.run(export.ExportJobConfig(onnx=str(tmp_path / "x.onnx"), network="network"))
    assert outcome.exit_code == FAILED
    assert "nothing was written" in outcome.text
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_logit_is_seen_where_p_fake_is_saturated(
    exported: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.nn.init.constant_(exported.network.head.classifier.bias, 200.0)
    right = Detector.scores

    def other(self: Detector, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        p_fake, logit = right(self, taps)
        return p_fake, logit if torch.compiler.is_exporting() else logit + 1.0

    monkeypatch.setattr(Detector, "scores", other)
    assert export.run(export.ExportJobConfig(onnx=str(tmp_path / "x.onnx"), network="network")).exit_code == FAILED


def test_wrong_input_is_refused(exported: Detector, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threads is 0"):
        export.run(export.ExportJobConfig(onnx=str(tmp_path / "x.onnx"), network="network", threads=0))
    empty = {"num_frames": 4, "frame_size": 16, "spectrogram_frames": 24}
    counts = {"clips": 0, "shards": 0}
    meta = boxes.Meta(kind=boxes.CORPUS, config=empty, counts=counts, versions={}, parent="none", files={})
    boxes.write_meta(str(tmp_path / "corpus"), meta)
    config = export.ExportJobConfig(onnx=str(tmp_path / "x.onnx"), network="network", check=str(tmp_path / "corpus"))
    outcome = export.run(config)
    assert outcome.exit_code == FAILED
    assert "there is no clip to check it on" in outcome.text


def test_a_missing_package_is_named(exported: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_onnx(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "onnxscript":
            raise ImportError("no", name="onnxscript")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(InputError, match=r"needs the package onnxscript; pip install"):
        export.run(export.ExportJobConfig(onnx=str(tmp_path / "x.onnx"), network="network"))
