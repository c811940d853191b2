"""Baselines: the margin loss against its plain definition, clips a second of training, and shuffled labels at chance.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_baseline [--quick]

The margin loss is timed forward and backward at batch 64 and 768 dimensions, beside a loop over all pairs that is
written here as the definition reads; both run in turn, and the fastest round of each counts.

Training is that of MRDF-CE on clips of noise of 75 frames: on a GPU with 12 layers and with 0, as released, at the
released batch size (the largest one that fits, where it does not), in float32 and in mixed precision; on a CPU at a
reduced width.

Shuffled labels: `stgs baseline` at a reduced width on planted clips, the first of five folds, once with true labels and
eight times with labels permuted in train and dev. The mean AUC of these has to be within 3 standard errors of 0.5.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jobs.baseline import BaselineJobConfig, run
from stgs.baselines import BaselineConfig, losses
from stgs.baselines.batch import AUDIO_VALUES, RawSequences
from stgs.baselines.training import BaselineTraining, BaselineTrainingConfig, initial_baseline
from stgs.precision import resolved_precision
from tests.tiny_sequences import make_sequences

BATCH, DIMENSIONS = 64, 768
AIM = 200.0
MODEL, FRAMES, SIDE = "mrdf_ce", 75, 112
SHUFFLES = 8
REDUCED = BaselineConfig(layers=0, width=48)


def pairwise_margin(embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The margin loss, one ordered pair after the other."""
    terms = []
    for first, label in zip(embeddings, labels, strict=True):
        for second, other in zip(embeddings, labels, strict=True):
            cosine = functional.cosine_similarity(first, second, dim=0)
            terms.append(1 - cosine if label == other else (cosine - margin).clamp_min(0))
    return torch.stack(terms).mean()


def fastest(loss: Callable[[Tensor, Tensor, float], Tensor], rounds: int) -> tuple[float, Tensor, Tensor]:
    """Seconds of the fastest of some rounds, forward and backward, with the loss and its gradient."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(BATCH, DIMENSIONS, generator=generator).requires_grad_()
    labels = torch.randint(2, (BATCH,), generator=generator)
    seconds = []
    for _ in range(rounds):
        embeddings.grad = None
        start = time.perf_counter()
        value = loss(embeddings, labels, 0.2)
        value.backward()
        seconds.append(time.perf_counter() - start)
    assert embeddings.grad is not None
    return min(seconds), value.detach(), embeddings.grad


def print_margin(rounds: int) -> None:
    """The margin loss beside the loop."""
    ours, value, gradient = fastest(losses.margin, 20 * rounds)
    theirs, expected, expected_gradient = fastest(pairwise_margin, rounds)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    print(f"Margin loss, forward and backward, batch {BATCH}, {DIMENSIONS} dimensions")
    print(f"  {1e3 * ours:.2f} ms, the loop over pairs {1e3 * theirs:.0f} ms: {theirs / ours:.0f} x (aim {AIM:.0f} x)")


class NoiseSequences:
    """A `stgs.baselines.batch.SequenceStream` of one batch a pass, always the same clips of noise."""

    def __init__(self, clips: int, batches: int) -> None:
        random = np.random.default_rng(0)
        self.categories = np.array(["ABCD"[clip % 4] for clip in range(clips)])
        video = [random.integers(0, 256, (FRAMES, 3, SIDE, SIDE), dtype=np.uint8) for _ in range(clips)]
        banks = [random.normal(10, 2, (FRAMES, AUDIO_VALUES)).astype(np.float32) for _ in range(clips)]
        self._clips, self._batches = RawSequences(video, banks, np.arange(clips), clips), batches

    def num_batches(self, epoch: int) -> int:
        """Batches of a pass."""
        return self._batches

    def batches(self, epoch: int) -> Iterator[RawSequences]:
        """The batch, again and again."""
        for _ in range(self._batches):
            yield self._clips

    def in_order(self) -> Iterator[RawSequences]:
        """The batch."""
        yield self._clips


def seconds_per_update(config: BaselineConfig, precision: str, batch: int, device: str, updates: int) -> float:
    """Of training, the median; the first updates are not counted."""
    settings = BaselineTrainingConfig(epochs=1, batch_size=batch, precision=precision)
    training = BaselineTraining(
        initial_baseline(MODEL, config, 0),
        settings,
        train=NoiseSequences(batch, updates),
        dev=NoiseSequences(4, 1),
        device=device,
    )
    times: list[float] = []

    def tick() -> bool:
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        return len(times) > updates

    training.run_epoch(tick)
    return float(np.median(np.diff(times)[updates // 3 :]))


def largest_batch(config: BaselineConfig, precision: str) -> tuple[int, float]:
    """The released batch size, or the largest half of a half of it that fits the GPU; seconds of an update."""
    batch = BATCH
    while batch > 1:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            return batch, seconds_per_update(config, precision, batch, "cuda", 12)
        except torch.cuda.OutOfMemoryError:
            batch //= 2
    raise SystemExit("not even two clips fit this GPU")


def print_training(quick: bool) -> None:
    """Clips a second, and on a GPU the peak of its memory."""
    print(f"\nTraining of {MODEL} on clips of {FRAMES} frames")
    if not torch.cuda.is_available():
        each = seconds_per_update(REDUCED, "float32", 8, "cpu", 3 if quick else 6)
        size = f"width {REDUCED.width}, {REDUCED.layers} layers, batch 8, float32, 1 thread"
        print(f"  no GPU; {size}: {8 / each:.1f} clips a second")
        return
    print(f"  {torch.cuda.get_device_name()}")
    for layers in (12, 0):
        for precision in ("float32", resolved_precision("auto", "cuda")):
            batch, each = largest_batch(BaselineConfig(layers=layers), precision)
            peak = torch.cuda.max_memory_allocated() / 2**30
            size = f"{layers:>2} layers, batch {batch}, {precision}"
            print(f"  {size}: {batch / each:.1f} clips a second, peak {peak:.1f} GiB")


def print_shuffles(quick: bool) -> bool:
    """A fold with true and with shuffled labels; whether these are at chance."""
    subjects = {"train": 15 if quick else 30, "dev": 0, "test": 0}
    with tempfile.TemporaryDirectory() as folder:
        sequences, manifest = make_sequences(Path(folder), subjects=subjects, frames=(8, 8))
        told = run(
            BaselineJobConfig(
                sequences=sequences,
                manifest=manifest,
                model=MODEL,
                out=f"{folder}/run",
                folds=1,
                shuffles=SHUFFLES,
                baseline=REDUCED,
                training=BaselineTrainingConfig(epochs=4 if quick else 8, batch_size=16),
                device="cpu",
            )
        )
    print(f"\n{told.text}")
    return bool(told.payload["shuffled"]["at_chance"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_margin(2 if arguments.quick else 5)
    print_training(arguments.quick)
    return 0 if print_shuffles(arguments.quick) else 1


if __name__ == "__main__":
    raise SystemExit(main())
