"""Runs without a search: genotypes that were given, whose networks are trained and evaluated like those of a grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.audits import keep_audit
from cluster.features import FeatureSource
from cluster.network_files import NetworkJob
from cluster.protocols import ProtocolConfig, own_split, part_uri, parts_of, protocol_settings, resplit
from cluster.runs import find_config, open_run, require_search
from cluster.settings import GENOTYPES
from data_prep import storage
from data_prep.storage import InputError
from stgs.genotype import Genotype, genotype_from_dict, genotype_from_json

_AS_THE_MANIFEST = ProtocolConfig()
# File systems end names at 255 bytes, and a network's has more than its genotype's.
_NAME_CHARACTERS = 200


def is_genotype_run(content: Mapping[str, Any]) -> bool:
    """Whether a run (its `cluster.runs.read_config`) was begun from genotypes, without a search."""
    return content.get("kind") == GENOTYPES


def read_genotypes(uris: Sequence[str]) -> dict[str, Genotype]:
    """Name -> genotype of files. The name is the file's, or, of a run's points/<id>/genotype.json, that of its folder.

    Raises InputError for a file that is missing or no genotype, and for two of one name.
    """
    found: dict[str, Genotype] = {}
    for uri in uris:
        try:
            text = storage.read(storage.absolute(uri)).decode()
        except (FileNotFoundError, IsADirectoryError):
            raise InputError(f"{uri} is no file; give the JSON file of a genotype, or a run without --out.") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{uri}: not JSON ({error}); a genotype is written by 'stgs grid'.") from None
        *folders, file = storage.absolute(uri).split("/")
        last = folders[-1] if folders and file == "genotype.json" else file.removesuffix(".json")
        name = re.sub(r"[^A-Za-z0-9._-]", "-", last)[:_NAME_CHARACTERS]
        if name in found:
            raise InputError(f"two genotypes are called {name!r}, {uri} is the second; rename one of the files.")
        found[name] = genotype_from_json(text, uri)
    return found


def require_box(name: str, genotype: Genotype, source: FeatureSource) -> None:
    """Refuse a genotype that the features of a box cannot feed."""
    for feature in genotype.used_features:
        wanted, given = genotype.features[feature], source.features.get(feature)
        if wanted != given:
            held = f"has it with {given}" if given else f"has {', '.join(source.features)}"
            raise InputError(
                f"genotype {name!r} reads {feature!r} with {wanted} channels, but {source.uri} {held}; give the "
                "features of the backbones that it was searched on."
            )
    if source.length % genotype.length:
        raise InputError(
            f"genotype {name!r} has length {genotype.length}, but the features of {source.uri} have {source.length} "
            "positions, which must be a multiple of it; give other features."
        )


def begin_genotype_run(
    out: str,
    genotypes: Mapping[str, Genotype],
    seeds: Sequence[int],
    source: FeatureSource,
    device: str,
    protocol: ProtocolConfig = _AS_THE_MANIFEST,
) -> dict[str, FeatureSource]:
    """Begin a run of given genotypes, or continue the same one: URI and clips of each part, or of the run itself.

    device: `cpu` or `cuda`. Raises InputError for seeds that are no seeds, a genotype that the features cannot feed, a
    protocol that cannot split the clips, and where another run stands at `out`.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"seeds is {list(seeds)}; give at least one, each once, at least 0.")
    for name, genotype in genotypes.items():
        require_box(name, genotype, source)
    run = storage.absolute(out)
    parts, own = parts_of(protocol, source.manifest), own_split(protocol)
    common = {
        "kind": GENOTYPES,
        "genotypes": {name: genotype.to_dict() for name, genotype in genotypes.items()},
        "seeds": list(seeds),
        "settings": {"device": device},
        **source.run_settings(),
    }

    told = protocol_settings(protocol, parts)
    whole = source.with_rows(source.manifest.rows, told) if own is None else resplit(source, own, told)
    _begin(run, common, whole)
    if not parts:
        return {run: whole}
    clips = {part_uri(run, name): resplit(source, split) for name, split in parts.items()}
    for uri, part in clips.items():
        _begin(uri, common, part)
    return clips


def _begin(run: str, settings: Mapping[str, Any], source: FeatureSource) -> None:
    """Write the config.yaml of one run, unless the same one stands."""
    content = {
        **settings,
        **source.protocol,
        "features_digest": source.meta.digest,
        "manifest_digest": source.manifest.meta.digest,
        "split_digest": source.split_digest(),
    }
    _require_same(run, find_config(run), content)
    hints = {"features": source.uri, "manifest": source.manifest_uri, **source.run_hints()}
    open_run(run, content, resume=True, hints=hints)
    keep_audit(run, source)


def _require_same(run: str, standing: Mapping[str, Any] | None, content: Mapping[str, Any]) -> None:
    """What `open_run` refuses, too, but not with whole genotypes in the sentence."""
    if standing is None:
        return
    require_search(run, standing, "another --out")
    if not is_genotype_run(standing):
        raise InputError(f"{run} is the run of a search; give another --out, or 'stgs train {run}' without genotypes.")
    for name in ("genotypes", "seeds"):
        ours, theirs = content[name], standing[name]
        if ours != theirs:
            same = "others of these names" if list(ours) == list(theirs) else ", ".join(map(str, theirs))
            raise InputError(f"{run} was begun with the {name} {same}; give another --out.")


def genotype_jobs(run: str, content: Mapping[str, Any]) -> list[NetworkJob]:
    """The networks of a run of genotypes: each genotype with each seed. content: the run's settings."""
    return [
        NetworkJob(
            storage.join(run, "networks", f"{name}_seed-{seed}.safetensors"),
            genotype_from_dict(genotype, f"{run}: genotype {name!r}").to_json(),
            seed,
        )
        for name, genotype in content["genotypes"].items()
        for seed in content["seeds"]
    ]
