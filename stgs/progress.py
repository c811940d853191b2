"""What is kept of each member while a population is searched: its best epoch, whether it stops, what went wrong.

Everything is plain values, so that it can stand in a state file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from stgs.config import SearchConfig
from stgs.genotype import Genotype, genotype_from_json
from stgs.search_space import ARCHITECTURE_PARAMETERS

# Early stopping (design.md section 4): all normalised entropies below the first, moving less than the second.
DECIDED_ENTROPY = 0.9
STILL_ENTROPY = 1e-3
# A search that ends above this entropy, with a genotype that changed this recently, has hardly moved.
UNDECIDED_ENTROPY = 0.99
RECENT_EPOCHS = 10
# A gradient that never reaches this share of its weight decay is lost beside it: Adam follows the decay alone.
LOST_SHARE = 0.01
# Normalised entropies that keep within the first have not moved, where Adam's steps could have carried a logit as far
# as the second. The released sampler's range is 5e-7 (weight decay alone), that of samples which learn 4e-5 and more.
UNMOVED_ENTROPY = 5e-6
REACHABLE_LOGIT = 0.1


@dataclass(frozen=True, slots=True)
class MemberResult:
    """What a member's search found: the genotype of its best epoch, and how it got there.

    With the estimator `uniform`, which decides nothing, it is the best of the candidates after the last epoch instead.

    metrics: dev_auc and epoch of the best epoch, epochs run, normalised entropies at the end, whether the architecture
    has hardly moved, and the names of the parameters whose gradient was lost or whose entropy did not move (joined by a
    space, empty for none). candidates: random genotypes (JSON), each with its AUC on dev in the member's supernet at
    the end, None where that is not finite. failure: one sentence, and no genotype, where the member's numbers ceased to
    be finite.
    """

    genotype: Genotype | None
    metrics: dict[str, Any]
    failure: str | None = None
    candidates: Sequence[tuple[str, float | None]] = ()


class MemberProgress:
    """One member's bookkeeping; `state` holds all of it."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.state: dict[str, Any] = dict(
            state
            or {
                "best_auc": -1.0,
                "best_epoch": -1,
                "best_genotype": "",
                "genotype": "",
                "epochs": 0,
                "still": 0,
                "changed_epoch": 0,
                "stopped_epoch": 0,
                "failure": "",
                "entropies": [],
                "lowest_entropies": [math.inf] * len(ARCHITECTURE_PARAMETERS),
                "highest_entropies": [-math.inf] * len(ARCHITECTURE_PARAMETERS),
                "architecture_updates": 0,
                "candidates": [],
                "chosen": False,
                "gradient_shares": [0.0] * len(ARCHITECTURE_PARAMETERS),
            }
        )

    @property
    def active(self) -> bool:
        """Whether the member is still searched."""
        return not self.state["stopped_epoch"] and not self.state["failure"]

    @property
    def failed(self) -> bool:
        """Whether the member ended without a result."""
        return bool(self.state["failure"])

    def fail(self, reason: str) -> None:
        """End the member without a result."""
        self.state["failure"] = reason

    def follow(self, row: Mapping[str, Any], genotype: str, architecture_updates: int, patience: int) -> None:
        """Take in an epoch: keep the best one (ties to the later), and decide whether the member stops."""
        state, epoch = self.state, row["epoch"]
        now = [row[f"normalised_entropy_{name}"] for name in ARCHITECTURE_PARAMETERS]
        before = state["entropies"]
        changed = genotype != state["genotype"]
        moved = changed or not before or max(abs(a - b) for a, b in zip(now, before, strict=True)) >= STILL_ENTROPY
        if changed:
            state["changed_epoch"] = epoch
        # Nothing can move in an epoch of warm-up, which says nothing of the member.
        still = 0 if moved or not architecture_updates else state["still"] + 1
        state |= {"genotype": genotype, "entropies": now, "epochs": epoch, "still": still}
        state["lowest_entropies"] = [min(pair) for pair in zip(state["lowest_entropies"], now, strict=True)]
        state["highest_entropies"] = [max(pair) for pair in zip(state["highest_entropies"], now, strict=True)]
        if architecture_updates:
            state["architecture_updates"] += architecture_updates
            state["gradient_shares"] = [
                max(share, row[f"gradient_norm_{name}"] / max(row[f"decay_norm_{name}"], 1e-30))
                for share, name in zip(state["gradient_shares"], ARCHITECTURE_PARAMETERS, strict=True)
            ]
        if row["dev_auc"] >= state["best_auc"]:
            state |= {"best_auc": row["dev_auc"], "best_epoch": epoch, "best_genotype": genotype}
        if state["still"] >= patience and max(now) < DECIDED_ENTROPY:
            state["stopped_epoch"] = epoch

    def take_candidates(self, genotypes: Sequence[str], aucs: Sequence[float], *, choose: bool) -> None:
        """Keep what the member's supernet said of candidates on dev; not finite: nothing.

        choose: the best of them is what the member found (of equal ones the first), whatever its logits say.
        """
        state = self.state
        state["candidates"] = [
            [genotype, value if math.isfinite(value) else None] for genotype, value in zip(genotypes, aucs, strict=True)
        ]
        if choose:
            scored = [(genotype, value) for genotype, value in state["candidates"] if value is not None]
            if not scored:
                self.fail(
                    "the scores of all candidates are not finite, so none can be chosen; lower the learning rates."
                )
                return
            genotype, value = max(scored, key=itemgetter(1))
            state |= {"best_auc": value, "best_epoch": state["epochs"], "best_genotype": genotype, "chosen": True}

    def result(self, config: SearchConfig) -> MemberResult:
        """What the member found; at least one epoch has been run."""
        state = self.state
        if state["failure"]:
            return MemberResult(None, {}, state["failure"])
        normalised = dict(zip(ARCHITECTURE_PARAMETERS, state["entropies"], strict=True))
        recent = state["changed_epoch"] > state["epochs"] - RECENT_EPOCHS
        undecided = [normalised[name] for name in self._choices()]
        metrics = {
            "dev_auc": state["best_auc"],
            "best_epoch": state["best_epoch"],
            "epochs": state["epochs"],
            "stopped_early": bool(state["stopped_epoch"]) and state["epochs"] < config.epochs,
            **{f"normalised_entropy_{name}": value for name, value in normalised.items()},
            # Where a candidate was chosen the architecture stands still on purpose.
            "hardly_moved": recent and not state.get("chosen") and min(undecided, default=0.0) > UNDECIDED_ENTROPY,
            "gradient_lost": self._gradient_lost(config),
            "entropy_unmoved": self._entropy_unmoved(config),
        }
        candidates = [(genotype, value) for genotype, value in state.get("candidates", ())]
        return MemberResult(genotype_from_json(state["best_genotype"]), metrics, candidates=candidates)

    def _choices(self) -> list[str]:
        """The parameters that have something to choose: with one candidate, the entropy is 0 for good."""
        highest = zip(ARCHITECTURE_PARAMETERS, self.state["highest_entropies"], strict=True)
        return [name for name, value in highest if value > 0.0]

    def _gradient_lost(self, config: SearchConfig) -> str:
        if not self.state["architecture_updates"] or not config.architecture_weight_decay:
            return ""
        shares = dict(zip(ARCHITECTURE_PARAMETERS, self.state["gradient_shares"], strict=True))
        return " ".join(name for name in self._choices() if shares[name] < LOST_SHARE)

    def _entropy_unmoved(self, config: SearchConfig) -> str:
        if self.state["architecture_updates"] * config.architecture_learning_rate < REACHABLE_LOGIT:
            return ""
        bounds = zip(self.state["lowest_entropies"], self.state["highest_entropies"], strict=True)
        ranges = dict(zip(ARCHITECTURE_PARAMETERS, bounds, strict=True))
        return " ".join(name for name in self._choices() if ranges[name][1] - ranges[name][0] < UNMOVED_ENTROPY)
