"""Backbones and found network together: from prepared frames and spectrograms to P(fake), in one module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stgs.backbones import FeatureExtractor
from stgs.concat_linear import ConcatLinear
from stgs.found_network import FoundNetwork
from stgs.layers import ForwardContext


class Detector(nn.Module):
    """What becomes of a prepared clip, in evaluation mode; a module of tensors alone, so that it can be exported.

    Args:
        extractor: the backbones with their pooling.
        network: a trained network of one member, over features of these backbones.
    """

    seeds: Tensor

    def __init__(self, extractor: FeatureExtractor, network: FoundNetwork | ConcatLinear) -> None:
        super().__init__()
        self.extractor = extractor
        self.network = network
        self.eval()
        self.register_buffer("seeds", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, frames: Tensor, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        """P(fake) and its logit, float32 [N] each.

        Features stay float32 here, where a cache rounds them to float16: on a rounding edge the two differ by a step.

        Args:
            frames: uint8 [N, T, 3, H, W], RGB.
            spectrogram: float32 [N, S, F], magnitude, at least 0.
        """
        return self.scores(self.extractor.pooled_taps(frames, spectrogram))

    def scores(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """P(fake) and its logit, float32 [N] each, from the taps [N, C, L] or [N, C] of `FeatureExtractor`."""
        features = {name: self._at_length(taps[name]) for name in self.network.used_features}
        context = ForwardContext(self.seeds, 0, training=False, track_statistics=False)
        logits = self.network(features, context)[0]
        return torch.sigmoid(logits), logits

    def _at_length(self, tap: Tensor) -> Tensor:
        """[N, C, L] -> [N, L', C] at the network's length L'; [N, C] as it is."""
        if tap.dim() == 2:
            return tap
        return tap.unflatten(2, (self.network.length, -1)).amax(dim=3).transpose(1, 2)
