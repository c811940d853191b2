"""Bookkeeping of a member: best epoch, early stop, and the warnings, against hand-made courses of a search."""

import math
from typing import Any

import pytest

from stgs.config import SearchConfig
from stgs.genotype import CellGene, Genotype, StepGene
from stgs.progress import MemberProgress
from stgs.search_space import ARCHITECTURE_PARAMETERS


def genotype(operation: str = "sum") -> str:
    step = StepGene(operation, ("in1", "in2"))
    return Genotype({"visual.f0": 4, "audio.f0": 4}, 4, 2, (CellGene(("visual.f0", "audio.f0"), (step,)),)).to_json()


def row(epoch: int, *, auc: float = 0.5, entropy: float = 0.5, gradient: float = 1.0, decay: float = 1e-3) -> Any:
    values: dict[str, Any] = {"epoch": epoch, "dev_auc": auc}
    for name in ARCHITECTURE_PARAMETERS:
        values[f"normalised_entropy_{name}"] = entropy
        values[f"gradient_norm_{name}"], values[f"decay_norm_{name}"] = gradient, decay
    return values


def follow(progress: MemberProgress, *rows: Any, genotypes: list[str] | None = None, patience: int = 3) -> None:
    for index, values in enumerate(rows):
        found = genotypes[index] if genotypes else genotype()
        progress.follow(values, found, architecture_updates=20, patience=patience)


def test_best_epoch_is_the_latest_of_the_best_auc() -> None:
    progress = MemberProgress()
    aucs = (0.6, 0.9, 0.9, 0.7)
    kinds = ["sum", "sum", "attention", "linear_glu"]
    follow(
        progress,
        *(row(epoch, auc=value, entropy=1.0) for epoch, value in enumerate(aucs, 1)),
        genotypes=[genotype(kind) for kind in kinds],
    )
    result = progress.result(SearchConfig())
    assert (result.metrics["best_epoch"], result.metrics["dev_auc"]) == (3, 0.9)
    assert result.genotype is not None
    assert result.genotype.cells[0].steps[0].operation == "attention"


def test_a_member_stops_after_patience_still_and_decided_epochs() -> None:
    progress = MemberProgress()
    follow(progress, *(row(epoch, entropy=0.5) for epoch in range(1, 4)))
    assert progress.active, "epoch 1 has nothing before it, so only two epochs were still"
    follow(progress, row(4, entropy=0.5))
    assert not progress.active
    assert progress.result(SearchConfig(epochs=9)).metrics["stopped_early"]


@pytest.mark.parametrize(
    ("entropies", "kinds"),
    [
        ([0.95] * 6, ["sum"] * 6),  # undecided
        ([0.5, 0.502, 0.5, 0.502, 0.5, 0.502], ["sum"] * 6),  # moving
        ([0.5] * 6, ["sum", "sum", "attention", "attention", "sum", "sum"]),  # another genotype
    ],
)
def test_members_that_move_or_are_undecided_go_on(entropies: list[float], kinds: list[str]) -> None:
    progress = MemberProgress()
    rows = [row(epoch, entropy=value) for epoch, value in enumerate(entropies, 1)]
    follow(progress, *rows, genotypes=[genotype(kind) for kind in kinds])
    assert progress.active


def test_a_gradient_below_its_weight_decay_is_named() -> None:
    progress = MemberProgress()
    values = [row(epoch, gradient=1e-9, decay=1e-5) for epoch in (1, 2)]
    # beta's gradient shows once, which is enough.
    values[1]["gradient_norm_beta"] = 1e-4
    follow(progress, *values)
    assert progress.result(SearchConfig()).metrics["gradient_lost"] == "alpha gamma"
    # Without a weight decay there is nothing to be lost beside.
    assert progress.result(SearchConfig(architecture_weight_decay=0.0)).metrics["gradient_lost"] == ""


def test_an_entropy_that_never_moved_is_named_once_it_could_have() -> None:
    progress = MemberProgress()
    values = [row(epoch, entropy=0.99999 + 1e-7 * epoch) for epoch in (1, 2, 3)]
    values[2]["normalised_entropy_gamma"] = 0.99
    follow(progress, *values)
    # 60 updates of 3e-3 each could have carried a logit to 0.18; 60 of 1e-3 not to 0.1.
    assert progress.result(SearchConfig()).metrics["entropy_unmoved"] == "alpha beta"
    slow = SearchConfig(architecture_learning_rate=1e-3)
    assert progress.result(slow).metrics["entropy_unmoved"] == ""


def test_warm_up_epochs_say_nothing_of_gradients() -> None:
    progress = MemberProgress()
    progress.follow(row(1, gradient=math.nan), genotype(), architecture_updates=0, patience=3)
    metrics = progress.result(SearchConfig()).metrics
    assert (metrics["gradient_lost"], metrics["entropy_unmoved"]) == ("", "")


def test_warm_up_epochs_do_not_count_as_still() -> None:
    progress = MemberProgress()
    for epoch in range(1, 9):
        progress.follow(row(epoch, entropy=0.5), genotype(), architecture_updates=0, patience=2)
    assert progress.active


def test_a_parameter_without_a_choice_is_neither_named_nor_asked() -> None:
    progress = MemberProgress()
    values = [row(epoch, entropy=0.999, gradient=1e-2) for epoch in (1, 2)]
    for line in values:
        line["normalised_entropy_gamma"] = line["gradient_norm_gamma"] = 0.0
    values[1]["normalised_entropy_alpha"] = values[1]["normalised_entropy_beta"] = 0.995
    follow(progress, *values)
    metrics = progress.result(SearchConfig()).metrics
    assert (metrics["gradient_lost"], metrics["entropy_unmoved"]) == ("", "")
    assert metrics["hardly_moved"]


def test_a_failed_member_has_no_genotype() -> None:
    progress = MemberProgress()
    follow(progress, row(1))
    progress.fail("its loss is nan")
    assert not progress.active
    result = progress.result(SearchConfig())
    assert (result.genotype, result.failure) == (None, "its loss is nan")


def test_state_holds_everything() -> None:
    progress = MemberProgress()
    follow(progress, row(1), row(2))
    again = MemberProgress(progress.state)
    follow(progress, row(3), row(4))
    follow(again, row(3), row(4))
    assert again.state == progress.state
    assert not again.active
