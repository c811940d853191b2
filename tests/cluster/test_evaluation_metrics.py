"""What the scores of several networks together say, and when they say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from cluster import evaluation_metrics


@pytest.mark.parametrize(
    ("aucs", "at_chance", "sentence"),
    [
        ([0.5], None, "only 1 shuffle; 20 are needed for this to be a check."),
        ([0.4, 0.6], None, "only 2 shuffles; 20 are needed for this to be a check."),
        ([0.5] * 20, None, "all 20 shuffles have the same AUC, so that nothing tells how far chance would reach."),
        ([0.45, 0.55, 0.52], True, "only 3 shuffles; 20 are needed for this to be a check."),
        ([0.9, 0.91] * 5, False, "only 10 shuffles; 20 are needed for this to be a check."),
        ([0.45, 0.54] * 10, True, None),
        ([0.6, 0.61] * 10, False, None),
    ],
)
def test_few_or_equal_shuffles_are_no_check(aucs: list[float], at_chance: bool | None, sentence: str | None) -> None:
    told = evaluation_metrics.chance_check(aucs)
    assert told is not None
    assert (told["count"], told["mean"]) == (len(aucs), pytest.approx(np.mean(aucs)))
    assert (told["at_chance"], told["sentence"]) == (at_chance, sentence)
    assert told["standard_error"] is None if len(aucs) == 1 else told["standard_error"] >= 0
    assert evaluation_metrics.chance_check([]) is None
