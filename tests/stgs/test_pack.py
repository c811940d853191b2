"""A member of a population of 16 and the same point alone, over 50 updates: the same bits on a CPU with one thread."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from stgs.bilevel import architecture_update, weight_update
from stgs.clips import ClipSet
from stgs.config import SearchConfig
from stgs.population import PopulationSearch
from stgs.search_space import search_space
from stgs.supernet import Member

# The paper's grid.
MEMBERS = [
    Member(t, m, seed) for seed, (m, t) in enumerate((m, t) for m in (5, 10, 15, 20) for t in (5.0, 10.0, 15.0, 20.0))
]
FEATURES = {f"{sense}.{tap}": 24 for sense in ("visual", "audio") for tap in ("layer2", "layer3", "layer4", "pooled")}


def updates(members: list[Member], channels: int, length: int, clips: int, count: int, batch: int) -> Iterator[Tensor]:
    """The losses of each update, [P], weight and architecture updates in turn; at last the logits."""
    random = np.random.default_rng(0)
    columns = {
        name: random.standard_normal((clips, size) if name.endswith("pooled") else (clips, size, length))
        for name, size in FEATURES.items()
    }
    split = ClipSet(columns, (np.arange(clips) % 2).astype(np.int8), members=len(members))
    space = search_space("default", FEATURES, channels=channels, length=length)
    config = SearchConfig(batch_size=batch)
    search = PopulationSearch(space, members, estimator="stgs", config=config, train=split, dev=split)
    net = search.supernet
    for update in range(0, count, 2):
        first, second = (split.batch(random.permutation(clips)[:batch]) for _ in range(2))
        yield weight_update(net, search.weight_optimizer, first, update)[0]
        yield architecture_update(net, search.architecture_optimizer, second, update + 1)[0]
    for logits in net.architecture_parameters().values():
        yield logits.detach().flatten(1)


@pytest.mark.parametrize(
    ("channels", "length", "clips", "count", "batch"),
    [(8, 4, 64, 50, 32), (128, 8, 24, 6, 12)],
    ids=["50 updates, C 8", "6 updates, C 128"],
)
def test_member_of_a_pack_has_the_bits_of_the_point_alone(
    channels: int, length: int, clips: int, count: int, batch: int
) -> None:
    pack = list(updates(MEMBERS, channels, length, clips, count, batch))
    for index in (0, 7, 15):
        alone = updates([MEMBERS[index]], channels, length, clips, count, batch)
        for step, (together, single) in enumerate(zip(pack, alone, strict=True)):
            assert torch.equal(together[index], single[0]), (index, step)
