"""The baseline that README writes down is one: it trains and scores."""

import re
from pathlib import Path

import numpy as np

from stgs.baselines.base import Baseline, BaselineConfig
from stgs.baselines.training import BaselineTraining, BaselineTrainingConfig
from tests.memory_sequences import MemorySequences


def test_readme_s_own_baseline_learns_what_is_heard(repository: Path) -> None:
    (code,) = re.findall(r"```python\n([^`]*class SoundOnly[^`]*)```", (repository / "README.md").read_text())
    names: dict[str, type[Baseline]] = {}
    exec(code, names)
    model = names["SoundOnly"](BaselineConfig())
    train, dev = MemorySequences(16, seed=1), MemorySequences(16, seed=2)
    training = BaselineTraining(
        model, BaselineTrainingConfig(epochs=4, batch_size=5, learning_rate=0.05), train=train, dev=dev
    )
    while not training.finished:
        training.run_epoch()
    training.use_best()
    scores = training.score(dev)
    heard = np.isin(dev.categories, ["B", "D"])
    assert scores[heard].min() > scores[dev.categories == "A"].max()
    assert training.rows[-1]["loss"] < training.rows[0]["loss"]
