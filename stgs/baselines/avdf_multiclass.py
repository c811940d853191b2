"""AVDF-Multiclass: both senses fused, which of them is fake as one of four classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from stgs.baselines.av_hubert_baseline import AvHubertBaseline
from stgs.baselines.base import BaselineConfig
from stgs.baselines.batch import Labels
from stgs.baselines.losses import at_least_float32


class AvdfMulticlass(AvHubertBaseline):
    """Cross-entropy of the four categories, in the released order: A, C, B, D."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config, classes=4)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """m_logits [B, 4]."""
        return {"m_logits": self.fused_logits(self.model.features(video, audio, lengths))}

    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        category = labels.visual_fake + 2 * labels.audio_fake
        return {"loss": functional.cross_entropy(at_least_float32(outputs["m_logits"]), category)}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """What is not category A is fake: 1 - P(A), summed from the others, which stays exact where P(A) is near 1."""
        return torch.softmax(outputs["m_logits"].double(), dim=1)[:, 1:].sum(dim=1).clamp_max(1.0)
