"""Weights of other people's files: AV-HuBERT's encoder (fairseq), and whole released baselines (Lightning).

Nothing of such a file is run or imported: it is read by torch's loader of bare weights, and whatever else lies in it
(settings, states of a training) is answered by a class that does nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from stgs.baselines.av_hubert_baseline import AvHubertBaseline
from stgs.baselines.av_hubert_names import num_layers, of_av_hubert, with_torch_layers, without_layers
from stgs.baselines.base import WIDTH_UNIT, Baseline
from stgs.config import InputError, require

# Where a checkpoint keeps its arrays: fairseq's, Lightning's.
_PLACES = ("model", "state_dict")
# Arrays that no output depends on; AV-HuBERT's own are of other sizes than MRDF's.
_UNUSED = ("model.final_proj.weight", "model.final_proj.bias", "model.mask_emb")
_STEM = "model.feature_extractor_video.resnet.frontend3D.0.weight"
# An array with the width at its end, which all files have.
_OF_WIDTH = "model.post_extract_proj.bias"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a file's arrays, sorted.

    missing: arrays of the model that the file does not have; they keep their values. left_over: arrays of the file
    that the model has no place for. adapted: arrays of the model that were computed from the file's.
    """

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    adapted: tuple[str, ...]


class _Inert:
    """Stands for an object of any other class: takes everything, keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _InertMapping:
    """Stands for a class of mappings, into which torch's loader would put nothing unless they are a plain dict."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return {}


def _stand_in(name: str) -> Callable[..., Any] | tuple[Callable[..., Any], str]:
    """What answers to a class or function of this name, as `safe_globals` takes it."""
    return (_InertMapping if name.endswith((".defaultdict", ".AttributeDict")) else _Inert), name


def read_checkpoint(data: bytes, uri: str) -> dict[str, Tensor]:
    """The arrays of a checkpoint of fairseq or of Lightning, on the CPU, by the file's names.

    Args:
        data: the file, as torch.save wrote it.
        uri: where it is, for messages.

    Raises:
        InputError: a file that cannot be read so, or that is none of these checkpoints.
    """
    try:
        stand_ins = [_stand_in(name) for name in get_unsafe_globals_in_checkpoint(io.BytesIO(data))]
        with safe_globals(stand_ins):
            stored: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many kinds for a damaged or a hostile file; each becomes one sentence with its cause, of which
        # the first sentence says what is wrong.
        cause = str(error).partition(". ")[0].partition("\n")[0]
        raise InputError(
            f"{uri} cannot be read as weights ({type(error).__name__}: {cause}); give a checkpoint of fairseq or of "
            "Lightning that holds nothing to run."
        ) from error
    found = [stored[place] for place in _PLACES if isinstance(stored, dict) and isinstance(stored.get(place), dict)]
    state = {str(name): array for name, array in found[0].items() if _is_array(array)} if found else {}
    require(
        bool(state),
        f"{uri} holds no arrays under {' or '.join(map(repr, _PLACES))}; give a checkpoint of fairseq or of Lightning.",
    )
    broken = [name for name, array in state.items() if array.is_floating_point() and not array.isfinite().all()]
    require(not broken, f"{uri} has numbers in {broken[:1]} that are not finite; give another file.")
    return state


def _is_array(value: Any) -> bool:
    """Whether it is a tensor that holds each of its numbers, on the CPU."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized and value.is_cpu


def load_av_hubert(model: Baseline, state: Mapping[str, Tensor], uri: str) -> Loaded:
    """Give a model the encoder of an AV-HuBERT file; its heads keep their values.

    A stem for grey pictures is spread over red, green and blue, each a third: a grey picture gives the same as before.
    A model without transformer layers leaves those of the file over. The published AV-HuBERT was trained with the
    normalisations before a layer's attention and before its feed-forward part (layer_norm_first in its settings), while
    MRDF's layers have them behind: its arrays fit and are a start for training, but not the same function.

    Args:
        state: as `read_checkpoint` gives it.
        uri: where it is from, for messages.

    Raises:
        InputError: a model without such an encoder, a file that lacks a part of it, or one of another size.
    """
    require(
        isinstance(model, AvHubertBaseline),
        f"{uri} cannot be used, because {type(model).__name__} has no encoder of AV-HuBERT; leave the weights out.",
    )
    given = of_av_hubert(state)
    offered = given if model.config.layers else without_layers(given)
    _check_size(model, offered, uri)
    own = model.state_dict()
    renamed = with_torch_layers(offered)
    adapted = []
    if _STEM in renamed and renamed[_STEM].shape[1] == 1:
        renamed[_STEM] = (renamed[_STEM] / 3).expand(-1, 3, -1, -1, -1)
        adapted.append(_STEM)
    fitting = {
        name: array
        for name, array in renamed.items()
        if name in own and (name not in _UNUSED or array.shape == own[name].shape)
    }
    needed = {name for name in own if name.startswith("model.") and name not in _UNUSED}
    missing = _fill(model, fitting, needed, uri)
    dropped = given.keys() - offered.keys() | renamed.keys() - fitting.keys()
    left_over = sorted(name.removeprefix("model.") for name in dropped)
    return Loaded(missing, tuple(left_over), tuple(adapted))


def load_released(model: Baseline, state: Mapping[str, Tensor], uri: str) -> Loaded:
    """Give a model all the weights that its authors released.

    Args:
        state: as `read_checkpoint` gives it.
        uri: where it is from, for messages.

    Raises:
        InputError: a file that lacks an array of the model, or one of another size.
    """
    _check_size(model, state, uri)
    renamed = model.released_state(state)
    own = model.state_dict()
    missing = _fill(model, {name: array for name, array in renamed.items() if name in own}, set(own), uri)
    return Loaded(missing, tuple(sorted(renamed.keys() - own.keys())), ())


def _check_size(model: Baseline, state: Mapping[str, Tensor], uri: str) -> None:
    """Refuse a file of MRDF's names with other layers or another width than the model has."""
    if _OF_WIDTH not in state:
        return
    layers, width = num_layers(state), len(state[_OF_WIDTH])
    require(
        layers == model.config.layers,
        f"{uri} has {layers} transformer layers, but the model has {model.config.layers}; give --layers {layers}.",
    )
    way_out = f"give --width {width}" if width % WIDTH_UNIT == 0 else f"give a file of width {model.config.width}"
    require(width == model.config.width, f"{uri} has width {width}, but the model has {model.config.width}; {way_out}.")


def _fill(model: Baseline, state: Mapping[str, Tensor], needed: set[str], uri: str) -> tuple[str, ...]:
    """Load arrays that the model has; the names of those that are missing. Counts of batches never are needed."""
    own, kind = model.state_dict(), type(model).__name__
    for name, array in state.items():
        if array.shape != own[name].shape:
            raise InputError(
                f"{uri} does not fit {kind}: {name} is {tuple(array.shape)}, but must be {tuple(own[name].shape)}; "
                "give another file or another model."
            )
    missing = sorted(own.keys() - state.keys())
    lacking = [name for name in missing if name in needed and not name.endswith("num_batches_tracked")]
    if lacking:
        raise InputError(
            f"{uri} lacks {len(lacking)} arrays of {kind}, {lacking[0]} among them; give another file or another model."
        )
    model.load_state_dict(dict(state), strict=False)
    return tuple(missing)
