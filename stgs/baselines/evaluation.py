"""Outputs and scores of a baseline on the clips of a split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.baselines.base import Baseline
from stgs.baselines.batch import SequenceStream, collate
from stgs.config import require
from stgs.parallel import SINGLE, Workers
from stgs.precision import mixed_precision, resolved_precision


def split_outputs(
    model: Baseline, stream: SequenceStream, *, precision: str = "auto", workers: Workers = SINGLE
) -> dict[str, Tensor]:
    """The outputs of a split's N clips in evaluation mode, each float32 [N, ...] on the CPU, in the split's order.

    All workers call this, and get the same. precision: of the arithmetic, as in a training.

    Raises:
        InputError: a stream that does not give each clip once.
    """
    device = next(model.parameters()).device
    precision = resolved_precision(precision, device)
    training, index, parts = model.training, [np.zeros(0, np.int64)], []
    model.eval()
    with torch.no_grad(), mixed_precision(precision, device):
        for raw in stream.in_order():
            batch = collate(raw, device=device)
            # On the device until the end: fetching them would wait for it.
            parts.append(model(batch.video, batch.audio, batch.lengths))
            index.append(raw.index)
    model.train(training)
    own = {name: torch.cat([part[name] for part in parts]).float().cpu() for name in (parts[0] if parts else ())}
    gathered = workers.gather((np.concatenate(index), own))
    found = np.concatenate([index for index, _ in gathered])
    count = len(stream.categories)
    require(
        np.array_equal(np.sort(found), np.arange(count)) and count > 0,
        f"a split of {count} clips gave {len(found)}, {len(set(found.tolist()))} of them different ones; check the "
        "corpus and the splits.",
    )
    # A worker without clips has no outputs.
    outputs = [outputs for _, outputs in gathered if outputs]
    order = torch.from_numpy(np.argsort(found))
    return {name: torch.cat([part[name] for part in outputs])[order] for name in outputs[0]}


def scores_of(model: Baseline, outputs: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """P(fake) of the clips with these outputs, [N] in [0, 1], or NaN where outputs are not finite."""
    with torch.no_grad():
        return model.scores(outputs).double().cpu().numpy()


def predict(
    model: Baseline, stream: SequenceStream, *, precision: str = "auto", workers: Workers = SINGLE
) -> NDArray[np.float64]:
    """P(fake) of every clip of a split, [N] in [0, 1]; arguments and errors are those of `split_outputs`."""
    return scores_of(model, split_outputs(model, stream, precision=precision, workers=workers))
