"""AVDF-Ensemble: a detector of each sense alone, joined by their decisions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stgs.baselines.av_hubert_baseline import AvHubertBaseline
from stgs.baselines.base import BaselineConfig
from stgs.baselines.batch import Labels
from stgs.baselines.losses import cross_entropy, fake_probability


class AvdfEnsemble(AvHubertBaseline):
    """Cross-entropy of each sense; nothing is fused, and the fusion's parameters stay as they start."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config, classes=0, sense_classifiers=True)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """v_logits and a_logits, [B, 2]."""
        return self.sense_logits(self.model.features(video, audio, lengths))

    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        audio = cross_entropy(outputs["a_logits"], labels.audio_fake)
        visual = cross_entropy(outputs["v_logits"], labels.visual_fake)
        return {"loss": audio + visual, "audio_loss": audio, "visual_loss": visual}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """A clip is real only where both senses are called real: the larger of their P(fake)."""
        return torch.maximum(fake_probability(outputs["a_logits"]), fake_probability(outputs["v_logits"]))
