"""The detector is the extraction to cached features, followed by the prediction on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stgs import backbones
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.clips import ClipSet
from stgs.detector import Detector
from stgs.found_network import FoundNetwork
from stgs.found_training import predict
from stgs.genotype import CellGene, Genotype, StepGene
from tests.tiny_backbone import TinyBackbone, random_clips

FRAMES = 4


def detector(length: int) -> Detector:
    """A detector of tiny backbones and two cells, with running statistics that are not those of the start."""
    config = BackboneConfig(
        visual="tiny", visual_weights="random:0", audio="tiny", audio_weights="random:1",
        taps=("early", "late", "pooled"), length=FRAMES,
    )  # fmt: skip
    steps = (StepGene("linear_glu", ("in1", "in2")), StepGene("attention", ("in1", "step1")))
    cells = (CellGene(("visual.early", "audio.late"), steps), CellGene(("cell1", "audio.pooled"), steps))
    network = FoundNetwork(Genotype(features=config.features, channels=8, length=length, cells=cells), [3])
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.1
    return Detector(FeatureExtractor(config), network)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.BACKBONES, "tiny", TinyBackbone)


@pytest.mark.parametrize("length", [FRAMES, 2])
def test_scores_are_those_of_cached_features(length: int) -> None:
    whole = detector(length)
    frames, spectrogram = random_clips(5, FRAMES)
    halves = whole.extractor(frames, spectrogram)
    with torch.no_grad():
        p_fake, logit = whole.scores({name: values.float() for name, values in halves.items()})
    cached = {name: values.numpy() for name, values in halves.items()}
    for name, values in cached.items():
        if values.ndim == 3:
            cached[name] = values.reshape(*values.shape[:2], length, -1).max(axis=3)
    used = {name: cached[name] for name in whole.network.used_features}
    clips = ClipSet(used, np.zeros(5, np.int8), members=1, balance=torch.ones(1, 2))
    np.testing.assert_allclose(p_fake, predict(whole.network, clips)[0], rtol=1e-6)
    np.testing.assert_allclose(p_fake, 1 / (1 + np.exp(-logit.numpy().astype(np.float64))), rtol=1e-6)


def test_a_clip_goes_through_backbones_and_network() -> None:
    whole = detector(FRAMES)
    frames, spectrogram = random_clips(3, FRAMES)
    with torch.no_grad():
        found = whole(frames, spectrogram)
        wanted = whole.scores(whole.extractor.pooled_taps(frames, spectrogram))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("positions", "length"), [(24, 4), (10, 4), (7, 7), (9, 2)])
def test_exported_maxima_are_those_of_adaptive_pooling(
    positions: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 3, positions)
    pooled = backbones._maxima(x, length)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(backbones._maxima(x, length), pooled)
