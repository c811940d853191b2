"""Clips with a known answer: which features carry evidence, in arrays; shared by tests and benchmarks."""

import numpy as np


def planted_clips(
    seed: int, num_clips: int, names: list[str], informative: list[str], *, strength: float = 0.5
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of noise, C 16 and L 4, two of which carry independent additive evidence; half of the clips are fake."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(num_clips) % 2).astype(np.int8)
    columns = {}
    for index, name in enumerate(names):
        x = random.standard_normal((num_clips, 16, 4))
        if name in informative:
            direction = np.random.default_rng(100 + index).standard_normal(16)
            direction /= np.linalg.norm(direction)
            x += strength * (2 * labels[:, None, None] - 1) * direction[None, :, None]
        columns[name] = x.astype(np.float16)
    return columns, labels
