"""A decoding worker's memory does not grow with the number of clips, nor with their length."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data_prep.fuzz_media import RATE, Media, tone, write

MEBIBYTE = 2**20
WIDTH, HEIGHT = 480, 360

# Prints, after each of the counts of clips given, the most memory that this process and its children ever held: the
# sum of their peaks, in bytes. Pages that they share count twice, each time.
WORKER = """
import json, os, sys
from pathlib import Path
from data_prep.clip import ClipPreparer, PrepareConfig
from data_prep.manifest import MANIFEST_COLUMNS

def fields(path):
    return dict(line.split(":", 1) for line in path.read_text().splitlines())

def peak_bytes():
    peak, processes = 0, 0
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            status = fields(path)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.getpid() in (int(status["Pid"]), int(status["PPid"])) and "VmHWM" in status:
            peak += int(status["VmHWM"].removesuffix("kB")) * 1024
            processes += 1
    return [peak, processes]

folder, names = sys.argv[1], json.loads(sys.argv[2])
prepare, peaks = ClipPreparer(PrepareConfig(faces="none")), []
for batch in names:
    for name in batch:
        row = dict.fromkeys(MANIFEST_COLUMNS) | {"clip_id": name, "video_path": "clips/" + name}
        row |= {"label": 0, "category": "A", "dataset": "clips", "subject": "someone"}
        made = prepare(row, {"clips": folder})
        assert isinstance(made, dict) != name.startswith("bad"), made
    peaks.append(peak_bytes())
print(json.dumps(peaks))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")


def write_clip(path: Path, seconds: float) -> None:
    sound = np.resize(tone(), round(seconds * RATE))
    media = Media(frames=round(25 * seconds), width=WIDTH, height=HEIGHT, sound=sound)
    write(path, media)


def peaks(repository: Path, folder: Path, batches: list[list[str]]) -> list[int]:
    """Peak bytes of a worker and its decoding process after each of the batches of clips."""
    command = [sys.executable, "-W", "error", "-c", WORKER, str(folder), json.dumps(batches)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {processes for _, processes in found} == {2}
    return [peak for peak, _ in found]


def test_80_clips_take_no_more_memory_than_8(repository: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 3.2)
    # What is refused must not be kept, either.
    write(tmp_path / "bad.mkv", Media(frames=2, width=WIDTH, height=HEIGHT))
    batch = ["clip.mp4", "clip.mp4", "clip.mp4", "bad.mkv"]
    few, many = peaks(repository, tmp_path, [batch * 2, batch * 18])
    assert many <= 1.15 * few + 30 * MEBIBYTE


def test_a_clip_ten_times_as_long_takes_no_more_memory(repository: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "short.mp4", 3.0)
    write_clip(tmp_path / "long.mp4", 30.0)
    short, long = peaks(repository, tmp_path, [["short.mp4"] * 3, ["long.mp4"] * 3])
    # All of its pictures would be 388 MB, all of its sound 6 MB as float32; the rest is the noise of the allocator.
    assert long - short < 6 * MEBIBYTE
