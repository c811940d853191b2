"""Evaluation protocols: how one list of clips becomes one split, or several parts with a split each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from data_prep.manifest import Manifest, Row
from data_prep.split_folds import NUM_FOLDS
from data_prep.splits import SplitConfig, split_rows
from data_prep.storage import InputError

Protocol = Literal["manifest", "mixed", "cross", "method", "folds"]
MANIFEST, MIXED, CROSS, METHOD, FOLDS = "manifest", "mixed", "cross", "method", "folds"
# Keys of a run's config.yaml: its protocol with the splits of its parts, and how its own clips were split anew.
PROTOCOL_KEY, SPLIT_KEY = "protocol", "split"
# Besides its prefix, a part's name may have so many characters of a data set's or a method's: a run's has 64 at most.
_NAME_CHARACTERS = 48
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
# The settings beside the protocol itself, and the protocols that take them.
_TAKEN_BY = {
    "split_seed": (MIXED, CROSS, METHOD, FOLDS),
    "dev_subjects": (MIXED, CROSS, METHOD),
    "test_subjects": (MIXED, CROSS, METHOD),
    "test_methods": (METHOD,),
}
_Parts = dict[str, SplitConfig]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolConfig:
    """What keeps train, dev and test apart, and how often the whole search is done.

    protocol: `manifest` takes the splits of the manifest; the others split anew by subject. `mixed`: all data sets
    together; `cross`: a part for each data set, searched on it and tested on every one; `method`: a part for each
    forgery method, which test alone has; `folds`: 5 parts, each with another fifth of the subjects for test.
    split_seed: of the new split. dev_subjects, test_subjects: share of the subjects, or their number from 1 on (mixed,
    cross, method). test_methods: the methods that have a part (method; default: all).
    """

    protocol: Protocol = "manifest"
    split_seed: int = 0
    dev_subjects: float = 0.2
    test_subjects: float = 0.2
    test_methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_choice(self.protocol)
        if self.split_seed < 0:
            raise InputError(f"split_seed is {self.split_seed}; give 0 or more.")
        defaults = {item.name: item.default for item in fields(self)}
        for name, protocols in _TAKEN_BY.items():
            value = getattr(self, name)
            if self.protocol not in protocols and value != defaults[name]:
                raise InputError(
                    f"{name} is {value!r}, but the protocol {self.protocol!r} takes none; leave it out, or give "
                    f"protocol as {' or '.join(protocols)}."
                )

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments of a `SplitConfig` that all parts have in common, but those of folds."""
        return {"dev": self.dev_subjects, "test": self.test_subjects, "seed": self.split_seed}


def _require_choice(protocol: str) -> None:
    known = (MANIFEST, MIXED, CROSS, METHOD, FOLDS)
    if protocol not in known:
        raise InputError(f"protocol is {protocol!r}; choose from {', '.join(known)}.")


def parts_of(config: ProtocolConfig, manifest: Manifest) -> _Parts:
    """Name -> split of each part, in order; none where the run itself is all there is (`manifest`, `mixed`).

    Raises InputError, one sentence for all parts, where these clips cannot be split so: too few subjects, data sets or
    methods, or a split with clips of one class.
    """
    parts = _parts(config, manifest.rows)
    own = own_split(config)
    _require_possible(config, manifest.rows, parts if own is None else {"": own})
    return parts


def own_split(config: ProtocolConfig) -> SplitConfig | None:
    """How the clips of the run itself are split anew; None where its manifest's splits stay, or its parts' count."""
    return SplitConfig(split="subject", **config.sizes) if config.protocol == MIXED else None


def _parts(config: ProtocolConfig, rows: Sequence[Row]) -> _Parts:
    if config.protocol in (CROSS, MIXED):
        datasets = sorted({row["dataset"] for row in rows})
        if len(datasets) < 2:
            raise InputError(
                f"the protocol {config.protocol!r} needs at least two data sets, but the manifest has "
                f"{', '.join(map(repr, datasets))} alone; merge manifests with 'stgs manifest merge', or give another "
                "protocol."
            )
    if config.protocol == CROSS:
        return _named(
            "train",
            datasets,
            lambda name: SplitConfig(
                split="cross", train_datasets=(name,), test_datasets=tuple(datasets), **config.sizes
            ),
        )
    if config.protocol == METHOD:
        methods = config.test_methods or sorted({row["method"] for row in rows if row["label"] == 1 and row["method"]})
        if not methods:
            raise InputError("the protocol 'method' needs fakes whose method is known; give another protocol.")
        return _named("method", methods, lambda name: SplitConfig(split="method", test_methods=(name,), **config.sizes))
    if config.protocol == FOLDS:
        return {
            f"fold-{fold}": SplitConfig(split="folds", fold=fold, seed=config.split_seed) for fold in range(NUM_FOLDS)
        }
    return {}


def _named(prefix: str, names: Sequence[str], split: Callable[[str], SplitConfig]) -> _Parts:
    """A part for each of `names`, called after it, so that it may be a folder's name and no two are the same."""
    parts: _Parts = {}
    for name in names:
        safe = f"{prefix}-{_UNSAFE.sub('_', name)[:_NAME_CHARACTERS]}"
        # Folders of some file systems know no case.
        taken, called, number = {part.lower() for part in parts}, safe, 2
        while called.lower() in taken:
            called, number = f"{safe}-{number}", number + 1
        parts[called] = split(name)
    return parts


def _require_possible(config: ProtocolConfig, rows: Sequence[Row], parts: Mapping[str, SplitConfig]) -> None:
    faults = {name: fault for name, split in parts.items() if (fault := _fault(rows, split)) is not None}
    if not faults:
        return
    reasons = dict.fromkeys(faults.values())
    told = "; ".join(
        f"{', '.join(name for name, fault in faults.items() if fault == reason)}{': ' if '' not in faults else ''}"
        f"{reason}"
        for reason in reasons
    )
    raise InputError(f"the protocol {config.protocol!r} cannot split these clips ({told}); {_way_out(config)}.")


def _way_out(config: ProtocolConfig) -> str:
    ways = {
        METHOD: "name the --test-methods that it can, other --dev-subjects and --test-subjects, or another --protocol",
        FOLDS: "give another --protocol",
    }
    return ways.get(config.protocol, "give other --dev-subjects and --test-subjects, or another --protocol")


def _fault(rows: Sequence[Row], config: SplitConfig) -> str | None:
    """Why nothing can be searched and tested on these clips when they are split so; None where it can."""
    try:
        found = split_anew(rows, config)
    except InputError as error:
        # Its way out is that of another command.
        return str(error).rstrip(".").partition("; ")[0]
    for name in ("train", "dev", "test"):
        classes = {row["label"] for row in found if row["split"] == name}
        if not classes:
            return f"{name} has no clip"
        if len(classes) == 1 and name != "test":
            return f"{name} has {'fakes' if 1 in classes else 'real clips'} alone"
    return None


def split_anew(rows: Sequence[Row], config: SplitConfig) -> list[Row]:
    """Copies of `rows`, in their order, split as `config` says. An augmented clip follows its parent into train and
    dev, and is in no split where its parent is tested or not used. Raises InputError as `split_rows` does.
    """
    originals = [row for row in rows if row["parent_clip_id"] is None]
    decided = {
        row["clip_id"]: {name: row[name] for name in ("split", "fold")} for row in split_rows(originals, config).rows
    }
    unused = {"split": None, "fold": None}
    found = []
    for row in rows:
        own = decided.get(row["parent_clip_id"] or row["clip_id"], unused)
        is_seen = row["parent_clip_id"] is None or own["split"] in ("train", "dev")
        found.append(row | (own if is_seen else unused))
    return found


def split_from_dict(content: Mapping[str, Any]) -> SplitConfig:
    """A split from a run's config.yaml. Raises InputError for one that this program does not know."""
    unknown = sorted(set(content) - {item.name for item in fields(SplitConfig)})
    if unknown:
        raise InputError(f"the run's split has {', '.join(unknown)}, which this program does not know; update it.")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    return SplitConfig(**values)


def protocol_settings(config: ProtocolConfig, parts: Mapping[str, SplitConfig]) -> dict[str, Any]:
    """What the config.yaml of a run says of its protocol; nothing where the manifest's splits stay."""
    if config.protocol == MANIFEST:
        return {}
    return {PROTOCOL_KEY: {**asdict(config), "parts": {name: asdict(split) for name, split in parts.items()}}}


def protocol_words(settings: Mapping[str, Any] | None) -> str | None:
    """The options that give a protocol, e.g. `--protocol folds --split-seed 0`; None where there is none.

    settings: what a run's config.yaml says of it.
    """
    if not settings:
        return None
    words = ["--protocol", settings["protocol"]]
    for name, protocols in _TAKEN_BY.items():
        value = settings.get(name)
        if settings["protocol"] in protocols and value not in (None, [], ()):
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)
