"""MRDF-CE: the clip's label, each sense's label, and the distance of the senses (ICASSP 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from stgs.baselines.av_hubert_baseline import AvHubertBaseline
from stgs.baselines.base import BaselineConfig, Published
from stgs.baselines.batch import Labels
from stgs.baselines.losses import contrast, cross_entropy, fake_probability


class MrdfCe(AvHubertBaseline):
    """Cross-entropy of the clip and of each sense, and the contrast of the senses.

    The released code gives each sense's head the other sense's labels; here each has its own.
    """

    published: ClassVar = Published(
        source="MRDF, ICASSP 2024",
        data="FakeAVCeleb, 5 folds, 2,000 balanced clips",
        accuracy=0.9405,
        auc=0.9243,
        note="AUC of decisions, not of scores, and epochs chosen on the test folds, as the released code does",
    )

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config, classes=2, sense_classifiers=True)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """m_logits [B, 2], v_cross and a_cross [B, C], v_logits and a_logits [B, 2]."""
        features = self.model.features(video, audio, lengths)
        return {"m_logits": self.fused_logits(features), **self.cross(features), **self.sense_logits(features)}

    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        terms = {
            "clip_loss": cross_entropy(outputs["m_logits"], labels.fake),
            "audio_loss": cross_entropy(outputs["a_logits"], labels.audio_fake),
            "visual_loss": cross_entropy(outputs["v_logits"], labels.visual_fake),
            "contrast_loss": contrast(
                outputs["v_cross"], outputs["a_cross"], 1 - labels.fake, self.config.margin_contrast
            ),
        }
        return {"loss": sum(terms.values(), start=terms["clip_loss"].new_zeros(())), **terms}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return fake_probability(outputs["m_logits"])
