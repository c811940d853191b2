"""Splits as tensors: order of axes, batches, labels of members, refusals."""

import numpy as np
import pytest
import torch

from stgs.clips import ClipSet, require_features
from stgs.config import InputError
from stgs.parallel import Workers

N, C, L = 10, 3, 4


def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "visual.a": random.standard_normal((N, C, L)).astype(np.float16),
        "audio.v": random.standard_normal((N, 5)).astype(np.float16),
    }


LABELS = (np.arange(N) % 3 == 0).astype(np.int8)


def test_batches_hold_the_clips_asked_for() -> None:
    data = columns()
    clips = ClipSet(data, LABELS, members=2)
    assert len(clips) == N
    index = np.array([7, 0, 3])
    batch = clips.batch(index)
    assert batch.features["visual.a"].dtype == torch.float32
    expected = data["visual.a"][index].astype(np.float32).swapaxes(1, 2)
    assert np.array_equal(batch.features["visual.a"].numpy(), expected)
    assert np.array_equal(batch.features["audio.v"].numpy(), data["audio.v"][index].astype(np.float32))
    assert batch.labels.tolist() == [LABELS[index].tolist()] * 2
    assert batch.class_weights[0].tolist() == pytest.approx([N / (2 * 6), N / (2 * 4)])


def test_members_may_have_their_own_labels() -> None:
    labels = np.stack([LABELS, 1 - LABELS])
    clips = ClipSet(columns(), labels, members=2)
    assert clips.batch(np.array([0, 1])).labels.tolist() == [[1, 0], [0, 1]]
    assert clips.class_weights[0].tolist() == pytest.approx(clips.class_weights[1].flip(0).tolist())


def test_given_balance_is_kept_and_frees_from_both_classes() -> None:
    balance = torch.tensor([[0.7, 1.3]])
    clips = ClipSet(columns(), np.ones(N, np.int8), members=1, balance=balance)
    assert torch.equal(clips.batch(np.arange(2)).class_weights, balance)


def test_clips_do_not_share_memory_with_the_columns() -> None:
    data = columns()
    clips = ClipSet(data, LABELS, members=1)
    before = clips.batch(np.arange(N)).features["audio.v"]
    data["audio.v"][:] = 0
    assert torch.equal(clips.batch(np.arange(N)).features["audio.v"], before)


@pytest.mark.parametrize(
    ("change", "labels", "named"),
    [
        ({}, np.zeros(0, np.int8), "no clips"),
        ({"visual.a": np.zeros((N - 1, C, L))}, LABELS, "'visual.a' has 9 clips"),
        ({"visual.a": np.full((N, C, L), 1e5, np.float32)}, LABELS, "'visual.a'"),
        ({"audio.v": np.full((N, 5), np.nan, np.float32)}, LABELS, "'audio.v'"),
        ({}, np.ones(N, np.int8), "both classes"),
        ({}, np.arange(N).astype(np.int8), "only 0 and 1"),
        ({}, np.stack([LABELS] * 2), r"\(2, 10\)"),
    ],
)
def test_wrong_splits_are_refused(change: dict, labels: np.ndarray, named: str) -> None:
    with pytest.raises(InputError, match=named):
        ClipSet({**columns(), **change}, labels, members=3)


def test_features_must_fit_the_space() -> None:
    clips = ClipSet(columns(), LABELS, members=1)
    require_features(clips, {"visual.a": C, "audio.v": 5}, L)
    for features, length, named in (
        ({"visual.b": C}, L, "'visual.b' is missing"),
        ({"visual.a": C + 1}, L, "'visual.a'"),
        ({"visual.a": C}, L + 1, "'visual.a'"),
        ({"audio.v": 6}, L, "'audio.v'"),
    ):
        with pytest.raises(InputError, match=named):
            require_features(clips, features, length)


@pytest.mark.parametrize("world", [2, 3])
def test_a_batch_is_dealt_out_to_the_workers(world: int) -> None:
    clips = ClipSet(columns(), LABELS, members=2)
    index = np.array([7, 0, 3, 9])
    whole = clips.batch(index)
    assert whole.clips == 4
    for rank in range(world):
        batch = clips.batch(index, Workers(rank, world))
        assert batch.clips == 4
        assert torch.equal(batch.labels, whole.labels[:, rank::world])
        for name, x in batch.features.items():
            assert torch.equal(x, whole.features[name][rank::world])
    with pytest.raises(InputError, match="4 clips, but there are 5 workers"):
        clips.batch(index, Workers(0, 5))
