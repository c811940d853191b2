"""The forecast of a search with its backbones in the loop, against what updates really take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stgs.backbone_trainer import FinetuneConfig
from stgs.backbones import BACKBONES as KNOWN
from stgs.backbones import BackboneConfig
from stgs.config import SearchConfig
from stgs.finetune import FinetuneSearch
from stgs.finetune_forecast import _Noise, buffer_bytes, forecast_finetune, measure_finetune
from stgs.search_space import SearchSpace
from stgs.supernet import Member
from tests.peak_memory import peak_bytes
from tests.tiny_backbone import TinyBackbone

# What lies behind the third layer gets no gradient, and so no moments.
BACKBONES = BackboneConfig(
    visual="resnet18", audio="resnet18", visual_weights="random:0", audio_weights="random:1", taps=("layer3",), length=2
)
SPACE = SearchSpace(features=BACKBONES.features, num_cells=1, num_steps=1, channels=8, length=2)
INPUTS: dict[str, Any] = {"frame_size": 32, "spectrogram": (32, 33)}


def search(clips: int, device: str) -> FinetuneSearch:
    """After two epochs of one update of each kind."""
    split = _Noise(1, clips, (2, 3, INPUTS["frame_size"], INPUTS["frame_size"]), INPUTS["spectrogram"])
    found = FinetuneSearch(
        SPACE,
        [Member(10.0, 1, 0)],
        estimator="stgs",
        config=SearchConfig(),
        train=split,
        dev=split,
        backbones=BACKBONES,
        finetune=FinetuneConfig(micro_batch=clips),
        device=device,
    )
    found.run_epoch()
    found.run_epoch()
    return found


def expected(clips: int, device: str) -> int:
    return forecast_finetune(
        SPACE, SearchConfig(), backbones=BACKBONES, finetune=FinetuneConfig(micro_batch=clips), device=device,
        clips=clips, split_clips=2 * clips, **INPUTS,
    ).device_bytes  # fmt: skip


def test_forecast_is_what_finetuning_takes_on_a_cpu() -> None:
    # The parameters and those of the best epoch are 90 MB each, moments and gradients 22 MB each, activations little.
    measured = peak_bytes(lambda: search(2, "cpu"))
    assert measured > 240e6
    assert expected(2, "cpu") == pytest.approx(measured, rel=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_forecast_is_what_finetuning_takes_on_a_gpu() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    search(64, "cuda")
    measured = torch.cuda.max_memory_allocated() - before
    assert 0.8 * measured < expected(64, "cuda") < 1.2 * measured


def test_buffers_hold_no_more_clips_than_there_are() -> None:
    finetune = FinetuneConfig(shuffle_clips=10)
    found = buffer_bytes(BACKBONES, finetune, splits=(100, 7), frame_size=16, spectrogram=(24, 17))
    # Two frames of bytes and a spectrogram of float32.
    assert found == (10 + 7) * (2 * 3 * 16 * 16 + 24 * 17 * 4)


def tiny_space(monkeypatch: pytest.MonkeyPatch) -> tuple[SearchSpace, BackboneConfig]:
    """Backbones that hold next to nothing beside their maps, and their space."""
    monkeypatch.setitem(KNOWN, "tiny", TinyBackbone)
    backbones = replace(BACKBONES, visual="tiny", audio="tiny", taps=("late",))
    return replace(SPACE, features=backbones.features), backbones


def test_micro_batches_and_precision_save_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    space, backbones = tiny_space(monkeypatch)

    def needed(device: str, **settings: Any) -> int:
        finetune = FinetuneConfig(**settings)
        sizes: dict[str, Any] = {"clips": 8, "split_clips": 9, "frame_size": 128, "spectrogram": (128, 129)}
        found = forecast_finetune(space, SearchConfig(), backbones=backbones, finetune=finetune, device=device, **sizes)
        return found.update_bytes

    whole = needed("cpu", micro_batch=8)
    assert needed("cpu", micro_batch=2) < 0.6 * whole
    half = needed("cuda", micro_batch=8)
    assert half < 0.9 * whole  # the inputs stay float32
    assert half == pytest.approx(needed("cpu", micro_batch=8, precision="float16"), rel=0.01)


def test_updates_are_measured_and_scaled_to_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    space, backbones = tiny_space(monkeypatch)
    seen = []

    def seconds(search: FinetuneSearch, device: str) -> float:
        streams = [search._clips[split].stream for split in ("train", "dev")]
        seen.append([stream.clips for stream in streams] + [search.trainer.config.micro_batch])
        weights, architecture = (stream.num_batches(0) for stream in streams)
        return 0.3 * weights + 0.7 * architecture

    monkeypatch.setattr("stgs.finetune_forecast.second_epoch_seconds", seconds)
    # The clips of a worker, and those of a batch that is measured with its micro-batches.
    for clips, measured, micro_batch in ((12, 4, 2), (4, 4, 4), (1, 2, 4)):
        found = measure_finetune(
            space, SearchConfig(), backbones=backbones, finetune=FinetuneConfig(micro_batch=4), device="cpu",
            clips=clips, estimator="stgs", num_samples=1, frame_size=32, spectrogram=(32, 33),
        )  # fmt: skip
        factor = clips / measured
        assert (found.weights, found.architecture) == pytest.approx((0.3 * factor, 0.7 * factor))
        assert seen[-2:] == [[measured, measured, micro_batch]] * 2
