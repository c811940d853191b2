"""A backbone of two convolutions with batch norm: what is true of a ResNet, in milliseconds."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from stgs.backbone_base import Backbone
from stgs.backbones import BACKBONES, BackboneConfig


class TinyBackbone(Backbone):
    """Two blocks of convolution, batch norm and ReLU."""

    taps: ClassVar = {"early": 4, "late": 8, "pooled": 8}

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.early = nn.Sequential(nn.Conv2d(in_channels, 4, 5, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.late = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pictures [N, in_channels, H, W] -> maps."""
        early = self.early(x)
        late = self.late(early)
        return {"early": early, "late": late, "pooled": late}


def tiny_backbones(length: int) -> BackboneConfig:
    """Two of them, untrained, under the name `tiny`, which is registered here; `length` frames a clip."""
    BACKBONES.setdefault("tiny", TinyBackbone)
    return BackboneConfig(
        visual="tiny",
        audio="tiny",
        visual_weights="random:0",
        audio_weights="random:1",
        taps=("late", "pooled"),
        length=length,
    )


def random_clips(count: int, frames: int, *, size: int = 16, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Frames uint8 [N, T, 3, H, W] and spectrograms [N, 24, 17] of noise."""
    generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (count, frames, 3, size, size), dtype=torch.uint8, generator=generator)
    return pictures, torch.rand(count, 24, 17, generator=generator)
