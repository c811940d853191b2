"""Claims, states and results of a run directory, without Ray."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cluster.attempts import (
    INDEX_NAME,
    Attempt,
    Pack,
    Point,
    clear_failure,
    open_points,
    read_failure,
    read_heartbeat,
    read_packs,
    read_result,
    write_failure,
)
from cluster.packing import add_packs, split_packs
from data_prep import storage

PACK = Pack("pack-0000", (Point(10.0, 15, "stgs", 0), Point(20.0, 5, "stgs", 0, 3)))


@pytest.fixture
def run(tmp_path: Path) -> str:
    add_packs(str(tmp_path), [], [PACK])
    return str(tmp_path)


def test_point_ids_tell_all_settings_apart() -> None:
    assert PACK.points[0].id == "temperature-10_samples-15_stgs_seed-0"
    assert PACK.points[1].id == "temperature-20_samples-5_stgs_seed-0_shuffle-3"
    options = (
        ("dropout", 0.1),
        ("feature_names", ("visual.*", "audio.layer2")),
        ("tail", None),
        ("learning_rate", 1e-5),
    )
    point = Point(10.0, 15, "egs", 2, options=options)
    assert point.id == (
        "temperature-10_samples-15_egs_seed-2_dropout-0.1_feature_names-visual.+audio.layer2_tail-none_learning_rate-1e-05"
    )
    assert point.label == "dropout=0.1, feature_names=visual.*+audio.layer2, tail=none, learning_rate=1e-05"
    assert point.facts() == {
        "temperature": 10.0, "num_samples": 15, "estimator": "egs", "seed": 2, "shuffle_seed": None,
        "options": point.label,
    }  # fmt: skip


def test_long_ids_are_cut_and_differ(run: str) -> None:
    options = tuple((f"option_{number}", "value" * 5) for number in range(20))
    points = [Point(10.0, 15, "stgs", seed, options=(*options, ("last", last))) for seed in (0, 1) for last in "ab"]
    ids = [point.id for point in points]
    assert len(set(ids)) == 4
    assert {len(name) for name in ids} == {200}
    assert ids[0].startswith("temperature-10_samples-15_stgs_seed-0_option_0-valuevalue")
    write_failure(run, ids[0], "a file system takes the name")


def test_options_survive_the_pack_s_file(tmp_path: Path) -> None:
    options = (("operations", ("sum", "attention")), ("earlier_cells", False), ("dropout", 0.25))
    pack = Pack("pack-0000", (Point(10.0, 15, "stgs", 0, options=options),))
    add_packs(str(tmp_path), [], [pack])
    assert read_packs(str(tmp_path)) == [pack]
    assert hash(read_packs(str(tmp_path))[0].points) == hash(pack.points)


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
    later.write_log()
    assert "state-3.pt cannot be read" in (Path(later.uri) / "log.txt").read_text()


@pytest.mark.parametrize("content", [b"garbage", b"", b"\x80", b"PK\x03\x04" + bytes(60), bytes(100)])
def test_a_state_of_any_other_content_is_passed_over(run: str, content: bytes) -> None:
    attempt = Attempt.claim(run, PACK)
    attempt.write_state(1, {"update": 1})
    (Path(attempt.uri) / "state-2.pt").write_bytes(content)
    assert Attempt.claim(run, PACK).newest_state() == {"update": 1}


def test_a_state_without_the_wanted_points_is_passed_over(run: str) -> None:
    first, second = (point.id for point in PACK.points)
    attempt = Attempt.claim(run, PACK)
    attempt.write_state(1, {"points": [first, second]})
    attempt.write_state(2, {"points": [second]})
    later = Attempt.claim(run, PACK)
    assert later.newest_state([second]) == {"points": [second]}
    assert later.newest_state([first]) == {"points": [first, second]}
    later.write_log()
    assert f"state-2.pt lacks {first}" in (Path(later.uri) / "log.txt").read_text()
    assert later.newest_state(["another"]) is None


def test_states_that_a_newer_attempt_deletes_meanwhile_are_looked_up_anew(run: str) -> None:
    first, second = Attempt.claim(run, PACK), Attempt.claim(run, PACK)
    first.write_state(1, {"update": 1})
    first.write_state(2, {"update": 2})

    def work_on(operation: str, uri: str, moment: str) -> None:
        if (operation, moment) == ("read", "before") and uri.endswith("state-2.pt"):
            for update in (3, 4):
                first.write_state(update, {"update": update})

    with storage.observed(work_on):
        assert second.newest_state() == {"update": 4}


def test_no_state_is_none(run: str) -> None:
    assert Attempt.claim(run, PACK).newest_state() is None


def test_the_first_result_stands(run: str) -> None:
    first, second = Attempt.claim(run, PACK), Attempt.claim(run, PACK)
    point = PACK.points[0]
    assert read_result(run, point.id) is None
    assert first.commit(point, {"parameters": 1})
    assert not second.commit(point, {"parameters": 2})
    assert read_result(run, point.id) == {"parameters": 1, "attempt": "packs/pack-0000/attempts/0"}


def test_a_claim_names_its_session_and_is_unlike_any_other(run: str) -> None:
    claims = [json.loads((Path(Attempt.claim(run, PACK, "tuesday").uri) / "claim.json").read_text()) for _ in range(2)]
    assert [claim["session"] for claim in claims] == ["tuesday"] * 2
    assert claims[0]["token"] != claims[1]["token"]
    assert {"time", "host", "pid"} < claims[0].keys()


def test_a_log_is_written_whole_when_it_has_new_lines(run: str) -> None:
    attempt = Attempt.claim(run, PACK)
    writes = []

    def count(operation: str, uri: str, moment: str) -> None:
        if uri.endswith("log.txt") and moment == "after":
            writes.append(operation)

    with storage.observed(count):
        attempt.write_log()
        for line in ("first", "second"):
            attempt.log(line)
        attempt.write_log()
        attempt.write_log()
        attempt.log("third")
        attempt.write_log()
    assert writes == ["write", "write"], "never read, never without a new line"
    lines = (Path(attempt.uri) / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "second", "third"]


def test_points_are_open_without_a_result_and_unless_this_session_failed_them(run: str) -> None:
    first, second = PACK.points
    assert open_points(run, PACK, "tuesday") == [first, second]
    write_failure(run, first.id, "no luck", "tuesday")
    assert open_points(run, PACK, "tuesday") == [second]
    assert open_points(run, PACK, "wednesday") == [first, second]
    Attempt.claim(run, PACK).commit(first, {})
    assert open_points(run, PACK, "wednesday") == [second]


def test_heartbeat_of_the_latest_attempt(run: str) -> None:
    assert read_heartbeat(run, PACK) is None
    for epoch in (1, 2):
        Attempt.claim(run, PACK).heartbeat(epoch=epoch)
    beat = read_heartbeat(run, PACK)
    assert beat is not None
    assert beat["epoch"] == 2
    assert beat["time"] > 0


def test_packs_that_were_written_in_part_are_no_packs(tmp_path: Path) -> None:
    add_packs(str(tmp_path), [], [PACK])
    (tmp_path / "packs" / INDEX_NAME).unlink()  # as if killed before the last write
    assert read_packs(str(tmp_path)) == []


FOUR = Pack("pack-0000", tuple(Point(float(number), 5, "stgs", 0) for number in range(1, 5)))


def test_packs_are_split_for_more_devices_and_hold_every_point_once(tmp_path: Path) -> None:
    run = str(tmp_path)
    other = Pack("pack-0001", (Point(9.0, 5, "stgs", 0),))
    add_packs(run, [], [FOUR, other])
    Attempt.claim(run, other).commit(other.points[0], {})
    Attempt.claim(run, FOUR).commit(FOUR.points[1], {})
    finished = {FOUR.points[1].id, other.points[0].id}
    assert split_packs(run, read_packs(run), 1, finished) == [FOUR, other], "one device has enough to do"
    after = split_packs(run, read_packs(run), 2, finished)
    assert [
        (pack.name.rsplit("-", 1)[0] if pack.parent else pack.name, [point.temperature for point in pack.points])
        for pack in after
    ] == [
        ("pack-0000.0", [1.0]),
        ("pack-0000.1", [3.0, 4.0]),
        ("pack-0000.done", [2.0]),
        ("pack-0001", [9.0]),
    ]
    assert [pack.parent for pack in after] == ["pack-0000"] * 3 + [None]
    assert read_packs(run) == after


@pytest.mark.parametrize(("devices", "sizes"), [(3, [2, 2, 1]), (4, [1, 1, 2, 1]), (5, [1] * 5), (99, [1] * 5)])
def test_the_largest_packs_are_split_until_there_is_one_for_each_device(
    tmp_path: Path, devices: int, sizes: list[int]
) -> None:
    points = [Point(float(number), 5, "stgs", 0) for number in range(5)]
    packs = [Pack(f"pack-{n}", tuple(own)) for n, own in enumerate((points[:2], points[2:4], points[4:]))]
    add_packs(str(tmp_path), [], packs)
    assert [len(pack.points) for pack in split_packs(str(tmp_path), packs, devices, set())] == sizes


def test_a_split_pack_goes_on_from_the_states_of_the_whole(tmp_path: Path) -> None:
    run = str(tmp_path)
    add_packs(run, [], [FOUR])
    whole = Attempt.claim(run, FOUR)
    whole.write_state(5, {"of": "the whole"})
    first, second = split_packs(run, [FOUR], 2, set())
    attempt = Attempt.claim(run, first)
    assert attempt.newest_state() == {"of": "the whole"}
    attempt.write_state(6, {"of": "the part"})
    assert attempt.newest_state() == {"of": "the part"}
    assert Attempt.claim(run, second).newest_state() == {"of": "the whole"}
    # The states of the whole go when its last point is done, not before.
    for point in first.points:
        attempt.commit(point, {})
    attempt.drop_states()
    last = Attempt.claim(run, second)
    assert last.newest_state() == {"of": "the whole"}
    for point in second.points:
        last.commit(point, {})
    last.drop_states()
    assert not list(tmp_path.glob("packs/*/attempts/*/state-*.pt"))


def test_failures_are_read_and_forgotten(run: str) -> None:
    point = PACK.points[0].id
    assert read_failure(run, point) is None
    write_failure(run, point, "no luck")
    assert read_failure(run, point) == "no luck"
    clear_failure(run, point)
    clear_failure(run, point)
    assert read_failure(run, point) is None
