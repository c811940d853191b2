"""AVDF-Multilabel: both senses fused, one decision on each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from stgs.baselines.av_hubert_baseline import AvHubertBaseline
from stgs.baselines.base import BaselineConfig
from stgs.baselines.batch import Labels
from stgs.baselines.losses import at_least_float32


class AvdfMultilabel(AvHubertBaseline):
    """Binary cross-entropy of the two decisions, the mean of both."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config, classes=2)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """av_logits [B, 2], of "this sense is real": audio, video."""
        return {"av_logits": self.fused_logits(self.model.features(video, audio, lengths))}

    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        logits = at_least_float32(outputs["av_logits"])
        fake = torch.stack([labels.audio_fake, labels.visual_fake], dim=1).to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, 1 - fake, reduction="none").mean(dim=0)
        return {"loss": losses.mean(), "audio_loss": losses[0], "visual_loss": losses[1]}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """A clip is real only where both senses are called real: the larger of their P(fake)."""
        return torch.sigmoid(-outputs["av_logits"].double()).amax(dim=1)
