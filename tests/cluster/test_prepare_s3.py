"""Clips, manifest and corpus on S3: the same bytes as on a disk, and no credentials where they do not belong."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import shards
from cluster.prepare import PrepareWorker, prepare
from data_prep import boxes, storage
from data_prep.clip import ClipPreparer, PrepareConfig, Reject
from data_prep.decoder import Decoder
from data_prep.folders import folder_manifest
from data_prep.manifest import write_manifest
from data_prep.storage import InputError, UnreachableError
from tests.data_prep.fuzz_media import CODECS, Media, tone, write
from tests.s3 import KEY, SECRET, fresh_connections, s3_bucket

CONFIG = PrepareConfig(faces="none", window_s=1.0, frame_size=32, spectrogram_frames=100)
DATASET = "toy"

PREPARE = f"""
import sys
from cluster.prepare import prepare
from cluster.session import connect
from data_prep.clip import PrepareConfig

manifest, corpus, log_dir = sys.argv[1:]
with connect(num_cpus=1, log_dir=log_dir):
    prepare(manifest, corpus, {CONFIG!r}, progress=False)
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip of each container, and some that have to be rejected."""
    folder = tmp_path_factory.mktemp("clips")
    for category in "ABCD":
        (folder / category).mkdir()
    for number, (container, (video, audio)) in enumerate(CODECS.items()):
        path = folder / "ABCD"[number % 4] / f"subject{number}.{container}"
        write(path, Media(video_codec=video, audio_codec=audio, sound=tone(0.1 + 0.1 * number)))
    whole = (folder / "A" / "subject0.mp4").read_bytes()
    (folder / "B" / "cut.mp4").write_bytes(whole[:5000])
    (folder / "B" / "empty.mp4").write_bytes(b"")
    write(folder / "C" / "mute.mp4", Media(audio_codec=None))
    return folder


@pytest.fixture(scope="module")
def bucket(clips: Path) -> Iterator[str]:
    """A bucket with the same clips below raw/."""
    with s3_bucket() as uri:
        for name in storage.list(str(clips)):
            storage.write(storage.join(uri, "raw", name), (clips / name).read_bytes())
        yield uri


def make_manifest(root: str, out: str) -> list[dict]:
    """Writes the manifest of the clips at `root`; its rows."""
    listing = folder_manifest(root, dataset=DATASET)
    write_manifest(out, listing.rows, listing.roots, {})
    return sorted(listing.rows, key=lambda row: row["clip_id"])


def prepare_locally(rows: list[dict], roots: dict[str, str], out: Path) -> None:
    """Writes the corpus of one shard as a worker of Ray does."""
    worker = PrepareWorker(str(out), roots, CONFIG, None)
    *_, result = worker.work({"name": boxes.shard_name(0), "rows": rows, "position": 0})
    assert not isinstance(result, int)


def hidden_in(texts: list[str]) -> list[str]:
    """Those of the texts that hold what nobody should read."""
    return [text for text in texts for hidden in (SECRET, KEY, os.environ["AWS_ENDPOINT_URL"]) if hidden in text]


def assert_same_corpus(corpus: str, local: Path) -> None:
    """The rows and rejects at `corpus` are those at `local`, byte for byte, and its other files hold no credentials."""
    found = {name: storage.read(storage.join(corpus, name)) for name in storage.list(corpus)}
    wanted = {name: (local / name).read_bytes() for name in storage.list(str(local))}
    assert len(wanted) == 2
    assert {name: found.pop(name) for name in wanted} == wanted
    assert hidden_in([data.decode() for data in found.values()]) == []


@pytest.mark.ray
def test_a_corpus_on_s3_holds_the_bytes_of_a_local_one(
    ray_session: None, clips: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_manifest(str(clips), str(tmp_path / "manifest"))
    manifest, corpus = storage.join(bucket, "manifest"), storage.join(bucket, "corpus")
    assert make_manifest(storage.join(bucket, "raw"), manifest) == rows
    prepare_locally(rows, {DATASET: str(clips)}, tmp_path / "corpus")
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    class Worker(PrepareWorker):
        """The Ray that all tests share was started without the environment of this one."""

        def __init__(self, **arguments: Any) -> None:
            os.environ.update(environment)
            super().__init__(**arguments)

    run = shards.run
    monkeypatch.setattr(shards, "run", lambda _, *arguments, **options: run(Worker, *arguments, **options))
    counts = prepare(manifest, corpus, CONFIG, actors=1, progress=False).counts
    assert (counts["rows"], counts["clips"], counts["rejects"]) == (len(rows), len(CODECS), 3)
    assert_same_corpus(corpus, tmp_path / "corpus")


@pytest.mark.slow
@pytest.mark.ray
def test_workers_have_the_credentials_of_the_process_that_starts_ray(
    repository: Path, clips: Path, bucket: str, tmp_path: Path
) -> None:
    rows = make_manifest(storage.join(bucket, "raw"), storage.join(bucket, "manifest2"))
    prepare_locally(rows, {DATASET: str(clips)}, tmp_path / "corpus")
    uris = [storage.join(bucket, "manifest2"), storage.join(bucket, "corpus2")]
    command = [sys.executable, "-c", PREPARE, *uris, str(tmp_path / "log")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert_same_corpus(uris[1], tmp_path / "corpus")
    written = [done.stdout, done.stderr, *(path.read_text() for path in (tmp_path / "log").iterdir())]
    assert hidden_in(written) == []


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="a process's environment is read from /proc")
def test_the_decoding_process_has_no_credentials(clips: Path, bucket: str) -> None:
    rows = folder_manifest(str(clips), dataset=DATASET).rows
    with Decoder() as decoder:
        made = ClipPreparer(CONFIG, decoder=decoder)(rows[0], {DATASET: storage.join(bucket, "raw")})
        assert not isinstance(made, Reject), made
        environment = Path(f"/proc/{decoder.child_pid}/environ").read_bytes()
    assert SECRET in os.environ["AWS_SECRET_ACCESS_KEY"]
    assert b"AWS_" not in environment
    assert SECRET.encode() not in environment


def test_a_clip_is_rejected_for_its_own_faults_only(clips: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = folder_manifest(str(clips), dataset=DATASET).rows[0]
    root = storage.join(bucket, "raw")
    with Decoder() as decoder:
        preparer = ClipPreparer(CONFIG, decoder=decoder)
        gone = preparer(row | {"video_path": f"{DATASET}/A/gone.mp4"}, {DATASET: root})
        assert isinstance(gone, Reject)
        assert gone.reason == "missing"
        # Of these, every clip of the corpus would be the victim.
        with pytest.raises(InputError, match=r"there is no bucket 'nowhere'"):
            preparer(row, {DATASET: "s3://nowhere/raw"})
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")  # Nothing listens on port 1.
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with fresh_connections(), pytest.raises(UnreachableError):
            preparer(row, {DATASET: root})
