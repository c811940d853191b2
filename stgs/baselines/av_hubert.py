"""The encoder of AV-HuBERT as MRDF uses it, written from its description (reference.md section 7).

Its parameters have the names of the released checkpoints, but for the transformer layers, which are torch's own.
Shapes: B clips, T frames of the longest, N frames of all clips together, C the width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from stgs.baselines.base import BaselineConfig
from stgs.baselines.batch import AUDIO_VALUES
from stgs.baselines.recompute import recomputed

HEADS = 12
# Channels of the picture network at first are the width / 12: 64 of 768.
_STEM_SHARE = 12
_POSITION_KERNEL = 128
_POSITION_GROUPS = 16


class VideoBlock(nn.Module):
    """Two convolutions of 3 x 3 with batch normalisation and PReLU, beside a shortcut: [N, in, H, W] to [N, out, ...].

    stride: of the first convolution, and of the shortcut's.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.PReLU(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.downsample(x))


class VideoNetwork(nn.Module):
    """A convolution over time and space, then a ResNet-18 with PReLU on every frame: one vector a frame.

    channels: of the first convolution; the vectors have 8 times as many. `recompute`: whether a training keeps less in
    memory and computes it anew (`stgs.baselines.recompute`).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.recompute = False
        convolution = nn.Conv3d(3, channels, (5, 7, 7), (1, 2, 2), padding=(2, 3, 3), bias=False)
        # Behind the convolution frames stand alone: its normalisation, 3-D in the released code, is that of pictures.
        self.frontend3D = nn.Sequential(
            convolution, nn.BatchNorm2d(channels), nn.PReLU(channels), nn.MaxPool2d(3, 2, padding=1)
        )
        self.trunk = nn.Sequential()
        for number in range(4):
            size, before = channels * 2**number, channels * 2 ** max(number - 1, 0)
            blocks = [VideoBlock(before, size, 1 if number == 0 else 2), VideoBlock(size, size, 1)]
            self.trunk.add_module(f"layer{number + 1}", nn.Sequential(*blocks))

    def forward(self, video: Tensor, lengths: Sequence[int]) -> Tensor:
        """video: [B, 3, T, H, W], zeros behind a clip's end. Returns the vectors of the clips' frames alone, [N, 8c].

        Frames behind a clip's end are left out behind the convolution, so that they neither cost a trunk nor enter the
        statistics of a batch normalisation.
        """
        convolution, *pictures = self.frontend3D
        parts: list[Callable[[Tensor], Tensor]] = [partial(_frames, convolution, lengths=lengths)]
        parts.append(nn.Sequential(*pictures))
        parts += [block for layer in self.trunk.children() for block in layer.children()]
        x = video
        for part in parts:
            x = recomputed(part, x, self) if self.recompute and self.training else part(x)
        return x.mean(dim=(2, 3))


def _frames(convolution: nn.Module, video: Tensor, lengths: Sequence[int]) -> Tensor:
    """The maps of the clips' own frames, [N, c, H / 2, W / 2], of a video [B, 3, T, H, W]."""
    clips = convolution(video).unbind()
    return torch.cat([clip[:, :frames].transpose(0, 1) for clip, frames in zip(clips, lengths, strict=True)])


class VideoFeatures(nn.Module):
    """Pictures to vectors of the width, [N, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = width // _STEM_SHARE
        self.resnet = VideoNetwork(channels)
        self.proj = nn.Linear(8 * channels, width)

    def forward(self, video: Tensor, lengths: Sequence[int]) -> Tensor:
        return self.proj(self.resnet(video, lengths))


class AudioFeatures(nn.Module):
    """Filter banks [..., 104] to vectors of the width, [..., C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(AUDIO_VALUES, width)

    def forward(self, audio: Tensor) -> Tensor:
        return self.proj(audio)


class PositionConvolution(nn.Module):
    """A grouped convolution over time whose weight is weight_g * weight_v, each of its 128 positions' length being
    weight_g: [B, C, T] to the same shape.

    The kernel is even, so the padding of both sides gives one position too many, and the last one is left out.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        deviation = math.sqrt(4.0 * (1.0 - dropout) / (_POSITION_KERNEL * width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight_v = nn.Parameter(torch.randn(width, width // _POSITION_GROUPS, _POSITION_KERNEL) * deviation)
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(0, 1), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        padding = _POSITION_KERNEL // 2
        return functional.conv1d(x, weight, self.bias, padding=padding, groups=_POSITION_GROUPS)[:, :, :-1]


class TransformerEncoder(nn.Module):
    """Position convolution, layer normalisation, and the transformer layers: [B, T, C] to the same shape."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        width = config.width
        # A sequence for its names alone: the released one has the convolution at 0.
        self.pos_conv = nn.Sequential(PositionConvolution(width, config.dropout))
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, HEADS, 4 * width, config.dropout, functional.gelu, batch_first=True)
            for _ in range(config.layers)
        )

    def forward(self, x: Tensor, behind: Tensor) -> Tensor:
        """behind: bool [B, T], true behind a clip's end."""
        # Zero is what the convolution's own padding holds behind the end of a clip that is alone.
        x = x.masked_fill(behind[:, :, None], 0.0)
        x = self.dropout(self.layer_norm(x + functional.gelu(self.pos_conv(x.mT).mT)))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=behind)
        return x


@dataclass(frozen=True, slots=True)
class Features:
    """What the two senses give, before they are fused.

    visual, audio: [B, T, C], whatever behind a clip's end. behind: bool [B, T], true there.
    """

    visual: Tensor
    audio: Tensor
    behind: Tensor

    def mean(self, frames: Tensor) -> Tensor:
        """The mean over each clip's own frames: [B, T, C] to [B, C], at least float32."""
        exact = frames.to(torch.promote_types(frames.dtype, torch.float32)).masked_fill(self.behind[:, :, None], 0.0)
        return exact.sum(dim=1) / (~self.behind).sum(dim=1, keepdim=True)


class AvHubert(nn.Module):
    """The two senses' features, and their fusion.

    mask_emb and final_proj belong to AV-HuBERT's own training: they are here because checkpoints and the published
    numbers of parameters hold them, and no output depends on them.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        width = config.width
        self.mask_emb = nn.Parameter(torch.rand(AUDIO_VALUES))
        self.feature_extractor_audio = AudioFeatures(width)
        self.feature_extractor_video = VideoFeatures(width)
        self.post_extract_proj = nn.Linear(2 * width, width)
        self.encoder = TransformerEncoder(config)
        self.layer_norm = nn.LayerNorm(2 * width)
        self.final_proj = nn.Linear(width, width)

    def features(self, video: Tensor, audio: Tensor, lengths: Tensor) -> Features:
        """video: [B, 3, T, 100, 100], zeros behind a clip's end. audio: [B, 104, T]. lengths: [B], 1 to T."""
        frames = lengths.tolist()
        longest = max(frames)
        visual = self.feature_extractor_video(video[:, :, :longest], frames)
        # Without waiting, so that the host does not stand still at every update until the device has caught up.
        ends = lengths.to(video.device, non_blocking=True)
        behind = torch.arange(longest, device=video.device) >= ends[:, None]
        padded = pad_sequence(list(visual.split(frames)), batch_first=True)
        return Features(padded, self.feature_extractor_audio(audio[:, :, :longest].mT), behind)

    def fused(self, features: Features) -> Tensor:
        """The encoder's output at position 0, [B, C]."""
        both = self.layer_norm(torch.cat([features.audio, features.visual], dim=-1))
        return self.encoder(self.post_extract_proj(both), features.behind)[:, 0]
