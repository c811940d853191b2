"""The search with backbones in the loop, on clips from memory: micro-batches, workers and kills change nothing.

The module is its own program: `python test_finetune.py DIRECTORY` runs two workers over gloo.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from stgs.backbone_base import build_backbone
from stgs.backbone_trainer import FinetuneConfig
from stgs.config import InputError, SearchConfig
from stgs.finetune import FinetuneSearch
from stgs.parallel import SINGLE, Workers, default_workers
from stgs.search_space import search_space
from stgs.supernet import Member
from tests.memory_stream import MemoryStream
from tests.tiny_backbone import TinyBackbone, random_clips, tiny_backbones

LENGTH, BATCH, SECONDS = 2, 6, 60
TINY = tiny_backbones(LENGTH)
SPACE = search_space("default", TINY.features, channels=6, length=LENGTH)
CONFIG = SearchConfig(epochs=2, batch_size=BATCH)
FINETUNE = FinetuneConfig(micro_batch=4, backbone_learning_rate=1e-3)


def search(workers: Workers = SINGLE, **changes: Any) -> FinetuneSearch:
    return FinetuneSearch(
        SPACE,
        [Member(10.0, 5, 3)],
        estimator="stgs",
        config=CONFIG,
        train=MemoryStream("train", 15, BATCH, LENGTH, workers),
        dev=MemoryStream("dev", 9, BATCH, LENGTH, workers),
        backbones=TINY,
        finetune=replace(FINETUNE, **changes),
        workers=workers,
    )


def tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a nested state, by path."""
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{name}/{key}")


def summary(found: FinetuneSearch) -> dict[str, torch.Tensor]:
    return {"scores": torch.as_tensor(found.dev_scores()[0]), **dict(tensors(found.state_dict()))}


def trained(found: FinetuneSearch) -> dict[str, torch.Tensor]:
    """What updates change: networks and moments; Adam has none before its first step, which is the same as zeros."""
    state = found.state_dict()
    kinds = ("supernet", "weight_optimizer", "architecture_optimizer", "backbones")
    return {name: x.clone() for name, x in tensors({kind: state[kind] for kind in kinds}) if x.any()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """The same bits."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same_way(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Backbones and architecture moved the same way, and scores agree.

    Adam divides a gradient by its size, so where the gradient is nothing but rounding the step is, too: single values
    cannot be held against each other, the whole way can. Its error is that of the few which are near zero.
    """
    start = summary(search())
    for part in ("/supernet/architecture", "/backbones/extractor/visual", "/backbones/extractor/audio"):
        names = [name for name in start if name.startswith(part)]
        way, other = (torch.cat([(s[n] - start[n]).flatten().double() for n in names]) for s in (ours, theirs))
        assert float(other.norm()) > 0
        assert float((way - other).norm() / other.norm()) < 0.02, part
    torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-2, atol=1e-3)


def test_backbones_and_architecture_move_and_rows_are_complete() -> None:
    found = search()
    start = {
        sense: build_backbone(TinyBackbone, f"random:{i}", 3 - 2 * i) for i, sense in enumerate(("visual", "audio"))
    }
    rows = found.run_epoch() + found.run_epoch()
    assert found.finished
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(np.isfinite(row[name]) for row in rows for name in ("train_loss", "dev_loss", "dev_auc"))
    assert found.update == 2 * (3 + 2)
    for sense, network in start.items():
        best = found.best_backbones()[sense]
        for name, p in network.named_parameters():
            assert not torch.equal(best[name], p), name
        for name, buffer in network.named_buffers():
            assert torch.equal(best[name], buffer), name
        network.load_state_dict(best)


def test_the_best_epochs_backbones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.1])
    monkeypatch.setattr("stgs.population.auc", lambda *_: next(scores))
    found = search()
    found.run_epoch()
    first = {name: tensor.clone() for name, tensor in tensors(found.trainer.extractor.visual.state_dict())}
    found.run_epoch()
    assert_equal(dict(tensors(found.best_backbones()["visual"])), first)


def test_micro_batches_change_nothing_but_rounding() -> None:
    small, whole = search(micro_batch=2), search(micro_batch=BATCH)
    for found in (small, whole):
        found.run_epoch()
    assert_same_way(summary(small), summary(whole))


# Updates of the second epoch: a weight update with and without an architecture update before it, and one of the latter.
@pytest.mark.parametrize("killed_at", [5, 7, 8])
def test_a_killed_search_replays_to_the_same_bits(tmp_path: Path, killed_at: int) -> None:
    whole, killed = search(), search()
    whole.run_epoch()
    killed.run_epoch()
    torch.save(killed.state_dict(), tmp_path / "state.pt")
    original = killed.supernet.candidate_weights

    def dying(update: int | None, *rest: Any) -> dict:
        if update == killed_at:
            raise KeyboardInterrupt
        return original(update, *rest)

    killed.supernet.candidate_weights = dying
    with pytest.raises(KeyboardInterrupt):
        killed.run_epoch()
    again = search()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rows = [found.run_epoch() for found in (whole, again)]
    assert rows[0] == rows[1]
    assert_equal(summary(whole), summary(again))


def test_a_search_that_stops_after_every_update_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, torn = search(), search()
    rows = whole.run_epoch()
    stops = 0
    while not torn.epoch:
        answers = iter([False, True])
        stops += torn.run_epoch(lambda answers=answers: next(answers)) is None
        torch.save(torn.state_dict(), tmp_path / "state.pt")
        torn = search()
        torn.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert stops == torn.update == 3 + 2
    assert torn.rows == rows
    assert_equal(summary(whole), summary(torn))


def test_an_epoch_that_other_workers_cut_otherwise_is_begun_anew(tmp_path: Path) -> None:
    found, again = search(), search()
    found.run_epoch(lambda: found.update == 2)
    state = found.state_dict()
    state["sums"]["planned"] = (4, 2)
    again.load_state_dict(state)
    (row,) = again.run_epoch() or []
    assert again.update == 2 + 3 + 2
    assert np.isfinite(row["train_loss"])


def loud(monkeypatch: pytest.MonkeyPatch, found: FinetuneSearch, updates: tuple[int, ...]) -> None:
    """Let the first convolution on sound be 3e5 times as strong while the features of these updates are made."""
    original = found.trainer._run

    def run(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        weight = found.trainer.extractor.audio.early[0].weight
        quiet = weight.detach().clone()
        if found.update in updates:
            weight.data.mul_(3e5)
        features = original(*inputs)
        weight.data.copy_(quiet)
        return features

    monkeypatch.setattr(found.trainer, "_run", run)


# The first update of either kind, where Adam has no state yet, and a later one.
LOUD = (0, 1, 2)


@pytest.mark.parametrize("micro_batch", [2, BATCH])
def test_an_overflow_in_the_backbones_changes_nothing(monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    found = search(precision="float16", micro_batch=micro_batch)
    loud(monkeypatch, found, LOUD)
    changed = []
    for kind in ("_weight_update", "_architecture_update"):

        def watched(*rest: Any, kind: str = kind) -> None:
            before = trained(found)
            getattr(FinetuneSearch, kind)(found, *rest)
            after = trained(found)
            changed.append(
                (kind, before.keys() != after.keys() or any(not x.equal(after[n]) for n, x in before.items()))
            )

        monkeypatch.setattr(found, kind, watched)
    row = found.run_epoch()[0]
    assert [moved for _, moved in changed] == [update not in LOUD for update in range(5)]
    assert {kind for kind, moved in changed if not moved} == {"_weight_update", "_architecture_update"}
    assert found.active == [0]
    assert all(np.isfinite(row[name]) for name in ("train_loss", "architecture_loss", "dev_loss", "dev_auc"))
    skipped = sum(kind == "_weight_update" and not moved for kind, moved in changed)
    assert found.trainer.scaler.get_scale() == 2.0 ** (16 - skipped)


def test_an_overflow_that_stays_ends_the_search_and_names_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(precision="float16")
    loud(monkeypatch, found, tuple(range(6)))
    found.run_epoch()
    assert found.finished
    assert "set precision to float32 (it is float16)" in (found.results()[0].failure or "")


def test_several_points_and_foreign_spaces_are_refused() -> None:
    arguments: dict[str, Any] = {"estimator": "stgs", "config": CONFIG, "backbones": TINY, "finetune": FINETUNE}
    arguments |= {"train": MemoryStream("train", 15, BATCH, LENGTH), "dev": MemoryStream("dev", 9, BATCH, LENGTH)}
    member = Member(1.0, 1, 0)
    with pytest.raises(InputError, match="2 points are to share the backbones"):
        FinetuneSearch(SPACE, [member, member], **arguments)
    other = search_space("default", {"visual.late": 9, "audio.late": 8}, channels=6, length=LENGTH)
    with pytest.raises(InputError, match=r"'visual\.late' with 9 channels, but the backbones give 8"):
        FinetuneSearch(other, [member], **arguments)
    longer = search_space("default", TINY.features, channels=6, length=4)
    with pytest.raises(InputError, match="length 4, but the backbones give 2"):
        FinetuneSearch(longer, [member], **arguments)


def gradients_and_summary(found: FinetuneSearch) -> dict[str, torch.Tensor]:
    """After an epoch; with the gradients of the backbones before the first step."""
    step, gradients = found.trainer.step, {}

    def seen(factor: float) -> None:
        if not gradients:
            named = found.trainer.extractor.named_parameters()
            gradients.update({f"gradient/{name}": p.grad.clone() for name, p in named})
        step(factor)

    found.trainer.step = seen
    found.run_epoch()
    return gradients | summary(found)


def test_two_workers_make_the_updates_of_one(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(repository)}, check=True, timeout=SECONDS)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_equal(first, second)
    alone = gradients_and_summary(search())
    # Adam divides by the size of a gradient, so only the gradient itself shows a wrong one.
    for name, gradient in alone.items():
        if name.startswith("gradient/"):
            largest = float(gradient.abs().max())
            assert largest > 0, name
            torch.testing.assert_close(first[name], gradient, rtol=1e-4, atol=1e-5 * largest)
    assert_same_way(first, alone)
    for rank in range(2):
        overflow = torch.load(tmp_path / f"overflow-{rank}.pt", weights_only=True)
        assert overflow["zeros"].all()
        assert not overflow["moved"].any()


def overflow_of_one(workers: Workers) -> dict[str, torch.Tensor]:
    """An update in which the features of rank 1 alone overflow, and no gradient: the second pass is quiet again."""
    trainer = search(workers, precision="float16", micro_batch=1).trainer
    before = {name: p.detach().clone() for name, p in trainer.extractor.named_parameters()}
    if workers.rank == 1:
        trainer.extractor.audio.early[0].weight.data.mul_(3e5)
    leaves = trainer.begin(*random_clips(2, LENGTH, seed=workers.rank))
    if workers.rank == 1:
        trainer.extractor.audio.early[0].weight.data.copy_(before["audio.early.0.weight"])
    (1e-3 * sum(leaf.sum() for leaf in leaves.values())).backward()
    trainer.backward(leaves)
    trainer.step(1.0)
    moved = [not torch.equal(p, before[name]) for name, p in trainer.extractor.named_parameters()]
    zeros = [not bool(leaf.any()) for leaf in leaves.values()]
    return {"moved": torch.tensor(moved), "zeros": torch.tensor(zeros)}


def rank_main(rank: int, directory: Path) -> None:
    """One of two workers."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=SECONDS / 3),
    )
    workers = default_workers()
    torch.save(gradients_and_summary(search(workers)), directory / f"{rank}.pt")
    torch.save(overflow_of_one(workers), directory / f"overflow-{rank}.pt")
    distributed.destroy_process_group()


def main(directory: Path) -> None:
    """Both workers. They are forked, so that torch is imported once; no thread has been started here."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank_main, args=(rank, directory), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
