"""Size of the backbones that made a run's features, counted from their names: no file of a run holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from data_prep.audio import NUM_BINS
from stgs.backbones import BACKBONES, SENSES


@dataclass(frozen=True, slots=True)
class BackboneCost:
    """names: of both backbones. parameters: of both. macs: multiply-accumulates of both for one clip."""

    names: str
    parameters: int
    macs: int


def backbone_cost(provenance: Mapping[str, Any]) -> BackboneCost | None:
    """Both backbones together; None where the run's files do not say which they are and what they read.

    provenance: of `jobs.report_facts.RunFacts`.
    """
    backbones, corpus = provenance.get("backbones", {}), provenance.get("corpus", {})
    names = [backbones.get(sense) for sense in SENSES]
    sizes = [corpus.get(key) for key in ("num_frames", "frame_size", "spectrogram_frames")]
    if not all(name in BACKBONES for name in names) or not all(isinstance(size, int) for size in sizes):
        return None
    frames, side, length = sizes
    segments = backbones.get("audio_segments") or 1
    shapes = ((frames, 3, side, side), (segments, 1, length // segments, NUM_BINS))
    counts = [_counts(name, shape) for name, shape in zip(names, shapes, strict=True)]
    return BackboneCost(", ".join(names), sum(own for own, _ in counts), sum(macs for _, macs in counts))


@cache
def _counts(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a backbone for pictures [N, channels, H, W]."""
    with torch.device("meta"), torch.no_grad():
        network = BACKBONES[name](shape[1]).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(shape))
    # The counter takes a multiply-accumulate for two operations.
    return sum(item.numel() for item in network.parameters()), counter.get_total_flops() // 2
