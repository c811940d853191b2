"""What a reader has to know of baselines: what they are, what they saw, what is missing, and their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.baseline_remarks import CHECKPOINT_NOTE, seconds_words
from jobs.audit import conclusion
from jobs.report_audit import NO_SEQUENCES_AUDIT
from jobs.report_baseline_facts import BaselineFacts
from jobs.report_html import Html, count, fraction, plural, tag
from jobs.report_verdicts import chance_words


def short_count(value: float) -> str:
    """A large number in three digits, such as 21.4 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return count(value)


def list_of(lines: Sequence[tuple[str, str]]) -> Html:
    """Names and what is said of them, a sentence that holds for several once."""
    together: dict[str, list[str]] = {}
    for name, words in lines:
        together.setdefault(words, []).append(name)
    return tag("ul", [tag("li", f"{'; '.join(names)}: {words}") for words, names in together.items()])


def remarks_part(baselines: Sequence[BaselineFacts]) -> Html:
    """What a reader has to know of baselines, under its heading."""
    lines = [line for baseline in baselines for line in remarks(baseline)]
    return tag("div", tag("h3", "What is to be said of them"), list_of(lines))


def remarks(baseline: BaselineFacts) -> list[tuple[str, str]]:
    """What a reader has to know of a baseline, each time with its name: what is missing, where its weights come from,
    and its controls.
    """
    wanted, content = baseline.run_part, baseline.content
    lines = [f"{words}." for words in (content["size"], seconds_words(content["max_seconds"])) if words]
    if wanted is not None and not baseline.shown and wanted not in content["parts"]:
        lines.append(f"it has no part {wanted} and no other one of the same splits.")
    for part, told in content["parts"].items():
        if told["sentence"] is not None and wanted in (None, part):
            lines.append(f"part {part} has no result: {told['sentence']}.")
    lines += weights_words([baseline.parts[part] for part in baseline.shown])
    lines.append(shuffled_words(content))
    return [(baseline.title, line) for line in lines]


def weights_words(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the weights of some parts come from, where that is not chance; each sentence once."""
    lines = []
    for metrics in parts:
        weights = metrics.get("weights") or {}
        if weights.get("checkpoint"):
            lines.append(f"{CHECKPOINT_NOTE}: {_file(weights['checkpoint'])}.")
        elif isinstance(weights.get("initial"), Mapping):
            lines.append(f"its training began with the weights of {_file(weights['initial'])}.")
    return list(dict.fromkeys(lines))


def _file(weights: Mapping[str, Any]) -> str:
    counts = [
        f"{plural(len(weights[key]), 'array')} {words}"
        for key, words in _LOADED.items()
        if isinstance(weights.get(key), list) and weights[key]
    ]
    return f"{weights.get('file')} ({', '.join(counts)})" if counts else str(weights.get("file"))


_LOADED = {"missing": "missing", "left_over": "left over", "adapted": "adapted"}


def shuffled_words(content: Mapping[str, Any]) -> str:
    """What the shuffled labels of a baseline say. content: its summary."""
    shuffled, unfinished = content["shuffled"], content["unfinished_shuffles"]
    if shuffled is None and not unfinished:
        return "shuffled labels were not tried."
    words = []
    if shuffled is not None:
        told = chance_words(shuffled)
        words.append(f"{told[0].lower()}{told[1:]} Their mean test AUC is {fraction(shuffled['mean'])}.")
    if unfinished:
        words.append(f"{plural(unfinished, 'training')} with shuffled labels without a result.")
    return " ".join(words)


def shortcuts_part(baselines: Sequence[BaselineFacts]) -> Html:
    """What the baselines could have learnt instead of faces and voices: they see clips as long as they are."""
    lines: list[tuple[str, str]] = []
    for baseline in baselines:
        audit = baseline.sequences.audit
        if audit is None:
            lines.append((baseline.title, f"{NO_SEQUENCES_AUDIT[0].lower()}{NO_SEQUENCES_AUDIT[1:]}"))
        elif "facts" in audit:
            lines += [(baseline.title, line) for line in audit["shortcuts"] or conclusion(audit)]
    return tag("div", tag("h3", "Shortcuts in what they see"), list_of(lines))
