"""A search with the backbones in the loop, on the clips of a corpus: what it reads, how it is built, what it leaves."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch

from cluster.attempts import Attempt, Point, read_packs, read_result
from cluster.audits import corpus_audit
from cluster.clip_streams import RAW_CLIPS, ShardStream, SplitIndex, index_corpus, joined
from cluster.extract import absolute_paths
from cluster.features import FeatureSource
from cluster.network_files import ENDING, network_facts
from cluster.part_reader import RayReader
from cluster.settings import GENOTYPES
from data_prep import boxes, storage
from data_prep.manifest import Row, read_manifest
from data_prep.storage import InputError
from stgs.backbone_trainer import FinetuneConfig
from stgs.backbones import SENSES, TAPS, BackboneConfig, fetch_weights, weights_digest
from stgs.config import FoundConfig, SearchConfig
from stgs.finetune import FinetuneSearch
from stgs.found_finetune import FoundFinetune
from stgs.genotype import Genotype
from stgs.parallel import Workers
from stgs.population import PopulationSearch
from stgs.search_space import SearchSpace
from stgs.streamed import RawClips
from stgs.supernet import Member

BACKBONES_FOLDER, NETWORKS_FOLDER = "backbones", "networks"
# Settings of backbones and of their training that are no part of what identifies a run.
_HINTS = ("visual_weights", "audio_weights", "spectrogram_statistics", "micro_batch")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneOptions:
    """Backbones that a search trains: those of `stgs extract`, with the corpus's number of frames as their length.

    visual, audio: resnet18, resnet34, resnet50, or an own one. *_weights: where they start, `imagenet`, a file, or
    `random:SEED`. taps: which features. spectrogram_statistics: `clip`, or a JSON file with `mean` and `deviation` of
    each frequency. audio_segments: 0, or the number of frames, to cut each spectrogram into that many segments.
    """

    visual: str = "resnet34"
    visual_weights: str = "imagenet"
    audio: str = "resnet34"
    audio_weights: str = "imagenet"
    taps: tuple[str, ...] = TAPS
    spectrogram_statistics: str = "clip"
    audio_segments: int = 0


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """What a worker needs beside the search's settings.

    corpus: URI. files: sha256 of its parts, by name. splits: where its train and dev clips lie. backbones, finetune:
    what is trained, and how.
    """

    corpus: str
    files: Mapping[str, str]
    splits: Mapping[str, SplitIndex]
    backbones: BackboneConfig
    finetune: FinetuneConfig

    def streams(self, config: SearchConfig, workers: Workers) -> dict[str, ShardStream[RawClips]]:
        """The clips of `train` and `dev`."""
        return {split: self._stream(split, index, config, workers) for split, index in self.splits.items()}

    def fitted(self, config: FoundConfig, workers: Workers) -> ShardStream[RawClips]:
        """The clips that a found network's weights are fitted on."""
        index = self.splits["train"]
        if config.fit_on != "train":
            index = joined(index, self.splits["dev"])
        return self._stream(config.fit_on, index, config, workers)

    def _stream(
        self, split: str, index: SplitIndex, config: SearchConfig | FoundConfig, workers: Workers
    ) -> ShardStream[RawClips]:
        return ShardStream(
            split,
            index,
            batch_size=config.batch_size,
            data_seed=config.data_seed,
            shuffle_clips=self.finetune.shuffle_clips,
            reader=RayReader(self.corpus, self.files),
            stacking=RAW_CLIPS,
            workers=workers,
        )

    def found_training(
        self, genotype: Genotype, seed: int, config: FoundConfig, *, device: str, workers: Workers
    ) -> FoundFinetune:
        """The end-to-end training of one found network, on one of the workers, before its first epoch."""
        return FoundFinetune(
            genotype,
            seed,
            config=config,
            fitted=self.fitted(config, workers),
            dev=self._stream("dev", self.splits["dev"], config, workers),
            backbones=self.backbones,
            finetune=self.finetune,
            device=device,
            workers=workers,
        )

    def search(
        self,
        space: SearchSpace,
        config: SearchConfig,
        points: Sequence[Point],
        *,
        device: str,
        workers: Workers,
    ) -> FinetuneSearch:
        """The search of one point, on one of the workers.

        Raises:
            InputError: several points, or one with shuffled labels.
        """
        if any(point.shuffle_seed is not None for point in points):
            raise InputError(
                "shuffled labels are a control of cached features; leave shuffles out of a --finetune run."
            )
        streams = self.streams(config, workers)
        return FinetuneSearch(
            space,
            [Member(point.temperature, point.num_samples, point.seed) for point in points],
            estimator=points[0].estimator,
            config=config,
            train=streams["train"],
            dev=streams["dev"],
            backbones=self.backbones,
            finetune=self.finetune,
            device=device,
            workers=workers,
        )

    def keep(self, attempt: Attempt, search: PopulationSearch) -> dict[str, dict[str, str]]:
        """Save the backbones of the best epoch of `search`, which `search` made, with those of its attempt.

        Returns what the point's result says of them: sense -> path below the run, and sha256.
        """
        assert isinstance(search, FinetuneSearch)
        kept = {}
        for sense, state in search.best_backbones().items():
            path = f"{attempt.relative}/{BACKBONES_FOLDER}/{sense}.pt"
            sha256 = write_backbone(storage.join(attempt.run, path), state)
            kept[sense] = {"path": path, "sha256": sha256}
        return kept


@dataclass(frozen=True, slots=True)
class CorpusSource(FeatureSource):
    """A corpus with a manifest that splits it, in the place of features, which the backbones of `job` make."""

    job: FinetuneJob

    @property
    def features(self) -> dict[str, int]:
        """Feature name -> channels."""
        return self.job.backbones.features

    @property
    def length(self) -> int:
        """L, the frames of a clip."""
        return self.job.backbones.length

    @property
    def finetune(self) -> FinetuneJob:
        """What a worker needs."""
        return self.job

    def with_rows(self, rows: list[Row], protocol: Mapping[str, Any]) -> Self:
        """The same clips, split anew; the names of the corpus's clips are read again."""
        manifest = replace(self.manifest, rows=rows)
        splits = index_corpus(self.uri, self.meta, self.manifest_uri, manifest)
        return replace(self, manifest=manifest, protocol=protocol, job=replace(self.job, splits=splits))

    def audit(self) -> dict[str, Any] | None:
        """The audit that lies beside the corpus, if it is that of these clips."""
        return corpus_audit(self.uri, self.meta)

    def run_settings(self) -> dict[str, Any]:
        """What a run is made by beside the settings of its search; of files what is in them, not where they lie."""
        backbones, finetune = asdict(self.job.backbones), asdict(self.job.finetune)
        weights = {sense: weights_digest(backbones.pop(f"{sense}_weights")) for sense in SENSES}
        statistics = weights_digest(backbones.pop("spectrogram_statistics"))
        return {
            "backbones": {**backbones, "weights": weights, "spectrogram_statistics": statistics},
            "finetune": {name: value for name, value in finetune.items() if name not in _HINTS},
        }

    def run_hints(self) -> dict[str, Any]:
        """What may change between attempts: where files lie, and what changes no result beyond rounding."""
        given = {**asdict(self.job.backbones), **asdict(self.job.finetune)}
        return {name: given[name] for name in _HINTS}

    def largest_share(self, config: SearchConfig, workers: int) -> int:
        """Most clips that a worker gets in a batch, in any epoch. Raises InputError where a batch has none for it."""
        streams = self.job.streams(config, Workers(0, workers)).values()
        return max(stream.largest_share(config.epochs) for stream in streams)


def open_corpus(
    corpus_uri: str, manifest_uri: str, options: BackboneOptions, finetune: FinetuneConfig, *, is_split: bool = True
) -> CorpusSource:
    """A corpus, a manifest, and the backbones that a search trains on them; of the clips only the names are read.

    is_split: whether the manifest's splits count; without, the clips are to be split by `with_rows` before use.
    Raises InputError if either box is not what it should be, or if weights cannot be had.
    """
    uri, manifest_uri = storage.absolute(corpus_uri), storage.absolute(manifest_uri)
    corpus, manifest = boxes.read_meta(uri, boxes.CORPUS), read_manifest(manifest_uri)
    backbones = absolute_paths(BackboneConfig(**asdict(options), length=corpus.config["num_frames"]))
    backbones.check_spectrogram(corpus.config["spectrogram_frames"])
    fetch_weights(backbones)
    splits = index_corpus(uri, corpus, manifest_uri, manifest) if is_split else {}
    job = FinetuneJob(uri, corpus.files, splits, backbones, finetune)
    return CorpusSource(uri, corpus, manifest_uri, manifest, job)


def write_backbone(uri: str, state: Mapping[str, torch.Tensor]) -> str:
    """Write the weights of a backbone as `stgs extract` takes them. Returns their sha256."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return storage.write(uri, buffer.getvalue())


def backbone_uri(run: str, sense: str) -> str:
    """The file of a run with the weights of a backbone that it trained, as `stgs extract` takes them."""
    return storage.join(run, BACKBONES_FOLDER, f"{sense}.pt")


def publish_backbones(run: str, result: Mapping[str, Any]) -> None:
    """Copy the backbones of a point's result to where `stgs extract` is to read them, unless they stand there.

    result: of the one point of a run; without backbones, nothing happens.
    """
    for sense, kept in result.get("backbones", {}).items():
        target = backbone_uri(run, sense)
        if not storage.exists(target) or hashlib.sha256(storage.read(target)).hexdigest() != kept["sha256"]:
            storage.write(target, storage.read(storage.join(run, kept["path"])))


def require_trained_features(run: str, content: Mapping[str, Any], features: FeatureSource) -> None:
    """Refuse features that the backbones of a run did not make of its corpus.

    content: the run's settings (`cluster.runs.read_config`), which have `finetune`.
    """
    trained = _trained_weights(run, content)
    folder = NETWORKS_FOLDER if content.get("kind") == GENOTYPES else BACKBONES_FOLDER
    wanted = {name: value for name, value in content["backbones"].items() if name != "weights"}
    made = {name: features.meta.config.get(name) for name in wanted}
    # The box's settings say where the statistics lay; what was in them stands beside.
    made["spectrogram_statistics"] = features.meta.extra.get("spectrogram_statistics")
    if (
        features.meta.parent != content["features_digest"]
        or features.meta.extra["weights"] not in trained
        or made != wanted
    ):
        raise InputError(
            f"{features.uri} was not made by the backbones that {run} trained; run 'stgs extract' on its corpus with "
            f"the weights in {storage.join(run, folder)} and the backbones and taps of the run."
        )


def _trained_weights(run: str, content: Mapping[str, Any]) -> list[dict[str, str]]:
    """sha256, by sense, of the backbones that a run's search trained, or those of each of its networks, which were
    trained end to end.
    """
    if content.get("kind") == GENOTYPES:
        folder = storage.join(run, NETWORKS_FOLDER)
        files = [storage.join(folder, name) for name in storage.list(folder) if name.endswith(ENDING)]
        if not files:
            raise InputError(f"{run} has no trained networks yet; run 'stgs train' on it first.")
        return [network_facts(storage.read(file))["provenance"]["weights"] for file in files]
    results = [read_result(run, point.id) for pack in read_packs(run) for point in pack.points]
    if not results or results[0] is None:
        raise InputError(f"{run} has no trained backbones yet; run 'stgs search --resume' on it first.")
    return [{sense: kept["sha256"] for sense, kept in results[0]["backbones"].items()}]
