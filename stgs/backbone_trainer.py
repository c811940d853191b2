"""Trains both backbones under a fusion network, in the memory of a few clips: gradient caching (arXiv 2101.06983).

The backbones run twice over a batch. First without gradients, in micro-batches, which gives the features of the whole
batch; the fusion network makes its update on these and leaves their gradient. Then micro-batch by micro-batch once
more, and that gradient goes back into the backbones. Nothing of the full batch's mathematics is changed: this is
gradient accumulation and activation checkpointing in one, under a loss whose batch norm needs the whole batch.

Batch norm of the backbones keeps its statistics (only scale and shift are trained), so that results do not depend on
the micro-batch. Under float16 an update whose features or gradients overflow is skipped. Shapes: B clips of this
worker, T frames, S spectrogram frames, F frequencies, C channels, L positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stgs.backbones import SENSES, FeatureExtractor
from stgs.bilevel import Batch
from stgs.config import InputError, require, require_at_least
from stgs.parallel import SINGLE, Workers
from stgs.precision import gradient_scaler, mixed_precision, remedy, require_precision, resolved_precision
from stgs.streamed import RawClips, StreamedClips


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """How backbones are trained inside a search, or with a found network.

    micro_batch: clips that pass the backbones at once, which bounds the memory and changes no result beyond rounding.
    precision: of the backbones' arithmetic, `float32`, `float16`, `bfloat16` or `auto`: bfloat16 on CUDA devices that
    have it, float16 on others, float32 on a CPU. backbone_learning_rate: Adam's largest; it follows the cosine of the
    weights' schedule; their gradients are not clipped: a search's clip_norm bounds the fusion network's alone.
    backbone_weight_decay: Adam's. shuffle_clips: clips of a worker from which the next one of a batch is drawn, at
    least 1.
    """

    micro_batch: int = 8
    precision: str = "auto"
    backbone_learning_rate: float = 1e-4
    backbone_weight_decay: float = 1e-4
    shuffle_clips: int = 512

    def __post_init__(self) -> None:
        for field in ("micro_batch", "shuffle_clips"):
            require_at_least(field, getattr(self, field), 1)
        require_precision(self.precision)
        require(
            self.backbone_learning_rate > 0,
            f"backbone_learning_rate is {self.backbone_learning_rate}, but it must be above 0.",
        )
        require_at_least("backbone_weight_decay", self.backbone_weight_decay, 0)


class BackboneTrainer:
    """Both backbones with their optimiser.

    Args:
        extractor: the backbones as they start, on the device where they are trained.
        config: how they are trained.
        names: the features that are wanted, of those the backbones give.
        workers: who shares a batch.
    """

    def __init__(
        self, extractor: FeatureExtractor, config: FinetuneConfig, names: Sequence[str], workers: Workers = SINGLE
    ) -> None:
        self.config, self.names, self.workers = config, list(names), workers
        self.device = extractor.image_mean.device
        self.precision = resolved_precision(config.precision, self.device)
        self.extractor = extractor.requires_grad_(True)
        self.optimizer = torch.optim.Adam(
            self.extractor.parameters(),
            lr=config.backbone_learning_rate,
            weight_decay=config.backbone_weight_decay,
            fused=True,
        )
        self.scaler = gradient_scaler(self.precision, self.device)
        # Whether a feature of the last guarded batch was beyond float16, of any worker; None where nothing is guarded.
        self.overflowed: Tensor | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._outputs: dict[str, Tensor] | None = None

    def inputs(self, clips: RawClips) -> tuple[Tensor, Tensor]:
        """Frames and spectrograms of clips on the device."""
        frames, spectrogram = torch.from_numpy(clips.frames), torch.from_numpy(clips.spectrogram)
        if self.device.type == "cuda":
            # From pinned memory the host does not wait, and reads the next batch while the device works on this one.
            frames, spectrogram = frames.pin_memory(), spectrogram.pin_memory()
        return frames.to(self.device, non_blocking=True), spectrogram.to(self.device, non_blocking=True)

    @torch.no_grad()
    def features(self, frames: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
        """Features of B clips as a fusion network takes them, without gradients.

        frames: uint8 [B, T, 3, H, W]. spectrogram: float32 [B, S, F]. Returns name -> float32 [B, L, C] or [B, C].
        """
        parts = [self._run(*inputs) for inputs in self._micro_batches(frames, spectrogram)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.names}

    def batches(self, split: StreamedClips, clips: Iterable[RawClips]) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Positions in the split, and features without gradients, of one batch after the other."""
        for raw in clips:
            yield raw.index, split.with_features(raw, self.features(*self.inputs(raw)))

    @torch.no_grad()
    def guarded(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features of a batch for an update; under float16 zeros, if one of any worker is not finite.

        `overflowed`, a bool on the device, then says so: what the update does is to be taken back, and `step` makes
        none.
        """
        if not self.scaler.is_enabled():
            return dict(features)
        own = torch.stack([x.isfinite().all() for x in features.values()]).all()
        self.overflowed = self.workers.sum_((~own).float()) > 0
        return {name: x.masked_fill(self.overflowed, 0.0) for name, x in features.items()}

    def begin(self, frames: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
        """The guarded features as leaves that require gradients, for a weight update; `backward` takes the latter."""
        self._inputs = (frames, spectrogram)
        if len(frames) <= self.config.micro_batch:
            self._outputs = self._run(frames, spectrogram)
            found = self._outputs
        else:
            self._outputs, found = None, self.features(frames, spectrogram)
        return {name: tensor.detach().requires_grad_() for name, tensor in self.guarded(found).items()}

    def backward(self, features: Mapping[str, Tensor]) -> None:
        """Carry the gradients that the leaves of `begin` received on to the backbones, summed over the workers."""
        assert self._inputs is not None, "backward without begin"
        gradients = {name: leaf.grad for name, leaf in features.items() if leaf.grad is not None}
        scale = self.scaler.scale(torch.ones((), device=self.device))
        start = 0
        for inputs in self._micro_batches(*self._inputs):
            outputs = self._outputs or self._run(*inputs)
            end = start + len(inputs[0])
            torch.autograd.backward(
                [outputs[name] for name in gradients],
                [gradient[start:end] * scale for gradient in gradients.values()],
            )
            start = end
        self._inputs = self._outputs = None
        own = [p.grad for p in self.extractor.parameters() if p.grad is not None]
        if self.overflowed is not None:
            # A map that overflowed may still give a finite gradient, such as 0 behind a ReLU.
            own[0].add_(torch.where(self.overflowed, torch.inf, 0.0))
        self.workers.sum_each_(own)

    def step(self, learning_rate_factor: float) -> None:
        """One step of the optimiser, at this share of the largest learning rate, in (0, 1].

        A feature or gradient beyond float16 skips the step, on all workers alike, and lowers the scale.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.backbone_learning_rate * learning_rate_factor
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def undoing_overflow(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Take back what an update on guarded features does to a network and its optimiser's state, if one overflowed.

        Without a look at `overflowed`, for which the host would have to wait.
        """
        skip = self.overflowed
        if skip is None:
            yield
            return
        before = [tensor.clone() for tensor in network.state_dict().values()]
        moments = {p: {name: value.clone() for name, value in own.items()} for p, own in optimizer.state.items()}
        yield
        for tensor, old in zip(network.state_dict().values(), before, strict=True):
            torch.where(skip, old, tensor, out=tensor)
        for p, own in optimizer.state.items():
            for name, value in own.items():
                # Before its first step Adam has no state, which is the same as zeros.
                old = moments[p][name] if p in moments else torch.zeros_like(value)
                torch.where(skip, old, value, out=value)

    def remedy(self, lower: str) -> str:
        """What may keep the numbers of a training finite. lower: the learning rates that it has, in words."""
        return remedy(lower, self.precision)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """`visual` and `audio` -> a copy of the backbone's state on the CPU, as a weights file holds it."""
        return {
            sense: {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in getattr(self.extractor, sense).state_dict().items()
            }
            for sense in SENSES
        }

    def state_dict(self) -> dict[str, Any]:
        """Backbones, optimiser and scale, as tensors and plain values."""
        return {
            "extractor": self.extractor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same backbones.

        Raises:
            InputError: a state of another precision.
        """
        if state["precision"] != self.precision:
            raise InputError(
                f"the state was trained with precision {state['precision']}, but this is {self.precision}; set "
                f"precision to {state['precision']}, or begin another run."
            )
        self.extractor.load_state_dict(state["extractor"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _run(self, frames: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
        with mixed_precision(self.precision, self.device):
            pooled = self.extractor.pooled_taps(frames, spectrogram)
        # [B, C, L] -> [B, L, C], as `stgs.clips` does once for cached features.
        found = {name: pooled[name] for name in self.names}
        return {name: (x.transpose(1, 2) if x.dim() == 3 else x).contiguous() for name, x in found.items()}

    def _micro_batches(self, *inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
        yield from zip(*(tensor.split(self.config.micro_batch) for tensor in inputs), strict=True)
