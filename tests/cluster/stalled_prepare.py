"""A driver of `prepare` whose only actor stops for good within a shard: `python -m` it, and kill it.

Arguments: manifest, out, clips per shard, and a folder with a named pipe `gate` that nobody writes to. Once the actor
stands still, the file `stalled` in that folder holds its process id and those of its children.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster import prepare as prepare_module
from cluster import shards
from cluster.session import connect
from tests.cluster.clip_files import CONFIG


class StalledWorker(prepare_module.PrepareWorker):
    """Waits for the gate after the first clip of its third shard."""

    folder = Path()
    begun = 0

    def work(self, shard: shards.Shard) -> Iterator[int | shards.Result]:
        """The shard's news and result."""
        self.begun += 1
        for step in super().work(shard):
            yield step
            if self.begun == 3:
                children = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
                ready = self.folder / "ready"
                ready.write_text(" ".join([str(os.getpid()), *children]))
                ready.rename(self.folder / "stalled")
                (self.folder / "gate").open()


if __name__ == "__main__":
    manifest, out, clips_per_shard, folder = sys.argv[1:]
    StalledWorker.folder = Path(folder)
    run = shards.run
    vars(shards).update(run=lambda worker, *rest, **settings: run(StalledWorker, *rest, **settings))
    vars(prepare_module).update(SHARD_CLIPS=int(clips_per_shard))
    with connect(num_cpus=1):
        prepare_module.prepare(manifest, out, CONFIG, progress=False)
