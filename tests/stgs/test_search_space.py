"""The layout of the architecture parameters, and refusals."""

import pytest

from stgs.config import InputError
from stgs.search_space import OPERATIONS, RELEASED_FEATURES, SearchSpace, search_space

FEATURES = {"visual.a": 3, "visual.b": 4, "audio.a": 5}


def test_default_space() -> None:
    space = search_space("default", FEATURES, channels=8, length=4)
    # Cell 1 reads 3 features, cell 2 also cell 1; steps read 2 and 3 states.
    assert space.shapes() == {"alpha": (3 + 4, 2), "beta": (2 * (2 + 3), 2), "gamma": (4, 5)}
    assert space.alpha_edges[-1] == (1, "cell1")
    assert space.beta_edges[:5] == (
        (0, 0, "in1"),
        (0, 0, "in2"),
        (0, 1, "in1"),
        (0, 1, "in2"),
        (0, 1, "step1"),
    )
    assert space.operations == OPERATIONS
    assert space.tail == "concat"


def test_released_space() -> None:
    space = search_space("released", RELEASED_FEATURES)
    assert space.shapes() == {"alpha": (16, 2), "beta": (10, 2), "gamma": (4, 4)}
    assert (space.channels, space.length, space.num_cells, space.num_steps) == (128, 8, 2, 2)
    assert "zero" not in space.operations
    assert space.cell_inputs(1) == tuple(RELEASED_FEATURES)
    assert space.tail == "weighted_sum"


def test_larger_spaces() -> None:
    space = search_space("default", FEATURES, num_cells=3, num_steps=4)
    assert space.cell_inputs(2) == ("visual.a", "visual.b", "audio.a", "cell1", "cell2")
    assert space.states(3) == ("in1", "in2", "step1", "step2", "step3")
    assert space.shapes() == {"alpha": (3 + 4 + 5, 2), "beta": (3 * (2 + 3 + 4 + 5), 2), "gamma": (12, 5)}


def test_probabilities_are_named_in_the_order_of_the_logits() -> None:
    space = search_space("default", FEATURES, operations=("zero", "sum"))
    names = space.probability_names()
    assert names[:4] == [f"alpha/cell1/{name}" for name in FEATURES] + ["alpha/cell2/visual.a"]
    assert names[6:9] == ["alpha/cell2/cell1", "beta/cell1/step1/in1", "beta/cell1/step1/in2"]
    assert names[-3:] == ["gamma/cell2/step1/sum", "gamma/cell2/step2/zero", "gamma/cell2/step2/sum"]
    rows = {name: shape[0] for name, shape in space.shapes().items()}
    assert len(set(names)) == len(names) == rows["alpha"] + rows["beta"] + 2 * rows["gamma"]


def test_restricted_to_one_sense() -> None:
    space = search_space("default", {**FEATURES, "audio.b": 6}, num_cells=3)
    audio = space.restricted("audio")
    assert dict(audio.features) == {"audio.a": 5, "audio.b": 6}
    assert audio.num_cells == 3
    with pytest.raises(InputError, match=r"'visual', but of the features .* fewer than 2 are of it"):
        search_space("default", {"audio.a": 5, "audio.b": 6}).restricted("visual")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": {"visual.a": 3}}, "features"),
        ({"features": {"visual.a": 3, "audio.a": 0}}, "audio.a"),
        ({"features": {"visual.a": 3, "cell1": 4}}, "cell1"),
        ({"num_cells": 0}, "num_cells"),
        ({"num_steps": 0}, "num_steps"),
        ({"channels": 0}, "channels"),
        ({"length": 0}, "length"),
        ({"operations": ("sum", "product")}, "'product'"),
        ({"operations": ("sum", "sum")}, "once"),
        ({"operations": ("zero",)}, "zero"),
        ({"operations": ()}, "zero"),
        ({"tail": "mean"}, "'mean'"),
    ],
)
def test_wrong_spaces_are_refused(change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        SearchSpace(**{"features": FEATURES, **change})


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match="'paper'"):
        search_space("paper", FEATURES)
