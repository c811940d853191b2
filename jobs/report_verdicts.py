"""Sentences on how a comparison, or a check, came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.report_baseline_facts import BaselineFacts
from jobs.report_html import bounds, plural
from jobs.report_rows import against_zero, p_value_words
from jobs.report_tables import bounds_of, estimate_words, value_of


def chance_words(shuffled: Mapping[str, Any]) -> str:
    """Where shuffled labels end, and how far that is to be believed."""
    sentence, at_chance = shuffled.get("sentence"), shuffled["at_chance"]
    if at_chance is None:
        return f"Shuffled labels do not tell whether they end at chance{f': {sentence}' if sentence else '.'}"
    words = "end at chance" if at_chance else "are NOT at chance"
    return f"Shuffled labels {words}{f', but {sentence}' if sentence else '.'}"


def difference_words(difference: Mapping[str, Any] | None) -> str:
    """A paired difference for a sentence: +0.021 [0.003, 0.040], p 0.021."""
    if value_of(difference) is None:
        return estimate_words(difference)
    assert difference is not None
    words = f"{difference['value']:+.3f}"
    if bounds_of(difference):
        words += f" {bounds(difference)}"
    return words if difference.get("p_value") is None else f"{words} (p {p_value_words(difference['p_value'])})"


def baseline_verdicts(baselines: Sequence[BaselineFacts], dataset: str) -> list[str]:
    """A sentence on each baseline beside the found network, on the test clips of a data set."""
    lines = []
    for baseline in baselines:
        for part in baseline.shown:
            compared = baseline.comparisons[part].get(dataset)
            if compared is not None:
                lines.append(_verdict(baseline.part_name(part), compared["difference"]))
    return lines


def baseline_verdicts_of_parts(parts: Mapping[str, Sequence[BaselineFacts]]) -> list[str]:
    """A sentence on each baseline beside the found networks of a run's parts. parts: name -> those beside it."""
    found: dict[str, list[str | None]] = {}
    for baselines in parts.values():
        for baseline in baselines:
            for told in (compared for part in baseline.shown for compared in baseline.comparisons[part].values()):
                where = against_zero(told["difference"]) if value_of(told["difference"]) is not None else None
                found.setdefault(baseline.title, []).append(where)
    return [
        f"Beside the baseline {name} the found network is better in {wheres.count('lies above 0')} and worse in "
        f"{wheres.count('lies below 0')} of {plural(len(wheres), 'test')} of parts."
        for name, wheres in found.items()
    ]


def _verdict(name: str, difference: Mapping[str, Any]) -> str:
    if value_of(difference) is None:
        return f"The baseline {name} cannot be compared: see Baselines."
    told = f"found less baseline {difference_words(difference)}."
    words = {
        "lies below 0": f"The baseline {name} is better",
        "lies above 0": f"The found network is better than the baseline {name}",
        "does not exclude 0": f"Between the found network and the baseline {name} no difference is shown",
        None: f"Nothing tells how sure the difference to the baseline {name} is",
    }
    return f"{words[against_zero(difference)]}: {told}"
