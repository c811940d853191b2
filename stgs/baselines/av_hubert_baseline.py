"""What MRDF and its relatives share: the encoder, and the heads of which each uses some."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from stgs.baselines.av_hubert import AvHubert, Features
from stgs.baselines.av_hubert_names import with_torch_layers, without_aliases
from stgs.baselines.base import Baseline, BaselineConfig


class AvHubertBaseline(Baseline):
    """Base of the detectors on AV-HuBERT's encoder; module names are those of the released checkpoints.

    Args:
        config: its size.
        classes: columns of the classifier of the fused senses, 0 for none.
        sense_classifiers: whether each sense has a classifier of its own.
    """

    def __init__(self, config: BaselineConfig, *, classes: int, sense_classifiers: bool = False) -> None:
        super().__init__(config)
        width = config.width
        self.model = AvHubert(config)
        self.project_audio = _projection(config)
        self.project_video = _projection(config)
        if classes > 0:
            self.mm_classifier = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
        if sense_classifiers:
            self.audio_classifier = nn.Sequential(nn.Linear(width, 2))
            self.video_classifier = nn.Sequential(nn.Linear(width, 2))

    def fused_logits(self, features: Features) -> Tensor:
        """Of the fused senses, [B, classes]."""
        return self.mm_classifier(self.model.fused(features))

    def cross(self, features: Features) -> dict[str, Tensor]:
        """The senses' means, which the contrast loss compares: v_cross and a_cross, each [B, C]."""
        return {"v_cross": features.mean(features.visual), "a_cross": features.mean(features.audio)}

    def embeddings(self, features: Features) -> dict[str, Tensor]:
        """The senses' means behind their projections: v_embeds and a_embeds, each [B, C]."""
        return {
            "v_embeds": features.mean(self.project_video(features.visual)),
            "a_embeds": features.mean(self.project_audio(features.audio)),
        }

    def sense_logits(self, features: Features) -> dict[str, Tensor]:
        """Of each sense alone: v_logits and a_logits, each [B, 2]."""
        embeddings = self.embeddings(features)
        return {
            "v_logits": self.video_classifier(embeddings["v_embeds"]),
            "a_logits": self.audio_classifier(embeddings["a_embeds"]),
        }

    def recompute_activations(self) -> None:
        self.model.feature_extractor_video.resnet.recompute = True

    def released_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return with_torch_layers(without_aliases(state))


def _projection(config: BaselineConfig) -> nn.Sequential:
    width = config.width
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Dropout(config.dropout))
