"""The one reading of the test clips: scores of every trained network, and what they say.

Weights, epochs, thresholds, the found network and the best single sense are chosen before, from train and dev. The
result is committed by exclusive creation; a second evaluation of the same networks returns it, and one of other
networks is refused, because test is read once per run and data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cluster.controls import CONTROLS, GRID, arm_uri
from cluster.evaluation_metrics import VERSION, TestClips, measure, require_datasets, score_metrics, wrong_clips
from cluster.evaluation_metrics import choose as choose
from cluster.features import FeatureSource, Split
from cluster.found_loop import StoredNetwork, read_network
from cluster.gathering import GRID_NAME, read_grid
from cluster.network_files import ENDING
from cluster.network_scores import NetworkScorer, p_fake
from cluster.trained_backbones import is_end_to_end, require_made_by
from data_prep import boxes, storage
from data_prep.storage import InputError
from stgs.resampling import Floats

Progress = Callable[[int], object]
# The name under which all data sets of a test that has several are read together.
MIXED = "mixed"
METRICS_NAME, SCORES_NAME = "metrics.json", "scores.parquet"
# Where metrics.json says which scores it was made of.
SCORES_DIGEST = "scores_digest"


def network_uris(run: str) -> dict[str, str]:
    """Name (`arm/id`) -> file of every trained network of a run. Raises InputError if there is none in the grid."""
    found = {}
    for arm in (GRID, *CONTROLS):
        folder = storage.join(arm_uri(run, arm), "networks")
        for file in storage.list(folder):
            if file.endswith(ENDING):  # a network that was trained end to end has its backbones beside it
                found[f"{arm}/{file.removesuffix(ENDING)}"] = storage.join(folder, file)
    if not any(name.startswith(f"{GRID}/") for name in found):
        raise InputError(f"{run} has no trained networks; run 'stgs train' on it first.")
    return found


def evaluate_run(
    run: str, source: FeatureSource, *, resamples: int = 2000, seed: int = 0, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluate every network on the test clips of every data set, and, where there are several, of all together.

    resamples, seed: of the bootstrap over subjects. progress: called with 1 after every network.
    Returns data set -> the content of evaluation/<data set>/metrics.json (docs/formats.md); all data sets together are
    called `mixed`. A metrics.json of an earlier version, or of another bootstrap, is made anew from the scores that
    stand beside it.

    Raises InputError where the networks were made from other features, or where test was read for other networks.
    """
    uris = network_uris(run)
    digests = {name: hashlib.sha256(storage.read(uri)).hexdigest() for name, uri in uris.items()}
    made = {
        "networks": boxes.json_digest(digests),
        "features": source.meta.digest,
        "splits": source.split_digest(),
    }
    evaluation = _Evaluation(run, source, uris, made, {"resamples": resamples, "seed": seed}, progress)
    results = evaluation.results()
    _add_to_grid(run, results)
    return results


def score_clips(stored: StoredNetwork, clips: Split) -> Floats:
    """P(fake) of clips, [N], with a stored network; a clip's does not depend on the others."""
    return p_fake(NetworkScorer(stored).logits(clips.columns))


def evaluate_network(
    stored: StoredNetwork, source: FeatureSource, split: str, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Metrics of one network on a split of any clips, by data set, and of all together; nothing is written.

    Returns data set -> dataset, split, clips, fake, subjects, bootstrap, wrong, and `network` with its metrics
    (`score_metrics`). Raises InputError where other backbones, or other settings of the corpus, made the features.
    """
    _require_same_making(stored, source)
    clips = source.load(split)
    table = _scores_table(clips, _methods(source), {"network": score_clips(stored, clips)})
    names = sorted(set(clips.clips["dataset"]))
    require_datasets(names, MIXED)
    threshold = stored.facts["metrics"]["threshold"]
    results = {}
    for name in [*names, MIXED] if len(names) > 1 else names:
        rows = table if name == MIXED else table.filter(pa.compute.equal(table["dataset"], name))
        test = TestClips.of(rows, seed=seed, resamples=resamples)
        scores = rows["network"].to_numpy()
        results[name] = {
            "dataset": name,
            "split": split,
            "clips": len(test.labels),
            "fake": int(test.labels.sum()),
            "subjects": test.subjects,
            "bootstrap": {"seed": seed, "resamples": resamples},
            "network": score_metrics(scores, test, threshold),
            "wrong": wrong_clips(scores, test, threshold),
        }
    return results


def _require_same_making(stored: StoredNetwork, source: FeatureSource) -> None:
    if is_end_to_end(stored):
        require_made_by(stored, source, same_clips=False)
        return
    made = stored.facts["provenance"]
    there = {
        "backbones": source.meta.config,
        "weights": source.meta.extra["weights"],
        "corpus": source.meta.extra["corpus_config"],
    }
    for part, value in there.items():
        own = made[part]
        # A setting that one of them does not name is newer than it, and its default is how things were.
        other = [name for name in value if name in own and _as_json(own[name]) != _as_json(value[name])]
        if other:
            name = other[0]
            raise InputError(
                f"{source.uri} was made with {part} {name} = {_as_json(value[name])}, but {stored.uri} was trained "
                f"with {_as_json(own[name])}; prepare and extract these clips as the network's were."
            )


def _as_json(value: Any) -> str:
    """So that a tuple equals the list that it became in a file."""
    return json.dumps(value)


class _Evaluation:
    """One run and its test clips. made: digests of networks, features and splits. bootstrap: its seed and resamples."""

    def __init__(
        self,
        run: str,
        source: FeatureSource,
        uris: Mapping[str, str],
        made: Mapping[str, str],
        bootstrap: Mapping[str, int],
        progress: Progress | None,
    ) -> None:
        self.run, self.source, self.uris, self.made = run, source, uris, dict(made)
        self.bootstrap, self.progress = bootstrap, progress
        self._networks: dict[str, StoredNetwork] = {}

    def results(self) -> dict[str, dict[str, Any]]:
        """Data set -> metrics.json; what stands is returned as it is."""
        names = sorted({row["dataset"] for row in self.source.manifest.rows if row["split"] == "test"})
        test = None
        # Without any name, loading says that test is empty.
        if not names or any(self._standing(name) is None for name in names):
            test = self.source.load("test")
            names = sorted(set(test.clips["dataset"]))
        require_datasets(names, MIXED)
        results = {name: self._result(name, lambda name=name: self._score(name, test)) for name in names}  # type: ignore[misc]
        if len(names) > 1:
            results[MIXED] = self._result(MIXED, lambda: self._pooled(names))
        return results

    def _result(self, name: str, scores: Callable[[], pa.Table]) -> dict[str, Any]:
        """What stands of a data set, or what its scores say."""
        standing = self._standing(name)
        if standing is not None:
            if standing.get("version") == VERSION and standing["bootstrap"] == self.bootstrap:
                return standing
            # Of an earlier version, or of other resamples: the same scores of the same networks.
            content = self._measured(name, self._scores(name), standing.get(SCORES_DIGEST))
            storage.write(self._uri(name, METRICS_NAME), _json_bytes(content))
            return content
        table = scores()
        data = boxes.table_bytes(table)
        content = self._measured(name, table, hashlib.sha256(data).hexdigest())
        if (first := self._standing(name)) is not None:  # made meanwhile, and its scores are none to overwrite
            return first
        uri = self._uri(name, SCORES_NAME)
        storage.write(uri, data)
        try:
            storage.create(self._uri(name, METRICS_NAME), _json_bytes(content))
        except FileExistsError:  # another evaluation of the same networks was first
            return self._standing(name) or content
        if storage.read(uri) != data:  # by another evaluation, which will find this one's metrics
            storage.write(uri, data)
        return content

    def _measured(self, name: str, table: pa.Table, scores_digest: str | None) -> dict[str, Any]:
        """What metrics.json says. scores_digest: sha256 of the scores' file, None for a file of earlier versions."""
        facts = {network: stored.facts for network, stored in self._read_networks().items()}
        own = {"dataset": name, "digests": self.made, SCORES_DIGEST: scores_digest}
        return {**own, **measure(table, facts, **self.bootstrap)}

    def _uri(self, dataset: str, *parts: str) -> str:
        return storage.join(self.run, "evaluation", dataset, *parts)

    def _standing(self, dataset: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(storage.read(self._uri(dataset, METRICS_NAME)))
        except FileNotFoundError:
            return None
        if content["digests"] != self.made:
            raise InputError(
                f"{self.run} has read the test clips of {dataset!r} already, for other networks, features or splits; "
                "train into a new run, since test is read once."
            )
        return content

    def _scores(self, dataset: str) -> pa.Table:
        """The scores that stand of a data set; those of earlier versions lack the clips' methods."""
        table = read_scores(self.run, dataset)
        if "method" not in table.column_names:
            methods = _methods(self.source)
            table = table.append_column("method", pa.array([methods[name] for name in table["clip_id"].to_pylist()]))
        return table

    def _pooled(self, names: Sequence[str]) -> pa.Table:
        # Of columns that hold nothing in one data set, the other one says the type.
        return pa.concat_tables([self._scores(name) for name in names], promote_options="permissive")

    def _score(self, dataset: str, test: Split | None) -> pa.Table:
        assert test is not None  # it was read, since this data set has no metrics
        part = _subset(test, [index for index, name in enumerate(test.clips["dataset"]) if name == dataset])
        scores = {}
        for name, stored in self._read_networks().items():
            scores[name] = score_clips(stored, part)
            if self.progress is not None:
                self.progress(1)
        return _scores_table(part, _methods(self.source), scores)

    def _read_networks(self) -> Mapping[str, StoredNetwork]:
        if not self._networks:
            self._networks = {name: self._checked(read_network(uri)) for name, uri in self.uris.items()}
        return self._networks

    def _checked(self, stored: StoredNetwork) -> StoredNetwork:
        expected = {"features_digest": self.made["features"], "split_digest": self.made["splits"]}
        if is_end_to_end(stored):  # which had no features yet when it was trained
            require_made_by(stored, self.source)
            del expected["features_digest"]
        for key, there in expected.items():
            trained = stored.facts["provenance"][key]
            if trained != there:
                raise InputError(
                    f"{stored.uri} was trained with {key} {trained}, but these features have {there}; give the "
                    "--features and --manifest of its training."
                )
        return stored


def read_scores(run: str, dataset: str) -> pa.Table:
    """scores.parquet of a data set that was evaluated.

    Raises InputError where it is missing, or is not the file that metrics.json was made of.
    """
    folder = storage.join(run, "evaluation", dataset)
    uri = storage.join(folder, SCORES_NAME)
    expected = json.loads(storage.read(storage.join(folder, METRICS_NAME))).get(SCORES_DIGEST)
    try:
        data = storage.read(uri)
    except FileNotFoundError:
        data = None
    if data is None or expected not in (None, hashlib.sha256(data).hexdigest()):
        what = "is missing, although" if data is None else "is another file than"
        raise InputError(
            f"{uri} {what} the metrics that were made of it are there; train into a new run, since test is read once."
        )
    return boxes.read_table(uri)


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode()


def _methods(source: FeatureSource) -> dict[str, str | None]:
    return {row["clip_id"]: row["method"] for row in source.manifest.rows}


def _subset(split: Split, index: Sequence[int]) -> Split:
    where = np.asarray(index)
    columns = {name: column[where] for name, column in split.columns.items()}
    clips = {name: [values[i] for i in index] for name, values in split.clips.items()}
    return Split(columns, split.labels[where], clips)


def _scores_table(clips: Split, methods: Mapping[str, str | None], scores: Mapping[str, Floats]) -> pa.Table:
    """scores.parquet: who the clips are, their labels, and a column of scores for every network."""
    columns: dict[str, Any] = {name: list(values) for name, values in clips.clips.items()}
    own = pa.array([methods[name] for name in columns["clip_id"]], pa.string())
    return pa.table({**columns, "method": own, "label": clips.labels, **scores})


def _add_to_grid(run: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the AUC of the points' trained networks on dev and test into grid.parquet; null where there is none."""
    if not storage.exists(storage.join(run, GRID_NAME)):  # a run of given genotypes
        return
    rows = read_grid(run)
    for row in rows:
        for dataset, result in results.items():
            network = result["networks"].get(f"{GRID}/{row['id']}")
            row["network_dev_auc"] = network["dev_auc"] if network else None
            for bound in ("value", "low", "high"):
                row[f"test_auc_{bound}.{dataset}"] = network["auc"][bound] if network else None
    storage.write(storage.join(run, GRID_NAME), boxes.table_bytes(pa.Table.from_pylist(rows)))
