"""A grid whose features, manifest and run are all on S3: killed, continued by the command, equal to one on a disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import grid
from cluster.features import open_features
from cluster.grid import GridResult, gather, read_grid
from cluster.search_loop import search_pack
from cluster.settings import GridConfig, SearchSettings
from data_prep import storage
from stgs.config import SearchConfig
from tests.planted import make_features
from tests.s3 import KEY, SECRET, s3_bucket

SETTINGS = SearchSettings(device="cpu", channels=8, search=SearchConfig(epochs=3, batch_size=32))
CONFIG = GridConfig(temperatures=(5.0, 10.0), num_samples=(5,), pack=1, devices=2, settings=SETTINGS)
WORDS = (
    "--device cpu --channels 8 --epochs 3 --batch-size 32 --temperatures 5 10 --num-samples 5 --pack 1 --devices 2 "
    "--candidates 0"
)
# On a machine that does much else.
TIMEOUT_S = 110
VOLATILE = ("seconds", "device_seconds", "curves")


class Death(BaseException):
    """The process is killed."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as uri:
        yield uri


def search(out: str, features: str, manifest: str) -> GridResult:
    """The grid in this process, without Ray."""
    source = open_features(features, manifest)
    splits = source.load_splits(("train", "dev"))
    begun = grid._begin(out, CONFIG, source, resume=False)
    for job, pack in begun.trials():
        search_pack(job, pack, splits["train"], splits["dev"], lambda row: None)
    return gather(begun.run, begun.packs, {})


def stable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what may differ between two runs: seconds, and the attempt that committed."""
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_a_grid_on_s3_is_continued_and_equals_one_on_a_disk(tmp_path: Path, bucket: str, repository: Path) -> None:
    make_features(tmp_path)
    for name in storage.list(str(tmp_path)):
        storage.write(storage.join(bucket, "box", name), (tmp_path / name).read_bytes())
    features, manifest, run = (storage.join(bucket, name) for name in ("box/features", "box/manifest", "run"))
    expected = search(str(tmp_path / "run"), str(tmp_path / "features"), str(tmp_path / "manifest"))
    states: list[str] = []

    def die_at_the_second_state(operation: str, uri: str, moment: str) -> None:
        if operation == "write" and uri.endswith(".pt") and moment == "before":
            states.append(uri)
            if len(states) == 2:
                raise Death

    with storage.observed(die_at_the_second_state), pytest.raises(Death):
        search(run, features, manifest)

    command = [sys.executable, "-m", "jobs.grid", features, "--manifest", manifest, "--out", run, "--resume", "--json"]
    done = subprocess.run([*command, *WORDS.split()], cwd=repository, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    rows = read_grid(run)
    assert stable(rows) == stable(expected.rows)
    names = storage.list(run)
    assert not [name for name in names if name.endswith(".pt")], "states are deleted once the results stand"
    assert {name.split("/attempts/")[1][0] for name in names if "pack-0000/attempts/" in name} == {"0", "1"}
    for text in (done.stdout, done.stderr, *(storage.read(storage.join(run, name)).decode("latin1") for name in names)):
        assert not [hidden for hidden in (KEY, SECRET) if hidden in text]
