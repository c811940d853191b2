"""The control "concat + linear": what a linear classifier of all features gives, without any search.

Shapes: P networks, trained side by side from several seeds, B clips, L positions, C channels of a feature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stgs.config import require, require_at_least
from stgs.fused import RunningStatistics
from stgs.layers import ForwardContext, MemberBatchNorm, MemberLinear
from stgs.parallel import Workers
from stgs.streams import seed_tensor


@dataclass(frozen=True, slots=True)
class ConcatLinearInputs:
    """What such a network is built from: its features, name -> channels, and L, the positions of those that have some.

    Raises:
        InputError: no feature, or a size below 1.
    """

    features: Mapping[str, int]
    length: int

    def __post_init__(self) -> None:
        require(bool(self.features), "features is empty, but concat + linear needs at least one.")
        for name, size in self.features.items():
            require_at_least(f"features[{name!r}]", size, 1)
        require_at_least("length", self.length, 1)

    @property
    def used_features(self) -> tuple[str, ...]:
        """All of the features, in their order."""
        return tuple(self.features)

    @property
    def channels(self) -> int:
        """Channels of all features together."""
        return sum(self.features.values())

    def to_json(self) -> str:
        """One line of JSON, the same for equal inputs."""
        return json.dumps({"features": dict(self.features), "length": self.length})

    def count_parameters(self) -> int:
        """Scale and shift of the batch normalisation, weight and bias of the classifier: all that it has.

        The count of a found network leaves its classifier out (`stgs.genotype.count_parameters`); here the classifier
        is the network.
        """
        return 3 * self.channels + 1

    def count_macs(self) -> int:
        """Multiply-accumulates of one clip's pass: those of the classifier."""
        return self.channels


class ConcatLinear(nn.Module):
    """Every feature's mean over its positions, side by side, batch normalisation, Linear(-> 1): a logistic regression.

    It reads cached features: no gradient reaches them.

    Args:
        inputs: the features.
        seeds: seed of each network, P of them.
    """

    seeds: Tensor

    def __init__(self, inputs: ConcatLinearInputs, seeds: Sequence[int]) -> None:
        super().__init__()
        self.inputs = inputs
        self.register_buffer("seeds", seed_tensor(seeds), persistent=False)
        self.norm = MemberBatchNorm(len(seeds), inputs.channels)
        self.classifier = MemberLinear(seeds, "concat_linear.classifier", inputs.channels, 1)

    @property
    def used_features(self) -> tuple[str, ...]:
        """The features that it reads."""
        return self.inputs.used_features

    @property
    def length(self) -> int:
        """L, the positions of a sequence feature."""
        return self.inputs.length

    def forward(self, features: Mapping[str, Tensor], context: ForwardContext) -> Tensor:
        """Logits of 'fake'.

        features: name -> [B, L, C_f] or [B, C_f], float32. Returns [P, B].
        """
        given = [features[name].detach() for name in self.used_features]
        x = torch.cat([x.mean(dim=1) if x.dim() == 3 else x for x in given], dim=-1)
        if context.training:
            mean, variance = self._statistics(x, context)
        else:
            mean, variance = self.norm.running_mean, self.norm.running_variance
        y = torch.addcmul(self.norm.bias, (x - mean) * torch.rsqrt(variance + self.norm.eps), self.norm.weight)
        # A sum, not a matrix product: the bits of one of width 1 depend on the number of members.
        return (y * self.classifier.weight.transpose(1, 2)).sum(dim=-1) + self.classifier.bias.squeeze(-1)

    def _statistics(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of all workers' clips, both [P, 1, C]; the running ones move towards them."""
        mean, count = _mean(x, context.workers)
        variance, _ = _mean((x - mean).square(), context.workers)
        members = len(self.seeds)
        mean, variance = (value.expand(members, 1, -1) for value in (mean, variance))
        if context.track_statistics:
            norm = self.norm
            running = RunningStatistics([norm.running_mean], [norm.running_variance], MemberBatchNorm.momentum)
            running.move(mean.unsqueeze(0), variance.unsqueeze(0), count)
        return mean, variance


def _mean(x: Tensor, workers: Workers) -> tuple[Tensor, Tensor]:
    """Mean of x [B, C] over all workers' clips, [1, C], and their number, [1]."""
    total, count = workers.sum_together([x.sum(dim=0, keepdim=True), x.new_tensor([len(x)])])
    return total / count, count
