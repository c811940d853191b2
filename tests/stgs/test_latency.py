"""Latency of stand-ins whose time is known."""

import time
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from stgs import backbones
from stgs.backbones import BackboneConfig, FeatureExtractor
from stgs.latency import measure_latency
from stgs.layers import ForwardContext
from tests.tiny_backbone import TinyBackbone

BUSY_S = 0.002
FEATURES = {"visual.early": (2, 4), "audio.pooled": (8,)}


class Busy(nn.Module):
    """Is busy for 2 ms a call, whatever the batch; notes the threads and the shapes that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()

    def forward(self, features: Mapping[str, Tensor], context: ForwardContext) -> Tensor:
        assert not context.training
        visual, audio = (tuple(features[name].shape) for name in FEATURES)
        self.seen.add((torch.get_num_threads(), visual, audio))
        end = time.perf_counter() + BUSY_S
        while time.perf_counter() < end:
            pass
        return torch.zeros(1, visual[0])


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch) -> FeatureExtractor:
    monkeypatch.setitem(backbones.BACKBONES, "tiny", TinyBackbone)
    weights = {"visual_weights": "random:0", "audio_weights": "random:1"}
    return FeatureExtractor(BackboneConfig(visual="tiny", audio="tiny", taps=("early", "pooled"), length=4, **weights))


def test_latency_of_known_times(extractor: FeatureExtractor) -> None:
    before = torch.get_num_threads()
    network = Busy()
    shapes = ((4, 3, 16, 16), (24, 17))
    rows = measure_latency(network, FEATURES, threads=(1, 2, 2), extractor=extractor, clip_shapes=shapes, seconds=0.02)
    assert torch.get_num_threads() == before
    keys = [(row.part, row.batch, row.threads) for row in rows]
    assert len(keys) == len(set(keys)) == 3 * 2 * 2
    for row in rows:
        assert 0 < row.low <= row.milliseconds_per_clip <= row.high
        assert row.repetitions >= 3
        if row.part == "fusion":
            assert row.clips == row.batch
            # A busy machine is slower, never faster.
            assert row.low >= 1000 * BUSY_S / row.batch * 0.999
    whole = {(row.batch, row.threads): row for row in rows if row.part == "all"}
    part = {(row.batch, row.threads): row for row in rows if row.part == "backbones"}
    for key, row in whole.items():
        assert row.milliseconds_per_clip >= part[key].low + 1000 * BUSY_S / row.clips * 0.999
        # 0.02 s hold at most 3 calls of 2 ms each and their backbones, of 3 clips at most.
        assert 1 <= row.clips <= 3
    # The network's two positions are made of the features' four.
    assert {(threads, *shapes) for threads, *shapes in network.seen} >= {
        (1, (1, 2, 4), (1, 8)),
        (2, (32, 2, 4), (32, 8)),
    }


def test_a_network_alone(extractor: FeatureExtractor) -> None:
    rows = measure_latency(Busy(), FEATURES, threads=(1,), seconds=0.0)
    assert [(row.part, row.batch, row.clips) for row in rows] == [("fusion", 1, 1), ("fusion", 32, 32)]
