"""MRDF-Margin: the clip's label, embeddings of each sense that part by its label, and the distance of the senses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stgs.baselines.av_hubert_baseline import AvHubertBaseline
from stgs.baselines.base import BaselineConfig
from stgs.baselines.batch import Labels
from stgs.baselines.losses import contrast, cross_entropy, fake_probability, margin


class MrdfMargin(AvHubertBaseline):
    """Cross-entropy of the clip, a margin loss of each sense's embeddings, and the contrast of the senses."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config, classes=2)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """m_logits [B, 2], and v_cross, a_cross, v_embeds, a_embeds [B, C]."""
        features = self.model.features(video, audio, lengths)
        return {"m_logits": self.fused_logits(features), **self.cross(features), **self.embeddings(features)}

    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        config = self.config
        terms = {
            "clip_loss": cross_entropy(outputs["m_logits"], labels.fake),
            "audio_loss": margin(outputs["a_embeds"], labels.audio_fake, config.margin_audio),
            "visual_loss": margin(outputs["v_embeds"], labels.visual_fake, config.margin_visual),
            "contrast_loss": contrast(outputs["v_cross"], outputs["a_cross"], 1 - labels.fake, config.margin_contrast),
        }
        return {"loss": sum(terms.values(), start=terms["clip_loss"].new_zeros(())), **terms}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return fake_probability(outputs["m_logits"])
