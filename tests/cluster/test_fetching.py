"""The results of a run, fetched: what is taken, and what must not be."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from cluster.fetching import Fetched, fetch_results
from data_prep import storage
from data_prep.storage import InputError
from jobs.results import main
from tests.cluster.planted_runs import NOW, drive
from tests.s3 import s3_bucket

ID = "temperature-0.1_samples-15_stgs_seed-1_dropout-1e-05_tail-a+b"
RESULTS = ["config.yaml", f"points/{ID}/genotype.json", "grid.parquet", "points/b/genotype.json", "report/report.html"]
OTHERS = ["driver.txt", "points/a/result.json", "points/c/failed.json", "packs/p/attempts/0/state-3.pt"]


def put(run: str, *names: str) -> None:
    for name in names:
        storage.write(storage.join(run, name), name.encode())


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fetch(run: str, out: Path) -> Fetched:
    return fetch_results(run, str(out), clock=lambda: NOW)


def test_results_are_fetched_and_nothing_else(tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "out"
    with pytest.raises(InputError, match="has nothing yet"):
        fetch(run, out)
    put(run, "config.yaml", *OTHERS)
    with pytest.raises(InputError, match="has no results yet; 'stgs status"):
        fetch(run, out)
    assert not out.exists()
    put(run, *RESULTS)
    fetched = fetch(run, out)
    assert (sorted(fetched.names), fetched.gone, fetched.live) == (sorted(RESULTS), [], False)
    assert files(out) == {name: name for name in RESULTS}


def test_what_baselines_scored_is_fetched_without_their_weights(tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "out"
    wanted = [f"parts/fold-0/{name}" for name in ("metrics.json", "scores.parquet", "curves.parquet")]
    wanted += ["config.yaml", "environment.json", "report/report.html"]
    wanted += [f"baselines/avdf/{name}" for name in wanted]
    put(run, *wanted, "parts/fold-0/state.pt", "baselines/avdf/parts/fold-0/network.safetensors")
    assert sorted(fetch(run, out).names) == sorted(wanted)


def test_a_bucket_cannot_write_outside_of_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    bad = ["../../evil", "./genotype.json", "a/../../../evil/genotype.json", "a b/genotype.json", "~/genotype.json"]
    keys = [f"points/{name}" for name in bad] + ["points/x/y/genotype.json", "points/../../evil/genotype.json"]
    keys += ["report/../../evil", "report//etc/evil", "report/../report.html", "points/../genotype.json"]
    with s3_bucket() as bucket:
        import boto3

        put(f"{bucket}/run", *RESULTS)
        client = boto3.client("s3")
        for key in keys:
            client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"run/{key}", Body=b"evil")
        assert len(storage.list(f"{bucket}/run")) == len(RESULTS) + len(keys), "the bucket has such keys"
        fetch(f"{bucket}/run", out)
    assert files(tmp_path) == {f"deep/out/{name}": name for name in RESULTS}


def test_a_live_run_and_a_removed_object_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "out"
    put(run, *RESULTS)
    drive(run, age=NOW - time.time())

    def remove(operation: str, uri: str, moment: str) -> None:
        if (operation, moment) == ("read", "before") and uri.endswith("points/b/genotype.json"):
            Path(uri).unlink()

    with storage.observed(remove):
        assert main([f"{run}/", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"fetched 4 files, 1 genotype among them, from {run} to {out}",
        "left out, because they were removed meanwhile: points/b/genotype.json",
        "a driver still works on the run: fetch again once it has ended",
    ]


def test_results_of_two_runs_are_not_mixed(tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "out"
    put(run, *RESULTS)

    def begin(**config: object) -> None:
        content = {"config": config, "hints": {"time": time.time()}}
        storage.write(storage.join(run, "config.yaml"), yaml.safe_dump(content).encode())

    begin(seeds=[0], settings={"channels": 8})
    fetch(run, out)
    begin(seeds=[0, 1], settings={"channels": 8})
    fetch(run, out)
    begin(seeds=[0, 1], settings={"channels": 16})
    with pytest.raises(InputError, match="holds the results of another run"):
        fetch(run, out)
    (out / "config.yaml").write_text("[half")
    with pytest.raises(InputError, match="holds the results of another run"):
        fetch(run, out)
