"""AVDF: both senses, the clip's label alone; what MRDF's authors compare it with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stgs.baselines.av_hubert_baseline import AvHubertBaseline
from stgs.baselines.base import BaselineConfig
from stgs.baselines.batch import Labels
from stgs.baselines.losses import cross_entropy, fake_probability


class Avdf(AvHubertBaseline):
    """Cross-entropy of the clip."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config, classes=2)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """m_logits [B, 2]."""
        return {"m_logits": self.fused_logits(self.model.features(video, audio, lengths))}

    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        return {"loss": cross_entropy(outputs["m_logits"], labels.fake)}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return fake_probability(outputs["m_logits"])
