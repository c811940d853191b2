"""Workers over shards on Ray Data: order, progress, errors, and actors that die."""

import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import shards
from data_prep.decoder import DecoderStartError
from data_prep.storage import InputError, UnreachableError

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

# Ray's workers cannot import this file by the name that pytest gives it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Doubler(shards.ShardWorker):
    """Doubles `value` in 3 steps; with `fatal`, the process dies once (`folder` remembers) or always.

    With `slow` clips, it first does them one by one; in a second attempt they stand already and come in one step.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def work(self, shard: shards.Shard) -> Iterator[int | shards.Result]:
        yield 2
        attempt = len(list(self.folder.iterdir()))
        if slow := shard.get("slow"):
            yield from [slow] if attempt else [1] * slow
        if shard.get("fatal") == "always" or (shard.get("fatal") == "once" and attempt == 0):
            (self.folder / str(attempt)).touch()
            os.abort()
        if shard.get("refuse"):
            raise InputError(f"shard {shard['value']} is refused; give another.")
        if shard.get("lacks") == "S3":
            raise UnreachableError("S3 is away.")
        if shard.get("lacks") == "decoder":
            raise DecoderStartError("No decoder starts.")
        yield 1
        yield {"position": shard["position"], "doubled": 2 * shard["value"]}


def run(folder: Path, *items: shards.Shard, actors: int | None = None) -> list[int]:
    results = shards.run(
        Doubler,
        {"folder": str(folder)},
        list(items),
        clips=3 * len(items),
        title="toy",
        actors=actors,
        progress=True,
        way_out="rest",
    )
    return [result["doubled"] for result in results]


def test_results_come_in_the_order_of_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, *({"value": value} for value in range(9))) == [2 * value for value in range(9)]
    assert "27/27" in capsys.readouterr().err


def test_shard_is_done_again_when_its_actor_dies(tmp_path: Path) -> None:
    assert run(tmp_path, {"value": 1}, {"value": 2, "fatal": "once"}, {"value": 3}) == [2, 4, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_second_attempt_with_less_to_tell_keeps_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 100 clips are more than the news of a shard tell one by one.
    assert run(tmp_path, {"value": 1}, {"value": 2, "slow": 100, "fatal": "once"}) == [2, 4]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_that_failed_gives_its_processors_back(tmp_path: Path) -> None:
    everything = ray.cluster_resources()["CPU"]
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < everything:  # those of the tests before
        assert time.monotonic() < deadline
    gc.disable()
    try:
        with pytest.raises(InputError, match="shard 1 is refused"):
            run(tmp_path, {"value": 1, "refuse": True}, {"value": 2})
        while ray.available_resources().get("CPU", 0) < everything:
            assert time.monotonic() < deadline, "an actor still holds a CPU"
    finally:
        gc.enable()


def test_shard_that_always_kills_its_actor_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="an actor died 4 times"):
        run(tmp_path, {"value": 1, "fatal": "always"})
    assert len(list(tmp_path.iterdir())) == 4


def test_wrong_input_found_by_a_worker_keeps_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        run(tmp_path, {"value": 5, "refuse": True})
    assert str(refused.value) == "shard 5 is refused; give another."


@pytest.mark.parametrize(
    ("lacks", "kind", "sentence"),
    [("S3", UnreachableError, "S3 is away."), ("decoder", DecoderStartError, "No decoder starts.")],
)
def test_what_a_worker_lacks_is_told_in_its_sentence(
    tmp_path: Path, lacks: str, kind: type[RuntimeError], sentence: str
) -> None:
    with pytest.raises(kind) as lacking:
        run(tmp_path, {"value": 5, "lacks": lacks})
    assert str(lacking.value) == sentence
    assert lacking.value.__context__ is None


def test_no_shards_and_no_room(tmp_path: Path) -> None:
    assert run(tmp_path) == []
    with pytest.raises(InputError, match="actors is 0"):
        run(tmp_path, {"value": 1}, actors=0)
    with pytest.raises(
        InputError, match=r"an actor needs 64 CPUs on one machine, which this cluster does not have; rest\."
    ):
        shards.run(
            Doubler, {"folder": str(tmp_path)}, [{"value": 1}], clips=3, title="toy", num_cpus=64, way_out="rest"
        )
