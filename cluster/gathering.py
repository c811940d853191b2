"""The results of a run, gathered from its points: grid.parquet, which can be rebuilt any time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.attempts import Pack, Point, point_uri, read_failure, read_result, write_failure
from cluster.board import way_on
from cluster.engines import Failures
from cluster.finetune import publish_backbones
from cluster.packing import side_by_side
from cluster.stopping import Stop
from data_prep import boxes, storage
from data_prep.storage import InputError

GRID_NAME = "grid.parquet"
# Columns of it that an evaluation adds, by what they begin with.
_EVALUATED = ("network_dev_auc", "test_auc_")
# Files of a point.
RESULT, FAILURE, _GENOTYPE = "result.json", "failed.json", "genotype.json"
# Once a command is asked to stop, a storage that does not answer is waited for so long, and no longer.
_STOPPED_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class GridResult:
    """rows: one a point with a result (the columns of grid.parquet). failed: id -> reason of others. unfinished: points
    with neither. stop: why they are not finished, None where all are.
    """

    run: str
    rows: list[dict[str, Any]]
    failed: dict[str, str]
    unfinished: int = 0
    stop: Stop | None = None

    def stopped(self) -> str:
        """A sentence that says why the search ended early, and how to go on. It must have a `stop`."""
        assert self.stop is not None
        points = len(self.rows) + len(self.failed) + self.unfinished
        return (
            f"stopped early: {self.stop.reason}; {len(self.rows)} of {points} points have a result, go on with "
            f"{way_on(self.stop)}."
        )


def gather(
    run: str, packs: Sequence[Pack], errors: Failures, *, hurried: Callable[[], bool] = lambda: False
) -> GridResult:
    """Collect the results of a run: write grid.parquet, and the points' genotype.json and the trained backbones where
    they are missing. All can be rebuilt any time, and what an evaluation added to grid.parquet stays.

    errors: why packs failed just now. A point without a result that no file calls failed, either, is left out: it has
    not been searched yet. hurried: says, between two phases, whether a storage that does not answer is waited for no
    longer than half a minute.
    """
    held = [(pack, point) for pack in packs for point in pack.points]
    with _patience(hurried):
        paths = set(storage.list(storage.join(run, "points")))
    with _patience(hurried):
        found = side_by_side(lambda pair: _read_point(run, pair[1], paths), held)
    results = [(pack, point, result) for (pack, point), (result, _) in zip(held, found, strict=True) if result]
    with _patience(hurried):
        failed = _failed(run, held, found, errors)
    with _patience(hurried):
        for _, _, result in results:
            publish_backbones(run, result)
        bare = [(point, result) for _, point, result in results if f"{point.id}/{_GENOTYPE}" not in paths]
        side_by_side(lambda pair: _write_genotype(run, *pair), bare)
        evaluated = _evaluated(run) if results else {}
        rows = even([_row(pack, point, result) | evaluated.get(point.id, {}) for pack, point, result in results])
        if rows:
            storage.write(storage.join(run, GRID_NAME), boxes.table_bytes(pa.Table.from_pylist(rows)))
    return GridResult(run, rows, failed)


def _patience(hurried: Callable[[], bool]) -> contextlib.AbstractContextManager[None]:
    return storage.patient(_STOPPED_PATIENCE_S) if hurried() else contextlib.nullcontext()


def _read_point(run: str, point: Point, paths: Collection[str]) -> tuple[dict[str, Any] | None, str | None]:
    """Result and failure of a point. paths: those that are there, below points/."""
    if f"{point.id}/{RESULT}" in paths:
        return read_result(run, point.id), None
    return None, read_failure(run, point.id) if f"{point.id}/{FAILURE}" in paths else None


def _failed(
    run: str,
    held: Sequence[tuple[Pack, Point]],
    found: Sequence[tuple[dict[str, Any] | None, str | None]],
    errors: Failures,
) -> dict[str, str]:
    """Why points failed, by id; those that only `errors` knows get their file."""
    failed: dict[str, str] = {}
    untold = []
    for (pack, point), (result, reason) in zip(held, found, strict=True):
        told = errors.get((run, pack.name)) if reason is None else reason
        if result is None and told is not None:
            failed[point.id] = told
            if reason is None:
                untold.append(point.id)
    side_by_side(lambda point_id: write_failure(run, point_id, failed[point_id]), untold)
    return failed


def _write_genotype(run: str, point: Point, result: Mapping[str, Any]) -> None:
    storage.write(point_uri(run, point.id, _GENOTYPE), (json.dumps(result["genotype"]) + "\n").encode())


def _row(pack: Pack, point: Point, result: Mapping[str, Any]) -> dict[str, Any]:
    """A point's line of grid.parquet."""
    return {
        "id": point.id,
        **point.facts(),
        "genotype": json.dumps(result["genotype"]),
        "parameters": result["parameters"],
        "macs": result["macs"],
        **result["metrics"],
        "seconds": result["seconds"],
        "device_seconds": result["device_seconds"],
        # Results of runs that are older than the candidates have none.
        "candidates": json.dumps(result.get("candidates", [])),
        "pack": pack.name,
        "curves": result["curves"]["path"],
        "curves_member": result["curves"]["member"],
    }


def _evaluated(run: str) -> dict[str, dict[str, Any]]:
    """What an evaluation added to the rows of the grid.parquet that stands, by point."""
    try:
        rows = boxes.read_table(storage.join(run, GRID_NAME)).to_pylist()
    except (FileNotFoundError, InputError):  # a damaged one is made anew; its evaluation adds to it again
        return {}
    return {row["id"]: {name: row[name] for name in row if name.startswith(_EVALUATED)} for row in rows}


def even(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with every column that one of them has, null where it has none."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def read_grid(run: str) -> list[dict[str, Any]]:
    """The rows of a run's grid.parquet. Raises InputError if the run has none yet."""
    try:
        return boxes.read_table(storage.join(run, GRID_NAME)).to_pylist()
    except FileNotFoundError:
        raise InputError(f"{run} has no results yet; run 'stgs grid --resume' on it first.") from None
