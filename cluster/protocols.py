"""Runs of a protocol, and their parts: where they lie, and on what clips they were searched.

A part is a whole run under RUN/parts/<part>, on the same features, with its own train, dev and test. What a run and its
parts are split by stands in their config.yaml, so that training and evaluation see the clips that the search saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cluster.features import FeatureSource, open_features
from cluster.finetune import require_trained_features
from cluster.protocol_splits import (
    CROSS,
    FOLDS,
    MANIFEST,
    METHOD,
    MIXED,
    PROTOCOL_KEY,
    SPLIT_KEY,
    ProtocolConfig,
    own_split,
    parts_of,
    protocol_settings,
    split_anew,
    split_from_dict,
)
from cluster.protocol_summary import summary, summary_rows, summary_text
from cluster.runs import part_uri, part_uris, read_hints, read_search
from cluster.settings import GridConfig, config_from_dict
from data_prep.splits import SplitConfig
from data_prep.storage import InputError

__all__ = [
    "CROSS",
    "FOLDS",
    "MANIFEST",
    "METHOD",
    "MIXED",
    "PROTOCOL_KEY",
    "SPLIT_KEY",
    "ProtocolConfig",
    "open_parts",
    "open_run_source",
    "own_split",
    "part_uri",
    "part_uris",
    "parts_of",
    "protocol_settings",
    "resplit",
    "split_anew",
    "summary",
    "summary_rows",
    "summary_text",
]

_NAMED = 3


def resplit(source: FeatureSource, config: SplitConfig, protocol: Mapping[str, Any] | None = None) -> FeatureSource:
    """The same clips, split as `config` says; a run on them says so.

    protocol: what its config.yaml says besides (`protocol_settings`). Raises InputError for what the split cannot do
    with these clips.
    """
    told = {SPLIT_KEY: asdict(config), **(protocol or {})}
    return source.with_rows(split_anew(source.manifest.rows, config), told)


def open_parts(run_uri: str, features: str | None, manifest: str | None) -> dict[str, tuple[GridConfig, FeatureSource]]:
    """URI -> grid and clips of each part of a run, in order; of an ordinary run, its own alone.

    features, manifest: as of `open_run_source`, whose errors it raises.
    """
    content, parts = read_search(run_uri), part_uris(run_uri)
    if not parts:
        return {run_uri: open_run_source(run_uri, features, manifest)}
    if "finetune" in content:
        raise InputError(
            f"the parts of {run_uri} trained their own backbones, so that each has features of its own; give a part, "
            f"such as {next(iter(parts.values()))}, with its --features."
        )
    return {uri: open_run_source(uri, features, manifest) for uri in parts.values()}


def open_run_source(run_uri: str, features: str | None, manifest: str | None) -> tuple[GridConfig, FeatureSource]:
    """A run's grid, and the features and clips, with their splits, that it was searched on.

    run_uri: an ordinary run, or one part. features, manifest: where they are now, None for where they were. A run that
    trained its backbones was searched on a corpus: its features are those that these backbones make of it. Raises
    InputError where they are other ones, for a run that has parts, and for that of a baseline.
    """
    content, hints = read_search(run_uri), read_hints(run_uri)
    parts = part_uris(run_uri)
    if parts:
        raise InputError(
            f"{run_uri} has the parts {', '.join([*parts][:_NAMED])}{', ...' if len(parts) > _NAMED else ''}, each a "
            f"run of its own; give one of them, such as {next(iter(parts.values()))}."
        )
    if "finetune" in content and features is None:
        raise InputError(
            f"{run_uri} trained its backbones; run 'stgs extract' with their weights on {hints['features']}, and give "
            "the features as --features."
        )
    source = open_features(features or hints["features"], manifest or hints["manifest"])
    if content.get(SPLIT_KEY):
        told = {PROTOCOL_KEY: content[PROTOCOL_KEY]} if PROTOCOL_KEY in content else None
        source = resplit(source, split_from_dict(content[SPLIT_KEY]), told)
    there: dict[str, Any] = {}
    if "finetune" in content:
        require_trained_features(run_uri, content, source)
    else:
        there["features_digest"] = source.meta.digest
    there["split_digest"] = source.split_digest()
    for name, digest in there.items():
        if content[name] != digest:
            raise InputError(
                f"{run_uri} was searched with {name} {content[name]}, but what is there now has {digest}; give "
                "--features and --manifest of that search."
            )
    return config_from_dict(content), source
