"""What `stgs report` reads: the files of a run, and nothing else.

Every part may be missing but the run's configuration: a run can be searched in part, trained or not, evaluated or not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.attempts import point_uri, read_result
from cluster.audits import read_audit
from cluster.controls import AUDIO, CONTROLS, GRID, VISUAL, arm_uri
from cluster.evaluation import MIXED, choose, network_uris
from cluster.evaluation_cost import training_seconds
from cluster.evaluation_metrics import VERSION
from cluster.found_loop import network_facts
from cluster.gathering import read_grid
from cluster.genotype_runs import is_genotype_run
from cluster.protocol_splits import PROTOCOL_KEY, SPLIT_KEY
from cluster.rank_correlation import rank_correlation
from cluster.runs import CONFIG_NAME, find_config, read_config, read_hints
from cluster.settings import GridConfig, config_from_dict
from data_prep import boxes, storage
from data_prep.storage import InputError
from jobs.report_baseline_facts import BaselineFacts, read_baselines
from jobs.report_wrong_pictures import wrong_pictures

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """The search of an arm: its settings, its rows of grid.parquet, and id -> reason of the points without a row."""

    config: dict[str, Any]
    grid: GridConfig
    rows: list[Row]
    missing: dict[str, str]

    @property
    def device_seconds(self) -> float:
        """Cost of the points that have a result."""
        return math.fsum(row["device_seconds"] for row in self.rows)

    def groups(self) -> list[tuple[str, list[Row]]]:
        """The rows by estimator and options, with words for what tells the groups apart (nothing where one stands
        alone): temperatures and numbers of samples are compared within a group only.
        """
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row["estimator"], row["options"]), []).append(row)
        return [(self.group_words(rows[0]), rows) for rows in found.values()]

    def group_words(self, point: Mapping[str, Any]) -> str:
        """The estimator and the options of a point, as far as the grid varies them; e.g. `stgs, dropout=0.1`."""
        parts = [str(point["estimator"])] if len(self.grid.estimators) > 1 else []
        return ", ".join([*parts, *filter(None, [str(point.get("options", ""))])])


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of the trained networks: from one reading of a data set's test clips, or (dataset None) before it.

    networks: name (`arm/id`) -> facts: arm, auc (an estimate; absent before the evaluation), dev_auc, parameters,
    genotype, ... (`cluster.evaluation`). found, best_single_sense: names, chosen on dev. content: of metrics.json.
    robustness: of robustness.json, None where nothing was damaged.
    """

    dataset: str | None
    networks: dict[str, Row]
    found: str
    best_single_sense: str | None
    content: dict[str, Any]
    robustness: dict[str, Any] | None = None

    def of_arm(self, arm: str) -> list[Row]:
        """Facts of an arm's networks."""
        return [network for network in self.networks.values() if network["arm"] == arm]

    def best_of(self, *arms: str) -> str | None:
        """The network of these arms with the best AUC on dev; where the evaluation has chosen one, it is that."""
        compared = [row["network"] for row in self.content.get("comparisons", {}).values()]
        for name in (self.found, self.best_single_sense, *compared):
            if name is not None and {self.networks[name]["arm"]} == set(arms):
                return str(name)
        return _chosen(self.networks, arms)

    def point_network(self, point_id: str) -> Row | None:
        """The network of a point of the grid, None if it has not been trained."""
        return self.networks.get(f"{GRID}/{point_id}")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Everything that the report shows.

    arms: the grid and those controls that are searches. readings: one a data set; empty before training. training:
    settings of the networks' training, None before it. curves: point id -> rows of its epochs; a point whose file is
    gone is left out. provenance: how the features were made, as far as files say. audit: of the clips, and the leaks
    of their splits (`cluster.audits.keep_audit`); empty for runs of earlier versions. latency: of latency.json, None
    where nothing was timed. rank_correlation: of supernets and the networks trained alone (`cluster.rank_correlation`),
    None where too few genotypes have both. pictures: of the most wrong clips (`jobs.report_wrong`): clip_id -> JPEGs of
    its frames and of its spectrogram; no_pictures: why there are none. protocol: settings of the protocol that split
    the clips anew; whole: the run that a command names: this one, or that whose part it is. baselines: what stands
    beside the found network.
    """

    uri: str
    hints: dict[str, Any]
    environment: dict[str, Any]
    arms: dict[str, Arm]
    readings: list[Reading]
    training: dict[str, Any] | None
    provenance: dict[str, Any]
    curves: dict[str, list[Row]]
    audit: dict[str, Any]
    latency: dict[str, Any] | None = None
    rank_correlation: dict[str, Any] | None = None
    pictures: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)
    no_pictures: str | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    whole: str = ""
    baselines: Sequence[BaselineFacts] = ()

    @property
    def name(self) -> str:
        """The run's name: the last part of its directory."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def main(self) -> Arm:
        """The search that the run was made for."""
        return self.arms[GRID]

    @property
    def searched(self) -> bool:
        """Whether the run is a search's; the genotypes of another one were given."""
        return not is_genotype_run(self.main.config)

    @property
    def evaluated(self) -> bool:
        """Whether test has been read."""
        return any(reading.dataset is not None for reading in self.readings)

    @property
    def tested(self) -> list[Reading]:
        """The readings of test clips."""
        return [reading for reading in self.readings if reading.dataset is not None]

    def training_seconds(self) -> dict[str, float]:
        """Arm -> device seconds of training its networks, those that several arms share for the first."""
        return training_seconds(self.readings[0].networks if self.readings else {}, self.main.grid.seeds[0])


def read_run(uri: str, corpus: str | None = None, baselines: Sequence[str] = ()) -> RunFacts:
    """Read a run. corpus: where the clips' pictures are taken from (default: where the run's files say that it lies).
    baselines: runs of 'stgs baseline' beside those that lie in the run's own folder.

    Raises InputError where `uri` is no run, where one of its files is damaged, or where a corpus or a baseline is named
    that is none.
    """
    uri = storage.absolute(uri)
    arms = {GRID: _arm(uri)}
    for name in CONTROLS:
        part = arm_uri(uri, name)
        if storage.exists(storage.join(part, CONFIG_NAME)):
            arms[name] = _arm(part)
    readings, sample = _readings(uri)
    hints = read_hints(uri)
    protocol = _protocol(uri, arms[GRID].config)
    tested = [reading.dataset for reading in readings if reading.dataset is not None]
    beside = read_baselines(uri, protocol["whole"], arms[GRID].config.get("split_digest"), tested, baselines)
    pictures, no_pictures = wrong_pictures(arms[GRID].config, hints, [reading.content for reading in readings], corpus)
    return RunFacts(
        uri=uri,
        hints=hints,
        environment=_json(storage.join(uri, "environment.json")) or {},
        arms=arms,
        readings=readings,
        training=sample["config"] if sample else None,
        provenance=sample["provenance"] if sample else _provenance(hints),
        curves=_curves(uri, arms[GRID].rows),
        audit=read_audit(uri) or {},
        latency=_json(storage.join(uri, "evaluation", "latency.json")),
        rank_correlation=rank_correlation(uri) if arms[GRID].rows else None,
        pictures=pictures,
        no_pictures=no_pictures,
        **protocol,
        baselines=beside,
    )


def _protocol(uri: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol that split the clips of a run, and the run that has it: a part's is two folders above."""
    whole = uri
    if SPLIT_KEY in config and PROTOCOL_KEY not in config:
        whole = uri.rstrip("/").rsplit("/", 2)[0]
        config = find_config(whole) or {}
    settings = config.get(PROTOCOL_KEY) or {}
    return {"protocol": {name: value for name, value in settings.items() if name != "parts"}, "whole": whole}


def _arm(uri: str) -> Arm:
    config = read_config(uri)
    grid = config_from_dict(config)
    rows = read_grid(uri) if storage.exists(storage.join(uri, "grid.parquet")) else []
    # Runs of earlier versions lack some columns.
    rows = [{"options": "", "gradient_lost": "", "entropy_unmoved": "", **row} for row in rows]
    there = {row["id"] for row in rows}
    points = [] if is_genotype_run(config) else grid.points()
    missing = {point.id: _why_missing(uri, point.id) for point in points if point.id not in there}
    return Arm(config, grid, rows, missing)


def _why_missing(uri: str, point_id: str) -> str:
    if read_result(uri, point_id) is not None:
        return "searched, but not gathered into grid.parquet yet: run 'stgs grid --resume'"
    failure = _json(point_uri(uri, point_id, "failed.json"))
    if failure is None:
        return "not searched yet"
    return "failed: " + ((failure["reason"].strip().splitlines() or ["no reason was given"])[-1])


def _json(uri: str) -> dict[str, Any] | None:
    """The object in a file, None if there is no file."""
    try:
        content: dict[str, Any] = json.loads(storage.read(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{uri} is damaged ({error}); make it again.") from None
    return content


def _readings(uri: str) -> tuple[list[Reading], dict[str, Any] | None]:
    """The readings of the run's networks, and the facts in one network file."""
    try:
        files = network_uris(uri)
    except InputError:  # nothing is trained yet
        files = {}
    root = storage.join(uri, "evaluation")
    names = [path for path in storage.list(root) if path.endswith("/metrics.json")]
    if names:
        readings = [_reading(uri, storage.join(root, name.rpartition("/")[0])) for name in names]
        readings.sort(key=lambda reading: reading.dataset != MIXED)
        sample = files.get(readings[0].found)
        return readings, network_facts(storage.read(sample)) if sample else None
    if not files:
        return [], None
    facts = {name: network_facts(storage.read(file)) for name, file in files.items()}
    networks = {name: {"arm": name.split("/")[0], **network, **network["metrics"]} for name, network in facts.items()}
    found = _chosen(networks, (GRID,))
    assert found is not None  # network_uris names at least one
    return [Reading(None, networks, found, _chosen(networks, (VISUAL, AUDIO)), {})], facts[found]


def _chosen(networks: Mapping[str, Row], arms: Sequence[str]) -> str | None:
    """What `cluster.evaluation.choose` picks of networks as metrics.json lists them."""
    facts = {
        name: {
            "point": network["point"],
            "repeat": network.get("repeat", 0),
            "metrics": {key: network.get(key) for key in ("dev_auc", "fitted_on", "search_dev_auc")},
        }
        for name, network in networks.items()
    }
    return choose(facts, arms)


def _reading(uri: str, folder: str) -> Reading:
    content = _json(storage.join(folder, "metrics.json")) or {}
    version = content.get("version", 1)
    if version != VERSION:
        raise InputError(
            f"{folder}/metrics.json has version {version}, but this program reads {VERSION}; run 'stgs "
            "evaluate "
            f"{uri}' again, which makes it anew from the scores that stand beside it."
        )
    robustness = _json(storage.join(folder, "robustness.json"))
    found, single = content["found"], content["best_single_sense"]
    return Reading(content["dataset"], content["networks"], found, single, content, robustness)


def _provenance(hints: Mapping[str, Any]) -> dict[str, Any]:
    """How the features were made, from their meta.json if they still lie where the search read them.

    A search that trained its backbones read a corpus.
    """
    meta = _json(storage.join(str(hints["features"]), boxes.META_NAME))
    if meta is None:
        return {}
    if meta["kind"] == boxes.CORPUS:
        return {"corpus": meta["config"]}
    return {"backbones": meta["config"], "corpus": meta["extra"].get("corpus_config", {})}


def _curves(uri: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    tables: dict[str, list[Row]] = {}
    for path in {row["curves"] for row in rows}:
        try:
            tables[path] = boxes.read_table(storage.join(uri, path)).to_pylist()
        except FileNotFoundError:
            tables[path] = []
    found = {
        row["id"]: [line for line in tables[row["curves"]] if line["member"] == row["curves_member"]] for row in rows
    }
    return {point_id: lines for point_id, lines in found.items() if lines}


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of all settings in nested mappings, without the names of the mappings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, prefix)
        else:
            yield f"{prefix}{name}", value
