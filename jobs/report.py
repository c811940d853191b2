"""Writes a run's report: one HTML file with its pictures inside, from the files of the run alone.

It shows what is there: a run that is not trained or not evaluated yet gets a report of its search. The same files give
the same page, byte for byte.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.baseline_results import is_baseline
from cluster.protocol_summary import summary as summary_of_parts
from cluster.runs import part_uris
from data_prep import storage
from data_prep.storage import InputError
from jobs.cli import Outcome, option, run_command
from jobs.report_audit import shortcuts_section
from jobs.report_baseline_run import baseline_page
from jobs.report_baseline_tables import baseline_tables, read_baseline_run
from jobs.report_baselines import baselines_section, baselines_table, run_published_table
from jobs.report_controls import controls_section, rank_correlation_table, rank_pairs_table
from jobs.report_cost import cost_section, cost_table, latency_table
from jobs.report_curves import curves_section
from jobs.report_facts import RunFacts, read_run
from jobs.report_genotypes import genotypes_section
from jobs.report_html import page, plural, tag
from jobs.report_paper import paper_section, table_2, table_3
from jobs.report_pareto import pareto_section, pareto_table
from jobs.report_probabilities import probabilities_section
from jobs.report_protocol import ProtocolFacts, protocol_page, protocol_tables
from jobs.report_results import grid_section
from jobs.report_robustness import missing_table, robustness_section, robustness_table
from jobs.report_roc import roc_section
from jobs.report_rows import (
    by_category_table,
    by_method_table,
    comparisons_table,
    controls_table,
    grid_table,
    networks_table,
)
from jobs.report_scores import scores_section
from jobs.report_settings import settings_section
from jobs.report_summary import chance_warning, summary
from jobs.report_tables import DataTable, write_tables
from jobs.report_wrong import wrong_section, wrong_table

_SECTIONS = {
    "Summary": summary,
    "Beside the paper": paper_section,
    "Baselines": baselines_section,
    "The grid": grid_section,
    "Size": pareto_section,
    "Kinds of fakes": scores_section,
    "ROC curves": roc_section,
    "Controls": controls_section,
    "Robustness": robustness_section,
    "Most wrong clips": wrong_section,
    "Genotypes": genotypes_section,
    "How the search went": curves_section,
    "Probabilities": probabilities_section,
    "Shortcuts": shortcuts_section,
    "Latency and cost": cost_section,
    "Settings": settings_section,
}
_TABLES: tuple[Callable[[RunFacts], DataTable], ...] = (
    networks_table,
    grid_table,
    controls_table,
    comparisons_table,
    baselines_table,
    run_published_table,
    by_category_table,
    by_method_table,
    pareto_table,
    rank_correlation_table,
    rank_pairs_table,
    robustness_table,
    missing_table,
    latency_table,
    cost_table,
    wrong_table,
    table_2,
    table_3,
)


@dataclass(frozen=True, kw_only=True)
class ReportJobConfig:
    """Options of `stgs report`."""

    run: str = option(help="directory of a run, or of a baseline", positional=True, metavar="RUN")
    baselines: tuple[str, ...] = option(
        (), help="runs of 'stgs baseline' to show beside those in RUN/baselines", metavar="DIR"
    )
    corpus: str | None = option(
        None, help="corpus of the run's clips, for pictures of the most wrong ones (default: where the run read one)"
    )


def run(config: ReportJobConfig) -> Outcome:
    """Write the report of a run to RUN/report/report.html, and its tables beside it."""
    uri = storage.absolute(config.run)
    if is_baseline(uri):
        return _report_baseline(config, uri)
    parts = part_uris(uri)
    if parts:
        return _report_parts(config, uri, parts)
    facts = read_run(uri, config.corpus, config.baselines)
    payload = _write(uri, report_page(facts), [make(facts) for make in _TABLES])
    payload |= {
        "run": config.run,
        "points": len(facts.main.rows),
        "missing": facts.main.missing,
        "datasets": [reading.dataset for reading in facts.tested],
        "baselines": [baseline.uri for baseline in facts.baselines],
    }
    return Outcome(payload, f"{_state(facts)}\n{_written(payload)}")


def _report_parts(config: ReportJobConfig, uri: str, parts: Mapping[str, str]) -> Outcome:
    """The report of a run that a protocol split: one page over its parts."""
    if config.corpus is not None:
        raise InputError(f"--corpus is for the report of one part, such as {next(iter(parts.values()))}.")
    read = {name: read_run(part, baselines=config.baselines) for name, part in parts.items()}
    facts = ProtocolFacts(uri, summary_of_parts(uri), read)
    payload = _write(uri, protocol_page(facts), protocol_tables(facts))
    payload |= {"run": config.run, "parts": list(parts)}
    return Outcome(payload, f"{len(parts)} parts\n{_written(payload)}\neach part's own: stgs report {uri}/parts/PART")


def _report_baseline(config: ReportJobConfig, uri: str) -> Outcome:
    """The report of a baseline alone."""
    if config.corpus is not None or config.baselines:
        given = "--corpus" if config.corpus is not None else "--baselines"
        raise InputError(f"{given} is for the report of a search, but {uri} is a baseline; leave it out.")
    facts = read_baseline_run(uri)
    payload = _write(uri, baseline_page(facts), baseline_tables(facts))
    payload |= {"run": config.run, "model": facts.content["model"], "parts": list(facts.content["parts"])}
    finished = f"{plural(len(facts.parts), 'finished training')} of {facts.content['model']}"
    return Outcome(payload, f"{finished}\n{_written(payload)}")


def _write(run_uri: str, content: str, tables: Sequence[DataTable]) -> dict[str, Any]:
    data = content.encode()
    uri = storage.join(run_uri, "report", "report.html")
    storage.write(uri, data)
    written = write_tables(storage.join(run_uri, "report", "tables"), tables)
    return {"report": uri, "bytes": len(data), "tables": written}


def _written(payload: Mapping[str, Any]) -> str:
    size = f"{payload['bytes'] / 1000:,.0f} kB"
    return f"report: {payload['report']} ({size}), {len(payload['tables'])} files of tables beside it"


def report_page(facts: RunFacts) -> str:
    """The page of a run."""
    built = [make(facts) for make in _SECTIONS.values()]
    links = [tag("a", name, href=f"#{make.__name__.removesuffix('_section')}") for name, make in _SECTIONS.items()]
    head = tag("header", tag("h1", f"Search of fusion networks: {facts.name}"), tag("nav", links))
    return page(f"{facts.name}: report", chance_warning(facts), head, built)


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
