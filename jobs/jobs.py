"""Lists the jobs of a cluster, or shows the log of one until it ends, with --follow ID.

A job is complete, partly complete (some points failed), stopped, or failed; until then it is waiting or running. Ctrl-C
ends the showing of a log, not the job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.submission import Job, connect, default_address
from jobs.cli import Outcome, option, run_command
from jobs.submit import ADDRESS_HELP, followed, payload

_HEADER = ("job", "command", "status", "exit code", "started", "time", "run")


@dataclass(frozen=True, kw_only=True)
class JobsJobConfig:
    """Options of `stgs jobs`."""

    address: str | None = option(None, help=ADDRESS_HELP, metavar="URL")
    follow: str | None = option(None, help="show the log of this job and end with its exit code", metavar="ID")


def run(config: JobsJobConfig) -> Outcome:
    """List the jobs, or follow one."""
    cluster = connect(config.address or default_address())
    if config.follow is not None:
        return followed(cluster, cluster.job(config.follow))
    jobs = cluster.jobs()
    return Outcome({"address": cluster.address, "jobs": [payload(job) for job in jobs]}, table(jobs, time.time()))


def table(jobs: Sequence[Job], now: float) -> str:
    """A line for each job; times are this machine's. now: Unix seconds."""
    if not jobs:
        return "no jobs"
    rows = [_HEADER, *(_row(job, now) for job in jobs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(job: Job, now: float) -> tuple[str, ...]:
    started = "" if job.started is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
    seconds = round(job.seconds(now))
    duration = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    exit_code = "" if job.exit_code is None else str(job.exit_code)
    return (job.id, job.command, job.status, exit_code, started, duration, job.run or "")


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs jobs`; returns the exit code."""
    return run_command("jobs", run, argv)


if __name__ == "__main__":
    sys.exit(main())
