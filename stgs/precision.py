"""Precision of the arithmetic of large networks: float32, or mixed with a 16-bit type."""

from __future__ import annotations

import torch

from stgs.config import require

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def require_precision(precision: str) -> None:
    """Raise `InputError` unless `precision` is `auto` or one of `PRECISIONS`."""
    allowed = ("auto", *PRECISIONS)
    require(precision in allowed, f"precision is {precision!r}, but it must be one of {', '.join(allowed)}.")


def resolved_precision(precision: str, device: torch.device | str) -> str:
    """`precision`, or for `auto` what suits the device: bfloat16 on CUDA devices that have it, float16 on others,
    float32 on a CPU."""
    if precision != "auto":
        return precision
    if torch.device(device).type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def mixed_precision(precision: str, device: torch.device | str) -> torch.autocast:
    """The context of a forward pass in a resolved precision."""
    half = precision != "float32"
    # Each weight is used once a pass, so a cache of their halves would only hold memory.
    return torch.autocast(torch.device(device).type, PRECISIONS[precision], enabled=half, cache_enabled=False)


def gradient_scaler(precision: str, device: torch.device | str) -> torch.amp.GradScaler:
    """What scales a loss up in float16, where small gradients would vanish; in other precisions it does nothing."""
    return torch.amp.GradScaler(torch.device(device).type, enabled=precision == "float16")


def remedy(lower: str, precision: str) -> str:
    """What may keep the numbers of a training finite. lower: the learning rates to lower, in words."""
    return lower if precision == "float32" else f"{lower}, or set precision to float32 (it is {precision})"
