"""From architecture logits to genotypes, and the entropies that say how decided the logits are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from stgs.cost import constant_parameters, operation_counts, require_fitting, reshape_counts
from stgs.genotype import CellGene, Genotype, StepGene, count_parameters
from stgs.search_space import ARCHITECTURE_PARAMETERS, IDENTITY, SearchSpace

Logits = Mapping[str, NDArray[np.float64]]
Pair = tuple[str, str]
# Under a limit, sets of used inputs are followed up with every pair of the next cell; so many of these at a time.
MAX_CANDIDATES = 2**19


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of `softmax`, finite where a probability is too small for a float."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def decode(logits: Logits, space: SearchSpace, max_parameters: int = 0) -> Genotype:
    """The genotype of one member (design.md section 4, 'Decoding').

    Cell inputs: the pair with the largest product of P(Identity), of which at least one was not used by an earlier
    cell. Steps: the two edges with the largest P(Identity), by falling probability, and the best operation but Zero.
    Ties go by order.

    Where this has more parameters than allowed, cell inputs and operations are chosen together: of the genotypes that
    fit and whose cells each have an input that no earlier cell used, the one with the largest product of P(Identity) of
    all cell inputs and P(operation) of all steps. That is exact as long as the sets of inputs that the earlier cells
    may use, times a cell's pairs, are at most `MAX_CANDIDATES`: always so for two cells and up to 38 features, for
    three and 16, and for any number of cells that, with the features, are at most 12. Beyond, the most probable sets
    are followed, each of which can still fit.

    Args:
        logits: alpha [edges, 2], beta [edges, 2], gamma [steps, operations] (`SearchSpace.shapes`).
        max_parameters: largest number of parameters without the classifier, 0 for no limit.

    Raises:
        InputError: no genotype of the space has as few as `max_parameters`.
    """
    values = {name: np.asarray(logits[name], np.float64) for name in ARCHITECTURE_PARAMETERS}
    edges = _step_edges(values["beta"], space)
    genotype = _genotype(space, _plain_pairs(values["alpha"], space), _plain_operations(values["gamma"], space), edges)
    if not max_parameters or count_parameters(genotype) <= max_parameters:
        return genotype
    require_fitting(space, max_parameters)
    pairs, operations = _best_that_fit(values, space, max_parameters)
    return _genotype(space, pairs, operations, edges)


def _genotype(space: SearchSpace, pairs: Sequence[Pair], operations: Sequence[str], edges: Sequence[Pair]) -> Genotype:
    """pairs: of each cell. operations, edges: of each step, cell after cell."""
    steps = [StepGene(operation=operation, inputs=pair) for operation, pair in zip(operations, edges, strict=True)]
    count = space.num_steps
    cells = tuple(CellGene(pair, tuple(steps[i * count : (i + 1) * count])) for i, pair in enumerate(pairs))
    return Genotype(features=dict(space.features), channels=space.channels, length=space.length, cells=cells)


def _plain_pairs(alpha: NDArray[np.float64], space: SearchSpace) -> list[Pair]:
    identity = dict(zip(space.alpha_edges, softmax(alpha)[:, IDENTITY], strict=True))
    pairs: list[Pair] = []
    for cell in range(space.num_cells):
        used = set(itertools.chain(*pairs))
        candidates = list(itertools.combinations(space.cell_inputs(cell), 2))
        # With few features and many cells every pair may have been used before; then all pairs compete.
        fresh = [pair for pair in candidates if not used.issuperset(pair)] or candidates
        pairs.append(max(fresh, key=lambda pair: identity[cell, pair[0]] * identity[cell, pair[1]]))
    return pairs


def _plain_operations(gamma: NDArray[np.float64], space: SearchSpace) -> list[str]:
    names = [(k, name) for k, name in enumerate(space.operations) if name != "zero"]
    return [max(names, key=lambda item: row[item[0]])[1] for row in gamma]


def _step_edges(beta: NDArray[np.float64], space: SearchSpace) -> list[Pair]:
    """The two states that each step reads."""
    identity = dict(zip(space.beta_edges, softmax(beta)[:, IDENTITY], strict=True))
    edges = []
    for cell, step in space.gamma_steps:
        # sorted() is stable, so ties stay in index order.
        ranked = sorted(((-identity[cell, step, state], state) for state in space.states(step)), key=itemgetter(0))
        edges.append((ranked[0][1], ranked[1][1]))
    return edges


def _best_that_fit(values: Logits, space: SearchSpace, limit: int) -> tuple[list[Pair], list[str]]:
    """The most probable pairs and operations of at most `limit` parameters together; the smallest ones must fit."""
    log_gamma = log_softmax(values["gamma"])
    choices = [(k, name, operation_counts(space)[name]) for k, name in enumerate(space.operations) if name != "zero"]
    # Few totals are possible, so the best operations for each total are found step by step.
    best: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
    for row in log_gamma:
        extended: dict[int, tuple[float, tuple[str, ...]]] = {}
        for count, (score, names) in best.items():
            for k, name, own in choices:
                total = (score + row[k], (*names, name))
                if count + own not in extended or total[0] > extended[count + own][0]:
                    extended[count + own] = total
        best = extended
    counts = np.array(sorted(best))
    # For each budget the best total within it: totals that cost more and are no better drop out.
    within = [max(counts[: i + 1], key=lambda count: best[count][0]) for i in range(len(counts))]

    budget = limit - constant_parameters(space)
    reshape, scores, paths = _input_sets(log_softmax(values["alpha"])[:, IDENTITY], space, budget - int(counts[0]))
    rows = np.searchsorted(counts, budget - reshape, side="right") - 1
    chosen = int(np.argmax(scores + np.array([best[count][0] for count in within])[rows]))
    pairs = [
        list(itertools.combinations(space.cell_inputs(cell), 2))[number] for cell, number in enumerate(paths[chosen])
    ]
    return pairs, list(best[within[rows[chosen]]][1])


def _input_sets(
    log_identity: NDArray[np.float64], space: SearchSpace, budget: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """The sets of inputs that the cells can use together within `budget`, each with its most probable pairs.

    A set decides what it costs and what later cells may choose, so of all ways to one set only the best is kept.
    log_identity: of the edges of alpha. Returns for each set: parameters of its reshape layers, logarithm of the
    product of P(Identity), and for each cell which pair of its inputs it is.
    """
    names = space.cell_inputs(space.num_cells)
    costs = np.array([*reshape_counts(space).values(), *[0] * (len(names) - len(space.features))])
    used = np.zeros((1, len(names)), bool)
    scores = np.zeros(1)
    paths: NDArray[np.int64] = np.zeros((1, 0), np.int64)
    first_edge = 0
    for cell in range(space.num_cells):
        width = len(space.cell_inputs(cell))
        pairs = np.array(list(itertools.combinations(range(width), 2)))
        pair_scores = log_identity[first_edge + pairs].sum(axis=1)
        first_edge += width
        most = max(MAX_CANDIDATES // len(pairs), 1)
        kept = np.sort(np.argsort(-scores, kind="stable")[:most])
        used, scores, paths = used[kept], scores[kept], paths[kept]

        fresh = ~(used[:, pairs[:, 0]] & used[:, pairs[:, 1]])
        fresh |= ~fresh.any(axis=1, keepdims=True)
        before, pair = np.nonzero(fresh)
        after = used[before]
        after[np.arange(len(after)), pairs[pair, 0]] = True
        after[np.arange(len(after)), pairs[pair, 1]] = True
        total = scores[before] + pair_scores[pair]
        fits = after @ costs + _least_addition(after, costs, space, space.num_cells - 1 - cell) <= budget
        best = _first_of_each(after, np.where(fits, total, -np.inf))
        best = best[fits[best]]
        used, scores = after[best], total[best]
        paths = np.column_stack([paths[before[best]], pair[best]])
    return used @ costs, scores, paths


def _least_addition(
    used: NDArray[np.bool_], costs: NDArray[np.int64], space: SearchSpace, cells: int
) -> NDArray[np.int64]:
    """The parameters that `cells` more cells add to each set of used inputs at least: an unused feature each."""
    if space.earlier_cells:  # the cell before is unused and free
        return np.zeros(len(used), np.int64)
    cheapest = np.argsort(costs[: len(space.features)], kind="stable")
    unused = ~used[:, cheapest]
    added: NDArray[np.int64] = (unused & (np.cumsum(unused, axis=1) <= cells)) @ costs[cheapest]
    return added


def _first_of_each(sets: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the best-scored row of each different row of `sets`, the first of equal ones, in rising order."""
    words = np.packbits(sets, axis=1)
    words = np.pad(words, ((0, 0), (0, -words.shape[1] % 8))).view(np.uint64)
    order = np.lexsort((-scores, *words.T))
    ranked = words[order]
    first = np.ones(len(order), bool)
    first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return np.sort(order[first])


def entropies(logits: Logits) -> dict[str, NDArray[np.float64]]:
    """E(alpha), E(beta), E(gamma): the sum over edges or steps of the entropy of softmax(logits), in nats.

    Paper, eq. 20-21. logits: each [..., rows, candidates]. Returns each [...].
    """
    result = {}
    for name in ARCHITECTURE_PARAMETERS:
        p = softmax(np.asarray(logits[name], np.float64))
        # p log p tends to 0 with p; the floor only keeps the logarithm finite.
        result[name] = -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=(-2, -1))
    return result


def maximum_entropies(space: SearchSpace) -> dict[str, float]:
    """The entropies of an undecided space: rows * log(candidates) for alpha, beta and gamma."""
    return {name: rows * math.log(candidates) for name, (rows, candidates) in space.shapes().items()}


def architecture_columns(logits: Logits, space: SearchSpace, weight_decay: float) -> dict[str, NDArray[np.float64]]:
    """What the rows say of the architecture: entropies, norms of the weight decay, and every probability; each [P]."""
    nats, maximum = entropies(logits), maximum_entropies(space)
    columns: dict[str, NDArray[np.float64]] = {}
    probabilities = []
    for name in ARCHITECTURE_PARAMETERS:
        members = len(logits[name])
        columns[f"entropy_{name}"] = nats[name]
        columns[f"normalised_entropy_{name}"] = nats[name] / max(maximum[name], 1e-12)
        columns[f"decay_norm_{name}"] = weight_decay * np.linalg.norm(logits[name].reshape(members, -1), axis=1)
        p = softmax(logits[name])
        probabilities.append(p.reshape(members, -1) if name == "gamma" else p[..., IDENTITY])
    table = np.concatenate(probabilities, axis=1)
    return columns | dict(zip(space.probability_names(), table.T, strict=True))
