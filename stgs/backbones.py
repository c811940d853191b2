"""Frozen backbones: torchvision's ResNets on face frames and on spectrograms, and the features they give.

Shapes: N clips, T frames of video, S frames of spectrogram, F frequencies, C channels, L positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from stgs.config import InputError, require, require_at_least

RESNETS = ("resnet18", "resnet34", "resnet50")
TAPS = ("layer2", "layer3", "layer4", "pooled")
# Statistics of ImageNet, RGB: what the published weights were trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Which backbones, with which weights, give which features.

    visual, audio: one of `RESNETS`. *_weights: `imagenet` (torchvision's own loader, which downloads once), a file
    with a state dict in torchvision's or AutoSpeech's key layout, or `random:SEED` (untrained). taps: which features.
    length: L, positions of a sequence feature. spectrogram_statistics: `clip` normalises each spectrogram by its own
    mean and deviation; otherwise a JSON file with `mean` and `deviation`, F numbers each, made from training clips.
    """

    visual: str = "resnet34"
    visual_weights: str = "imagenet"
    audio: str = "resnet34"
    audio_weights: str = "imagenet"
    taps: tuple[str, ...] = TAPS
    length: int = 8
    spectrogram_statistics: str = "clip"

    def __post_init__(self) -> None:
        for field in ("visual", "audio"):
            value = getattr(self, field)
            require(value in RESNETS, f"{field} is {value!r}; choose one of {', '.join(RESNETS)}.")
        unknown = sorted(set(self.taps) - set(TAPS))
        require(not unknown and bool(self.taps), f"taps is {list(self.taps)}; choose from {', '.join(TAPS)}.")
        require_at_least("length", self.length, 1)
        for field in ("visual_weights", "audio_weights"):
            check_weights(field, getattr(self, field))


def check_weights(field: str, weights: str) -> None:
    """Refuse weights that are neither `imagenet`, nor `random:SEED`, nor a file that is there."""
    if weights == "imagenet":
        return
    if weights.startswith("random:"):
        require(
            weights.removeprefix("random:").isdecimal(), f"{field} is {weights!r}; write random:SEED, such as random:0."
        )
        return
    require(
        Path(weights).is_file(), f"{field} is {weights!r}, which is no file; give imagenet, random:SEED or a .pt file."
    )


def weights_digest(weights: str) -> str:
    """What identifies weights: their name, and for a file its sha256."""
    path = Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else weights


def build_resnet(architecture: str, weights: str, in_channels: int) -> nn.Module:
    """A ResNet without its classifier, in evaluation mode, its parameters frozen.

    Args:
        architecture: one of `RESNETS`.
        weights: see `BackboneConfig`.
        in_channels: 3 for frames, 1 for spectrograms; a kernel of 3 channels is summed into one, which is the response
            to a grey picture.

    Raises:
        InputError: a weights file that does not fit the architecture.
    """
    if weights.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(weights.removeprefix("random:")))
            network = getattr(torchvision.models, architecture)(weights=None)
        state = network.state_dict()
    else:
        network = getattr(torchvision.models, architecture)(weights=None)
        state = _imagenet_state(architecture) if weights == "imagenet" else _file_state(weights)
    if in_channels == 1:
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        if state["conv1.weight"].shape[1] == 3:
            state = {**state, "conv1.weight": state["conv1.weight"].sum(dim=1, keepdim=True)}
    network.fc = nn.Identity()
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "classifier."))}
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights {weights!r} do not fit {architecture}: {error}") from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    require(
        not missing and not unexpected,
        f"weights {weights!r} do not fit {architecture}: missing {missing[:3]}, unexpected {unexpected[:3]}.",
    )
    return network.eval().requires_grad_(False)


def _imagenet_state(architecture: str) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    try:
        return weights.get_state_dict(check_hash=True)
    except URLError as error:
        raise InputError(
            f"the imagenet weights of {architecture} cannot be downloaded ({error.reason}); give a file with a state "
            "dict, or random:SEED for untrained ones."
        ) from None


def fetch_weights(config: BackboneConfig) -> None:
    """Download the `imagenet` weights of a configuration to torch's cache, unless they are there.

    So that a machine without a network says so at once, and actors on one machine do not download side by side. Raises
    InputError if they cannot be had.
    """
    for sense in ("visual", "audio"):
        if getattr(config, f"{sense}_weights") == "imagenet":
            _imagenet_state(getattr(config, sense))


def _file_state(path: str) -> dict[str, Tensor]:
    """A state dict from a file: torchvision's layout, or a checkpoint that holds it under `state_dict` with `module.`
    before each name, as AutoSpeech's are.
    """
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises many kinds for a file that is no checkpoint; each becomes one sentence with its cause.
        raise InputError(
            f"weights {path!r} cannot be read as a state dict ({type(error).__name__}: {error})."
        ) from error
    state = stored.get("state_dict", stored) if isinstance(stored, Mapping) else {}
    state = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    require("conv1.weight" in state, f"weights {path!r} hold no conv1.weight, so they are no ResNet's state dict.")
    return state


class FeatureExtractor(nn.Module):
    """Both backbones, and the pooling that is free of searched and trained parameters (design.md section 3)."""

    image_mean: Tensor
    image_deviation: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = build_resnet(config.visual, config.visual_weights, in_channels=3)
        self.audio = build_resnet(config.audio, config.audio_weights, in_channels=1)
        self.features: dict[str, int] = {
            f"{sense}.{tap}": _tap_channels(getattr(self, sense), tap)
            for sense in ("visual", "audio")
            for tap in TAPS
            if tap in config.taps
        }
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_deviation", torch.tensor(IMAGE_DEVIATION).view(1, 3, 1, 1), persistent=False)
        self._statistics = _read_statistics(config.spectrogram_statistics)

    @torch.no_grad()
    def forward(self, frames: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
        """Features of a batch of clips.

        Args:
            frames: uint8 [N, T, 3, H, W], RGB; T must equal `length`.
            spectrogram: float32 [N, S, F], magnitude, at least 0.

        Returns:
            name -> float16 [N, C, L], or [N, C] for pooled features, in the order of `features`.

        Raises:
            InputError: inputs of another type or shape, another number of frames than `length`, or a feature beyond
                the range of float16.
        """
        length = self.config.length
        require(
            frames.dtype == torch.uint8 and frames.dim() == 5 and frames.shape[2] == 3,
            f"frames are {frames.dtype} {tuple(frames.shape)}, but uint8 [N, T, 3, H, W] is needed.",
        )
        require(
            spectrogram.is_floating_point() and spectrogram.dim() == 3 and len(spectrogram) == len(frames),
            f"spectrogram is {spectrogram.dtype} {tuple(spectrogram.shape)}, but float [N, S, F] is needed.",
        )
        count = frames.shape[1]
        require(count == length, f"a clip has {count} frames, but length is {length}; set length to {count}.")
        pictures = frames.flatten(end_dim=1).float().div_(255.0)
        visual = self._taps(self.visual, (pictures - self.image_mean) / self.image_deviation)
        audio = self._taps(self.audio, self._normalise(spectrogram).unsqueeze(1))
        features = {}
        for tap, maps in visual.items():
            clips = maps.unflatten(0, (-1, length))
            # [N, T, C, H, W]: mean over time and space, or one value a frame.
            pooled = clips.mean(dim=(1, 3, 4)) if tap == "pooled" else clips.amax(dim=(3, 4)).transpose(1, 2)
            features[f"visual.{tap}"] = pooled
        for tap, maps in audio.items():
            # [N, C, S', F']: mean over time and frequency, or the maximum over frequency at L moments.
            pooled = (
                maps.mean(dim=(2, 3)) if tap == "pooled" else functional.adaptive_max_pool1d(maps.amax(dim=3), length)
            )
            features[f"audio.{tap}"] = pooled
        return {name: _to_half(name, tensor) for name, tensor in features.items()}

    def _taps(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Maps of the configured taps; `pooled` gives the last map, which the caller averages."""
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))  # type: ignore[operator]
        maps = {}
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(network, layer)(x)
            maps[layer] = x
        maps["pooled"] = x
        return {tap: maps[tap] for tap in TAPS if tap in self.config.taps}

    def _normalise(self, spectrogram: Tensor) -> Tensor:
        if self._statistics is None:
            deviation, mean = torch.std_mean(spectrogram, dim=(1, 2), keepdim=True)
        else:
            mean, deviation = (values.to(spectrogram) for values in self._statistics)
            require(
                mean.shape == spectrogram.shape[2:],
                f"spectrogram_statistics hold {len(mean)} frequencies, but the spectrogram has {spectrogram.shape[2]}.",
            )
        return (spectrogram - mean) / (deviation + 1e-8)


def _tap_channels(network: nn.Module, tap: str) -> int:
    block = getattr(network, "layer4" if tap == "pooled" else tap)[-1]
    last = block.conv3 if hasattr(block, "conv3") else block.conv2
    return int(last.out_channels)


def _read_statistics(source: str) -> tuple[Tensor, Tensor] | None:
    if source == "clip":
        return None
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


def _to_half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    require(
        bool(torch.isfinite(half).all()),
        f"feature {name!r} reaches {float(tensor.abs().max()):.3g}, beyond float16; use other backbone weights.",
    )
    return half
