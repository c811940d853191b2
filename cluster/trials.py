"""One trial: work in a process that an engine started, linked to the board and to its node's flag."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import ray

from cluster.attempts import Pack
from cluster.board import BoardLink, GivenUpError
from cluster.features import Split
from cluster.search_loop import DeviceLostError, PackJob, SearchFailedError, search_pack
from cluster.stopping import Stop, StopCheck, StopWatch, node_stop
from data_prep.storage import InputError, NoSpaceError, UnreachableError
from stgs.parallel import PeerLostError, default_workers

Trial = tuple[PackJob, Pack]
Loaded = TypeVar("Loaded")
# A trial on a node that leaves waits so long before it asks for another one: trying again at once would only find the
# same node, until the cluster has taken it out.
_LEAVING_WAIT_S = 5.0
# Ends of a worker for which its group begins again: the run directory counts them, or says why its points failed.
_COUNTED = (
    DeviceLostError,
    PeerLostError,
    ray.exceptions.RayError,
    SearchFailedError,
    UnreachableError,
    NoSpaceError,
)


class NodeLeavingError(RuntimeError):
    """This node leaves the cluster: what the trial did is saved, and it goes on elsewhere."""


def run_trial(trial: Trial, train: Split | None, dev: Split | None, board: Any) -> None:
    """Search a pack in this process, from its newest state on, until its points are done or a stop is asked for.

    board: the actor (`cluster.board`). Raises as `work_alone` does.
    """
    job, pack = trial
    link = BoardLink(board, (job.run, pack.name), len(pack.points))
    work_alone(link, lambda stop: search_pack(job, pack, train, dev, link.report, stop))


def work_alone(link: BoardLink, work: Callable[[StopCheck], Stop | None]) -> None:
    """Run `work`, which is given a check that says whether to stop, in this process alone, until it is done or a stop
    is asked for. What it raises, the board is told.

    Raises:
        NodeLeavingError: the node leaves, and the trial is to be started again on another one.
        DeviceLostError: this process can no longer use its device, and the trial is to be started in another one.
    """
    leaving = _node_flag()
    stop: Stop | None = None
    failure: str | None = None
    try:
        stop = link.begin() or leaving()
        if stop is None:
            stop = work(StopWatch([link, leaving]))
    except DeviceLostError:
        # Tune gives the next trial a new process then; the run directory counts such ends.
        raise
    except Exception as error:
        # Not told in the run directory, and every new try at this work would meet it, too: the driver tells it.
        failure = _told(error)
        traceback.print_exc()
    finally:
        link.end(stop, failure)
    _leave(stop)


def run_worker(
    trial: Trial, load: Callable[[], tuple[Split | None, Split | None]], board: Any, rank: int, world: int
) -> None:
    """Like `run_trial`, in one of `world` processes that share the search. They stop together, inside `search_pack`.

    load: prepares the process and returns train and dev.
    """
    job, pack = trial
    link = BoardLink(board, (job.run, pack.name), len(pack.points), world)
    report = link.report if rank == 0 else _not_reported

    def search(splits: tuple[Split | None, Split | None], stop: StopCheck) -> Stop | None:
        return search_pack(job, pack, *splits, report, stop)

    work_together(link, load, search, rank, world)


def work_together(
    link: BoardLink, load: Callable[[], Loaded], work: Callable[[Loaded, StopCheck], Stop | None], rank: int, world: int
) -> None:
    """Run `work` in one of `world` processes that share it, until it is done or a stop is asked for.

    load: prepares the process and returns what `work` is given, with a check that says whether to stop. What it raises,
    and what `work` raises by itself, the board is told, by whichever worker: the driver ends the group, which would be
    started again for it, for ever.
    """
    try:
        first = link.begin() if rank == 0 else None
        loaded = load()
        checks: list[StopCheck] = [link, _node_flag()] if rank == 0 else [_node_flag()]
        stop = default_workers().from_first(first)
        if stop is None:
            stop = work(loaded, StopWatch(checks))
    except _COUNTED:
        raise
    except Exception as error:
        link.end(failure=_told(error))
        if world > 1:  # the others wait for this one: the group must end
            raise
        traceback.print_exc()
        return
    if rank == 0:
        link.end(stop)
    _leave(stop)


def _not_reported(row: dict[str, Any]) -> None:
    """The first worker reports for all."""


def _told(error: Exception) -> str:
    """A sentence of wrong input stands alone; what else an error says needs its kind."""
    return str(error) if isinstance(error, InputError | GivenUpError) else f"{type(error).__name__}: {error}"


def _node_flag() -> StopCheck:
    return partial(node_stop, ray.get_runtime_context().get_node_id())


def _leave(stop: Stop | None) -> None:
    if stop is not None and stop.scope == "node":
        time.sleep(_LEAVING_WAIT_S)
        raise NodeLeavingError(stop.reason)
