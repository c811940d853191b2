"""Two attempts of one pack, in every order of their storage operations, and with a death of either at any of them.

What an attempt does next depends only on the answers that storage gave it so far (the population here is a stub, time
and tokens are fixed). So its behaviour is a tree: an operation, a branch for each answer that it can get, the next
operation, and so on. The tree is learned by running the real `search_pack` on recorded answers. A state of the whole is
(the objects in storage, A's place in the tree, B's place): all that can come after it follows from these three, so each
state needs to be visited once. From every state each attempt that lives takes its next step, or dies; no state is left
out, which makes the search exhaustive although the orders themselves, six thousand million, are far too many to try one
by one: they lead through 150,000 states, and the tree has 9,000 nodes.

Left out are logs, heartbeats and TensorBoard files, which no attempt reads here: the count of an attempt's fruitless
predecessors, which needs them, has tests of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import attempts, running, search_loop
from cluster.attempts import Pack, Point
from cluster.packing import add_packs
from cluster.search_loop import PackJob, search_pack
from data_prep import storage
from stgs.config import SearchConfig
from stgs.genotype import genotype_from_dict
from stgs.parallel import SINGLE
from stgs.progress import MemberResult
from stgs.search_space import search_space
from tests.memory_store import ROOT, MemoryStore

RUN = f"{ROOT}/run"
PACK = Pack("pack-0000", (Point(10.0, 2, "stgs", 0), Point(5.0, 2, "stgs", 1)))
EPOCHS = 2
SPACE = search_space("default", {"visual.a": 4, "audio.b": 4}, channels=2, length=2)
CELL = {"inputs": ["visual.a", "audio.b"], "steps": [{"operation": "sum", "inputs": ["in1", "in2"]}]}
GENOTYPE = {"version": 1, "features": {"visual.a": 4, "audio.b": 4}, "channels": 2, "length": 2, "cells": [CELL]}
ENTROPIES = {f"{kind}_{name}": 0.5 for kind in ("entropy", "normalised_entropy") for name in ("alpha", "beta", "gamma")}
STATE = re.compile(r".*/attempts/(\d+)/state-(\d+)\.pt")
CLAIM = re.compile(r".*/attempts/(\d+)/claim\.json")

# (name, URI, data of a write or a creation)
Operation = tuple[str, str, bytes | None]
Answer = Any
Objects = dict[str, bytes]
# What is for those who watch.
SHOWN_ONLY = re.compile(r"/heartbeat\.json$|/log\.txt$|/tensorboard/")
# Operations with one possible answer.
CERTAIN = ("write", "delete")
DEAD = -1


class StubSearch:
    """A population whose epochs take no time; its only state is how many it has run."""

    def __init__(self, points: int) -> None:
        self.active = list(range(points))
        self.epoch = 0
        self.inside_epoch = False
        self.workers = SINGLE
        self.config = SearchConfig(epochs=EPOCHS)

    @property
    def update(self) -> int:
        return 10 * self.epoch

    @property
    def finished(self) -> bool:
        return self.epoch == EPOCHS

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {"epoch": epoch + 1, "member": member, "dev_auc": 0.5, **ENTROPIES}
            for epoch in range(self.epoch)
            for member in self.active
        ]

    def run_epoch(self, *_: Any) -> list[dict[str, Any]]:
        self.epoch += 1
        return [row for row in self.rows if row["epoch"] == self.epoch]

    def results(self) -> list[MemberResult]:
        return [MemberResult(genotype_from_dict(GENOTYPE), {"dev_auc": 0.5, "epoch": self.epoch}) for _ in self.active]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]


class Unanswered(BaseException):
    """The attempt asks for what no recorded answer is left for."""


class Replay:
    """A storage that gives recorded answers, and notes what is asked for after the last of them."""

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        self._answers: Iterator[Answer] = iter(answers)
        self.asked: list[Operation] = []

    def answer(self, name: str, uri: str, data: bytes | None = None) -> Answer:
        if SHOWN_ONLY.search(uri):
            assert name == "write", "no attempt reads it"
            return None
        if not self.asked:
            for answer in self._answers:
                if isinstance(answer, type):
                    raise answer(uri)
                return list(answer) if name == "list" else answer
        elif self.asked[-1][0] not in CERTAIN:
            raise Unanswered
        self.asked.append((name, uri, data))
        if name not in CERTAIN:
            raise Unanswered

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Meanwhile it is the storage."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("read", "open", "exists", "write", "create", "delete"):
                patch.setattr(storage, f"_{name}", lambda uri, data=None, *_, n=name: self.answer(n, uri, data))
            patch.setattr(storage, "_list_files", lambda uri: self.answer("list", uri))
            yield


def perform(objects: Objects, operation: Operation) -> tuple[Objects, Answer]:
    """What an operation does to the objects, and its answer (a type: of the error that it raises)."""
    name, uri, data = operation
    store = MemoryStore()
    if name in ("read", "open"):
        return objects, objects.get(uri, FileNotFoundError)
    store.objects = objects if name in ("list", "exists") else dict(objects)
    if name == "list":
        return objects, tuple(store.list_files(uri))
    if name == "exists":
        return objects, store.exists(uri)
    if name == "create" and uri in objects:
        return objects, FileExistsError
    if name == "delete":
        store.delete(uri)
    else:
        assert data is not None
        store.write(uri, data)
    if claim := CLAIM.fullmatch(uri):
        # For `check_step`; no attempt sees it.
        store.write(f"{ROOT}/newest-at-claim/{claim[1]}", str(newest(objects)).encode())
    return store.objects, None


class Behaviour:
    """The tree of an attempt: nodes are numbers, 0 is its first operation."""

    def __init__(self) -> None:
        self._histories: list[tuple[Answer, ...]] = [()]
        self._next: list[dict[Answer, int]] = [{}]
        self._operations: list[Operation | None] = [None]
        self._learn(0)

    def __len__(self) -> int:
        return len(self._operations)

    def operation(self, node: int) -> Operation | None:
        """What the attempt asks for; None where it has ended, or is dead."""
        return None if node == DEAD else self._operations[node]

    def after(self, node: int, answer: Answer) -> int:
        """The node to which an answer leads."""
        if answer not in self._next[node]:
            self._learn(self._add(node, answer))
        return self._next[node][answer]

    def _add(self, node: int, answer: Answer) -> int:
        self._histories.append((*self._histories[node], answer))
        self._next.append({})
        self._operations.append(None)
        self._next[node][answer] = len(self._next) - 1
        return len(self._next) - 1

    def _learn(self, node: int) -> None:
        """Run the search on the answers that lead to a node; what follows with the only possible answer is learned,
        too.
        """
        replay = Replay(self._histories[node])
        with replay.installed(), contextlib.suppress(Unanswered):
            assert search_pack(JOB, PACK, None, None, lambda row: None) is None
        for operation in replay.asked:
            self._operations[node] = operation
            if operation[0] not in CERTAIN:
                return
            node = self._add(node, None)
        # The attempt has ended: nothing is asked for at this node.


class World:
    """All states that two attempts can bring about, by the rules of the module's first lines.

    A state is (objects, A's node, B's node), the nodes in order: A and B do the same, so which is which is nothing.
    """

    def __init__(self, objects: Objects) -> None:
        self.behaviour = Behaviour()
        self._objects = {frozenset(objects.items()): objects}
        self.start = (*self._objects, 0, 0)
        self._ends: dict[tuple[frozenset[Any], int], Objects] = {}
        self._following: dict[Any, list[Any]] = {}

    def explore(self, *, deaths: bool) -> Iterator[tuple[Objects, Objects, tuple[int, int]]]:
        """Every step from every state, once: the objects before and after it, and the nodes after it."""
        seen, waiting = {self.start}, [self.start]
        while waiting:
            state = waiting.pop()
            key, *nodes = state
            steps = self._following.setdefault(state, [])
            for number, node in enumerate(nodes):
                operation = self.behaviour.operation(node)
                if operation is None:
                    continue
                other = nodes[1 - number]
                before = self._objects[key]
                after, answer = perform(before, operation)
                after_key = self._keep(after, key, before)
                steps.append((after_key, *sorted((self.behaviour.after(node, answer), other))))
                for following in (steps[-1], (key, *sorted((DEAD, other)))) if deaths else steps[-1:]:
                    if following not in seen:
                        seen.add(following)
                        waiting.append(following)
                        yield before, self._objects[following[0]], following[1:]

    @property
    def states(self) -> int:
        """How many have been explored."""
        return len(self._following)

    def orders(self) -> int:
        """In how many orders the operations of two attempts that live can come, all of them explored."""
        counts: dict[Any, int] = {}
        waiting = [self.start]
        while waiting:
            state = waiting[-1]
            unknown = [following for following in self._following[state] if following not in counts]
            if unknown:
                waiting += unknown
                continue
            # Of two attempts at the same node either may go first: both steps are in the list.
            counts[state] = sum(counts[following] for following in self._following[state]) or 1
            waiting.pop()
        return counts[self.start]

    def _keep(self, objects: Objects, key: frozenset[Any], before: Objects) -> frozenset[Any]:
        if objects is before:
            return key
        after_key = frozenset(objects.items())
        self._objects.setdefault(after_key, objects)
        return after_key

    def alone(self, objects: Objects, node: int = 0) -> Objects:
        """What is there after one attempt has gone on from `node` (0: a new one) to its end, undisturbed."""
        path = []
        while (key := (frozenset(objects.items()), node)) not in self._ends:
            path.append(key)
            operation = self.behaviour.operation(node)
            if operation is None:
                self._ends[key] = objects
                break
            objects, answer = perform(objects, operation)
            node = self.behaviour.after(node, answer)
        end = self._ends[key]
        self._ends |= dict.fromkeys(path, end)
        return end


JOB = PackJob(run=RUN, space=SPACE, config=SearchConfig(epochs=EPOCHS), device="cpu", threads=1, session="ours")


def results(objects: Objects) -> dict[str, bytes]:
    return {uri: data for uri, data in objects.items() if uri.endswith("/result.json")}


def newest(objects: Objects) -> int:
    """The update of the newest state; 0 if there is none."""
    return max((int(match[2]) for uri in objects if (match := STATE.fullmatch(uri))), default=0)


def check_result(objects: Objects, uri: str, data: bytes) -> None:
    """A result is whole, and what it names is there."""
    content = json.loads(data)
    assert content["genotype"] == GENOTYPE
    assert content["metrics"] == {"dev_auc": 0.5, "epoch": EPOCHS}
    assert f"{RUN}/{content['attempt']}/claim.json" in objects
    curves = objects[f"{RUN}/{content['curves']['path']}"]
    assert content["curves"]["path"].startswith(content["attempt"])
    assert hashlib.sha256(curves).hexdigest() == content["curves"]["sha256"]


def check_step(before: Objects, after: Objects) -> None:
    """What no operation of any attempt may do."""
    if before is after:
        return
    for uri, data in results(before).items():
        assert after.get(uri) == data, "a result is for ever"
        curves = json.loads(data)["curves"]["path"]
        assert after[f"{RUN}/{curves}"] == before[f"{RUN}/{curves}"], "and so are its curves"
    for uri in results(after).keys() - results(before).keys():
        check_result(after, uri, after[uri])
    if len(results(before)) < len(PACK.points):
        assert newest(after) >= newest(before), "a state that is still needed was deleted"
        for uri in after.keys() - before.keys():
            if match := STATE.fullmatch(uri):
                found = int(after[f"{ROOT}/newest-at-claim/{match[1]}"])
                assert int(match[2]) > found, "an attempt did again what stood when it began"
    assert not any("failed" in uri for uri in after), "nothing has failed"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Two attempts before their first step. Time stands still, and nothing depends on this process."""
    monkeypatch.setattr(search_loop, "_build", lambda job, points, *_: StubSearch(len(points)))
    monkeypatch.setattr(search_loop, "slice_state", lambda state, members: state)
    monkeypatch.setattr(search_loop, "fruitless_attempts", lambda *_: [])
    monkeypatch.setattr(running, "write_event_files", lambda *_: None)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: 0.0)
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    memory = MemoryStore()
    with memory.installed():
        add_packs(RUN, [], [PACK])
    return World(memory.objects)


@pytest.mark.parametrize(("kept", "deaths"), [(2, True), pytest.param(1, False, marks=pytest.mark.slow)])
def test_two_attempts_in_every_order(world: World, monkeypatch: pytest.MonkeyPatch, kept: int, deaths: bool) -> None:
    """kept: states that are kept; with one, each is deleted as soon as there is a newer one, while others may read."""
    monkeypatch.setattr(attempts, "KEPT_STATES", kept)
    for before, after, nodes in world.explore(deaths=deaths):
        check_step(before, after)
        if any(world.behaviour.operation(node) is not None for node in nodes):
            continue
        if DEAD not in nodes:
            assert not any(STATE.fullmatch(uri) for uri in after), "states go when the results stand"
        if nodes != (DEAD, DEAD):
            assert len(results(after)) == len(PACK.points), "who lives to the end leaves no point without a result"
        else:
            # A third attempt finds what they left behind.
            assert len(results(world.alone(after))) == len(PACK.points)
    assert world.states > (100_000 if deaths else 50_000)
    assert world.orders() > 10**9
