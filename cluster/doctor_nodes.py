"""The doctor's look at every node of a cluster, by tasks that reserve nothing. Needs `cluster.session.connect`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.doctor import Check, Facts, Place, collect, judge
from cluster.doctor_storage import check_storage

_HEAD = "node:__internal_head__"
_CLOCK_ROUNDS = 3
Node = Mapping[str, Any]


def check_nodes(*, timeout_s: float, nodes: Sequence[Node] | None = None) -> list[Check]:
    """Facts of every alive node, judged by those of the head. A node that gives no answer in time fails.

    nodes: as ray.nodes() gives them; None: those that are alive.
    """
    nodes = _alive() if nodes is None else nodes
    answers, checks = _ask(nodes, lambda node: _node_facts(_ray_folder(node), timeout_s), timeout_s, "answer")
    heads = [answers[node["NodeID"]] for node in nodes if _HEAD in node["Resources"] and node["NodeID"] in answers]
    reference: Facts = heads[0] if heads else collect(tempfile.gettempdir())
    for node in nodes:
        if node["NodeID"] in answers:
            checks += judge(answers[node["NodeID"]], _place(node, timeout_s), reference)
    return checks


def check_storage_on_nodes(
    root: str, uri: str, *, timeout_s: float, nodes: Sequence[Node] | None = None
) -> list[Check]:
    """`check_storage` on every alive node. root: of `probe_root`, where `share` has left its object. uri: its name."""
    nodes = _alive() if nodes is None else nodes
    answers, checks = _ask(nodes, lambda node: lambda: check_storage(root, "", shared=True), timeout_s, "storage")
    for node in nodes:
        place = f"node {node['NodeManagerAddress']}  storage {uri}"
        for check in answers.get(node["NodeID"], []):
            checks.append(Check(check.level, place, check.subject, check.detail, check.way_out))
    return checks


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _ask(
    nodes: Sequence[Node], question: Callable[[Node], Callable[[], Any]], timeout_s: float, subject: str
) -> tuple[dict[str, Any], list[Check]]:
    """What each node's question returned there, by the node's id, and a failure of each that did not answer.

    subject: of these failures.
    """
    references = {node["NodeID"]: _on_node(node["NodeID"], question(node)) for node in nodes}
    pending = list(references.values())
    _, late = ray.wait(pending, num_returns=len(pending), timeout=timeout_s) if pending else ([], [])
    answers, checks = {}, []
    for node in nodes:
        reference, place = references[node["NodeID"]], f"node {node['NodeManagerAddress']}"
        if reference in late:
            # Where it answers after all, nobody waits for it.
            ray.cancel(reference, force=True)
            way_out = "look at ray.log there, or take the node out of the cluster"
            checks.append(Check("FAIL", place, subject, f"no answer within {timeout_s:g} s", way_out))
            continue
        try:
            answers[node["NodeID"]] = ray.get(reference)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            checks.append(Check("FAIL", place, subject, reason, "run the same container image on every node"))
    return answers, checks


def _ray_folder(node: Node) -> str:
    """The folder of Ray's sessions on a node, where it also spills."""
    return str(Path(node["ObjectStoreSocketName"]).parents[2])


def _node_facts(folder: str, timeout_s: float) -> Callable[[], Facts]:
    return lambda: collect(folder, on_node=True, timeout_s=timeout_s)


def _on_node(node_id: str, function: Callable[[], Any]) -> Any:
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=where).remote()


def _place(node: Node, timeout_s: float) -> Place:
    skew, uncertainty = _skew(node["NodeID"], timeout_s)
    resources = node["Resources"]
    return Place(
        name=node["NodeManagerAddress"],
        store=int(resources.get("object_store_memory", 0)),
        ray_gpus=int(resources.get("GPU", 0)),
        skew=skew,
        uncertainty=uncertainty,
    )


def _skew(node_id: str, timeout_s: float) -> tuple[float | None, float]:
    """Seconds by which the node's clock is ahead, and by which that may be wrong: half of the quickest round trip."""
    best: tuple[float | None, float] = (None, 0.0)
    for _ in range(_CLOCK_ROUNDS):
        sent = time.time()
        try:
            told = ray.get(_on_node(node_id, lambda: time.time()), timeout=timeout_s)
        except RayError:  # it answered a moment ago: not a matter of its clock
            return best
        half = (time.time() - sent) / 2
        if best[0] is None or half < best[1]:
            best = (told - sent - half, half)
    return best
