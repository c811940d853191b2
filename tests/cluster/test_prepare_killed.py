"""Preparation when processes die or hang: every shard is, byte for byte, that of an undisturbed run."""

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster import prepare as prepare_module
from cluster import shards
from cluster.prepare import PrepareWorker, prepare
from data_prep import boxes, decoder
from data_prep.boxes import shard_name
from data_prep.manifest import MANIFEST_COLUMNS, Manifest, read_manifest, write_manifest
from tests.cluster.clip_files import CONFIG, write_clip

ray = pytest.importorskip("ray")
# Ray's workers cannot import this file by the name that pytest gives it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

CLIPS, CLIPS_PER_SHARD = 12, 3
KILL_TIMEOUT_S = 60


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def shard(manifest: Manifest, index: int) -> shards.Shard:
    rows = manifest.rows[index * CLIPS_PER_SHARD : (index + 1) * CLIPS_PER_SHARD]
    return {"name": shard_name(index), "rows": rows, "position": index}


@dataclass
class Undisturbed:
    """A manifest, and the files that one worker makes of it in this process, where nothing happens to it."""

    manifest_uri: str
    manifest: Manifest
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root = tmp_path_factory.mktemp("undisturbed")
    rows = []
    for index in range(CLIPS):
        name = f"s{index:02d}.mp4"
        # One in four has no sound, so that the rejects are not empty.
        write_clip(root / "clips" / name, index, sound=index % 4 != 1)
        rows.append(
            dict.fromkeys(MANIFEST_COLUMNS)
            | {"clip_id": name, "video_path": f"toy/{name}", "label": index % 2, "category": "AB"[index % 2]}
            | {"dataset": "toy", "subject": name}
        )
    uri = str(root / "manifest")
    write_manifest(uri, rows, {"toy": str(root / "clips")}, {})
    manifest = read_manifest(uri)
    worker = PrepareWorker(str(root / "corpus"), manifest.roots, CONFIG, None)
    for index in range(CLIPS // CLIPS_PER_SHARD):
        list(worker.work(shard(manifest, index)))
    return Undisturbed(uri, manifest, files(root / "corpus"))


class MortalWorker(PrepareWorker):
    """Kills itself within one shard, and its decoder within another."""

    graves = Path()

    def work(self, shard: shards.Shard) -> Iterator[int | shards.Result]:
        for done, step in enumerate(super().work(shard)):
            yield step
            if (shard["name"], done) == (shard_name(0), 1):
                self._once("worker", [os.getpid()])
            if (shard["name"], done) == (shard_name(3), 1):
                self._once("decoder", children())

    def _once(self, what: str, pids: list[int]) -> None:
        """Send SIGKILL to `pids`, unless that was done in an earlier attempt."""
        assert pids
        with contextlib.suppress(FileExistsError):
            (self.graves / what).touch(exist_ok=False)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)


def children() -> list[int]:
    return [int(word) for path in Path("/proc/self/task").glob("*/children") for word in path.read_text().split()]


@pytest.mark.ray
def test_killed_workers_and_decoders_change_no_byte(
    ray_session: None, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MortalWorker, "graves", tmp_path / "graves")
    MortalWorker.graves.mkdir()
    run = shards.run
    monkeypatch.setattr(shards, "run", lambda worker, *rest, **settings: run(MortalWorker, *rest, **settings))
    monkeypatch.setattr(prepare_module, "SHARD_CLIPS", CLIPS_PER_SHARD)
    meta = prepare(undisturbed.manifest_uri, str(tmp_path / "corpus"), CONFIG, actors=2, progress=False)
    assert {path.name for path in MortalWorker.graves.iterdir()} == {"worker", "decoder"}
    assert files(tmp_path / "corpus") == undisturbed.files
    assert meta.files == {name: hashlib.sha256(data).hexdigest() for name, data in undisturbed.files.items()}
    assert (meta.counts["clips"], meta.counts["reject.no_audio"]) == (9, 3)


def wait_for_file(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{path.name} did not appear in time\n{log.read_text()}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)


def wait_for_end(pid: int) -> None:
    """Of any process, which need not be a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], KILL_TIMEOUT_S)
        assert ended, f"process {pid} outlives the driver"
    finally:
        os.close(descriptor)


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_a_killed_driver_leaves_no_process_and_its_run_goes_on(
    ray_session: None,
    undisturbed: Undisturbed,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, log = tmp_path / "corpus", tmp_path / "driver.log"
    os.mkfifo(tmp_path / "gate")
    arguments = [undisturbed.manifest_uri, str(out), str(CLIPS_PER_SHARD), str(tmp_path)]
    command = [sys.executable, "-m", "tests.cluster.stalled_prepare", *arguments]
    with log.open("wb") as file:
        driver = subprocess.Popen(command, cwd=repository, stdout=file, stderr=file, start_new_session=True)
        try:
            wait_for_file(tmp_path / "stalled", driver, log)
        finally:
            # The driver alone: its Ray processes notice that it is gone, as on a machine that stays.
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    actor, *decoders = map(int, (tmp_path / "stalled").read_text().split())
    assert decoders
    for pid in (actor, *decoders):
        wait_for_end(pid)
    standing = {path: path.stat().st_mtime_ns for path in out.glob("**/*.parquet")}
    # Each has a part and rejects.
    assert len(standing) == 2 * 2, "the kill came in the third shard"

    monkeypatch.setattr(prepare_module, "SHARD_CLIPS", CLIPS_PER_SHARD)
    prepare(undisturbed.manifest_uri, str(out), CONFIG, actors=1, progress=False)
    assert files(out) == undisturbed.files
    assert {path: path.stat().st_mtime_ns for path in standing} == standing


def test_clips_that_crash_or_hang_the_decoder_cost_only_themselves(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_CHILD_MODULE", "tests.cluster.hostile_decoder")
    hostile = shard(undisturbed.manifest, 0)
    first = hostile["rows"][0]
    hostile["rows"] = list(hostile["rows"])
    for position, word in ((0, "dead"), (2, "hang"), (4, "dead")):
        name = f"{word}-{position}.mp4"
        (tmp_path / name).write_text(word)
        hostile["rows"].insert(position, first | {"clip_id": name, "video_path": f"bad/{name}"})
    roots = undisturbed.manifest.roots | {"bad": str(tmp_path)}
    worker = PrepareWorker(str(tmp_path / "corpus"), roots, replace(CONFIG, clip_timeout=1.0), None)
    *news, result = worker.work(hostile)
    assert news == [1] * 6
    assert isinstance(result, dict)
    assert (result["counts"]["clips"], result["counts"]["rejects"]) == (2, 4)
    part = shard_name(0)
    # The same clips in the same order: the same bytes.
    assert files(tmp_path / "corpus")[part] == undisturbed.files[part]
    refused = boxes.read_table(str(tmp_path / "corpus" / "rejects" / part)).to_pylist()
    reasons = {row["clip_id"]: row["reason"] for row in refused}
    assert reasons == {
        "dead-0.mp4": "decoder_crashed",
        "hang-2.mp4": "timeout",
        "dead-4.mp4": "decoder_crashed",
        "s01.mp4": "no_audio",
    }
