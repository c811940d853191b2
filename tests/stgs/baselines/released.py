"""The golden files of MRDF's released models, and files like those that are released."""

import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Another name of each of these arrays in a Lightning file, where the released classes hold the same module twice.
ALIASES = {
    "model.feature_extractor_audio.": ["feature_extractor_audio_hubert."],
    "model.feature_extractor_video.": ["feature_extractor_video_hubert."],
    "model.layer_norm.": ["project_hubert.0."],
    "model.post_extract_proj.": ["project_hubert.1."],
    "model.encoder.": ["fusion_encoder_hubert."],
    "model.final_proj.": ["final_proj_audio.", "final_proj_video.", "final_proj_hubert."],
}


def golden(shared: Path, name: str) -> dict[str, NDArray]:
    with np.load(shared / "golden" / "mrdf" / f"{name}.npz") as arrays:
        return dict(arrays)


def by_rule(name: str, shape: tuple[int, ...]) -> Tensor:
    """The array of this name in the golden files' model."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        values = 0.5 + random.random(shape)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * random.standard_normal(shape)
    elif name.endswith("weight_g") or len(shape) <= 1:
        values = 1 + 0.1 * random.standard_normal(shape)
    else:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, np.float32))


def golden_state(arrays: Mapping[str, NDArray]) -> dict[str, Tensor]:
    shapes = zip(arrays["state_names"].tolist(), arrays["state_shapes"].tolist(), strict=True)
    return {name: by_rule(name, tuple(json.loads(shape))) for name, shape in shapes}


def with_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as a Lightning file has it: aliases first and last, so that nothing depends on their order."""
    twice = {
        alias + name.removeprefix(begin): array
        for name, array in state.items()
        for begin, aliases in ALIASES.items()
        if name.startswith(begin)
        for alias in aliases
    }
    names = list(twice)
    first = {name: twice[name] for name in names[::2]}
    return first | dict(state) | {name: twice[name] for name in names[1::2]}


def saved(content: object, *, zipped: bool = True) -> bytes:
    """What torch.save writes, or what it wrote before 1.6."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()
