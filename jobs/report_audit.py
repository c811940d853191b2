"""The report's audit: what a detector could have learnt instead of faces and voices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.audit import (
    CHANCE,
    COMPARISONS,
    comparison_name,
    conclusion,
    fact_name,
    interval_text,
    is_above,
    loud_facts,
    loud_word,
    what_is_missing,
)
from jobs.report_charts import DotRow, dot_chart, fitted_axis
from jobs.report_facts import RunFacts
from jobs.report_html import MISSING, Html, figure, plural, section, table, tag

_NO_AUDIT = (
    "There is no audit of these clips. 'stgs prepare' makes one with every corpus, and 'stgs extract' hands it on with "
    "the features."
)
_LOUD, _QUIET = 1, 0  # styles of a chart's rows


def shortcuts_note(audit: Mapping[str, Any]) -> Html | None:
    """For the page's first screen: which shortcuts and how many leaks there are; None where there are none."""
    loud = loud_facts(audit.get("facts", {}), audit.get("tests", 0))
    lines = []
    for sure in (True, False):
        names = [fact_name(key) for key, is_sure in loud.items() if is_sure == sure]
        if names:
            what = "fakes can be told from real clips without looking or listening, by"
            lines.append(f"{loud_word(sure)}: {what} {', '.join(names)}.")
    leaks = [leak for leak in audit.get("leaks", []) if not _is_doubt(leak)]
    if leaks:
        more = f" {plural(len(leaks) - 1, 'more leak')} of the splits." if len(leaks) > 1 else ""
        lines.append(f"LEAK: {leaks[0]['sentence']}{more}")
    if not lines:
        return None
    link = tag("p", "The scores may be owed to that: see ", tag("a", "Shortcuts", href="#shortcuts"), ".")
    return _box(lines, link)


def _is_doubt(leak: Mapping[str, Any]) -> bool:
    """Whether nothing leaks for sure, because the name of a target or of a method is not known."""
    return str(leak["kind"]).endswith(("target_unknown", "method_perhaps_seen_in_training"))


def _shortcuts_box(audit: Mapping[str, Any]) -> Html | None:
    """The sentences on shortcuts and leaks, set off from the text; None where there are none."""
    leaks = [f"{'LEAK, perhaps' if _is_doubt(leak) else 'LEAK'}: {leak['sentence']}" for leak in audit.get("leaks", [])]
    lines = [*audit.get("shortcuts", []), *leaks]
    return _box(lines) if lines else None


def _box(lines: Sequence[str], *below: Html) -> Html:
    return tag(
        "div", tag("h3", "Shortcuts and leaks"), tag("ul", [tag("li", line) for line in lines]), below, class_="caveats"
    )


def shortcuts_section(facts: RunFacts) -> Html:
    """Each fact of the clips, and how well it alone tells fakes from real ones."""
    audit = facts.audit
    parts: list[object] = [_shortcuts_box(audit)]
    parts += audit_parts(audit) if "facts" in audit else [tag("p", _NO_AUDIT)]
    return section("shortcuts", "Shortcuts", parts, _leak_words(facts))


def sequences_section(audit: Mapping[str, Any] | None) -> Html:
    """The same of a baseline's sequences. audit: of them, None where it is not known."""
    if audit is None:
        return section("shortcuts", "Shortcuts", tag("p", NO_SEQUENCES_AUDIT))
    return section("shortcuts", "Shortcuts", _shortcuts_box(audit), audit_parts(audit))


NO_SEQUENCES_AUDIT = (
    "Which shortcuts the sequences have is not known: they, and the audit that 'stgs prepare' writes beside them, do "
    "not lie any more where the baseline read them."
)


def audit_parts(audit: Mapping[str, Any]) -> list[object]:
    """What an audit measured: in words, as a chart and as a table."""
    words = (
        f"The audit of the {plural(audit['clips'], 'clip')} of {plural(audit['subjects'], 'subject')}, of all "
        "splits: the AUC, against the real clips, of a classifier that sees one fact of a clip and nothing else. "
        "It is judged on subjects that it has not learnt from; the bounds are those of a 95 % bootstrap interval "
        "over subjects. 0.5 is chance. What lies above, a detector can learn instead of faces and voices."
    )
    missing = tag("ul", [tag("li", line) for line in what_is_missing(audit)])
    shown = [tag("p", line) for line in conclusion(audit)]
    return [tag("p", words), *shown, _facts_chart(audit), _facts_table(audit), missing]


def _leak_words(facts: RunFacts) -> Html | None:
    """What is said where no leak is to be listed; None where some are, or where none were looked for."""
    if facts.audit.get("leaks") != []:
        return None
    return tag("p", "No leak was found between the splits.")


def _facts_table(audit: Mapping[str, Any]) -> Html:
    rows = [
        [fact_name(key), *(_cell(row.get(name, {"sentence": ""})) for name in COMPARISONS)]
        for key, row in audit["facts"].items()
    ]
    return table(["fact", *(f"A / {name}" if name != "all" else "A / all fakes" for name in COMPARISONS)], rows)


def _cell(result: Mapping[str, Any]) -> Html | str:
    if "auc" not in result:
        return MISSING
    text = interval_text(result)
    return tag("b", text) if is_above(result) else text


def _facts_chart(audit: Mapping[str, Any]) -> Html | None:
    rows, values = [], [CHANCE]
    for key, row in audit["facts"].items():
        measured = {name: result for name, result in row.items() if "auc" in result}
        if not measured:
            continue
        whole = measured.pop("all", None)
        dots = [
            (result["auc"], f"{comparison_name(name)}: {interval_text(result)}") for name, result in measured.items()
        ]
        chosen = (whole["auc"], whole["low"], whole["high"]) if whole else None
        rows.append(
            DotRow(
                name=fact_name(key),
                values=dots,
                chosen=chosen,
                style=_LOUD if any(map(is_above, row.values())) else _QUIET,
            )
        )
        values += [value for value, _ in dots] + list(chosen or ())
    if not rows:
        return None
    axis = fitted_axis("AUC of the fact alone", values, least=0.2, cap=1.0)
    chart = tag("div", dot_chart(rows, axis, row_height=30, mark=CHANCE), style="min-width:520px;max-width:820px")
    caption = (
        "Diamond: all fakes against the real clips, with its interval. Dots: the fakes B, C and D by themselves. A "
        "fact that is above chance has the colour of a warning, and is bold in the table."
    )
    return figure(tag("div", chart, class_="scroll"), caption, title="AUC of each fact")
