"""Frames and spectrograms of single clips out of a corpus, as JPEGs for the report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from PIL import Image

from data_prep import boxes, storage
from data_prep.contact_sheet import face_picture, spectrogram_picture
from data_prep.storage import InputError

_SIDE = 96  # of a face crop, in pixels
_SPECTROGRAM = (240, _SIDE)
_QUALITY = 82
_NO_CORPUS = "No file of the run says where the corpus lies, so there are no pictures: give it as --corpus."

Pictures = dict[str, tuple[bytes, bytes]]


def wrong_pictures(
    config: Mapping[str, Any], hints: Mapping[str, Any], contents: Sequence[Mapping[str, Any]], corpus: str | None
) -> tuple[Pictures, str | None]:
    """Pictures of the most wrong clips of a run: clip_id -> JPEGs of its frames and of its spectrogram.

    config, hints: of the run. contents: of its metrics.json. corpus: where it lies, None for where a search that
    trained its backbones read it. Returns also a sentence where pictures are missing. Raises InputError if `corpus` is
    given and is no corpus.
    """
    wanted = {row["clip_id"] for content in contents for row in content.get("wrong") or ()}
    if not wanted:
        return {}, None
    trained = "finetune" in config
    where = corpus or (str(hints["features"]) if trained else None)
    if where is None:
        return {}, _NO_CORPUS
    try:
        meta = boxes.read_meta(storage.absolute(where), boxes.CORPUS)
        parent = config["features_digest"] if trained else _parent(config, str(hints["features"]))
    except InputError as error:
        if corpus is not None and corpus == where and not isinstance(error, _FeaturesGoneError):
            raise
        return {}, f"There are no pictures: {error}"
    if meta.digest != parent:
        return {}, (
            f"There are no pictures: the run's features were made from the corpus {parent}, but {where} is "
            f"{meta.digest}."
        )
    found = clip_pictures(storage.absolute(where), meta, wanted)
    lacking = len(wanted) - len(found)
    return found, f"{where} has no row for {lacking} of these clips." if lacking else None


class _FeaturesGoneError(InputError):
    """The features are not where the search read them, so that nothing names their corpus."""


def _parent(config: Mapping[str, Any], features: str) -> str | None:
    """Digest of the corpus that the run's features were made from."""
    try:
        meta = boxes.read_meta(features, boxes.FEATURES)
    except InputError:
        raise _FeaturesGoneError(
            f"the features are no longer at {features}, so that no file says from which corpus they were made."
        ) from None
    if meta.digest != config["features_digest"]:
        raise _FeaturesGoneError(f"{features} holds other features than those that the run was searched on.")
    return meta.parent


def clip_pictures(corpus: str, meta: boxes.Meta, clips: Set[str]) -> Pictures:
    """Pictures of those of `clips` that a corpus has. Only the parts that hold them are read whole."""
    found: Pictures = {}
    for name in sorted(name for name in meta.files if "/" not in name):
        part = storage.join(corpus, name)
        if not clips & set(boxes.read_plain_columns(part, ["clip_id"])["clip_id"].to_pylist()):
            continue
        table = boxes.read_table(part, ["clip_id", "frames", "spectrogram"])
        frames, spectrograms = (boxes.column_to_numpy(table, column) for column in ("frames", "spectrogram"))
        for index, clip in enumerate(table["clip_id"].to_pylist()):
            if clip in clips:
                sound = spectrogram_picture(spectrograms[index], _SPECTROGRAM)
                found[clip] = (_jpeg(_strip(frames[index])), _jpeg(sound))
    return found


def _strip(frames: np.ndarray) -> Image.Image:
    """frames uint8 [F, 3, size, size] -> the crops side by side."""
    strip = Image.new("RGB", (len(frames) * _SIDE, _SIDE))
    for position, frame in enumerate(frames):
        strip.paste(face_picture(frame, _SIDE), (position * _SIDE, 0))
    return strip


def _jpeg(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()
