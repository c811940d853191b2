"""Searches of a small pack in a run directory, in this process, for tests of what stops, kills and fails them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.attempts import Pack, Point, read_failure, read_heartbeat, read_result
from cluster.features import FeatureSource
from cluster.packing import add_packs
from cluster.search_loop import PackJob, search_pack
from cluster.settings import SearchSettings
from cluster.stopping import Stop, StopCheck, never
from data_prep import boxes, storage
from stgs.config import SearchConfig

PACK = Pack("pack-0000", (Point(10.0, 5, "stgs", 0), Point(5.0, 3, "stgs", 1)))
EPOCHS, UPDATES = 3, 5  # batches of 96 and 48 clips, 32 each
AN_EPOCH = UPDATES + 1  # a search asks before every update and before the evaluation
SETTINGS = SearchSettings(channels=8, search=SearchConfig(epochs=EPOCHS, batch_size=32))
DEADLINE = Stop("run", "the deadline has passed")


class Death(BaseException):
    """The process is gone."""


class Runs:
    """Searches of `PACK` in one run directory."""

    def __init__(self, run: Path, source: FeatureSource) -> None:
        self.run, self.source = run, source
        add_packs(str(run), [], [PACK])

    def search(self, stop: StopCheck = never, report: Callable[[dict], None] = lambda row: None, **job: Any) -> Any:
        """One attempt, which does not wait for storage; `job`: fields of the job."""
        space, config = SETTINGS.space(self.source), SETTINGS.search
        fields = {"run": str(self.run), "space": space, "config": config, "device": "cpu", "threads": 1}
        splits = self.source.load_splits(("train", "dev"))
        return search_pack(
            PackJob(**fields, **{"patience_s": 0.0, **job}), PACK, splits["train"], splits["dev"], report, stop
        )

    def outcome(self) -> list[Any]:
        """Genotypes, metrics and curves of the points: all but seconds."""
        results = [read_result(str(self.run), point.id) or {} for point in PACK.points]
        curves = [boxes.read_table(str(self.run / result["curves"]["path"])).to_pylist() for result in results]
        return [(result["genotype"], result["metrics"]) for result in results] + curves

    def path(self, number: int, *parts: str) -> Path:
        return self.run.joinpath("packs", PACK.name, "attempts", str(number), *parts)

    def log(self, number: int) -> str:
        return self.path(number, "log.txt").read_text()

    def beat(self) -> dict[str, Any]:
        """The latest heartbeat, read as strictly as other programs do."""
        beat = read_heartbeat(str(self.run), PACK)
        assert beat is not None
        json.dumps(beat, allow_nan=False)
        return beat

    def failures(self) -> list[str | None]:
        return [read_failure(str(self.run), point.id) for point in PACK.points]

    def states(self) -> list[str]:
        return sorted(str(path.relative_to(self.path(0).parent)) for path in self.run.rglob("state-*.pt"))


def after(questions: int, then: Stop | BaseException) -> StopCheck:
    """Lets the search go on so many times, then asks it to stop, or dies."""
    answers: Iterator[Stop | BaseException | None] = iter([None] * questions + [then])

    def check() -> Stop | None:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return check


@contextlib.contextmanager
def failing(error: Exception, *words: str, operation: str = "write") -> Iterator[None]:
    """Storage that answers operations of one kind, on objects with one of these words in their names, with an error."""

    def hook(done: str, uri: str, moment: str) -> None:
        if (done, moment) == (operation, "before") and any(word in uri for word in words):
            raise error

    with storage.observed(hook):
        yield
