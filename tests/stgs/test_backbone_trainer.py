"""Gradient caching: the same steps as one plain pass over the batch, whatever the micro-batch and the precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stgs.backbone_trainer import BackboneTrainer, FinetuneConfig
from stgs.backbones import BACKBONES, BackboneConfig, FeatureExtractor
from stgs.config import InputError
from stgs.precision import resolved_precision
from tests.tiny_backbone import TinyBackbone, random_clips

T, CLIPS = 2, 6
CONFIG = FinetuneConfig(precision="float32", backbone_weight_decay=1e-2)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TinyBackbone)


def backbones(name: str = "tiny") -> BackboneConfig:
    taps = ("early", "late", "pooled") if name == "tiny" else ("layer2", "pooled")
    weights = {"visual_weights": "random:0", "audio_weights": "random:1"}
    return BackboneConfig(visual=name, audio=name, taps=taps, length=T, **weights)


def trainer_of(name: str = "tiny", **changes: object) -> BackboneTrainer:
    chosen = backbones(name)
    return BackboneTrainer(FeatureExtractor(chosen), replace(CONFIG, **changes), list(chosen.features))


def loss_of(features: dict[str, Tensor]) -> Tensor:
    """A loss under which clips depend on each other, as under the fusion network's batch norm."""
    total = torch.zeros(())
    for number, feature in enumerate(features.values()):
        flat = feature.flatten(start_dim=1)
        normalised = (flat - flat.mean(dim=0)) / (flat.std(dim=0) + 1.0)
        direction = torch.linspace(-1.0, 1.0, flat.shape[1]).roll(number)
        total = total + (normalised @ direction).square().mean()
    return total


def update(trainer: BackboneTrainer, frames: Tensor, spectrogram: Tensor, factor: float = 0.5) -> dict[str, Tensor]:
    """One update; returns the gradients of the backbones before it."""
    leaves = trainer.begin(frames, spectrogram)
    loss_of(leaves).backward()
    trainer.backward(leaves)
    gradients = {n: p.grad.clone() for n, p in trainer.extractor.named_parameters() if p.grad is not None}
    trainer.step(factor)
    return gradients


def plain_gradients(frames: Tensor, spectrogram: Tensor, name: str = "tiny") -> dict[str, Tensor]:
    """Gradients of the loss by one pass of autograd over the whole batch."""
    extractor = FeatureExtractor(backbones(name)).requires_grad_(True)
    pooled = extractor.pooled_taps(frames, spectrogram)
    loss_of({name: x.transpose(1, 2) if x.dim() == 3 else x for name, x in pooled.items()}).backward()
    return {name: p.grad for name, p in extractor.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "micro_batch"), [("tiny", 2), ("tiny", 4), ("tiny", CLIPS), ("resnet18", 4)])
def test_gradients_are_those_of_the_whole_batch(name: str, micro_batch: int) -> None:
    frames, spectrogram = random_clips(CLIPS, T)
    expected = plain_gradients(frames, spectrogram, name)
    trainer = trainer_of(name, micro_batch=micro_batch)
    found = update(trainer, frames, spectrogram)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        # Sums of float32 in another order: some units of rounding of the largest term.
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max()))


def test_steps_are_adams_with_the_scheduled_share_of_the_rate() -> None:
    frames, spectrogram = random_clips(CLIPS, T)
    trainer = trainer_of(micro_batch=4)
    before = {name: tensor.clone() for name, tensor in trainer.extractor.state_dict().items()}
    plain = {name: p.detach().clone().requires_grad_() for name, p in trainer.extractor.named_parameters()}
    adam = torch.optim.Adam(plain.values(), weight_decay=1e-2)
    for factor in (1.0, 0.1):
        gradients = update(trainer, frames, spectrogram, factor)
        for name, p in plain.items():
            p.grad = gradients.get(name)
        adam.param_groups[0]["lr"] = 1e-4 * factor
        adam.step()
    for name, p in trainer.extractor.named_parameters():
        torch.testing.assert_close(p.detach(), plain[name].detach(), rtol=1e-5, atol=1e-7)
        assert not torch.equal(p, before[name])
    for name, buffer in trainer.extractor.named_buffers():
        assert name not in before or torch.equal(buffer, before[name]), "batch norm keeps its statistics"


def test_features_are_positions_first_and_without_gradients() -> None:
    frames, spectrogram = random_clips(3, T)
    trainer = BackboneTrainer(
        FeatureExtractor(backbones()), replace(CONFIG, micro_batch=2), ["visual.late", "visual.pooled"]
    )
    pooled = FeatureExtractor(backbones()).pooled_taps(frames, spectrogram)
    found = trainer.features(frames, spectrogram)
    assert list(found) == ["visual.late", "visual.pooled"]
    assert found["visual.late"].shape == (3, T, 8)
    torch.testing.assert_close(found["visual.late"], pooled["visual.late"].transpose(1, 2))
    torch.testing.assert_close(found["visual.pooled"], pooled["visual.pooled"])
    assert not any(x.requires_grad for x in found.values())


def test_a_state_continues_to_the_same_bits() -> None:
    batches = [random_clips(3, T) for _ in range(3)]
    whole, first, second = (trainer_of(micro_batch=2) for _ in range(3))
    for batch in batches:
        update(whole, *batch)
    for batch in batches[:2]:
        update(first, *batch)
    second.load_state_dict(first.state_dict())
    update(second, *batches[2])
    for name, tensor in whole.extractor.state_dict().items():
        assert torch.equal(tensor, second.extractor.state_dict()[name])
    other = trainer_of(precision="bfloat16")
    with pytest.raises(InputError, match="trained with precision float32, but this is bfloat16"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize(("precision", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision_has_the_same_direction(precision: str, digits: int) -> None:
    frames, spectrogram = random_clips(CLIPS, T)
    expected = plain_gradients(frames, spectrogram)
    trainer = trainer_of(micro_batch=4, precision=precision)
    scale = trainer.scaler.get_scale()
    found = update(trainer, frames, spectrogram)
    ours, plain = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (found, expected))
    # The rounding of two layers, forward and backward, where the largest of the maps may change its place.
    assert float((ours / scale - plain).norm() / plain.norm()) < 20 * 2.0**-digits
    assert trainer.optimizer.state, "the step was made"


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    trainer = trainer_of(precision="float16")
    before = {name: p.detach().clone() for name, p in trainer.extractor.named_parameters()}
    leaves = trainer.begin(*random_clips(2, T))
    (1e6 * loss_of(leaves)).backward()
    trainer.backward(leaves)
    trainer.step(1.0)
    assert trainer.scaler.get_scale() == 2.0**15
    for name, p in trainer.extractor.named_parameters():
        assert torch.equal(p, before[name])


def test_precision_follows_the_device() -> None:
    assert resolved_precision("auto", "cpu") == "float32"
    assert resolved_precision("bfloat16", "cpu") == "bfloat16"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"shuffle_clips": 0}, "shuffle_clips is 0"),
        ({"precision": "half"}, "precision is 'half', but it must be one of auto, float32, float16, bfloat16"),
        ({"backbone_learning_rate": 0.0}, "backbone_learning_rate is 0.0"),
        ({"backbone_weight_decay": -1.0}, "backbone_weight_decay is -1.0"),
    ],
)
def test_wrong_settings_are_refused(change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        FinetuneConfig(**change)
