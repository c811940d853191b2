"""Cached features of a split, ready to be gathered into batches.

Shapes: P members, N clips of the split, B of the batch, L positions, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.bilevel import Batch
from stgs.config import require
from stgs.losses import class_weights
from stgs.parallel import SINGLE, Workers


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
        # Name -> [N, L, C] or [N, C], parts of `_groups`.
        self.features: dict[str, Tensor] = {}
        self._groups = self._joined(columns, device)
        self.labels = torch.as_tensor(np.broadcast_to(labels, (members, count)).copy(), device=device)
        self.class_weights = class_weights(self.labels) if balance is None else balance.to(device)

    def _joined(
        self, columns: Mapping[str, NDArray[np.float16]], device: torch.device | str
    ) -> list[tuple[list[str], Tensor]]:
        """Columns of one length side by side, [N, L, sum of C] or [N, sum of C], so that they are gathered at once."""
        alike: dict[tuple[int, ...], list[str]] = {}
        for name, column in columns.items():
            alike.setdefault(column.shape[2:], []).append(name)
        groups = []
        for names in alike.values():
            group = torch.as_tensor(np.concatenate([_half(name, columns[name]) for name in names], axis=-1)).to(device)
            parts = group.split([columns[name].shape[1] for name in names], dim=-1)
            self.features |= dict(zip(names, parts, strict=True))
            groups.append((names, group))
        return groups

    def of_members(self, positions: Sequence[int]) -> ClipSet:
        """The same clips with the labels of the members at `positions`, in this order; the features are shared."""
        part = copy.copy(self)
        where = torch.tensor(positions, device=self.labels.device)
        part.labels = self.labels.index_select(0, where)
        part.class_weights = self.class_weights.index_select(0, where)
        return part

    def joined(self, other: ClipSet) -> ClipSet:
        """These clips followed by those of `other`, a copy on one device, with the class weights of both together.

        Raises InputError where the other split has other features.
        """
        require(
            [names for names, _ in self._groups] == [names for names, _ in other._groups],
            f"one split holds {', '.join(self.features)}, the other {', '.join(other.features)}; give both the same.",
        )
        both = copy.copy(self)
        both.features, both._groups = {}, []
        for (names, ours), (_, theirs) in zip(self._groups, other._groups, strict=True):
            group = torch.cat([ours, theirs])
            sizes = [self.features[name].shape[-1] for name in names]
            both.features |= dict(zip(names, group.split(sizes, dim=-1), strict=True))
            both._groups.append((names, group))
        both.labels = torch.cat([self.labels, other.labels], dim=1)
        both.class_weights = class_weights(both.labels)
        return both

    def __len__(self) -> int:
        return self.labels.shape[1]

    def batch(self, index: NDArray[np.int64] | Tensor, workers: Workers = SINGLE) -> Batch:
        """This worker's share of the clips at `index`, those of the whole batch, as float32.

        An index on the clips' device spares an update the wait for its transfer.

        Raises:
            InputError: fewer clips than workers.
        """
        require(
            len(index) >= workers.world,
            f"a batch holds {len(index)} clips, but there are {workers.world} workers; take a larger batch_size or "
            "fewer workers.",
        )
        where = workers.share(torch.as_tensor(index, device=self.labels.device))
        features: dict[str, Tensor] = {}
        for names, group in self._groups:
            sizes = [self.features[name].shape[-1] for name in names]
            parts = group.index_select(0, where).float().split(sizes, dim=-1)
            features |= dict(zip(names, parts, strict=True))
        return Batch(features, self.labels.index_select(1, where), self.class_weights, clips=len(index))


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


def _half(name: str, column: NDArray[np.float16]) -> NDArray[np.float16]:
    """[N, C, L] -> [N, L, C], positions first, as the matrix products read them; a vector [N, C] as it is."""
    with np.errstate(over="ignore"):
        half = column.astype(np.float16, copy=False)
    require(bool(np.isfinite(half).all()), f"feature {name!r} holds values that are not finite in float16.")
    return half.swapaxes(1, 2) if half.ndim == 3 else half
