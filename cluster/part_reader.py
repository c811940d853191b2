"""Reads parts of a corpus with Ray Data. Its tasks import this module, which therefore knows nothing of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from cluster.session import set_data_defaults
from data_prep import boxes, storage
from data_prep.storage import CredentialsError, InputError

# Reading tasks of one reader, and parts that it holds ready.
_AHEAD = 2

# What a search with its backbones in the loop reads.
FRAMES_AND_SPECTROGRAM = ("frames", "spectrogram")

# Name of a part, and the rows that are wanted.
Part = tuple[str, list[int]]
Arrays = dict[str, NDArray[Any]]
# Given a part's table and its URI: raises InputError for values that do not fit together. A function of a module.
Check = Callable[[pa.Table, str], object]


_REFUSED = "refused"
# Parts with the sha256 that this process has found them to have: a search reads each part once an epoch.
_checked: set[tuple[str, str]] = set()


class RayReader:
    """Reads parts of the corpus at a URI: ahead, in the order given, in tasks beside the caller.

    files: sha256 of every part, by name. columns: which are read. check: of each part that is read.
    """

    def __init__(
        self,
        corpus: str,
        files: Mapping[str, str],
        columns: Sequence[str] = FRAMES_AND_SPECTROGRAM,
        check: Check | None = None,
    ) -> None:
        self.corpus, self.files, self.columns, self.check = corpus, files, tuple(columns), check

    def __call__(self, parts: Sequence[Part]) -> Iterator[Arrays]:
        """Blocks of any size with the wanted clips in order: `position` of the part among `parts`, int [n], and the
        columns, [n, ...]; of binary ones, `bytes` in an array of objects, [n].

        Raises InputError for a part that is damaged, was changed after it was written, or fails the check.
        """
        if not parts:  # a worker's share of a split with fewer parts than workers
            return
        set_data_defaults()
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        items = [
            {"part": json.dumps([position, storage.join(self.corpus, name), self.files[name], rows])}
            for position, (name, rows) in enumerate(parts)
        ]
        # The workers of the search hold the CPUs all the time; a reading task that asked for one would never start.
        tasks = ray.data.TaskPoolStrategy(min(_AHEAD, len(items)))
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _read_part,
            fn_kwargs={"columns": self.columns, "check": self.check},
            batch_size=1,
            batch_format="numpy",
            num_cpus=0,
            compute=tasks,
        )
        blocks: Any = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_AHEAD)
        for block in blocks:
            if _REFUSED in block:
                raise InputError(str(block[_REFUSED][0]))
            yield block


def _read_part(item: Any, columns: Sequence[str] = FRAMES_AND_SPECTROGRAM, check: Check | None = None) -> Arrays:
    """The clips of one part that are wanted, or why it is refused: of an error, Ray hands on text amid its own."""
    position, uri, sha256, rows = json.loads(item["part"][0])
    unchecked = (uri, sha256) not in _checked
    try:
        table = boxes.read_table(uri, columns, sha256=sha256 if unchecked else None)
        if check is not None:
            check(table, uri)
    except CredentialsError:
        raise  # no fault of the part: the search goes on with another attempt
    except InputError as error:
        return {_REFUSED: np.array([str(error)])}
    _checked.add((uri, sha256))
    arrays = {name: boxes.column_to_numpy(table, name)[rows] for name in columns}
    return {"position": np.full(len(rows), position), **arrays}
