"""The losses on embeddings against the released ones' values and against their plain definition, pair by pair."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from stgs.baselines import losses
from stgs.baselines.losses import contrast, cross_entropy, fake_probability, margin, unit
from tests.stgs.baselines.released import golden


def pair_loss(first: Tensor, second: Tensor, alike: bool, allowed: float) -> Tensor:
    cosine = functional.cosine_similarity(first, second, dim=0)
    return 1 - cosine if alike else torch.clamp(cosine - allowed, min=0)


def plain_contrast(visual: Tensor, audio: Tensor, both_real: Tensor, allowed: float) -> Tensor:
    pairs = zip(visual, audio, both_real.tolist(), strict=True)
    return torch.stack([pair_loss(v, a, bool(real), allowed) for v, a, real in pairs]).mean()


def plain_margin(embeddings: Tensor, labels: Tensor, allowed: float) -> Tensor:
    clips = list(zip(embeddings, labels.tolist(), strict=True))
    return torch.stack([pair_loss(x, y, a == b, allowed) for (x, a), (y, b) in product(clips, clips)]).mean()


def test_losses_are_the_released_ones(shared: Path) -> None:
    arrays = golden(shared, "losses")
    cases = [name.split(".margin32")[0] for name in arrays if name.endswith(".margin32")]
    assert len(cases) == 4
    first, second = (torch.from_numpy(arrays[f"B5.corr.{name}"]) for name in ("e1", "e2"))
    for case in cases:
        _, _, drawn, allowed = case.split(".", 3)
        labels = torch.from_numpy(arrays[f"B5.corr.lab.{drawn}"])
        value = float(allowed.removeprefix("m"))
        found = [margin(first, labels, value), contrast(first, second, labels, value)]
        assert [loss.item() for loss in found] == pytest.approx(
            [arrays[f"{case}.margin32"].item(), arrays[f"{case}.contrast32"].item()], rel=1e-5
        )


@pytest.mark.parametrize("allowed", [-0.1, 0.0, 0.2])
def test_values_and_gradients_are_those_of_the_pairwise_definition(allowed: float) -> None:
    # Correlated, so that cosines lie on both sides of the margins.
    common = torch.randn(1, 6, dtype=torch.float64)
    inputs = [0.4 * common + torch.randn(7, 6, dtype=torch.float64) for _ in range(2)]
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    for ours, plain in ((contrast, plain_contrast), (lambda x, _, *rest: margin(x, *rest), None)):
        results = []
        for function in (ours, plain or (lambda x, _, *rest: plain_margin(x, *rest))):
            leaves = [value.clone().requires_grad_() for value in inputs]
            loss = function(leaves[0], leaves[1], labels, allowed)
            loss.backward()
            results.append((loss.detach(), [leaf.grad for leaf in leaves]))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_rows_that_are_taken_apart_give_the_same_margin_loss(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = torch.randn(7, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    monkeypatch.setattr(losses, "MARGIN_ROWS", rows)
    results = []
    for loss in (margin(embeddings, labels, 0.1), plain_margin(embeddings, labels, 0.1)):
        results.append((loss.detach(), *torch.autograd.grad(loss, embeddings)))
    torch.testing.assert_close(*results)


def test_the_margin_loss_of_many_clips_takes_the_memory_of_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Sizes(TorchDispatchMode):
        """Notes the numbers of whatever is computed."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, Tensor) else 0)
            return result

    with torch.no_grad(), Sizes():
        margin(torch.randn(2500, 4), torch.arange(2500) % 2)
    assert max(sizes) == 1024 * 2500


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-9, 1e-3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_vectors_of_any_length_have_finite_losses_and_gradients(length: float, dtype: torch.dtype) -> None:
    embeddings = torch.randn(4, 768)
    embeddings[1] *= length / embeddings[1].norm()
    embeddings = embeddings.to(dtype).requires_grad_()
    labels = torch.tensor([0, 1, 1, 0])
    for loss in (margin(embeddings, labels), contrast(embeddings, embeddings.flip(0), labels)):
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss, embeddings)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_a_zero_vector_has_the_cosine_0_with_everything_and_no_gradient() -> None:
    embeddings = torch.zeros(2, 5, requires_grad=True)
    loss = margin(embeddings, torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == 1.0
    assert not embeddings.grad.any()
    assert margin(embeddings, torch.tensor([0, 1])).item() == 0.5  # with itself: 1 - 0


def test_half_precision_costs_no_more_than_its_rounding_of_the_embeddings() -> None:
    embeddings, labels = torch.randn(16, 768).half() * 300, torch.arange(16) % 2
    exact = plain_margin(embeddings.double(), labels, 0.0).item()
    assert margin(embeddings, labels).item() == pytest.approx(exact, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert margin(embeddings, labels).item() == pytest.approx(exact, rel=1e-6)


def test_units_keep_their_direction() -> None:
    x = torch.tensor([[3.0, 4.0], [-3e-6, 4e-6], [0.0, 0.0]])
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8], [-0.6, 0.8], [0.0, 0.0]]))


def test_columns_are_fake_then_real() -> None:
    logits = torch.tensor([[2.0, -1.0]])
    probability = torch.sigmoid(torch.tensor([3.0], dtype=torch.float64))
    torch.testing.assert_close(fake_probability(logits), probability)
    assert cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(-probability.log().item(), rel=1e-5)
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(-(1 - probability).log().item(), rel=1e-5)
