"""The page of a run that a protocol split into parts: what the parts say together, and what each of them found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.protocol_summary import METRICS
from jobs.report_baseline_parts import (
    over_parts_baselines_table,
    parts_baselines_section,
    parts_baselines_table,
    parts_published_table,
)
from jobs.report_drawing import genotype_picture
from jobs.report_facts import RunFacts
from jobs.report_html import Html, count, duration, facts_table, figure, join, page, plural, section, tag
from jobs.report_over_parts import by_category_of, by_method_of, mean_words, over_parts_of
from jobs.report_paper import datasets_of, mark, table_4
from jobs.report_rows import MEASURED, MEASURED_NOTE, network_words
from jobs.report_summary import chance_warning, searched_words
from jobs.report_tables import Column, DataTable, estimate_words
from jobs.report_verdicts import baseline_verdicts_of_parts
from stgs.genotype import genotype_from_dict

_PROTOCOLS = {
    "folds": "the subjects are dealt into five folds, and each part tests on another one",
    "method": "each part tests on one forgery method that its training never saw",
    "cross": "each part is searched and trained on one data set, and tested on every one",
}


@dataclass(frozen=True, slots=True)
class ProtocolFacts:
    """uri: of the run. content: of `cluster.protocol_summary.summary`. parts: name -> what is known of each."""

    uri: str
    content: Mapping[str, Any]
    parts: Mapping[str, RunFacts]

    @property
    def name(self) -> str:
        """The run's name: the last part of its directory."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]


def parts_table(facts: ProtocolFacts) -> DataTable:
    """The found network of each part, once a data set of its test clips."""
    columns = (
        Column(key="part", head="part", text=True),
        Column(key="dataset", head="tested on", text=True),
        Column(key="network", text=True),
        Column(key="clips", head="clips", show=count),
        Column(key="subjects", head="subjects", show=count),
        *(Column(key=key, head=MEASURED[key]) for key in METRICS),
    )
    rows = [
        {"part": part, "dataset": dataset, **measured}
        for part, told in facts.content["parts"].items()
        for dataset, measured in told["datasets"].items()
    ]
    return DataTable("parts", columns, rows)


def by_category_table(facts: ProtocolFacts) -> DataTable:
    """AUC of each part's found network against the real clips A, for all fakes and each category, once a data set."""
    return by_category_of(parts_table(facts).rows)


def by_method_table(facts: ProtocolFacts) -> DataTable:
    """AUC of each part's found network against the real clips, by forgery method, once a data set."""
    return by_method_of(parts_table(facts).rows)


def over_parts_table(facts: ProtocolFacts) -> DataTable:
    """Mean and standard deviation over the parts of each measure, and of the AUC by method, once a data set."""
    return over_parts_of(facts.content["over_parts"] or {}, facts.content["methods_over_parts"] or {})


def matrix_table(facts: ProtocolFacts) -> DataTable:
    """Table 4 beside ours; without rows for a protocol other than `cross`."""
    matrix = facts.content["matrix"]
    return table_4(matrix["cells"]) if matrix else DataTable("table4", (), [])


def protocol_tables(facts: ProtocolFacts) -> list[DataTable]:
    """The tables that are written beside the page."""
    makers = (parts_table, by_category_table, by_method_table, over_parts_table, matrix_table)
    baselines = (parts_baselines_table, over_parts_baselines_table, parts_published_table)
    return [*(make(facts) for make in makers), *(make(facts.parts) for make in baselines)]


def protocol_page(facts: ProtocolFacts) -> str:
    """The page of the whole run."""
    warnings = [
        tag("div", tag("p", f"Part {name}:"), warning)
        for name, part in facts.parts.items()
        if (warning := chance_warning(part)) is not None
    ]
    names = {"summary": "Summary", "parts": "The parts in numbers"}
    if facts.content["matrix"]:
        names["matrix"] = "Table 4"
    baselines = parts_baselines_section(facts.parts, averaged=bool(facts.content["over_parts"]))
    if baselines:
        names["baselines"] = "Baselines"
    names["found"] = "What each part found"
    links = [tag("a", name, href=f"#{anchor}") for anchor, name in names.items()]
    head = tag("header", tag("h1", f"Search of fusion networks by parts: {facts.name}"), tag("nav", links))
    parts = [_summary(facts), _numbers(facts), _matrix(facts), baselines, _found(facts)]
    return page(f"{facts.name}: report", join(warnings), head, parts)


def _summary(facts: ProtocolFacts) -> Html:
    protocol = facts.content["protocol"]
    words = f"Protocol '{protocol}': {_PROTOCOLS.get(protocol, 'the clips are split in parts')}."
    first = next(iter(facts.parts.values()))
    seconds = sum(arm.device_seconds for part in facts.parts.values() for arm in part.arms.values())
    training = sum(sum(part.training_seconds().values()) for part in facts.parts.values())
    glance = {
        "What was done": f"{plural(len(facts.parts), 'part')}, each searched, trained and tested by itself. {words}",
        "How good it is": _how_good(facts),
        "How sure that is": _how_sure(facts),
        "What it cost": f"{duration(seconds)} of device time for all searches, {duration(training)} for training.",
    }
    missing = [
        tag("li", f"{name}: {told['sentence']}.")
        for name, told in facts.content["parts"].items()
        if told["sentence"] is not None
    ]
    lacks = tag("div", tag("h3", "What this run lacks"), tag("ul", missing), class_="caveats") if missing else None
    each = tag("p", f"Each part: {searched_words(first)}")
    return section("summary", "Summary", facts_table(glance), lacks, each)


def _how_good(facts: ProtocolFacts) -> object:
    if facts.content["over_parts"]:
        lines = []
        for dataset, measures in facts.content["over_parts"].items():
            auc, accuracy = measures["auc"], measures["accuracy"]
            lines.append(f"{dataset}: mean AUC {mean_words(auc)}, accuracy {mean_words(accuracy)}.")
        return " ".join(lines)
    tested = parts_table(facts).rows
    if not tested:
        return "Not known: the test clips have not been read yet."
    return [
        tag("div", f"{row['part']}, tested on {row['dataset']}: AUC {estimate_words(row.get('auc'))}.")
        for row in tested
    ]


def _how_sure(facts: ProtocolFacts) -> str:
    told = ["Bounds are those of 95 % bootstrap intervals over the test subjects of a part."]
    if facts.content["over_parts"]:
        told.append("± is the standard deviation over parts, which share training clips: it is no interval.")
    tried = [reading for part in facts.parts.values() for reading in part.tested if reading.content.get("shuffled")]
    verdicts = [reading.content["shuffled"]["at_chance"] for reading in tried]
    failed, unknown = verdicts.count(False), verdicts.count(None)
    if failed:
        told.append(f"Shuffled labels end NOT at chance in {failed}.")
    elif unknown:
        told.append(f"Shuffled labels are too few to tell in {unknown} of {len(tried)} tests of parts.")
    elif tried:
        told.append(f"Shuffled labels end at chance in all {len(tried)} tests of parts.")
    else:
        told.append("Shuffled labels were not tried, so that nothing rules out a leak.")
    told += baseline_verdicts_of_parts({name: part.baselines for name, part in facts.parts.items()})
    return " ".join(told)


def _numbers(facts: ProtocolFacts) -> Html:
    over = over_parts_table(facts)
    parts: list[object] = [tag("p", MEASURED_NOTE, class_="soft"), parts_table(facts).html()]
    methods = by_method_table(facts)
    if methods.rows:
        parts += [tag("h3", "By category: AUC against the real clips A"), by_category_table(facts).html()]
        parts += [tag("h3", "By forgery method: AUC against all real clips"), methods.html()]
    if over.rows:
        parts += [tag("h3", "Mean and standard deviation over the parts"), over.html()]
    return section("parts", "The parts in numbers", parts)


def _matrix(facts: ProtocolFacts) -> Html | None:
    if not facts.content["matrix"]:
        return None
    datasets = {dataset for part in facts.parts.values() for dataset in datasets_of(part)}
    note = (
        "Rows: the data set of search and training, and the one of the test. The paper's figures were measured with "
        "its "
        "own splits, backbones and machine: they are context, never a ranking."
    )
    title = f"The paper's Table 4, {mark(datasets)}"
    return section("matrix", title, tag("p", note, class_="soft"), matrix_table(facts).html())


def _found(facts: ProtocolFacts) -> Html:
    """The found network of each part as a picture, and the command that writes the part's own page."""
    figures = []
    for name, part in facts.parts.items():
        if not part.readings:
            figures.append(tag("p", f"{name}: no network is trained yet."))
            continue
        reading = part.readings[0]
        network = reading.networks[reading.found]
        picture = tag("div", genotype_picture(genotype_from_dict(network["genotype"], name)), class_="scroll")
        scores = "; ".join(
            f"AUC on {other.dataset} {estimate_words(other.networks[other.found]['auc'])}" for other in part.tested
        )
        words = (
            f"{network_words(network, part)}; {count(network['parameters'])} parameters; "
            f"{scores or 'not tested yet'}. Its own page: stgs report {part.uri}"
        )
        figures.append(figure(picture, words, title=name))
    return section("found", "What each part found", tag("div", figures, class_="drawings"))
