"""What the report knows of the baselines that stand beside a run's found network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.baseline_results import baselines_of, compare, matching_part, read_parts, summary
from cluster.runs import part_uri
from data_prep import storage


@dataclass(frozen=True, slots=True)
class BaselineFacts:
    """A baseline run beside a run, or beside a part of one.

    content: of `cluster.baseline_results.summary`. parts: name -> metrics.json of its finished parts. run_part: the
    part of the run that it stands beside, None for a run without parts. shown: the baseline's part of the same splits
    or name; all of them beside a run without parts that has no such one. comparisons: shown part -> data set of the
    run's test clips -> what `cluster.baseline_results.compare` says.
    """

    uri: str
    content: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    run_part: str | None
    shown: Sequence[str]
    comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def name(self) -> str:
        """What the report calls it: the last part of its directory."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def model(self) -> str:
        """Its name in `stgs.baselines.BASELINES`."""
        return str(self.content["model"])

    def part_name(self, part: str) -> str:
        """What the report calls one of the parts that are shown."""
        return self.name if len(self.shown) == 1 else f"{self.name}, {part}"


def read_baselines(
    run: str, whole: str, splits: str | None, datasets: Sequence[str], others: Sequence[str]
) -> list[BaselineFacts]:
    """The baselines in the folders of a run and, for a part of a run, of the whole run, and others by their URIs.

    splits: the run's split_digest. datasets: of its test clips. Raises InputError where one is damaged, or is none.
    """
    part = run.rstrip("/").rsplit("/", 1)[-1] if run != whole else None
    uris = [*baselines_of(run), *(baselines_of(whole) if part else ()), *map(storage.absolute, others)]
    return [_read(uri.rstrip("/"), run, part, splits, datasets) for uri in dict.fromkeys(uris)]


def _read(uri: str, run: str, run_part: str | None, splits: str | None, datasets: Sequence[str]) -> BaselineFacts:
    parts = read_parts(uri)
    matched = matching_part(parts, run_part, splits)
    others = [name for name, metrics in parts.items() if metrics["shuffle_seed"] is None] if run_part is None else []
    shown = others if matched is None else [matched]
    comparisons = {
        part: {name: compare(run, name, part_uri(uri, part)) for name in datasets if name in parts[part]["datasets"]}
        for part in shown
    }
    return BaselineFacts(uri, summary(uri), parts, run_part, shown, comparisons)
