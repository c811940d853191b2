"""Claims, states and results of a run directory, without Ray."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cluster.attempts import Attempt, Pack, Point, read_heartbeat, read_packs, read_result, write_packs
from data_prep.storage import InputError

PACK = Pack("pack-0000", (Point(10.0, 15, "stgs", 0), Point(20.0, 5, "stgs", 0, 3)))


@pytest.fixture
def run(tmp_path: Path) -> str:
    write_packs(str(tmp_path), [PACK])
    return str(tmp_path)


def test_point_ids_tell_all_settings_apart() -> None:
    assert PACK.points[0].id == "temperature-10_samples-15_stgs_seed-0"
    assert PACK.points[1].id == "temperature-20_samples-5_stgs_seed-0_shuffle-3"


def test_racing_claims_get_different_numbers(run: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = [attempt.number for attempt in pool.map(lambda _: Attempt.claim(run, PACK), range(8))]
    assert sorted(numbers) == list(range(8))


def test_newest_state_is_that_of_the_highest_update_of_any_attempt(run: str) -> None:
    first, second = Attempt.claim(run, PACK), Attempt.claim(run, PACK)
    first.write_state(10, {"from": "first"})
    second.write_state(9, {"from": "second"})
    assert Attempt.claim(run, PACK).newest_state() == {"from": "first"}


def test_two_states_are_kept_and_a_damaged_one_is_passed_over(run: str) -> None:
    attempt = Attempt.claim(run, PACK)
    for update in (1, 2, 3):
        attempt.write_state(update, {"update": update, "tensor": torch.arange(4)})
    states = sorted(Path(attempt.uri).glob("state-*.pt"))
    assert [state.name for state in states] == ["state-2.pt", "state-3.pt"]
    states[1].write_bytes(states[1].read_bytes()[:100])
    later = Attempt.claim(run, PACK)
    state = later.newest_state()
    assert state is not None
    assert state["update"] == 2
    assert "state-3.pt cannot be read" in (Path(later.uri) / "log.txt").read_text()


def test_no_state_is_none(run: str) -> None:
    assert Attempt.claim(run, PACK).newest_state() is None


def test_the_first_result_stands(run: str) -> None:
    first, second = Attempt.claim(run, PACK), Attempt.claim(run, PACK)
    point = PACK.points[0]
    assert read_result(run, point.id) is None
    assert first.commit(point, {"parameters": 1})
    assert not second.commit(point, {"parameters": 2})
    assert read_result(run, point.id) == {"parameters": 1, "attempt": "packs/pack-0000/attempts/0"}


def test_heartbeat_of_the_latest_attempt(run: str) -> None:
    assert read_heartbeat(run, PACK) is None
    for epoch in (1, 2):
        Attempt.claim(run, PACK).heartbeat(epoch=epoch)
    beat = read_heartbeat(run, PACK)
    assert beat is not None
    assert beat["epoch"] == 2
    assert beat["time"] > 0


def test_packs_are_fixed_once(run: str) -> None:
    other = [Pack("pack-0000", PACK.points[:1]), Pack("pack-0001", PACK.points[1:])]
    assert write_packs(run, other) == [PACK]
    assert read_packs(run) == [PACK]
    with pytest.raises(InputError, match=r"other points .*temperature-20.* differs"):
        write_packs(run, [Pack("pack-0000", PACK.points[:1])])
    assert json.loads((Path(run) / "packs/pack-0000/pack.json").read_text())["name"] == "pack-0000"
