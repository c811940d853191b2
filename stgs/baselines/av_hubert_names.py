"""Names of the arrays in files of AV-HuBERT (fairseq) and of MRDF (Lightning), and of the same arrays here.

Here they are called as in MRDF's files, but for the transformer layers, which are torch's own and keep the weights of
query, key and value in one array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# MRDF's files name the encoder's parts a second time. Beginning of such a name -> of that of the same array.
_ALIASES = {
    "feature_extractor_audio_hubert.": "model.feature_extractor_audio.",
    "feature_extractor_video_hubert.": "model.feature_extractor_video.",
    "project_hubert.0.": "model.layer_norm.",
    "project_hubert.1.": "model.post_extract_proj.",
    "fusion_encoder_hubert.": "model.encoder.",
    "final_proj_audio.": "model.final_proj.",
    "final_proj_video.": "model.final_proj.",
    "final_proj_hubert.": "model.final_proj.",
}
_ENCODER = "model."
# Where files of AV-HuBERT that was trained further, to transcribe speech, have the encoder.
_TRAINED_FURTHER = "encoder.w2v_model."

_LAYER = re.compile(r"model\.encoder\.layers\.(\d+)\.")
# fairseq's part of a transformer layer -> torch's.
_PARTS = {
    "self_attn.out_proj": "self_attn.out_proj",
    "self_attn_layer_norm": "norm1",
    "fc1": "linear1",
    "fc2": "linear2",
    "final_layer_norm": "norm2",
}
# Of query, key and value, which torch keeps joined.
_JOINED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_JOINED_ARRAY = re.compile(_LAYER.pattern + r"self_attn\.[qkv]_proj\.(weight|bias)")


def joined_shapes(state: Mapping[str, Tensor], width: int) -> dict[str, tuple[int, ...]]:
    """Shapes that a state's arrays of query, key and value must have, so that `with_torch_layers` can join them."""
    found = {name: match for name in state if (match := _JOINED_ARRAY.fullmatch(name))}
    return {name: (width, width) if match.group(2) == "weight" else (width,) for name, match in found.items()}


def num_layers(state: Mapping[str, Tensor]) -> int:
    """Transformer layers that have an array in a state of MRDF's names."""
    return len({found.group(1) for name in state if (found := _LAYER.match(name))})


def without_layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays that belong to no transformer layer."""
    return {name: array for name, array in state.items() if not _LAYER.match(name)}


def without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of MRDF's names in which every array stands once; an alias whose array is missing takes its place."""
    named: dict[str, Tensor] = {}
    aliases: dict[str, Tensor] = {}
    for name, array in state.items():
        alias = next((alias for alias in _ALIASES if name.startswith(alias)), None)
        if alias is None:
            named[name] = array
        else:
            aliases[_ALIASES[alias] + name.removeprefix(alias)] = array
    return {**aliases, **named}


def with_torch_layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of MRDF's names whose transformer layers are called as torch calls them; unknown names stay."""
    renamed: dict[str, Tensor] = {}
    for name, array in state.items():
        found = _LAYER.match(name)
        layer, rest = (found.group(0), name[found.end() :]) if found else ("", name)
        part, _, kind = rest.rpartition(".")
        joined = [f"{layer}{each}.{kind}" for each in _JOINED]
        if not layer:
            renamed[name] = array
        elif not _JOINED_ARRAY.fullmatch(name) or any(each not in state for each in joined):
            renamed[f"{layer}{_PARTS.get(part, part)}.{kind}"] = array
        elif part == _JOINED[0]:
            renamed[f"{layer}self_attn.in_proj_{kind}"] = torch.cat([state[each] for each in joined])
    return renamed


def of_av_hubert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An AV-HuBERT file's state by MRDF's names: the encoder's arrays begin with "model.", what is not its does not."""
    if not any(name.startswith(_TRAINED_FURTHER) for name in state):
        return {_ENCODER + name: array for name, array in state.items()}
    return {
        _ENCODER + name.removeprefix(_TRAINED_FURTHER) if name.startswith(_TRAINED_FURTHER) else name: array
        for name, array in state.items()
    }
