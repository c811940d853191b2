"""The results of a run, fetched from its storage to a folder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.liveness import is_live, read_driver
from data_prep import storage
from data_prep.storage import InputError

_CONFIG = "config.yaml"
# What a run was, its results, and its report. Names come from the storage, and S3 allows `..` in them: a part of one is
# what a point's id or a file of ours may be called, and nothing else.
_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._+-]+"
_REPORT = rf"report/{_PART}(?:/{_PART})*"
# Of a baseline's run, or of one that lies in the run that it stands beside.
_BASELINE = rf"(?:baselines/{_PART}/)?(?:parts/{_PART}/)?(?:metrics\.json|scores\.parquet|curves\.parquet)"
_BESIDE = rf"baselines/{_PART}/(?:config\.yaml|environment\.json|{_REPORT})"
_RESULT = re.compile(rf"grid\.parquet|points/{_PART}/genotype\.json|{_REPORT}|{_BASELINE}|{_BESIDE}")
_FACTS = (_CONFIG, "environment.json")
_PART_FILE = re.compile(rf"parts/({_PART})/(.+)")


@dataclass(frozen=True, slots=True)
class Fetched:
    """names: of the files that were fetched. gone: of those that were removed while the run was read. live: whether a
    driver works on the run, so that more may come.
    """

    names: list[str]
    gone: list[str]
    live: bool


def fetch_results(run: str, out: str, *, clock: Callable[[], float] = time.time) -> Fetched:
    """Copy a run's results below `out`, each whole or not at all.

    run, out: URIs. clock: Unix seconds. Raises InputError if there is no run at `run`, if it has no results yet, or if
    the results of another run lie in `out`.
    """
    names = storage.list(run)
    if _CONFIG not in names:
        raise InputError(f"{run} has nothing yet: the job has not begun its run, or that is another directory.")
    parts = _parts(run)
    results = [name for name in names if _RESULT.fullmatch(_below(name, parts))]
    if not results:
        raise InputError(f"{run} has no results yet; 'stgs status {run}' says how far it is.")
    _require_same(run, out)
    wanted = [name for name in names if _below(name, parts) in _FACTS] + results
    gone = [name for name in wanted if not _copy(run, out, name)]
    driver = read_driver(run)
    live = driver is not None and is_live(driver, now=clock())
    return Fetched([name for name in wanted if name not in gone], gone, live)


def _parts(run: str) -> set[str]:
    """The names of the parts of a run's protocol; what else lies under parts/ are controls."""
    try:
        parts = yaml.safe_load(storage.read(storage.join(run, _CONFIG)))["config"]["protocol"]["parts"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, FileNotFoundError):  # no protocol, or damaged
        return set()
    return set(parts) if isinstance(parts, dict) else set()


def _below(name: str, parts: Collection[str]) -> str:
    """The name of an object of the run, as its part calls it if it belongs to one of `parts`."""
    part = _PART_FILE.fullmatch(name)
    return part[2] if part and part[1] in parts else name


def _copy(run: str, out: str, name: str) -> bool:
    """Copy one object; False where it is gone."""
    target = storage.join(out, name)
    # The pattern above refuses what leads out of `out`; nothing is written by its word alone.
    if "://" not in out and os.path.commonpath([os.path.abspath(target), os.path.abspath(out)]) != os.path.abspath(out):
        raise InputError(f"{run} has an object {name!r}, which would be written outside of {out}; fetch it by hand.")
    try:
        content = storage.read(storage.join(run, name))
    except FileNotFoundError:
        return False
    storage.write(target, content)
    return True


def _require_same(run: str, out: str) -> None:
    """Refuse to mix the results of two runs in `out`. A run that was given more points, or resumed, is the same."""
    try:
        standing = storage.read(storage.join(out, _CONFIG))
    except (FileNotFoundError, NotADirectoryError):
        return
    own = storage.read(storage.join(run, _CONFIG))
    if standing != own and _identity(standing) != _identity(own):
        raise InputError(f"--out {out} holds the results of another run (its {_CONFIG} differs); give another --out.")


def _identity(config: bytes) -> Any:
    """What stays of a run's configuration as long as it is that run."""
    # Late: it loads torch, for which only the second look at a run that has grown waits.
    from cluster.packing import GROWING

    try:
        settings = yaml.safe_load(config)["config"]
        return {key: value for key, value in settings.items() if key not in GROWING}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):  # damaged, or of another program
        return config
