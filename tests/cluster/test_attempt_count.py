"""Attempts at a training are counted, also where the file that counts them is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.attempt_count import AttemptCount


def test_attempts_of_a_session_at_one_place_are_counted(tmp_path: Path) -> None:
    count = AttemptCount(str(tmp_path / "attempts.json"), "one")
    assert [count.add(epoch=1), count.add(epoch=1), count.add(epoch=2)] == [1, 2, 1]
    assert AttemptCount(count.uri, "two").add(epoch=2) == 1
    count.forget()
    count.forget()
    assert count.add(epoch=2) == 1


@pytest.mark.parametrize(
    "content", [b"", b'{"session": "one", "ep', b"\xff\xfe", b"[3]", b'{"session": "one", "epoch": 1}', b"null"]
)
def test_a_damaged_count_is_none(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "attempts.json"
    file.write_bytes(content)
    count = AttemptCount(str(file), "one")
    assert [count.add(epoch=1), count.add(epoch=1)] == [1, 2]
