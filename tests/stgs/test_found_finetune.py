"""A found network trained end to end with tiny backbones: it learns, and micro-batches and stops change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from stgs.backbone_trainer import FinetuneConfig
from stgs.backbones import FeatureExtractor
from stgs.clips import ClipSet
from stgs.config import FoundConfig, InputError, WeightSchedule
from stgs.found_finetune import FoundFinetune
from stgs.found_training import FoundTraining, predict
from stgs.genotype import CellGene, Genotype, StepGene
from stgs.losses import balanced_cross_entropy
from tests.memory_stream import MemoryStream
from tests.tiny_backbone import tiny_backbones

LENGTH, BATCH = 2, 6
TINY = tiny_backbones(LENGTH)
CELL = CellGene(
    ("visual.late", "audio.late"),
    (StepGene("concat_fc", ("in1", "in2")), StepGene("attention", ("step1", "in2"))),
)
GENOTYPE = Genotype(features=TINY.features, channels=6, length=LENGTH, cells=(CELL,))
# Fast enough to tell planted clips apart within a few epochs.
CONFIG = FoundConfig(epochs=10, batch_size=BATCH, weights=WeightSchedule(learning_rate_max=2e-2))
FINETUNE = FinetuneConfig(micro_batch=4, backbone_learning_rate=1e-3)


def training(config: FoundConfig = CONFIG, genotype: Genotype = GENOTYPE, **changes: Any) -> FoundFinetune:
    fitted = "train" if config.fit_on == "train" else "both"
    return FoundFinetune(
        genotype,
        3,
        config=config,
        fitted=MemoryStream(fitted, 27, BATCH, LENGTH, planted=0.8),
        dev=MemoryStream("dev", 18, BATCH, LENGTH, planted=0.8),
        backbones=TINY,
        finetune=replace(FINETUNE, **changes),
    )


def tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a nested state, by path."""
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{name}/{key}")


def run(found: FoundTraining) -> FoundTraining:
    while not found.finished:
        found.run_epoch()
    return found


def loss(found: FoundFinetune) -> float:
    """On the dev clips, with the network and the backbones as they are."""
    scores = torch.from_numpy(found.scores(found.network))
    return float(balanced_cross_entropy(torch.logit(scores), found.dev.labels, found.dev.class_weights))


def test_it_learns_what_tells_planted_clips_apart() -> None:
    found = training()
    before = loss(found)
    start = {name: p.clone() for name, p in found.trainer.extractor.named_parameters()}
    run(found)
    assert loss(found) < 0.5 * before
    assert found.best_auc[0] > 0.95
    for name, p in found.trainer.extractor.named_parameters():
        assert not torch.equal(p, start[name]), name


def test_what_is_kept_gives_the_best_epochs_scores_on_extracted_features(tmp_path: Path) -> None:
    """The network, with features that the kept backbones make as `stgs extract` does, scores as at its best epoch."""
    found = run(training(replace(CONFIG, epochs=3)))
    for sense, state in found.best_backbones().items():
        torch.save(state, tmp_path / f"{sense}.pt")
    kept = replace(TINY, visual_weights=str(tmp_path / "visual.pt"), audio_weights=str(tmp_path / "audio.pt"))
    clips: MemoryStream = found.dev.stream
    extracted = FeatureExtractor(kept)(torch.from_numpy(clips.frames), torch.from_numpy(clips.spectrogram))
    columns = {name: x.numpy() for name, x in extracted.items()}
    scores = predict(found.best_network(), ClipSet(columns, clips.labels, members=1))[0]
    np.testing.assert_allclose(scores, found._best_scores[0], atol=2e-3)  # of float16, in which features are kept
    (threshold,) = found.thresholds()
    best = max(balanced_accuracy_score(clips.labels, found._best_scores[0] >= at) for at in found._best_scores[0])
    assert balanced_accuracy_score(clips.labels, found._best_scores[0] >= threshold) == best

    fitted: MemoryStream = found.train.stream
    extracted = FeatureExtractor(kept)(torch.from_numpy(fitted.frames), torch.from_numpy(fitted.spectrogram))
    neutral = found.neutral_values()
    assert list(neutral) == list(GENOTYPE.used_features)
    for name, value in neutral.items():
        torch.testing.assert_close(value, extracted[name].double().mean(dim=0).float(), rtol=1e-3, atol=1e-3)


def gradients(found: FoundFinetune) -> dict[str, torch.Tensor]:
    """Of the backbones before the first step."""
    seen: dict[str, torch.Tensor] = {}
    step = found.trainer.step

    def watched(factor: float) -> None:
        if not seen:
            named = found.trainer.extractor.named_parameters()
            seen.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        step(factor)

    found.trainer.step = watched  # type: ignore[method-assign]
    found.run_epoch()
    return seen


def test_gradients_of_micro_batches_are_those_of_the_whole_batch() -> None:
    small, whole = gradients(training(micro_batch=2)), gradients(training(micro_batch=BATCH))
    assert small.keys() == whole.keys()
    assert len(whole) == 16
    for name, gradient in whole.items():
        largest = float(gradient.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(small[name], gradient, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_training_goes_on_from_any_epoch_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropped: bool
) -> None:
    """dropped: killed in the middle of the next epoch, of which nothing is left. The first epoch stays the best."""
    scores = iter([0.9, 0.8, 0.7] * 2)
    monkeypatch.setattr("stgs.found_training.auc", lambda *_: next(scores))
    config = replace(CONFIG, epochs=3)
    whole, torn = training(config), training(config)
    run(whole)
    while not torn.finished:
        torch.save(torn.state_dict(), tmp_path / "state.pt")
        if dropped:
            answers = iter([None])
            with pytest.raises(StopIteration):
                torn.run_epoch(lambda answers=answers: next(answers))
        torn = training(config)
        torn.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        torn.run_epoch()
    ours, theirs = (dict(tensors(found.state_dict())) for found in (whole, torn))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert whole.best_epoch == torn.best_epoch == [1]
    assert whole.thresholds() == torn.thresholds()


def test_an_overflow_in_the_backbones_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = training(precision="float16")
    original = found.trainer._run

    def loud(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        features = original(*inputs)
        return {name: x + torch.inf if found.update == 0 else x for name, x in features.items()}

    monkeypatch.setattr(found.trainer, "_run", loud)
    moved = []

    def watched(batch: Any, rate_factor: float) -> None:
        FoundFinetune._after_update(found, batch, rate_factor)
        after = dict(tensors([found.network.state_dict(), found.trainer.state_dict()["extractor"]]))
        moved.append(any(not x.equal(before[name]) for name, x in after.items()))
        before.update({name: x.clone() for name, x in after.items()})

    before = {
        name: x.clone() for name, x in tensors([found.network.state_dict(), found.trainer.state_dict()["extractor"]])
    }
    monkeypatch.setattr(found, "_after_update", watched)
    found.run_epoch()
    assert moved == [False, True, True, True, True]
    assert np.isfinite(found.best_auc[0])


def test_fitted_on_both_splits_it_keeps_the_last_epoch_and_chooses_nothing() -> None:
    found = run(training(replace(CONFIG, epochs=2, fit_on="train+dev")))
    assert found.best_epoch == [2]
    assert found.thresholds() == [0.5]
    last = found.trainer.weights()
    for name, tensor in tensors(found.best_backbones()):
        assert torch.equal(tensor, dict(tensors(last))[name]), name


def test_a_genotype_of_other_backbones_is_refused() -> None:
    other = replace(GENOTYPE, features={**TINY.features, "visual.late": 9})
    with pytest.raises(InputError, match=r"'visual\.late' with 9 channels, but the backbones give 8"):
        training(genotype=other)
    with pytest.raises(InputError, match="length 4, but the backbones give 2"):
        training(genotype=replace(GENOTYPE, length=4))
