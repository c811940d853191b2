"""Candidates: genotypes drawn by chance from a space, and what a trained supernet says of each of them.

A supernet that ranks genotypes as their own training from scratch would is what weight sharing rests on, so the scores
here are held against those of the stand-alone networks. Shapes: P members, K candidates, N clips, B of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stgs.config import require
from stgs.decoding import decode
from stgs.estimators import gumbel_noises
from stgs.genotype import Genotype, genotype_from_json
from stgs.layers import ForwardContext, MemberBatchNorm
from stgs.metrics import auc
from stgs.parallel import SINGLE, Workers
from stgs.search_space import IDENTITY, SearchSpace

if TYPE_CHECKING:
    from stgs.bilevel import Batch
    from stgs.supernet import Supernet

# Train clips from which the statistics of batch normalisation are computed anew, at least, where there are as many.
CALIBRATION_CLIPS = 512


def random_genotypes(space: SearchSpace, count: int, seed: int | Sequence[int], max_parameters: int = 0) -> list[str]:
    """`count` different genotypes (JSON): decoded from logits that are drawn, so by the rules that a search obeys.

    The first of them do not depend on `count`; a space that holds fewer gives those that it has. max_parameters: of
    each, 0 for no limit. seed: at least 0, or several such numbers, which are a stream of their own.
    """
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    # A small space may hold fewer genotypes than asked for; after this many draws it has shown them.
    for _ in range(100 * count):
        if len(found) == count:
            break
        logits = {name: random.standard_normal(shape) for name, shape in space.shapes().items()}
        found[decode(logits, space, max_parameters).to_json()] = None
    return list(found)


def genotype_weights(genotypes: Sequence[Genotype], space: SearchSpace) -> dict[str, Tensor]:
    """The one-hot architecture weights that make a supernet of `space` compute one genotype alone, for K genotypes.

    alpha: Identity for the two inputs of each cell, Zero for the others. beta: the same for the two states that each
    step reads. gamma: the step's operation. A supernet's operation sees the sum of both states twice, that of a found
    network each once: the path is the supernet's, which is what its training has weighed.

    Returns:
        alpha, beta, gamma -> float32 [K, rows, candidates], what `Supernet.forward` takes of K members.

    Raises:
        InputError: a genotype of another space.
    """
    weights = {name: torch.zeros(len(genotypes), *shape) for name, shape in space.shapes().items()}
    for k, genotype in enumerate(genotypes):
        _require_of_space(genotype, space)
        reads = {
            "alpha": [name in genotype.cells[cell].inputs for cell, name in space.alpha_edges],
            "beta": [state in genotype.cells[cell].steps[step].inputs for cell, step, state in space.beta_edges],
        }
        for name, chosen in reads.items():
            weights[name][k] = _edge_weights(torch.tensor(chosen).float())
        for row, (cell, step) in enumerate(space.gamma_steps):
            weights["gamma"][k, row, space.operations.index(genotype.cells[cell].steps[step].operation)] = 1.0
    return weights


def _require_of_space(genotype: Genotype, space: SearchSpace) -> None:
    steps = {len(cell.steps) for cell in genotype.cells}
    operations = {step.operation for cell in genotype.cells for step in cell.steps}
    inputs = {name for cell in genotype.cells for name in cell.inputs}
    require(
        (dict(genotype.features), genotype.channels, genotype.length, len(genotype.cells), steps)
        == (dict(space.features), space.channels, space.length, space.num_cells, {space.num_steps})
        and operations <= set(space.operations)
        and inputs <= set(space.cell_inputs(space.num_cells)),
        f"the genotype {genotype.to_json()} is none of the search's space; give one that this space holds.",
    )


def _edge_weights(chosen: Tensor) -> Tensor:
    """Weights of Identity and Zero, [..., 2], of edges that are chosen (1) or not (0)."""
    weights = torch.stack([1.0 - chosen, 1.0 - chosen], dim=-1)
    weights[..., IDENTITY] = chosen
    return weights


def uniform_weights(seeds: Tensor, update: int, space: SearchSpace) -> dict[str, Tensor]:
    """One-hot weights of an architecture that is drawn by chance for each member, [P, rows, candidates].

    Each pair of a cell's inputs, each pair of a step's states, and each operation but Zero is as probable as any other.
    Drawn from the stream of (member seed, update), as noise is, so it depends on neither pack nor worker.
    """
    # The largest of so many draws of one distribution are any of them with equal probability.
    draws = gumbel_noises(seeds, update, {name: (1, *shape) for name, shape in space.shapes().items()})
    noise = {name: drawn.squeeze(1) for name, drawn in draws.items()}
    sizes = {
        "alpha": [len(space.cell_inputs(cell)) for cell in range(space.num_cells)],
        "beta": [len(space.states(step)) for step in range(space.num_steps)] * space.num_cells,
    }
    weights = {}
    for name, edges in sizes.items():
        parts = noise[name][..., IDENTITY].split(edges, dim=1)
        weights[name] = _edge_weights(torch.cat([_largest(part, 2) for part in parts], dim=1))
    gamma = noise["gamma"]
    if "zero" in space.operations:
        gamma[..., space.operations.index("zero")] = -torch.inf
    weights["gamma"] = _largest(gamma, 1)
    return weights


def _largest(values: Tensor, count: int) -> Tensor:
    """1 where one of the `count` largest values of the last axis stands, 0 elsewhere."""
    return torch.zeros_like(values).scatter_(-1, values.topk(count, dim=-1).indices, 1.0)


@torch.no_grad()
def candidate_scores(
    supernet: Supernet,
    positions: Sequence[int],
    genotypes: Sequence[Sequence[str]],
    *,
    train: Iterable[Batch],
    dev: Iterable[tuple[NDArray[np.int64], Batch]],
    labels: Tensor,
    workers: Workers = SINGLE,
) -> NDArray[np.float64]:
    """The AUC on dev of candidate genotypes in the supernets of some members, which are left as they are.

    In eval mode, after the statistics of batch normalisation were computed anew for each genotype. In training, all
    paths share them: they are those of a mixture of everything, not of the two inputs and the one operation that a
    genotype leaves. Recomputing them from training clips before a path is judged is what single-path one-shot search
    does (Guo et al., arXiv 1904.00420).

    Args:
        supernet: the population.
        positions: which members' supernets, P of them.
        genotypes: K of each of these members (JSON).
        train: this worker's share of training batches; only as many are read as make `CALIBRATION_CLIPS` clips.
        dev: this worker's share of the dev clips: positions in dev, and the clips. Read once.
        labels: of all N dev clips, of these members, [P, N].
        workers: who shares the batches.

    Returns:
        [P, K], NaN where a score is not finite.
    """
    part = copy.deepcopy(supernet)
    part.keep_members(positions)
    device = part.seeds.device
    rows = [genotype_weights([genotype_from_json(text) for text in one], part.space) for one in genotypes]
    candidates = [
        {name: torch.stack([row[name][k] for row in rows]).to(device) for name in rows[0]}
        for k in range(len(genotypes[0]))
    ]
    running = [
        buffer
        for norm in part.modules()
        if isinstance(norm, MemberBatchNorm)
        for buffer in (norm.running_mean, norm.running_variance)
    ]
    batches = _first_clips(train)
    statistics = []
    for weights in candidates:
        _calibrate(part, weights, batches, workers)
        statistics.append([buffer.clone() for buffer in running])
    logits = torch.zeros(len(candidates), *labels.shape, device=device)
    context = ForwardContext(part.seeds, 0, training=False, track_statistics=False)
    for index, batch in dev:
        where = torch.as_tensor(index, device=device)
        for weights, own, scores in zip(candidates, statistics, logits, strict=True):
            torch._foreach_copy_(running, own)
            scores[:, where] = part(batch.features, weights, context)
    workers.sum_(logits)
    return _aucs(logits.transpose(0, 1).double().cpu().numpy(), labels.cpu().numpy())


def _first_clips(batches: Iterable[Batch]) -> list[tuple[int, Batch]]:
    """The first batches that together have `CALIBRATION_CLIPS` clips, or all; each with its clips, all workers'."""
    found: list[tuple[int, Batch]] = []
    for batch in batches:
        found.append((batch.labels.shape[1] if batch.clips is None else batch.clips, batch))
        if sum(clips for clips, _ in found) >= CALIBRATION_CLIPS:
            break
    return found


def _calibrate(
    supernet: Supernet, weights: dict[str, Tensor], batches: Sequence[tuple[int, Batch]], workers: Workers
) -> None:
    """Set running statistics to the mean of those of the batches, without dropout, with these architecture weights."""
    seen = 0
    for clips, batch in batches:
        seen += clips
        context = ForwardContext(
            supernet.seeds,
            0,
            training=True,
            track_statistics=True,
            workers=workers,
            dropping=False,
            momentum=clips / seen,
        )
        supernet(batch.features, weights, context)


def _aucs(logits: NDArray[np.float64], labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """The AUC of each member's candidates: logits [P, K, N], labels [P, N] -> [P, K]."""
    return np.array(
        [
            [auc(scores, own) if np.isfinite(scores).all() else np.nan for scores in member]
            for member, own in zip(logits, labels, strict=True)
        ]
    )
