"""`stgs describe` on the two genotypes of the paper's figures, whose sizes its Table 3 prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import describe
from stgs.search_space import RELEASED_FEATURES

GLU, FC, SUM = "linear_glu", "concat_fc", "sum"
# Published figures temp5_sampling15 and temp15_sampling5: cell inputs, and (operation, inputs) of the steps.
FIRST = [
    (("visual.pooled", "audio.layer2"), [(GLU, ("in1", "in2")), (GLU, ("step1", "in2"))]),
    (("visual.layer2", "audio.layer2"), [(GLU, ("in1", "in2")), (FC, ("in1", "step1"))]),
]
SECOND = [
    (("visual.layer4", "audio.layer2"), [(GLU, ("in1", "in2")), (GLU, ("step1", "in2"))]),
    (("visual.layer2", "visual.layer3"), [(SUM, ("in1", "in2")), (SUM, ("in1", "in2"))]),
]


@pytest.mark.parametrize(("cells", "parameters"), [(FIRST, 651_776), (SECOND, 683_776)])
def test_published_genotypes_have_the_published_sizes(tmp_path: Path, cells: list[Any], parameters: int) -> None:
    content = {
        "version": 1,
        "features": RELEASED_FEATURES,
        "channels": 128,
        "length": 8,
        "cells": [
            {"inputs": inputs, "steps": [{"operation": name, "inputs": states} for name, states in steps]}
            for inputs, steps in cells
        ],
    }
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps(content))
    outcome = describe.run(describe.DescribeConfig(genotype=str(file)))
    assert outcome.payload["parameters"] == parameters
    assert f"parameters: {parameters:,}" in outcome.text
    # Two cells of C x L values, one logit and its bias.
    assert outcome.payload["parameters_with_classifier"] == parameters + 2 * 128 * 8 + 1
    assert f"step1 = {GLU}(in1, in2)" in outcome.text


def test_what_is_no_genotype_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "genotype.json"
    for content, sentence in ((None, "is no file"), ("{}", "field 'version' is missing"), ("[", "not JSON")):
        if content is not None:
            file.write_text(content)
        assert describe.main([str(file)]) == 2
        assert sentence in capsys.readouterr().err
