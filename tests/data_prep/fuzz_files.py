"""Damaged and odd media files, and what may become of each in `ClipPreparer`.

    python -m tests.data_prep.fuzz_files [--count N] [--seed N] [--keep FOLDER]

prints what became of them, and exits with 1 if an outcome was wrong; --keep saves the files whose outcome was wrong.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep import boxes
from data_prep.clip import CORPUS_SCHEMA, ClipPreparer, PrepareConfig, Reject, RejectReason
from data_prep.manifest import MANIFEST_COLUMNS
from tests.data_prep.fuzz_media import payload
from tests.data_prep.fuzz_odd import (
    NO_AUDIO,
    NO_MEMORY,
    NO_VIDEO,
    ROW,
    SILENT,
    TOO_SHORT,
    UNREADABLE,
    Bases,
    FuzzFile,
    odd_files,
)

CONFIG = PrepareConfig(faces="none", window_s=1.0, frame_size=32, spectrogram_frames=100, clip_timeout=5.0)

DAMAGED = "damaged"
"""The folder of the files that are damaged at random."""
_STREAMS_LOST = frozenset({UNREADABLE, NO_VIDEO, NO_AUDIO, TOO_SHORT})
_ANYTHING = _STREAMS_LOST | {ROW, SILENT, NO_MEMORY}
"""Of damage that may hit a header: it may say that a stream, its samples or its time are not what they were."""


def fuzz_files(folder: Path, *, count: int, seed: int) -> Iterator[FuzzFile]:
    """At least `count` files in `folder`, each written just before it is yielded: the odd ones, then damaged ones."""
    bases = Bases(folder)
    num_odd = 0
    for file in odd_files(bases):
        num_odd += 1
        yield file
    damage = Damage(bases)
    for index in range(count - num_odd):
        yield damage.file(index, np.random.default_rng((seed, index)))


class Damage:
    """Damages whole clips at random: file `index` has the container and the kind of damage of that number."""

    def __init__(self, bases: Bases) -> None:
        self._folder = bases.folder
        (bases.folder / DAMAGED).mkdir()
        self._whole = {container: bases.path(container).read_bytes() for container in bases.names}
        self._payload = {container: payload(bases.path(container)) for container in bases.names}
        self._kinds = (
            self._cut,
            self._flip_payload,
            self._flip_header,
            self._flip_anywhere,
            self._swap_header,
            self._zero_stretch,
            self._drop_stretch,
            self._repeat_stretch,
            self._shuffle_blocks,
            self._random_bytes,
        )

    def file(self, index: int, generator: np.random.Generator) -> FuzzFile:
        """Writes it."""
        container = [*self._whole][index % len(self._whole)]
        kind = self._kinds[index // len(self._whole) % len(self._kinds)]
        data, outcomes = kind(container, generator)
        name = f"{DAMAGED}/{kind.__name__.strip('_')}_{index}.{container}"
        (self._folder / name).write_bytes(data)
        return FuzzFile(name=name, group=kind.__name__.strip("_").replace("_", " "), outcomes=outcomes)

    def _cut(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        data = self._whole[container]
        share = generator.uniform(0, 0.999)
        kept = data[: int(share * len(data))]
        if container == "mp4" and len(kept) < data.index(b"moov"):  # Its header comes last.
            return kept, frozenset({UNREADABLE})
        if share < 0.3:  # Under 0.5 s of the 1.2 s are left.
            return kept, _STREAMS_LOST
        # Its header comes first and says that the clip has 1.2 s, so the window ends at 1.1 s; 0.1 s of that may lack.
        if container == "mov" and share < 0.8:
            return kept, frozenset({UNREADABLE})
        return kept, _STREAMS_LOST | {ROW}

    def _flip_payload(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        """Bits of pictures and sound, not of the container: streams and time stamps stay what they are."""
        data, spans = bytearray(self._whole[container]), self._payload[container]
        for _ in range(int(2 ** generator.uniform(0, 8))):
            first, last = spans[generator.integers(len(spans))]
            data[generator.integers(first, last)] ^= 1 << int(generator.integers(8))
        # An MPEG program stream does not say what it holds: that is read from the payload.
        lost = {NO_VIDEO, NO_AUDIO} if container == "mpg" else set()
        return bytes(data), frozenset({ROW, UNREADABLE} | lost)

    def _flip_header(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        """Bits outside of the payload."""
        data = bytearray(self._whole[container])
        outside = np.ones(len(data), bool)
        for first, last in self._payload[container]:
            outside[first:last] = False
        for place in generator.choice(np.flatnonzero(outside), int(2 ** generator.uniform(0, 5))):
            data[place] ^= 1 << int(generator.integers(8))
        return bytes(data), _ANYTHING

    def _flip_anywhere(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        data = bytearray(self._whole[container])
        for place in generator.integers(len(data), size=int(2 ** generator.uniform(0, 9))):
            data[place] ^= 1 << int(generator.integers(8))
        return bytes(data), _ANYTHING

    def _swap_header(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        """Begins like a file of another container."""
        other = generator.choice([name for name in self._whole if name != container])
        size = int(2 ** generator.uniform(3, 12))
        return self._whole[other][:size] + self._whole[container][size:], _ANYTHING

    def _zero_stretch(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        data = self._whole[container]
        first, last = _stretch(len(data), generator)
        return data[:first] + bytes(last - first) + data[last:], _ANYTHING

    def _drop_stretch(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        data = self._whole[container]
        first, last = _stretch(len(data), generator)
        return data[:first] + data[last:], _ANYTHING

    def _repeat_stretch(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        data = self._whole[container]
        first, last = _stretch(len(data), generator)
        return data[:last] + data[first:], _ANYTHING

    def _shuffle_blocks(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        data, size = self._whole[container], 512 * int(generator.integers(1, 9))
        blocks = [data[start : start + size] for start in range(0, len(data), size)]
        return b"".join(blocks[index] for index in generator.permutation(len(blocks))), _ANYTHING

    def _random_bytes(self, container: str, generator: np.random.Generator) -> tuple[bytes, frozenset[str]]:
        """Behind the first bytes, by which a container is known."""
        size = int(2 ** generator.uniform(0, 16))
        return self._whole[container][: generator.integers(0, 64)] + generator.bytes(size), _STREAMS_LOST


def _stretch(length: int, generator: np.random.Generator) -> tuple[int, int]:
    first = int(generator.integers(length))
    return first, min(length, first + int(2 ** generator.uniform(0, 14)))


@dataclass
class Fuzz:
    """Runs files through one preparer and keeps what became of them."""

    folder: Path
    preparer: ClipPreparer
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """Group -> outcome -> files."""
    wrong: list[str] = field(default_factory=list)
    """One line per file whose outcome was not right."""
    slowest: tuple[float, str] = (0.0, "")
    _bases: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of files."""
        return sum(sum(found.values()) for found in self.outcomes.values())

    def add(self, file: FuzzFile) -> bool:
        """Prepares `file`; whether its outcome was right, and the whole clips still give the bytes they gave."""
        known = len(self.wrong)
        start = time.perf_counter()
        made = self._prepare(file.name, file.audio)
        self.slowest = max(self.slowest, (time.perf_counter() - start, file.name))
        outcome, detail = (str(made.reason), made.detail) if isinstance(made, Reject) else (ROW, "")
        if outcome == RejectReason.DECODER_CRASHED and "memory" in detail:
            outcome = NO_MEMORY
        self.outcomes.setdefault(file.group, Counter())[outcome] += 1
        if outcome not in file.outcomes:
            allowed = ", ".join(sorted(map(str, file.outcomes)))
            self.wrong.append(f"{file.group}: {file.name!r} became {outcome} ({detail}), not {allowed}")
        elif isinstance(made, dict):
            fault = row_fault(made, self.preparer.config)
            if fault is None and file.same_as and row_digest(made) != self._bases[file.same_as]:
                fault = f"differs from that of base.{file.same_as}"
            if fault:
                self.wrong.append(f"{file.group}: the row of {file.name!r} {fault}")
        return len(self.wrong) == known

    def check_bases(self, when: str) -> None:
        """The whole clips give rows, and the bytes they gave at first."""
        for path in sorted(self.folder.glob("base.*")):
            made = self._prepare(path.name, None)
            container = path.suffix[1:]
            found = made.reason if isinstance(made, Reject) else row_digest(made)
            if self._bases.setdefault(container, found) != found or isinstance(made, Reject):
                self.wrong.append(f"{when}, {path.name} became {found}, not {self._bases[container]}")

    def _prepare(self, name: str, audio: str | None) -> dict[str, Any] | Reject:
        row: dict[str, Any] = dict.fromkeys(MANIFEST_COLUMNS)
        row |= {"clip_id": name, "video_path": f"clips/{name}", "audio_path": audio and f"clips/{audio}"}
        row |= {"label": 0, "category": "A", "dataset": "clips", "subject": "someone"}
        return self.preparer(row, {"clips": str(self.folder)})


def row_fault(row: dict[str, Any], config: PrepareConfig) -> str | None:
    """What is wrong with a row, seen as the corpus stores it; None if nothing is."""
    schema = CORPUS_SCHEMA(config)
    if list(row) != schema.names:
        return f"has the columns {', '.join(row)}"
    table = boxes.table_from_rows([row], schema)
    for name in table.column_names:
        values = table[name]
        if pa.types.is_string(values.type) or values.null_count:
            continue
        numbers = boxes.column_to_numpy(table, name)
        if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            return f"has {name} that is no finite number"
    if not row["duration_s"] >= config.min_duration_s:
        return f"has duration_s {row['duration_s']}"
    if not row["fps"] > 0:
        return f"has fps {row['fps']}"
    if not 0 <= row["leading_silence_s"] <= row["duration_s"]:
        return f"has leading_silence_s {row['leading_silence_s']} of {row['duration_s']}"
    if (np.asarray(row["spectrogram"]) < 0).any():
        return "has a negative magnitude"
    return None


def row_digest(row: dict[str, Any]) -> str:
    """sha256 of what was measured: everything but the clip's name."""
    digest = hashlib.sha256()
    for name, value in row.items():
        if name != "clip_id":
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()


def run(folder: Path, *, count: int, seed: int, keep: Path | None = None) -> Fuzz:
    """Prepares `count` files in the empty `folder`, and the whole clips again after each group of one kind.

    keep: a folder for the files whose outcome was wrong.
    """
    with ClipPreparer(CONFIG) as preparer:
        fuzz = Fuzz(folder, preparer)
        group = "the beginning"
        for file in fuzz_files(folder, count=count, seed=seed):
            if file.group != group:
                fuzz.check_bases(f"after {group}")
                group = file.group
            right, path = fuzz.add(file), folder / file.name
            if keep and not right and path.is_file():
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, keep / path.name)
            if file.name.startswith(DAMAGED):  # Thousands of them would fill a small disk.
                path.unlink()
        fuzz.check_bases(f"after {group}")
    return fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=5000, help="files (default: 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files whose outcome was wrong")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        fuzz = run(Path(scratch), count=arguments.count, seed=arguments.seed, keep=arguments.keep)
    for name, found in fuzz.outcomes.items():
        print(f"{name}: {', '.join(f'{outcome} {number}' for outcome, number in sorted(found.items()))}")
    print(f"{fuzz.total} files in {time.perf_counter() - start:.0f} s; the slowest, {fuzz.slowest[0]:.2f} s:")
    print(repr(fuzz.slowest[1]), *fuzz.wrong, f"{len(fuzz.wrong)} wrong", sep="\n")
    sys.exit(bool(fuzz.wrong))


if __name__ == "__main__":
    main()
