"""The results of a run, fetched from its storage to a folder."""

from __future__ import annotations

import fnmatch

from data_prep import storage
from data_prep.storage import InputError

# What a run was, its results, and its report.
_RESULTS = ("grid.parquet", "points/*/genotype.json", "report/*")
_FACTS = ("config.yaml", "environment.json")


def fetch_results(run: str, out: str) -> list[str]:
    """Copy a run's results below `out`, each whole or not at all; returns their names.

    run, out: URIs. Raises InputError if there is no run at `run`, or if it has no results yet.
    """
    names = storage.list(run)
    if _FACTS[0] not in names:
        raise InputError(f"{run} has nothing yet: the job has not begun its run, or that is another directory.")
    results = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in _RESULTS)]
    if not results:
        raise InputError(f"{run} has no results yet; 'stgs status {run}' says how far it is.")
    wanted = [*(name for name in _FACTS if name in names), *results]
    for name in wanted:
        storage.write(storage.join(out, name), storage.read(storage.join(run, name)))
    return wanted
