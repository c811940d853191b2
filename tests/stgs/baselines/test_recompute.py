"""What is computed anew in the backward pass gives the same results, and is not kept in memory meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from stgs.baselines.base import Baseline, BaselineConfig
from stgs.baselines.batch import Labels
from stgs.baselines.batch_norm import share_batch_norms
from stgs.baselines.training import initial_baseline
from stgs.parallel import SINGLE

LENGTHS = torch.tensor([3, 2])
LABELS = Labels(torch.tensor([0, 1]), torch.tensor([1, 0]))


def updated(recompute: bool, shared: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """State and gradients after one forward and backward pass in training mode, and the bytes kept in between."""
    model: Baseline = initial_baseline("mrdf_ce", BaselineConfig(layers=0, width=48, dropout=0), 0)
    if shared:
        share_batch_norms(model, SINGLE)
    if recompute:
        model.recompute_activations()
    model.train()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    generator = torch.Generator().manual_seed(1)
    video, audio = (torch.randn(shape, generator=generator) for shape in ((2, 3, 3, 100, 100), (2, 104, 3)))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(video, audio, LENGTHS)
    model.loss(outputs, LABELS)["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    maps = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in kept if tensor.dim() == 4}
    return model.state_dict(), gradients, sum(maps.values())


@pytest.mark.parametrize("shared", [False, True])
def test_recomputing_changes_nothing_but_the_memory(shared: bool) -> None:
    state, gradients, kept = updated(False, shared)
    state_anew, gradients_anew, kept_anew = updated(True, shared)
    # The running statistics, and how often they have moved, among them.
    assert all(torch.equal(state_anew[name], tensor) for name, tensor in state.items())
    assert gradients_anew.keys() == gradients.keys()
    assert all(torch.equal(gradients_anew[name], tensor) for name, tensor in gradients.items())
    # The maps between parts stay; those inside them, several each, do not.
    assert 0 < 4 * kept_anew < kept
