"""The audit of a corpus on its way: beside the corpus, into the features that are made of it, into the run's directory.

What an audit holds is said in docs/formats.md; here it is carried only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster.features import FeatureSource
from data_prep import boxes, storage
from data_prep.leaks import split_summary
from data_prep.storage import InputError

AUDIT_NAME = "audit.json"


def write_audit(uri: str, audit: Mapping[str, Any]) -> None:
    """Write the audit.json of a corpus or a run."""
    storage.write(storage.join(uri, AUDIT_NAME), json.dumps(audit, indent=1, allow_nan=False).encode() + b"\n")


def read_audit(uri: str) -> dict[str, Any] | None:
    """The audit.json of a corpus or a run, None if it has none. Raises InputError if it is damaged."""
    name = storage.join(uri, AUDIT_NAME)
    try:
        content = json.loads(storage.read(name))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{name} is damaged ({error}); delete it, and make it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{name} is damaged (no JSON object); delete it, and make it again.")
    return content


def corpus_audit(uri: str, corpus: boxes.Meta) -> dict[str, Any] | None:
    """The audit of a corpus; None if there is none, or if it is that of other clips."""
    audit = read_audit(uri)
    return audit if audit is not None and audit.get("digest") == corpus.digest else None


def keep_audit(run: str, source: FeatureSource) -> None:
    """Write the audit.json of a run: the audit of the clips that it reads, if there is one, and what its splits leak.

    leaks: as `data_prep.leaks.split_summary` lists them.
    """
    write_audit(run, {**(source.audit() or {}), "leaks": split_summary(source.manifest.rows)["leaks"]})
