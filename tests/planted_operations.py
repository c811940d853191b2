"""Operations with a known answer: one step taught by one operation; shared by tests and benchmarks.

A whole supernet cannot show whether the right operation is found, because its residual and tail imitate any. So here is
one step alone: the mixture of the candidates of a state is fitted to the output of a teacher, which is one of them with
weights of its own.

LinearGLU contains ConcatFC nearly (a gate that follows its own input is a smooth ReLU) and learns faster, so a ConcatFC
teacher is found reliably only where LinearGLU is no candidate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stgs.estimators import gumbel_noise, relax
from stgs.layers import ForwardContext
from stgs.operations import OperationShape, build_operation
from stgs.search_space import OPERATIONS
from stgs.streams import normal
from stgs.supernet import Member

CHANNELS, LENGTH = 16, 4
CLIPS, BATCH = 512, 64
# Standard deviation of the states. With 1, a position attends to itself alone, and attention is nearly the identity.
STATE_SCALE = 0.5
TEACHERS = tuple(name for name in OPERATIONS if name != "zero")
WITHOUT_GLU = tuple(name for name in OPERATIONS if name != "linear_glu")


class Step(nn.Module):
    """The candidates of one step, mixed as in a supernet's cell; logits [P, K], fusion weights [P, K]."""

    def __init__(self, members: list[Member], estimator: str, candidates: Sequence[str]) -> None:
        super().__init__()
        seeds = [member.seed for member in members]
        shape = OperationShape(seeds, CHANNELS, LENGTH, dropout=0.0, attention_dropout=0.0)
        self.estimator, self.seeds = estimator, torch.tensor(seeds)
        self.temperature = torch.tensor([member.temperature for member in members])
        self.num_samples = torch.tensor([member.num_samples for member in members])
        self.operations = nn.ModuleList(build_operation(name, shape, f"step.{name}") for name in candidates)
        self.fusion_weight = nn.Parameter(torch.ones(len(members), len(candidates)))
        self.logits = nn.Parameter(1e-3 * normal(self.seeds, 0, "initial/gamma", (len(candidates),)))

    def loss(self, states: Tensor, targets: Tensor, update: int) -> Tensor:
        """Mean squared error of every member, [P]; states and targets [P, B, L, C]."""
        context = ForwardContext(self.seeds, update, training=True, track_statistics=False)
        noise = gumbel_noise(self.seeds, update, "gamma", int(self.num_samples.max()), self.logits.shape[1:])
        weights = relax(
            self.logits,
            noise,
            estimator=self.estimator,
            temperature=self.temperature,
            num_samples=self.num_samples,
        )
        factors = (weights * self.fusion_weight)[..., None, None, None].unbind(dim=1)
        mixed = sum(f * op(states, states, context) for f, op in zip(factors, self.operations, strict=True))
        return (mixed - targets).square().mean(dim=(1, 2, 3))


def taught_clips(teacher: str, members: list[Member], part: str) -> tuple[Tensor, Tensor]:
    """States and the teacher's answers, of standard deviation 1, both [P, N, L, C]; each member has its own teacher."""
    generator = torch.Generator().manual_seed({"train": 1, "dev": 2}[part])
    states = STATE_SCALE * torch.randn(CLIPS, LENGTH, CHANNELS, generator=generator)
    states = states.expand(len(members), -1, -1, -1).contiguous()
    seeds = [member.seed for member in members]
    shape = OperationShape(seeds, CHANNELS, LENGTH, dropout=0.0, attention_dropout=0.0)
    context = ForwardContext(torch.tensor(seeds), 0, training=True, track_statistics=False)
    with torch.no_grad():
        targets = build_operation(teacher, shape, "teacher")(states, states, context)
        return states, targets / targets.std(dim=(1, 2, 3), keepdim=True)


def find_operations(
    teacher: str, members: list[Member], estimator: str, *, epochs: int, candidates: Sequence[str] = OPERATIONS
) -> list[str]:
    """The operation that each member finds: the most probable but Zero, after `epochs` passes over the clips.

    Weights are updated on one half of the clips, logits on the other, in turn, first order, as a search does.
    """
    step = Step(members, estimator, candidates)
    parts = [taught_clips(teacher, members, part) for part in ("train", "dev")]
    weights = [parameter for parameter in step.parameters() if parameter is not step.logits]
    optimizers = [
        torch.optim.Adam(weights, lr=1e-2),
        torch.optim.Adam([step.logits], lr=3e-3, betas=(0.5, 0.999), weight_decay=1e-3),
    ]
    update = 0
    for _ in range(epochs):
        for start in range(0, CLIPS, BATCH):
            for (states, targets), optimizer in zip(parts, optimizers, strict=True):
                batch = slice(start, start + BATCH)
                step.zero_grad()
                step.loss(states[:, batch], targets[:, batch], update).sum().backward()
                optimizer.step()
                update += 1
    found = [k for k, name in enumerate(candidates) if name != "zero"]
    return [candidates[found[best]] for best in step.logits[:, found].argmax(dim=1).tolist()]
