"""Stops a job of a cluster in order: its driver saves what its searches have reached, for which it has two minutes.

The command waits until the job has ended. A stopped run goes on with `stgs submit grid ... --resume`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.submission import connect, default_address, describe_end
from jobs.cli import FAILED, Outcome, option, run_command
from jobs.submit import ADDRESS_HELP, payload


@dataclass(frozen=True, kw_only=True)
class StopJobConfig:
    """Options of `stgs stop`."""

    id: str = option(help="id of the job, see 'stgs jobs'", positional=True, metavar="ID")
    address: str | None = option(None, help=ADDRESS_HELP, metavar="URL")


def run(config: StopJobConfig) -> Outcome:
    """Stop the job; the exit code is 0 once it has ended, however it did."""
    cluster = connect(config.address or default_address())
    ended = cluster.job(config.id).has_ended
    job = cluster.stop(config.id)
    if not job.has_ended:
        return Outcome(payload(job), f"{job.id}: has not stopped; look again with 'stgs jobs'.", FAILED)
    return Outcome(payload(job), f"{'it had ended already: ' if ended else ''}{describe_end(job)}")


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs stop`; returns the exit code."""
    return run_command("stop", run, argv)


if __name__ == "__main__":
    sys.exit(main())
