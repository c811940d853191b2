"""The page of a baseline run alone: its parts, their mean, kinds of fakes, ROC and learning curves, settings."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from cluster.baseline_remarks import seconds_words
from cluster.protocol_splits import PROTOCOL_KEY
from cluster.protocol_summary import of_several_parts
from jobs.report_audit import sequences_section, shortcuts_note
from jobs.report_baseline_commands import baseline_commands
from jobs.report_baseline_curves import curves_html
from jobs.report_baseline_remarks import short_count, shuffled_words, weights_words
from jobs.report_baseline_tables import (
    BaselineRunFacts,
    by_category_table,
    by_method_table,
    over_parts_table,
    parts_table,
    shuffles_table,
    wrong_table,
)
from jobs.report_baselines import OVER_PARTS_NOTE
from jobs.report_facts import leaves
from jobs.report_html import Html, duration, facts_table, fold, fraction, page, plural, section, tag, text_of
from jobs.report_over_parts import mean_words
from jobs.report_published import published_part
from jobs.report_roc import FALSE_POSITIVES, RocLine, drawable, mean_roc, roc_figure
from jobs.report_rows import MEASURED_NOTE
from jobs.report_scores import dots_figure
from jobs.report_tables import estimate_words


def baseline_page(facts: BaselineRunFacts) -> str:
    """The page."""
    sections = {
        "Summary": _summary(facts),
        "The parts in numbers": _numbers(facts),
        "Kinds of fakes": _kinds(facts),
        "ROC curves": _roc(facts),
        "How the training went": curves_html(facts.curves),
        "Most wrong clips": _wrong(facts),
        "Shortcuts": sequences_section(facts.baseline.sequences.audit),
        "Settings": _settings(facts),
    }
    anchors = ("summary", "parts", "scores", "roc", "curves", "wrong", "shortcuts", "settings")
    links = [tag("a", name, href=f"#{anchor}") for name, anchor in zip(sections, anchors, strict=True)]
    head = tag("header", tag("h1", f"Baseline {facts.baseline.title}"), tag("nav", links))
    return page(f"{facts.baseline.name}: report", _warning(facts), head, list(sections.values()))


def _warning(facts: BaselineRunFacts) -> Html | None:
    """The page's first line where shuffled labels are not at chance."""
    shuffled = facts.content["shuffled"]
    if shuffled is None or shuffled["at_chance"] is not False:
        return None
    words = (
        f"WARNING: with shuffled labels the scores are NOT at chance (mean test AUC {fraction(shuffled['mean'])}, "
        f"standard error {fraction(shuffled['standard_error'])}). Something but the labels tells the clips apart, or "
        "test clips leak into training: believe no score on this page before this is explained."
    )
    return tag("p", tag("strong", words), class_="caveats", role="alert")


def _summary(facts: BaselineRunFacts) -> Html:
    parts = facts.content["parts"]
    glance: dict[str, object] = {
        "What it is": _what_it_is(facts),
        "How good it is": [tag("div", line) for line in _how_good(facts)],
        "How sure that is": _how_sure(facts),
        "What it cost": _cost(facts),
    }
    lines = [f"{name}: {told['sentence']}." for name, told in parts.items() if told["sentence"] is not None]
    lacks = tag(
        "div", tag("h3", "What this run lacks"), tag("ul", [tag("li", line) for line in lines]), class_="caveats"
    )
    weights = [tag("p", f"{line[0].upper()}{line[1:]}") for line in weights_words(list(facts.tested.values()))]
    return section(
        "summary",
        "Summary",
        facts_table(glance),
        lacks if lines else None,
        weights,
        shortcuts_note(facts.baseline.sequences.audit or {}),
        published_part([facts.baseline]),
    )


def _what_it_is(facts: BaselineRunFacts) -> str:
    parts, tested = facts.content["parts"], facts.tested
    words = f"The baseline {facts.baseline.model}"
    one = next(iter(tested.values()), None)
    if one is not None:
        words += (
            f": {short_count(one['parameters'])} parameters, {short_count(one['macs'])} multiply-accumulates (MACs) "
            f"for a clip of {one['frames_of_macs']} frames"
        )
    told = (facts.content["size"], seconds_words(facts.content["max_seconds"]))
    lacking = any(part["sentence"] is not None for part in parts.values())
    trainings = f"{len(tested)} of {plural(len(parts), 'part')} finished" if lacking else plural(len(parts), "part")
    return f"{'; '.join([words, *filter(None, told), trainings])}."


def _cost(facts: BaselineRunFacts) -> str:
    if not facts.parts:
        return "Not known: no part is finished."
    seconds = math.fsum(metrics["device_seconds"] for metrics in facts.parts.values())
    shuffles = len(facts.parts) - len(facts.tested)
    what = "part" if facts.content["checkpoint"] else "training"
    cost = f"{duration(seconds)} of device time for {plural(len(facts.parts), what)}"
    return f"{cost}, {shuffles} of them with shuffled labels." if shuffles else f"{cost}."


def _how_good(facts: BaselineRunFacts) -> list[str]:
    lines = []
    over = of_several_parts(facts.content["over_parts"])
    for dataset in facts.datasets:
        if dataset in over:
            auc, accuracy = over[dataset]["auc"], over[dataset]["accuracy"]
            lines.append(f"{dataset}: mean AUC {mean_words(auc)}, accuracy {mean_words(accuracy)}.")
            continue
        for name, metrics in facts.tested.items():
            if dataset in metrics["datasets"]:
                where = dataset if len(facts.tested) == 1 else f"{name}, tested on {dataset}"
                lines.append(f"{where}: {_tested_words(metrics['datasets'][dataset])}")
    return lines or ["Not known: no part is finished."]


def _tested_words(told: Mapping[str, Any]) -> str:
    return (
        f"AUC {estimate_words(told['network']['auc'])} on {plural(told['clips'], 'test clip')} of "
        f"{plural(told['subjects'], 'subject')}; accuracy {estimate_words(told['network']['accuracy'])} at "
        "P(fake) = 0.5."
    )


def _how_sure(facts: BaselineRunFacts) -> str:
    told = ["Bounds are those of 95 % bootstrap intervals over the test subjects of a part."]
    if of_several_parts(facts.content["over_parts"]):
        told.append(OVER_PARTS_NOTE)
    shuffled = shuffled_words(facts.content)
    return " ".join([*told, f"{shuffled[0].upper()}{shuffled[1:]}"])


def _numbers(facts: BaselineRunFacts) -> Html:
    table, over, shuffles = parts_table(facts), over_parts_table(facts), shuffles_table(facts)
    if not table.rows:
        return section("parts", "The parts in numbers", tag("p", "No part is finished."))
    parts: list[object] = [tag("p", MEASURED_NOTE, class_="soft"), table.html()]
    if over.rows:
        note = tag("p", OVER_PARTS_NOTE.replace("±", "It"), class_="soft")
        parts += [tag("h3", "Mean and standard deviation over the parts"), note, over.html()]
    if shuffles.rows:
        parts.append(fold(f"The trainings with shuffled labels ({len(shuffles.rows)})", shuffles.html()))
    return section("parts", "The parts in numbers", parts)


def _kinds(facts: BaselineRunFacts) -> Html:
    categories, methods = by_category_table(facts), by_method_table(facts)
    if not categories.rows:
        return section("scores", "Kinds of fakes", tag("p", "No part is finished."))
    charts = []
    for dataset in facts.datasets:
        aucs = {row["part"]: row["auc"] for row in categories.rows if row["dataset"] == dataset}
        charts.append(dots_figure(aucs, f"AUC on test ({dataset}), part by part"))
    parts: list[object] = [tag("div", charts, class_="pair" if len(charts) > 1 else "roc")]
    parts += [tag("h3", "By category: AUC against the real clips A"), categories.html()]
    if methods.rows:
        parts += [tag("h3", "By forgery method: AUC against all real clips"), methods.html()]
    return section("scores", "Kinds of fakes", parts)


def _roc(facts: BaselineRunFacts) -> Html:
    figures = []
    for dataset in facts.datasets:
        own = {name: metrics["datasets"].get(dataset) for name, metrics in facts.tested.items()}
        networks = {
            name: told["network"] for name, told in own.items() if told and drawable(told["network"].get("roc"))
        }
        lines: list[RocLine] = []
        if len(networks) > 1 and facts.content["over_parts"] is not None:
            mean = mean_roc([network["roc"] for network in networks.values()])
            lines.append((f"mean of {len(networks)} parts", FALSE_POSITIVES.tolist(), mean.tolist()))
        lines += [
            (f"{name}: AUC {estimate_words(network['auc'])}", *network["roc"]) for name, network in networks.items()
        ]
        figures.append(
            roc_figure(lines, f"On {dataset}", "The line from corner to corner is chance.", first_thick=True)
        )
    shown = tag("div", figures, class_="pair") if figures else tag("p", "No part is finished.")
    return section("roc", "ROC curves on test", shown)


def _wrong(facts: BaselineRunFacts) -> Html:
    table = wrong_table(facts)
    # Of several data sets the clips of each stand among those of all together, too.
    datasets = facts.datasets[:1]
    if not table.rows:
        words = (
            "No part is finished."
            if not facts.tested
            else "Every test clip is on the right side of its part's threshold."
        )
        return section("wrong", "Most wrong clips", tag("p", words))
    words = (
        "The test clips that lie farthest on the wrong side of their part's threshold, which was chosen on dev: real "
        "ones called fake, and fakes called real, at most 6 of each a part."
    )
    shown = [table.where(evaluated_on=dataset).html() for dataset in datasets]
    return section("wrong", "Most wrong clips", tag("p", words), shown)


def _settings(facts: BaselineRunFacts) -> Html:
    settings = {name: text_of(value) for name, value in leaves(_without_parts(facts.baseline.config))}
    hints = {name: text_of(value) for name, value in leaves(facts.baseline.hints)}
    environment = dict(facts.environment)
    versions = environment.pop("versions", None) or {}
    shown = {name: text_of(value) for name, value in environment.items() if value}
    shown["packages"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    devices = dict.fromkeys(str(metrics["device"]) for metrics in facts.parts.values())
    shown["device of the training"] = ", ".join(devices) or "not known yet"
    report = shlex.join(["stgs", "report", facts.baseline.uri])
    digests: dict[str, object] = {}
    for part, metrics in facts.parts.items():
        digests |= {f"{part}: {name}": tag("code", digest) for name, digest in metrics["digests"].items()}
    return section(
        "settings",
        "Settings and how to repeat it",
        tag("h3", "Commands"),
        tag("pre", tag("code", "\n".join([*baseline_commands([facts.baseline]), report]))),
        tag("h3", "Settings"),
        facts_table({**settings, **hints}),
        tag("h3", "Versions and hardware"),
        facts_table(shown),
        fold("Digests", facts_table(digests)) if digests else None,
    )


def _without_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the lists of subjects and data sets of the parts."""
    protocol = config.get(PROTOCOL_KEY)
    if not isinstance(protocol, Mapping):
        return dict(config)
    return {**config, PROTOCOL_KEY: {name: value for name, value in protocol.items() if name != "parts"}}
