"""How the workers of one training agree: on what the first of them reads or writes, and on when to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from cluster.attempt_record import STORAGE_ERRORS
from cluster.stopping import Stop
from stgs.parallel import Workers

Made = TypeVar("Made")


class StopError(Exception):
    """Ends the work in all workers."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop


def end_the_run(error: Exception) -> Stop:
    """The stop after an error of storage: all work of the run ends, and can go on later."""
    return Stop("run", str(error))


def by_first(make: Callable[[], Made], workers: Workers, stop_after: Callable[[Exception], Stop] = end_the_run) -> Made:
    """What `make` returns in the first worker, in every worker; where storage fails it, all raise StopError."""
    made: Made | None = None
    stop = None
    if workers.rank == 0:
        try:
            made = make()
        except STORAGE_ERRORS as error:
            stop = stop_after(error)
    made, stop = workers.from_first((made, stop))
    if stop is not None:
        raise StopError(stop)
    return cast(Made, made)


def agreed_stop(own: Stop | None, workers: Workers) -> Stop | None:
    """The stop that one of the workers was told of, in all of them; None where none was.

    Where a node leaves and the run is to end, the run is what counts.
    """
    if not workers.any(own is not None):
        return None
    stops = [stop for stop in workers.gather(own) if stop is not None]
    return min(stops, key=lambda stop: stop.scope != "run")
