"""Is the demo corpus what its docstring says? A linear probe on each sense, and an audit of the files for shortcuts.

    OMP_NUM_THREADS=1 python tests/bench/probe_synthetic.py --num-subjects 40 --test-subjects 8 --dev-subjects 8

Probe: each clip is prepared (faces found by MTCNN), the features of untrained, frozen ResNets are taken, and their mean
and maximum over the 8 positions go, standardised, into a ridge classifier, judged on subjects that it has not seen (8
folds). Expected of a usable corpus: each sense's probe on the clip label is over 0.7, but below 5/6, the most that one
sense can reach; both senses together are clearly above.

Audit: a ridge classifier on facts of the files (and their squares) that say nothing about faces or voices; p is the
share of permutations of the categories within subjects whose AUC is at least as high. p must be above 0.01.
"""

import argparse
import math
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tqdm import tqdm

from data_prep import storage, synthetic
from data_prep.clip import ClipPreparer, PrepareConfig, Reject
from data_prep.manifest import Row, resolve_path
from stgs.backbones import BackboneConfig, FeatureExtractor

QUESTIONS = {"is the video fake": "CD", "is the sound fake": "BD", "is the clip fake": "BCD"}
FOLDS = 8
PERMUTATIONS = 999


class Prober:
    """One process: prepares clips and measures them."""

    def __init__(self, backbone: str) -> None:
        torch.set_num_threads(1)
        self.prepare = ClipPreparer(PrepareConfig())
        self.extract = FeatureExtractor(
            BackboneConfig(visual=backbone, visual_weights="random:0", audio=backbone, audio_weights="random:1")
        )

    def __call__(self, row: Row, roots: dict[str, str]) -> dict[str, Any]:
        facts = file_facts(resolve_path(roots, row["video_path"]))
        started = time.process_time()
        clip = self.prepare(row, roots)
        if isinstance(clip, Reject):
            return {"reject": f"{clip.clip_id}: {clip.reason}: {clip.detail}"}
        prepared = time.process_time()
        with torch.no_grad():
            features = self.extract(torch.tensor(clip["frames"])[None], torch.tensor(clip["spectrogram"])[None])
        facts["leading_silence_s"] = clip["leading_silence_s"]
        return {
            "visual": pooled(features, "visual."),
            "audio": pooled(features, "audio."),
            "facts": facts,
            "faces": int((clip["face_score"] >= 0.9).sum()),
            "prepare_s": prepared - started,
            "extract_s": time.process_time() - prepared,
        }


def pooled(features: dict[str, torch.Tensor], sense: str) -> np.ndarray:
    """One vector per clip: the features of one sense, sequences by their mean and maximum over positions."""
    parts = []
    for name, tensor in features.items():
        if name.startswith(sense):
            value = tensor[0].float()
            parts += [value] if value.ndim == 1 else [value.mean(dim=1), value.amax(dim=1)]
    return torch.cat(parts).numpy()


def file_facts(uri: str) -> dict[str, float]:
    """What a file shows to someone who neither looks nor listens."""
    facts: dict[str, float] = {"file_bytes": len(storage.read(uri))}
    with av.open(uri) as container:
        facts["streams"] = len(container.streams)
        facts["duration_s"] = (container.duration or 0) / 1e6
        sizes = dict.fromkeys(range(len(container.streams)), 0)
        for packet in container.demux():
            sizes[packet.stream_index] += packet.size
        for stream in container.streams:
            facts[f"{stream.type}_bytes"] = sizes[stream.index]
            facts[f"{stream.type}_bit_rate"] = float(stream.bit_rate or 0)
            facts[f"{stream.type}_duration_s"] = float((stream.duration or 0) * (stream.time_base or 0))
    with av.open(uri) as container:
        facts["video_frames"] = sum(1 for _ in container.decode(video=0))
    with av.open(uri) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).astype(np.float64)
    facts["audio_samples"] = len(sound)
    facts["rms_dbfs"] = 20 * math.log10(math.sqrt((sound**2).mean()))
    facts["peak_dbfs"] = 20 * math.log10(np.abs(sound).max())
    return facts


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of (positive, negative) pairs in order; ties count half."""
    differences = scores[labels][:, None] - scores[~labels][None, :]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())


def fold_scorers(
    vectors: np.ndarray, fold: np.ndarray, ridge: float
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per fold: which clips train, which are judged, and the matrix from training targets to scores."""
    scorers = []
    for number in range(FOLDS):
        train, judged = fold != number, fold == number
        deviation = vectors[train].std(axis=0)
        scaled = (vectors - vectors[train].mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0)
        scaled /= math.sqrt(vectors.shape[1])
        kernel = scaled[train] @ scaled[train].T
        solver = np.linalg.inv(kernel + ridge * np.eye(len(kernel)))
        scorers.append((train, judged, scaled[judged] @ scaled[train].T @ solver))
    return scorers


def cross_validated_auc(scorers: list[tuple[np.ndarray, np.ndarray, np.ndarray]], labels: np.ndarray) -> float:
    """Mean over folds of the AUC on the subjects that were left out."""
    values = []
    for train, judged, matrix in scorers:
        share = labels[train].mean()
        values.append(auc(labels[judged], matrix @ np.where(labels[train], 1 - share, -share)))
    return float(np.mean(values))


def standardised(vectors: np.ndarray) -> np.ndarray:
    deviation = vectors.std(axis=0)
    return (vectors - vectors.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0)


def permutation_p(
    vectors: np.ndarray, categories: np.ndarray, subjects: np.ndarray, fold: np.ndarray, fakes: str
) -> tuple[float, float]:
    """(AUC of a classifier on the facts and their squares, its p value)."""
    vectors = standardised(vectors)
    scorers = fold_scorers(np.hstack([vectors, vectors**2]), fold, 0.1)
    observed = cross_validated_auc(scorers, np.isin(categories, list(fakes)))
    rng = np.random.default_rng(0)
    order = np.argsort(subjects, kind="stable")
    at_least = 0
    for _ in range(PERMUTATIONS):
        shuffled = categories.copy()
        for subject in np.unique(subjects):
            own = order[subjects[order] == subject]
            shuffled[own] = categories[rng.permutation(own)]
        at_least += cross_validated_auc(scorers, np.isin(shuffled, list(fakes))) >= observed
    return observed, (1 + at_least) / (1 + PERMUTATIONS)


def report_probe(visual: np.ndarray, audio: np.ndarray, categories: np.ndarray, fold: np.ndarray, ridge: float) -> None:
    # Each sense weighs the same in the joint probe, however many features it has.
    both = np.hstack(
        [standardised(visual) * math.sqrt(audio.shape[1]), standardised(audio) * math.sqrt(visual.shape[1])]
    )
    scorers = {"visual": fold_scorers(visual, fold, ridge), "audio": fold_scorers(audio, fold, ridge)}
    print(f"{'AUC':20s}   visual    audio     both")
    for question, fakes in QUESTIONS.items():
        labels = np.isin(categories, list(fakes))
        values = [cross_validated_auc(scorers[sense], labels) for sense in ("visual", "audio")]
        values.append(joint_auc(both, audio.shape[1] * visual.shape[1], labels, fold, ridge))
        print(f"{question:20s} " + " ".join(f"{value:8.3f}" for value in values))


def joint_auc(both: np.ndarray, weight: int, labels: np.ndarray, fold: np.ndarray, ridge: float) -> float:
    """Like cross_validated_auc, on vectors that are standardised and weighted already."""
    kernel = both @ both.T / (2 * weight)
    values = []
    for number in range(FOLDS):
        train, judged = fold != number, fold == number
        share = labels[train].mean()
        targets = np.where(labels[train], 1 - share, -share)
        weights = np.linalg.solve(kernel[np.ix_(train, train)] + ridge * np.eye(train.sum()), targets)
        values.append(auc(labels[judged], kernel[np.ix_(judged, train)] @ weights))
    return float(np.mean(values))


def report_audit(facts: list[dict[str, float]], categories: np.ndarray, subjects: np.ndarray, fold: np.ndarray) -> None:
    names = sorted(facts[0])
    table = np.array([[fact[name] for name in names] for fact in facts])
    print("\nfacts of the files: mean (deviation)")
    for column, name in zip(table.T, names, strict=True):
        cells = [f"{column[categories == c].mean():.6g} ({column[categories == c].std():.2g})" for c in "ABCD"]
        print(f"  {name:18s} " + "  ".join(f"{cell:>20s}" for cell in cells))
    for question, fakes in QUESTIONS.items():
        value, p = permutation_p(table, categories, subjects, fold, fakes)
        print(f"{question} by these facts: AUC {value:.3f}, p {p:.3f}" + ("" if p > 0.01 else "  <-- a shortcut"))


_PROBER: list[Prober] = []  # this process's


def _measure(job: tuple[Row, dict[str, str], str]) -> dict[str, Any]:
    row, roots, backbone = job
    if not _PROBER:
        _PROBER.append(Prober(backbone))
    return _PROBER[0](row, roots)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("num_subjects", "test_subjects", "dev_subjects", "seed", "visual_strength", "audio_strength"):
        default = synthetic.SyntheticConfig.__dataclass_fields__[name].default
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--ridge", type=float, default=0.1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--root", help="folder of the corpus (kept); a temporary one by default")
    parser.add_argument("--save", help="npz file for the measurements")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    names = ("num_subjects", "test_subjects", "dev_subjects", "seed", "visual_strength", "audio_strength")
    config = synthetic.SyntheticConfig(**{name: getattr(options, name) for name in names})
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or temporary
        started = time.perf_counter()
        rows = synthetic.make_corpus(root, config, num_processes=options.processes)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(root).rglob("*.mp4"))
        print(f"{len(rows)} clips, {size / 1e6:.1f} MB, made in {seconds:.1f} s with {options.processes} processes")
        jobs = [(row, synthetic.roots(root), options.backbone) for row in rows]
        with ProcessPoolExecutor(options.processes) as pool:
            measured = list(tqdm(pool.map(_measure, jobs, chunksize=4), total=len(jobs), file=sys.stderr))
    rejects = [one["reject"] for one in measured if "reject" in one]
    pairs = [(row, one) for row, one in zip(rows, measured, strict=True) if "reject" not in one]
    faces = np.array([one["faces"] for _, one in pairs])
    print(f"rejected: {len(rejects)}; faces in all 8 frames: {(faces == 8).sum()} of {len(rows)}", *rejects, sep="\n  ")
    cost = {name: np.mean([one[name] for _, one in pairs]) for name in ("prepare_s", "extract_s")}
    print("seconds of CPU per clip: " + ", ".join(f"{name} {value:.2f}" for name, value in cost.items()))
    categories = np.array([row["category"] for row, _ in pairs])
    names_of_subjects, subjects = np.unique([row["subject"] for row, _ in pairs], return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names_of_subjects))[subjects] % FOLDS
    visual, audio = (np.stack([one[sense] for _, one in pairs]) for sense in ("visual", "audio"))
    if options.save:
        np.savez(options.save, visual=visual, audio=audio, categories=categories, subjects=subjects)
    report_probe(visual, audio, categories, fold, options.ridge)
    report_audit([one["facts"] for _, one in pairs], categories, subjects, fold)
    return 0


if __name__ == "__main__":
    sys.exit(main())
