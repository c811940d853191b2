"""Writes backbones and found network as one ONNX file: prepared frames and spectrograms in, P(fake) out.

The file runs without PyTorch and without this project. Cutting faces and spectrograms out of a clip is not in it: its
metadata says how they are prepared (`stgs`, a JSON object with the settings, the genotype and the threshold). It is
checked against PyTorch before it is written, on drawn clips or, with --check, on every clip of a corpus.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.chosen import network_of
from cluster.found_loop import StoredNetwork
from cluster.scoring import backbones_of, prepare_config_of
from cluster.shards import progress_bar
from data_prep import boxes, storage
from data_prep.audio import NUM_BINS
from data_prep.clip import PrepareConfig
from data_prep.storage import InputError
from jobs.cli import FAILED, Outcome, option, run_command
from stgs.backbones import FeatureExtractor
from stgs.detector import Detector

if TYPE_CHECKING:
    import onnxruntime

# Largest difference of P(fake) between the file and PyTorch.
TOLERANCE = 1e-4
# That of the logit, as a share of it where it is above 1. It only has to show a wrong file where P(fake) is nearly 0 or
# 1: float32 arithmetic in another order alone carries 1e-6 of a feature to 1e-4 of a steep network's logit.
LOGIT_TOLERANCE = 1e-3
# Of the drawn clips, and of the example that the file is made from; a batch may have any number.
_DRAWN_CLIPS, _BATCH = 3, 2
_INPUTS, _OUTPUTS = ("frames", "spectrogram"), ("p_fake", "logit")

Clips = tuple[NDArray[np.uint8], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ExportJobConfig:
    """Options of `stgs export`."""

    onnx: str = option(help="file to write, local or s3://")
    run: str | None = option(None, help="run whose found network (best on dev) is exported")
    network: str | None = option(None, help="file of the network to export, in place of --run")
    check: str | None = option(None, help="directory of a corpus on whose clips the file is checked")
    threads: int = option(1, help="threads of the check")


def run(config: ExportJobConfig) -> Outcome:
    """Export one network."""
    if config.threads < 1:
        raise InputError(f"threads is {config.threads}, but at least 1 is needed.")
    stored = network_of(config.run, config.network)
    prepared = prepare_config_of(stored)
    torch.set_num_threads(config.threads)
    detector = Detector(FeatureExtractor(backbones_of(stored)), stored.network)
    content = _exported(detector, prepared, _metadata(stored, prepared))
    if config.check is None:
        checked = _compared(detector, content, [_drawn(prepared, _DRAWN_CLIPS)], config.threads)
        where = f"{checked.clips} drawn clips"
    else:
        corpus = storage.absolute(config.check)
        meta = boxes.read_meta(corpus, boxes.CORPUS)
        with progress_bar("check", meta.counts["clips"], "clip", True) as bar:
            read = _of_corpus(corpus, meta, prepared, bar.update)
            checked = _compared(detector, content, read, config.threads)
        where = f"{checked.clips} clips of {corpus}"
    payload: dict[str, Any] = {"network": stored.uri, **asdict(checked), "tolerance": TOLERANCE}
    told = (
        f"largest difference of P(fake) over {where}: {checked.from_torch:.1e} from PyTorch, {checked.from_cached:.1e} "
        f"from scores on cached features, which are rounded to float16; of the logit {checked.of_logit:.1e}"
    )
    agrees = checked.from_torch <= TOLERANCE and checked.of_logit <= LOGIT_TOLERANCE
    if not (checked.clips > 0 and agrees):
        limits = f"the limits from PyTorch are {TOLERANCE:g}, and {LOGIT_TOLERANCE:g} of the logit"
        why = limits if checked.clips else "there is no clip to check it on"
        text = f"{told}; {why}: nothing was written."
        return Outcome({**payload, "error": text}, text, FAILED)
    storage.write(config.onnx, content)
    payload |= {"onnx": config.onnx, "bytes": len(content), "inputs": list(_INPUTS), "outputs": list(_OUTPUTS)}
    return Outcome(payload, f"network: {stored.uri}\n{told}\nonnx: {config.onnx} ({len(content) / 1e6:,.1f} MB)")


def _metadata(stored: StoredNetwork, prepared: PrepareConfig) -> str:
    facts = stored.facts
    kept = {name: facts[name] for name in ("kind", "genotype", "parameters", "macs", "metrics", "provenance")}
    return json.dumps({**kept, "prepare": asdict(prepared)})


def _drawn(prepared: PrepareConfig, count: int) -> Clips:
    """Clips of the right shapes, of noise."""
    random = np.random.default_rng(0)
    side = prepared.frame_size
    frames = random.integers(0, 256, (count, prepared.num_frames, 3, side, side), dtype=np.uint8)
    return frames, random.random((count, prepared.spectrogram_frames, NUM_BINS), dtype=np.float32)


def _exported(detector: Detector, prepared: PrepareConfig, metadata: str) -> bytes:
    """The ONNX file. Raises InputError where the packages that make it are not installed."""
    try:
        import onnx  # noqa: F401 - they come with an extra, which only this command needs
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"stgs export needs the package {error.name}; pip install 'stgs-bmnas[onnx]'.") from None
    example = tuple(map(torch.from_numpy, _drawn(prepared, _BATCH)))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # The exporter warns of its own parts, and that both inputs have the batch's size.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            detector,
            example,
            dynamo=True,
            verbose=False,
            input_names=_INPUTS,
            output_names=_OUTPUTS,
            dynamic_shapes={name: {0: torch.export.Dim("clips")} for name in _INPUTS},
        )
        assert program is not None  # it is None of the exporter that is not used here
        program.model.metadata_props["stgs"] = metadata
        file = Path(folder) / "detector.onnx"
        program.save(file, external_data=False)
        return file.read_bytes()


def _of_corpus(uri: str, meta: boxes.Meta, prepared: PrepareConfig, progress: Any) -> Iterator[Clips]:
    """The clips of a corpus, a few at a time. Raises InputError where it was prepared in another way."""
    for name, value in asdict(prepared).items():
        if name in ("num_frames", "frame_size", "spectrogram_frames") and meta.config[name] != value:
            raise InputError(
                f"{uri} was prepared with {name} {meta.config[name]}, but the network's corpus with {value}; give a "
                "corpus like that."
            )
    for part, digest in sorted(meta.files.items()):
        if "/" in part:  # the rejects
            continue
        table = boxes.read_table(storage.join(uri, part), sha256=digest)
        frames, sound = (boxes.column_to_numpy(table, name) for name in _INPUTS)
        for start in range(0, len(frames), _BATCH):
            yield frames[start : start + _BATCH], sound[start : start + _BATCH]
            progress(len(frames[start : start + _BATCH]))


@dataclass(frozen=True, slots=True)
class _Checked:
    """Largest differences over some clips, NaN where a score is none.

    from_torch: of P(fake), from the same module in PyTorch. of_logit: likewise, of a logit above 1 as a share of it.
    from_cached: of P(fake) from PyTorch's on features that are rounded as `stgs extract` keeps them, which `stgs
    evaluate` reads.
    """

    clips: int
    from_torch: float
    of_logit: float
    from_cached: float


def _compared(detector: Detector, content: bytes, clips: Iterator[Clips] | Sequence[Clips], threads: int) -> _Checked:
    session = _session(content, threads)
    count, worst = 0, np.zeros(3)
    for frames, spectrogram in clips:
        p_fake, logit = session.run(_OUTPUTS, dict(zip(_INPUTS, (frames, spectrogram), strict=True)))
        with torch.inference_mode():
            taps = detector.extractor.pooled_taps(torch.tensor(frames), torch.tensor(spectrogram))
            wanted, wanted_logit = (scores.numpy() for scores in detector.scores(taps))
            cached = detector.scores({name: tap.half().float() for name, tap in taps.items()})[0].numpy()
        differences = (
            np.abs(p_fake - wanted),
            np.abs(logit - wanted_logit) / np.maximum(1.0, np.abs(wanted_logit)),
            np.abs(p_fake - cached),
        )
        worst = np.maximum(worst, [difference.max() for difference in differences])
        count += len(frames)
    return _Checked(count, *worst.tolist())


def _session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs export`; returns the exit code."""
    return run_command("export", run, argv)


if __name__ == "__main__":
    sys.exit(main())
