"""Shows how far a run is: its driver, and the points, or parts of a baseline, that wait, run, are done or have failed.

Reads the run's directory alone, so it works without the cluster and from any machine that reaches the storage. A point
whose search has given no sign for a minute is lost: its machine died, and it waits for a restart.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cluster.baseline_watching import BaselineWatcher, open_watcher
from cluster.watching import DONE, FAILED, STATES, PointStatus, RunStatus, Watcher
from data_prep.storage import UnreachableError
from jobs.cli import Outcome, UsageError, option, run_command

# pandas and all else that takes long to load stays out of here: this command answers at once.
_SHOWN = 40
_REASONS = 8
_HEADINGS = ("state", "point", "epoch", "dev AUC", "left", "entropies", "device s", "machine", "attempts")
# What state, epoch, dev AUC and the time left take on a screen.
_BESIDE_ID, _SHORTEST_ID = 36, 20
_RIGHT = ("epoch", "dev AUC", "device s", "attempts", "left")
# What only the points of a search have.
_OF_POINTS = ("entropies", "machine", "attempts")
_SHORTEST_PAUSE_S = 1.0
# A screen of its own, as `less` has, which leaves what stood there before as it was; the other two of them take the
# place of the screen before.
_ENTER, _LEAVE, _HOME, _CLEAR_REST = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[J"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatusJobConfig:
    """Options of `stgs status`."""

    run: str = option(help="directory of a run, local or s3://", positional=True, metavar="RUN")
    all: bool = option(False, help=f"every point (or part of a baseline), not the first {_SHOWN} alone")
    watch: bool = option(False, help="show it anew until the run ends, or until Ctrl-C")
    every: float = option(5.0, help="seconds between two looks of --watch, at least 1")


def run(config: StatusJobConfig) -> Outcome:
    """Look at the run, once or until it ends."""
    if config.every < _SHORTEST_PAUSE_S:
        raise UsageError(f"--every is {config.every:g}, but it must be at least {_SHORTEST_PAUSE_S:g} second.")
    watcher, most = open_watcher(config.run), None if config.all else _SHOWN
    status = watcher.look(most=most)
    if config.watch and not status.over:
        status = _watch(watcher, status, most, config.every)
    return Outcome({**dataclasses.asdict(status), "over": status.over}, text(status))


def _watch(watcher: Watcher | BaselineWatcher, status: RunStatus, most: int | None, every: float) -> RunStatus:
    """Show the run anew every `every` seconds; returns what was seen last."""
    is_terminal, note = sys.stdout.isatty(), ""
    try:
        sys.stdout.write(_ENTER if is_terminal else "")
        while not status.over:
            shown = text(status, shutil.get_terminal_size().columns if is_terminal else None) + note
            sys.stdout.write(_screen(shown) if is_terminal else f"{shown}\n\n")
            sys.stdout.flush()
            time.sleep(every)
            try:
                status, note = watcher.look(most=most), ""
            except UnreachableError as error:
                note = f"\n{error} Trying again."
    except KeyboardInterrupt:  # the way out that --help names, not a failure
        pass
    finally:
        if is_terminal:
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
    return status


def _screen(shown: str) -> str:
    """What a terminal needs to show these lines, as far as they fit, in place of what it shows now."""
    size = shutil.get_terminal_size()
    lines = shown.splitlines()
    if len(lines) >= size.lines:
        lines = [*lines[: size.lines - 2], "..."]
    # Each line is cleared behind its end, the rest below: without the flicker of an empty screen in between.
    return _HOME + "".join(f"{line[: size.columns]}\x1b[K\n" for line in lines) + _CLEAR_REST


def text(status: RunStatus, columns: int | None = None) -> str:
    """A look at a run, in lines. columns: of the screen, on which long ids are shortened; None: nothing is."""
    lines = [f"run: {status.run}", *_driver_lines(status), *_control_lines(status)]
    total = sum(status.counts.values())
    left = "" if not status.seconds_left else f"; about {duration(status.seconds_left)} left"
    none = "points: none yet, the driver has not laid them out"
    lines.append(f"{_counted(status.counts, status.unit)}{left}" if total else none)
    lines += [f"part {name}: {_counted(counts)}" for name, counts in status.parts.items()]
    if status.points:
        lines += ["", *_table(status.points, columns, status.unit)]
    if len(status.points) < total:
        lines.append(f"... and {total - len(status.points)} more; --all shows them")
    failed = [point for point in status.points if point.state == FAILED]
    lines += [f"failed: {point.id}: {point.reason or 'no reason was written'}" for point in failed[:_REASONS]]
    lines += [f"damaged: {point.id}: {point.reason}" for point in status.points if point.state == DONE and point.reason]
    return "\n".join(lines)


def _driver_lines(status: RunStatus) -> list[str]:
    facts = status.driver
    if facts is None:
        return ["driver: has left no sign"]
    ago = f"{duration(max(status.time - facts['time'], 0.0))} ago"
    where = f"process {facts['pid']} on {facts['host']}"
    if facts["state"] == "live":
        line = f"driver: live, {where}, last sign {ago}"
    elif facts["state"] == "lost":
        line = f"driver: lost since {_moment(facts['time'])} ({where}); go on with --resume"
    else:
        reason = f": {facts['reason']}" if facts.get("reason") else ""
        line = f"driver: {facts['ended']} {ago}{reason} ({where})"
    lines = [line]
    if facts.get("submission"):
        lines.append(f"submission: {facts['submission']}")
    if facts.get("deadline") is not None:
        left = facts["deadline"] - status.time
        lines.append(f"deadline: {_moment(facts['deadline'])}, {f'in {duration(left)}' if left > 0 else 'has passed'}")
    spent = facts.get("device_seconds")
    if spent is not None:
        budget = "" if facts.get("device_hours") is None else f" of {facts['device_hours']:g}"
        lines.append(f"device hours: {spent / 3600:.2f}{budget}")
    return lines


def _control_lines(status: RunStatus) -> list[str]:
    """Who searches controls, a line for each process: one searches those of all parts."""
    signs = {(facts["pid"], facts["host"]): facts["time"] for facts in status.controls.values()}
    return [
        f"controls: being searched by process {pid} on {host}, last sign {duration(max(status.time - sign, 0.0))} ago"
        for (pid, host), sign in signs.items()
    ]


def _counted(counts: dict[str, int], unit: str = "point") -> str:
    total = sum(counts.values())
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{total} {unit}{'s' * (total != 1)}: {parts or 'none'}"


def _table(points: Sequence[PointStatus], columns: int | None, unit: str) -> list[str]:
    longest = None if columns is None else max(columns - _BESIDE_ID, _SHORTEST_ID)
    rows = [tuple(unit if heading == "point" else heading for heading in _HEADINGS)]
    rows += [_cells(point, longest) for point in points]
    shown = [at for at, heading in enumerate(_HEADINGS) if unit == "point" or heading not in _OF_POINTS]
    widths = [max(len(row[at]) for row in rows) for at in shown]
    lines = []
    for row in rows:
        cells = [
            row[at].rjust(width) if _HEADINGS[at] in _RIGHT else row[at].ljust(width)
            for at, width in zip(shown, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _cells(point: PointStatus, longest: int | None) -> tuple[str, ...]:
    # The settings in which points differ stand at the end of their ids.
    name = point.id if longest is None or len(point.id) <= longest else f"...{point.id[3 - longest :]}"
    entropies = [_number(point.entropies.get(name), "{:.3f}") for name in ("alpha", "beta", "gamma")]
    epoch, epochs = _number(point.epoch, "{}"), _number(point.epochs, "{}")
    return (
        point.state,
        name,
        "-" if point.epoch is None and point.state == DONE else f"{epoch}/{epochs}",
        _number(point.dev_auc, "{:.3f}"),
        "-" if point.seconds_left is None else duration(point.seconds_left),
        "-" if set(entropies) == {"-"} else " ".join(entropies),
        _number(point.device_seconds, "{:,.1f}"),
        point.machine or "-",
        str(point.attempts),
    )


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def duration(seconds: float) -> str:
    """Two units at most, such as `47 s`, `12 min`, `3 h 05 min` and `2 d 04 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `stgs status` and `python -m jobs.status`."""
    return run_command("status", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
