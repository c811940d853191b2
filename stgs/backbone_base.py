"""What a backbone is, and where its weights come from.

Shapes: N pictures, C channels, H and W of the picture; a spectrogram is a picture of one channel, time by frequency.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stgs.config import InputError, require


class Backbone(nn.Module, abc.ABC):
    """Base of the networks that turn frames or spectrograms into feature maps.

    A subclass sets `taps`, builds its layers in a constructor that takes in_channels (3 for frames, 1 for
    spectrograms), and implements `forward`. Batch norm, if any, stays in evaluation mode: the features of a clip must
    not depend on its company.
    """

    taps: ClassVar[Mapping[str, int]]
    """Tap -> channels, in the order of depth. A tap named `pooled` gives one vector a clip (the mean over space and
    time), every other one a value for each of the L positions (the maximum over space or frequency)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()

    @abc.abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """float [N, in_channels, H, W], normalised -> tap -> map [N, C, H', W'], every tap of `taps`."""

    @classmethod
    def published_state(cls) -> dict[str, Tensor]:
        """The state dict of the weights `imagenet`. Raises InputError where there is none."""
        raise InputError(f"{cls.__name__} has no imagenet weights; give a file with a state dict, or random:SEED.")

    def adapted(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """A state dict from `source` as `load_state_dict` takes it; for layouts other than this module's own."""
        return dict(state)


def build_backbone(kind: type[Backbone], weights: str, in_channels: int) -> Backbone:
    """A backbone in evaluation mode, its parameters frozen.

    Args:
        kind: the backbone's class.
        weights: `imagenet`, a file, or `random:SEED`.
        in_channels: 3 for frames, 1 for spectrograms.

    Raises:
        InputError: weights that cannot be had, or that do not fit.
    """
    if weights.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(weights.removeprefix("random:")))
            return kind(in_channels).eval().requires_grad_(False)
    network = kind(in_channels)
    state = network.adapted(kind.published_state() if weights == "imagenet" else _file_state(weights), weights)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights {weights!r} do not fit {kind.__name__}: {error}") from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    require(
        not missing and not unexpected,
        f"weights {weights!r} do not fit {kind.__name__}: missing {missing[:3]}, unexpected {unexpected[:3]}.",
    )
    return network.eval().requires_grad_(False)


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


def _file_state(path: str) -> dict[str, Tensor]:
    """A state dict from a file, or from a checkpoint that holds it under `state_dict` with `module.` before each name,
    as AutoSpeech's do.
    """
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises many kinds for a file that is no checkpoint; each becomes one sentence with its cause, of
        # which the first sentence says what is wrong and a page follows on torch itself.
        cause = str(error).partition(". ")[0].partition("\n")[0]
        raise InputError(
            f"weights {path!r} cannot be read as a state dict ({type(error).__name__}: {cause}); give another file."
        ) from error
    state = stored.get("state_dict", stored) if isinstance(stored, Mapping) else {}
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
