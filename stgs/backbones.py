"""Backbones on face frames and on spectrograms, and the features that their taps give.

Shapes: N clips, T frames of video, S frames of spectrogram, F frequencies, C channels, L positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from stgs.backbone_base import Backbone, build_backbone, check_weights, weights_digest
from stgs.backbone_resnet import ResNet18, ResNet34, ResNet50
from stgs.config import InputError, require, require_at_least

__all__ = ["BACKBONES", "SENSES", "BackboneConfig", "FeatureExtractor", "fetch_weights", "weights_digest"]

# Name in `BackboneConfig` -> class. An own backbone is a file with a subclass of `Backbone` and a line here.
BACKBONES: dict[str, type[Backbone]] = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
}
SENSES = ("visual", "audio")
TAPS = ("layer2", "layer3", "layer4", "pooled")
# Statistics of ImageNet, RGB: what the published weights were trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Which backbones, with which weights, give which features.

    visual, audio: resnet18, resnet34, resnet50, or an own one of `BACKBONES`. *_weights: `imagenet` (torchvision's own
    loader, which downloads once), a file with a state dict (for ResNets in torchvision's or AutoSpeech's key layout),
    or `random:SEED` (untrained). taps: which features; each backbone gives those that it has. length: L, positions of a
    sequence feature. spectrogram_statistics: `clip` normalises each spectrogram by its own mean and deviation;
    otherwise a JSON file with `mean` and `deviation`, F numbers each, made from training clips. audio_segments: 0, or L
    to cut each spectrogram into that many segments of equal length, which pass the backbone one by one and give one
    position each (the released setting).
    """

    visual: str = "resnet34"
    visual_weights: str = "imagenet"
    audio: str = "resnet34"
    audio_weights: str = "imagenet"
    taps: tuple[str, ...] = TAPS
    length: int = 8
    spectrogram_statistics: str = "clip"
    audio_segments: int = 0

    def __post_init__(self) -> None:
        known: list[str] = []
        for sense in SENSES:
            value = getattr(self, sense)
            require(value in BACKBONES, f"{sense} is {value!r}; choose one of {', '.join(BACKBONES)}.")
            own = list(BACKBONES[value].taps)
            known += [tap for tap in own if tap not in known]
            require(
                not self.taps or bool(self.sense_taps(sense)),
                f"taps is {list(self.taps)}, but {value} has none of these; choose from {', '.join(own)}.",
            )
        unknown = sorted(set(self.taps) - set(known))
        require(not unknown and bool(self.taps), f"taps is {list(self.taps)}; choose from {', '.join(known)}.")
        require_at_least("length", self.length, 1)
        require(
            self.audio_segments in (0, self.length),
            f"audio_segments is {self.audio_segments}, but it must be 0, or the length, {self.length}.",
        )
        for sense in SENSES:
            check_weights(f"{sense}_weights", getattr(self, f"{sense}_weights"))

    def sense_taps(self, sense: str) -> dict[str, int]:
        """Tap -> channels of a sense's features, in the order of depth."""
        channels = BACKBONES[getattr(self, sense)].taps
        return {tap: size for tap, size in channels.items() if tap in self.taps}

    def check_spectrogram(self, frames: int) -> None:
        """Refuse spectrograms of this length, [S], that cannot be cut into equal segments."""
        segments = self.audio_segments
        require(
            segments == 0 or frames % segments == 0,
            f"a spectrogram has {frames} frames, which audio_segments {segments} does not divide; prepare a corpus "
            f"with a multiple of {segments}, or set audio_segments to 0.",
        )

    @property
    def features(self) -> dict[str, int]:
        """Feature -> channels, such as `visual.layer2` -> 128, in the order of a search space."""
        return {f"{sense}.{tap}": size for sense in SENSES for tap, size in self.sense_taps(sense).items()}


def fetch_weights(config: BackboneConfig) -> None:
    """Download the `imagenet` weights of a configuration to torch's cache, unless they are there.

    So that a machine without a network says so at once, and actors on one machine do not download side by side. Raises
    InputError if they cannot be had.
    """
    for sense in SENSES:
        if getattr(config, f"{sense}_weights") == "imagenet":
            BACKBONES[getattr(config, sense)].published_state()


class FeatureExtractor(nn.Module):
    """Both backbones, and the pooling that is free of searched and trained parameters (design.md section 3)."""

    image_mean: Tensor
    image_deviation: Tensor
    spectrogram_mean: Tensor | None
    spectrogram_deviation: Tensor | None

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = build_backbone(BACKBONES[config.visual], config.visual_weights, in_channels=3)
        self.audio = build_backbone(BACKBONES[config.audio], config.audio_weights, in_channels=1)
        self.features = config.features
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_deviation", torch.tensor(IMAGE_DEVIATION).view(1, 3, 1, 1), persistent=False)
        mean, deviation = _read_statistics(config.spectrogram_statistics)
        self.register_buffer("spectrogram_mean", mean, persistent=False)
        self.register_buffer("spectrogram_deviation", deviation, persistent=False)

    @torch.no_grad()
    def forward(self, frames: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
        """Features of a batch of clips, as they are cached; arguments and errors as of `pooled_taps`.

        Returns:
            name -> float16 [N, C, L], or [N, C] for pooled features, in the order of `features`.

        Raises:
            InputError: a feature beyond the range of float16.
        """
        return {name: _to_half(name, tensor) for name, tensor in self.pooled_taps(frames, spectrogram).items()}

    def pooled_taps(self, frames: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
        """Features of a batch of clips, differentiable with respect to the backbones' parameters.

        Args:
            frames: uint8 [N, T, 3, H, W], RGB; T must equal `length`.
            spectrogram: float32 [N, S, F], magnitude, at least 0.

        Returns:
            name -> float32 [N, C, L], or [N, C] for pooled features, in the order of `features`.

        Raises:
            InputError: inputs of another type or shape, another number of frames than `length`, or a spectrogram that
                cannot be cut into equal segments.
        """
        self._check(frames, spectrogram)
        return self._visual_taps(frames) | self._audio_taps(spectrogram)

    @torch.no_grad()
    def visual_features(self, frames: Tensor) -> dict[str, Tensor]:
        """What `forward` makes of frames alone, uint8 [N, T, 3, H, W]."""
        return {name: _to_half(name, tensor) for name, tensor in self._visual_taps(frames).items()}

    @torch.no_grad()
    def audio_features(self, spectrogram: Tensor) -> dict[str, Tensor]:
        """What `forward` makes of spectrograms alone, float32 [N, S, F]."""
        return {name: _to_half(name, tensor) for name, tensor in self._audio_taps(spectrogram).items()}

    def _visual_taps(self, frames: Tensor) -> dict[str, Tensor]:
        # In place: these are the largest tensors beside the maps.
        pictures = frames.flatten(end_dim=1).float().div_(255.0).sub_(self.image_mean).div_(self.image_deviation)
        maps = self.visual(pictures)
        return self._pool("visual", maps, self.config.length)

    def _audio_taps(self, spectrogram: Tensor) -> dict[str, Tensor]:
        segments = self.config.audio_segments
        sound = self._normalise(spectrogram)
        if segments:
            # [N, S, F] -> [N L, S / L, F]: each segment is a picture of its own.
            sound = sound.unflatten(1, (segments, -1)).flatten(end_dim=1)
        return self._pool("audio", self.audio(sound.unsqueeze(1)), segments)

    def _check(self, frames: Tensor, spectrogram: Tensor) -> None:
        length = self.config.length
        require(
            frames.dtype == torch.uint8 and frames.dim() == 5 and frames.shape[2] == 3,
            f"frames are {frames.dtype} {tuple(frames.shape)}, but uint8 [N, T, 3, H, W] is needed.",
        )
        require(
            spectrogram.is_floating_point() and spectrogram.dim() == 3 and spectrogram.shape[0] == frames.shape[0],
            f"spectrogram is {spectrogram.dtype} {tuple(spectrogram.shape)}, but float [N, S, F] is needed.",
        )
        count = frames.shape[1]
        require(count == length, f"a clip has {count} frames, but length is {length}; set length to {count}.")
        self.config.check_spectrogram(spectrogram.shape[1])

    def _pool(self, sense: str, maps: Mapping[str, Tensor], pictures: int) -> dict[str, Tensor]:
        """Maps [N * pictures, C, H', W'] -> features; pictures 0: one a clip, whose rows are its moments."""
        length, features = self.config.length, {}
        for tap in self.config.sense_taps(sense):
            # Under mixed precision the maps are halves: a maximum of those is exact, a mean is taken in float32.
            x = maps[tap]
            if pictures:
                x = x.unflatten(0, (-1, pictures))
                # [N, L, C, H', W']: mean over time and space, or one value a picture.
                pooled = _mean(x, (1, 3, 4)) if tap == "pooled" else x.amax(dim=(3, 4)).float().transpose(1, 2)
            elif tap == "pooled":
                pooled = _mean(x, (2, 3))
            else:
                # [N, C, S', F']: the maximum over frequency at L moments.
                pooled = _maxima(x.amax(dim=3).float(), length)
            features[f"{sense}.{tap}"] = pooled
        return features

    def _normalise(self, spectrogram: Tensor) -> Tensor:
        mean, deviation = self.spectrogram_mean, self.spectrogram_deviation
        if mean is None or deviation is None:
            deviation, mean = torch.std_mean(spectrogram, dim=(1, 2), keepdim=True)
        else:
            require(
                mean.shape == spectrogram.shape[2:],
                f"spectrogram_statistics hold {len(mean)} frequencies, but the spectrogram has {spectrogram.shape[2]}.",
            )
        return (spectrogram - mean) / (deviation + 1e-8)


def _read_statistics(source: str) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Mean and deviation, float32 [F], or nothing where each clip has its own."""
    if source == "clip":
        return None, None
    try:
        values = json.loads(Path(source).read_text())
        mean, deviation = (torch.tensor(values[name], dtype=torch.float32) for name in ("mean", "deviation"))
        if mean.dim() != 1 or mean.shape != deviation.shape or not bool((deviation > 0).all()):
            raise ValueError("both must be lists of one number a frequency, deviations above 0")
        return mean, deviation
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"spectrogram_statistics is {source!r}, which cannot be read ({error}); give 'clip' or a JSON file with "
            "'mean' and 'deviation'."
        ) from None


def _maxima(x: Tensor, length: int) -> Tensor:
    """Adaptive maximum of x [N, C, S] at `length` moments."""
    if not torch.compiler.is_exporting():
        return functional.adaptive_max_pool1d(x, length)
    # ONNX has no adaptive pooling. The same windows one by one; their gradients would differ where maxima tie.
    positions = x.shape[2]
    ends = [(i * positions // length, -(-(i + 1) * positions // length)) for i in range(length)]
    return torch.stack([x[..., start:end].amax(dim=2) for start, end in ends], dim=2)


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.mean(dim=axes, dtype=torch.float32)


def _to_half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    require(
        bool(torch.isfinite(half).all()),
        f"feature {name!r} reaches {float(tensor.abs().max()):.3g}, beyond float16; use other backbone weights.",
    )
    return half
