"""Groups of data-parallel workers over gloo, without Ray: a test module that is its own program forks them.

`python test_module.py DIRECTORY` calls `main`, which runs one worker, then the groups, and saves what each rank got;
`results` starts it and reads that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from stgs.parallel import SINGLE, Workers, default_workers

SECONDS = 60
LOST = 0
Groups = dict[int, list[Any]]


def join(rank: int, world: int, directory: Path, name: str) -> Workers:
    """Become one of a group."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous-{name}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=SECONDS / 3),
    )
    workers = default_workers()
    assert workers == Workers(rank, world)
    return workers


def main(
    directory: Path,
    worlds: Sequence[int],
    work: Callable[[Workers], Any],
    with_a_lost_peer: Callable[[Workers], Any] | None = None,
) -> None:
    """One worker, then the others. They are forked, so that torch is imported once; no thread has been started here.

    with_a_lost_peer: what the first of two does after the other has died, which is its own doing.
    """
    torch.set_num_threads(1)
    assert default_workers() == SINGLE
    torch.save(work(SINGLE), directory / "1-0.pt")

    def rank_main(rank: int) -> None:
        """One process: the groups that it belongs to, one after the other."""
        for world in worlds:
            if rank < world:
                torch.save(work(join(rank, world, directory, str(world))), directory / f"{world}-{rank}.pt")
                distributed.destroy_process_group()
        if with_a_lost_peer is not None and rank < 2:
            torch.save(with_a_lost_peer(join(rank, 2, directory, "lost")), directory / "lost.pt")

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank_main, args=(rank,)) for rank in range(max(worlds))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


def run(program: str, directory: Path, repository: Path) -> None:
    """Run a test module as a program, to its end; one that takes too long is killed with all that it has started."""
    process = subprocess.Popen(
        [sys.executable, program, str(directory)],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        errors = process.communicate(timeout=SECONDS)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors


def results(program: str, directory: Path, repository: Path, worlds: Sequence[int]) -> Groups:
    """World size -> what each rank got; LOST -> what a worker whose peer has died got, if there was one."""
    run(program, directory, repository)
    found: Groups = {w: [torch.load(directory / f"{w}-{r}.pt") for r in range(w)] for w in (1, *worlds)}
    lost = directory / "lost.pt"
    return found | ({LOST: [torch.load(lost)]} if lost.exists() else {})
