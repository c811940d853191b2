"""Searches of a protocol: each part a run of its own under RUN/parts/<part>, driven together from one command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.devices import chosen_device
from cluster.dry_run import DryRun, dry_run
from cluster.engines_train import WorkerGroup
from cluster.features import FeatureSource
from cluster.gathering import GRID_NAME, GridResult, even
from cluster.grid import Whole, run_grids, run_singles
from cluster.limits import RunLimits
from cluster.packing import share_devices
from cluster.protocols import ProtocolConfig, own_split, part_uri, part_uris, parts_of, protocol_settings, resplit
from cluster.settings import GridConfig
from data_prep import boxes, storage
from data_prep.storage import NoSpaceError, UnreachableError


@dataclass(frozen=True, slots=True)
class ProtocolRun:
    """A run with the clips of its parts. source: its own, split anew where it has no parts and the protocol says so.

    parts: name -> clips; none where the run itself is searched.
    """

    out: str
    source: FeatureSource
    parts: Mapping[str, FeatureSource]

    @property
    def sources(self) -> Mapping[str, FeatureSource]:
        """Directory -> clips of everything that is searched."""
        if not self.parts:
            return {self.out: self.source}
        return {part_uri(self.out, name): clips for name, clips in self.parts.items()}

    def search_grids(
        self,
        config: GridConfig,
        *,
        resume: bool,
        limits: RunLimits,
        started: float | None = None,
        progress: bool = True,
    ) -> dict[str, GridResult]:
        """Search the grid on every part, all packs side by side within the same limits (`cluster.grid.run_grids`).

        Returns the results by part, of a run without parts its own under the empty name; raises as `run_grids` does.
        """
        settings = replace(config.settings, device=chosen_device(config.settings.device))
        shared = share_devices(config, settings, len(self.parts))
        found = run_grids(
            dict.fromkeys(self.sources, shared),
            self.sources,
            resume=resume,
            limits=limits,
            started=started,
            progress=progress,
            whole=self._whole(config),
        )
        return self._named(found)

    def search_singles(
        self,
        config: GridConfig,
        *,
        workers: WorkerGroup,
        resume: bool,
        limits: RunLimits,
        started: float | None = None,
        progress: bool = True,
    ) -> dict[str, GridResult]:
        """Search the one point of `config` in Ray Train workers, on one part after another; else as `search_grids`."""
        found = run_singles(
            dict.fromkeys(self.sources, config),
            self.sources,
            workers=workers,
            resume=resume,
            limits=limits,
            started=started,
            progress=progress,
            whole=self._whole(config),
        )
        return self._named(found)

    def dry_run(self, config: GridConfig, *, workers: int = 1, in_turn: bool = False) -> DryRun:
        """What the searches would need (`cluster.dry_run.dry_run`). in_turn: one part after another."""
        return dry_run(config, self.parts or self.source, workers=workers, in_turn=in_turn)

    def _whole(self, config: GridConfig) -> Whole | None:
        return Whole(self.out, config, self.source) if self.parts else None

    def _named(self, found: Mapping[str, GridResult]) -> dict[str, GridResult]:
        if not self.parts:
            return {"": found[self.out]}
        results = {name: found[part_uri(self.out, name)] for name in self.parts}
        try:
            gather_parts(storage.absolute(self.out))
        except (UnreachableError, NoSpaceError):
            # The parts' results stand, or say themselves why not: a resume gathers them.
            if all(result.stop is None for result in results.values()):
                raise
        return results


def open_protocol(out: str, config: ProtocolConfig, source: FeatureSource) -> ProtocolRun:
    """The run at `out` with its parts. Raises InputError where the protocol cannot split the clips."""
    parts, own = parts_of(config, source.manifest), own_split(config)
    settings = protocol_settings(config, parts)
    if own is not None:
        return ProtocolRun(out, resplit(source, own, settings), {})
    clips = {name: resplit(source, split) for name, split in parts.items()}
    return ProtocolRun(out, replace(source, protocol=settings), clips)


def joined(out: str, results: Mapping[str, GridResult]) -> GridResult:
    """The results of parts, by name, as those of one run: rows with their `part`, failures as `part/id`."""
    rows = [{"part": name, **row} for name, result in results.items() for row in result.rows]
    failed = {f"{name}/{point}": why for name, result in results.items() for point, why in result.failed.items()}
    unfinished = sum(result.unfinished for result in results.values())
    stop = next((result.stop for result in results.values() if result.stop is not None), None)
    return GridResult(out, rows, failed, unfinished, stop)


def gather_parts(run: str) -> list[dict[str, Any]]:
    """Write RUN/grid.parquet from those of its parts, with a column `part`, and return its rows; none, and no file,
    where no part has any. Raises InputError if there is no run.
    """
    rows: list[dict[str, Any]] = []
    for name, uri in part_uris(run).items():
        try:
            own = boxes.read_table(storage.join(uri, GRID_NAME)).to_pylist()
        except FileNotFoundError:
            continue
        rows += [{"part": name, **row} for row in own]
    if rows:
        # Parts may be evaluated on other data sets.
        storage.write(storage.join(run, GRID_NAME), boxes.table_bytes(pa.Table.from_pylist(even(rows))))
    return rows
