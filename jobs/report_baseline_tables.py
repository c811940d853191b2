"""What a report of a baseline run reads, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.evaluation import MIXED
from cluster.protocol_summary import METRICS, of_several_parts
from cluster.run_json import read_object
from cluster.runs import part_uri
from data_prep import boxes, storage
from jobs.report_baseline_facts import BaselineFacts, read_baseline
from jobs.report_html import count, duration, fraction
from jobs.report_over_parts import by_category_of, by_method_of, over_parts_of
from jobs.report_published import published_table
from jobs.report_rows import MEASURED
from jobs.report_tables import Column, DataTable
from jobs.report_wrong import WRONG_COLUMNS

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BaselineRunFacts:
    """baseline: what is known of it alone. environment: of its environment.json. curves: part -> rows of its epochs, of
    those without shuffled labels that have any.
    """

    baseline: BaselineFacts
    environment: Mapping[str, Any]
    curves: Mapping[str, Sequence[Row]]

    @property
    def content(self) -> Mapping[str, Any]:
        """Of `cluster.baseline_results.summary`."""
        return self.baseline.content

    @property
    def parts(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> metrics.json of the finished parts, those with shuffled labels included."""
        return self.baseline.parts

    @property
    def tested(self) -> dict[str, Mapping[str, Any]]:
        """The finished parts without shuffled labels."""
        return {name: metrics for name, metrics in self.parts.items() if metrics["shuffle_seed"] is None}

    @property
    def datasets(self) -> list[str]:
        """The data sets that some part was tested on, all together first."""
        names = dict.fromkeys(name for metrics in self.tested.values() for name in metrics["datasets"])
        return sorted(names, key=lambda name: name != MIXED)


def read_baseline_run(uri: str) -> BaselineRunFacts:
    """Read a baseline run. Raises InputError where there is none, or where one of its files is damaged."""
    baseline = read_baseline(uri)
    curves = {}
    for name in baseline.content["parts"]:
        try:
            curves[name] = boxes.read_table(storage.join(part_uri(uri, name), "curves.parquet")).to_pylist()
        except FileNotFoundError:  # it has not ended an epoch, or was not trained here
            continue
    environment = read_object(storage.join(uri, "environment.json"))
    return BaselineRunFacts(baseline, environment, {name: rows for name, rows in curves.items() if rows})


def baseline_tables(facts: BaselineRunFacts) -> list[DataTable]:
    """The tables that are written beside the page."""
    return [
        parts_table(facts),
        over_parts_table(facts),
        shuffles_table(facts),
        by_category_table(facts),
        by_method_table(facts),
        wrong_table(facts),
        published_table([facts.baseline.model]),
    ]


def parts_table(facts: BaselineRunFacts) -> DataTable:
    """Each part with all that was measured, once a data set of its test clips."""
    columns = (
        Column(key="part", head="part", text=True),
        Column(key="dataset", head="tested on", text=True),
        Column(key="clips", head="clips", show=count),
        Column(key="subjects", head="subjects", show=count),
        *(Column(key=key, head=MEASURED[key]) for key in METRICS),
        Column(key="dev_auc", head="dev AUC", show=fraction),
        Column(key="best_epoch", head="epoch", show=count),
        Column(key="epochs", head="of", show=count),
        Column(key="seconds", head="device time", show=duration),
        *(Column(key=key) for key in ("threshold", "device", "workers", "parameters", "macs", "frames_of_macs")),
    )
    rows = [
        {"part": part, "dataset": dataset, **told, **measured, "seconds": told["device_seconds"]}
        for part, told in facts.content["parts"].items()
        for dataset, measured in told["datasets"].items()
    ]
    return DataTable("parts", columns, rows)


def over_parts_table(facts: BaselineRunFacts) -> DataTable:
    """Mean and standard deviation of each measure, and of the AUC by method, where several parts test a data set."""
    over = of_several_parts(facts.content["over_parts"])
    return over_parts_of(over, {name: facts.content["methods_over_parts"][name] for name in over})


def shuffles_table(facts: BaselineRunFacts) -> DataTable:
    """The trainings with shuffled labels, once a data set of their test clips."""
    columns = (
        Column(key="part", head="training", text=True),
        Column(key="dataset", head="tested on", text=True),
        Column(key="shuffle_seed", head="shuffle"),
        Column(key="auc", head=MEASURED["auc"]),
        Column(key="dev_auc", head="dev AUC", show=fraction),
    )
    rows = [
        {
            "part": part,
            "dataset": dataset,
            **{key: metrics[key] for key in ("shuffle_seed", "dev_auc")},
            "auc": told["network"]["auc"],
        }
        for part, metrics in facts.parts.items()
        if metrics["shuffle_seed"] is not None
        for dataset, told in metrics["datasets"].items()
    ]
    return DataTable("shuffles", columns, rows)


def by_category_table(facts: BaselineRunFacts) -> DataTable:
    """AUC of each part against the real clips A, for all fakes and each category, once a data set."""
    return by_category_of(parts_table(facts).rows)


def by_method_table(facts: BaselineRunFacts) -> DataTable:
    """AUC of each part against the real clips, by forgery method, once a data set."""
    return by_method_of(parts_table(facts).rows)


def wrong_table(facts: BaselineRunFacts) -> DataTable:
    """The most wrong clips of each part, once a data set."""
    columns = (Column(key="part", head="part", text=True), *WRONG_COLUMNS)
    rows = [
        {"part": part, "evaluated_on": dataset, **row}
        for part, metrics in facts.tested.items()
        for dataset, told in metrics["datasets"].items()
        for row in told.get("wrong") or ()
    ]
    return DataTable("wrong_clips", columns, rows)
