"""Cached features of a split, ready to be gathered into batches.

Shapes: P members, N clips of the split, B of the batch, L positions, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.bilevel import Batch
from stgs.config import require
from stgs.losses import class_weights


class ClipSet:
    """Features and labels of one split on one device.

    Args:
        columns: name -> float array [N, C, L], or [N, C] for a vector a clip. They are kept as float16.
        labels: 0 real, 1 fake; [N], or [P, N] where the members' labels differ (shuffled labels).
        members: P.
        balance: class weights [P, 2] to use; None computes them from these labels.

    Raises:
        InputError: no clips, columns of different lengths or with values that float16 does not hold, labels other than
            0 and 1 or for another number of members, or, where `balance` is None, labels of one class.
    """

    def __init__(
        self,
        columns: Mapping[str, NDArray[np.float16]],
        labels: NDArray[np.int8],
        *,
        members: int,
        device: torch.device | str = "cpu",
        balance: Tensor | None = None,
    ) -> None:
        count = labels.shape[-1]
        require(count > 0, "a split holds no clips; check the manifest's splits against the features.")
        require(
            labels.shape in ((count,), (members, count)),
            f"labels have shape {labels.shape}, but ({count},) or ({members}, {count}) is needed.",
        )
        require(bool(np.isin(labels, (0, 1)).all()), f"labels hold {np.unique(labels).tolist()}, but only 0 and 1 are.")
        for name, column in columns.items():
            require(len(column) == count, f"feature {name!r} has {len(column)} clips, but there are {count} labels.")
        self.features = {name: _positions_first(name, column, device) for name, column in columns.items()}
        self.labels = torch.as_tensor(np.broadcast_to(labels, (members, count)).copy(), device=device)
        self.class_weights = class_weights(self.labels) if balance is None else balance.to(device)

    def __len__(self) -> int:
        return self.labels.shape[1]

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """The clips at `index` [B], as float32."""
        where = torch.as_tensor(index, device=self.labels.device)
        features = {name: column.index_select(0, where).float() for name, column in self.features.items()}
        return Batch(features, self.labels.index_select(1, where), self.class_weights)


def require_features(clips: ClipSet, features: Mapping[str, int], length: int) -> None:
    """Refuse clips that lack one of `features` (name -> channels), or hold it with other channels or another length.

    Raises:
        InputError: the feature with its shape a clip and the shapes that fit.
    """
    for name, channels in features.items():
        require(name in clips.features, f"feature {name!r} is missing; the clips hold {', '.join(clips.features)}.")
        shape = tuple(clips.features[name].shape[1:])
        require(
            shape in ((channels,), (length, channels)),
            f"feature {name!r} has {shape} positions and channels a clip, but ({length}, {channels}) or ({channels},) "
            "is needed; take the sizes and the length from the features' meta.json.",
        )


def _positions_first(name: str, column: NDArray[np.float16], device: torch.device | str) -> Tensor:
    """[N, C, L] -> [N, L, C], once, so that a gathered batch is contiguous for the matrix products."""
    with np.errstate(over="ignore"):
        half = np.array(column, dtype=np.float16)
    require(bool(np.isfinite(half).all()), f"feature {name!r} holds values that are not finite in float16.")
    tensor = torch.as_tensor(half)
    return (tensor.transpose(1, 2) if tensor.dim() == 3 else tensor).contiguous().to(device)
