"""Losses against plain formulas."""

import math

import numpy as np
import pytest
import torch

from stgs.config import InputError
from stgs.losses import balanced_cross_entropy, class_weights, num_correct


def test_class_weights_give_both_classes_the_same_total() -> None:
    labels = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.int8)
    weights = class_weights(labels)
    assert weights.tolist() == [pytest.approx([5 / 2, 5 / 8]), pytest.approx([5 / 6, 5 / 4])]
    totals = torch.stack([(labels == k).sum(dim=1) * weights[:, k] for k in (0, 1)])
    assert torch.allclose(totals, torch.full((2, 2), 2.5))


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[0, 2\] real and fake"):
        class_weights(torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]]))


def test_loss_and_gradient_equal_the_plain_formula() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 7)) * 4
    labels = random.integers(0, 2, (3, 7))
    weights = random.uniform(0.5, 2.0, (3, 2))
    logits = torch.tensor(x, requires_grad=True)
    losses = balanced_cross_entropy(logits, torch.tensor(labels, dtype=torch.int8), torch.tensor(weights))
    losses.sum().backward()
    losses = losses.detach()
    for p in range(3):
        plain, gradient = 0.0, []
        for b in range(7):
            probability = 1 / (1 + math.exp(-x[p, b]))
            weight = weights[p, labels[p, b]]
            plain -= weight * math.log(probability if labels[p, b] else 1 - probability) / 7
            gradient.append(weight * (probability - labels[p, b]) / 7)
        assert float(losses[p]) == pytest.approx(plain, rel=1e-12)
        assert logits.grad[p].tolist() == pytest.approx(gradient, rel=1e-9)


def test_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = balanced_cross_entropy(logits, torch.tensor([[0, 1]]), torch.ones(1, 2))
    loss.sum().backward()
    assert float(loss.detach()[0]) == pytest.approx(1e4)
    assert logits.grad[0].tolist() == [0.5, -0.5]


def test_workers_parts_add_up_to_the_mean() -> None:
    logits, labels, weights = torch.randn(2, 7), torch.randint(0, 2, (2, 7)), torch.rand(2, 2)
    parts = [balanced_cross_entropy(logits[:, r::3], labels[:, r::3], weights, clips=7) for r in range(3)]
    assert torch.allclose(sum(parts), balanced_cross_entropy(logits, labels, weights))


def test_correct_clips_are_counted_by_member() -> None:
    logits = torch.tensor([[0.1, -0.1, 0.0, 0.0], [3.0, 3.0, 3.0, -3.0]])
    labels = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0]], dtype=torch.int8)
    # A clip on the line, P(fake) = 0.5, counts as real.
    assert num_correct(logits, labels).tolist() == [2.0, 3.0]
