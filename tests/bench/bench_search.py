"""One weight and one architecture update: seconds, and their ratio to what they are measured against.

    python -m tests.bench.bench_search [--quick] [--threads N] [--repeats N] [--clock wall|cpu]

A second table shows updates a second against batch and members, and how many operations an update takes: on an
accelerator each of them is a kernel or more.

Every contender runs in turn, several times over, and its fastest round counts: on a shared machine only the ratios
mean anything. Features are those of the released code (pooled, 4,480 channels x 8 positions and 2,560 values a clip)
unless a line says otherwise. Figures that were measured elsewhere are printed as constants and marked so.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from stgs import Member, PopulationSearch, SearchConfig, search_space
from stgs.bilevel import architecture_update, weight_update
from stgs.clips import ClipSet
from stgs.forecast import noise_clips
from stgs.search_space import RELEASED_FEATURES

# The released code on a quiet machine of 2 cores: a weight step and an architecture step with its extra forward pass,
# backbones included, at batch 2; and its fusion mathematics alone at batch 64.
RELEASED_STEPS_S = 9.8 + 13.1
RELEASED_BATCH = 2
RELEASED_FUSION_S = 0.087 + 0.083

BATCH = 64
TEMPERATURE, NUM_SAMPLES = 10.0, 15
POINTS = 16
# Sizes of ResNet-34 on frames and on spectrograms, the default space.
DEFAULT_FEATURES = {
    f"{sense}.{tap}": size
    for sense in ("visual", "audio")
    for tap, size in (("layer2", 128), ("layer3", 256), ("layer4", 512), ("pooled", 512))
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CHANNELS, LENGTH, CELLS, STEPS, DROPOUT = 128, 8, 2, 2, 0.2


def random_clips(features: dict[str, int], count: int, members: int) -> ClipSet:
    """Clips of noise, half of them fake."""
    return noise_clips(search_space("default", features, length=LENGTH), members, count, "cpu")


def population(
    features: dict[str, int], preset: str, clips: ClipSet, seeds: list[int], batch: int = BATCH
) -> PopulationSearch:
    """A search of one member a seed."""
    members = [Member(TEMPERATURE, NUM_SAMPLES, seed) for seed in seeds]
    space = search_space(preset, features, channels=CHANNELS, length=LENGTH)
    config = SearchConfig(batch_size=batch)
    return PopulationSearch(space, members, estimator="stgs", config=config, train=clips, dev=clips)


class OperationCounter(TorchDispatchMode):
    """Counts operations that write a tensor: no views, no allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        allocates = func.__name__.split(".")[0] in ("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view")
        self.count += func.namespace == "aten" and not views and not allocates
        return func(*args, **(kwargs or {}))


class OurUpdates:
    """One weight and one architecture update of a population on cached features, gathering of the batch included."""

    def __init__(self, members: int, batch: int) -> None:
        self.clips = random_clips(RELEASED_FEATURES, batch, members)
        self.search = population(RELEASED_FEATURES, "released", self.clips, list(range(members)), batch)
        self.index = np.arange(batch)
        self.update = 0

    def __call__(self) -> None:
        net, search = self.search.supernet, self.search
        weight_update(net, search.weight_optimizer, self.clips.batch(self.index), self.update)
        architecture_update(net, search.architecture_optimizer, self.clips.batch(self.index), self.update + 1)
        self.update += 2

    def operations(self) -> int:
        """Operations of an update, the mean of both kinds, but those that only look at a tensor in another way."""
        with OperationCounter() as counter:
            self()
        return round(counter.count / 2)

    def flops(self) -> int:
        """Floating-point operations of the matrix products."""
        with FlopCounterMode(display=False) as counter:
            self()
        return int(counter.get_total_flops())


def convolution_block(size_in: int, size_out: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(size_in, size_out, 1), nn.BatchNorm1d(size_out), activation, nn.Dropout(DROPOUT))


class PlainAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([CHANNELS, LENGTH])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = functional.softmax(x.transpose(1, 2) @ y / math.sqrt(CHANNELS), dim=-1)
        return self.norm(functional.dropout((scores @ y.transpose(1, 2)).transpose(1, 2), 0.1))


class PlainConcatenation(nn.Module):
    def __init__(self, size: int, activation: nn.Module) -> None:
        super().__init__()
        self.block = convolution_block(2 * CHANNELS, size, activation)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.block(torch.cat([x, y], dim=1))


class PlainSum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class PlainCell(nn.Module):
    """Each step mixes four operations of the weighted sum of its states, given twice."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.ModuleList(
                [
                    PlainSum(),
                    PlainAttention(),
                    PlainConcatenation(2 * CHANNELS, nn.GLU(dim=1)),
                    PlainConcatenation(CHANNELS, nn.ReLU()),
                ]
            )
            for _ in range(STEPS)
        )
        self.operation_weight = nn.Parameter(torch.ones(STEPS, 4))
        self.step_weight = nn.Parameter(torch.ones(STEPS))
        self.tail = convolution_block(CHANNELS, CHANNELS, nn.ReLU())
        self.norm = nn.LayerNorm([CHANNELS, LENGTH])

    def forward(self, x: Tensor, beta: list[Tensor], gamma: Tensor) -> Tensor:
        states = [x, x]
        for step, operations in enumerate(self.steps):
            mixed = mix(states, beta[step])
            weights = gamma[step] * self.operation_weight[step]
            states.append(sum(w * operation(mixed, mixed) for w, operation in zip(weights, operations, strict=True)))
        joined = sum(w * state for w, state in zip(self.step_weight, states[2:], strict=True))
        return self.norm(self.tail(joined) + x)


def mix(nodes: list[Tensor], weights: Tensor) -> Tensor:
    """Sum over nodes of weight(Identity) * node + weight(Zero) * 0."""
    return sum(w[0] * node + w[1] * node.mul(0.0) for w, node in zip(weights, nodes, strict=True))


class ReleasedFusion(nn.Module):
    """The released fusion network on pooled features, from its description: one supernet, nn.Conv1d, a loop over edges.

    All its gradients are computed in both steps, and the logits are perturbed and divided M times over, as there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reshape = nn.ModuleDict(
            {
                name.replace(".", "_"): convolution_block(size, CHANNELS, nn.ReLU())
                for name, size in RELEASED_FEATURES.items()
            }
        )
        self.cells = nn.ModuleList(PlainCell() for _ in range(CELLS))
        self.head = nn.Sequential(
            nn.LayerNorm([CELLS * CHANNELS, LENGTH]), nn.ReLU(), nn.Flatten(), nn.Linear(CELLS * CHANNELS * LENGTH, 2)
        )
        inputs = len(RELEASED_FEATURES)
        self.alpha = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(inputs + cell, 2)) for cell in range(CELLS))
        self.beta = nn.ParameterList(
            nn.Parameter(1e-3 * torch.randn(2 + s, 2)) for _ in range(CELLS) for s in range(STEPS)
        )
        self.gamma = nn.Parameter(1e-3 * torch.randn(CELLS, STEPS, 4))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        nodes = []
        for name, x in features.items():
            x = x if x.dim() == 3 else x.unsqueeze(-1).repeat(1, 1, LENGTH)
            nodes.append(self.reshape[name.replace(".", "_")](x))
        inputs = len(nodes)
        gamma = relax_repeatedly(self.gamma, NUM_SAMPLES)
        for number, cell in enumerate(self.cells):
            x = mix(nodes, relax_repeatedly(self.alpha[number], NUM_SAMPLES))
            beta = [relax_repeatedly(self.beta[number * STEPS + step], 1) for step in range(STEPS)]
            nodes.append(cell(x, beta, gamma[number]))
        return self.head(torch.cat(nodes[inputs:], dim=1))


def relax_repeatedly(logits: Tensor, times: int) -> Tensor:
    for _ in range(times):
        logits = (logits - torch.empty_like(logits).exponential_().log()) / TEMPERATURE
    return functional.softmax(logits, dim=-1)


class ReleasedUpdates:
    """One weight step and one architecture step with its extra forward pass."""

    def __init__(self) -> None:
        self.net = ReleasedFusion()
        architecture = [*self.net.alpha, *self.net.beta, self.net.gamma]
        # The reshape layers are left out of the optimiser, as they are there.
        fusion = [*self.net.cells.parameters(), *self.net.head.parameters()]
        self.weights = torch.optim.Adam(fusion, lr=1e-3, weight_decay=1e-4)
        self.architecture = torch.optim.Adam(architecture, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        self.features = {
            name: torch.randn((BATCH, size) if name.endswith("pooled") else (BATCH, size, LENGTH))
            for name, size in RELEASED_FEATURES.items()
        }
        self.labels = torch.arange(BATCH) % 2

    def __call__(self) -> None:
        for optimizer in (self.weights, self.architecture):
            self.net.zero_grad()
            functional.cross_entropy(self.net(self.features), self.labels).backward()
            optimizer.step()
        with torch.no_grad():
            self.net(self.features)


class MatrixProduct:
    """A product of two 2048 x 2048 matrices, which shows the rate that sgemm reaches."""

    flops = 2 * 2048**3

    def __init__(self) -> None:
        self.x = torch.randn(2048, 2048)

    def __call__(self) -> None:
        torch.mm(self.x, self.x)


class Epochs:
    """One epoch of one population of 16 points, or of 16 searches of one point, on features of the default sizes."""

    def __init__(self, clips: int, populations: list[list[int]]) -> None:
        self.searches = [
            population(DEFAULT_FEATURES, "default", random_clips(DEFAULT_FEATURES, clips, len(seeds)), seeds)
            for seeds in populations
        ]

    def __call__(self) -> None:
        for search in self.searches:
            search.run_epoch()


def fastest(contenders: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of the fastest of `repeats` rounds of each contender, after one that warms up; they run in turn."""
    seconds = dict.fromkeys(contenders, math.inf)
    for repeat in range(repeats + 1):
        for name, contender in contenders.items():
            start = clock()
            contender()
            if repeat > 0:
                seconds[name] = min(seconds[name], clock() - start)
    return seconds


@dataclass(frozen=True)
class Line:
    """A line of the table: our seconds, the other side's, their ratio, and what it should be."""

    what: str
    ours: float
    against: str
    theirs: float
    ratio: float
    aim: str


def measure(repeats: int, clips: int, clock: Callable[[], float]) -> list[Line]:
    """All lines of the table; `clips` are those of an epoch of the population."""
    single, many = OurUpdates(1, BATCH), OurUpdates(POINTS, BATCH)
    arithmetic = {"single": single.flops(), "many": many.flops()}
    s = fastest(
        {
            "two": OurUpdates(1, RELEASED_BATCH),
            "single": single,
            "many": many,
            "fusion": ReleasedUpdates(),
            "sgemm": MatrixProduct(),
        },
        repeats,
        clock,
    )
    rate = MatrixProduct.flops / s["sgemm"]
    ideal = {name: flops / rate for name, flops in arithmetic.items()}
    e = fastest(
        {
            "population": Epochs(clips, [list(range(POINTS))]),
            "singles": Epochs(clips, [[seed] for seed in range(POINTS)]),
        },
        max(1, repeats // 5),
        clock,
    )
    constant, clip = RELEASED_STEPS_S, RELEASED_STEPS_S / RELEASED_BATCH
    member = s["many"] / POINTS
    print(f"sgemm {rate / 1e9:.0f} GFLOP/s; arithmetic {arithmetic['single'] / 1e9:.2f} GFLOP at P = 1")
    return [
        Line("update pair, batch 2", s["two"], "released code (constant)", constant, constant / s["two"], "> 500"),
        Line(
            "the same a clip, batch 64",
            s["single"] / BATCH,
            "released code (constant)",
            clip,
            clip / (s["single"] / BATCH),
            "> 5000",
        ),
        Line("update pair, P = 1", s["single"], "released fusion", s["fusion"], s["fusion"] / s["single"], "> 2"),
        Line(
            "the same",
            s["single"],
            "released fusion (constant)",
            RELEASED_FUSION_S,
            RELEASED_FUSION_S / s["single"],
            "> 2",
        ),
        Line("a member of P = 16", member, "released fusion", s["fusion"], s["fusion"] / member, "> 3"),
        Line("update pair, P = 1", s["single"], "sgemm time", ideal["single"], s["single"] / ideal["single"], "< 3"),
        Line("update pair, P = 16", s["many"], "sgemm time", ideal["many"], s["many"] / ideal["many"], "< 2"),
        Line(
            f"epoch of {clips} + {clips} clips, P = 16",
            e["population"],
            "16 single searches",
            e["singles"],
            e["population"] / e["singles"],
            "<= 1",
        ),
    ]


def throughput(batches: list[int], members: list[int], repeats: int, clock: Callable[[], float]) -> None:
    """Print updates a second, and clips x members a second, against batch and number of members."""
    print(f"\n{'batch':>5} {'P':>3} {'updates/s':>10} {'clips x members/s':>18} {'operations an update':>21}")
    for batch in batches:
        for count in members:
            ours = OurUpdates(count, batch)
            operations = ours.operations()
            rounds = max(2, repeats * BATCH // (batch * count))
            seconds = fastest({"ours": ours}, min(rounds, repeats), clock)["ours"] / 2
            print(
                f"{batch:5} {count:3} {1 / seconds:10.2f} {batch * count / seconds:18.0f} {operations:21}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats and few clips")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    parser.add_argument("--repeats", type=int, help="rounds of every contender (default: 15, quick 3)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for one thread on a busy machine"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    repeats = arguments.repeats or (3 if arguments.quick else 15)
    lines = measure(repeats, BATCH if arguments.quick else 4 * BATCH, CLOCKS[arguments.clock])
    print(f"{arguments.threads} threads, fastest of {repeats} rounds, milliseconds ({arguments.clock})")
    print(f"{'what':34} {'ours':>10}   {'against':28} {'theirs':>10} {'ratio':>8}  aim")
    for line in lines:
        ours, theirs = 1e3 * line.ours, 1e3 * line.theirs
        print(f"{line.what:34} {ours:10.2f}   {line.against:28} {theirs:10.2f} {line.ratio:8.2f}  {line.aim}")
    if arguments.quick:
        throughput([8, BATCH], [1, 4], repeats, CLOCKS[arguments.clock])
    else:
        throughput([8, BATCH, 256], [1, 4, POINTS], repeats, CLOCKS[arguments.clock])


if __name__ == "__main__":
    main()
