"""What the report knows of the baselines that stand beside a run's found network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.baseline_comparison import compare, matching_part
from cluster.baseline_remarks import SequencesFacts, checkpoint_of, is_reduced, sequences_of
from cluster.baseline_results import BASELINES_FOLDER, baselines_of, read_parts, summary
from cluster.runs import find_config, part_uri, read_config, read_hints
from data_prep import storage


@dataclass(frozen=True, slots=True)
class BaselineFacts:
    """A baseline run alone, beside a run, or beside a part of one.

    config, hints: of its config.yaml. sequences: that it read. content: of `cluster.baseline_results.summary`. parts:
    name -> metrics.json of its finished parts. run: the run in whose folder it lies, None where it lies in none.
    run_part: the part of the run that it stands beside, None for a run without parts. shown: the baseline's part of the
    same splits or name; all of them beside a run without parts that has no such one. comparisons: shown part -> data
    set of the run's test clips -> what `cluster.baseline_comparison.compare` says.
    """

    uri: str
    config: Mapping[str, Any]
    hints: Mapping[str, Any]
    sequences: SequencesFacts
    content: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    run: str | None = None
    run_part: str | None = None
    shown: Sequence[str] = ()
    comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of its directory."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def model(self) -> str:
        """Its name in `stgs.baselines.BASELINES`."""
        return str(self.content["model"])

    @property
    def title(self) -> str:
        """What the report calls it, e.g. `mrdf_ce`, or `mine (mrdf_ce, reduced)`."""
        metrics = list(self.parts.values())
        told = {
            self.model: self.model != self.name,
            "reduced": any(is_reduced(one["config"]) for one in metrics),
            "checkpoint": any(map(checkpoint_of, metrics)),
        }
        words = [word for word, holds in told.items() if holds]
        return f"{self.name} ({', '.join(words)})" if words else self.name

    def part_name(self, part: str) -> str:
        """What the report calls one of the parts that are shown."""
        return self.title if len(self.shown) == 1 else f"{self.title}, {part}"

    def is_of(self, *runs: str) -> bool:
        """Whether it lies in the folder of one of these runs, where their reports find it."""
        return any(self.uri == storage.join(run, BASELINES_FOLDER, self.name) for run in runs)


def read_baselines(
    run: str, whole: str, splits: str | None, datasets: Sequence[str], others: Sequence[str]
) -> list[BaselineFacts]:
    """The baselines in the folders of a run and, for a part of a run, of the whole run, and others by their URIs.

    splits: the run's split_digest. datasets: of its test clips. Raises InputError where one is damaged, or is none.
    """
    part = run.rstrip("/").rsplit("/", 1)[-1] if run != whole else None
    uris = [*baselines_of(run), *(baselines_of(whole) if part else ()), *map(storage.absolute, others)]
    return [_read(uri.rstrip("/"), run, part, splits, datasets) for uri in dict.fromkeys(uris)]


def read_baseline(uri: str) -> BaselineFacts:
    """A baseline run alone. Raises InputError where it is damaged, or is none."""
    content = summary(uri)
    folder, _, _ = uri.rstrip("/").rpartition("/")
    run, _, last = folder.rpartition("/")
    is_inside = last == BASELINES_FOLDER and find_config(run) is not None
    return BaselineFacts(
        uri=uri,
        config=read_config(uri),
        hints=read_hints(uri),
        sequences=sequences_of(uri),
        content=content,
        parts=read_parts(uri),
        run=run if is_inside else None,
    )


def _read(uri: str, run: str, run_part: str | None, splits: str | None, datasets: Sequence[str]) -> BaselineFacts:
    alone = read_baseline(uri)
    parts = alone.parts
    matched = matching_part(parts, run_part, splits)
    others = [name for name, metrics in parts.items() if metrics["shuffle_seed"] is None] if run_part is None else []
    shown = others if matched is None else [matched]
    comparisons = {
        part: {name: compare(run, name, part_uri(uri, part)) for name in datasets if name in parts[part]["datasets"]}
        for part in shown
    }
    return replace(alone, run_part=run_part, shown=shown, comparisons=comparisons)
