"""Multiply-accumulates of a baseline against a count by hand."""

import pytest
import torch
from torch import Tensor

from stgs.baselines import BaselineConfig, make_baseline
from stgs.baselines.cost import macs
from tests.stgs.baselines.test_models import PARAMETERS


def counted(name: str, layers: int, width: int, frames: int) -> int:
    """Convolutions and linear layers by their sizes; pictures of 100 x 100 become maps of 50, then 25, 13, 7, 4."""
    channels = width // 12
    video = channels * 3 * 5 * 7 * 7 * 50**2
    before = channels
    for stage, side in enumerate((25, 13, 7, 4)):
        size = channels * 2**stage
        video += (before * size + 3 * size * size) * 9 * side**2
        if stage:
            video += before * size * side**2
        before = size
    per_frame = video + before * width + 104 * width
    per_clip = 0
    if name in ("mrdf_ce", "mrdf_margin", "avdf_ensemble"):
        per_frame += 2 * width * width
    if name in ("mrdf_ce", "avdf_ensemble"):
        per_clip += 2 * width * 2
    if name != "avdf_ensemble":
        per_frame += 2 * width * width + layers * (12 * width * width + 2 * frames * width)
        # The position convolution's even kernel gives one position more than is kept.
        per_clip += (frames + 1) * width * (width // 16) * 128
        per_clip += width * width + width * (4 if name == "avdf_multiclass" else 2)
    return frames * per_frame + per_clip


@pytest.mark.parametrize("name", PARAMETERS)
def test_macs_are_those_of_a_count_by_hand(name: str) -> None:
    model = make_baseline(name, BaselineConfig(layers=2, width=48))
    assert macs(model) == counted(name, 2, 48, 75)
    assert macs(model, frames=10) == counted(name, 2, 48, 10)


def test_the_published_size_is_counted_without_its_numbers() -> None:
    with torch.device("meta"):
        model = make_baseline("mrdf_ce", BaselineConfig())
    assert macs(model) == counted("mrdf_ce", 12, 768, 75)


def test_counting_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = make_baseline("avdf", BaselineConfig(layers=1, width=48)).train()
    before: dict[str, Tensor] = {name: array.clone() for name, array in model.state_dict().items()}
    drawn = torch.get_rng_state()
    macs(model)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())
