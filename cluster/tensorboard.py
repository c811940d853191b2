"""The epochs of a search as TensorBoard event files: `tensorboard --logdir RUN/packs` shows every point by its id.

A search replaces a point's file when it saves a state, instead of adding files, which every listing of the run would
have to pass over. TensorBoard's fast reader of local files keeps the old one open: `--load_fast=false` follows a search
that runs.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

# The content's version as TensorBoard's readers expect it in a file's first event.
_FILE_VERSION = "brain.Event:2"
# Column of a row -> tag; TensorBoard draws the tags with a common first word side by side.
_LOSSES = {"train": "loss/train", "architecture": "loss/architecture", "dev": "loss/dev"}
_TAGS: dict[str, str] = {
    **{f"{part}_loss": tag for part, tag in _LOSSES.items()},
    **{f"{part}_accuracy": tag.replace("loss", "accuracy") for part, tag in _LOSSES.items()},
    "dev_auc": "auc/dev",
    **{
        f"{kind}_{name}": f"{kind}/{name}"
        for kind in ("entropy", "normalised_entropy", "gradient_norm", "decay_norm")
        for name in ("alpha", "beta", "gamma")
    },
    "learning_rate": "learning_rate",
    "temperature": "temperature",
}


def event_file(rows: Sequence[Mapping[str, Any]], *, start_time: float) -> bytes:
    """Rows of one member (`stgs.population.Row`) as the content of an event file, one event an epoch.

    Losses, accuracies, the AUC on dev, entropies, norms of gradients and decay, learning rate and temperature; step is
    the epoch. A value that is no number (a warm-up epoch has no architecture loss) is left out, and so are the
    probabilities, which curves.parquet holds.

    start_time: of the attempt, seconds since 1970. Rows carry no time, so an epoch's is start_time plus its number in
    seconds: the order is right on TensorBoard's axis of wall time, the distances mean nothing.
    """
    # Loads torch and drawing tools: a process that writes no event file need not wait for it.
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    events = [Event(wall_time=start_time, file_version=_FILE_VERSION)]
    for row in rows:
        epoch = int(row["epoch"])
        values = [
            Summary.Value(tag=tag, simple_value=row[column])
            for column, tag in _TAGS.items()
            if column in row and not math.isnan(row[column])
        ]
        events.append(Event(wall_time=start_time + epoch, step=epoch, summary=Summary(value=values)))
    return b"".join(_record(event.SerializeToString()) for event in events)


def _record(content: bytes) -> bytes:
    """Length, its checksum, content, its checksum: the framing of TFRecord files (little-endian)."""
    from tensorboardX.record_writer import masked_crc32c  # late, like the messages above

    length = struct.pack("<Q", len(content))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content))]
    )
