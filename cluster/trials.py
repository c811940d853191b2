"""One trial: the search of a pack in a process that an engine started, linked to the board and to its node's flag."""

from __future__ import annotations

import time
import traceback
from functools import partial
from typing import Any

import ray

from cluster.attempts import Pack
from cluster.board import BoardLink
from cluster.features import Split
from cluster.search_loop import PackJob, search_pack
from cluster.stopping import Stop, StopCheck, StopWatch, node_stop

Trial = tuple[PackJob, Pack]
# A trial on a node that leaves waits so long before it asks for another one: trying again at once would only find the
# same node, until the cluster has taken it out.
_LEAVING_WAIT_S = 5.0


class NodeLeavingError(RuntimeError):
    """This node leaves the cluster: what the trial did is saved, and it goes on elsewhere."""


def run_trial(trial: Trial, train: Split | None, dev: Split | None, board: Any) -> None:
    """Search a pack in this process, from its newest state on, until its points are done or a stop is asked for.

    board: the actor (`cluster.board`).

    Raises:
        NodeLeavingError: the node leaves, and the trial is to be started again on another one.
    """
    job, pack = trial
    leaving = _node_flag()
    link = BoardLink(board, job.run, pack)
    stop, failure = link.begin() or leaving(), None
    try:
        if stop is None:
            stop = search_pack(job, pack, train, dev, link.report, StopWatch([link, leaving]))
    except Exception as error:
        # Not told in the run directory, and every new try at this pack would meet it, too: the driver tells it.
        failure = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        link.end(stop, failure)
    _leave(stop)


def run_worker(trial: Trial, train: Split | None, dev: Split | None, board: Any, rank: int, world: int) -> None:
    """Like `run_trial`, in one of `world` processes that share the search. They stop together, inside `search_pack`."""
    job, pack = trial
    checks: list[StopCheck] = [_node_flag()]
    link = BoardLink(board, job.run, pack, world) if rank == 0 else None
    stop = None
    if link is not None:
        link.begin()
        checks.insert(0, link)
    try:
        report = (lambda row: None) if link is None else link.report
        stop = search_pack(job, pack, train, dev, report, StopWatch(checks))
    finally:
        if link is not None:
            link.end(stop)
    _leave(stop)


def _node_flag() -> StopCheck:
    return partial(node_stop, ray.get_runtime_context().get_node_id())


def _leave(stop: Stop | None) -> None:
    if stop is not None and stop.scope == "node":
        time.sleep(_LEAVING_WAIT_S)
        raise NodeLeavingError(stop.reason)
