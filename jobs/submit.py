"""Runs a command of stgs as a job of a Ray cluster: stgs submit [its own options] COMMAND [the command's arguments]

Everything from COMMAND on is the command as it would be given here: `stgs submit --address http://127.0.0.1:8265 grid
FEATURES --manifest M --out s3://bucket/run`. The cluster gets the program, the --config file and nothing else of this
machine. The job's log is shown until the job ends, and the exit code is the command's; Ctrl-C ends the showing, not the
job. A token that the cluster asks for is read from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.job_log import LogView, follow
from cluster.shipping import archive
from cluster.submission import (
    SUBMIT_AGAIN,
    Cluster,
    Job,
    Submission,
    connect,
    default_address,
    describe_end,
    job_environment,
    job_name,
)
from data_prep.storage import InputError, UnreachableError
from jobs.cli import COMMANDS, STOPPED, Outcome, UsageError, option, run_command
from jobs.options import options_of
from jobs.submitted_words import SubmittedWords, read_words

# What is no work for a cluster: these talk to one, or read a run's storage.
NOT_SUBMITTED = ("demo", "submit", "jobs", "stop", "results", "status")
ADDRESS_HELP = "dashboard of the cluster (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)"


@dataclass(frozen=True, kw_only=True)
class SubmitJobConfig:
    """Options of `stgs submit`."""

    command: tuple[str, ...] = option((), help="what to run, with its arguments", positional=True, metavar="COMMAND")
    address: str | None = option(None, help=ADDRESS_HELP, metavar="URL")
    env: tuple[str, ...] = option(
        (), help="NAME=VALUE for the job's environment, no secrets; may be repeated", metavar="NAME=VALUE"
    )
    name: str | None = option(None, help="begins the job's id (default: the last part of the command's --out)")
    follow: bool = option(True, help="show the log until the job ends")
    takeover: bool = option(False, help="although another driver works on the run, which then stops")


def run(config: SubmitJobConfig) -> Outcome:
    """Submit the command and follow it."""
    command, words = _command(config)
    environment = job_environment(config.env)
    prepared = read_words(command, words)
    name = job_name(config.name) if config.name is not None else prepared.name
    takeover = config.takeover or prepared.takeover
    if takeover:
        prepared = prepared.with_takeover()
    cluster = connect(config.address or default_address())
    submission = Submission(command, prepared.words, prepared.run, name, environment, archive(prepared.config))
    # Where the command has no such option, nobody minds a second one on the same run.
    job = cluster.submit(submission, takeover=takeover or not prepared.takes_over)
    _say(prepared, cluster, job)
    if not config.follow:
        return Outcome(payload(job), f"{job.id}: submitted; {_ways(job)}")
    return followed(cluster, job)


def followed(cluster: Cluster, job: Job) -> Outcome:
    """Show the log of a job until it ends; the outcome has its driver's exit code.

    Raises UnreachableError when the cluster, or its memory of the job, is gone.
    """
    view = LogView(sys.stdout, live=sys.stdout.isatty())
    try:
        follow(cluster.log(job.id), view)
        ended = cluster.job(job.id)
    except KeyboardInterrupt:
        return Outcome(payload(job), f"{job.id}: goes on by itself; {_ways(job)}", STOPPED)
    except (UnreachableError, InputError) as error:
        raise UnreachableError(
            f"{job.id} can no longer be followed ({str(error).rstrip('.')}); if the head is lost, so is the job, but "
            f"not its run: {SUBMIT_AGAIN}."
        ) from None
    finally:
        view.close()
    text = describe_end(ended)
    if ended.run is not None and ended.exit_code in (0, 4):
        text += f" Its results: stgs results {ended.id} --out DIR"
    return Outcome(payload(ended), text, ended.exit_code or 0)


def payload(job: Job) -> dict[str, Any]:
    """A job as --json shows it; seconds are those it has run."""
    return {
        "id": job.id,
        "command": job.command,
        "run": job.run,
        "status": job.status,
        "exit_code": job.exit_code,
        "started": job.started,
        "seconds": round(job.seconds(time.time()), 1),
    }


def _command(config: SubmitJobConfig) -> tuple[str, list[str]]:
    allowed = [name for name in COMMANDS if name not in NOT_SUBMITTED]
    if not config.command:
        raise UsageError(f"COMMAND is missing; give one of {', '.join(allowed)}, with its arguments.")
    command, *words = config.command
    if command not in allowed:
        raise UsageError(f"{command!r} cannot be submitted; choose from {', '.join(allowed)}.")
    return command, words


def _say(prepared: SubmittedWords, cluster: Cluster, job: Job) -> None:
    where = f", run {job.run}" if job.run else ""
    print(f"stgs submit: {job.id} on {cluster.address}{where}", file=sys.stderr)
    if prepared.local_paths:
        print(
            f"stgs submit: {prepared.local_paths[0]} is a local path: every machine of the cluster has to see the "
            "same files there; else use s3://.",
            file=sys.stderr,
        )


def _ways(job: Job) -> str:
    return f"see it with 'stgs jobs --follow {job.id}', stop it with 'stgs stop {job.id}'."


def split_command(argv: Sequence[str]) -> list[str]:
    """`argv` with the command's words marked off from our own options, and every --env in one."""
    takes_value = {item.flag for item in options_of(SubmitJobConfig) if item.kind is not bool} | {"--config"}
    own: list[str] = []
    environment: list[str] = []
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        flag, equals, value = rest.pop(0).partition("=")
        words = [value] if equals else [rest.pop(0)] if flag in takes_value and rest else []
        if flag == "--env":
            environment += words
        else:
            own += [flag, *words]
    if environment:
        own += ["--env", *environment]
    return [*own, *(["--"] if rest and rest[0] != "--" else []), *rest]


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs submit`; returns the exit code."""
    return run_command("submit", run, split_command(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
