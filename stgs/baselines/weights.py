"""Weights of other people's files: AV-HuBERT's encoder (fairseq), and whole released baselines (Lightning).

Nothing of such a file is run or imported: it is read by torch's loader of bare weights, and whatever else lies in it
(settings, states of a training) is answered by a class that does nothing.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from stgs.baselines.av_hubert_baseline import AvHubertBaseline
from stgs.baselines.av_hubert_names import (
    joined_shapes,
    num_layers,
    of_av_hubert,
    with_torch_layers,
    without_aliases,
    without_layers,
)
from stgs.baselines.base import WIDTH_UNIT, Baseline
from stgs.config import InputError, require

# Where a checkpoint keeps its arrays: fairseq's, Lightning's.
_PLACES = ("model", "state_dict")
# How files of torch before 1.6 begin.
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
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
    """Stands for a class of mappings: torch's loader puts items and attributes into an OrderedDict alone."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _InertList:
    """Stands for a class of lists: torch's loader appends to a plain one alone."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


def _read(data: bytes) -> Any:
    """What torch.save wrote, its objects of other classes answered by stand-ins; raises whatever torch raises."""
    kinds: dict[str, type] = dict.fromkeys(get_unsafe_globals_in_checkpoint(io.BytesIO(data)), _Inert)
    while True:
        # A class for each name, which torch's refusals then tell.
        stand_ins = {name: type(name.rpartition(".")[2], (kind,), {}) for name, kind in kinds.items()}
        for name, stand_in in stand_ins.items():
            stand_in.__module__ = name.rpartition(".")[0]
        try:
            with safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            # Of a class that is filled, only the refusal to fill its stand-in tells whether with items or values. Each
            # name is answered by another one once at most; every other error goes on as it is.
            told = str(error)
            kind = _InertMapping if "Can only SETITEM" in told else _InertList if " lists, but got" in told else None
            filled = [name for name, each in kinds.items() if each is _Inert and repr(stand_ins[name]) in told]
            if kind is None or not filled:
                raise
            kinds |= dict.fromkeys(filled, kind)


def read_checkpoint(data: bytes, uri: str) -> dict[str, Tensor]:
    """The arrays of a checkpoint of fairseq or of Lightning, on the CPU, by the file's names.

    Args:
        data: the file, as torch.save wrote it.
        uri: where it is, for messages.

    Raises:
        InputError: a file that cannot be read so, or that is none of these checkpoints.
    """
    require(
        not data.startswith(_BEFORE_ZIP),
        f"{uri} is in the format of torch before 1.6; load it with torch, if you trust it, and save it again.",
    )
    try:
        stored = _read(data)
    except Exception as error:
        # torch raises many kinds for a damaged or a hostile file; each becomes one sentence with its cause.
        raise InputError(
            f"{uri} cannot be read as weights ({type(error).__name__}: {_cause(error)}); give a checkpoint of fairseq "
            "or of Lightning that holds nothing to run."
        ) from error
    # By dict's own methods: an OrderedDict of a file may have attributes that are called like them.
    held = [dict.get(stored, place) for place in _PLACES] if isinstance(stored, dict) else []
    found = [mapping for mapping in held if isinstance(mapping, dict)]
    arrays = {
        name: x
        for name, x in (dict.items(found[0]) if found else ())
        if isinstance(name, str) and isinstance(x, Tensor)
    }
    require(
        bool(arrays),
        f"{uri} holds no arrays under {' or '.join(map(repr, _PLACES))}; give a checkpoint of fairseq or of Lightning.",
    )
    return {name: _plain(array, f"{uri} has an array {name}") for name, array in arrays.items()}


def _cause(error: Exception) -> str:
    """What is wrong, without torch's advice to read the file unsafely, which it puts around its loader's refusals."""
    refusal = error.__context__ if isinstance(error.__context__, type(error)) else error
    return str(refusal).partition(". ")[0].partition("\n")[0].removesuffix(".")


def _plain(array: Tensor, told: str) -> Tensor:
    """An array of a file as the models hold them: its own numbers on the CPU, floats as finite float32.

    told: which array of which file, for messages.
    """
    require(
        array.layout == torch.strided and array.is_cpu and not array.is_nested and array.dtype in _FLOATS + _WHOLE,
        f"{told} of {array.dtype} ({array.layout}, {array.device}), but it must be a plain one of float16, bfloat16, "
        "float32, float64, integers or bool; give another file.",
    )
    # A tensor of a file may have attributes that are called like its methods; this one has none.
    array = Tensor.detach(array)
    require(
        array.numel() * array.element_size() <= array.untyped_storage().nbytes(),
        f"{told} of shape {tuple(array.shape)} that holds fewer numbers than that; save a contiguous copy of it.",
    )
    if array.dtype in _FLOATS:
        array = array.to(torch.float32)
        require(bool(array.isfinite().all()), f"{told} with numbers that are not finite in float32; give another file.")
    return array


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
    require(
        not any(name.startswith("model.") for name in state),
        f"{uri} is the file of a whole baseline, not of AV-HuBERT; give it as --checkpoint.",
    )
    given = of_av_hubert(state)
    offered = given if model.config.layers else without_layers(given)
    _check_size(model, offered, uri)
    own = model.state_dict()
    renamed = with_torch_layers(offered)
    adapted = []
    if _STEM in renamed and renamed[_STEM].ndim == 5 and renamed[_STEM].shape[1] == 1:
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
    if _OF_WIDTH in state and state[_OF_WIDTH].ndim == 1:
        _check_layers_and_width(model, num_layers(state), len(state[_OF_WIDTH]), uri)
    # They are joined before the others are compared with the model's.
    named = without_aliases(state)
    for name, shape in joined_shapes(named, model.config.width).items():
        _check_shape(model, name, named[name], shape, uri)


def _check_layers_and_width(model: Baseline, layers: int, width: int, uri: str) -> None:
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
        _check_shape(model, name, array, own[name].shape, uri)
    missing = sorted(own.keys() - state.keys())
    lacking = [name for name in missing if name in needed and not name.endswith("num_batches_tracked")]
    if lacking:
        raise InputError(
            f"{uri} lacks {len(lacking)} arrays of {kind}, {lacking[0]} among them; give another file or another model."
        )
    model.load_state_dict(dict(state), strict=False)
    return tuple(missing)


def _check_shape(model: Baseline, name: str, array: Tensor, shape: tuple[int, ...], uri: str) -> None:
    require(
        tuple(array.shape) == tuple(shape),
        f"{uri} does not fit {type(model).__name__}: {name} is {tuple(array.shape)}, but must be {tuple(shape)}; give "
        "another file or another model.",
    )
