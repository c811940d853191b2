"""The found network: built from a genotype alone, trained from scratch.

Shapes: P networks of the same genotype (1, unless several seeds are trained side by side), B clips, L positions, C
channels. Activations are [P, B, L, C], as in the supernet, whose layers it shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, cat, nn

from stgs.genotype import Genotype
from stgs.layers import ForwardContext, Head, Reshape, Tail, dropout_probabilities, reshape_features
from stgs.operations import OperationShape, build_operation
from stgs.streams import seed_tensor


class FoundNetwork(nn.Module):
    """Reshape layers of the used features, the cells, and the classifier.

    Cells read their decoded pair as in1, in2; a step applies one operation to two states; the tail joins the steps by
    concatenation. There are no fusion weights (the published parameter counts have none).

    Args:
        genotype: the architecture.
        seeds: seed of each network, P of them.
        dropout, attention_dropout: in [0, 1).
    """

    seeds: Tensor

    def __init__(
        self, genotype: Genotype, seeds: Sequence[int], *, dropout: float = 0.2, attention_dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.genotype = genotype
        self.register_buffer("seeds", seed_tensor(seeds), persistent=False)
        channels, length = genotype.channels, genotype.length
        shape = OperationShape(seeds, channels, length, dropout, attention_dropout)
        self.reshape = nn.ModuleList(
            Reshape(seeds, name, genotype.features[name], channels, length, dropout) for name in genotype.used_features
        )
        self.operations = nn.ModuleList(
            nn.ModuleList(
                build_operation(step.operation, shape, f"cell{number}.step{index}.{step.operation}")
                for index, step in enumerate(cell.steps, start=1)
            )
            for number, cell in enumerate(genotype.cells, start=1)
        )
        self.tails = nn.ModuleList(
            Tail(seeds, f"cell{number}.tail", len(cell.steps) * channels, channels, length, dropout)
            for number, cell in enumerate(genotype.cells, start=1)
        )
        self.head = Head(seeds, len(genotype.cells), channels, length)
        self._dropouts = dropout_probabilities(self)

    @property
    def used_features(self) -> tuple[str, ...]:
        """The features that it reads."""
        return self.genotype.used_features

    @property
    def length(self) -> int:
        """L, the positions of a sequence feature."""
        return self.genotype.length

    def forward(self, features: Mapping[str, Tensor], context: ForwardContext) -> Tensor:
        """Logits of 'fake'.

        features: name -> [B, L, C_f] or [B, C_f], float32. Returns [P, B].
        """
        clips = features[self.genotype.used_features[0]].shape[0]
        context = context.with_masks(self._dropouts, (clips, self.genotype.length, self.genotype.channels))
        used = self.genotype.used_features
        nodes: dict[str, Tensor] = {}
        given = [features[name] for name in used]
        for indices, group in reshape_features(list(self.reshape), given, context):  # type: ignore[arg-type]
            nodes |= {used[index]: node for index, node in zip(indices, group.unbind(), strict=True)}
        cells = []
        for number, cell in enumerate(self.genotype.cells):
            states = {"in1": nodes[cell.inputs[0]], "in2": nodes[cell.inputs[1]]}
            operations = self.operations[number]
            for index, step in enumerate(cell.steps):
                first, second = (states[name] for name in step.inputs)
                states[f"step{index + 1}"] = operations[index](first, second, context)  # type: ignore[index]
            steps = cat([states[f"step{index + 1}"] for index in range(len(cell.steps))], dim=-1)
            output = self.tails[number](steps, states["in1"], context)
            nodes[f"cell{number + 1}"] = output
            cells.append(output)
        return self.head(cells)
