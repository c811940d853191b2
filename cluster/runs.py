"""A run directory: its name, its configuration, and the environment it was made in (design.md section 3)."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from cluster.baseline_names import KIND
from cluster.protocol_splits import PROTOCOL_KEY, protocol_words
from cluster.shards import versions
from data_prep import boxes, storage
from data_prep.storage import InputError

CONFIG_NAME = "config.yaml"
_OF_A_SEARCH = "the run of a search, or see 'stgs report'"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
NAME_WORDS = "1 to 64 letters, digits, '.', '_' or '-', not dots alone"
"""What `is_run_name` asks for."""
_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pyarrow", "librosa", "av", "facenet-pytorch")


def is_run_name(name: str) -> bool:
    """Whether a run may have this name, which is that of its folder."""
    return _NAME.fullmatch(name) is not None and name.strip(".") != ""


def open_run(
    uri: str,
    config: Mapping[str, Any],
    *,
    resume: bool,
    hints: Mapping[str, Any],
    growing: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    place: str = "--out",
) -> str:
    """Begin a run, or continue one of the same configuration. Returns its absolute URI.

    config: the complete, resolved settings; a run is continued only where they are equal. hints: what may change
    between attempts, such as where the features lie. growing: settings that may differ, since the caller has seen that
    they hold all that the run had; the run then has the new ones. defaults: what a run had of settings that its file
    does not name, since they are newer than it. place: the option that says where the run lies, for the messages.

    Raises:
        InputError: a name that no run may have, a run that stands already (without `resume`), a baseline's in the
            place of another one, or one that was begun with other settings, naming the first that differs.
    """
    uri = storage.absolute(uri)
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    if not is_run_name(name):
        raise InputError(f"{place} ends in {name!r}, but a run's name has {NAME_WORDS}.")
    plain = as_stored(config)
    text = yaml.safe_dump({"config": plain, "hints": as_stored(hints)}, sort_keys=False)
    try:
        storage.create(storage.join(uri, CONFIG_NAME), text.encode())
    except FileExistsError:
        standing = _completed(read_config(uri), plain, as_stored(defaults or {}))
        if is_baseline(standing) != is_baseline(plain):
            known = "the" if is_baseline(standing) else "no"
            raise InputError(f"{uri} is {known} run of a baseline; give another {place}.") from None
        changed = sorted(key for key in {*standing, *plain} if standing.get(key) != plain.get(key))
        different = [key for key in changed if key not in growing]
        if different:
            _require_same_protocol(uri, standing, plain, place)
            key, had, given = _difference(different[0], standing.get(different[0]), plain.get(different[0]))
            raise InputError(
                f"{uri} was begun with {key} {had!r}, not {given!r}; give that, or another {place}."
            ) from None
        if not resume:
            raise InputError(f"{uri} stands already; continue it with --resume, or give another {place}.") from None
        if changed:
            storage.write(storage.join(uri, CONFIG_NAME), text.encode())
    storage.write(storage.join(uri, "environment.json"), boxes.canonical_json(environment()))
    return uri


def _completed(standing: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file with those that only `given` names at their defaults."""
    complete = dict(standing)
    for key, value in given.items():
        if key not in standing and key in defaults:
            complete[key] = defaults[key]
        elif isinstance(value, dict) and isinstance(standing.get(key), dict):
            complete[key] = _completed(standing[key], value, defaults.get(key) or {})
    return complete


def _difference(name: str, had: Any, given: Any) -> tuple[str, Any, Any]:
    """The first setting in which two values of `name` differ: its name, as its option is called, and both values."""
    if isinstance(had, dict) and isinstance(given, dict):
        key = min(key for key in {*had, *given} if had.get(key) != given.get(key))
        return _difference(key, had.get(key), given.get(key))
    return name, had, given


def _require_same_protocol(uri: str, standing: Mapping[str, Any], given: Mapping[str, Any], place: str) -> None:
    """Refuse another protocol, from which other differences may follow, by the options that it was given with."""
    had, words = (protocol_words(config.get(PROTOCOL_KEY)) for config in (standing, given))
    if had == words:
        return
    way_out = "without --protocol; leave it out, or give" if had is None else f"with {had}; give those, or"
    raise InputError(f"{uri} was begun {way_out} another {place}.") from None


def read_config(uri: str) -> dict[str, Any]:
    """The settings that a run was begun with. Raises InputError if there is no run at `uri`."""
    return _read(uri)["config"]


def read_search(uri: str) -> dict[str, Any]:
    """The settings of the run of a search, or of given genotypes. Raises InputError if there is none at `uri`."""
    content: dict[str, Any] = _read(uri, "'stgs grid'")["config"]
    require_search(uri, content)
    return content


def is_baseline(content: Mapping[str, Any]) -> bool:
    """Whether a run is one of `stgs baseline`. content: its settings."""
    return content.get("kind") == KIND


def require_search(uri: str, content: Mapping[str, Any], way_out: str = _OF_A_SEARCH) -> None:
    """Refuse the run of a baseline, which has no networks that a search found.

    content: its settings. way_out: what to give in its place.
    """
    if is_baseline(content):
        raise InputError(f"{uri} is the run of a baseline, which 'stgs baseline' trains and tests; give {way_out}.")


def find_config(uri: str) -> dict[str, Any] | None:
    """The settings that a run was begun with, None if there is no run at `uri`."""
    return read_config(uri) if storage.exists(storage.join(uri, CONFIG_NAME)) else None


def read_hints(uri: str) -> dict[str, Any]:
    """Where the run's features and manifest were. Raises InputError if there is no run at `uri`."""
    return _read(uri)["hints"]


def part_uri(run: str, part: str) -> str:
    """Directory of a part of a run: one of its protocol, or a control."""
    return storage.join(run, "parts", part)


def part_uris(run: str) -> dict[str, str]:
    """Name -> URI of each part of a run's protocol, in order; none of an ordinary run.

    Raises InputError if there is no run.
    """
    protocol = read_config(run).get(PROTOCOL_KEY) or {}
    return {name: part_uri(run, name) for name in protocol.get("parts", {})}


def _read(uri: str, command: str = "'stgs grid' or 'stgs baseline'") -> dict[str, Any]:
    """command: what makes such a run, for the message."""
    try:
        content: dict[str, Any] = yaml.safe_load(storage.read(storage.join(uri, CONFIG_NAME)))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{uri} is no run: it has no {CONFIG_NAME}; give the --out of {command}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{uri}/{CONFIG_NAME} is damaged ({error}); begin again in another --out.") from None
    return content


def environment() -> dict[str, Any]:
    """Versions, hardware and, where the program runs from a checkout, the git commit."""
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "devices": devices,
        "versions": versions(_PACKAGES),
        "commit": _git_commit(),
    }


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):  # no git here: the commit is unknown, which the file says
        return None
    return done.stdout.strip() or None


def as_stored(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same with lists for tuples, as a file gives it back."""
    plain: dict[str, Any] = json.loads(boxes.canonical_json(value))
    return plain
