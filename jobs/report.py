"""Writes a run's report: one HTML file with its pictures inside, from the files of the run alone.

It shows what is there: a run that is not trained or not evaluated yet gets a report of its search. The same files give
the same page, byte for byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep import storage
from jobs.cli import Outcome, option, run_command
from jobs.report_audit import shortcuts_section
from jobs.report_curves import curves_section
from jobs.report_facts import RunFacts, read_run
from jobs.report_genotypes import genotypes_section
from jobs.report_html import page, tag
from jobs.report_probabilities import probabilities_section
from jobs.report_results import controls_section, grid_section, roc_section
from jobs.report_settings import settings_section
from jobs.report_summary import summary

_SECTIONS = {
    "Summary": summary,
    "The grid": grid_section,
    "ROC curves": roc_section,
    "How the search went": curves_section,
    "Probabilities": probabilities_section,
    "Genotypes": genotypes_section,
    "Controls": controls_section,
    "Shortcuts": shortcuts_section,
    "Settings": settings_section,
}


@dataclass(frozen=True, kw_only=True)
class ReportJobConfig:
    """Options of `stgs report`."""

    run: str = option(help="directory of a run", positional=True, metavar="RUN")


def run(config: ReportJobConfig) -> Outcome:
    """Write the report of a run to RUN/report/report.html."""
    facts = read_run(config.run)
    data = report_page(facts).encode()
    uri = storage.join(facts.uri, "report", "report.html")
    storage.write(uri, data)
    payload: dict[str, Any] = {
        "run": config.run,
        "report": uri,
        "bytes": len(data),
        "points": len(facts.main.rows),
        "missing": facts.main.missing,
        "datasets": [reading.dataset for reading in facts.readings if reading.dataset is not None],
    }
    return Outcome(payload, f"{_state(facts)}\nreport: {uri} ({len(data) / 1000:,.0f} kB)")


def report_page(facts: RunFacts) -> str:
    """The page of a run."""
    built = [make(facts) for make in _SECTIONS.values()]
    links = [tag("a", name, href=f"#{make.__name__.removesuffix('_section')}") for name, make in _SECTIONS.items()]
    head = tag("header", tag("h1", f"Search of fusion networks: {facts.name}"), tag("nav", links))
    return page(f"{facts.name}: report", head, built)


def _state(facts: RunFacts) -> str:
    points = f"{len(facts.main.rows)} of {len(facts.main.rows) + len(facts.main.missing)} points have a result"
    if not facts.readings:
        return f"{points}; no network is trained yet"
    return f"{points}; {len(facts.readings[0].networks)} networks, " + (
        "evaluated" if facts.evaluated else "not evaluated yet"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs report`; returns the exit code."""
    return run_command("report", run, argv)


if __name__ == "__main__":
    sys.exit(main())
