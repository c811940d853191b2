"""Files with weights that others trained: an encoder that a baseline starts from, or a whole released baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from data_prep import storage
from data_prep.storage import InputError
from stgs.baselines.base import Baseline, BaselineConfig
from stgs.baselines.training import initial_baseline
from stgs.baselines.weights import Loaded, load_av_hubert, load_released, read_checkpoint

INITIAL, CHECKPOINT = "initial", "checkpoint"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file that was read. uri: where. sha256: of its bytes. is_checkpoint: a whole baseline, which is not trained
    any more; else an encoder. loaded: what became of its arrays.
    """

    uri: str
    sha256: str
    is_checkpoint: bool
    loaded: Loaded

    def facts(self) -> dict[str, Any]:
        """What identifies it, and what became of its arrays: sha256, missing, left_over, adapted."""
        return {"sha256": self.sha256, **{name: list(value) for name, value in asdict(self.loaded).items()}}

    def told(self) -> str:
        """What became of its arrays, in a line."""
        counts = [
            f"{name.replace('_', ' ')}: {', '.join(arrays)}" for name, arrays in asdict(self.loaded).items() if arrays
        ]
        return f"weights of {self.uri}: {'; '.join(counts) or 'every array has its place'}"

    def fill(self, model: Baseline, state: Mapping[str, Tensor]) -> Loaded:
        """Load the file's arrays into a model. Raises stgs' InputError where they do not fit."""
        return (load_released if self.is_checkpoint else load_av_hubert)(model, state, self.uri)


def weights_facts(file: WeightsFile | None, *, with_place: bool = False) -> dict[str, Any]:
    """What a run says of its weights: `initial` and `checkpoint`. with_place: also which files they were."""
    told: dict[str, Any] = {INITIAL: "random", CHECKPOINT: None}
    if file is not None:
        told[CHECKPOINT if file.is_checkpoint else INITIAL] = {
            **({"file": file.uri} if with_place else {}),
            **file.facts(),
        }
        if file.is_checkpoint:
            told[INITIAL] = None
    return told


def open_weights(
    initial: str | None, checkpoint: str | None, model: str, config: BaselineConfig
) -> tuple[WeightsFile, dict[str, Tensor]] | tuple[None, None]:
    """The file that is given, of two that exclude each other, with its arrays; (None, None) where none is.

    Raises InputError, of stgs, too, for a file that cannot be read, or does not fit the model.
    """
    if initial is not None and checkpoint is not None:
        raise InputError(
            f"initial_weights is {initial!r} and checkpoint is {checkpoint!r}, but a checkpoint is not trained any "
            "more; give one of them."
        )
    place = checkpoint or initial
    if place is None:
        return None, None
    uri = storage.absolute(place)
    try:
        data = storage.read(uri)
    except (FileNotFoundError, IsADirectoryError):
        name = INITIAL if checkpoint is None else CHECKPOINT
        raise InputError(f"{uri} is no file; give --{name.replace('initial', 'initial-weights')} a file.") from None
    state = read_checkpoint(data, uri)
    digest = hashlib.sha256(data).hexdigest()
    load = load_av_hubert if checkpoint is None else load_released
    loaded = load(initial_baseline(model, config, 0), state, uri)
    return WeightsFile(uri, digest, checkpoint is not None, loaded), state
