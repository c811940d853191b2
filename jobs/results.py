"""Fetches the results of a run and its protocol's parts: grid.parquet, genotypes, report, and what the run was.

The run is that of a job, by the job's id, or its own path or URI (with a slash in it), which needs no cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.fetching import fetch_results
from cluster.submission import connect, default_address
from data_prep import storage
from jobs.cli import Outcome, UsageError, option, run_command
from jobs.submit import ADDRESS_HELP


@dataclass(frozen=True, kw_only=True)
class ResultsJobConfig:
    """Options of `stgs results`."""

    id: str = option(help="id of a job, or path or URI of a run", positional=True, metavar="ID|RUN")
    out: str = option(help="directory for the results")
    address: str | None = option(None, help=ADDRESS_HELP, metavar="URL")


def run(config: ResultsJobConfig) -> Outcome:
    """Fetch the results."""
    source = config.id if "/" in config.id else _run_of(config.id, config.address or default_address())
    source, out = storage.absolute(source), storage.absolute(config.out)
    fetched = fetch_results(source, out)
    genotypes = sum(name.endswith("/genotype.json") for name in fetched.names)
    lines = [f"fetched {_count(len(fetched.names), 'file')}, {_count(genotypes, 'genotype')} among them, "]
    lines[0] += f"from {source} to {out}"
    if fetched.gone:
        lines.append(f"left out, because they were removed meanwhile: {', '.join(fetched.gone)}")
    if fetched.live:
        lines.append("a driver still works on the run: fetch again once it has ended")
    payload = {"run": source, "out": out, "files": fetched.names, "gone": fetched.gone, "live": fetched.live}
    return Outcome(payload, "\n".join(lines))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _run_of(job_id: str, address: str) -> str:
    job = connect(address).job(job_id)
    if job.run is None:
        raise UsageError(f"the job {job_id} does not say which run it works on; give the run's path or URI instead.")
    return job.run


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs results`; returns the exit code."""
    return run_command("results", run, argv)


if __name__ == "__main__":
    sys.exit(main())
