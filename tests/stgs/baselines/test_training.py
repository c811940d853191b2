"""The training of a baseline: what it learns, keeps and chooses, and that a stop changes nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from stgs.baselines import BaselineConfig
from stgs.baselines.batch import Labels, RawSequences, collate
from stgs.baselines.evaluation import predict
from stgs.baselines.training import BaselineTraining, BaselineTrainingConfig, drawing, initial_baseline
from stgs.config import InputError
from tests.memory_sequences import MemorySequences, TinyBaseline, tiny_baseline

TRAIN, DEV = MemorySequences(18), MemorySequences(14, seed=1)
UPDATES = 4


def begun(model: Any = None, train: MemorySequences = TRAIN, **changes: Any) -> BaselineTraining:
    config = BaselineTrainingConfig(**{"epochs": 3, "batch_size": 5, "learning_rate": 1e-2, **changes})
    return BaselineTraining(model or tiny_baseline(), config, train=train, dev=DEV)


def run(training: BaselineTraining) -> BaselineTraining:
    while not training.finished:
        training.run_epoch()
    return training


def after(updates: int) -> Callable[[], bool]:
    """Asks to stop once so many updates have been made."""
    answers: Iterator[bool] = iter([False] * updates + [True])
    return lambda: next(answers)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def assert_same_bits(one: BaselineTraining, two: BaselineTraining) -> None:
    def rows(training: BaselineTraining) -> list[dict[str, float]]:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in training.rows]

    assert rows(one) == rows(two)
    assert (one.best_auc, one.best_epoch, one.threshold()) == (two.best_auc, two.best_epoch, two.threshold())
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, two.model.state_dict()[name]), name
    for name, tensor in one.best_weights().items():
        assert torch.equal(tensor, two.best_weights()[name]), name


class Driven:
    """A training whose losses and scores on dev are given, one after the other; it is loaded anew after each epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, aucs: list[float], losses: list[float], **changes: Any) -> None:
        monkeypatch.setattr(TinyBaseline, "loss", self._loss)
        monkeypatch.setattr(TinyBaseline, "scores", self._scores)
        self.training = begun(**{"epochs": len(aucs), **changes})
        self._aucs, self._losses = iter(aucs), iter(losses)
        while not self.training.finished:
            self.training.run_epoch()
            state = through_a_file(self.training.state_dict())
            self.training = begun(**{"epochs": len(aucs), **changes})
            self.training.load_state_dict(state)

    def _loss(self, outputs: dict[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        loss = outputs["m_logits"].mean()
        return {"loss": loss if loss.requires_grad else torch.tensor(next(self._losses))}

    def _scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Two of three levels: `value` of the fake clips stand above all real ones, the others below."""
        value, fake = next(self._aucs), torch.from_numpy(DEV.categories != "A")
        above = torch.cumsum(fake, 0) <= round(value * int(fake.sum())) if value == value else torch.ones_like(fake)
        return torch.where(fake, torch.where(above, 0.9, 0.1), 0.5).double() + (0.0 if value == value else math.nan)


def test_it_learns_what_tells_planted_clips_apart_and_counts_what_it_says() -> None:
    training = run(begun(epochs=12))
    first, last = training.rows[0], training.rows[-1]
    assert last["loss"] < 0.7 * first["loss"]
    assert training.best_auc > 0.9
    terms = [value for name, value in last.items() if name.endswith("_loss") and name != "dev_loss"]
    assert last["loss"] == pytest.approx(sum(terms), rel=1e-5)
    assert (last["epoch"], training.epoch, training.update) == (12, 12, 12 * UPDATES)
    # The best epoch's weights give the AUC that chose it, and the threshold is no worse than any other.
    training.use_best()
    scores, fake = training.score(DEV), DEV.categories != "A"
    assert roc_auc_score(fake, scores) == pytest.approx(training.best_auc, abs=1e-12)
    assert np.array_equal(scores, predict(training.model, DEV))
    reached = balanced_accuracy_score(fake, scores >= training.threshold())
    assert reached >= max(balanced_accuracy_score(fake, scores >= one) for one in scores)


def test_it_makes_the_updates_of_a_plain_loop() -> None:
    training = run(begun(tiny_baseline(dropout=0.0), epochs=2, seed=7, weight_decay=0.1))
    model, labels = tiny_baseline(dropout=0.0).train(), Labels.of(TRAIN.categories)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.5, 0.9), weight_decay=0.1)
    for epoch in range(2):
        losses = []
        for raw in TRAIN.batches(epoch):
            batch = collate(raw, augment=(7, epoch))
            outputs = model(batch.video, batch.audio, batch.lengths)
            loss = model.loss(outputs, labels.at(torch.from_numpy(raw.index)))["loss"]
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses += [loss.item()] * len(raw.index)
        assert training.rows[epoch]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(training.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4), name


def test_the_loss_of_dev_is_that_of_all_clips_at_once() -> None:
    training = begun(tiny_baseline(dropout=0.5), epochs=1)
    row = training.run_epoch()
    model, labels = training.model.eval(), Labels.of(DEV.categories)
    batch = collate(DEV.at(range(14)))
    with torch.no_grad():
        outputs = model(batch.video, batch.audio, batch.lengths)
        losses = model.loss(outputs, labels)
    assert row is not None
    assert row["dev_loss"] == pytest.approx(float(losses["loss"]), rel=1e-5)
    assert np.allclose(training.score(DEV), model.scores(outputs), atol=1e-6)
    training.model.train()
    training.score(DEV)
    assert training.model.training


def test_a_training_that_stops_after_every_update_ends_with_the_same_bits() -> None:
    whole = run(begun(epochs=2))
    torn, stops = begun(epochs=2), 0
    while not torn.finished:
        torch.manual_seed(stops)  # nothing hangs on the generator of the process
        if torn.run_epoch(after(1)) is None:
            stops += 1
            assert torn.update == stops
        state = through_a_file(torn.state_dict())
        torn = begun(tiny_baseline(seed=stops), epochs=2)
        torn.load_state_dict(state)
    assert stops == 2 * UPDATES
    assert_same_bits(torn, whole)
    assert torn.rows[0]["seconds"] > 0


def test_a_training_goes_on_where_it_was_asked_to_stop() -> None:
    whole, torn = run(begun(epochs=1)), begun(epochs=1)
    assert torn.run_epoch(after(2)) is None
    assert (torn.epoch, torn.update, torn.rows) == (0, 2, [])
    torn.run_epoch()
    assert_same_bits(torn, whole)


def test_dropout_differs_from_update_to_update_and_between_workers() -> None:
    def drawn(*seeds: int) -> Tensor:
        with drawing(*seeds):
            return torch.rand(4)

    state = torch.get_rng_state()
    assert torch.equal(drawn(42, 1, 0), drawn(42, 1, 0))
    others = [drawn(42, 2, 0), drawn(42, 1, 1), drawn(43, 1, 0)]
    assert all(not torch.equal(drawn(42, 1, 0), other) for other in others)
    assert torch.equal(torch.get_rng_state(), state)
    one, two = (run(begun(tiny_baseline(dropout), epochs=1)).rows[0]["loss"] for dropout in (0.5, 0.0))
    assert one != two


def test_the_rate_is_halved_once_dev_has_not_improved_for_more_than_three_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = [1.0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8]
    driven = Driven(monkeypatch, [0.5] * 8, losses)
    # The fourth epoch without a better loss is the sixth.
    rates = [row["learning_rate"] for row in driven.training.rows]
    assert rates == [1e-2] * 6 + [5e-3] * 2


def test_the_best_epoch_ties_to_the_later_and_is_never_one_without_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    aucs = [math.nan, 0.7, 0.9, 0.9, 0.8, math.nan]
    training = Driven(monkeypatch, aucs, [1.0] * 6).training
    assert (training.best_epoch, training.best_auc) == (4, pytest.approx(training.rows[3]["dev_auc"]))
    assert [math.isnan(row["dev_auc"]) for row in training.rows] == [True, False, False, False, False, True]


def test_patience_counts_from_the_last_better_auc(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Driven(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.9], [1.0] * 5, patience=2).training
    assert (training.epoch, training.best_epoch) == (4, 3)


def test_without_finite_scores_there_is_no_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Driven(monkeypatch, [math.nan] * 2, [math.nan] * 2).training
    for use in (training.best_weights, training.use_best, training.threshold):
        with pytest.raises(InputError, match="none of 2 epochs gave finite scores"):
            use()


def test_a_loss_that_ceases_to_be_finite_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    training = begun()
    training.run_epoch()
    monkeypatch.setattr(
        TinyBaseline, "loss", lambda self, outputs, labels: {"loss": outputs["m_logits"].sum() * math.inf}
    )
    with pytest.raises(InputError, match=r"in epoch 2; lower learning_rate \(it is 0.01"):
        training.run_epoch()


def test_an_overflow_under_float16_changes_nothing_but_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    training = begun(precision="float16", learning_rate=1e-3)
    plain = TinyBaseline.forward

    def overflowing(model: TinyBaseline, *inputs: Tensor) -> dict[str, Tensor]:
        huge = 1e30 if model.training and training.update == 1 else 1.0
        return plain(model, inputs[0] * huge, *inputs[1:])

    monkeypatch.setattr(TinyBaseline, "forward", overflowing)
    training.run_epoch(after(1))
    before = {name: x.clone() for name, x in training.model.state_dict().items()}
    scale = training.scaler.get_scale()
    training.run_epoch(after(1))
    assert training.update == 2
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert training.scaler.get_scale() == scale / 2
    row = training.run_epoch()
    assert row is not None
    assert math.isfinite(row["loss"])
    assert 0 <= row["dev_auc"] <= 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_follows_float32(precision: str) -> None:
    exact, mixed = (run(begun(precision=one, epochs=2, learning_rate=1e-3)) for one in ("float32", precision))
    for a, b in zip(exact.rows, mixed.rows, strict=True):
        # Under float16 the first updates overflow, until the scale is low enough.
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02 if precision == "bfloat16" else 0.1)
        assert b["loss"] != a["loss"]
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"plateau_factor": 1.0}, "plateau_factor is 1.0"),
        ({"patience": -1}, "patience is -1"),
        ({"precision": "half"}, "precision is 'half'"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BaselineTrainingConfig(**change)


def test_clips_held_for_shuffling_take_little_memory_by_default() -> None:
    longest = RawSequences(
        [np.empty((250, 3, 112, 112), np.uint8)], [np.empty((250, 104), np.float32)], np.arange(1), 1
    )
    held = BaselineTrainingConfig().shuffle_clips * (longest.video[0].nbytes + longest.filter_banks[0].nbytes)
    assert held < 1.25e9


def test_splits_of_one_class_are_refused() -> None:
    for clips, words in ((1, "0 of the 1 training clips"), (0, "0 of the 0 training clips")):
        with pytest.raises(InputError, match=words):
            begun(train=MemorySequences(clips))


def test_a_state_of_another_training_is_refused() -> None:
    state = begun().state_dict()
    for change in ({"precision": "bfloat16"}, {"seed": 1}):
        with pytest.raises(InputError, match=f"the state has {next(iter(change))}"):
            begun(**change).load_state_dict(state)


def test_clips_that_are_missing_or_come_twice_are_refused() -> None:
    class Torn(MemorySequences):
        def in_order(self) -> Iterator[Any]:
            yield self.at([0, 1, 1])

    with pytest.raises(InputError, match="a split of 3 clips gave 3, 2 of them different"):
        predict(tiny_baseline(), Torn(3))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    one, same, other = (
        initial_baseline("avdf", BaselineConfig(layers=0, width=48), seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["mm_classifier.0.weight"], other["mm_classifier.0.weight"])


def test_a_released_model_trains_from_its_stem_on() -> None:
    """The stem stands still in the released code."""
    model = initial_baseline("mrdf_ce", BaselineConfig(layers=1, width=48), 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    training = begun(model, MemorySequences(4), epochs=1)
    assert training.run_epoch() is not None
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("frontend3D.0" in name for name in moved)
    assert {name.split(".")[0] for name in before} == {name.split(".")[0] for name in moved}
