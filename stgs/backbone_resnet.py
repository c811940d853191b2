"""torchvision's ResNets as backbones: the taps are the maps of layer2, layer3 and layer4, and the last one's mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from stgs.backbone_base import Backbone
from stgs.config import InputError, require


class ResNet(Backbone):
    """A ResNet without its classifier, with torchvision's names of layers.

    A subclass names torchvision's `architecture`. With one input channel the first kernel is the sum over its three,
    which is the response to a grey picture.
    """

    architecture: ClassVar[str]
    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        network = getattr(torchvision.models, self.architecture)(weights=None)
        if in_channels == 1:
            kernel = network.conv1.weight.detach()
            network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
            network.conv1.weight.data.copy_(kernel.sum(dim=1, keepdim=True))
        for name, module in network.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pictures [N, in_channels, H, W] -> maps [N, C, H', W']; `pooled` is layer4's, before its mean."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = {}
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, layer)(x)
            maps[layer] = x
        maps["pooled"] = x
        return {tap: maps[tap] for tap in self.taps}

    @classmethod
    def published_state(cls) -> dict[str, Tensor]:
        """torchvision's weights, which it downloads once."""
        weights = torchvision.models.get_model_weights(cls.architecture).DEFAULT
        try:
            return weights.get_state_dict(check_hash=True)
        except URLError as error:
            raise InputError(
                f"the imagenet weights of {cls.architecture} cannot be downloaded ({error.reason}); give a file with a "
                "state dict, or random:SEED for untrained ones."
            ) from None

    def adapted(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The state without its classifier, torchvision's or AutoSpeech's, for this number of input channels."""
        require(
            "conv1.weight" in state, f"weights {source!r} hold no conv1.weight, so they are no ResNet's state dict."
        )
        found = {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "classifier."))}
        kernel = found["conv1.weight"]
        if self.conv1.weight.shape[1] == 1 and kernel.shape[1] == 3:
            found["conv1.weight"] = kernel.sum(dim=1, keepdim=True)
        return found


class ResNet18(ResNet):
    """18 layers."""

    architecture = "resnet18"
    taps: ClassVar = {"layer2": 128, "layer3": 256, "layer4": 512, "pooled": 512}


class ResNet34(ResNet):
    """34 layers."""

    architecture = "resnet34"
    taps: ClassVar = {"layer2": 128, "layer3": 256, "layer4": 512, "pooled": 512}


class ResNet50(ResNet):
    """50 layers."""

    architecture = "resnet50"
    taps: ClassVar = {"layer2": 512, "layer3": 1024, "layer4": 2048, "pooled": 2048}
