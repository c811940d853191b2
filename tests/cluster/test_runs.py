"""Which runs are continued: those of the same settings, also where their file is older than a setting."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.runs import open_run, read_config
from cluster.settings import GridConfig, SearchSettings
from data_prep.storage import InputError
from stgs.config import SearchConfig

DEFAULTS = asdict(GridConfig())


def settings(**search: Any) -> dict[str, Any]:
    return asdict(GridConfig(settings=replace(SearchSettings(), search=SearchConfig(**search))))


@pytest.fixture
def older(tmp_path: Path) -> str:
    """A run whose file was written before there were candidates."""
    run = open_run(str(tmp_path / "run"), settings(epochs=3), resume=False, hints={})
    file = tmp_path / "run" / "config.yaml"
    content = yaml.safe_load(file.read_text())
    del content["config"]["settings"]["search"]["candidates"]
    file.write_text(yaml.safe_dump(content))
    return run


def test_a_setting_that_is_newer_than_a_run_has_its_default_there(older: str) -> None:
    before = read_config(older)
    assert open_run(older, settings(epochs=3), resume=True, hints={}, defaults=DEFAULTS) == older
    assert read_config(older) == before
    with pytest.raises(InputError, match="was begun with candidates 0, not 16; give that, or another --out"):
        open_run(older, settings(epochs=3, candidates=16), resume=True, hints={}, defaults=DEFAULTS)


def test_the_one_setting_that_differs_is_named(older: str) -> None:
    with pytest.raises(InputError, match="was begun with epochs 3, not 4; give that, or another --out"):
        open_run(older, settings(epochs=4), resume=True, hints={}, defaults=DEFAULTS)


def test_refusals_name_the_option_that_the_place_was_given_by(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    open_run(run, {"model": "avdf"}, resume=False, hints={}, place="--name")
    with pytest.raises(InputError, match=r"continue it with --resume, or give another --name\."):
        open_run(run, {"model": "avdf"}, resume=False, hints={}, place="--name")
    with pytest.raises(InputError, match=r"begun with model 'avdf', not 'mrdf_ce'; give that, or another --name\."):
        open_run(run, {"model": "mrdf_ce"}, resume=True, hints={}, place="--name")
    with pytest.raises(InputError, match="--name ends in 'a run'"):
        open_run(str(tmp_path / "a run"), {}, resume=False, hints={}, place="--name")


def test_where_there_is_no_run_both_commands_that_begin_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the --out of 'stgs grid' or 'stgs baseline'"):
        read_config(str(tmp_path))
