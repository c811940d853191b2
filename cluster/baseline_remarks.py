"""What has to be said beside a baseline's figures: how large it is, whose weights it has, and what it saw of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.audits import AUDIT_NAME
from cluster.run_json import Json, number_of, read_object
from cluster.runs import read_config, read_hints
from data_prep import boxes, storage
from data_prep.storage import InputError, UnreachableError
from stgs.baselines.base import BaselineConfig

CHECKPOINT_NOTE = (
    "not trained here: its weights are those of a checkpoint, whose own training may have seen subjects of these test "
    "clips; its figures are no test of it, and are not averaged over parts"
)
_USUAL = BaselineConfig()


def is_reduced(config: Mapping[str, Any]) -> bool:
    """Whether a baseline is smaller than the published one, by its BaselineConfig; without any transformer layer is
    what the released code has in effect, too.
    """
    width, layers = config["width"], config["layers"]
    return bool(width < _USUAL.width or 0 < layers < _USUAL.layers)


def size_words(config: Mapping[str, Any]) -> str | None:
    """How the size of a baseline differs from the paper's, e.g. `reduced: width 48 of 768, 0 of 12 layers`; None where
    it does not. config: its BaselineConfig.
    """
    told = [f"width {config['width']} of {_USUAL.width}"] if config["width"] != _USUAL.width else []
    if config["layers"] != _USUAL.layers:
        told.append(f"{config['layers']} of {_USUAL.layers} layers")
    if not told:
        return None
    if is_reduced(config):
        return f"reduced: {', '.join(told)}"
    released = config["layers"] == 0 and config["width"] == _USUAL.width
    return f"{', '.join(told)}, as the released code has in effect" if released else f"enlarged: {', '.join(told)}"


def checkpoint_of(metrics: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The released file whose weights a part has as they are; None where it was trained. metrics: its metrics.json."""
    found: Mapping[str, Any] | None = (metrics.get("weights") or {}).get("checkpoint")
    return found


@dataclass(frozen=True, slots=True)
class SequencesFacts:
    """The sequences of a baseline's run. uri: where they were. digest: theirs. config, audit: how they were made, and
    their audit.json; None where that is not there any more, or belongs to others.
    """

    uri: str | None
    digest: str | None
    config: Json | None
    audit: Json | None

    @property
    def max_seconds(self) -> float | None:
        """What a baseline sees of a clip at most; None where it is not known."""
        seconds: float | None = number_of(self.config or {}, "max_seconds")
        return seconds


def sequences_of(out: str) -> SequencesFacts:
    """What the sequences of a baseline's run say, if they still lie where it read them. Raises InputError if there is
    no run.
    """
    uri, digest = read_hints(out).get("sequences"), read_config(out).get("corpus_digest")
    if uri is None or digest is None:
        return SequencesFacts(uri, digest, None, None)
    meta, audit = (_of_digest(storage.join(str(uri), name), digest) for name in (boxes.META_NAME, AUDIT_NAME))
    config = (meta or {}).get("config")
    return SequencesFacts(uri, digest, config if isinstance(config, dict) else None, audit)


def _of_digest(uri: str, digest: str) -> Json | None:
    """An object of JSON, None where it is gone, damaged or of another box."""
    try:
        found = read_object(uri)
    except (InputError, UnreachableError, OSError):  # what cannot be read from here says as little as what is gone
        return None
    return found if found.get("digest") == digest else None


def seconds_words(max_seconds: float | None) -> str | None:
    """What a baseline sees of a clip; None where it is not known."""
    return None if max_seconds is None else f"it saw up to {max_seconds:g} s of each clip"
