"""What a baseline costs."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from stgs.baselines.base import Baseline
from stgs.baselines.batch import AUDIO_VALUES, CROP


def macs(model: Baseline, frames: int = 75) -> int:
    """Multiply-accumulate operations of one clip's forward pass: convolutions and matrix products.

    Normalisations, activations and pooling are left out, as in the counts of found networks. Nothing is computed: the
    model is rebuilt without numbers.

    frames: of the clip; 75 are 3 s.
    """
    with torch.device("meta"):
        shapes = type(model)(model.config).eval()
        video, audio = torch.empty(1, 3, frames, CROP, CROP), torch.empty(1, AUDIO_VALUES, frames)
    # On a CPU or a GPU torch's transformer layers would take a fused path, which the counter does not know.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(video, audio, torch.tensor([frames]))
    return counter.get_total_flops() // 2
