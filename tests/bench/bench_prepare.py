"""Preparing clips: clips a second on one core, and what that is against bare decoding and the reference's way.

    python -m tests.bench.bench_prepare [--clips FOLDER] [--rounds N] [--no-manifest]

FOLDER holds clips; by default ../shared/clips beside the checkout, or, where that is not there, clips made on the spot.
Every contender runs on every clip in turn, several times over, each on one thread, and the median counts: on a shared
machine only the ratios mean anything. The contenders:

- plain: PyAV alone decodes the picture up to the last frame that is needed, turns eight frames into RGB, and decodes
  the sound. This is the floor: prepare needs all of it.
- prepare: `ClipPreparer` as a worker uses it, decoding in its child process, without faces and with them.
- the reference's way: the whole video is encoded again to 256 x 256 at 30 frames a second, all frames are read back,
  and librosa loads the sound and makes its STFT. No faces.
"""

import argparse
import contextlib
import gzip
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import librosa
import numpy as np
import torch
from av.filter import Graph

from data_prep.clip import ClipPreparer, PrepareConfig, Reject, RejectReason
from data_prep.decoder import Decoder
from data_prep.manifest import Row, clip_row
from data_prep.window import WindowSettings, read_window
from jobs import manifest as manifest_job
from tests.data_prep.fuzz_media import RATE, Media, tone, write

SHARED = Path(__file__).resolve().parents[3] / "shared"
REFERENCE_CLIP = "voxceleb_224.mp4"
SETTINGS = WindowSettings(window_s=3.0, place=0.5, num_frames=8, min_duration_s=0.5, leading_silence_db=-40.0)
LISTED = 21_544


def plain(path: Path) -> None:
    """Decodes with PyAV what prepare needs, and nothing else."""
    frames: list[av.VideoFrame] = []
    samples: list[np.ndarray] = []
    with av.open(str(path)) as container:
        end = _needed_end_s(container)
        video, sound = container.streams.video[0], container.streams.audio[0]
        for stream in (video, sound):
            stream.codec_context.thread_count = 1
        for packet in container.demux(video, sound):
            if packet.stream is sound:
                samples += [frame.to_ndarray() for frame in packet.decode()]
            elif not frames or (frames[-1].time or 0) <= end:
                frames += packet.decode()
                del frames[:-80]  # About a window, so that memory stays flat.
    for index in np.linspace(0, len(frames) - 1, SETTINGS["num_frames"]).round().astype(int):
        frames[index].to_ndarray(format="rgb24")


def _needed_end_s(container: av.container.InputContainer) -> float:
    """When the last of the frames of a window in the clip's middle is shown, on the file's clock."""
    start, duration = (container.start_time or 0) / av.time_base, (container.duration or 0) / av.time_base
    window = min(SETTINGS["window_s"], duration)
    return start + (duration - window) / 2 + window * (1 - 0.5 / SETTINGS["num_frames"])


def reference(path: Path, folder: Path) -> None:
    """The way of the reference: see above."""
    encoded, wav = folder / "encoded.mp4", folder / "sound.wav"
    _encode_again(path, encoded)
    with av.open(str(encoded)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    _extract_sound(path, wav)
    samples, _ = librosa.load(wav, sr=16_000)
    np.abs(librosa.stft(samples, n_fft=512, hop_length=160, win_length=400))


def _encode_again(path: Path, encoded: Path) -> None:
    with av.open(str(path)) as source, av.open(str(encoded), "w") as target:
        video = source.streams.video[0]
        video.codec_context.thread_count = 1
        out = target.add_stream("libx264", rate=30)
        out.width = out.height = 256
        out.pix_fmt = "yuv420p"
        out.codec_context.thread_count = 1
        out.codec_context.time_base = Fraction(1, 30)
        graph = Graph()
        nodes = [graph.add_buffer(template=video), graph.add("scale", "256:256"), graph.add("fps", "30")]
        nodes += [graph.add("format", "yuv420p"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        for frame in [*source.decode(video), None]:
            graph.vpush(frame)
            with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
                while True:
                    target.mux(out.encode(graph.vpull()))
        target.mux(out.encode(None))


def _extract_sound(path: Path, wav: Path) -> None:
    with av.open(str(path)) as source, av.open(str(wav), "w") as target:
        sound = source.streams.audio[0]
        out = target.add_stream("pcm_s16le", rate=sound.rate, layout=sound.layout)
        for frame in source.decode(sound):
            frame.pts = None
            target.mux(out.encode(frame))
        target.mux(out.encode(None))


class Contenders:
    """Everything that runs on a clip, by name."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._roots = {"clips": str(folder)}
        self._folder, self._scratch = folder, scratch
        self._without = ClipPreparer(PrepareConfig(faces="none"))
        self._with = ClipPreparer(PrepareConfig())
        self._decoder = Decoder()
        self.outcomes: dict[str, str] = {}

    def of(self, name: str) -> dict[str, Callable[[], object]]:
        path = self._folder / name
        row = clip_row(clip_id=name, video_path=f"clips/{name}", category="A", dataset="clips", subject="someone")
        return {
            "plain": lambda: plain(path),
            "prepare": lambda: self._prepare(self._without, row),
            "faces": lambda: self._prepare(self._with, row),
            "reference": lambda: reference(path, self._scratch),
            "child": lambda: self._decoder.read_window(str(path), None, **SETTINGS),
            "in process": lambda: read_in_process(path),
        }

    def _prepare(self, preparer: ClipPreparer, row: Row) -> None:
        made = preparer(row, self._roots)
        if isinstance(made, Reject) and made.reason in (RejectReason.MISSING, RejectReason.UNREADABLE):
            sys.exit(f"{made.path} cannot be measured: {made.reason} ({made.detail})")
        self.outcomes[row["clip_id"]] = made.reason if isinstance(made, Reject) else "row"


def read_in_process(path: Path) -> None:
    with path.open("rb") as file:
        read_window(file.fileno(), None, **SETTINGS)


def measure(contenders: Contenders, names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Clip -> contender -> median seconds; the first round, in which caches fill and processes start, is left out."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(rounds + 1):
        for name in names:
            for contender, work in contenders.of(name).items():
                start = time.perf_counter()
                work()
                if number:
                    seconds[name].setdefault(contender, []).append(time.perf_counter() - start)
    return {
        name: {contender: statistics.median(values) for contender, values in found.items()}
        for name, found in seconds.items()
    }


def make_clips(folder: Path) -> None:
    """Clips in the sizes and rates of common corpora."""
    sound = np.resize(tone(), 5 * RATE)
    for name, side in {REFERENCE_CLIP: 224, "large_512.mp4": 512}.items():
        write(folder / name, Media(frames=125, width=side, height=side, sound=sound))


def verdict(value: float, aim: float, *, above: bool) -> str:
    """The ratio with its aim, and whether it is met."""
    met = value > aim if above else value < aim
    return f"{value:.2f} (aim: {'over' if above else 'under'} {aim:g}: {'met' if met else 'missed'})"


def print_clips(found: dict[str, dict[str, float]], outcomes: dict[str, str]) -> None:
    print(f"{'milliseconds':<24}{'plain':>9}{'prepare':>9}{'child':>9}{'faces':>9}  outcome    prepare / plain")
    for name, seconds in found.items():
        overhead = seconds["child"] - seconds["in process"]
        milliseconds = [1e3 * value for value in (seconds["plain"], seconds["prepare"], overhead, seconds["faces"])]
        figures = "".join(f"{value:9.1f}" for value in milliseconds)
        ratio = verdict(seconds["prepare"] / seconds["plain"], 1.5, above=False)
        print(f"{name:<24}{figures}  {outcomes[name]:<10} {ratio}")
    print("(child: decoding in the child process less the same decoding in this one)")


def print_rates(found: dict[str, dict[str, float]]) -> None:
    for contender, words in {"prepare": "without faces", "faces": "with faces"}.items():
        rate = len(found) / sum(seconds[contender] for seconds in found.values())
        print(f"clips a second on one core, {words}: {rate:.1f}")
    seconds = found.get(REFERENCE_CLIP)
    if seconds is None:
        return
    print(f"{REFERENCE_CLIP}, the reference's way: {seconds['reference']:.2f} s")
    for contender, words, aim in (("prepare", "without faces", 8.0), ("faces", "with faces", 2.5)):
        ratio = verdict(seconds["reference"] / seconds[contender], aim, above=True)
        print(f"{REFERENCE_CLIP}, clips a second against the reference's way, {words}: {ratio}")


def print_manifest_seconds(scratch: Path) -> None:
    """`stgs manifest fakeavceleb` on the real listing with empty files."""
    listing = SHARED / "data" / "fakeavceleb_v1.2_paths.txt.gz"
    if not listing.is_file():
        print("stgs manifest fakeavceleb: not measured, the listing of the data set is not here")
        return
    root = scratch / "FakeAVCeleb"
    names = gzip.decompress(listing.read_bytes()).decode().split("\n")
    for name in filter(None, names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        manifest_job.main(["fakeavceleb", str(root), "--out", str(scratch / "manifest")])
    seconds = time.perf_counter() - start
    print(f"stgs manifest fakeavceleb on {LISTED:,} empty files, seconds: {verdict(seconds, 10.0, above=False)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=Path, help="folder of clips (default: ../shared/clips, or made on the spot)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (default: 5)")
    parser.add_argument("--no-manifest", action="store_true", help="leave the listing of a data set out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.clips or SHARED / "clips"
        if not folder.is_dir():
            folder = Path(scratch) / "clips"
            folder.mkdir()
            make_clips(folder)
        names = sorted(name for name in os.listdir(folder) if name.endswith((".mp4", ".mpg", ".avi", ".webm", ".mkv")))
        contenders = Contenders(folder, Path(scratch))
        found = measure(contenders, names, arguments.rounds)
        print_clips(found, contenders.outcomes)
        print_rates(found)
        if not arguments.no_manifest:
            print_manifest_seconds(Path(scratch))


if __name__ == "__main__":
    main()
