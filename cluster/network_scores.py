"""What a stored network says of clips: logits, and how much of them each sense has brought in.

Everything is computed in double precision and then rounded to float32, so that a clip has the same score in every
company: single precision rounds a product by the number of clips in the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.features import Split
from cluster.network_files import StoredNetwork
from stgs.layers import ForwardContext

Floats = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]
VISUAL, AUDIO, TOGETHER = "visual", "audio", "together"
SENSES = (VISUAL, AUDIO)
_CLIPS_PER_BATCH = 256


def p_fake(logits: Floats) -> Floats:
    """The probability of 'fake' of logits, of the same shape."""
    return torch.sigmoid(torch.from_numpy(logits)).numpy()


class NetworkScorer:
    """A stored network, ready to score clips on the CPU."""

    def __init__(self, stored: StoredNetwork) -> None:
        self._network = copy.deepcopy(stored.network).cpu().double()
        self._used = tuple(stored.network.used_features)
        self._length = stored.network.length
        self._neutral = stored.neutral
        self.senses = tuple(sense for sense in SENSES if any(_sense_of(name) == sense for name in self._used))
        """The senses that the network reads."""

    @property
    def tells_senses(self) -> bool:
        """Whether the network's file holds what stands for a silenced sense."""
        return all(name in self._neutral for name in self._used)

    def logits(self, columns: Columns) -> Floats:
        """Logits of 'fake', [N]. columns: feature -> [N, C, L] or [N, C], as `cluster.features.Split` holds them.

        Raises InputError if the positions of a feature cannot be pooled to those of the network.
        """
        inputs = self._inputs(columns)
        context = ForwardContext(self._network.seeds, 0, training=False, track_statistics=False)
        count = len(inputs[self._used[0]])
        parts = []
        with torch.no_grad():
            for start in range(0, count, _CLIPS_PER_BATCH):
                batch = {name: tensor[start : start + _CLIPS_PER_BATCH] for name, tensor in inputs.items()}
                parts.append(self._network(batch, context)[0])
        return torch.cat(parts).float().double().numpy()

    def sense_effects(self, columns: Columns) -> dict[str, Floats]:
        """How much each sense has moved the logit from where it is without either; needs `tells_senses`.

        A sense is silenced by the neutral values of its features, their means over the train clips. With v(S) the logit
        where only the senses S are heard: baseline = v(none); visual = v(visual) - v(none), likewise audio; together =
        v(both) - v(visual) - v(audio) + v(none). These four add up to the logit. The Shapley value of a sense
        (visual_shapley, audio_shapley) is its effect and half of together. A network of one sense has baseline and that
        sense alone.

        Returns name -> [N].
        """
        values = {heard: self.logits(self._silenced(columns, heard)) for heard in _subsets(self.senses)}
        nothing, everything = values[()], values[self.senses]
        effects = {"baseline": nothing} | {sense: values[(sense,)] - nothing for sense in self.senses}
        if len(self.senses) == len(SENSES):
            effects[TOGETHER] = everything - values[(VISUAL,)] - values[(AUDIO,)] + nothing
            effects |= {f"{sense}_shapley": effects[sense] + effects[TOGETHER] / 2 for sense in SENSES}
        return effects

    def _silenced(self, columns: Columns, heard: tuple[str, ...]) -> Columns:
        silenced = dict(columns)
        for name in self._used:
            if _sense_of(name) not in heard:
                neutral = self._neutral[name].numpy()
                silenced[name] = np.broadcast_to(neutral, (len(columns[name]), *neutral.shape))
        return silenced

    def _inputs(self, columns: Columns) -> dict[str, Tensor]:
        """Name -> float64 [N, L, C] or [N, C]."""
        labels = np.zeros(len(columns[self._used[0]]), np.int8)
        pooled = Split(columns, labels, {}).only(self._used, self._length).columns
        tensors = {name: torch.from_numpy(np.array(column, np.float64)) for name, column in pooled.items()}
        return {name: tensor.transpose(1, 2) if tensor.dim() == 3 else tensor for name, tensor in tensors.items()}


def _sense_of(feature: str) -> str:
    return feature.split(".")[0]


def _subsets(senses: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(), *((sense,) for sense in senses), *([senses] if len(senses) > 1 else [])]
