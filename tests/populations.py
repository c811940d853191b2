"""A small search of a population, and what tests ask of two searches; shared by the tests of `stgs.population`."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stgs.clips import ClipSet
from stgs.config import SearchConfig
from stgs.population import PopulationSearch
from stgs.search_space import search_space
from stgs.supernet import Member
from tests.planted_clips import planted_clips

NAMES = ["visual.f0", "visual.f1", "audio.f0", "audio.f1"]
INFORMATIVE = ["visual.f1", "audio.f0"]
MEMBERS = [Member(10.0, 15, 3), Member(0.5, 2, 8), Member(20.0, 5, 4), Member(5.0, 20, 12)]
TRAIN, DEV = 96, 80

LOSSES = ("train_loss", "architecture_loss", "dev_loss")

Build = Callable[..., PopulationSearch]


def build_search(
    members: list[Member],
    *,
    preset: str = "default",
    estimator: str = "stgs",
    flip: list[int] | None = None,
    **config: Any,
) -> PopulationSearch:
    """A small search with dropout; `config` changes its configuration. flip: members with inverted labels."""
    splits = []
    for seed, size in ((1, TRAIN), (2, DEV)):
        columns, labels = planted_clips(seed, size, NAMES, INFORMATIVE)
        if flip is not None:  # members with labels of their own
            labels = np.stack([1 - labels if f else labels for f in flip])
        splits.append(ClipSet(columns, labels, members=len(members)))
    return PopulationSearch(
        search_space(preset, dict.fromkeys(NAMES, 16), channels=8, length=4),
        members,
        estimator=estimator,
        config=SearchConfig(**{"epochs": 4, "batch_size": 32, "dropout": 0.3, **config}),
        train=splits[0],
        dev=splits[1],
    )


def run(search: PopulationSearch, epochs: int | None = None) -> PopulationSearch:
    """Search to the end, or until so many epochs are done."""
    while not search.finished and (epochs is None or search.epoch < epochs):
        search.run_epoch()
    return search


def assert_same_course(one: PopulationSearch, member: int, other: PopulationSearch, number: int) -> None:
    """Member `member` of one search went the way of member `number` of the other, in another company."""
    courses = [[row for row in s.rows if row["member"] == m] for s, m in ((one, member), (other, number))]
    assert len(courses[0]) == len(courses[1])
    for a, b in zip(*courses, strict=True):
        assert [a[name] for name in LOSSES] == pytest.approx([b[name] for name in LOSSES], rel=1e-5)
    assert one.results()[member].genotype == other.results()[number].genotype


def through_a_file(state: dict) -> dict:
    """The state as a file gives it back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
