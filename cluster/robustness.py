"""How well a run's found network stands damaged clips: AUC against severity, and one stream missing.

The test clips are read again, damaged, for the one network that was chosen on dev before; nothing is chosen by what
comes out. Only its scores are kept, in parts, so that what was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from cluster import shards
from cluster.controls import AUDIO, VISUAL
from cluster.damaged_scores import DamagedScorer
from cluster.evaluation import METRICS_NAME, MIXED, network_uris, read_scores
from cluster.features import FeatureSource
from cluster.network_files import StoredNetwork, read_network
from cluster.prepare import gpu_share
from cluster.robustness_results import VERSION, robustness
from cluster.scoring import backbones_of
from data_prep import boxes, storage
from data_prep.damages import DAMAGES, damage_named
from data_prep.manifest import Row
from data_prep.storage import InputError
from stgs.backbones import fetch_weights

FOLDER, RESULT_NAME, PLAN_NAME = "robustness", "robustness.json", "plan.json"
# A clip is prepared some 40 times: so few of them are a few minutes of one core.
_CLIPS_PER_PART = 4
# Of the choice of clips.
_CHOICE_SEED = 0


def measure(
    run: str,
    source: FeatureSource,
    *,
    damages: Sequence[str] | None = None,
    clips: int | None = None,
    actors: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Score the test clips of an evaluated run with every damage and severity, with its found network.

    Needs a connection (`cluster.session.connect`). damages: names of `data_prep.damages.DAMAGES`; None: all. clips: at
    most so many of each data set, half of them real, drawn evenly from categories and methods; None: all. actors: as of
    `cluster.prepare.prepare`. threads: of the backbones; None: as the features were made. device: `cpu`, `cuda`, or
    `auto`: as of `cluster.extract.extract`. resamples, seed: of the bootstrap over subjects.

    Returns data set -> the content of evaluation/<data set>/robustness.json (docs/formats.md), and of all together as
    `mixed` where there are several. Parts that stand are kept.

    Raises InputError where the run was not evaluated, where other damages, clips or settings were begun, where the
    clips are gone, or for a damage that there is none of.
    """
    names = list(dict.fromkeys(DAMAGES if damages is None else damages))
    for name in names:
        damage_named(name)
    if clips is not None and clips < 2:
        raise InputError(f"robustness_clips is {clips}, but it must be at least 2, a real and a fake one.")
    if threads is None:
        threads = int(source.meta.extra["threads"])
    device = _resolved_device(device)
    run = storage.absolute(run)
    chosen = [_chosen(run, dataset, source, clips) for dataset in _datasets(run)]
    stored = read_network(network_uris(run)[chosen[0].network])
    fetch_weights(backbones_of(stored))
    how = {"damages": names, "device": device, "threads": threads}
    work = [part for each in chosen for part in each.begin(run, stored, source, how)]
    shards.run(
        DamagedScorer,
        {
            "network": stored.uri,
            "roots": source.manifest.roots,
            "names": names,
            "device": device,
            "threads": threads,
        },
        work,
        clips=sum(len(each.rows) for each in chosen),
        title="robustness",
        actors=actors,
        num_cpus=threads,
        num_gpus=gpu_share() if device == "cuda" else 0,
        progress=progress,
        way_out="ask for fewer threads",
    )
    return _write_results(run, chosen, names, source, {"resamples": resamples, "seed": seed})


def _resolved_device(device: str) -> str:
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    if device == "cuda" and not has_gpu:
        raise InputError("device is 'cuda', but the cluster has no GPU; give --device cpu.")
    return ("cuda" if has_gpu else "cpu") if device == "auto" else device


def _datasets(run: str) -> list[str]:
    """The data sets that the run was evaluated on."""
    folder = storage.join(run, "evaluation")
    ending = f"/{METRICS_NAME}"
    found = sorted(name.removesuffix(ending) for name in storage.list(folder) if name.endswith(ending))
    if not found:
        raise InputError(f"{run} was not evaluated; run 'stgs evaluate' on it without --robustness first.")
    return [name for name in found if name != MIXED] if len(found) > 1 else found


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The test clips of one data set that are damaged. table: their rows of scores.parquet; rows: of the manifest."""

    dataset: str
    network: str
    table: pa.Table
    rows: list[Row]

    def begin(
        self, run: str, stored: StoredNetwork, source: FeatureSource, how: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Say what is to be done here, once, and return the parts to make."""
        folder = _uri(run, self.dataset, FOLDER)
        plan = {
            "version": VERSION,
            "network": hashlib.sha256(storage.read(stored.uri)).hexdigest(),
            "features": source.meta.digest,
            "clips": [row["clip_id"] for row in self.rows],
            **how,
        }
        uri = storage.join(folder, PLAN_NAME)
        try:
            storage.create(uri, json.dumps(plan, indent=1).encode())
        except FileExistsError:
            standing = json.loads(storage.read(uri))
            other = [name for name in plan if standing.get(name) != plan[name]]
            if other:
                raise InputError(
                    f"{folder} was begun with other {', '.join(other)}; give those again, or delete this folder to "
                    "measure anew."
                ) from None
        return [
            {
                "target": storage.join(folder, boxes.shard_name(index)),
                "rows": self.rows[start : start + _CLIPS_PER_PART],
            }
            for index, start in enumerate(range(0, len(self.rows), _CLIPS_PER_PART))
        ]

    def read(self, run: str) -> dict[tuple[str, int], dict[str, float | str]]:
        """(damage, severity) -> clip_id -> score, or the reason why there is none."""
        found: dict[tuple[str, int], dict[str, float | str]] = {}
        for index in range(-(-len(self.rows) // _CLIPS_PER_PART)):
            part = boxes.read_table(storage.join(_uri(run, self.dataset, FOLDER), boxes.shard_name(index)))
            for row in part.to_pylist():
                score = row["reason"] if row["score"] is None else row["score"]
                found.setdefault((row["damage"], row["severity"]), {})[row["clip_id"]] = score
        return found


def _uri(run: str, dataset: str, *parts: str) -> str:
    return storage.join(run, "evaluation", dataset, *parts)


def _chosen(run: str, dataset: str, source: FeatureSource, clips: int | None) -> _Chosen:
    metrics_json = json.loads(storage.read(_uri(run, dataset, METRICS_NAME)))
    table = read_scores(run, dataset)
    manifest = {row["clip_id"]: row for row in source.manifest.rows}
    # An augmented clip is changed already.
    there = [
        index
        for index, clip_id in enumerate(table["clip_id"].to_pylist())
        if clip_id in manifest and manifest[clip_id]["augmentation"] is None
    ]
    if not there:
        raise InputError(f"the test clips of {dataset!r} are none of the manifest's own; give the run's --manifest.")
    kept = table.take(there)
    rows = [manifest[clip_id] for clip_id in kept["clip_id"].to_pylist()]
    if "method" not in kept.column_names:  # An earlier version wrote it.
        kept = kept.append_column("method", pa.array([row["method"] for row in rows], pa.string()))
    index = choose_clips(rows, clips)
    return _Chosen(dataset, metrics_json["found"], kept.take(index), [rows[place] for place in index])


def choose_clips(rows: Sequence[Row], count: int | None) -> list[int]:
    """Indices, ascending, of at most `count` rows, half of them real ones as far as there are, drawn from the clip_ids.

    Real clips and fakes each keep their shares of categories and methods, so that the AUC of those chosen estimates
    that of all.
    """
    if count is None or count >= len(rows):
        return list(range(len(rows)))
    of_label = [[index for index, row in enumerate(rows) if bool(row["label"]) == fake] for fake in (False, True)]
    reals = min(len(of_label[0]), max(count - len(of_label[1]), (count + 1) // 2))
    return sorted(_evenly(rows, of_label[0])[:reals] + _evenly(rows, of_label[1])[: count - reals])


def _evenly(rows: Sequence[Row], index: Sequence[int]) -> list[int]:
    """`index` in an order of which every beginning holds about the same share of each category and method."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place in sorted(index, key=lambda place: _drawn(rows[place]["clip_id"])):
        row = rows[place]
        groups.setdefault((row["category"], row["method"] or ""), []).append(place)
    spread = [
        ((rank + 0.5) / len(group), key, place) for key, group in groups.items() for rank, place in enumerate(group)
    ]
    return [place for *_, place in sorted(spread)]


def _drawn(clip_id: str) -> bytes:
    return hashlib.sha256(f"{_CHOICE_SEED}\0{clip_id}".encode()).digest()


def _write_results(
    run: str, chosen: Sequence[_Chosen], damages: Sequence[str], source: FeatureSource, bootstrap: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """robustness.json of each data set, and of all together, where the evaluation lies."""
    test = source.load("test")
    found = chosen[0].network
    uris = {
        name: uri for name, uri in network_uris(run).items() if name == found or name.split("/")[0] in (VISUAL, AUDIO)
    }
    networks = {name: read_network(uri) for name, uri in uris.items()}
    groups: dict[str, Sequence[_Chosen]] = {each.dataset: (each,) for each in chosen}
    if len(chosen) > 1:
        groups[MIXED] = chosen
    results = {}
    for dataset, members in groups.items():
        table = pa.concat_tables([each.table for each in members], promote_options="permissive")
        outcomes: dict[tuple[str, int], dict[str, float | str]] = {}
        for each in members:
            for step, of_clips in each.read(run).items():
                outcomes.setdefault(step, {}).update(of_clips)
        made = robustness(table, outcomes, damages, found, networks, test, bootstrap)
        results[dataset] = {"dataset": dataset, **made}
        data = json.dumps(results[dataset], indent=1, allow_nan=False).encode()
        storage.write(_uri(run, dataset, RESULT_NAME), data)
    return results
