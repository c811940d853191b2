"""From architecture logits to genotypes, and the entropies that say how decided the logits are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from stgs.genotype import CellGene, Genotype, StepGene
from stgs.search_space import ARCHITECTURE_PARAMETERS, IDENTITY, SearchSpace

Logits = Mapping[str, NDArray[np.float64]]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def decode(logits: Logits, space: SearchSpace) -> Genotype:
    """The genotype of one member (design.md section 4, 'Decoding').

    Cell inputs: the pair with the largest product of P(Identity), of which at least one was not used by an earlier
    cell. Steps: the two edges with the largest P(Identity), by falling probability, and the best operation but Zero.
    Ties go by order.

    Args:
        logits: alpha [edges, 2], beta [edges, 2], gamma [steps, operations] (`SearchSpace.shapes`).
    """
    identity = {name: softmax(np.asarray(logits[name], np.float64))[:, IDENTITY] for name in ("alpha", "beta")}
    alpha = dict(zip(space.alpha_edges, identity["alpha"], strict=True))
    beta = dict(zip(space.beta_edges, identity["beta"], strict=True))
    gamma = dict(zip(space.gamma_steps, softmax(np.asarray(logits["gamma"], np.float64)), strict=True))

    cells = []
    used: set[str] = set()
    for cell in range(space.num_cells):
        inputs = _best_pair({name: alpha[cell, name] for name in space.cell_inputs(cell)}, used)
        used.update(inputs)
        steps = []
        for step in range(space.num_steps):
            # sorted() is stable, so ties stay in index order.
            ranked = sorted(((-beta[cell, step, state], state) for state in space.states(step)), key=itemgetter(0))
            scores = {name: gamma[cell, step][k] for k, name in enumerate(space.operations) if name != "zero"}
            operation = max(scores, key=scores.__getitem__)
            steps.append(StepGene(operation=operation, inputs=(ranked[0][1], ranked[1][1])))
        cells.append(CellGene(inputs=inputs, steps=tuple(steps)))
    return Genotype(features=dict(space.features), channels=space.channels, length=space.length, cells=tuple(cells))


def _best_pair(probability: Mapping[str, float], used: set[str]) -> tuple[str, str]:
    pairs = list(itertools.combinations(probability, 2))
    # With few features and many cells every pair may have been used before; then all pairs compete.
    fresh = [pair for pair in pairs if not used.issuperset(pair)] or pairs
    return max(fresh, key=lambda pair: probability[pair[0]] * probability[pair[1]])


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
