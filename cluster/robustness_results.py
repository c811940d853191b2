"""What the scores of damaged clips say: robustness.json of a data set, and what is left where one sense is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.controls import AUDIO, VISUAL
from cluster.damaged_scores import UNDAMAGED
from cluster.evaluation_metrics import TestClips, choose
from cluster.features import Split
from cluster.network_files import StoredNetwork
from cluster.network_scores import NetworkScorer, p_fake
from data_prep.damages import DAMAGES, Damage
from stgs import metrics
from stgs.config import InputError as MetricError
from stgs.resampling import Estimate, Floats

VERSION = 1
STATEMENT = (
    "The test clips were read again, damaged, for the one network that had been chosen on dev; nothing was chosen by "
    "what came out."
)
_REPLACED = "the features of the missing sense are replaced by their mean over the train clips"
_OTHER_ALONE = "a network of the other sense alone, the best on dev, is used instead"

Networks = Mapping[str, StoredNetwork]
Outcomes = Mapping[str, float | str]
"""clip_id -> P(fake), or the reason why the clip was refused."""


def robustness(
    table: pa.Table,
    outcomes: Mapping[tuple[str, int], Outcomes],
    damages: Sequence[str],
    found: str,
    networks: Networks,
    test: Split,
    bootstrap: Mapping[str, int],
) -> dict[str, Any]:
    """All that robustness.json says of one data set, but its name.

    table: of the clips that were damaged, as in scores.parquet. outcomes: of each (damage, severity), the undamaged
    clips among them. found: the network that made them. networks: name -> file, of it and of the arms of one sense.
    test: features of (at least) these clips. bootstrap: seed and resamples.
    """
    clips = TestClips.of(table, **bootstrap)
    names = table["clip_id"].to_pylist()

    def row(damage: Damage, severity: int) -> dict[str, Any]:
        made = outcomes[(damage.name, severity) if severity else (UNDAMAGED, 0)]
        return {
            "severity": severity,
            "label": damage.label(severity),
            **_measured(clips, [made[name] for name in names]),
        }

    undamaged = outcomes[UNDAMAGED, 0]
    again = {name: undamaged[name] for name in names if not isinstance(undamaged[name], str)}
    before = dict(zip(names, table[found].to_pylist(), strict=True))
    return {
        "version": VERSION,
        "statement": STATEMENT,
        "clips": len(names),
        "subjects": clips.subjects,
        "network": found,
        "bootstrap": dict(bootstrap),
        "largest_difference": max((abs(score - before[name]) for name, score in again.items()), default=None),
        "damages": [
            {
                "name": damage.name,
                "sense": damage.sense,
                "unit": damage.unit,
                "text": damage.text,
                "rows": [row(damage, severity) for severity in sorted([0, *damage.values])],
            }
            for damage in (DAMAGES[name] for name in damages)
        ],
        "missing": _missing(clips, names, found, networks, test),
    }


def _measured(clips: TestClips, outcomes: Sequence[float | str]) -> dict[str, Any]:
    refused = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
    scores = np.array([np.nan if isinstance(outcome, str) else outcome for outcome in outcomes])
    return {
        "auc": auc_estimate(clips, scores),
        "scored": len(outcomes) - refused.total(),
        "refused": refused.total(),
        "reasons": dict(sorted(refused.items())),
    }


def auc_estimate(clips: TestClips, scores: Floats) -> dict[str, Any]:
    """AUC of the clips that have a score (NaN: none), with its interval, or a sentence why there is none."""
    scored = ~np.isnan(scores)
    if not scored.any():
        sentence = f"all {len(scores)} clips were refused, so that there is nothing to measure."
        return Estimate(None, sentence=sentence).to_dict()
    try:
        own = clips.scored(scores, scored)
        metrics.checked_both(own.scores, own.fake)
    except MetricError as error:
        return Estimate(None, sentence=str(error)).to_dict()
    return clips.draws.only(scored).estimate(own.auc).to_dict()


def _missing(
    clips: TestClips, names: Sequence[str], found: str, networks: Networks, test: Split
) -> list[dict[str, Any]]:
    """AUC without one sense: of the found network with neutral features, and of the best network of the other one."""
    place = {clip_id: index for index, clip_id in enumerate(test.clips["clip_id"])}
    where = np.array([place[name] for name in names])
    columns = {name: column[where] for name, column in test.columns.items()}
    facts = {name: stored.facts for name, stored in networks.items()}
    rows: list[dict[str, Any]] = []
    for sense, other in ((VISUAL, AUDIO), (AUDIO, VISUAL)):
        alone = choose(facts, (other,))
        auc = _without(clips, networks[found], columns, sense)
        rows.append({"sense": sense, "behaviour": _REPLACED, "network": found, "auc": auc})
        if alone is None:
            sentence = f"the run has no network of {other} features alone; train it with --controls {other}."
            auc = Estimate(None, sentence=sentence).to_dict()
        else:
            auc = auc_estimate(clips, p_fake(NetworkScorer(networks[alone]).logits(columns)))
        rows.append({"sense": sense, "behaviour": _OTHER_ALONE, "network": alone, "auc": auc})
    return rows


def _without(clips: TestClips, stored: StoredNetwork, columns: Mapping[str, Any], sense: str) -> dict[str, Any]:
    lost = [name for name in stored.network.used_features if name.startswith(f"{sense}.")]
    if any(name not in stored.neutral for name in lost):
        sentence = "the network's file holds no neutral values, since an earlier version wrote it; train it again."
        return Estimate(None, sentence=sentence).to_dict()
    neutral = {name: stored.neutral[name].numpy() for name in lost}
    count = len(clips.labels)
    silenced = {name: np.broadcast_to(values, (count, *values.shape)) for name, values in neutral.items()}
    return auc_estimate(clips, p_fake(NetworkScorer(stored).logits({**columns, **silenced})))
